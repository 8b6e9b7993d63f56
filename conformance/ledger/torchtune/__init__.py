"""Divergences of torchtune."""
