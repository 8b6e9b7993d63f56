"""Losses of corresponding numbers of several arrays, of which some do not count."""
