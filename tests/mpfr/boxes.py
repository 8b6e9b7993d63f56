"""IoU and GIoU of pairs of boxes.

Derivatives are polynomials over U²·E², and precision is such that the polynomials of float64 coordinates are exact:
what is 0 is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gmpy2
import ml_dtypes
import numpy as np
from gmpy2 import mpfr

import refloss
from tests.mpfr.definitions import ONE, ZERO
from tests.mpfr.elements import COTANGENTS
from tests.mpfr.rounding import DTYPES, Comparison, Real, exact, reals

EXACT = 1200
"""Bits of polynomials in coordinates."""


class Boxes(NamedTuple):
    """A call: boxes [N, 4] and their format."""

    first: np.ndarray
    second: np.ndarray
    box_format: str = "xyxy"
    cotangent: Any = 1.0
    reduction: str = "sum"


class Overlap(NamedTuple):
    """1 − IoU and 1 − GIoU, and their derivatives in the numbers of both boxes."""

    iou: Real  # itself
    of_iou: tuple[Real, list[Real], list[Real]]
    of_giou: tuple[Real, list[Real], list[Real]]


def corners(box: list[Real]) -> list[Real]:
    """(x₁, y₁, x₂, y₂) of a centre and a size."""
    x, y, w, h = box
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def of_center(slopes: list[Real]) -> list[Real]:
    """Derivatives in centre and size of those in corners."""
    left, top, right, bottom = slopes
    return [left + right, top + bottom, (right - left) / 2, (bottom - top) / 2]


def _bracket(difference: Real) -> Real:
    """[difference > 0], ½ at 0, as torch has it for a maximum."""
    return mpfr(0.5) if difference == 0 else (ONE if difference > 0 else ZERO)


def _slopes(a: list[Real], b: list[Real]) -> tuple[list[Real], list[Real], list[Real]]:
    """dA, dI and dE in the corners of the first box."""
    inner = [min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1)]
    outer = [max(a[k + 2], b[k + 2]) - min(a[k], b[k]) for k in (0, 1)]
    area, common, around = ([ZERO] * 4 for _ in range(3))
    for k in (0, 1):
        across = 1 - k
        area[k], area[k + 2] = -(a[across + 2] - a[across]), a[across + 2] - a[across]
        # A clamp passes its gradient on at its bound.
        reach = max(inner[across], ZERO) if inner[k] >= 0 else ZERO
        common[k], common[k + 2] = -reach * _bracket(a[k] - b[k]), reach * _bracket(b[k + 2] - a[k + 2])
        around[k] = -outer[across] * _bracket(b[k] - a[k])
        around[k + 2] = outer[across] * _bracket(a[k + 2] - b[k + 2])
    return area, common, around


def overlap(first: list[Real], second: list[Real], *, centered: bool = False) -> Overlap:
    """Of boxes given by their corners, or all of it in centres and sizes."""
    with gmpy2.context(precision=EXACT):
        both = _overlap(corners(first), corners(second)) if centered else _overlap(first, second)
        if not centered:
            return both
        turned = [
            (loss, of_center(of_first), of_center(of_second))
            for loss, of_first, of_second in (both.of_iou, both.of_giou)
        ]
        return Overlap(both.iou, turned[0], turned[1])


def _overlap(a: list[Real], b: list[Real]) -> Overlap:
    sides = [max(ZERO, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1)]
    outer = [max(a[k + 2], b[k + 2]) - min(a[k], b[k]) for k in (0, 1)]
    i, e = sides[0] * sides[1], outer[0] * outer[1]
    u = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - i

    def iou_slopes(area: list[Real], common: list[Real]) -> list[Real]:
        return [(i * da - (u + i) * di) / (u * u) for da, di in zip(area, common, strict=True)]

    def giou_slopes(area: list[Real], common: list[Real], around: list[Real]) -> list[Real]:
        return [
            (e * e * (i * da - (u + i) * di) - u * u * e * (da - di) + u * u * u * de) / (u * u * e * e)
            for da, di, de in zip(area, common, around, strict=True)
        ]

    first, second = _slopes(a, b), _slopes(b, a)
    loss = (u - i) / u
    return Overlap(
        iou=i / u,
        of_iou=(loss, iou_slopes(*first[:2]), iou_slopes(*second[:2])),
        of_giou=((e * (u - i) + u * (e - u)) / (u * e), giou_slopes(*first), giou_slopes(*second)),
    )


def compare(function: str, boxes: Boxes) -> Iterator[Comparison]:
    """refloss.iou or refloss.giou."""
    with gmpy2.context(precision=EXACT):
        yield from _compare(function, boxes)


def _compare(function: str, boxes: Boxes) -> Iterator[Comparison]:
    count = len(boxes.first)
    a, b = (np.array(reals(array), object).reshape(-1, 4).tolist() for array in (boxes.first, boxes.second))
    is_centered = boxes.box_format == "cxcywh"
    each = reals(np.broadcast_to(boxes.cotangent, count))
    divisor = mpfr(count) if boxes.reduction == "mean" else ONE
    losses: list[Real] = []
    slopes: dict[str, list[Real]] = {"boxes1": [], "boxes2": []}
    for one, other, c in zip(a, b, each, strict=True):
        both = overlap(one, other, centered=is_centered)
        loss, first, second = both.of_iou if function == "iou" else both.of_giou
        losses.append(loss)
        for name, of_box in zip(slopes, (first, second), strict=True):
            slopes[name] += [c * slope / divisor for slope in of_box]

    def describe(index: int) -> str:
        row = index // 4
        one, other = (array[row].astype(float).tolist() for array in (boxes.first, boxes.second))
        cotangent = float(np.broadcast_to(boxes.cotangent, count)[row])
        formats = f"{boxes.first.dtype}/{boxes.second.dtype} {boxes.box_format} {boxes.reduction}"
        return f"{formats} {one} {other}, grad_output {cotangent!r}, coordinate {index % 4}"

    call = getattr(refloss, function)
    options = {"box_format": boxes.box_format, "reduction": boxes.reduction, "grad_output": boxes.cotangent}
    for format_name, dtype in DTYPES.items():
        result = call(boxes.first, boxes.second, **options, grad_dtype=dtype)
        for name, values in slopes.items():
            # grad_dtype is that of every gradient here.
            got = result.grads[name]
            assert got.dtype == dtype
            yield Comparison(name, format_name, got, exact(values, got.shape), describe)
    expected = losses if boxes.reduction == "none" else [gmpy2.fsum(losses) / divisor]
    loss = np.asarray(result.loss)
    yield Comparison("loss", "float64", loss, exact(expected, loss.shape), lambda index: describe(4 * index))


def draw(generator: np.random.Generator, count: int, box_format: str, size: float = 0.5) -> np.ndarray:
    """Boxes of about a size in the unit square."""
    centers, sizes = generator.random((count, 2)), generator.random((count, 2)) * size + 0.02
    if box_format == "cxcywh":
        return np.concatenate([centers, sizes], axis=1)
    return np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=1)


Draw = Callable[[np.random.Generator, int], Iterator[Boxes]]
FORMATS = ("xyxy", "cxcywh")


def _count(size: int, parts: int) -> int:
    # Both boxes have four coordinates.
    return max(1, size // 8 // parts) | 1


def ordinary(generator: np.random.Generator, size: int) -> Iterator[Boxes]:
    for name in FORMATS:
        first, second = (draw(generator, _count(size, 2), name).astype(np.float32) for _ in range(2))
        yield Boxes(first, second, name, reduction="mean")


def cotangents(generator: np.random.Generator, size: int) -> Iterator[Boxes]:
    for name in FORMATS:
        for reduction in ("sum", "mean", "none"):
            count = _count(size, 6)
            first, second = (draw(generator, count, name, 1.5).astype(np.float32) for _ in range(2))
            cotangent = generator.choice(COTANGENTS, count if reduction == "none" else 1)
            yield Boxes(first, second, name, cotangent if reduction == "none" else float(cotangent[0]), reduction)


def close(generator: np.random.Generator, size: int) -> Iterator[Boxes]:
    """Boxes that fit well, or exactly, in all coordinates or some: ties and what cancels."""
    for name in FORMATS:
        for distance in (0.0, 2.0**-24, 2.0**-20, 2.0**-12):
            first = draw(generator, _count(size, 8), name).astype(np.float32)
            moved = first * (1 + distance * generator.integers(-2, 3, first.shape))
            yield Boxes(first, moved.astype(np.float32), name, COTANGENTS[generator.integers(5)])


def shared_edges(generator: np.random.Generator, size: int) -> Iterator[Boxes]:
    """Short coordinates, so that edges coincide; boxes inside others, boxes that touch."""
    for name in FORMATS:
        for grid in (4, 16):
            count = _count(size, 4)
            low, high = generator.integers(0, grid, (2, 2, count, 2))
            sizes = generator.integers(1, grid, (2, count, 2))
            low, high = low[0], high[0]
            both = []
            for start, extent in ((low, sizes[0]), (high, sizes[1])):
                ends = [start, start + extent] if name == "xyxy" else [start + extent / 2, extent]
                both.append((np.concatenate(ends, axis=1) / grid).astype(np.float32))
            cotangent = generator.choice(COTANGENTS, count)
            yield Boxes(both[0], both[1], name, cotangent, "none")


def magnitudes(generator: np.random.Generator, size: int) -> Iterator[Boxes]:
    for name in FORMATS:
        for scale in (1e-15, 1e-4, 1e3, 1e12):
            first, second = (draw(generator, _count(size, 8), name) * scale for _ in range(2))
            yield Boxes(first.astype(np.float32), second.astype(np.float32), name, 0.7)


def mixed_formats(generator: np.random.Generator, size: int) -> Iterator[Boxes]:
    dtypes = (np.float32, ml_dtypes.bfloat16, np.float16, np.float64)
    for k in range(4):
        name = FORMATS[k % 2]
        first, second = (draw(generator, _count(size, 4), name) for _ in range(2))
        yield Boxes(first.astype(dtypes[k]), second.astype(dtypes[(k + 1) % 4]), name, COTANGENTS[k])


def ranges(generator: np.random.Generator, size: int) -> Iterator[Boxes]:
    """Coordinates whose areas leave the range of float64."""
    for name in FORMATS:
        for scale in (1e-200, 1e-90, 1e90, 1e200):
            first, second = (draw(generator, _count(size, 8), name) * scale for _ in range(2))
            yield Boxes(first, second, name, scale)


KINDS: dict[str, Draw] = {
    "ordinary": ordinary,
    "cotangents": cotangents,
    "close": close,
    "shared edges": shared_edges,
    "magnitudes": magnitudes,
    "mixed formats": mixed_formats,
    "ranges": ranges,
}
