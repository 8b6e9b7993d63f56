"""Divergences of PyTorch."""
