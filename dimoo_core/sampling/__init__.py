"""Everything that a sampling step decides."""
