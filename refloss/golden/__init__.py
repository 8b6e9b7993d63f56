"""Golden files: cases with their right answers, for kernels in any language."""
