"""Negative log-likelihood of labels."""
