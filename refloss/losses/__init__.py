"""Losses: one file each, with its derivation."""
