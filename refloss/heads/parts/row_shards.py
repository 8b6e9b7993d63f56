"""Next-token cross-entropy whose rows lie on several ranks: by sequences, as in data parallelism, or by positions.

With the targets of rank r's positions, which for the last one may be the next rank's first token, and S_r the sum of
−log p over those that count, n_r of them,

    L = Σ_r S_r / n,    n = Σ_r n_r          two all-reduces of a number
    ∂L/∂x = (p − onehot)/n                   on the rank that has the row

A sum over ranks needs nothing else: each rank's loss is S_r/n, and gradients of parameters are added. Reducers that
take the mean of W ranks' gradients, as DDP and FSDP do, divide by W: there each rank's loss is W·S_r/n. Sums of rows
are exact, so the ranks' S_r give the loss of all rows in one place, to the bit, in whichever order they are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from refloss import arrays
from refloss.heads.causal_lm import causal_lm
from refloss.numerics.exact import Exact, exact, exact_sum, quotient, ratio
from refloss.numerics.shares import added
from refloss.typing import ArrayLike, Backend, DTypeLike, Scalar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Axis = Literal["batch", "sequence"]
AXES = get_args(Axis)


@dataclass(frozen=True, eq=False)
class Rank:
    """What one rank computes.

    Attributes:
        targets: what its positions predict, ignore_index where nothing: the next rank's first token among them.
        total: the sum of −log p over its positions that count, exact; a float where it is not finite.
        count: how many of them count.
        local_loss: its own mean, NaN where nothing counts; not part of the loss of all.
        loss: its part of the loss, its sum over the count of all ranks.
        grad: the gradient of its part for its logits: right where reducers add.
        grad_for_mean: the same times the number of ranks: right where reducers take the mean.
    """

    targets: np.ndarray
    total: Exact
    count: int
    local_loss: np.float64
    loss: np.float64
    grad: np.ndarray | None = None
    grad_for_mean: np.ndarray | None = None


class Mistaken(NamedTuple):
    """A loss and the ranks' gradients, after their reduction, that come of a mistake."""

    loss: np.float64
    grads: list[np.ndarray]


@dataclass(frozen=True, eq=False)
class Ranks:
    """The loss of all ranks, and what each of them computes.

    Attributes:
        loss: that of all rows in one place, to the bit.
        count: what divides the sum.
        ranks: in their order.
        mistakes: by words for a usual mistake a function that computes what comes of it.
    """

    loss: np.float64
    count: float
    ranks: tuple[Rank, ...]
    mistakes: Mapping[str, Callable[[], Mistaken]] = field(repr=False)


def shards(
    logits: Sequence[ArrayLike],
    labels: Sequence[ArrayLike],
    *,
    axis: Axis = "batch",
    num_items_in_batch: Scalar | None = None,
    ignore_index: int = -100,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    grad_output: Scalar = 1.0,
    grad: bool = True,
    grad_dtype: DTypeLike | None = None,
    backend: Backend = "auto",
) -> Ranks:
    """What each rank computes of refloss.causal_lm, with rows on several ranks, and what their sums come to.

    L = Σ_r S_r/n with S_r = Σ −log p over the positions of rank r that count and n their number on all ranks. Gradient
    on rank r: (grad_output/n)·(softmax(x) − onehot(y)). Held constant: n.

    Args:
        logits: a list of [B_r, S, V] (axis "batch"), or of [B, S_r, V] (axis "sequence", context parallelism), one for
            each rank, in the order of positions; of one float dtype.
        labels: a list of [B_r, S] or [B, S_r] tokens, not shifted: the shift crosses from rank to rank.
        axis: along which rows are cut, "batch" or "sequence".
        num_items_in_batch: what divides instead of n, as over several micro-batches.
        ignore_index, logit_scale, softcap, temperature: as in refloss.causal_lm.
        grad_output: the upstream gradient of the loss, a number; times the number of ranks it is rounded to float64.
        grad, grad_dtype, backend: as in refloss.causal_lm.

    Returns:
        loss, to the bits of refloss.causal_lm of all rows; count; ranks, each with targets, total, count, local_loss,
        loss, grad and grad_for_mean; mistakes: what comes of usual ones.

    Raises:
        ValueError: shapes, labels or an option that do not fit. TypeError: a dtype that does not.
    """
    arrays.choice(axis, "axis", AXES)
    rows, along = _cut(logits, labels, axis)
    chain = {"logit_scale": logit_scale, "softcap": softcap, "temperature": temperature}
    options: dict[str, Any] = chain | {"ignore_index": ignore_index, "grad_dtype": grad_dtype, "backend": backend}
    given = arrays.number(grad_output, "grad_output")
    of_all = {"num_items_in_batch": num_items_in_batch, "grad": bool(grad), **options}
    whole, tokens = _joined([row[0] for row in rows], along), _joined([row[1] for row in rows], along)
    result = causal_lm(whole, tokens, grad_output=given, **of_all)
    scaled = causal_lm(whole, tokens, grad_output=given * len(rows), **of_all) if grad else None
    ends = np.cumsum([row[1].shape[along] for row in rows])[:-1]

    def split(values: np.ndarray | None) -> list[Any]:
        return [None] * len(rows) if values is None else np.split(values, ends, along)

    targets = split(result.intermediates["shift_labels"])
    totals = [exact_sum(part) for part in split(result.intermediates["nll"])]
    counts = [int(np.count_nonzero(part != ignore_index)) for part in targets]
    items = num_items_in_batch
    count = float(sum(counts)) if items is None else arrays.number(items, "num_items_in_batch")
    of_logits = split(result.grads.get("logits")), split(None if scaled is None else scaled.grads["logits"])
    ranks = [
        Rank(part, total, own, quotient(total, exact(float(own))), quotient(total, exact(count)), *grads)
        for part, total, own, *grads in zip(targets, totals, counts, *of_logits, strict=True)
    ]
    loss = quotient(reduce(added, totals), exact(count))
    view = _View(rows, ranks, count, options | {"grad_output": given}, along)
    return Ranks(loss, count, tuple(ranks), _mistakes(view, is_cut=axis == "sequence"))


