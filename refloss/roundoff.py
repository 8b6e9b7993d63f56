"""What a type rounds, and what every bound has in common.

An honest implementation rounds each of its operations to the type that it computes in. A sum is taken in float32 at
least: 16-bit types are for values between operations, as every library has it.

A sum. Each addition rounds what it returns, by v of it at most. A term takes part in as many additions as lie between
it and the result, so the sum is off by at most h·v·Σ|terms|, where h is the most additions that lie above any term:

    in one chain                               h = n
    in chains of b, whose sums are paired      h = b + log2(n/b)
    pairwise                                   h = log2(n)

What one chain is allowed grows with n until nothing can be told from 0, at n = 2^24 in float32; nobody has to add in
such a way. Libraries do not: NumPy has chains of 16 and pairs, torch cascades of chains of some dozen terms a vector
lane, torch.compile on a CPU cascades of chains of 2^12 terms a lane, XLA windows and lanes, a GPU a few terms a thread
and pairs of threads. So by default a sum may have chains of b = 2^12 terms, whatever their order. No probability is in
this: were all roundings to one side, as they are where all terms are alike, it would still hold. Roundings to both
sides leave a chain of n terms off by some √n·v, which is below it up to n = 2^24: whoever adds up the results of
millions of blocks with atomic operations passes too, in most cases.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np

# Roundings of a product or quotient on its way: weight, 1 − ε, ε/K, cotangent, normaliser, a sum of two parts.
STEPS = 8
CERTAINTY = 6.0  # λ of independent roundings
# The longest chain of additions in a sum, by how sums are said to be taken.
Summation = Literal["blocks", "any"]
CHAINS: dict[str, float] = {"blocks": 2.0**12, "any": math.inf}


class Roundoff(NamedTuple):
    """Of a type: unit roundoffs, the size below which numbers may be lost, and how long a chain of additions may be."""

    between: float  # u, of values between operations
    inside: float  # v, of values inside an operation, sums among them
    tiny: float  # what may become 0
    chain: float = CHAINS["blocks"]
    factor: float = 0.0  # of what is multiplied as a matrix, if that is rounded more
    filtered: float = 0.0  # the size below which gradients of a layer's logits may be left out
    parts: int = 1  # of rows, whose gradients of a layer's parameters are added up in these parameters' own type

    @property
    def few(self) -> float:
        """What few roundings come to: those of a value that is a function's, or made of two of them."""
        return max(4 * self.between, STEPS * self.inside)

    def sum(self, terms: float) -> float:
        """How far a sum may be off, relative to that of its terms' magnitudes."""
        additions = min(terms, self.chain) + math.log2(max(terms / self.chain, 1.0))
        return additions * self.inside


_ROUNDOFFS = {
    "float64": Roundoff(2.0**-53, 2.0**-53, 2.0**-1022),
    "float32": Roundoff(2.0**-24, 2.0**-24, 2.0**-126),
    # tf32 rounds the factors of matrix products to eleven bits, and nothing else.
    "tf32": Roundoff(2.0**-24, 2.0**-24, 2.0**-126, factor=2.0**-10),
    # Its numbers become sparse before they end: half of the smallest one is what any of them may be off by.
    "float16": Roundoff(2.0**-11, 2.0**-24, 2.0**-25),
    "bfloat16": Roundoff(2.0**-8, 2.0**-24, 2.0**-126),
}
COMPUTE_DTYPES = tuple(_ROUNDOFFS)


def roundoff(compute_dtype: str, summation: str = "blocks") -> Roundoff:
    """The roundoffs of a type that is computed in, with sums in blocks, or in any order ("any")."""
    if compute_dtype not in _ROUNDOFFS:
        raise ValueError(f"compute_dtype is {compute_dtype!r}; expected one of {', '.join(COMPUTE_DTYPES)}")
    if summation not in CHAINS:
        raise ValueError(f"summation is {summation!r}; expected one of {', '.join(CHAINS)}")
    return _ROUNDOFFS[compute_dtype]._replace(chain=CHAINS[summation])


def independent(errors: np.ndarray) -> float:
    """How far a sum is off whose terms are rounded independently of each other, by so much each.

    By Hoeffding's inequality it is off by more than λ·√Σ e² with a probability of at most 2·e^(−λ²/2), 3·10⁻⁸ for
    λ = 6. Terms that are alike are rounded alike: they count as one.
    """
    each, counts = np.unique(errors, return_counts=True)
    return float(min(errors.sum(), CERTAINTY * np.sqrt(((each * counts) ** 2).sum())))


def real(values: Any) -> np.ndarray:
    """Values in float64, which holds those of every type."""
    return np.asarray(values, np.float64)
