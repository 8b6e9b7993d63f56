"""Losses of a router, and the rows on which their gradients are hard to round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gmpy2
import ml_dtypes
import numpy as np

import refloss
from tests.mpfr.definitions import ZERO, Softmax
from tests.mpfr.elements import COTANGENTS, INPUT_DTYPES
from tests.mpfr.rounding import DTYPES, PRECISION, Comparison, Real, exact, real, reals

EXPERTS = (2, 3, 8, 40)


class Routed(NamedTuple):
    """A call: logits [N, E], how many experts a row is sent to (0 for the z-loss), and what goes with them."""

    logits: np.ndarray
    top_k: int
    cotangent: float = 1.0
    mask: np.ndarray | None = None
    selected: np.ndarray | None = None
    layers: int = 1  # that are balanced each on its own


class Truth(NamedTuple):
    """The loss, and the gradient flat."""

    loss: Real
    gradient: list[Real]


def _softmaxes(given: Routed) -> list[Softmax | None]:
    """Of rows that count."""
    counts = np.ones(len(given.logits), bool) if given.mask is None else given.mask
    return [Softmax(reals(row)) if counted else None for row, counted in zip(given.logits, counts, strict=True)]


def z_loss(given: Routed) -> Truth:
    """The mean of lse²."""
    rows = _softmaxes(given)
    count, losses, gradient = sum(row is not None for row in rows), [], []
    for x, row in zip(given.logits, rows, strict=True):
        if row is None:
            gradient += [ZERO] * len(x)
            continue
        top = int(np.argmax(x))
        lse = real(x[top]) + row.likelihood(top)
        losses.append(lse * lse)
        gradient += [2 * real(given.cotangent) * lse * term / row.total / count for term in row.terms]
    return Truth(gmpy2.fsum(losses) / count, gradient)


def _balanced(given: Routed, rows: list[Softmax | None], first: int, last: int) -> Truth:
    """Of rows that are balanced together."""
    experts, counts, shares = given.logits.shape[1], [0] * given.logits.shape[1], []
    for i in range(first, last):
        row = rows[i]
        if row is not None:
            order = np.argsort(-given.logits[i].astype(np.float64), kind="stable")[: given.top_k]
            for e in order if given.selected is None else given.selected[i]:
                counts[int(e)] += 1
            shares.append([term / row.total for term in row.terms])
    total, gradient, factor = len(shares), [], experts * real(given.cotangent)
    of_rows = iter(shares)
    for i in range(first, last):
        if rows[i] is None:
            gradient += [ZERO] * experts
            continue
        p = next(of_rows)
        left = (gmpy2.fsum([(c - d) * q for d, q in zip(counts, p, strict=True)]) for c in counts)
        gradient += [factor * share * each / total**2 for share, each in zip(p, left, strict=True)]
    sums = (gmpy2.fsum([p[e] for p in shares]) for e in range(experts))
    loss = experts * gmpy2.fsum([c * each for c, each in zip(counts, sums, strict=True)]) / total**2
    return Truth(loss, gradient)


def balance(given: Routed) -> Truth:
    """Of all rows together, or the mean of layers."""
    rows, size = _softmaxes(given), len(given.logits) // given.layers
    parts = [_balanced(given, rows, k * size, (k + 1) * size) for k in range(given.layers)]
    gradient = [slope / given.layers for part in parts for slope in part.gradient]
    return Truth(gmpy2.fsum([part.loss for part in parts]) / given.layers, gradient)


def _call(given: Routed, dtype: Any) -> Any:
    options: dict[str, Any] = {"mask": given.mask, "grad_output": given.cotangent, "grad_dtype": dtype}
    if not given.top_k:
        return refloss.router_z_loss(given.logits, **options)
    shape = (given.layers, len(given.logits) // given.layers) if given.layers > 1 else (len(given.logits),)
    logits = given.logits.reshape(*shape, -1)
    if given.mask is not None:
        options["mask"] = given.mask.reshape(shape)
    selected = None if given.selected is None else given.selected.reshape(*shape, -1)
    return refloss.moe_load_balancing(logits, given.top_k, selected=selected, pool_layers=given.layers == 1, **options)


def compare(given: Routed) -> Iterator[Comparison]:
    """refloss's gradients in every format, and its loss."""

    def describe(index: int) -> str:
        row, expert = divmod(index, given.logits.shape[1])
        x = given.logits[row].astype(float)
        shown = x.tolist() if x.size <= 8 else f"{x[expert]} of {x.size}"
        of = f"top {given.top_k}, {given.layers} layers, grad_output {given.cotangent!r}"
        return f"{given.logits.dtype} row {row} of {len(given.logits)}, {expert}: x={shown}, {of}"

    with gmpy2.context(precision=PRECISION):
        true = balance(given) if given.top_k else z_loss(given)
        for name, dtype in DTYPES.items():
            result = _call(given, dtype)
            got = result.grads["router_logits"].reshape(given.logits.shape)
            yield Comparison("router_logits", name, got, exact(true.gradient, got.shape), describe)
        yield Comparison("loss", "float64", np.asarray(result.loss), exact([true.loss], ()), lambda _: describe(0))


Draw = Callable[[np.random.Generator, int], Iterator[Routed]]


def _sizes(generator: np.random.Generator, size: int) -> Iterator[tuple[int, int, int]]:
    """Rows, experts and how many of them are chosen, for so many elements in all."""
    k = 0
    while size > 0:
        experts = EXPERTS[k % 4]
        rows = int(generator.integers(1, 40))
        yield rows, experts, int(generator.integers(1, experts + 1))
        size, k = size - rows * experts, k + 1


