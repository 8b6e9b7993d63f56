"""Log-probabilities of indices and entropies of rows, and the rows on which they, or a gradient, are hard to round."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gmpy2
import numpy as np

import refloss
from tests.mpfr.definitions import ZERO, Softmax
from tests.mpfr.elements import COTANGENTS
from tests.mpfr.rounding import DTYPES, PRECISION, Comparison, Real, exact, real, reals
from tests.mpfr.rows import LABELS, WIDE, Rows


class Named(NamedTuple):
    """A call: logits [N, V], index [N, K], cotangents of both outputs, and the chain's options."""

    logits: np.ndarray
    classes: np.ndarray
    of_log_probs: np.ndarray  # [N, K]
    of_entropy: np.ndarray  # [N]
    options: dict[str, Any]


class Truth(NamedTuple):
    """Flat."""

    log_probs: list[Real]
    entropy: list[Real]
    gradient: list[Real]


def chained(x: Real, options: dict[str, Any]) -> tuple[Real, Real]:
    """z of a logit, and its derivative."""
    scale, temperature = real(options.get("logit_scale", 1.0)), real(options.get("temperature", 1.0))
    if "softcap" not in options:
        return x * scale / temperature, scale / temperature
    cap = real(options["softcap"])
    return cap * gmpy2.tanh(x * scale / cap) / temperature, scale / temperature / gmpy2.cosh(x * scale / cap) ** 2


def of_row(x: list[Real], given: Named, row: int) -> Truth:
    """Of one row of logits, which need not be float64 numbers."""
    z, slopes = zip(*(chained(value, given.options) for value in x), strict=True)
    softmax, index = Softmax(list(z)), given.classes[row].tolist()
    cotangents, of_entropy = reals(given.of_log_probs[row]), real(given.of_entropy[row])
    p = [term / softmax.total for term in softmax.terms]
    surprise = [softmax.likelihood(j) if term > 0 else ZERO for j, term in enumerate(softmax.terms)]
    entropy = gmpy2.fsum([share * value for share, value in zip(p, surprise, strict=True)])
    gradient = [-of_entropy * share * (entropy - value) for share, value in zip(p, surprise, strict=True)]
    everything = gmpy2.fsum(cotangents)
    named = {j: gmpy2.fsum([c for c, k in zip(cotangents, index, strict=True) if k == j]) for j in set(index)}
    for j, share in enumerate(p):
        if j in named:
            # c_j·(1 − p_j) less what the others' cotangents are times p_j.
            gradient[j] += (named[j] * softmax.others[j] - (everything - named[j]) * softmax.terms[j]) / softmax.total
        else:
            gradient[j] -= everything * share
    return Truth(
        [-softmax.likelihood(j) for j in index],
        [entropy],
        [slope * value for slope, value in zip(slopes, gradient, strict=True)],
    )


def truth(given: Named) -> Truth:
    """Log-probabilities, entropies, and the gradient of both."""
    rows = [of_row(reals(x), given, k) for k, x in enumerate(given.logits)]
    return Truth(*([value for values in part for value in values] for part in zip(*rows, strict=True)))


def _describing(given: Named, length: int) -> Callable[[int], str]:
    def describe(index: int) -> str:
        row, place = divmod(index, length)
        x = given.logits[row].astype(float)
        shown = x.tolist() if x.size <= 8 else f"{x[place] if length == x.size else ''} of {x.size}"
        cotangents = given.of_log_probs[row].tolist(), float(given.of_entropy[row])
        of_row = f"index {given.classes[row]}, cotangents {cotangents}, {given.options}"
        return f"{given.logits.dtype} row {row}, {place}: x={shown}, {of_row}"

    return describe


def compare(given: Named) -> Iterator[Comparison]:
    """refloss's gradients in every format, and what both outputs are."""
    with gmpy2.context(precision=PRECISION):
        true = truth(given)
        upstream = {"log_probs": given.of_log_probs, "entropy": given.of_entropy}
        for name, dtype in DTYPES.items():
            result = refloss.selected_log_probs(
                given.logits, given.classes, **given.options, grad_output=upstream, grad_dtype=dtype
            )
            got = result.grads["logits"]
            of_elements = _describing(given, given.logits.shape[1])
            yield Comparison("logits", name, got, exact(true.gradient, got.shape), of_elements)
        log_probs, entropy = np.asarray(result.loss), np.asarray(result.components["entropy"])
        yield Comparison(
            "loss",
            "float64",
            log_probs,
            exact(true.log_probs, log_probs.shape),
            _describing(given, given.classes.shape[1]),
        )
        yield Comparison("loss", "float64", entropy, exact(true.entropy, entropy.shape), _describing(given, 1))


Draw = Callable[[np.random.Generator, int], Iterator[Named]]


