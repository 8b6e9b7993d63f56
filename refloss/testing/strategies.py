"""Hypothesis strategies for the inputs of every function: refloss's one generator, with Hypothesis choosing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from hypothesis import strategies as st
except ModuleNotFoundError as error:
    if error.name != "hypothesis":
        raise
    raise ImportError("refloss.testing.strategies needs Hypothesis: pip install 'refloss[testing]'") from error

from refloss.cases.draws import SIZES, Draws, Limits
from refloss.cases.source import DTYPES, Case
from refloss.golden.drawn import draw
from refloss.registry import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy

__all__ = ["inputs"]


def inputs(
    function: str,
    *,
    dtypes: Sequence[str] = tuple(DTYPES),
    max_rows: int = 6,
    max_classes: int = 6,
    extreme: bool = True,
    sizes: str = "few",
) -> SearchStrategy[Case]:
    """Cases of a function of refloss.registry.FUNCTIONS, each of which it accepts.

    They vary in shape (empty batches included), dtype, memory layout, kind of values (ties, huge and tiny ones,
    offsets, confident rows, improbable labels, rows whose maxima are far apart, saturated elements, targets of 0 and 1,
    classes of −inf that no label asks for), ignored rows (some, all, with NaN and infinities
    in them), options and signed upstream gradients. Losses are finite but for means over nothing.

    Args:
        function: its name.
        dtypes: of inputs that have gradients.
        max_rows: an upper limit to the number of rows; heads that match have at most as many queries.
        max_classes: an upper limit to the number of classes, or of elements in a row.
        extreme: whether there are values whose losses overflow float32, or are lost in it, and NaN and infinities in
            rows that are ignored: refloss defines what comes of them, but few other implementations take them.
        sizes: "few", or "blocks" for numbers of classes, or of elements of a row, at which kernels break that take so
            many at a time: 1025, 4097, 50257, 1 and 2 instead of up to max_classes; images are 67 and 131 pixels wide.
            Take few rows then: max_rows=2.
    """
    if function not in FUNCTIONS:
        raise ValueError(f"unknown function {function!r}; expected one of {', '.join(FUNCTIONS)}")
    unknown = [name for name in dtypes if name not in DTYPES]
    if unknown or not dtypes:
        raise ValueError(f"dtypes is {dtypes!r}; expected some of {', '.join(DTYPES)}")
    if min(max_rows, max_classes) < 1:
        raise ValueError(f"max_rows is {max_rows} and max_classes is {max_classes}; expected at least 1")
    if sizes not in SIZES:
        raise ValueError(f"sizes is {sizes!r}; expected one of {', '.join(SIZES)}")
    return _cases(function, Limits(tuple(dtypes), max_rows, max_classes, extreme, sizes=SIZES[sizes]))


class _Hypothesis:
    """A chooser that looks for trouble and shrinks what it finds."""

    def __init__(self, draw_from: DrawFn) -> None:
        self._draw = draw_from

    def one_of(self, options: tuple[Any, ...]) -> Any:
        """One of several options; an example shrinks to the first."""
        return self._draw(st.sampled_from(options))

    def between(self, low: int, high: int) -> int:
        """An integer from low to high; an example shrinks to low."""
        return self._draw(st.integers(low, high))


@st.composite
def _cases(draw_from: DrawFn, function: str, limits: Limits) -> Case:
    return draw(FUNCTIONS[function], Draws(_Hypothesis(draw_from), limits))
