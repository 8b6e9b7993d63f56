"""Rows of logits against a teacher's."""
