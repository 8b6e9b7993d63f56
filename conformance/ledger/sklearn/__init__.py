"""Divergences of scikit-learn."""
