"""Scalars that the kernels are made of: one source for every target, no libm, no fastmath."""
