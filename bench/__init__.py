"""Time and memory against a baseline written the released way. Not part of the pack; run from the repository."""
