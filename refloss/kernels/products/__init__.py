"""Matrix products whose bits are those of the exact products, on any BLAS."""
