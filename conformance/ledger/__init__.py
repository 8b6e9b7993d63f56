"""The ledger: where released libraries do something else than their formula says, with code that shows it.

A divergence is a file in the folder of its library: a docstring that says what happens and why it matters, ENTRY that
holds it in words, and reproduce() that runs the installed library and refloss. test_ledger.py runs them all, and fails
where a release has mended one. What tests elsewhere show is in records/, a file for each topic of the page.

python -m conformance.ledger writes docs/divergences.md from both.
"""