def _cut(logits: Sequence[Any], labels: Sequence[Any], axis: str) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """The rows of each rank, and the axis along which they are cut."""
    for name, value in (("logits", logits), ("labels", labels)):
        if not isinstance(value, list | tuple) or not value:
            raise TypeError(f"{name} is a {type(value).__name__}; expected a list with those of each rank")
    if len(logits) != len(labels):
        raise ValueError(f"labels has {len(labels)} parts and logits {len(logits)}; expected one for each rank")
    along = AXES.index(axis)
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for rank, (x, y) in enumerate(zip(logits, labels, strict=True)):
        x, y = arrays.float_array(x, f"logits[{rank}]"), arrays.integer_array(y, f"labels[{rank}]")  # noqa: PLW2901
        if x.ndim != 3:
            raise ValueError(f"logits[{rank}] has shape {x.shape}; expected [B, S, V]")
        arrays.check_shape(y, x.shape[:-1], f"labels[{rank}]", "a token for each row of logits")
        first = rows[0][0] if rows else x
        if np.delete(x.shape, along).tolist() != np.delete(first.shape, along).tolist():
            raise ValueError(
                f"logits[{rank}] has shape {x.shape}; expected that of logits[0] but for the {axis}'s axis"
            )
        if x.dtype != first.dtype:
            raise TypeError(f"logits[{rank}] has dtype {x.dtype}; expected {first.dtype}, that of logits[0]")
        rows.append((x, y))
    return rows, along


def _joined(parts: list[np.ndarray], along: int) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, along)


class _View(NamedTuple):
    """What mistakes are made with."""

    rows: list[tuple[np.ndarray, np.ndarray]]
    ranks: list[Rank]
    divisor: float
    options: dict[str, Any]
    along: int

    def of(self, divisors: Sequence[float], targets: Sequence[np.ndarray] | None = None) -> Mistaken:
        """Each rank's sum over a number of its own, added up; and gradients of that."""
        targets = [rank.targets for rank in self.ranks] if targets is None else targets
        shares: list[Exact] = []
        grads: list[np.ndarray] = []
        for (x, tokens), target, divisor in zip(self.rows, targets, divisors, strict=True):
            items = divisor or 1.0  # of no row that counts, gradients are 0
            result = causal_lm(x, tokens, shift_labels=target, num_items_in_batch=items, **self.options)
            shares.append(ratio(exact_sum(result.intermediates["nll"]), exact(divisor)))
            grads.append(result.grads["logits"])
        return Mistaken(quotient(reduce(added, shares), Fraction(1)), grads)

    def shifted_within(self) -> Mistaken:
        """The last position of each rank predicts nothing, and does not count."""
        ignored = self.options["ignore_index"]
        targets = [rank.targets.copy() for rank in self.ranks]
        for target in targets:
            target[:, -1:] = ignored
        count = float(sum(np.count_nonzero(target != ignored) for target in targets))
        return self.of([count] * len(targets), targets)


def _mistakes(view: _View, *, is_cut: bool) -> dict[str, Callable[[], Mistaken]]:
    """By words for them."""
    world, counts = len(view.ranks), [float(rank.count) for rank in view.ranks]
    found = {
        "a mean of the means of ranks": lambda: view.of([world * count for count in counts]),
        "the means of ranks are added": lambda: view.of(counts),
        "the mean of a reducer is not undone": lambda: view.of([world * view.divisor] * world),
        "a reducer that adds is taken for one that takes the mean": lambda: view.of([view.divisor / world] * world),
    }
    return found | ({"labels are shifted within each rank": view.shifted_within} if is_cut else {})
