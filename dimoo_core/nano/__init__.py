"""DiMOO-nano: a world of coloured shapes, the recipe that teaches it to a tiny model, and a judge that reads pixels."""
