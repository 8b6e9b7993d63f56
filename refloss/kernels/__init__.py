"""Loops over scalars: the only place where array code is compiled."""
