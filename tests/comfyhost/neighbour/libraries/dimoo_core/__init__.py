"""A library that happens to be called as a part of ours is."""

raise RuntimeError("The neighbour's dimoo_core was imported in place of the pack's own.")
