"""Charts of a report: inline SVG whose colours and fonts are the page's, so that they fit light and dark."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from markupsafe import Markup, escape

from refloss.messages import printable
from refloss.registry import FUNCTIONS
from refloss.testing.report.wording import short
from refloss.testing.spread import LOW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from refloss.testing.spread import Counts, Spread

_CHARACTER = 7.2  # pixels that the widest digit takes, at the larger of the two sizes of text
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class LogAxis(NamedTuple):
    """Powers of ten from low to high over an interval of pixels."""

    low: int
    high: int
    start: float
    stop: float

    @classmethod
    def over(cls, largest: float, powers: tuple[int, int, int], start: float, stop: float) -> LogAxis:
        """An axis from one power of ten to the largest value, which ends between two others."""
        low, nearest, farthest = powers
        needed = math.ceil(math.log10(largest)) if 0 < largest < math.inf else nearest
        return cls(low, min(max(needed, nearest), farthest), start, stop)

    def position(self, value: float) -> float:
        """The pixel of a positive value; the nearest end's where it is outside."""
        decades = math.log10(value) if value < math.inf else math.inf
        part = (decades - self.low) / (self.high - self.low)
        return self.start + min(max(part, 0.0), 1.0) * (self.stop - self.start)

    def ticks(self, most: int = 7) -> list[tuple[float, str]]:
        """Pixels and labels; 1 is among them. As many as have room, but at most so many steps."""
        room = abs(self.stop - self.start) / (_width(power_of_ten(-self.high)) + 8)
        step = math.ceil((self.high - self.low) / min(most, max(room, 1)))
        powers = [power for power in range(self.low, self.high + 1) if power % step == 0]
        return [(self.position(10.0**power), power_of_ten(power)) for power in powers]


def power_of_ten(exponent: int) -> str:
    """As it is written: 10⁻³, 1, 10⁶."""
    return {0: "1", 1: "10"}.get(exponent, f"10{str(exponent).translate(_SUPERSCRIPT)}")


def _width(text: str) -> float:
    """Pixels that text takes at most."""
    return _CHARACTER * len(text)


def _finite_maximum(array: np.ndarray) -> float:
    return float(array[np.isfinite(array)].max(initial=0.0))


def _svg(width: float, height: float, parts: Iterable[str], label: str, kind: str) -> Markup:
    body = "".join(parts)
    return Markup(  # its parts are numbers, and text that was escaped
        f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}px" role="img"'
        f' aria-label="{escape(label)}">{body}</svg>'
    )


def _text(x: float, y: float, text: str, align: str = "", turned: bool = False, unit: str = "") -> str:
    """Text at a point: centred, to its left (class "e") or to its right (class "s"); x may be in per cent."""
    kind = f' class="{align}"' if align else ""
    turn = f' transform="rotate(-90 {x:.4g} {y:.4g})"' if turned else ""
    return f'<text{kind} x="{x:.4g}{unit}" y="{y:.4g}"{turn}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<path class="{kind}" d="M{x1:.4g} {y1:.4g}L{x2:.4g} {y2:.4g}"/>'


# --- histogram


