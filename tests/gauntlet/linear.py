"""Losses of a linear layer's outputs, by parts of the rows: logits of a part, what a loss makes of them, products."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.kernels import Kernel
from tests.gauntlet.log_probs import SelectedLogProbs
from tests.gauntlet.rows import CrossEntropy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.gauntlet.kernels import Answer

    Part = tuple[dict[str, np.ndarray], np.ndarray]  # of some rows: what is theirs, and the gradients of their logits


class Layer(Kernel):
    """X·Wᵀ + b and its gradients."""

    def layer_weight(self, w: np.ndarray) -> np.ndarray:
        """Those of the classes, [V, places ..., K]."""
        return w

    def layer_bias(self, b: np.ndarray) -> np.ndarray:
        """Those of the classes, [V, places ...]."""
        return b

    def rows_at_once(self, rows: int) -> int:
        """How many rows a part has."""
        return rows

    def written(self, z: np.ndarray, dtype: Any) -> np.ndarray:
        """Logits, where they are written down in a type."""
        return z if dtype is None else z.astype(dtype).astype(z.dtype)

    def stored(self, g: np.ndarray, dtype: Any) -> np.ndarray:
        """Gradients of logits, of a layer in a type."""
        return g

    def each(self, cotangents: np.ndarray) -> np.ndarray:
        """The cotangents of rows, [N, ...]."""
        return cotangents

    def added(self, total: np.ndarray, part: np.ndarray) -> np.ndarray:
        """Gradients of parameters, of one part more."""
        return total + part

    def parts(self, rows: int) -> Iterator[slice]:
        """At least one."""
        size = max(self.rows_at_once(rows), 1)
        return (slice(first, first + size) for first in range(0, max(rows, 1), size))

    def of_rows(self, value: Any, shape: tuple[int, ...], rows: int, width: int = 1) -> np.ndarray:
        """A cotangent as [N, width]."""
        return self.each(np.broadcast_to(np.asarray(value), shape).reshape(rows, width))

    def through(
        self, inputs: dict[str, Any], parameters: dict[str, Any], counts: np.ndarray, solve: Callable[..., Part]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What `solve` makes of the logits of parts, one after the other, and the gradients of the layer."""
        given = inputs["input"]
        # What rows hold that do not count leaks nowhere.
        x = np.where(counts[:, None], self.widened(given).reshape(len(counts), given.shape[-1]), 0)
        w = self.layer_weight(self.widened(inputs["linear_weight"]))
        b = self.layer_bias(self.widened(inputs.get("linear_bias", np.zeros(w.shape[:-1], given.dtype)))).reshape(-1)
        w = w.reshape(len(b), w.shape[-1])
        of_weight, of_bias, of_input, found = np.zeros_like(w), np.zeros_like(b), [], []
        for rows in self.parts(len(x)):
            mine, g = solve(rows, self.written(x[rows] @ w.T + b, parameters.get("logits_dtype")))
            g = self.stored(g, given.dtype)
            of_weight, of_bias = self.added(of_weight, g.T @ x[rows]), self.added(of_bias, self.sum(g, axis=0))
            of_input.append(g @ w)
            found.append(mine)
        grads = {
            "input": np.concatenate(of_input),
            "linear_weight": of_weight,
            "linear_bias": of_bias,
        }
        whole = {name: np.concatenate([mine[name] for mine in found]) for name in found[0]}
        shaped = {name: value.reshape(inputs[name].shape) for name, value in grads.items() if name in inputs}
        return whole, {name: value.astype(inputs[name].dtype) for name, value in shaped.items()}


