"""Golden and drawn cases of transducers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.draws import Drawn, Draws
from refloss.cases.formats import in_every_format, in_format
from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from collections.abc import Callable

REDUCTIONS = ("mean_volume", "mean_batch", "mean", "sum", "none")
_PADDING = -100
_LARGEST = 1e9


def _inputs(source: Source, batch: int, times: int, most: int, classes: int, blank: int) -> dict[str, np.ndarray]:
    """Samples of several lengths, of which the first fills the arrays; labels beyond a length are padding."""
    logits = source.normal(batch, times, most + 1, classes) * 2.0
    labels = source.integers(classes - 1, batch, most)
    labels += labels >= blank
    frames = np.maximum(times - source.integers(3, batch), 1)
    counts = np.maximum(most - source.integers(3, batch), 0)
    frames[0], counts[0] = times, most
    labels = np.where(np.arange(most) < counts[:, None], labels, _PADDING)
    return {"logits": logits, "labels": labels, "logit_lengths": frames, "label_lengths": counts}


def _outside(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Nodes beyond the lengths."""
    _, times, width, _ = inputs["logits"].shape
    late = np.arange(times)[:, None] >= inputs["logit_lengths"][:, None, None]
    return np.asarray(late | (np.arange(width) > inputs["label_lengths"][:, None, None]))


def rnnt(function: str) -> list[Case]:
    """Every reduction, lengths of 0, masked and improbable classes, sure paths, blanks among labels, many classes."""

    def case(name: str, inputs: dict[str, np.ndarray], grad_output: Any = 1.0, **parameters: Any) -> Case:
        return Case(f"{function}-{name}", function, inputs, {"blank_token_id": 0, **parameters}, grad_output)

    source = Source(31)
    inputs, cotangent = _inputs(source, 3, 6, 4, 5, 0), source.normal(3) * 2.0
    plain = [
        case(name, inputs | {"logits": inputs["logits"].astype(dtype)}, grad_output=-0.625)
        for name, dtype in DTYPES.items()
    ]
    return [
        *plain,
        *in_every_format([*_of_reductions(case, inputs, cotangent), *_of_rows(case, inputs)]),
        *_of_sizes(case),
    ]


def _of_reductions(case: Callable[..., Case], inputs: dict[str, np.ndarray], cotangent: np.ndarray) -> list[Case]:
    empty = inputs | {"label_lengths": np.array([4, 0, 2])}
    return [
        case("mean-batch", inputs, reduction="mean_batch", grad_output=1.5),
        case("mean", inputs, reduction="mean", grad_output=-1.25),
        case("sum", inputs, reduction="sum", grad_output=0.3),
        case("none", inputs, reduction="none", grad_output=cotangent),
        case("without-labels", empty, reduction="mean", grad_output=2.0),
        case("without-labels-volume", inputs | {"label_lengths": np.zeros(3, np.int64)}, grad_output=-0.5),
    ]


def _of_rows(case: Callable[..., Case], inputs: dict[str, np.ndarray]) -> list[Case]:
    """Rows at which kernels break."""
    logits, labels = inputs["logits"], inputs["labels"]
    outside = _outside(inputs)[..., None]
    masked = logits.copy()
    masked[:, 1:4, :, 4] = -np.inf
    with_blank = labels.copy()
    with_blank[0, 1:3], with_blank[2, 0] = 0, 0
    last_blank = np.where(labels == 0, 0, np.where(labels > 0, labels - 1, labels))
    repeated = np.where(labels >= 0, 3, labels)
    sure = _sure(inputs)
    return [
        case("masked-class", inputs | {"logits": masked, "labels": np.where(labels == 4, 3, labels)}, grad_output=1.75),
        case("poisoned", inputs | {"logits": np.where(outside, np.nan, logits)}, grad_output=-3.0),
        case("offset", inputs | {"logits": np.round(8.0 * logits) / 8.0 + 64.0}, grad_output=-1.25),
        case("blank-among-labels", inputs | {"labels": with_blank}, reduction="sum", grad_output=0.75),
        case("last-class-is-blank", inputs | {"labels": last_blank}, blank_token_id=4, grad_output=-2.5),
        case("repeated-labels", inputs | {"labels": repeated}, reduction="mean", grad_output=3.0),
        case("improbable", inputs | {"logits": 12.0 * logits}, reduction="sum", grad_output=-0.1),
        case("sure", inputs | {"logits": sure}, reduction="mean_batch", grad_output=2.0),
        case("equal", inputs | {"logits": np.zeros_like(logits)}, reduction="sum", grad_output=1 / 3),
    ]


