"""An honest kernel of CTC: sums over alignments as logarithms, sequence by sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tests.gauntlet.kernels import Kernel

if TYPE_CHECKING:
    from tests.gauntlet.kernels import Answer


class Sequence(NamedTuple):
    """One of a batch: log-probabilities [T, C], labels, and how many frames count."""

    log_p: np.ndarray
    labels: np.ndarray
    frames: int


class Ctc(Kernel):
    """Of log-probabilities, and of logits."""

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """Losses and gradients e^lp − γ of all sequences, reduced."""
        blank = self.blank(parameters)
        sequences = self.sequences(inputs, parameters, blank)
        dtype = sequences[0].log_p.dtype
        each = [self.of_sequence(sequence, blank) for sequence in sequences]
        losses, gradients = np.array([loss for loss, _ in each], dtype), [gradient for _, gradient in each]
        over = np.array([max(len(sequence.labels), 1) for sequence in sequences], dtype)
        reduction = parameters.get("reduction", "mean")
        weights = self.weights(over) if reduction == "mean" else np.ones(len(over), dtype)
        upstream = self.upstream(cotangent, losses) * weights
        vanished = np.isinf(losses) & bool(parameters.get("zero_infinity", False))
        losses = np.where(vanished, 0, losses)
        for n, sequence in enumerate(sequences):
            gradients[n] *= upstream[n]
            gradients[n][self.counted(sequence) :] = 0
            if vanished[n]:
                gradients[n] = self.vanished(gradients[n])
        loss = losses if reduction == "none" else self.sum(losses * weights)
        return loss.reshape(self.loss_shape(inputs, reduction)), self.gradients(inputs, np.stack(gradients))

    def blank(self, parameters: dict[str, Any]) -> int:
        """The class that is no label."""
        return int(parameters.get("blank", parameters.get("blank_token_id", 0)))

    def weights(self, lengths: np.ndarray) -> np.ndarray:
        """What a mean multiplies each loss by."""
        return np.asarray(1 / (lengths * lengths.dtype.type(len(lengths))))

    def counted(self, sequence: Sequence) -> int:
        """How many frames have a gradient."""
        return sequence.frames

    def vanished(self, gradient: np.ndarray) -> np.ndarray:
        """That of a sequence without any alignment, whose loss is 0."""
        return np.zeros_like(gradient)

    def may_skip(self, states: np.ndarray) -> np.ndarray:
        """Whether the state two before a state may come directly before it."""
        skips = np.zeros(len(states), bool)
        skips[3::2] = states[3::2] != states[1:-2:2]
        return skips

    def of_sequence(self, sequence: Sequence, blank: int) -> tuple[Any, np.ndarray]:
        """Its loss, and e^lp − γ."""
        states = np.full(2 * len(sequence.labels) + 1, blank)
        states[1::2] = sequence.labels
        log_p, skips = sequence.log_p[: sequence.frames], self.may_skip(states)
        gradient = np.exp(sequence.log_p)
        if not len(log_p):
            return sequence.log_p.dtype.type(0 if len(states) == 1 else np.inf), gradient
        forwards = self.totals(log_p[:, states], skips)
        back = np.append(skips[2:], [False, False])[::-1][: len(states)]
        backwards = self.totals(log_p[::-1][:, states[::-1]], back)[::-1, ::-1]
        total = np.logaddexp.reduce(forwards[-1, -2:])
        # Both have the frame's own; a class that is impossible is in no alignment.
        own = np.where(np.isneginf(log_p), 0, log_p)[:, states]
        shares = np.exp(forwards + backwards - own - total)
        for s, label in enumerate(states):
            gradient[: len(log_p), label] -= shares[:, s]
        return -total, gradient if np.isfinite(total) else np.full_like(gradient, np.nan)

    def totals(self, log_p: np.ndarray, skips: np.ndarray) -> np.ndarray:
        """Logarithms of what begins in one of the first two states, up to and with each frame and state."""
        rows = np.full(log_p.shape, -np.inf, log_p.dtype)
        rows[0, :2] = log_p[0, :2]
        for t in range(1, len(log_p)):
            last = rows[t - 1]
            near, far = np.full_like(last, -np.inf), np.full_like(last, -np.inf)
            near[1:], far[2:] = last[:-1], last[:-2]
            far[~skips] = -np.inf
            rows[t] = log_p[t] + np.logaddexp(np.logaddexp(last, near), far)
        return rows

    def sequences(self, inputs: dict[str, Any], parameters: dict[str, Any], blank: int) -> list[Sequence]:
        """What a batch holds."""
        if self.function == "ctc":
            values = self.widened(inputs["log_probs"])
            values = values if values.ndim == 3 else values[:, None]
            frames, lengths = (np.reshape(inputs[f"{name}_lengths"], -1) for name in ("input", "target"))
            targets, ends = inputs["targets"], np.cumsum(lengths)
            rows = targets if targets.ndim == 2 else [targets[e - n : e] for e, n in zip(ends, lengths, strict=True)]
            labels = [row[:n] for row, n in zip(rows, lengths, strict=True)]
            return [Sequence(values[:, n], *own) for n, own in enumerate(zip(labels, frames, strict=True))]
        values, ignored = self.widened(inputs["logits"]), parameters.get("ignore_index", -100)
        shifted = values - values.max(axis=-1, keepdims=True)
        log_p = shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
        labels = [row[(row != ignored) & (row != blank)] for row in inputs["labels"]]
        return [Sequence(*own) for own in zip(log_p, labels, inputs["logit_lengths"], strict=True)]

    def loss_shape(self, inputs: dict[str, Any], reduction: str) -> tuple[int, ...]:
        """That of the loss."""
        if reduction != "none":
            return ()
        return (len(inputs["logits"]),) if self.function != "ctc" else inputs["log_probs"].shape[1:-1]

    def gradients(self, inputs: dict[str, Any], gradient: np.ndarray) -> dict[str, np.ndarray]:
        """In the shape and type of their input; in front of a softmax e^lp − γ is that of the logits as well."""
        name = "log_probs" if self.function == "ctc" else "logits"
        like = inputs[name]
        moved = gradient.transpose(1, 0, 2).reshape(like.shape) if self.function == "ctc" else gradient
        return {name: moved.astype(like.dtype)}
