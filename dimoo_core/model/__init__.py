"""Networks only: no files, no tasks, no ids."""
