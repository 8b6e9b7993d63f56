"""Divergences of verl."""