def histogram(spread: Spread) -> Markup:
    """Errors in ulp: how many elements have which, those above their bounds apart, and the bounds themselves."""
    infinite = bool(spread.errors.infinite)
    high = max(spread.errors.high, spread.bounds.high, 2)
    width, height, right, top, base = 460.0, 200.0, 446.0, 12.0, 158.0
    left = 28 + _width(power_of_ten(len(str(spread.size)) - 1))
    axis = LogAxis(LOW, high, left + 48, right - (44 if infinite else 8))
    per_decade = next(count for count in (10, 5, 2, 1) if count == 1 or count * (high - LOW) <= 40)
    bins = (high - LOW) * per_decade
    every, over, bounds = (
        counts.coarse(LOW, high, per_decade) for counts in (spread.errors, spread.errors_above, spread.bounds)
    )
    most = max(spread.errors.zero, spread.errors.infinite, int(every.max()), int(bounds.max()), 1)
    # A single element has some height, too.
    scale = (base - top) / (math.log10(most) + 0.4)

    def level(count: int) -> float:
        return base - (math.log10(count) + 0.4) * scale if count else base

    def bars(counts: Counts, coarse: np.ndarray, kind: str) -> str:
        step = (axis.stop - axis.start) / bins
        drawn = [(left + 4, 18.0, counts.zero), (right - 20, 18.0, counts.infinite)]
        drawn += [(axis.start + i * step + 0.5, step - 1, int(count)) for i, count in enumerate(coarse)]
        path = "".join(f"M{x:.4g} {base:g}V{level(n):.4g}h{wide:.4g}V{base:g}z" for x, wide, n in drawn if n)
        return f'<path class="{kind}" d="{path}"/>'

    powers = range(0, math.floor(math.log10(most)) + 1, 1 if most < 10**7 else 3)
    parts = [
        *(_line(left, level(10**power), right, level(10**power), "grid") for power in powers),
        *(_text(left - 6, level(10**power) + 4, power_of_ten(power), "e") for power in powers),
        _line(left, base, right, base, "axis"),
        bars(spread.errors, every, "within"),
        bars(spread.errors_above, over, "above"),
        _outline(bounds, axis, level),
        _text(left + 13, base + 16, "0"),
        *(_text(x, base + 16, label) for x, label in axis.ticks()),
        _text(right - 11, base + 16, "∞") if infinite else "",
        _text((left + right) / 2, base + 34, "error, ulp (0: exact)"),
        _text(11, (top + base) / 2, "elements", turned=True),
    ]
    label = f"histogram of the errors of {spread.size} elements, {spread.above} of them above their bounds"
    return _svg(width, height, parts, label, "histogram")


def _outline(counts: np.ndarray, axis: LogAxis, level: Callable[[int], float]) -> str:
    """The bounds' histogram as a line of steps."""
    step = (axis.stop - axis.start) / len(counts)
    path, before = "", 0
    for i, count in enumerate([*map(int, counts), 0]):
        x = axis.start + i * step
        if count != before:
            path += f"{'M' if not before else 'L'}{x:.4g} {level(before):.4g}V{level(count):.4g}"
        if count:
            path += f"H{x + step:.4g}"
        before = count
    return f'<path class="bound" d="{path}"/>' if path else ""


SPARK_AXIS = LogAxis(-2, 10, 30.0, 204.0)


def spark(spread: Spread) -> Markup:
    """A histogram in a line of text, on an axis that is the same for all; below it, the range of the bounds."""
    base = 16.0
    counts = spread.errors.coarse(SPARK_AXIS.low, SPARK_AXIS.high, 5)
    most = max(spread.errors.zero, int(counts.max()), 1)
    step = (SPARK_AXIS.stop - SPARK_AXIS.start) / len(counts)
    drawn = [(4.0, 8.0, spread.errors.zero)]
    drawn += [(SPARK_AXIS.start + i * step, step - 0.5, int(count)) for i, count in enumerate(counts)]
    heights = ((x, wide, 2 + 12 * math.log1p(n) / math.log1p(most)) for x, wide, n in drawn if n)
    path = "".join(f"M{x:.4g} {base:g}v-{tall:.3g}h{wide:.3g}v{tall:.3g}z" for x, wide, tall in heights)
    parts = ['<use href="#spark"/>', f'<path class="within" d="{path}"/>']
    if spread.least_bound < math.inf:
        start, stop = SPARK_AXIS.position(spread.least_bound), SPARK_AXIS.position(spread.largest_bound)
        parts.append(f'<path class="above" d="M{start - 1.5:.4g} 17H{stop + 1.5:.4g}v3H{start - 1.5:.4g}z"/>')
    largest = max((element.ulp for element in spread.worst), default=0.0)
    label = f"{spread.errors.zero} of {spread.size} exact, the largest error {short(largest)} ulp"
    return _svg(220, 22, parts, label, "spark")


# --- heat map

_BELOW, _ABOVE = 10, 20  # steps of colour; before them one for exact, after them one for what is not finite
_LOWEST = -3
_COOL = ((74, 127, 193, 30), (74, 127, 193, 185))
_WARM = ((250, 204, 60, 255), (240, 120, 40, 255), (222, 40, 60, 255), (160, 20, 90, 255))
_NOT_FINITE = (214, 0, 224, 255)


def _blend(stops: Sequence[tuple[int, ...]], part: float) -> tuple[int, ...]:
    position = part * (len(stops) - 1)
    first = min(int(position), len(stops) - 2)
    return tuple(round(a + (b - a) * (position - first)) for a, b in zip(stops[first], stops[first + 1], strict=True))


