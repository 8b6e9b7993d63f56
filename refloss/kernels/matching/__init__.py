"""Costs of matching queries with objects, margins of assignments, counts."""