def _sure(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Labels as early as they can come, with a margin of 6."""
    logits = inputs["logits"].copy()
    for sample, (labels, count) in enumerate(zip(inputs["labels"], inputs["label_lengths"].tolist(), strict=True)):
        for u in range(logits.shape[2]):
            best = labels[u] if u < count else 0
            logits[sample, :, u, best] = logits[sample, :, u].max(axis=-1) + 6.0
    return logits


def _of_sizes(case: Callable[..., Case]) -> list[Case]:
    """One frame, one class, many classes, labels of few bits, and a longer text."""
    source = Source(32)
    one = _inputs(source, 2, 1, 3, 4, 0) | {"logit_lengths": np.array([1, 1])}
    wide, long = _inputs(source, 1, 3, 2, 1025, 0), _inputs(source, 2, 24, 9, 6, 0)
    short = {name: value if name == "logits" else value.astype(np.int8) for name, value in long.items()}
    alone = {
        "logits": source.normal(1, 3, 2, 1),
        "labels": np.full((1, 1), _PADDING),
        "logit_lengths": np.array([3]),
        "label_lengths": np.array([0]),
    }
    in_float32 = [
        case("one-frame", one, grad_output=-0.75),
        case("one-class", alone, reduction="sum"),
        case("longer", short, reduction="none", grad_output=np.array([1.5, -0.5])),
    ]
    return [
        *(in_format(each, "float32") for each in in_float32),
        *in_every_format([case("classes-1025", wide, grad_output=4.0)]),
    ]


def _shifted(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The label before, as who counts labels from 1 and reads from 0."""
    known = np.where(np.arange(labels.shape[1]) < counts[:, None], labels, 0)
    return np.roll(known, 1, axis=1) if labels.shape[1] else known


def wrong_labels(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """The label's arc takes its neighbour's class."""
    inputs = case.inputs
    return {"labels are off by one": {"labels": _shifted(inputs["labels"], inputs["label_lengths"])}}


def wrong_ends(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """And the last blank of an RNN-T is left out: that of the last frame and label has a probability of 1."""
    inputs, blank = case.inputs, case.parameters["blank_token_id"]
    logits = inputs["logits"].copy()
    for sample, (t, u) in enumerate(zip(inputs["logit_lengths"], inputs["label_lengths"], strict=True)):
        if t:
            logits[sample, int(t) - 1, int(u)] = -np.inf
            logits[sample, int(t) - 1, int(u), blank] = 0.0
    return wrong_labels(case) | {"the last blank is left out": {"logits": logits}}


def draw_rnnt(draws: Draws) -> Drawn:
    """Samples of several lengths; NaN or infinities beyond them, −inf for a class that nobody asks for."""
    inputs, parameters, classes = _drawn(draws)
    logits = _drawn_logits(draws, (*_lattice_of(inputs, draws), classes), inputs, parameters["blank_token_id"])
    return Drawn({"logits": logits, **inputs}, parameters, logits.shape[:1])


def _lattice_of(inputs: dict[str, np.ndarray], draws: Draws) -> tuple[int, int, int]:
    """B, T and U + 1; T is at least the longest sample's."""
    batch, most = inputs["labels"].shape
    times = int(inputs["logit_lengths"].max(initial=1)) + (0 if draws.limits.exact else draws.size(0, 1))
    return batch, times, most + 1


def _drawn(draws: Draws) -> tuple[dict[str, np.ndarray], dict[str, Any], int]:
    """Labels, lengths and parameters, and how many classes there are."""
    batch, classes = draws.rows(), draws.classes(1 if not draws.limits.exact else 2)
    most = draws.size(0, 3) if not draws.limits.exact else 2
    blank = draws.size(0, classes - 1)
    reduction = draws.options(reduction=REDUCTIONS)
    labels = np.minimum((draws.uniform(batch, most) * classes).astype(np.int64), classes - 1)
    if draws.limits.exact:  # a label that is the blank may have losses below 0
        labels = np.where(labels == blank, (labels + 1) % classes, labels)
    least = 1 if draws.limits.exact else 0
    counts = np.minimum(least + (draws.uniform(batch) * (most + 1)).astype(np.int64), most)
    frames = 1 + (draws.uniform(batch) * 4).astype(np.int64)
    if not draws.limits.exact and draws.maybe():
        labels = np.where(np.arange(most) < counts[:, None], labels, _PADDING)
    inputs = {"labels": labels, "logit_lengths": frames, "label_lengths": counts}
    inputs = {name: draws.integers(value) for name, value in inputs.items()}
    return inputs, {"blank_token_id": blank, **reduction}, classes


def _drawn_logits(draws: Draws, shape: tuple[int, ...], inputs: dict[str, np.ndarray], blank: int) -> np.ndarray:
    # Beyond it a path of some dozen arcs has a probability that refloss takes for 0.
    logits = draws.cast(np.clip(draws.logits(*shape).astype(np.float64), -_LARGEST, _LARGEST))
    if not draws.limits.exact and shape[-1] > 1 and draws.maybe():
        absent = draws.size(0, shape[-1] - 1)
        if absent != blank and not (inputs["labels"] == absent).any():
            logits[..., absent] = -np.inf
    if draws.limits.extreme and draws.maybe():
        logits[_outside({"logits": logits, **inputs})] = draws.one_of(np.nan, np.inf, -np.inf)
    return logits


_DURATIONS = (0, 1, 2, 3, 4)


def tdt(function: str) -> list[Case]:
    """Those of an RNN-T, with durations: without 0, without 1, twice the same, and some that leave a sample no path."""
    source = Source(33)

    def case(
        name: str,
        inputs: dict[str, np.ndarray],
        grad_output: Any = 1.0,
        durations: tuple[int, ...] = _DURATIONS,
        **parameters: Any,
    ) -> Case:
        logits = inputs["logits"]
        own = source.normal(*logits.shape[:3], len(durations)).astype(logits.dtype)
        own = np.where(np.isnan(logits[..., :1].astype(np.float64)), logits[..., :1], own).astype(logits.dtype)
        given = {"token_logits": logits, "duration_logits": own}
        given |= {key: value for key, value in inputs.items() if key != "logits"}
        given["durations"] = np.array(durations)
        return Case(f"{function}-{name}", function, given, {"blank_token_id": 0, **parameters}, grad_output)

    inputs, cotangent = _inputs(source, 3, 6, 4, 5, 0), source.normal(3) * 2.0
    inputs["label_lengths"] = np.maximum(inputs["label_lengths"], 1)
    inputs["labels"] = np.where(inputs["labels"] == _PADDING, 2, inputs["labels"])
    plain = [
        case(name, inputs | {"logits": inputs["logits"].astype(dtype)}, grad_output=-0.625)
        for name, dtype in DTYPES.items()
    ]
    reductions = [
        case("mean-volume", inputs, reduction="mean_volume", grad_output=1.75),
        *_of_reductions(case, inputs, cotangent)[:1],
        *_of_reductions(case, inputs, cotangent)[2:5],
    ]
    durations = [
        case("sigma", inputs, sigma=0.5, grad_output=-1.5),
        case("durations-without-0", inputs, durations=(1, 2), sigma=0.05, reduction="none", grad_output=cotangent),
        case("durations-without-1", inputs, durations=(0, 2), reduction="none", grad_output=-cotangent),
    ]
    twice = case("durations-twice", inputs, durations=(2, 0, 1, 1), sigma=0.05, reduction="sum", grad_output=0.7)
    return [*plain, *in_every_format([*reductions, *durations, *_of_rows(case, inputs)]), twice, *_of_sizes(case)]


def draw_tdt(draws: Draws) -> Drawn:
    """The same with durations that leave every sample a path: 1 is among them."""
    inputs, parameters, classes = _drawn(draws)
    shape = _lattice_of(inputs, draws)
    durations = np.array(draws.one_of((0, 1, 2), (1, 0), (0, 1, 2, 3, 4), (0, 4, 1, 1)))
    logits = _drawn_logits(draws, (*shape, classes), inputs, parameters["blank_token_id"])
    of_durations = draws.cast(np.clip(draws.logits(*shape, durations.size).astype(np.float64), -_LARGEST, _LARGEST))
    given = {"token_logits": logits, "duration_logits": of_durations, **inputs, "durations": draws.integers(durations)}
    return Drawn(given, parameters | draws.options(sigma=(0.0, 0.05, 0.5)), logits.shape[:1])
