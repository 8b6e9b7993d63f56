"""Bilinear resampling and its adjoint."""