_PALETTE = [
    (0, 0, 0, 0),  # what is exact is not painted
    *(_blend(_COOL, i / (_BELOW - 1)) for i in range(_BELOW)),
    *(_blend(_WARM, i / (_ABOVE - 1)) for i in range(_ABOVE)),
    _NOT_FINITE,
]


class Labels(NamedTuple):
    """What the rows and columns of a tensor are called."""

    rows: str
    columns: str


def labels(function: str, name: str, order: tuple[int, ...]) -> Labels:
    """Rows × classes where a tensor has classes; the last axis of an order counts columns."""
    argument = FUNCTIONS[function].specification.arguments.get(name.removeprefix("grad."))
    noun = "axis" if len(order) == 2 else "axes"
    rows = f"{noun} {' × '.join(map(str, order[:-1]))}" if len(order) > 1 else ""
    known = {"logits": "class", "class": "class", "boxes": "coordinate", "coord": "coordinate"}
    kind = next((kind for part, kind in known.items() if part in name), "")
    if argument is not None and argument.class_axis is not None:
        kind = "class"
    return Labels(rows, f"{kind} (axis {order[-1]})" if kind else f"axis {order[-1]}")


def heat_map(spread: Spread, words: Labels) -> Markup:
    """Where the errors sit: error ÷ bound of every element on a log scale, pooled by maximum where there are many."""
    grid = spread.grid
    assert grid is not None
    cells, rows, columns = grid.cells, grid.rows, grid.columns
    high = LogAxis.over(_finite_maximum(cells), (_LOWEST, 1, 40), 0, 1).high
    left = max(46.0, 28 + _width(str(rows - 1)))
    cell = min((446 - left) / columns, 300 / rows, 24.0)
    wide, tall = max(columns * cell, 60.0), max(rows * cell, 20.0)
    top = 8.0 + max(0.0, _width(words.rows) - tall) / 2  # a turned label is as long whatever the rows
    y_words = top + tall + max(32.0, (_width(words.rows) - tall) / 2)
    worst_row, worst_column = _place(spread.worst[0].index, spread.shape, grid.order)
    shape = ",".join(map(str, spread.shape))
    laid = f"translate({left:g} {top:g}) scale({wide / cells.shape[1]:.5g} {tall / cells.shape[0]:.5g})"
    parts = [
        f'<g class="cells" transform="{laid}">{_painted(_colours(cells, high))}</g>',
        f'<rect class="frame" x="{left:g}" y="{top:g}" width="{wide:.4g}" height="{tall:.4g}" data-shape="{shape}"'
        f' data-order="{",".join(map(str, grid.order))}"/>',
        *(
            f'<circle class="{kind}" r="6" cx="{left + (worst_column + 0.5) / columns * wide:.4g}"'
            f' cy="{top + (worst_row + 0.5) / rows * tall:.4g}"/>'
            for kind in ("halo", "worst")
        ),
        *_index_ticks(rows, columns, left, top, wide, tall),
        _text(max(left + wide / 2, 16 + _width(words.columns) / 2), y_words, words.columns),
        _text(11, top + tall / 2, words.rows, turned=True),
        *_colour_legend(high, y_words + 16, bool(np.isinf(cells).any())),
    ]
    label = f"heat map of error ÷ bound, {rows} rows and {columns} columns"
    return _svg(460, y_words + 52, parts, label, "heat")


def _place(index: tuple[int, ...], shape: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, int]:
    """The row and the column of an element."""
    row = 0
    for axis in order[:-1]:
        row = row * shape[axis] + index[axis]
    return row, index[order[-1]]


def _colours(cells: np.ndarray, high: int) -> np.ndarray:
    """Indices into the palette."""
    with np.errstate(divide="ignore", invalid="ignore"):
        decades = np.log10(cells)
        below = 1 + np.clip((decades - _LOWEST) / -_LOWEST * _BELOW, 0, _BELOW - 1)
        above = 1 + _BELOW + np.clip(decades / high * _ABOVE, 0, _ABOVE - 1)
        colours = np.where(cells > 1, above, below)
    colours = np.where(cells == 0, 0, np.where(np.isinf(cells), len(_PALETTE) - 1, colours))
    return colours.astype(np.uint8)


