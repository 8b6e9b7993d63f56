"""How losses of tokens [B, T] become one number: what each is divided by, in one place.

Of the tokens that count, n_b of them in sequence b, with N = Σ n_b and B sequences,

    "token-mean"             Σ_bt ℓ_bt/N
    "seq-mean-token-mean"    Σ_b (Σ_t ℓ_bt/n_b)/B
    "seq-mean-token-sum"     Σ_b (Σ_t ℓ_bt)/B
    "sum"                    Σ_bt ℓ_bt
    "none"                   ℓ_bt, and 0 where a token does not count

num_items replaces N, B, or the 1 of "sum". A sequence of which no token counts adds 0; B counts it as one where
sequences are "all" of them, as TRL does, and not where they are "non-empty" ones, as verl does. Nothing over nothing is
NaN, as torch's mean of nothing is. All of it is exact: sums, counts and quotients are rounded once, together.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from refloss import arrays
from refloss.numerics.exact import Exact, exact, exact_sum, product, quotient_pair, ratio, rounded
from refloss.specification import Parameter

if TYPE_CHECKING:
    from refloss.cases.source import Case

AggregationName = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "sum", "none"]
# Which sequences a mean over them counts.
Sequences = Literal["all", "non-empty"]
AGGREGATIONS, SEQUENCES = get_args(AggregationName), get_args(Sequences)
AGGREGATION_PARAMETERS = {
    "aggregation": Parameter(str, AGGREGATIONS, structural=True),
    "num_items": Parameter(float, (7.0, 40.0, 12.5)),
    "sequences": Parameter(str, SEQUENCES),
}


def divisor(case: Case) -> float | None:
    """What the loss of a case, as one number, is divided by, beside the lengths of sequences; None for sums."""
    name, items = case.parameters.get("aggregation", AGGREGATIONS[0]), case.parameters.get("num_items")
    if items is not None:
        return float(items)
    if name in ("sum", "none"):
        return None
    first = next(iter(case.inputs.values()))
    counts = np.asarray(case.inputs.get("mask", np.ones(first.shape)), bool)
    if name == "token-mean":
        return float(np.count_nonzero(counts))
    is_all = case.parameters.get("sequences", SEQUENCES[0]) == SEQUENCES[0]
    return float(len(counts) if is_all else np.count_nonzero(counts.any(axis=1)))


class Aggregation(NamedTuple):
    """How the losses of tokens become one number."""

    name: str
    counts: np.ndarray  # [B, T] bool
    denominator: Exact  # of all, beside a sequence's own length

    @property
    def lengths(self) -> np.ndarray:
        """How many tokens of each sequence count."""
        return np.asarray(np.count_nonzero(self.counts, axis=1))

    @property
    def by_length(self) -> bool:
        """Whether the sum over a sequence is divided by its length."""
        return self.name == "seq-mean-token-mean"

    def coefficients(self, cotangent: Exact) -> np.ndarray:
        """What slopes of each sequence's tokens are multiplied by, pairs [2, B]; 0 where none counts."""
        found = np.zeros((2, len(self.counts)))
        if not self.by_length:
            found[:] = np.reshape(quotient_pair(cotangent, self.denominator), (2, 1))
            return found
        lengths = self.lengths
        for length in np.unique(lengths[lengths > 0]).tolist():
            value = quotient_pair(cotangent, product(self.denominator, Fraction(length)))
            found[:, lengths == length] = np.reshape(value, (2, 1))
        return found

    def total(self, values: np.ndarray) -> np.float64:
        """The losses [2, B, T], pairs, as one number."""
        if not self.by_length:
            return np.float64(rounded(ratio(exact_sum(values), self.denominator)))
        lengths, total = self.lengths, Fraction(0)
        special = 0.0
        for length in np.unique(lengths[lengths > 0]).tolist():
            part = ratio(exact_sum(values[:, lengths == length]), Fraction(length))
            if isinstance(part, Fraction):
                total += part
            else:
                special += part
        return np.float64(rounded(ratio(special or total, self.denominator)))


def aggregation_of(name: Any, num_items: Any, sequences: Any, counts: np.ndarray) -> Aggregation:
    """Of tokens of which some count, checked."""
    arrays.choice(name, "aggregation", AGGREGATIONS)
    arrays.choice(sequences, "sequences", SEQUENCES)
    if num_items is not None and name == "none":
        raise ValueError("num_items is given; expected None, as aggregation 'none' divides by nothing")
    if num_items is not None:
        return Aggregation(name, counts, exact(arrays.number(num_items, "num_items", finite=True, low=0.0)))
    if name in ("sum", "none"):
        return Aggregation(name, counts, Fraction(1))
    if name == "token-mean":
        return Aggregation(name, counts, Fraction(int(np.count_nonzero(counts))))
    rows = len(counts) if sequences == "all" else int(np.count_nonzero(counts.any(axis=1)))
    return Aggregation(name, counts, Fraction(rows))
