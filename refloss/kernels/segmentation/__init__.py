"""Cross-entropy of resampled logits, pixel by pixel."""
