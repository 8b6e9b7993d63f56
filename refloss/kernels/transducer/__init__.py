"""Paths through a lattice of frames and labels: RNN-T, and TDT, whose arcs have durations."""
