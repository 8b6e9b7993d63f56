"""Programs that use refloss for real work."""
