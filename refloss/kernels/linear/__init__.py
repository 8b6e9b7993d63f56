"""Losses of logits that are products of hidden states and a vocabulary's weights, which are never all in memory."""
