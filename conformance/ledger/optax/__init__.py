"""Divergences of optax."""
