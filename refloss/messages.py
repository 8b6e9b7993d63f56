"""What may go wrong around refloss, and how it is told: in one line, without anything that a terminal would obey."""

from __future__ import annotations

# Wrong files, names, options, arrays, or a machine that has not enough of something; anything else is a fault of ours.
EXPECTED_ERRORS = (OSError, ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError, EOFError)


def printable(text: str) -> str:
    """Text in one line without control characters: names of tensors and files may hold any, XML and terminals none."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def reason(error: BaseException) -> str:
    """What an exception says, after its type where the words alone say little."""
    text = str(error)
    if text and isinstance(error, EXPECTED_ERRORS):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
