"""A candidate's tensors, functions and files against the right answers."""
