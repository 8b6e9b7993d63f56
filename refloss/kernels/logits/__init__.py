"""Softmax of rows whose logits are pairs: what a logit chain makes of logits, or an exact product."""
