"""Divergences of TRL."""
