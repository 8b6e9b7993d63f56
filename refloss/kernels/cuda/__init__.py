"""CUDA's own loops over the scalars of refloss.numerics and refloss.losses; imported when a GPU is asked for."""
