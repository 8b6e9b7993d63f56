"""What each rank of a vocabulary in parts computes."""
