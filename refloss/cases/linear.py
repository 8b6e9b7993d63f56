"""Cases of losses of a linear layer's outputs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from refloss.cases.draws import Drawn
from refloss.cases.formats import in_every_format
from refloss.cases.log_probs import shifted_index
from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from refloss.cases.draws import Draws


def draw_linear_cross_entropy(draws: Draws) -> Drawn:
    """Rows of labels, some of which are ignored, or distributions; with and without what may be left out."""
    rows, features, classes = draws.rows(), draws.few_classes(), draws.classes()
    places = (draws.size(1, 3),) if not draws.limits.exact and draws.maybe() else ()
    parameters = draws.options(
        ignore_index=(-100, 0, 255),
        reduction=("mean", "sum", "none"),
        label_smoothing=(0.0, 0.1, 1.0),
        logit_scale=(1.0, 0.0625, -1.5),
        softcap=(30.0, 1.5),
        temperature=(1.0, 0.7, 3.0),
        z_loss=(0.0, 1e-4, 0.5),
    )
    inputs: dict[str, Any] = {
        "input": draws.logits(rows, features, near=draws.limits.exact),
        "linear_weight": draws.cast(draws.noise(classes, *places, features)),
    }
    if np.abs(inputs["input"].astype(np.float64)).max(initial=0.0) < 1e3:
        parameters |= draws.options(logits_dtype=("bfloat16", "float16", "float32"))
    if draws.maybe():
        values = draws.uniform(rows, classes, *places) + 0.01
        inputs["target"] = draws.cast(values / values.sum(axis=1, keepdims=True))
        parameters.pop("ignore_index", None)
    else:
        labels = (draws.uniform(rows, *places) * classes).astype(np.int64)
        ignored = draws.uniform(rows, *places) < draws.one_of(0.0, 0.25, 0.75)
        inputs["target"] = np.where(ignored, parameters.get("ignore_index", -100), labels)
    if draws.maybe():
        inputs["linear_bias"] = draws.cast(draws.noise(classes, *places))
    if draws.maybe():
        inputs["weight"] = draws.weights(classes)
    return Drawn(inputs, parameters, (rows, *places))


def has_labels(case: Case) -> bool:
    """Whether the target are labels."""
    return case.inputs["target"].dtype.kind in "iu"


def divisor(case: Case) -> float | None:
    """What a mean divides by."""
    if case.parameters.get("reduction", "mean") != "mean":
        return None
    target = case.inputs["target"]
    if not has_labels(case):
        return float(target.size // len(case.inputs["linear_weight"]))
    known = target[target != case.parameters.get("ignore_index", -100)]
    weight = case.inputs.get("weight")
    return float(known.size if weight is None else weight.astype(np.float64)[known].sum())


def _case(name: str, x: np.ndarray, w: np.ndarray, target: Any, **given: Any) -> Case:
    dtype, grad_output = given.pop("dtype", np.float32), given.pop("grad_output", 1.0)
    inputs = {"input": x.astype(dtype), "linear_weight": w.astype(dtype), "target": np.asarray(target)}
    for optional in ("linear_bias", "weight"):
        if optional in given:
            inputs[optional] = given.pop(optional).astype(dtype)
    return Case(f"linear_cross_entropy-{name}", "linear_cross_entropy", inputs, given, grad_output)


def linear_cross_entropy(_: str) -> list[Case]:
    """Layers as they are trained, and those whose logits are sure, cancel, or are written down in few bits."""
    source = Source(401)
    x, w = source.normal(7, 12), source.normal(11, 12)
    labels, bias, weight = source.integers(11, 7), source.normal(11), source.uniform(11) + 0.25
    ignored = np.where(np.arange(7) % 3 == 1, -100, labels)
    cotangent = source.normal(7) * (-1.0) ** np.arange(7)
    soft = source.probabilities(7, 11).astype(np.float32)
    # Rows that point where their label's weights do.
    sure = x + np.array([0.0, 2.0, 4.0, 8.0, 16.0, 3.0, 1.0])[:, None] * w[labels]
    # Features of any size, all of which count.
    scales = 2.0 ** np.array([0, 10, -10, 20, -20, 5, -5, 15, -15, 1, 0, -1])
    everything = {"linear_bias": bias, "weight": weight, "label_smoothing": 0.1}
    chain = {"logit_scale": 0.5, "softcap": 3.0, "temperature": 0.7, "z_loss": 0.01}
    return [
        *(
            _case(f"{name}-mean", x, w, ignored, dtype=dtype, linear_bias=bias, grad_output=-0.75)
            for name, dtype in DTYPES.items()
        ),
        *(
            _case(f"{name}-none", x, w, ignored, dtype=dtype, reduction="none", grad_output=cotangent)
            for name, dtype in DTYPES.items()
        ),
        _case("sum", x, w, labels, reduction="sum", grad_output=0.3),
        _case("weighted-smoothed", x, w, ignored, **everything, grad_output=-2.5),
        _case("weighted-smoothed-none", x, w, ignored, **everything, reduction="none", grad_output=cotangent),
        _case("probabilities", x, w, soft, linear_bias=bias, grad_output=0.7),
        _case("probabilities-weighted-smoothed", x, w, soft, **everything, reduction="sum", grad_output=-1.25),
        _case("chain", x, w, ignored, **chain, grad_output=3.0),
        _case(
            "chain-none",
            x,
            w,
            labels,
            linear_bias=bias,
            weight=weight,
            **chain,
            reduction="none",
            grad_output=cotangent,
        ),
        _case("sure", sure, w, labels, reduction="sum", grad_output=1e3),
        _case("scaled-features", x * scales, w / scales, labels, grad_output=2.0),
        _case("one-row", x[0], w, int(labels[0]), grad_output=-1.0),
        _case("ignore-a-class", x, w, labels, ignore_index=int(labels[2]), grad_output=-0.5),
        _case("all-ignored", x, w, np.full(7, -100)),
        *in_every_format(_of_options(x, w, ignored)),
        *_of_sizes(source),
        *_of_places(),
    ]


def _of_places() -> list[Case]:
    """Layers whose outputs are of places, each with a softmax."""
    source = Source(403)
    x, w, bias, weight = source.normal(4, 6), source.normal(5, 3, 6), source.normal(5, 3), source.uniform(5) + 0.25
    labels = np.where(source.uniform(4, 3) < 0.25, -100, source.integers(5, 4, 3))
    soft = source.probabilities(4, 5, 3).astype(np.float32)
    several = {"linear_bias": bias, "weight": weight, "label_smoothing": 0.1}
    return [
        _case("places", x, w, labels, **several, grad_output=-2.5),
        _case("places-none", x, w, labels, z_loss=0.01, reduction="none", grad_output=source.normal(4, 3)),
        _case("places-probabilities", x, w[:, :, None], soft[:, :, :, None], grad_output=0.7),
    ]


def _of_options(x: np.ndarray, w: np.ndarray, labels: np.ndarray) -> list[Case]:
    """Each option where it matters in any format."""
    source, each = Source(402), partial(_case, dtype=np.float64)
    soft, opposed = source.probabilities(7, 11), 2.0 * source.normal(7)
    given = {"linear_bias": 3.0 * source.normal(11), "weight": source.uniform(11) * 4.0 + 0.25}
    chain = {"logit_scale": -1.5, "softcap": 2.5, "temperature": 0.25}
    return [
        each("options-mean", x, w, labels, **given, label_smoothing=0.6, grad_output=-2.5),
        each("options-ignored", x, w, np.where(labels < 0, 5, labels), ignore_index=5, reduction="sum"),
        each("options-chain", x, w, labels, **chain, z_loss=0.5, reduction="none", grad_output=opposed),
        each("options-probabilities", x, w, soft, **given, reduction="none", grad_output=opposed),
        each("options-written", 3.0 * x, w, labels, logits_dtype="bfloat16", grad_output=-1.5),
        each("options-written-narrowly", 3.0 * x, w, labels, logits_dtype="float16", reduction="sum"),
    ]


def _of_sizes(source: Source) -> list[Case]:
    """Enough terms for sums in few bits to show."""
    x, w = source.normal(40, 96), 0.25 * source.normal(300, 96)
    labels = np.where(np.arange(40) % 5 == 0, -100, source.integers(300, 40))
    cotangent = source.normal(40)
    return [
        _case("many-bfloat16", x, w, labels, dtype=ml_dtypes.bfloat16, grad_output=40.0),
        _case("many-none", x, w, labels, reduction="none", grad_output=cotangent),
    ]


def draw_linear_selected_log_probs(draws: Draws) -> Drawn:
    """Rows with a class or several each, of which some may not count."""
    rows, features, classes = draws.row_shape(), draws.few_classes(), draws.classes()
    parameters = draws.options(logit_scale=(1.0, 0.0625, -1.5), softcap=(30.0, 1.5), temperature=(1.0, 0.7, 3.0))
    several = () if draws.limits.exact or not draws.maybe() else (draws.size(0, 3),)
    inputs: dict[str, Any] = {
        "input": draws.logits(*rows, features),
        "linear_weight": draws.cast(draws.noise(classes, features)),
    }
    if np.abs(inputs["input"].astype(np.float64)).max(initial=0.0) < 1e3:
        parameters |= draws.options(logits_dtype=("bfloat16", "float16", "float32"))
    index = (draws.uniform(*rows, *several) * classes).astype(np.int64)
    if draws.maybe():
        inputs["linear_bias"] = draws.cast(draws.noise(classes))
    ignored = draws.ignored(rows)
    if ignored.any():
        index = np.where(ignored[..., None] if several else ignored, draws.one_of(0, -100), index)
        inputs["mask"] = ~ignored
    cotangent: Any = draws.cotangent(index.shape)
    if draws.maybe():
        cotangent = {"log_probs": cotangent, "entropy": draws.cotangent(rows)}
    return Drawn(inputs | {"index": draws.integers(index)}, parameters, index.shape, cotangent)


def layer_mistakes(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """What a kernel takes for a layer's parameters."""
    w = case.inputs["linear_weight"]
    wrong = {
        "weights are read transposed": {"linear_weight": w.reshape(w.shape[::-1]).T},
        "shards of the classes' weights are exchanged": {"linear_weight": np.roll(w, len(w) // 2, axis=0)},
    }
    if "linear_bias" in case.inputs:
        wrong["the bias is forgotten in the logits"] = {"linear_bias": np.zeros_like(case.inputs["linear_bias"])}
    return wrong


def log_prob_mistakes(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """The same, and whose log-probabilities a kernel takes for those of the index."""
    shape, classes = case.inputs["input"].shape[:-1], len(case.inputs["linear_weight"])
    return layer_mistakes(case) | shifted_index(case, shape, classes)


def _named(name: str, x: np.ndarray, w: np.ndarray, index: np.ndarray, **given: Any) -> Case:
    dtype, grad_output = given.pop("dtype", np.float32), given.pop("grad_output", -1.25)
    inputs = {"input": x.astype(dtype), "linear_weight": w.astype(dtype), "index": index}
    if "linear_bias" in given:
        inputs["linear_bias"] = given.pop("linear_bias").astype(dtype)
    if "mask" in given:
        inputs["mask"] = given.pop("mask")
    return Case(f"linear_selected_log_probs-{name}", "linear_selected_log_probs", inputs, given, grad_output)


def linear_selected_log_probs(_: str) -> list[Case]:
    """Layers as they are trained, and those whose rows are sure, alike, or do not count."""
    source, wide = Source(403), partial(_named, dtype=np.float64)
    x, w, bias = source.normal(2, 5, 12), source.normal(11, 12), source.normal(11)
    index, several = source.integers(11, 2, 5), source.integers(11, 2, 5, 3)
    both = {"log_probs": -1.25, "entropy": 0.3}
    each = {"log_probs": source.normal(2, 5), "entropy": source.normal(2, 5)}
    counts = np.ones((2, 5), bool)
    counts[0, 3:], counts[1, 0] = False, False
    poisoned = x.copy()
    poisoned[0, 3], poisoned[0, 4, 2], poisoned[1, 0] = np.nan, np.inf, -np.inf
    padded = np.where(counts, index, -100)
    sure = x + np.array([0.0, 1.0, 3.0, 8.0, 16.0])[:, None] * w[index]
    masks = np.where(np.arange(11) % 4 == 3, -np.inf, bias)
    scales = 2.0 ** np.array([0, 10, -10, 20, -20, 5, -5, 15, -15, 1, 0, -1])
    chain = {"logit_scale": 0.5, "softcap": 3.0, "temperature": 0.7}
    return [
        *(_named(name, x, w, index, dtype=dtype, linear_bias=bias, grad_output=both) for name, dtype in DTYPES.items()),
        _named("log-probs", x, w, index, grad_output=each["log_probs"]),
        _named("each-of-both", x, w, index, grad_output=each, temperature=0.7),
        _named("entropy", x, w, index, grad_output={"entropy": -0.01}),
        _named("several", x, w, several, linear_bias=bias, grad_output=source.normal(2, 5, 3)),
        _named("padded", poisoned, w, padded, mask=counts, linear_bias=bias, grad_output=both),
        _named("nothing-counts", poisoned, w, np.full((2, 5), -100), mask=np.zeros((2, 5), bool), grad_output=both),
        _named("one-row", x[0, 0], w, np.array(index[0, 0]), grad_output=2.0),
        _named("sure", sure, w, index, grad_output={"log_probs": 1e3, "entropy": 1e3}),
        _named("alike", x, np.repeat(w[:1], 11, axis=0), index, grad_output=both),
        _named("masked-classes", x, w, np.zeros((2, 5), np.int64), linear_bias=masks, grad_output=both),
        _named("scaled-features", x * scales, w / scales, index, grad_output=both),
        _named("chain", 4.0 * x, w, index, **chain, grad_output=both),
        *in_every_format(
            [
                wide("options", x, w, padded, mask=counts, linear_bias=bias, grad_output=both, **chain),
                wide("options-each", x, w, index, linear_bias=bias, grad_output=each, **chain),
                wide("options-several", x, w, several, grad_output=both, temperature=3.0),
                wide("options-written", 3.0 * x, w, index, grad_output=both, logits_dtype="bfloat16"),
                wide("options-masked", x, w, np.zeros((2, 5), np.int64), linear_bias=masks, grad_output=each),
            ]
        ),
        _many(),
    ]


def _many() -> Case:
    """Enough terms for sums in few bits to show."""
    source = Source(404)
    x, w = source.normal(40, 96), 0.25 * source.normal(300, 96)
    each = {"log_probs": source.normal(40), "entropy": source.normal(40)}
    return _named("many", x, w, source.integers(300, 40), grad_output=each)
