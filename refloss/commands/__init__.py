"""Commands that are more than a few lines: compute, golden, compare and check."""
