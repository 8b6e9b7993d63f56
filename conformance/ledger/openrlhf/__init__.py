"""Divergences of OpenRLHF."""
