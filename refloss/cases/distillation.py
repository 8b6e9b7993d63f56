"""Rows of a student's and a teacher's logits, of which some may not count: cases of divergences."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.classes import apart, improbable, one_of_many
from refloss.cases.draws import Drawn
from refloss.cases.formats import in_every_format, in_format
from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.cases.draws import Draws

_KINDS = ("forward_kl", "reverse_kl", "jsd", "tvd")
# Whose classes may have no probability where the other one's have some, and the divergence stays finite.
_TEACHER_MASKS, _STUDENT_MASKS = ("forward_kl", "jsd", "tvd"), ("reverse_kl", "jsd", "tvd")
# One at a time.
_OPTIONS = (
    {"temperature": 2.0},
    {"temperature": 0.7, "temperature_squared": True},
    {"divergence": "reverse_kl", "temperature": 3.0, "temperature_squared": True},
    {"divergence": "jsd", "beta": 0.1},
    {"divergence": "jsd", "beta": 0.9, "temperature": 2.0},
    {"divergence": "tvd", "temperature": 0.7, "temperature_squared": True},
)


def _mask_classes(draws: Draws, x: np.ndarray, y: np.ndarray, divergence: str) -> None:
    """A class without probability: of both, or of one of them where that leaves a divergence finite."""
    absent = draws.size(0, x.shape[-1] - 1)
    of_teacher, of_student = divergence in _TEACHER_MASKS, divergence in _STUDENT_MASKS
    if not (of_teacher and of_student) or draws.maybe():
        x[..., absent], y[..., absent] = -np.inf, -np.inf
    elif of_teacher and draws.maybe():
        y[..., absent] = -np.inf
    elif of_student:
        x[..., absent] = -np.inf


def draw_distillation(draws: Draws) -> Drawn:
    """A teacher like any, and a student that is far from it, near it, or its equal."""
    rows, classes = draws.row_shape(low=1), draws.classes()
    parameters = draws.options(
        divergence=_KINDS,
        beta=(0.5, 0.1, 0.75),
        temperature=(1.0, 2.0, 0.7),
        temperature_squared=(False, True),
        reduction=("mean", "sum", "none"),
    )
    divergence = parameters.get("divergence", _KINDS[0])
    y = draws.logits(*rows, classes)
    exact = draws.limits.exact or divergence == "tvd"
    x = draws.near(y) if not exact and draws.maybe() else draws.logits(*rows, classes)
    if classes > 1 and not draws.limits.exact and draws.maybe():
        _mask_classes(draws, x, y, divergence)
    ignored = draws.ignored(rows)
    inputs = {"student_logits": x, "teacher_logits": y}
    if ignored.any() or draws.maybe():
        if draws.limits.extreme and draws.maybe():
            x[ignored] = draws.one_of(np.nan, np.inf, -np.inf)
            y[ignored] = draws.one_of(-np.inf, np.nan, np.inf)
        inputs["mask"] = ~ignored
    return Drawn(inputs, parameters, rows)


def rows_counted(case: Case) -> float:
    """How many rows count."""
    mask = case.inputs.get("mask")
    return float(np.prod(case.inputs["student_logits"].shape[:-1]) if mask is None else np.count_nonzero(mask))


def _case(function: str, name: str, x: np.ndarray, y: np.ndarray, **given: Any) -> Case:
    grad_output, dtype, mask = given.pop("grad_output", -1.25), given.pop("dtype", np.float32), given.pop("mask", None)
    inputs = {"student_logits": x.astype(dtype), "teacher_logits": y.astype(dtype)}
    if mask is not None:
        inputs["mask"] = mask
    return Case(f"{function}-{name}", function, inputs, given, grad_output)


def distillation(function: str) -> list[Case]:
    """Every divergence far from and next to the teacher, rows that do not count, options one by one and together."""
    case, source = partial(_case, function), Source(401)
    x, y = source.normal(3, 5, 11) * 2.0, source.normal(3, 5, 11) * 2.0
    counts = np.ones((3, 5), bool)
    counts[:, 3:], counts[1] = False, False
    poisoned, taught = x.copy(), y.copy()
    poisoned[0, 3], poisoned[1, 0], taught[1, 1], taught[2, 4, 2] = np.nan, np.inf, np.nan, -np.inf
    cotangent = source.normal(3, 5) * 2.0
    options = [
        case(
            f"options-{kind}-{reduction}",
            x,
            y,
            mask=counts,
            dtype=np.float64,
            divergence=kind,
            reduction=reduction,
            **more,
        )
        for kind, reduction, more in (
            ("forward_kl", "mean", {"temperature": 0.7, "grad_output": -2.5}),
            ("reverse_kl", "sum", {"temperature": 2.0, "grad_output": 1.75}),
            ("jsd", "none", {"beta": 0.3, "temperature_squared": True, "temperature": 3.0, "grad_output": cotangent}),
            ("tvd", "none", {"temperature": 1.5, "grad_output": cotangent}),
        )
    ]
    return [
        *(case(name, x, y, dtype=dtype) for name, dtype in DTYPES.items()),
        *(case(kind, x, y, divergence=kind, grad_output=0.7) for kind in _KINDS[1:]),
        *(
            case(f"{kind}-padded", poisoned, taught, mask=counts, divergence=kind, reduction=reduction, grad_output=3.0)
            for kind, reduction in zip(_KINDS, ("mean", "sum", "mean", "mean"), strict=True)
        ),
        case("none", x, y, reduction="none", grad_output=cotangent),
        case("none-masked", x, y, mask=counts, reduction="none", divergence="reverse_kl", grad_output=cotangent),
        case("one-row", x[0, 0], y[0, 0], divergence="jsd", grad_output=2.0),
        *(case("-".join(f"{name}-{value}" for name, value in more.items()), x, y, **more) for more in _OPTIONS),
        *_edges(case, source),
        *in_every_format(options),
        *_of_many(case, source),
    ]


def _edges(case: Any, source: Source) -> Iterator[Case]:
    """Where a divergence or a slope is what little is left of larger terms, and where logarithms are infinite."""
    y = np.round(source.normal(4, 7) * 64.0) / 32.0
    near = y + np.round(source.normal(4, 7) * 16.0) / 64.0
    sure = y.copy()
    sure[np.arange(4), np.arange(4)] += [4.0, 9.0, 12.0, 15.0]
    opposed = np.roll(sure, 1, axis=1)
    masked, fewer = y.copy(), near.copy()
    masked[:, 5:], fewer[:, 6] = -np.inf, -np.inf
    masked[1, 1:] = -np.inf
    for kind in _KINDS:
        yield case(f"{kind}-near-float64", near, y, divergence=kind, dtype=np.float64, grad_output=1e3)
        student, teacher = (masked, fewer) if kind == "reverse_kl" else (fewer, masked)
        yield case(f"{kind}-masked", student, teacher, divergence=kind, grad_output=-3.0)
        yield case(f"{kind}-sure-float64", sure + near, sure, divergence=kind, dtype=np.float64, grad_output=1e3)
        if kind != "tvd":
            yield case(f"{kind}-near", near, y, divergence=kind, grad_output=1e3)
    for kind in ("reverse_kl", "tvd"):
        yield case(f"{kind}-equal", y, y, divergence=kind)
    for kind in ("forward_kl", "jsd"):
        yield case(f"{kind}-opposed", opposed, sure, divergence=kind, grad_output=0.3)
    yield case("jsd-shifted", y + 2.5, y, divergence="jsd")
    yield from in_every_format([case("options-masked", fewer, masked, dtype=np.float64, temperature=2.0)])
    yield case("infinite", masked, fewer, reduction="none", grad_output=np.array([1.0, -2.0, 0.5, 3.0]))
    yield case("nothing-counts", y, near, mask=np.zeros(4, bool))
    yield case("apart", apart().logits, np.roll(apart().logits, 1, axis=0), dtype=np.float64, reduction="sum")
    yield case("improbable", improbable().logits, improbable().logits[::-1] * 0.5, divergence="jsd", grad_output=0.3)


def _of_many(case: Any, source: Source) -> Iterator[Case]:
    """More classes than a block, in turns of all divergences."""
    for k, (name, rows) in enumerate(one_of_many(402)):
        teacher = rows.logits + np.round(source.normal(*rows.logits.shape) * 16.0) / 16.0
        kind = _KINDS[k % len(_KINDS)]
        yield in_format(case(f"classes-{rows.classes}", rows.logits, teacher, dtype=np.float64, divergence=kind), name)


def mistakes(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """Which inputs a kernel takes for others."""
    x, y = case.inputs["student_logits"], case.inputs["teacher_logits"]
    return {"student and teacher are exchanged": {"student_logits": y, "teacher_logits": x}}
