"""What losses make of rows of a linear layer's logits: first of whole rows, then of some classes of all rows."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from refloss import parallel
from refloss.kernels.linear import log_prob_loop, loop
from refloss.kernels.linear.log_prob_loop import KEPT, OTHER_LINES
from refloss.kernels.linear.loop import ALL_LINES
from refloss.kernels.log_probs.loop import Given
from refloss.kernels.log_probs.run import for_kernels, new_results
from refloss.kernels.logits.loop import Output
from refloss.kernels.logits.row import WIDTH
from refloss.kernels.logits.run import ChainAnswer, ChainTask, answer_of, chain_terms
from refloss.kernels.rows import AnyRows, any_rows_of
from refloss.kernels.softmax.run import prepared
from refloss.numerics.memory import as_writable

# Elements that a thread takes at a time, of some classes of rows.
_BLOCK_ELEMENTS = 4096
_NO_LABELS = np.zeros(0, np.int64)
_NO_ROWS = np.zeros((1, 1))


class RowLoss(Protocol):
    """A loss of rows, which keeps what is to be known of each row once it has been seen as a whole."""

    @property
    def wants_gradient(self) -> bool:
        """Whether it has gradients to compute of its own."""

    @property
    def places(self) -> int:
        """In how many parts, one after the other, a row's logits have a softmax each."""

    def ignored(self, place: int | None = None) -> np.ndarray | None:
        """Which rows do not count, at a place or at any, bool [N]; None where all do."""

    def whole_rows(self, start: int, high: np.ndarray, low: np.ndarray, *, wanted: bool) -> None:
        """Rows from start on, of logits that are pairs; their gradients, if they are wanted, take their place."""

    def some_classes(self, class_: int, high: np.ndarray, low: np.ndarray) -> None:
        """Gradients of all rows in place of logits, from one on; all are of one place."""


class CrossEntropyRows:
    """A cross-entropy of logits that go through a chain.

    given has all but the logits, whose shape [N·places, V] it knows: an array of no memory stands in for them.
    """

    def __init__(self, given: ChainTask, places: int = 1) -> None:
        self.given, self.places, (count, self.classes) = given, places, given.task.logits.shape
        task, self.terms, self.normaliser, self.exponent = prepared(given.task, count)
        self.chained = chain_terms(given, self.exponent)
        self.labels = as_writable(task.target) if task.has_labels else _NO_LABELS
        self.statistics = np.empty((count, WIDTH))
        self.output = Output(*(np.empty(count) for _ in Output._fields))

    @property
    def wants_gradient(self) -> bool:
        """That of probabilities."""
        return self.given.task.target_gradient is not None

    def ignored(self, place: int | None = None) -> np.ndarray | None:
        """Rows with the label that does not count."""
        if not self.labels.size:
            return None
        ignored = np.equal(self.labels, self.terms.ignore_index).reshape(-1, self.places)
        return np.all(ignored, axis=1) if place is None else ignored[:, place]

    def answer(self) -> ChainAnswer:
        """When all rows have been."""
        return answer_of(self.given, self.output, self.normaliser, self.exponent)

    def _targets(self, gradient: bool) -> tuple[AnyRows, AnyRows]:
        target, of_target = self.given.task.target, self.given.task.target_gradient
        rows = any_rows_of(_NO_ROWS if self.given.task.has_labels else target, 1)
        return rows, (rows if of_target is None or not gradient else any_rows_of(of_target, 1))

    def whole_rows(self, start: int, high: np.ndarray, low: np.ndarray, *, wanted: bool) -> None:
        """Their losses."""
        known = self._targets(gradient=True), self.labels, self.terms, self.chained, self.output, self.statistics
        gradients = wanted, self.wants_gradient
        high, low = (part.reshape(len(part) * self.places, self.classes) for part in (high, low))
        parallel.run_blocks(
            lambda first, last, memory: loop.whole_rows(
                high, low, start * self.places, *known, memory, first, last, gradients
            ),
            len(high),
            1,
            lambda: np.empty((ALL_LINES, self.classes)),
        )

    def some_classes(self, class_: int, high: np.ndarray, low: np.ndarray) -> None:
        """Their gradients."""
        place, class_ = divmod(class_, self.classes)
        known = self._targets(gradient=False)[0], self.labels, self.terms, self.chained, self.statistics
        parallel.run_blocks(
            lambda first, last, _: loop.some_classes(high, low, class_, *known, self.places, place, first, last),
            len(high),
            max(1, _BLOCK_ELEMENTS // high.shape[1]),
            lambda: None,
        )


class LogProbRows:
    """Log-probabilities of classes that rows name, and their entropy.

    Attributes:
        results: log-probabilities [N, K] and entropies [N], when all rows have been.
    """

    wants_gradient, places = False, 1

    def __init__(self, given: Given) -> None:
        self.given, self.results = for_kernels(given), new_results(given)
        self.kept = np.empty((len(given.counts), KEPT))

    def ignored(self, place: int | None = None) -> np.ndarray | None:  # noqa: ARG002
        """Rows that a mask leaves out."""
        return ~self.given.counts

    def whole_rows(self, start: int, high: np.ndarray, low: np.ndarray, *, wanted: bool) -> None:
        """Their log-probabilities and entropies."""
        parallel.run_blocks(
            lambda first, last, memory: log_prob_loop.log_probs_of_rows(
                high, low, start, self.given, self.results, self.kept, memory, first, last, wanted
            ),
            len(high),
            1,
            lambda: np.empty((OTHER_LINES, high.shape[1])),
        )

    def some_classes(self, class_: int, high: np.ndarray, low: np.ndarray) -> None:
        """Their gradients."""
        parallel.run_blocks(
            lambda first, last, _: log_prob_loop.gradients_of_classes(
                high, low, class_, self.given, self.kept, first, last
            ),
            len(high),
            max(1, _BLOCK_ELEMENTS // high.shape[1]),
            lambda: None,
        )
