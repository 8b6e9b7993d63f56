"""Divergences of two softmaxes, row by row."""
