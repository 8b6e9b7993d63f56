"""Losses of rows, cross-entropy above all, and the inputs on which they are hard to round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import gmpy2
import ml_dtypes
import numpy as np

import refloss
from tests.mpfr.definitions import ONE, ZERO, Softmax, smoothed
from tests.mpfr.elements import COTANGENTS, DISTANCES, INPUT_DTYPES
from tests.mpfr.rounding import DTYPES, PRECISION, Comparison, Real, exact, real, reals

IGNORED = -100
WIDTHS = (3, 10, 50, 257, 1000)
WIDE = 32000


class Rows(NamedTuple):
    """A call: logits [N, C] and labels [N] or distributions [N, C]."""

    logits: np.ndarray
    target: np.ndarray
    weight: np.ndarray | None = None
    smoothing: float = 0.0
    cotangent: Any = 1.0
    reduction: Any = "sum"
    items: float | None = None  # what a head divides a sum by
    options: Mapping[str, Any] = MappingProxyType({})  # of the chain that logits go through, and of the z-loss

    @property
    def is_soft(self) -> bool:
        """Whether targets are distributions."""
        return self.target.ndim == self.logits.ndim


class Truth(NamedTuple):
    """Losses [N] before and the loss after the reduction, gradients flat."""

    losses: list[Real]
    loss: Real
    gradient: list[Real]
    target_gradient: list[Real]


def truth(rows: Rows) -> Truth:
    """The definition of cross-entropy."""
    weight = None if rows.weight is None else reals(rows.weight)
    smoothing = real(rows.smoothing)
    each = reals(np.broadcast_to(rows.cotangent, len(rows.logits)))
    counted = [True] * len(each) if rows.is_soft else (rows.target != IGNORED).tolist()
    divisor = _divisor(rows, weight)
    losses: list[Real] = []
    gradient: list[Real] = []
    of_targets: list[Real] = []
    for row, target, counts, c in zip(rows.logits, rows.target, counted, each, strict=True):
        if not counts:
            losses.append(ZERO)
            gradient += [ZERO] * len(row)
            continue
        logits, of_logits = chained(reals(row), rows.options)
        softmax = Softmax(logits)
        c = c / divisor  # noqa: PLW2901
        factor = real(rows.options.get("z_loss", 0.0))
        of_square = 2 * c * factor * softmax.lse() / softmax.total
        if rows.is_soft or smoothing:
            t = reals(target) if rows.is_soft else [ONE if j == target else ZERO for j in range(len(row))]
            loss, slopes = softmax.of_distribution(smoothed(t, weight, smoothing))
        else:
            loss, slopes = softmax.of_label(int(target))
            if weight is not None:
                loss, c = loss * weight[target], c * weight[target]  # noqa: PLW2901
        losses.append(loss + factor * softmax.lse() ** 2)
        gradient += [
            (c * slope + of_square * term) * of_logit
            for slope, term, of_logit in zip(slopes, softmax.terms, of_logits, strict=True)
        ]
        if rows.is_soft:
            c = c * (1 - smoothing)  # noqa: PLW2901
            likelihoods = map(softmax.likelihood, range(len(row)))
            of_targets += [c * w * value for w, value in zip(weight or [ONE] * len(row), likelihoods, strict=True)]
    return Truth(losses, gmpy2.fsum(losses) / divisor, gradient, of_targets)


def chained(logits: list[Real], options: Mapping[str, Any]) -> tuple[list[Real], list[Real]]:
    """c·tanh(z·s/c)/τ of logits z, and its derivatives."""
    scale, temperature = real(options.get("logit_scale", 1.0)), real(options.get("temperature", 1.0))
    if options.get("softcap") is None:
        return [x * scale / temperature for x in logits], [scale / temperature] * len(logits)
    cap = real(options["softcap"])
    inner = [x * scale / cap for x in logits]
    slopes = [scale / temperature / gmpy2.cosh(v) ** 2 for v in inner]
    return [cap * gmpy2.tanh(v) / temperature for v in inner], slopes


def _divisor(rows: Rows, weight: list[Real] | None) -> Real:
    if rows.items is not None:
        return real(rows.items)
    if rows.reduction != "mean":
        return ONE
    if rows.is_soft:
        return real(len(rows.logits))
    labels = rows.target[rows.target != IGNORED]
    return real(len(labels)) if weight is None else gmpy2.fsum([weight[label] for label in labels])


def compare(call: Callable[..., Any], name: str, rows: Rows, with_target: bool = True) -> Iterator[Comparison]:
    """A call's gradients in every format, and its loss, against the definition; call takes grad_dtype."""
    with gmpy2.context(precision=PRECISION):
        true = truth(rows)
        for format_name, dtype in DTYPES.items():
            result = call(grad_dtype=dtype)
            got = result.grads[name]
            yield Comparison(name, format_name, got, exact(true.gradient, np.shape(got)), describing(rows))
        if rows.is_soft and with_target:
            got = result.grads["target"]
            slopes = exact(true.target_gradient, got.shape)
            yield Comparison("target", str(got.dtype), got, slopes, describing(rows))
        loss = np.asarray(result.loss)
        expected = true.losses if rows.reduction == "none" else [true.loss]
        yield Comparison("loss", "float64", loss, exact(expected, loss.shape), describing(rows, of_rows=True))


