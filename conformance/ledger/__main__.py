"""python -m conformance.ledger writes docs/divergences.md."""

from conformance.ledger.page import PAGE, page

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
