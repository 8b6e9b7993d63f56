"""Losses of a row's softmax: rows, columns of short rows, and both on a GPU."""
