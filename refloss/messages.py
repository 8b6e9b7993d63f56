"""What may go wrong around refloss, and how it is told: in one line, without anything that a terminal would obey."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question after a name that nobody has, where another is nearly the same; else nothing."""
    import difflib  # here, because only what goes wrong needs it

    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"did you mean {near[0]!r}?" if near else ""


def unknown(what: str, names: Iterable[str], known: Iterable[str]) -> str:
    """Names that nobody has, what may have been meant by each, and those that there are."""
    every = list(known)
    told = [" ".join(filter(None, (name, asked(did_you_mean(name, every))))) for name in names]
    return f"unknown {what} {', '.join(told)}; there are {', '.join(every)}"


def asked(question: str) -> str:
    """A question in passing."""
    return f"({question})" if question else ""
