"""Commands that have a part for every function: compute and golden."""
