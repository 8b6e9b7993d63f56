"""Losses of corresponding elements."""
