"""Rows of a student's logits, and what a teacher says of its most probable classes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.classes import one_of_many
from refloss.cases.draws import Drawn
from refloss.cases.formats import in_every_format, in_format
from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from refloss.cases.draws import Draws

TAILS = ("drop", "bucket", "renormalise")
# Log-probabilities are multiples of it, rounded down: they are the same on every machine, and sum to less than 1.
_GRID = 2.0**-12
_CLAMPED = -10.0
# What nothing of a tail's own is in.
_AS_OTHERS = {
    "drop": ("masked-outside", "masked-others", "certain-float64", "sure", "flat", "rounded-up"),
    "bucket": (),
    "renormalise": (
        "most-probable",
        "masked-outside",
        "masked-others",
        "certain",
        "certain-float64",
        "flat",
        "far",
        "rounded-up",
    ),
}


def taught(logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities, float64, and classes [..., K] of a teacher's most probable classes."""
    below = logits - logits.max(axis=-1, keepdims=True, initial=-np.inf)
    log_probs = np.floor((below - np.log(np.exp(below).sum(axis=-1, keepdims=True))) / _GRID) * _GRID
    classes = np.argsort(-log_probs, axis=-1, kind="stable")[..., :count]
    return np.take_along_axis(log_probs, classes, axis=-1), classes


def divisor(case: Case) -> float:
    """What a mean divides by: the rows that count."""
    rows = case.inputs["student_logits"].shape[:-1]
    return float(np.count_nonzero(case.inputs.get("mask", np.ones(rows))))


