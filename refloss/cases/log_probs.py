"""Rows of logits, classes that they name and rows that do not count: cases of log-probabilities and entropy."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.classes import apart, improbable, many
from refloss.cases.draws import Drawn
from refloss.cases.formats import in_every_format, in_format
from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from refloss.cases.draws import Draws

# One at a time.
_OPTIONS = (("logit_scale", 0.25), ("logit_scale", 2.0), ("softcap", 30.0), ("softcap", 2.5), ("temperature", 0.7))


def draw_selected_log_probs(draws: Draws, parameters: dict[str, Any]) -> Drawn:
    """Rows with a class or several each, of which some may not count."""
    rows, classes = draws.row_shape(), draws.classes()
    logits = draws.logits(*rows, classes)
    several = () if draws.limits.exact or not draws.maybe() else (draws.size(0, 3),)
    index = (draws.uniform(*rows, *several) * classes).astype(np.int64)
    ignored = draws.ignored(rows)
    if not several:
        draws.adverse(logits, -1, np.where(ignored, -1, index), ignored, masks=not draws.limits.exact)
    inputs = {"logits": logits}
    if ignored.any() or draws.maybe():
        index = np.where(ignored[..., None] if several else ignored, draws.one_of(0, -100), index)
        inputs |= {"mask": ~ignored}
    shape = index.shape
    cotangent: Any = draws.cotangent(shape)
    if draws.maybe():
        cotangent = {"log_probs": cotangent, "entropy": draws.cotangent(rows)}
    return Drawn({"logits": logits, "index": draws.integers(index), **inputs}, parameters, shape, cotangent)


def _case(function: str, name: str, logits: np.ndarray, index: np.ndarray, **given: Any) -> Case:
    grad_output, dtype, mask = given.pop("grad_output", -1.25), given.pop("dtype", np.float32), given.pop("mask", None)
    inputs = {"logits": logits.astype(dtype), "index": index}
    if mask is not None:
        inputs["mask"] = mask
    return Case(f"{function}-{name}", function, inputs, given, grad_output)


def selected_log_probs(function: str) -> list[Case]:
    """Sure rows, rows whose classes are masked, rows that do not count, and options one by one and together."""
    case, source = partial(_case, function), Source(331)
    x, index = source.normal(3, 5, 11) * 3.0, source.integers(11, 3, 5)
    several = source.integers(11, 3, 5, 4)
    several[..., 3] = several[..., 0]
    cotangent = source.normal(3, 5) * 2.0
    both = {"log_probs": -0.75, "entropy": 0.3}
    each = {"log_probs": cotangent, "entropy": source.normal(3, 5)}
    counts = np.ones((3, 5), bool)
    counts[:, 3:], counts[1] = False, False
    poisoned = x.copy()
    poisoned[0, 3], poisoned[1, 0], poisoned[2, 4, 2] = np.nan, np.inf, -np.inf
    padded = np.where(counts, index, -100)
    chain = {"logit_scale": 0.25, "softcap": 2.5, "temperature": 0.7}
    options = [
        case("options", x, padded, mask=counts, dtype=np.float64, grad_output=both, **chain),
        case("options-each", x, index, dtype=np.float64, grad_output=each, **chain),
        case("options-several", x, several, dtype=np.float64, grad_output=both, temperature=3.0),
        case("options-apart", *apart(), dtype=np.float64, grad_output=both, temperature=0.7),
    ]
    return [
        *(case(name, x, index, dtype=dtype, grad_output=both) for name, dtype in DTYPES.items()),
        case("each", x, index, grad_output=cotangent),
        case("each-of-both", x, index, grad_output=each, temperature=0.7),
        case("entropy", x, index, grad_output={"entropy": -0.01}),
        case("several", x, several, grad_output=source.normal(3, 5, 4)),
        case("padded", poisoned, padded, mask=counts, grad_output=both),
        case("one-row", x[0, 0], np.array(index[0, 0]), grad_output=2.0),
        *_edges(case, source, both),
        *(case(f"{name}-{value:g}", x, index, grad_output=both, **{name: value}) for name, value in _OPTIONS),
        *in_every_format(options),
        *(
            in_format(
                case(f"classes-{rows.classes}", rows.logits, rows.labels, grad_output=both, dtype=np.float64), name
            )
            for name, rows in many(332)
        ),
    ]


def _edges(case: Any, source: Source, both: dict[str, float]) -> list[Case]:
    """Where an entropy, a log-probability or a gradient is what little is left of larger terms."""
    rows = np.arange(4)
    sure = source.normal(4, 7)
    sure[rows, rows] += [2.0, 12.0, 40.0, 90.0]
    masked = np.where(np.arange(7) < 3, source.normal(4, 7), -np.inf)
    masked[0, :3] = [0.0, 0.0, -np.inf]
    masked[1, 1:] = -np.inf
    flat = np.repeat(np.array([[0.0], [2.5], [-100.0], [1e4]]), 7, axis=1)
    # A class next to the average surprise: in a row of one class above many alike, log p_j + H is small.
    average = np.where(np.arange(7) < 1, 1.0, source.normal(4, 7) * 2.0**-8)
    beyond = source.normal(4, 7) * np.array([[30.0], [300.0], [40.0], [60.0]])
    return [
        case("sure", sure, rows, grad_output={"log_probs": 1e3, "entropy": 1e3}),
        case("sure-float64", sure, rows, dtype=np.float64, grad_output={"log_probs": 1e3, "entropy": 1e3}),
        case("sure-of-another", sure, rows + 1, grad_output=both),
        case("masked-classes", masked, np.zeros(4, np.int64), grad_output=both),
        case("masked-index", masked, rows + 2, grad_output=both),
        case("flat", flat, rows, grad_output=both),
        case("average", average, rows, grad_output={"log_probs": 0.0, "entropy": 1.0}),
        case("improbable", *improbable(), grad_output=both),
        case("capped", beyond, rows, grad_output=both, softcap=30.0),
        case("capped-float64", beyond, rows, dtype=np.float64, grad_output=both, softcap=30.0),
    ]


def mistakes(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """Whose log-probabilities a kernel takes for those of the index."""
    *rows, classes = case.inputs["logits"].shape
    return shifted_index(case, tuple(rows), classes)


def shifted_index(case: Case, rows: tuple[int, ...], classes: int) -> dict[str, dict[str, np.ndarray]]:
    """The class after the one that is meant."""
    index = case.inputs["index"]
    if classes < 2 or not index.size:
        return {}
    counts = np.asarray(case.inputs.get("mask", np.ones(rows)), bool)
    each = counts if index.ndim == len(rows) else counts[..., None]
    return {"index shifted by one": {"index": np.where(each, (index.astype(np.int64) + 1) % classes, 0)}}


def upstream_mistakes(case: Case) -> dict[str, dict[str, Any]]:
    """What a kernel makes of the entropy's cotangent."""
    given = case.grad_output
    if not isinstance(given, dict) or not np.any(given.get("entropy", 0.0)):
        return {}
    return {
        "the entropy has no gradient": {**given, "entropy": 0.0},
        "the entropy's gradient has the wrong sign": {**given, "entropy": -given["entropy"]},
    }
