"""Losses of rows of vectors: margins between classes, distances, cosines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.kernels import Kernel

if TYPE_CHECKING:
    from tests.gauntlet.kernels import Answer


class Vectors(Kernel):
    """Rows along the last axis: losses [N, 1], and slopes of each input [N, D]."""

    def rows(self, values: np.ndarray) -> np.ndarray:
        """[N, D] in the type that is computed in."""
        return np.ascontiguousarray(self.widened(values)).reshape(-1, values.shape[-1])

    def of_rows(self, inputs: dict[str, Any], parameters: dict[str, Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """What a loss computes."""
        raise NotImplementedError

    def divisor(self, losses: np.ndarray, parameters: dict[str, Any]) -> int:
        """What a sum over rows is divided by."""
        return len(losses) if parameters.get("reduction", "mean") == "mean" else 1

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum of each row."""
        return self.sum(values, axis=1)[:, None]

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """Rows, reduced."""
        first = next(iter(inputs.values()))
        losses, slopes = self.of_rows(inputs, parameters)
        divisor = losses.dtype.type(self.divisor(losses, parameters))
        factor = self.upstream(cotangent, losses).reshape(-1, 1) / divisor
        grads = {name: (factor * slope).reshape(first.shape).astype(first.dtype) for name, slope in slopes.items()}
        if parameters.get("reduction") == "none":
            return losses.reshape(first.shape[:-1]), grads
        return self.sum(losses) / divisor, grads