def describing(rows: Rows, *, of_rows: bool = False) -> Callable[[int], str]:
    """What to say of an element."""
    classes = rows.logits.shape[1]

    def describe(index: int) -> str:
        row, column = (index, None) if of_rows else divmod(index, classes)
        logits, target = rows.logits[row], rows.target[row]
        if classes <= 8:
            of_row = f"x={logits.astype(float).tolist()} t={target.astype(float).tolist()}"
        elif column is None:
            of_row = ""
        else:
            of_column = f"t={float(target[column])!r}" if rows.is_soft else f"label {target}"
            of_row = f"x={float(logits[column])!r} {of_column}"
        weight = "" if rows.weight is None else f" {rows.weight.dtype} weights"
        cotangent = float(np.broadcast_to(rows.cotangent, len(rows.logits))[row])
        formats = f"{logits.dtype}/{rows.target.dtype}{weight}"
        smoothing = f", smoothing {rows.smoothing}" if rows.smoothing else ""
        return (
            f"{formats} {rows.reduction} row {row} of {len(rows.logits)}, class {column} of {classes}: "
            f"{of_row}, grad_output {cotangent!r}{smoothing}"
        )

    return describe


def cross_entropy(rows: Rows) -> Iterator[Comparison]:
    """refloss.cross_entropy."""

    def call(**options: Any) -> Any:
        return refloss.cross_entropy(
            rows.logits,
            rows.target,
            rows.weight,
            reduction=rows.reduction,
            label_smoothing=rows.smoothing,
            grad_output=rows.cotangent,
            **rows.options,
            **options,
        )

    return compare(call, "logits", rows)


def nll(rows: Rows) -> Iterator[Comparison]:
    """refloss.nll of the same numbers: −w·x at the label."""
    with gmpy2.context(precision=PRECISION):
        weight = None if rows.weight is None else reals(rows.weight)
        factors = [
            ZERO if label == IGNORED else (ONE if weight is None else weight[label]) for label in rows.target.tolist()
        ]
        divisor = _divisor(rows, weight)
        each = reals(np.broadcast_to(rows.cotangent, len(factors)))
        gradient = [ZERO] * rows.logits.size
        losses = []
        for r, (label, factor, c) in enumerate(zip(rows.target.tolist(), factors, each, strict=True)):
            losses.append(ZERO if factor == 0 else -factor * real(rows.logits[r, label]))
            if label != IGNORED:
                gradient[r * rows.logits.shape[1] + label] = -c * factor / divisor
        options = {"reduction": rows.reduction, "grad_output": rows.cotangent}
        for format_name, dtype in DTYPES.items():
            result = refloss.nll(rows.logits, rows.target, rows.weight, **options, grad_dtype=dtype)
            got = result.grads["input"]
            yield Comparison("input", format_name, got, exact(gradient, got.shape), describing(rows))
        loss = np.asarray(result.loss)
        expected = losses if rows.reduction == "none" else [gmpy2.fsum(losses) / divisor]
        yield Comparison("loss", "float64", loss, exact(expected, loss.shape), describing(rows, of_rows=True))


