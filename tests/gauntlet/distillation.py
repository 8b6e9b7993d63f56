"""Divergences of two softmaxes, as a trainer has them: log-softmaxes, and the derivative of what is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.kernels import Kernel

if TYPE_CHECKING:
    from tests.gauntlet.kernels import Answer


def logarithm(p: np.ndarray) -> np.ndarray:
    """log p."""
    return np.asarray(np.log(p))


class Distillation(Kernel):
    """Of logits of a student and of a teacher."""

    def counted(self, inputs: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
        """Which rows count."""
        return np.asarray(inputs.get("mask", np.ones(shape)), bool).reshape(-1)

    def divisor(self, counts: np.ndarray, classes: int) -> float:
        """What a mean divides by."""
        return float(counts.sum())

    def kind(self, parameters: dict[str, Any]) -> str:
        """Which divergence it is."""
        return str(parameters.get("divergence", "forward_kl"))

    def share(self, parameters: dict[str, Any]) -> float:
        """β, the teacher's."""
        return float(parameters.get("beta", 0.5))

    def factor(self, parameters: dict[str, Any]) -> float:
        """What losses are multiplied by."""
        temperature = float(parameters.get("temperature", 1.0))
        return temperature**2 if parameters.get("temperature_squared") else 1.0

    def softened(self, x: np.ndarray, temperature: np.ndarray, is_teacher: bool) -> np.ndarray:
        """Logits over the temperature."""
        return x / temperature

    def slope(self, slope: np.ndarray, temperature: np.ndarray) -> np.ndarray:
        """The derivative for logits, of that for logits over the temperature."""
        return slope / temperature

    def ratio(self, p: np.ndarray, log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
        """log(p/q), 0 where p is."""
        return np.where(p > 0, log_p - log_q, 0)

    def of_teacher(self, slope: np.ndarray) -> np.ndarray:
        """The teacher's slope."""
        return slope

    def of_student(self, slope: np.ndarray) -> np.ndarray:
        """The student's slope."""
        return slope

    def log_softmax(self, z: np.ndarray) -> np.ndarray:
        """Of rows."""
        below = z - z.max(axis=1, keepdims=True, initial=-np.inf)
        return below - logarithm(self.sum(np.exp(below), axis=1))[:, None]

    def through(self, p: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """The derivative for logits of one for probabilities."""
        mean = self.sum(np.where(p > 0, p * slope, 0), axis=1)[:, None]
        return np.where((p > 0) | np.isinf(mean), p * (slope - mean), 0)

    def _kl(self, p: np.ndarray, log_p: np.ndarray, log_q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Σ p·log(p/q), and its derivative for p's logits, with q held."""
        ratio = self.ratio(p, log_p, log_q)
        return self.sum(p * ratio, axis=1), self.through(p, ratio)

    def divergence(self, log_s: np.ndarray, log_t: np.ndarray, kind: str, share: float) -> Any:
        """Of each row, and its derivatives for both logits over the temperature."""
        s, t = np.exp(log_s), np.exp(log_t)
        if kind == "forward_kl":
            loss, of_t = self._kl(t, log_t, log_s)
            return loss, s - t, of_t
        if kind == "reverse_kl":
            loss, of_s = self._kl(s, log_s, log_t)
            return loss, of_s, t - s
        if kind == "jsd":
            beta, rest = s.dtype.type(share), s.dtype.type(1 - share)
            log_m = logarithm(beta * t + rest * s)
            (of_t, slope_t), (of_s, slope_s) = self._kl(t, log_t, log_m), self._kl(s, log_s, log_m)
            return beta * of_t + rest * of_s, rest * slope_s, beta * slope_t
        side = np.sign(s - t)
        half = s.dtype.type(0.5)
        return half * self.sum(np.abs(s - t), axis=1), half * self.through(s, side), half * self.through(t, -side)

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """Rows that do not count are 0."""
        arrays = inputs["student_logits"], inputs["teacher_logits"]
        shape, classes = arrays[0].shape, arrays[0].shape[-1]
        counts = self.counted(inputs, shape[:-1])
        x, y = (np.where(counts[:, None], self.widened(array).reshape(len(counts), classes), 0) for array in arrays)
        number, reduction = x.dtype.type, parameters.get("reduction", "mean")
        temperature = number(parameters.get("temperature", 1.0))
        log_s, log_t = (self.log_softmax(self.softened(z, temperature, k == 1)) for k, z in enumerate((x, y)))
        losses, of_s, of_t = self.divergence(log_s, log_t, self.kind(parameters), self.share(parameters))
        divisor = number(self.divisor(counts, classes) if reduction == "mean" else 1)
        factor = number(self.factor(parameters))
        upstream = self.upstream(cotangent, x).reshape(-1, 1) * factor / divisor
        losses = np.where(counts, factor * losses, 0)
        loss = losses.reshape(shape[:-1]) if reduction == "none" else self.sum(losses) / divisor
        grads = {
            name: np.where(counts[:, None], upstream * self.slope(slope, temperature), 0)
            .reshape(shape)
            .astype(array.dtype)
            for name, slope, array in (
                ("student_logits", self.of_student(of_s), arrays[0]),
                ("teacher_logits", self.of_teacher(of_t), arrays[1]),
            )
        }
        return loss, grads