def ordinary(generator: np.random.Generator, size: int) -> Iterator[Routed]:
    """As one would test it."""
    for k, (rows, experts, top_k) in enumerate(_sizes(generator, size)):
        x = (generator.standard_normal((rows, experts)) * 2).astype(INPUT_DTYPES[k % 4])
        yield Routed(x, top_k, (*COTANGENTS, 1.0)[k % 6])


def masked(generator: np.random.Generator, size: int) -> Iterator[Routed]:
    """Tokens that do not count, and experts that are not there."""
    for k, (rows, experts, top_k) in enumerate(_sizes(generator, size)):
        x = (generator.standard_normal((rows, experts)) * 3).astype(np.float32)
        x[generator.random(x.shape) < 0.2] = -np.inf
        x[:, k % experts] = 0.5
        mask = generator.random(rows) < 0.6
        mask[0] = True
        yield Routed(x, top_k, COTANGENTS[k % 5], mask)


def tied(generator: np.random.Generator, size: int) -> Iterator[Routed]:
    """Numbers with few bits, many of them equal: probabilities are rational, and gradients may be ties."""
    for k, (rows, experts, top_k) in enumerate(_sizes(generator, size)):
        x = np.round(generator.standard_normal((rows, experts)) * (0.0, 1.0, 2.0)[k % 3]) * (1.0, 40.0)[k % 2]
        yield Routed(x.astype(ml_dtypes.bfloat16), top_k, (*COTANGENTS, 3.0, 1.0)[k % 7])


def sure(generator: np.random.Generator, size: int) -> Iterator[Routed]:
    """Rows that are sure of one expert, or of two, by far and by very far."""
    for k, (rows, experts, top_k) in enumerate(_sizes(generator, size)):
        x = generator.standard_normal((rows, experts))
        x[np.arange(rows), generator.integers(experts, size=rows)] += (6.0, 20.0, 50.0, 100.0)[k % 4]
        twin = generator.integers(experts, size=rows)
        x[np.arange(rows), twin] = np.where(generator.random(rows) < 0.4, x.max(axis=1), x[np.arange(rows), twin])
        yield Routed(x.astype(np.float32), top_k, COTANGENTS[k % 5])


KINDS: dict[str, Draw] = {"ordinary": ordinary, "masked": masked, "tied": tied, "sure": sure}


def selected(generator: np.random.Generator, size: int) -> Iterator[Routed]:
    """Experts that somebody else has chosen, improbable ones among them."""
    for k, (rows, experts, top_k) in enumerate(_sizes(generator, size)):
        x = generator.standard_normal((rows, experts)) * (1.0, 10.0, 40.0)[k % 3]
        order = np.argsort(generator.random(x.shape), axis=1)[:, :top_k]
        yield Routed(x.astype(np.float32), top_k, COTANGENTS[k % 5], selected=order)


def balanced(generator: np.random.Generator, size: int) -> Iterator[Routed]:
    """Experts that are chosen equally often, or but for one token."""
    for k, (rows, experts, _) in enumerate(_sizes(generator, size)):
        turns = np.arange(rows - rows % experts + k % 2 + experts)
        x = generator.standard_normal((len(turns), experts))
        x += 20.0 * (turns[:, None] % experts == np.arange(experts))
        yield Routed(x.astype(np.float32), 1, COTANGENTS[k % 5])


def layers(generator: np.random.Generator, size: int) -> Iterator[Routed]:
    """Layers apart."""
    for k, (rows, experts, top_k) in enumerate(_sizes(generator, size)):
        x = (generator.standard_normal((3 * rows, experts)) * 2).astype(np.float32)
        yield Routed(x, top_k, COTANGENTS[k % 5], layers=3)


def cancelling(generator: np.random.Generator, size: int) -> Iterator[Routed]:
    """Experts as often chosen as their rows' experts are in the mean, or nearly so."""
    for k, (rows, _, _) in enumerate(_sizes(generator, size)):
        count = 3 * rows
        x = np.zeros((count, 4))
        # Of the first three the second is chosen as often as both others are in the mean.
        x[:, 3] = -(5.0, 30.0, 70.0, 90.0)[k % 4]
        x[:, 0] += generator.choice([0.0, 2.0**-20, 2.0**-10], count)
        chosen = np.array([0, 1, 1, 2, 2, 2])[np.arange(count) % 6][:, None]
        yield Routed(x.astype((np.float32, np.float64)[k % 2]), 1, COTANGENTS[k % 5], selected=chosen)


BALANCE: dict[str, Draw] = KINDS | {
    "selected": selected,
    "balanced": balanced,
    "layers": layers,
    "cancelling": cancelling,
}


def _of_rows(draw: Draw) -> Draw:
    """The same logits for the z-loss."""

    def drawn(generator: np.random.Generator, size: int) -> Iterator[Routed]:
        for given in draw(generator, size):
            yield given._replace(top_k=0)

    return drawn


def sizes(generator: np.random.Generator, size: int) -> Iterator[Routed]:
    """Large and small logits, and those whose lse is next to 0."""
    for k, (rows, experts, _) in enumerate(_sizes(generator, size)):
        x = generator.standard_normal((rows, experts)) * 10.0 ** generator.uniform(-3, 3, (rows, 1))
        if k % 2:
            x = generator.standard_normal((rows, experts))
            x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
        yield Routed(x.astype(np.float32), 0, COTANGENTS[k % 5])


Z_LOSS: dict[str, Draw] = {name: _of_rows(draw) for name, draw in KINDS.items()} | {"sizes": sizes}
