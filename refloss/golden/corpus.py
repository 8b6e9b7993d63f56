"""The built-in cases. Inputs come from integers by exact arithmetic, so that they are the same on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "float64": np.float64,
}


class Case(NamedTuple):
    """A call of a public function: function(**inputs, **parameters, grad_output=grad_output)."""

    id: str
    function: str
    inputs: dict[str, np.ndarray]
    parameters: dict[str, Any]
    grad_output: float | np.ndarray


class Source:
    """Reproducible values: a bit generator's raw stream is fixed, unlike the distributions that NumPy makes of it."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def uniform(self, *shape: int) -> np.ndarray:
        """Multiples of 2^-53 in [0, 1)."""
        raw = np.array(self._bits.random_raw(int(np.prod(shape))), np.uint64)
        return (raw >> np.uint64(11)).astype(np.float64).reshape(shape) * 2.0**-53

    def normal(self, *shape: int) -> np.ndarray:
        """Roughly normal values of variance 1: the sum of twelve uniform ones."""
        values: np.ndarray = self.uniform(12, *shape).sum(axis=0) - 6.0
        return values

    def integers(self, high: int, *shape: int) -> np.ndarray:
        """Integers in [0, high)."""
        return (self.uniform(*shape) * high).astype(np.int64)

    def probabilities(self, *shape: int) -> np.ndarray:
        """Positive values that sum to about 1 along axis 1."""
        values = self.uniform(*shape) + 0.01
        values /= values.sum(axis=1, keepdims=True)
        return values


def corpus(only: set[str] | None = None) -> list[Case]:
    """The cases of every function, or of some."""
    return [case for function, build in _BUILDERS.items() if only is None or function in only for case in build()]


def functions() -> list[str]:
    """The functions that have cases."""
    return list(_BUILDERS)


def _cross_entropy() -> list[Case]:
    def case(
        name: str, logits: np.ndarray, target: Any, *, grad_output: Any = 1.0, weight: Any = None, **parameters: Any
    ) -> Case:
        inputs = {"logits": logits, "target": np.asarray(target)}
        if weight is not None:
            inputs["weight"] = weight
        return Case(f"cross_entropy-{name}", "cross_entropy", inputs, parameters, grad_output)

    source = Source(1)
    logits = source.normal(7, 11) * 3.0
    labels = source.integers(11, 7)
    single = logits.astype(np.float32)
    ignored = np.where([False, True, False, False, True, False, False], -100, labels)
    weight = (source.uniform(11) * 2.0 + 0.25).astype(np.float32)
    image = (source.normal(2, 5, 3, 4) * 4.0).astype(np.float32)
    image_labels = source.integers(5, 2, 3, 4)
    image_labels[0, 1] = 255
    probabilities = source.probabilities(7, 11).astype(np.float32)
    confident = single.copy()
    confident[np.arange(7), labels] = 20.0 + 10.0 * np.arange(7, dtype=np.float32)
    masked = single.copy()
    masked[:, 3] = -np.inf
    visible = np.where(labels == 3, 4, labels)
    cotangent = source.normal(7)
    everything = {"weight": weight, "label_smoothing": 0.1, "grad_output": -2.5}
    return [
        *(case(f"{name}-mean", logits.astype(dtype), ignored, grad_output=-0.75) for name, dtype in DTYPES.items()),
        case("sum", single, labels, reduction="sum", grad_output=0.3),
        case("none", single, ignored, reduction="none", grad_output=cotangent),
        case("weighted", single, ignored, weight=weight, grad_output=1.5),
        case("smoothed", single, ignored, label_smoothing=0.2, grad_output=-1.25),
        case("weighted-smoothed", single, ignored, **everything),
        case("weighted-smoothed-none", single, ignored, reduction="none", **everything | {"grad_output": cotangent}),
        case("trailing-axes", image, image_labels, ignore_index=255, grad_output=12.0),
        case("one-row", single[0], labels[0], grad_output=-1.0),
        case("probabilities", single, probabilities, grad_output=0.7),
        case("probabilities-weighted-smoothed", single, probabilities, **everything),
        case("probabilities-bfloat16", logits.astype(ml_dtypes.bfloat16), probabilities.astype(ml_dtypes.bfloat16)),
        case("confident", confident, labels, reduction="sum", grad_output=1e3),
        case("masked-classes", masked, visible, grad_output=-3.0),
        case("offset", (logits + 1e4).astype(np.float32), labels, grad_output=2.0),
        case("all-ignored", single, np.full(7, -100), grad_output=1.0),
        case("ignore-a-class", single, labels, ignore_index=int(labels[2]), grad_output=-0.5),
    ]