def _painted(colours: np.ndarray) -> str:
    """Cells as a path for every colour, of strokes as long as neighbours in a row are alike."""
    rows, columns = colours.shape
    edges = np.ones((rows, columns), bool)
    edges[:, 1:] = colours[:, 1:] != colours[:, :-1]
    starts = np.flatnonzero(edges)
    lengths = np.diff(starts, append=colours.size)
    strokes: dict[int, list[str]] = {}
    for start, length, colour in zip(starts.tolist(), lengths.tolist(), colours.flat[starts].tolist(), strict=True):
        y, x = divmod(start, columns)
        strokes.setdefault(colour, []).append(f"M{x} {y}.5h{length}")
    return "".join(
        f'<path stroke="rgb{_PALETTE[colour][:3]}" stroke-opacity="{_PALETTE[colour][3] / 255:.3g}" d="{"".join(d)}"/>'
        for colour, d in sorted(strokes.items())
        if colour
    )


def _index_ticks(rows: int, columns: int, left: float, top: float, wide: float, tall: float) -> list[str]:
    room = _width(str(columns - 1)) + 10
    across = [(left + (i + 0.5) / columns * wide, i) for i in _round_indices(columns, wide / room)]
    down = [(top + (i + 0.5) / rows * tall, i) for i in _round_indices(rows, tall / 17)] if rows > 1 else []
    return [
        *(_text(x, top + tall + 15, str(i)) for x, i in across),
        *(_text(left - 5, y + 4, str(i), "e") for y, i in down),
    ]


def _round_indices(count: int, most: float) -> range:
    """Indices from 0 in steps of 1, 2 or 5 times a power of ten, at most so many."""
    steps = (digit * 10**power for power in range(20) for digit in (1, 2, 5))
    return range(0, count, next(step for step in steps if count <= step * max(most, 1)))


_LEGEND = (80.0, 84.0, 210.0)  # of the strips: where they start, how wide below the bound and in all


def _colour_legend(high: int, y: float, not_finite: bool) -> list[str]:
    """A strip of the palette; what all of them have in common is there once, from definitions."""
    start, _, width = _LEGEND
    parts = [f'<use href="#legend" y="{y:.4g}"/>', _text(start + width, y + 24, power_of_ten(high))]
    return [*parts, f'<use href="#not-finite" y="{y:.4g}"/>'] if not_finite else parts


def definitions() -> Markup:
    """What heat maps refer to, once a page."""

    def gradient(name: str, stops: Sequence[tuple[int, ...]]) -> str:
        marks = "".join(
            f'<stop offset="{i / (len(stops) - 1):.3g}" stop-color="rgb{stop[:3]}" stop-opacity="{stop[3] / 255:.3g}"/>'
            for i, stop in enumerate(stops)
        )
        return f'<linearGradient id="{name}">{marks}</linearGradient>'

    start, below, width = _LEGEND
    parts = [
        gradient("cool", _COOL),
        gradient("warm", _WARM),
        '<g id="legend"><rect class="frame" x="46" y="0" width="14" height="10"/>',
        _text(53, 24, "0"),
        f'<rect fill="url(#cool)" x="{start:g}" width="{below:g}" height="10"/>',
        f'<rect fill="url(#warm)" x="{start + below:g}" width="{width - below:g}" height="10"/>',
        _line(start + below, -3, start + below, 13, "axis"),
        _text(start, 24, power_of_ten(_LOWEST)),
        _text(start + below, 24, "1"),
        _text(start + width + 20, 9, "error ÷ bound", "s"),
        f'</g><g id="not-finite"><rect fill="rgb{_NOT_FINITE[:3]}" x="{start + width + 20:g}" y="15" width="10"',
        f' height="10"/>{_text(start + width + 34, 24, "not finite", "s")}</g>',
        f'<path id="spark" class="faint" d="M2 16.5H14M{SPARK_AXIS.start:g} 16.5H{SPARK_AXIS.stop:g}"/>',
    ]
    return Markup(f'<svg class="defs" aria-hidden="true"><defs>{"".join(parts)}</defs></svg>')


# --- all tensors


class Dot(NamedTuple):
    """A tensor in the overview: its row, where a click leads, what it is, and error ÷ bound, None without values."""

    group: str
    anchor: str
    label: str
    ratio: float | None
    passed: bool


