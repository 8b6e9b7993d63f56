"""Divergences of Liger-Kernel."""