def named_rows(generator: np.random.Generator, logits: np.ndarray, index: np.ndarray, **options: Any) -> Named:
    """With cotangents of both, of one alone, and of the entropy alone."""
    rows = len(logits)
    of_log_probs = generator.choice([1.0, *COTANGENTS], index.shape)
    of_entropy = generator.choice([0.3, *COTANGENTS], rows)
    of_log_probs[np.arange(rows) % 3 == 1] = 0.0
    of_entropy[np.arange(rows) % 3 == 2] = 0.0
    return Named(logits, index, of_log_probs, of_entropy, options)


CHAINS = (
    {"temperature": 0.7},
    {"logit_scale": 0.3, "temperature": 1.1},
    {"softcap": 30.0},
    {"logit_scale": -2.0, "softcap": 5.0, "temperature": 0.6},
)


def _as_labels(
    draw: Callable[[np.random.Generator, int], Iterator[Rows]], generator: np.random.Generator, size: int
) -> Iterator[Named]:
    for rows in draw(generator, size):
        yield named_rows(generator, rows.logits, np.maximum(rows.target, 0)[:, None])


def several(generator: np.random.Generator, size: int) -> Iterator[Named]:
    """Indices that are repeated, and that have most of the probability."""
    for k, classes in enumerate((2, 5, 40)):
        x = (generator.standard_normal((size // 3 // classes + 1, classes)) * 2.0).astype(np.float32)
        x[::3, 0] += 30.0
        index = generator.integers(classes, size=(len(x), 3))
        index[::2, 1] = index[::2, 0]
        index[::3, 2] = 0
        given = named_rows(generator, x, index)
        if k == 0:
            given.of_log_probs[:] = 1.0  # which leaves nothing of equal classes
        yield given


def average(generator: np.random.Generator, size: int) -> Iterator[Named]:
    """Rows in which classes have the average surprise, or nearly so: log p + H is little, or 0."""
    for classes in (2, 3, 50, 257):
        rows = size // 4 // classes + 1
        x = np.zeros((rows, classes), np.float32) + generator.standard_normal((rows, 1)).astype(np.float32)
        x[1::4] += (2.0**-12 * np.round(generator.standard_normal(x[1::4].shape) * 4.0)).astype(np.float32)
        x[2::4, 0] += 8.0
        x[3::4] = generator.standard_normal(x[3::4].shape)
        given = named_rows(generator, x, np.zeros((rows, 1), np.int64))
        given.of_log_probs[::2] = 0.0
        yield given


def at_the_average(generator: np.random.Generator, size: int) -> Iterator[Named]:
    """A class is placed where log p + H is 0, to float32's last bit."""
    x = (generator.standard_normal((size // 20 + 1, 20)) * 2.0).astype(np.float32)
    for _ in range(30):
        others = x[:, 1:].astype(np.float64)
        p = np.exp(others - others.max(1, keepdims=True))
        # Its own share of the average is its own logit: it falls out.
        x[:, 0] = ((p * others).sum(1) / p.sum(1)).astype(np.float32)
    given = named_rows(generator, x, np.zeros((len(x), 1), np.int64))
    given.of_log_probs[:] = 0.0
    yield given


def masked(generator: np.random.Generator, size: int) -> Iterator[Named]:
    """Classes of −inf, also all but one or two."""
    x = (generator.standard_normal((size // 30 + 1, 30)) * 3.0).astype(np.float32)
    x[generator.random(x.shape) < generator.choice([0.1, 0.5, 0.95], (len(x), 1))] = -np.inf
    x[:, 7] = 0.5
    yield named_rows(generator, x, np.full((len(x), 1), 7))


def chains(generator: np.random.Generator, size: int) -> Iterator[Named]:
    """Every option, on logits up to where a cap saturates."""
    for options in CHAINS:
        for scale in (2.0, 40.0):
            x = (generator.standard_normal((size // 8 // 30 + 1, 30)) * scale).astype(np.float32)
            x[::4] += 100.0 if options.get("softcap", 30.0) == 30.0 else 0.0
            yield named_rows(generator, x, generator.integers(30, size=(len(x), 2)), **options)


def wide(generator: np.random.Generator, size: int) -> Iterator[Named]:
    x = (generator.standard_normal((max(1, size // WIDE), WIDE)) * 3.0).astype(np.float32)
    given = named_rows(generator, x, generator.integers(WIDE, size=(len(x), 1)))
    given.of_entropy[:] = -0.01
    yield given


KINDS: dict[str, Draw] = {
    **{
        kind: functools.partial(_as_labels, draw)
        for kind, draw in LABELS.items()
        if kind in ("labels", "confident", "extreme")
    },
    "several": several,
    "average": average,
    "at the average": at_the_average,
    "masked": masked,
    "chains": chains,
    "wide": wide,
}
