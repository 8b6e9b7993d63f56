"""Log-probabilities of classes that rows name, and the rows' entropy."""
