"""Rows of logits against the log-probabilities that a teacher gives of some of their classes."""
