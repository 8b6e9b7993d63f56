"""Rows of classes at which softmax kernels break: improbable labels, rows far apart, and more classes than a block."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss.cases.source import Source

if TYPE_CHECKING:
    from collections.abc import Iterator


class Rows(NamedTuple):
    """Logits [rows, classes] in float64, and a label for each row."""

    logits: np.ndarray
    labels: np.ndarray

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.logits.shape[1])


# Values of ignore_index that are others in 32 bits: 0, which is a class, and −100.
WRAPS_TO_A_CLASS, WRAPS_TO_THE_DEFAULT = 2**40, -100 - 2**32


def improbable() -> Rows:
    """Labels whose probabilities are no float32."""
    return Rows(np.array([[0.0, -120.0, -3.0], [0.0, 1.0, -130.0]]), np.array([1, 2]))


def apart() -> Rows:
    """Rows whose maxima are up to 1920 apart, some of improbable labels, with a class of −inf.

    All are multiples of 4: even where bfloat16 has no finer ones, rows keep classes beside the first. In float64, too,
    e^960 is infinite and e^−960 is 0.
    """
    steps = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 3, 2, 1]] * 6)
    rows = -4.0 * np.array([np.roll(row, k) for k, row in enumerate(steps)])
    rows += np.array([[-960.0], [0.0], [960.0], [-448.0], [448.0], [-64.0]])
    labels = np.array([2, 5, 9, 3, 7, 1])
    # Beyond where distances are clamped, at 50 and 80, and where e^−x is no float32 any more, at 104.
    rows[[1, 3, 4], labels[[1, 3, 4]]] -= [48.0, 104.0, 72.0]
    rows[:, 10] = -np.inf
    return Rows(rows, labels)


# How many classes there are in which format: none to choose from, two, more than a block of 1024 or 4096, no multiple
# of 8, and more than an index of 16 bits tells apart.
_MANY = (
    (1, "float32"),
    (2, "float16"),
    (1025, "bfloat16"),
    (4097, "float16"),
    (4097, "float64"),
    (50257, "float32"),
    (128256, "bfloat16"),
)


def one_of_many(seed: int) -> Iterator[tuple[str, Rows]]:
    """The same of many, one row where there are more classes than blocks have; for cases of several such arrays."""
    for name, rows in many(seed):
        count = 1 if rows.classes > 5000 else len(rows.logits)
        yield name, Rows(rows.logits[:count], rows.labels[:count])


def many(seed: int) -> Iterator[tuple[str, Rows]]:
    """Two or three rows of so many classes, and their format.

    The largest logits rise from block to block, or fall, or are alike; where they rise, the last of all is the largest,
    so that a tail shows. Labels are the last class, one that an index of 16 bits takes for another, and any. All are
    far below 0, which is what padding has.
    """
    for count, name in _MANY:
        source = Source(seed + count)
        ramp = np.arange(count) / count
        rising = 16.0 * np.stack([ramp, 1.0 - ramp, np.zeros(count)])[: 2 if count > 65536 else 3]
        rows = np.round(16.0 * (4.0 * source.uniform(*rising.shape) + rising)) / 16.0 - 24.0
        rows[0, -1] = rows[0].max() + 1.0
        labels = np.array([count - 1, max(count - 3000, 0) % max(count, 1), count // 2])[: len(rows)]
        yield name, Rows(rows, labels)