def draw(draws: Draws, parameters: dict[str, Any]) -> Drawn:
    """Teachers of their own, next to the student, or certain; rows of which some do not count or name less."""
    rows, classes = draws.row_shape(), draws.classes()
    logits = draws.logits(*rows, classes)
    count = max(classes - 1, 1) if draws.limits.exact else draws.size(min(1, classes), min(classes, 40))
    other = 2.0 * draws.noise(*rows, classes)
    near = np.clip(np.nan_to_num(logits.astype(np.float64)), -30.0, 30.0)
    teacher = draws.one_of(other, near + 2.0**-4 * other, other + 20.0 * (np.arange(classes) == classes // 2))
    log_probs, ids = taught(teacher, count)
    _mask_others(draws, logits, ids)
    if not draws.limits.exact and draws.maybe():
        absent = draws.uniform(*log_probs.shape) < 0.25
        log_probs, ids = np.where(absent, -np.inf, log_probs), np.where(absent, draws.one_of(0, -1), ids)
    ignored = draws.ignored(rows)
    inputs = {"student_logits": logits, "teacher_log_probs": log_probs.astype(draws.dtype)}
    if ignored.any() or draws.maybe():
        # Of rows that may be taken apart others may count.
        ids = np.where(ignored[..., None] & (not draws.limits.exact and draws.maybe()), -100, ids)
        inputs |= {"mask": ~ignored}
        if draws.limits.extreme and draws.maybe():
            logits[ignored] = draws.one_of(np.nan, np.inf, -np.inf)
    return Drawn(inputs | {"teacher_ids": draws.integers(ids)}, parameters, rows)


def _mask_others(draws: Draws, logits: np.ndarray, ids: np.ndarray) -> None:
    """Put −inf where no teacher names a class, but for one."""
    if logits.shape[-1] - ids.shape[-1] > 1 and draws.maybe():
        masked = draws.uniform(*logits.shape) < 0.25
        named = np.zeros(logits.shape, bool)
        np.put_along_axis(named, ids, True, axis=-1)
        first = np.argmin(named, axis=-1)[..., None]
        np.put_along_axis(named, first, True, axis=-1)
        logits[masked & ~named] = -np.inf


def _case(function: str, name: str, logits: np.ndarray, teacher: tuple[np.ndarray, np.ndarray], **given: Any) -> Case:
    grad_output, dtype, mask = given.pop("grad_output", -1.25), given.pop("dtype", np.float32), given.pop("mask", None)
    log_probs, ids = teacher
    inputs = {
        "student_logits": logits.astype(dtype),
        "teacher_log_probs": log_probs.astype(dtype),
        "teacher_ids": ids,
    }
    if mask is not None:
        inputs["mask"] = mask
    return Case(f"{function}-{name}", function, inputs, given, grad_output)


def topk_distillation(function: str) -> list[Case]:
    """Every tail on ordinary rows, and where a probability, a difference or a bucket is next to nothing."""
    case, source = partial(_case, function), Source(341)
    x, teacher = source.normal(3, 5, 11) * 2.0, taught(source.normal(3, 5, 11) * 2.0, 4)
    cotangent = source.normal(3, 5) * 2.0
    counts = np.ones((3, 5), bool)
    counts[:, 3:], counts[1] = False, False
    poisoned = x.copy()
    poisoned[0, 3], poisoned[1, 0], poisoned[2, 4, 2] = np.nan, np.inf, -np.inf
    padded = np.where(counts[..., None], teacher[0], np.nan), teacher[1]
    options = [
        case(f"options-{tail}-{reduction}", poisoned, padded, mask=counts, dtype=np.float64, tail=tail,
             reduction=reduction, grad_output=upstream, temperature=0.7, temperature_squared=True)
        for tail, (reduction, upstream) in zip(TAILS, (("mean", -2.5), ("sum", 1.75), ("none", cotangent)), strict=True)
    ]  # fmt: skip
    return [
        *(case(name, x, teacher, dtype=dtype) for name, dtype in DTYPES.items()),
        *(case(tail, x, teacher, tail=tail) for tail in TAILS[1:]),
        case("temperature", x, teacher, tail="bucket", temperature=2.0, grad_output=0.7),
        case("masked-rows", poisoned, padded, mask=counts, tail="bucket", grad_output=3.0),
        case("fully-masked", x, teacher, mask=np.zeros((3, 5), bool)),
        case("one-row", x[0, 0], (teacher[0][0, 0], teacher[1][0, 0]), tail="bucket", grad_output=2.0),
        *in_every_format([*options, case("negative", *_negative(source), dtype=np.float64, grad_output=0.7)]),
        *_edges(function, source),
        *(
            in_format(
                case(f"classes-{rows.classes}", *_of_many(rows.logits), tail=TAILS[k % 3], dtype=np.float64), name
            )
            for k, (name, rows) in enumerate(one_of_many(342))
        ),
    ]


def _negative(source: Source) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Students that give named classes more than their teachers do, who think next to nothing of one of them."""
    log_probs = np.array([[-1.5, -2.0, -30.0], [-0.5, -1.25, -40.0], [-3.0, -0.75, -24.0]])
    ids = np.array([[3, 1, 5], [0, 6, 2], [4, 2, 0]])
    x = source.normal(3, 7)
    np.put_along_axis(x, ids, log_probs + 6.0, axis=1)
    return x, (log_probs, ids)


def _of_many(logits: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Rows, and a teacher of at most 7 of their classes, the last among them."""
    classes = logits.shape[1]
    count = min(classes, 7)
    ids = np.linspace(0, classes - 1, count).astype(np.int64)
    log_probs = -np.floor(1.0 + 2.0 * np.arange(count)) / 2.0 - 1.0 * (count > 1)
    shape = (len(logits), count)
    return logits, (np.broadcast_to(log_probs, shape).copy(), np.broadcast_to(ids[::-1], shape).copy())


def _edges(function: str, source: Source) -> list[Case]:
    """Where little is left, or nothing."""
    case, rows = partial(_case, function), np.arange(4)
    x, other = source.normal(4, 7), source.normal(4, 7)
    sure = x.copy()
    sure[rows, rows] += [2.0, 12.0, 24.0, 60.0]
    teacher = taught(other, 3)
    certain = np.zeros((4, 1)), rows[:, None]
    masked_inside, masked_outside, alone = x.copy(), x.copy(), x.copy()
    np.put_along_axis(masked_inside[:2], teacher[1][:2, :1], -np.inf, axis=1)
    named = np.zeros(x.shape, bool)
    np.put_along_axis(named, teacher[1], True, axis=1)
    masked_outside[~named & (np.arange(7) % 2 > 0)] = -np.inf
    alone[~named] = -np.inf
    padded = np.array([[-1.0, -np.inf, -2.0], [-np.inf, -0.5, -np.inf], [-np.inf] * 3, [0.0, -np.inf, -np.inf]])
    padding = padded, np.where(np.isneginf(padded), np.array([-1, 0, -100]), np.array([2, 4, 5]))
    # In all of a type's digits they sum to more than 1.
    rounded_up = np.full((4, 2), -177.0 / 256.0), np.stack([rows, rows + 1], axis=1)
    flat = np.repeat(np.array([[0.0], [2.5], [-100.0], [64.0]]), 7, axis=1), (np.full((4, 3), -2.0), teacher[1])
    far = x + np.where(named, -400.0, 0.0) * np.array([[1.0], [-1.0], [0.25], [0.0]])
    found = []
    for tail in TAILS:
        found += [
            case(
                f"{name}-{tail}",
                logits,
                given,
                tail=tail,
                reduction="none",
                grad_output=np.array([1.5, -2.0, 0.7, 3.0]),
                **more,
            )
            for name, logits, given, more in (
                ("most-probable", x, taught(other, 1), {}),
                ("all-classes", x, taught(other, 7), {}),
                ("near", x, taught(x + other / 16.0, 3), {}),
                ("near-float64", x, taught(x + other / 4096.0, 7), {"dtype": np.float64}),
                ("certain", sure, certain, {}),
                ("certain-float64", sure, certain, {"dtype": np.float64}),
                ("sure", sure, taught(sure * 0.5, 3), {}),
                ("masked-inside", masked_inside, teacher, {}),
                ("masked-outside", masked_outside, teacher, {}),
                ("masked-others", alone, teacher, {}),
                ("padded", x, padding, {}),
                ("rounded-up", x, rounded_up, {}),
                ("flat", *flat, {}),
                ("far", far, teacher, {}),
            )
            if name not in _AS_OTHERS[tail]
        ]
    return found


def mistakes(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """What a kernel takes for the teacher's classes, or makes of its log-probabilities."""
    log_probs, ids = case.inputs["teacher_log_probs"], case.inputs["teacher_ids"]
    classes = case.inputs["student_logits"].shape[-1]
    named = np.asarray(case.inputs.get("mask", np.ones(ids.shape[:-1])), bool)[..., None] & ~np.isneginf(log_probs)
    if classes < 2 or not named.any():
        return {}
    exact = np.where(named, log_probs.astype(np.float64), -np.inf)
    total = np.log(np.exp(np.minimum(exact, 0.0)).sum(axis=-1, keepdims=True, where=named))
    of_type = log_probs.dtype if log_probs.dtype == np.float64 else np.dtype(np.float32)
    renormalised = np.where(named, exact - np.where(named.any(axis=-1, keepdims=True), total, 0.0), log_probs)
    clamped = np.where(named, np.maximum(exact, _CLAMPED), log_probs)
    found = {
        "ids shifted by one": {"teacher_ids": np.where(named, (ids.astype(np.int64) + 1) % classes, ids)},
        "only the teacher is renormalised": {"teacher_log_probs": renormalised.astype(of_type)},
    }
    if np.any(exact[named] < _CLAMPED):
        found["log-probabilities are clamped"] = {"teacher_log_probs": clamped.astype(of_type)}
    return found
