"""Results of every public loss against its definition, evaluated by MPFR (gmpy2) to hundreds of bits.

What is here is written from the formulas of the field, not from refloss's numerics: tests/test_mpfr_truth.py holds it
against mpmath's differences of the values, and benchmarks/accuracy.py measures millions of elements with it.
"""
