"""Judgements shown: on a terminal, as a page, for CI systems."""