class ClassMargins(Vectors):
    """Σ_k Σ_j max(0, m − x_k + x_j)^p/C over targets k and others j."""

    def targets(self, inputs: dict[str, Any], classes: int) -> np.ndarray:
        """How often each class is a target, [N, C]."""
        raise NotImplementedError

    def others(self, counts: np.ndarray) -> np.ndarray:
        """Which classes are no targets."""
        return counts == 0

    def excess(self, x: np.ndarray, own: np.ndarray, parameters: dict[str, Any]) -> np.ndarray:
        """m − x_k + x_j, where it is above 0."""
        z = (x.dtype.type(parameters.get("margin", 1.0)) - own) + x
        return np.where(z > 0, z, x.dtype.type(0))

    def per_class(self, classes: int) -> int:
        """What a row's sum is divided by."""
        return classes

    def weight(self, inputs: dict[str, Any], x: np.ndarray) -> np.ndarray:
        """Of each row."""
        return np.ones((len(x), 1), x.dtype)

    def power(self, parameters: dict[str, Any]) -> int:
        """1 or 2."""
        return int(parameters.get("p", 1))

    def of_rows(self, inputs: dict[str, Any], parameters: dict[str, Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """One target after the other."""
        x = self.rows(inputs["input"])
        counts = self.targets(inputs, x.shape[1])
        others, squared = self.others(counts), self.power(parameters) == 2
        losses, slopes = np.zeros((len(x), 1), x.dtype), np.zeros_like(x)
        for k in np.flatnonzero(counts.any(axis=0)).tolist():
            asked = others & (counts[:, k : k + 1] > 0)
            above = np.where(asked, self.excess(x, x[:, k : k + 1], parameters), x.dtype.type(0))
            often = counts[:, k : k + 1].astype(x.dtype)
            slope = often * (2 * above if squared else (above > 0).astype(x.dtype))
            losses += often * self.total(above * above if squared else above)
            slopes += slope
            slopes[:, k] -= self.sum(slope, axis=1)
        factor = self.weight(inputs, x) / x.dtype.type(self.per_class(x.shape[1]))
        return factor * losses, {"input": factor * slopes}


class MultiMargin(ClassMargins):
    """One target a row."""

    def targets(self, inputs: dict[str, Any], classes: int) -> np.ndarray:
        """The label."""
        return np.asarray(inputs["target"].reshape(-1, 1) == np.arange(classes)) * 1

    def weight(self, inputs: dict[str, Any], x: np.ndarray) -> np.ndarray:
        """That of the label."""
        if "weight" not in inputs:
            return super().weight(inputs, x)
        return np.asarray(inputs["weight"].astype(x.dtype)[inputs["target"].reshape(-1, 1)])


class MultilabelMargin(ClassMargins):
    """Several targets a row."""

    def counted(self, target: np.ndarray) -> np.ndarray:
        """Which entries name a target."""
        return np.cumsum(target < 0, axis=1) == 0

    def targets(self, inputs: dict[str, Any], classes: int) -> np.ndarray:
        """The classes up to the first −1."""
        target = inputs["target"].reshape(-1, classes)
        named = self.counted(target)
        counts = np.zeros(target.shape, np.int64)
        np.add.at(counts, (np.nonzero(named)[0], target[named]), 1)
        return counts


class TripletMargin(Vectors):
    """max(0, m + d(a, p) − d(a, n))."""

    def norm(self, d: np.ndarray, p: float) -> tuple[np.ndarray, np.ndarray]:
        """‖d‖_p of each row, and its slopes."""
        size, sign = np.abs(d), np.sign(d)
        if p == np.inf:
            norm = size.max(axis=1, keepdims=True)
            hit = size == norm
            return norm, sign * hit / hit.sum(axis=1, keepdims=True).astype(d.dtype)
        power = d.dtype.type(p)
        if p == 1.0:
            return self.total(size), sign
        largest = size.max(axis=1, keepdims=True)
        largest = np.where(largest > 0, largest, d.dtype.type(1))
        if p == 2.0:
            norm = largest * np.sqrt(self.total((size / largest) ** 2))
            return norm, np.where(norm > 0, d / norm, d.dtype.type(0))
        norm = largest * self.total((size / largest) ** power) ** (1 / power)
        return norm, np.where(size > 0, sign * (size / norm) ** (power - 1), d.dtype.type(0))

    def eps(self, parameters: dict[str, Any]) -> float:
        """What is added to every difference."""
        return float(parameters.get("eps", 1e-6))

    def distance(self, x: np.ndarray, y: np.ndarray, parameters: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """‖x − y + ε‖_p, and its slopes in x."""
        return self.norm((x - y) + x.dtype.type(self.eps(parameters)), float(parameters.get("p", 2.0)))

    def swap(self, parameters: dict[str, Any]) -> bool:
        """Whether the positive may take the anchor's place."""
        return bool(parameters.get("swap", False))

    def margin(self, parameters: dict[str, Any]) -> float:
        """By how much the negative should be farther away."""
        return float(parameters.get("margin", 1.0))

    def of_rows(self, inputs: dict[str, Any], parameters: dict[str, Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Slopes of the distances, put together."""
        a, p, n = (self.rows(inputs[name]) for name in ("anchor", "positive", "negative"))
        (near, of_near), (far, of_far) = self.distance(a, p, parameters), self.distance(a, n, parameters)
        own, across, of_across = np.ones_like(far), np.zeros_like(far), np.zeros_like(a)
        if self.swap(parameters):
            between, of_across = self.distance(p, n, parameters)
            own = np.where(far == between, 0.5, far < between).astype(a.dtype)
            far, across = np.minimum(far, between), 1 - own
        z = (a.dtype.type(self.margin(parameters)) + near) - far
        active = (z >= 0).astype(a.dtype)
        slopes = {
            "anchor": active * (of_near - own * of_far),
            "positive": active * (-of_near - across * of_across),
            "negative": active * (own * of_far + across * of_across),
        }
        return np.where(z > 0, z, a.dtype.type(0)), slopes


class CosineEmbedding(Vectors):
    """1 − cos, or max(0, cos − m)."""

    def lengths(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Squared."""
        return self.total(x * x) + x.dtype.type(1e-12), self.total(y * y) + x.dtype.type(1e-12)

    def signs(self, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which rows belong together, and which should not."""
        return target == 1, target == -1

    def margin(self, parameters: dict[str, Any]) -> float:
        """The cosine that costs nothing."""
        return float(parameters.get("margin", 0.0))

    def of_rows(self, inputs: dict[str, Any], parameters: dict[str, Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """By the quotient."""
        x, y = self.rows(inputs["input1"]), self.rows(inputs["input2"])
        first, second = self.lengths(x, y)
        product, size = self.total(x * y), np.sqrt(first) * np.sqrt(second)
        cosine = product / size
        alike, apart = self.signs(inputs["target"].astype(np.float64).reshape(-1, 1))
        rest = cosine - x.dtype.type(self.margin(parameters))
        losses = np.where(alike, 1 - cosine, np.where(apart & (rest > 0), rest, x.dtype.type(0)))
        turn = np.where(alike, -1, np.where(apart & (rest >= 0), 1, 0)).astype(x.dtype)
        slopes = {
            "input1": turn * (y / size - x * (cosine / first)),
            "input2": turn * (x / size - y * (cosine / second)),
        }
        return losses, slopes
