"""Losses of pairs of sequences, and of single ones, by their log-probabilities."""
