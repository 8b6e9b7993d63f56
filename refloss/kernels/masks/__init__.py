"""Losses of masks: dice, and focal loss with it."""