def _language(function: str, seed: int) -> list[Case]:
    """The cases that causal and masked language modelling share."""

    def case(name: str, logits: np.ndarray, labels: np.ndarray, grad_output: float = 1.0, **parameters: Any) -> Case:
        return Case(f"{function}-{name}", function, {"logits": logits, "labels": labels}, parameters, grad_output)

    source = Source(seed)
    logits = source.normal(2, 9, 17) * 4.0
    labels = source.integers(17, 2, 9)
    single = logits.astype(np.float32)
    padded = labels.copy()
    padded[0, 6:] = -100
    padded[1, 2] = -100
    confident = single.copy()
    targets = np.roll(labels, -1, axis=1) if function == "causal_lm" else labels
    np.put_along_axis(confident, targets[..., None], np.float32(30.0), axis=-1)
    masked = single.copy()
    masked[..., 5] = -np.inf
    visible = np.where(padded == 5, 6, padded)
    poisoned = single.copy()
    poisoned[0, 7] = np.nan
    return [
        *(case(name, logits.astype(dtype), padded, grad_output=-0.625) for name, dtype in DTYPES.items()),
        case("num-items", single, padded, num_items_in_batch=40, grad_output=3.0),
        case("num-items-fraction", single, padded, num_items_in_batch=12.5, grad_output=-1.0),
        case("vocab-size", single, labels, vocab_size=17, grad_output=0.1),
        case("ignore-a-class", single, labels, ignore_index=int(labels[0, 3]), grad_output=2.0),
        case("ignore-index-0", single, labels, ignore_index=0, grad_output=-2.0),
        case("confident", confident, labels, grad_output=100.0),
        case("masked-classes", masked, visible, grad_output=1.5),
        case("all-ignored", single, np.full((2, 9), -100), grad_output=1.0),
        case("poisoned-ignored-row", poisoned, padded, grad_output=-4.0),
        case("flat-logits", single.reshape(18, 17), padded, grad_output=0.9),
        case("int32-labels", single, padded.astype(np.int32), grad_output=-0.2),
        case("large-cotangent", logits.astype(np.float16), padded, grad_output=65536.0),
    ]


def _causal_lm() -> list[Case]:
    source = Source(3)
    logits = (source.normal(2, 6, 13) * 4.0).astype(np.float32)
    labels, shifted = source.integers(13, 2, 6), source.integers(13, 2, 6)
    shifted[1, 3:] = -100
    inputs = {"logits": logits, "labels": labels, "shift_labels": shifted}
    return [
        *_language("causal_lm", 2),
        Case("causal_lm-shift-labels", "causal_lm", inputs, {"num_items_in_batch": 30}, -1.75),
        Case("causal_lm-one-token", "causal_lm", {"logits": logits[:, :1], "labels": labels[:, :1]}, {}, 1.0),
    ]


def _masked_lm() -> list[Case]:
    return _language("masked_lm", 4)


_BUILDERS: dict[str, Callable[[], list[Case]]] = {
    "cross_entropy": _cross_entropy,
    "causal_lm": _causal_lm,
    "masked_lm": _masked_lm,
}
