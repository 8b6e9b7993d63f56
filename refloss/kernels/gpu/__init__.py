"""What the kernels for a GPU share: options, memory and launches, sums of many threads and of blocks."""
