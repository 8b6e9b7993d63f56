"""Losses of rows of one, two or three vectors."""