class LinearCrossEntropy(Layer, CrossEntropy):
    """The steps of a cross-entropy, of a layer's outputs."""

    def of_part(self, whole: Any, own: Any, parts: int) -> Any:
        """What the losses of a part are divided by: of all rows, or of its own."""
        return whole

    def weighed(self, inputs: dict[str, Any], parameters: dict[str, Any], counts: np.ndarray) -> np.ndarray:
        """What each row weighs in a mean."""
        target, kind = inputs["target"], self.widened(inputs["input"]).dtype
        if "weight" not in inputs or target.dtype.kind not in "iu":
            return counts.astype(kind)
        labels = np.where(counts, target.reshape(-1), 0).astype(np.int64)
        return np.where(counts, inputs["weight"].astype(kind)[labels], 0)

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """Each part has a loss for each of its rows, which is divided by what all of them weigh."""
        (classes, *places, _), target = inputs["linear_weight"].shape, inputs["target"]
        shape, several = (*inputs["input"].shape[:-1], *places), math.prod(places)
        soft = target.dtype.kind not in "iu"
        axis = len(shape) - len(places)  # that of classes
        target = np.moveaxis(self.widened(target), axis, -1).reshape(-1, classes) if soft else target.reshape(-1)
        ignored = parameters.get("ignore_index", -100)
        counts: np.ndarray = np.ones(len(target), bool) if soft else np.asarray(target != ignored)
        weights, mean = self.weighed(inputs, parameters, counts), parameters.get("reduction", "mean") == "mean"
        upstream = self.of_rows(cotangent, shape if np.ndim(cotangent) else (len(target),), len(target))[:, 0]
        options = {name: value for name, value in parameters.items() if name not in ("logits_dtype", "reduction")}
        of_classes = {"weight": inputs["weight"]} if "weight" in inputs else {}

        def solve(rows: slice, z: np.ndarray) -> Part:
            count, rows = len(z), slice(rows.start * several, rows.stop * several)
            # Each place is a row.
            z = z.reshape(count, classes, several).swapaxes(1, 2).reshape(-1, classes)
            given = {"logits": z, "target": target[rows], **of_classes}
            losses, grads, *components = self.cross_entropy(given, options | {"reduction": "none"}, upstream[rows])
            parts = len(list(self.parts(len(target) // several)))
            own = self.of_part(self.sum(weights), self.sum(weights[rows]), parts) if mean else z.dtype.type(1)
            divided = {"loss": losses, **(components[0] if components else {})}
            # 0 where nothing counts.
            g = np.where(counts[rows, None], grads["logits"] / own, 0)
            of_target = {"target": grads["target"] / own} if soft else {}
            g = g.reshape(count, several, classes).swapaxes(1, 2).reshape(count, -1)
            return {name: value / own for name, value in divided.items()} | of_target, g

        found, grads = self.through(inputs, parameters, np.asarray(counts.reshape(-1, several).any(axis=1)), solve)
        if soft:
            of_rows = found.pop("target").reshape(*shape, classes).astype(inputs["target"].dtype)
            grads["target"] = np.moveaxis(of_rows, -1, axis)
        if parameters.get("reduction") == "none":
            reduced = {name: value.reshape(shape) for name, value in found.items()}
        else:
            reduced = {name: self.sum(value) for name, value in found.items()}
        loss = reduced.pop("loss")
        return (loss, grads, reduced) if reduced else (loss, grads)


class LinearSelectedLogProbs(Layer, SelectedLogProbs):
    """The steps of log-probabilities, of a layer's outputs."""

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """Each part has its log-probabilities and entropies."""
        shape, index = inputs["input"].shape[:-1], inputs["index"]
        count = math.prod(shape)
        several = index.shape[-1] if index.ndim > len(shape) else 1
        counts, named = self.counted(inputs, count), index.reshape(count, several)
        given = cotangent if isinstance(cotangent, dict) else {"log_probs": cotangent}
        shapes = {"log_probs": (index.shape, count, several), "entropy": (shape, count)}
        upstream = {name: self.of_rows(value, *shapes[name]) for name, value in given.items()}
        chain = {name: value for name, value in parameters.items() if name != "logits_dtype"}

        def solve(rows: slice, z: np.ndarray) -> Part:
            part = {"logits": z, "index": named[rows], "mask": counts[rows]}
            own = {name: value[rows] for name, value in upstream.items()}
            _, grads, components = SelectedLogProbs.answer(self, part, chain, own)
            return components, grads["logits"]

        found, grads = self.through(inputs, parameters, counts, solve)
        log_probs = found["log_probs"].reshape(index.shape)
        return log_probs, grads, {"log_probs": log_probs, "entropy": found["entropy"].reshape(shape)}