def softmax_of(logits: np.ndarray) -> np.ndarray:
    """p, in float64."""
    x = logits.astype(np.float64)
    terms = np.exp(x - x.max(axis=1, keepdims=True))
    return terms / terms.sum(axis=1, keepdims=True)


Draw = Callable[[np.random.Generator, int], Iterator[Rows]]


def _logits(generator: np.random.Generator, elements: int, classes: int, scale: float = 3.0) -> np.ndarray:
    # Odd, so that "mean" divides by no power of two.
    return (generator.standard_normal((max(1, elements // classes) | 1, classes)) * scale).astype(np.float32)


def _labels(generator: np.random.Generator, logits: np.ndarray, ignored: float = 0.0) -> np.ndarray:
    labels = generator.integers(logits.shape[1], size=len(logits))
    labels[1:][generator.random(len(logits) - 1) < ignored] = IGNORED
    return labels


def _dirichlet(generator: np.random.Generator, logits: np.ndarray) -> np.ndarray:
    terms = generator.exponential(1.0, logits.shape)
    return np.asarray(terms / terms.sum(axis=1, keepdims=True))


def ordinary_labels(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    for classes in WIDTHS:
        x = _logits(generator, size // len(WIDTHS), classes)
        yield Rows(x, _labels(generator, x, 0.2), reduction="mean")


def label_cotangents(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    for k, classes in enumerate(WIDTHS):
        x = _logits(generator, size // len(WIDTHS), classes)
        cotangent: Any = COTANGENTS[k]
        reduction = ("sum", "none", "mean")[k % 3]
        if reduction == "none":
            cotangent = generator.choice(COTANGENTS, len(x))
        yield Rows(x, _labels(generator, x, 0.1), cotangent=cotangent, reduction=reduction)


def confident_labels(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    margins = (5, 20, 40, 60, 90, 300, 700)
    for margin in margins:
        x = _logits(generator, size // len(margins), 17, 1.0)
        labels = _labels(generator, x)
        x[np.arange(len(x)), labels] += np.float32(margin)
        labels[::5] = generator.integers(17, size=len(labels[::5]))
        yield Rows(x, labels, reduction="none", cotangent=generator.choice(COTANGENTS, len(x)))


def weighted_labels(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    for k, reduction in enumerate(("mean", "sum", "none")):
        for classes in (10, 257):
            x = _logits(generator, size // 6, classes)
            weight = generator.uniform(0.01, 3.0, classes)
            weight = weight if k else weight.astype(np.float32)
            yield Rows(x, _labels(generator, x, 0.1), weight, reduction=reduction, cotangent=COTANGENTS[k])


def smoothed_labels(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    for k, smoothing in enumerate((0.1, 0.9, 1.0, 1e-30)):
        x = _logits(generator, size // 4, 50, 5.0)
        x[::3, 4] += 25
        x[::9, 4] += 50
        labels = _labels(generator, x)
        labels[::2] = 4
        weight = generator.uniform(0.1, 3.0, 50) if k % 2 else None
        yield Rows(x, labels, weight, smoothing, COTANGENTS[k], "sum" if k % 2 else "mean")


def wide_labels(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    x = _logits(generator, size, WIDE)
    yield Rows(x, _labels(generator, x), cotangent=1 / 7)


def extreme_labels(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    """Offsets, tiny logits, equal logits, masked classes, tiny and large cotangents."""
    for k in range(6):
        x = _logits(generator, size // 6, 50)
        if k < 2:
            x = (x + (1e4, -1e6)[k]).astype(np.float32)
        x *= np.float32(1e-20 if k == 2 else 1)
        x[:] = 0.3 if k == 3 else x
        labels = _labels(generator, x)
        if k == 4:
            x[generator.random(x.shape) < 0.4] = -np.inf
            x[np.arange(len(x)), labels] = 1.25
        yield Rows(x, labels, cotangent=(1.0, 0.1, 1 / 3, -0.1, 1e-38, 1e30)[k])


def soft(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    for k, classes in enumerate(WIDTHS):
        x = _logits(generator, size // len(WIDTHS), classes)
        t = _dirichlet(generator, x).astype(np.float32)
        cotangent: Any = (1.0, *COTANGENTS)[k]
        reduction = ("mean", "sum", "none")[k % 3]
        if reduction == "none":
            cotangent = generator.choice(COTANGENTS, len(x))
        yield Rows(x, t, cotangent=cotangent, reduction=reduction)


def at_the_optimum(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    """Self-distillation: float32 targets are the row's own softmax."""
    for classes in (3, 64, 1000, 4097):
        for scale in (1e-7, 1.0, 5.0):
            x = _logits(generator, size // 12, classes, scale)
            yield Rows(x, softmax_of(x).astype(np.float32), cotangent=COTANGENTS[generator.integers(5)])


def at_the_optimum_wide(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    x = _logits(generator, size, WIDE)
    yield Rows(x, softmax_of(x).astype(np.float32))


def at_the_optimum_in_float64(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    for classes in (3, 64, 1000, 4097):
        x = _logits(generator, size // 4, classes)
        yield Rows(x, softmax_of(x), cotangent=COTANGENTS[generator.integers(5)])


def near_the_optimum(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    for distance in DISTANCES:
        for classes in (10, 257):
            x = _logits(generator, size // 16, classes)
            t = softmax_of(x) * (1 + distance * generator.uniform(-1, 1, x.shape))
            yield Rows(x, t.astype(np.float32), cotangent=1 / 3)


def sure_teachers(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    """Teacher and student are sure of one class."""
    for margin in (30, 40, 50, 60, 80):
        x = _logits(generator, size // 5, 4, 1.0)
        x[:, 0] += np.float32(margin)
        p = softmax_of(x)
        t = p * generator.uniform(0.2, 2.0, x.shape)
        t[:, 0] = 1.0
        if margin == 60:
            t = p
        yield Rows(x, t.astype(np.float32), reduction="none", cotangent=generator.choice([1.0, *COTANGENTS], len(x)))


def weighted_soft(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    for k, classes in enumerate((3, 10, 257)):
        for own in (False, True):
            x = _logits(generator, size // 7, classes)
            t = (softmax_of(x) if own else _dirichlet(generator, x)).astype(np.float32)
            yield Rows(x, t, generator.uniform(0.01, 3.0, classes), cotangent=COTANGENTS[k], reduction="mean")
    # One class: the gradient is exactly 0.
    for _ in range(50):
        x, t = np.full((1, 1), 0.3, np.float32), generator.random((1, 1)).astype(np.float32)
        yield Rows(x, t, generator.random(1), cotangent=1 / 3)


def weighted_optimum(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    """Weighted targets in proportion to the softmax: w·t/Σ w·t = p."""
    for classes in (3, 50, 1000):
        x = _logits(generator, size // 3, classes)
        weight = generator.uniform(0.1, 3.0, classes)
        t = softmax_of(x) / weight
        yield Rows(x, (t / t.sum(axis=1, keepdims=True)).astype(np.float32), weight, cotangent=0.7)


def smoothed_soft(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    for k, smoothing in enumerate((0.1, 0.5, 1.0, 1e-9)):
        x = _logits(generator, size // 4, 30)
        t = (_dirichlet(generator, x) if k % 2 else softmax_of(x)).astype(np.float32)
        weight = generator.uniform(0.1, 3.0, 30) if k < 2 else None
        yield Rows(x, t, weight, smoothing, COTANGENTS[k], "mean")


def equal_logits(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    """Exact zeros, and what float32's 1/C leaves."""
    for classes in (2, 4, 8, 30, 1000):
        x = np.full((max(1, size // 5 // classes), classes), 0.3, np.float32)
        t = np.full(x.shape, 1 / classes, np.float32)
        yield Rows(x, t, cotangent=COTANGENTS[generator.integers(5)])


def extreme_soft(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    for k in range(6):
        x = _logits(generator, size // 6, 30, (3, 3, 1e-20, 100, 3, 3)[k])
        x = (x + (1e4, -1e6, 0, 0, 0, 0)[k]).astype(np.float32)
        t = _dirichlet(generator, x)
        t = t**8 if k == 4 else t
        t *= 1e-30 if k == 5 else 1
        yield Rows(x, t.astype(np.float32), cotangent=(1.0, 0.1, 1 / 3, -0.1, 1e-30, 1e20)[k])


def mixed_formats(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    for k in range(len(INPUT_DTYPES)):
        x = _logits(generator, size // 4, 50).astype(INPUT_DTYPES[k])
        if k % 2:
            yield Rows(x, _labels(generator, x), cotangent=COTANGENTS[k])
            continue
        for dtype in (ml_dtypes.bfloat16, np.float64):
            own = softmax_of(x) if dtype == np.float64 else _dirichlet(generator, x)
            half = (len(x) + 1) // 2
            yield Rows(x[:half], own[:half].astype(dtype), cotangent=COTANGENTS[k])


OPTIONS: tuple[Mapping[str, Any], ...] = (
    {"softcap": 5.0},
    {"temperature": 0.7, "z_loss": 1e-4},
    {"logit_scale": 0.3, "softcap": 30.0, "temperature": 1.3},
    {"z_loss": 0.5},
    {"logit_scale": 1.7, "softcap": 2.0, "temperature": 3.0, "z_loss": 0.01},
)


def _with_options(draw: Draw) -> Draw:
    """The same rows with one chain after the other."""

    def drawn(generator: np.random.Generator, size: int) -> Iterator[Rows]:
        for k, rows in enumerate(draw(generator, size)):
            yield rows._replace(options=OPTIONS[k % len(OPTIONS)])

    return drawn


def saturated(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    """Logits far beyond the cap, where 1 − tanh² has lost all digits, and nearer ones."""
    for cap in (1.0, 3.0, 30.0):
        for beyond in (1, 8, 30):
            x = _logits(generator, size // 9, 17, cap * beyond)
            yield Rows(x, _labels(generator, x), cotangent=COTANGENTS[beyond % 5], options={"softcap": cap})


def cancelling_squares(generator: np.random.Generator, size: int) -> Iterator[Rows]:
    """Targets next to (Q + 2ζ·lse)·p in half the classes: what pushes and what pulls all but cancel."""
    for factor in (1e-4, 0.25):
        for dtype in (np.float32, np.float64):
            x = _logits(generator, size // 4, 20)
            lse = np.log(np.exp(x.astype(np.float64)).sum(axis=1))
            t = softmax_of(x) * (1 + 2 * factor * lse[:, None])
            t[:, 1::2] = 0
            t[:, 1] = 1 - t.sum(axis=1)
            yield Rows(x, t.astype(dtype), cotangent=1 / 3, reduction="none", options={"z_loss": factor})


CHAINED: dict[str, Draw] = {
    "chain, labels": _with_options(ordinary_labels),
    "chain, confident": _with_options(confident_labels),
    "chain, weights": _with_options(weighted_labels),
    "chain, smoothing": _with_options(smoothed_labels),
    "chain, soft": _with_options(soft),
    "chain, at the optimum": _with_options(at_the_optimum),
    "chain, sure teachers": _with_options(sure_teachers),
    "chain, saturated": saturated,
    "chain, cancelling z-loss": cancelling_squares,
}
LABELS: dict[str, Draw] = {
    "labels": ordinary_labels,
    "cotangents": label_cotangents,
    "confident": confident_labels,
    "weights": weighted_labels,
    "extreme": extreme_labels,
    "wide": wide_labels,
}
KINDS: Mapping[str, Draw] = {
    **LABELS,
    "smoothing": smoothed_labels,
    "soft": soft,
    "soft, at the optimum": at_the_optimum,
    "soft, at the optimum, wide": at_the_optimum_wide,
    "soft, at the optimum, float64": at_the_optimum_in_float64,
    "soft, near the optimum": near_the_optimum,
    "soft, sure teachers": sure_teachers,
    "soft, weights": weighted_soft,
    "soft, weighted optimum": weighted_optimum,
    "soft, smoothing": smoothed_soft,
    "soft, equal logits": equal_logits,
    "soft, extreme": extreme_soft,
    "mixed formats": mixed_formats,
    **CHAINED,
}
