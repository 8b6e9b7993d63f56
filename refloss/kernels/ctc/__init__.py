"""Connectionist temporal classification: sums over all alignments of a sequence."""
