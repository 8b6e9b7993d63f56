"""refloss against its peers: time, memory and accuracy, measured in one process and reported as ratios."""
