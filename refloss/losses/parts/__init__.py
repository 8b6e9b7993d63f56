"""What losses share, and the losses that only heads are made of."""
