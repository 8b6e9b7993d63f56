"""Losses of a matrix of similarities whose rows and columns are both softmaxes."""
