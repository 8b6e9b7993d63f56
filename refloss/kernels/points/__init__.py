"""Masks at points: samples, what they cost a matching, their losses, and the adjoint of sampling."""