class _Columns(NamedTuple):
    """Where the dots of the overview are, in per cent of its width, so that it fits every screen."""

    axis: LogAxis
    exact: float
    infinite: float | None  # where some are
    none: float | None

    @classmethod
    def of(cls, ratios: Sequence[float | None]) -> _Columns:
        """Of all error ÷ bound; None is that of a tensor without values."""
        infinite, none = math.inf in ratios, None in ratios
        finite = max((ratio for ratio in ratios if ratio is not None and ratio < math.inf), default=0.0)
        stop = 96.0 - 19.0 * none - 9.0 * infinite
        axis = LogAxis.over(finite, (-4, 2, 12), 17.0, stop)
        return cls(axis, 5.0, stop + 9.0 if infinite else None, 90.0 if none else None)

    def position(self, ratio: float | None) -> float:
        if ratio is None:
            return self.none or 0.0
        if ratio == 0:
            return self.exact
        return self.axis.position(ratio) if ratio < math.inf else self.infinite or 0.0

    def labels(self, *, beyond: bool) -> list[tuple[float, str]]:
        """Those of the axis: few enough for a narrow screen; what is beyond its end is drawn there."""
        step = math.ceil((self.axis.high - self.axis.low) / (5 if self.none else 6))
        powers = [power for power in range(self.axis.low, self.axis.high + 1) if power % step == 0]
        labels = [(self.axis.position(10.0**power), power_of_ten(power)) for power in powers]
        if beyond:
            end = self.axis.position(10.0**self.axis.high)
            labels = [(x, label) for x, label in labels if end - x > 8] + [(end, f"≥{power_of_ten(self.axis.high)}")]
        others = [(self.exact, "exact"), (self.infinite, "∞"), (self.none, "no values")]
        return labels + [(x, label) for x, label in others if x is not None]


def overview(dots: Sequence[Dot]) -> Markup:
    """Every tensor as a dot at its error ÷ bound, a row for every function, whose name stands above it."""
    groups = list(dict.fromkeys(dot.group for dot in dots))
    columns = _Columns.of([dot.ratio for dot in dots])
    top, row = 26.0, 42.0
    base, bound = top + row * len(groups), columns.axis.position(1.0)
    axis = columns.axis
    beyond = any(dot.ratio is not None and 10.0**axis.high < dot.ratio < math.inf for dot in dots)
    decades = [axis.position(10.0**power) for power in range(axis.low, axis.high + 1)]
    parts = [
        f'<rect class="beyond" x="{bound:.4g}%" y="{top:g}" width="{100 - bound:.4g}%" height="{base - top:g}"/>',
        *(_rule(x, top, base, "grid") for x in decades),
        _rule(bound, top - 8, top, "limit"),
        # Not across a name.
        *(_rule(bound, top + row * i + 19, top + row * (i + 1), "limit") for i in range(len(groups))),
        _text(bound, 14, "the bound", unit="%"),
        *(_level(top + row * (i + 1)) for i in range(len(groups))),
        *(_text(0.5, top + row * i + 14, group, "s", unit="%") for i, group in enumerate(map(printable, groups))),
        *(_text(x, base + 17, label, unit="%") for x, label in columns.labels(beyond=beyond)),
        _text((axis.start + axis.stop) / 2, base + 37, "largest error ÷ bound of a tensor", unit="%"),
    ]
    # Those that fail are drawn last, so that none is hidden.
    for i, dot in enumerate(sorted(dots, key=lambda dot: not dot.passed)):
        # Spread, so that those in the same place are seen to be many.
        y = top + row * groups.index(dot.group) + 30 + (i * 5 % 9 - 4) * 1.6
        x = columns.position(dot.ratio) + (0.0 if dot.ratio and dot.ratio < math.inf else (i * 7 % 13 - 6) * 0.35)
        parts.append(
            f'<a href="#{dot.anchor}"><circle class="{"within" if dot.passed else "above"}" r="3.6"'
            f' cx="{x:.4g}%" cy="{y:.4g}"><title>{escape(printable(dot.label))}</title></circle></a>'
        )
    label = f"{len(dots)} tensors by error ÷ bound"
    return Markup(
        f'<svg class="overview" height="{base + 46:g}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def _rule(x: float, top: float, base: float, kind: str) -> str:
    """A vertical line at per cent of the width."""
    return f'<line class="{kind}" x1="{x:.4g}%" x2="{x:.4g}%" y1="{top:g}" y2="{base:g}"/>'


def _level(y: float) -> str:
    return f'<line class="grid" x1="0" x2="100%" y1="{y:g}" y2="{y:g}"/>'
