"""Checks that need no right answers."""
