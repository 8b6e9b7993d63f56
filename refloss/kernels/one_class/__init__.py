"""Sigmoid losses of rows in which at most one class is positive."""
