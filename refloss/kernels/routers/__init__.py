"""Routers of mixtures of experts: how evenly they choose, and how large their logits are."""
