"""Inputs of losses: golden cases, and one generator of cases for tests, checks and strategies."""
