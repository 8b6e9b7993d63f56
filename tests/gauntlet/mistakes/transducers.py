"""Transducers: where kernels that go over a lattice go wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.honest import TRANSDUCERS
from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, has, stepped
from tests.gauntlet.transducers import Transducer

if TYPE_CHECKING:
    from refloss.cases.source import Case


def _reduced(*words: str) -> Any:
    def shows(case: Case) -> bool:
        default = "mean_volume" if case.function == "rnnt" else "mean"
        counts = case.inputs["label_lengths"]
        return case.parameters.get("reduction", default) in words and counts.sum() != counts.size

    return shows


def _over_samples(self: Any, reduction: str, counts: np.ndarray) -> np.ndarray:
    return Transducer.over(self, "mean_batch" if reduction == "mean_volume" else reduction, counts)


def _several_labels(case: Case) -> bool:
    """Whether some label is not the one before it."""
    labels, counts = case.inputs["labels"], case.inputs["label_lengths"]
    known = np.where(np.arange(labels.shape[1]) < counts[:, None], labels, 0)
    return bool(((np.roll(known, 1, axis=1) != known) & (np.arange(labels.shape[1]) < counts[:, None])).any())


TRANSDUCER_MISTAKES = [
    Mistake(
        "the last blank is left out",
        TUTORIALS,
        ("rnnt",),
        stepped(end=lambda self, arc, t, u: arc.value.dtype.type(0)),
        "the last blank is left out",
        lambda case: case.inputs["logits"].shape[-1] > 1,
        "with more classes than the blank",
    ),
    Mistake(
        "upstream of a transducer ignored",
        "pytorch/pytorch#11750",
        TRANSDUCERS,
        stepped(upstream=lambda self, cotangent, like: np.ones((), like.dtype)),
        "upstream gradient ignored",
        lambda case: not np.all(np.equal(case.grad_output, 1)),
        "where the upstream gradient is not 1",
    ),
    Mistake(
        "softmax without the occupancy of its node",
        TUTORIALS,
        TRANSDUCERS,
        stepped(occupancy=lambda self, value: np.where(np.isnan(value), value, 1).astype(value.dtype)),
        "a node's softmax is not multiplied by its occupancy",
        lambda case: bool(case.inputs["label_lengths"].any()),
        "where there are labels",
    ),
    Mistake(
        "labels of a transducer off by one",
        TUTORIALS,
        TRANSDUCERS,
        stepped(label_of=lambda self, lattice: np.append(np.roll(lattice.labels, 1), 0)),
        "labels are off by one",
        _several_labels,
        "where labels differ",
    ),
    Mistake(
        "a mean over samples for one over labels",
        TUTORIALS,
        TRANSDUCERS,
        stepped(over=_over_samples),
        "a mean over the samples instead of the labels",
        _reduced("mean_volume"),
        'with "mean_volume"',
    ),
    Mistake(
        "sigma of the durations as well",
        TUTORIALS,
        ("tdt",),
        stepped(cost=lambda self, lattice, value: value - value.dtype.type(2 * lattice.sigma)),
        "sigma is twice as large",
        has("sigma"),
        "where sigma is given",
    ),
]
