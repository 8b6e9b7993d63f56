"""Cases that are drawn: by Hypothesis, or from seeds for metamorphic checks."""
