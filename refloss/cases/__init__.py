"""Cases of losses: what they are made of, and how they are drawn."""
