"""One loop over pairs of sequences: a helper of the loss says everything of a pair, on the CPU and on a GPU.

A pair is four numbers: log-probabilities of what was chosen and of what was rejected, and those of a reference. What
the helper is handed are the two differences from the reference, which pairs hold without an error; it computes all
of a pair with pairs, in any case: there are as few of them as sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import load, save_pairs
from refloss.numerics.pairs import add, divide, normalised, pair, scaled

BLOCK = 256
# Rows of a thread: two log-probabilities and two references, then the slopes of both, high and low parts.
_LINES = 8


class Parameters(NamedTuple):
    """What is the same for every pair; what a kind has no use for is left out."""

    kind: int
    beta: float
    smoothing: float = 0.0
    gamma: float = 0.0
    log_most: tuple[float, float] = (0.0, 0.0)  # log(1 − smoothing)
    log_least: tuple[float, float] = (0.0, 0.0)  # log smoothing
    balance: tuple[float, float, float] = (math.inf, 0.0, 0.0)  # gamma + log_most − log_least
    optimum: tuple[float, float] = (1.0, 0.0)  # 1/2β as a quotient: what divides, and a power of two
    desirable: float = 0.0
    undesirable: float = 0.0
    kl: float = 0.0


@dataclass(frozen=True)
class PreferenceLoop(jit.Description):
    """What losses bring: of_pair(chosen, rejected, parameters), of two differences, which are pairs.

    It is the value, and its derivatives for both of them: three pairs.
    """

    of_pair: Callable[..., Any]


class Given(NamedTuple):
    """What becomes of losses and slopes, beside the parameters."""

    parameters: Parameters
    cotangent: np.ndarray  # [B] or [1]
    divisor: float


@jit.scalar
def difference(value, reference):
    """A log-probability less its reference, without error."""
    return add(pair(value), pair(-reference))


@jit.scalar
def coefficient_of(given, index):
    """What a pair's slopes are multiplied by, a pair."""
    cotangent = given.cotangent[index if given.cotangent.size > 1 else 0]
    return divide(pair(cotangent), pair(given.divisor))


@jit.once
def compiled(loop: PreferenceLoop) -> Any:
    """The loop on the CPU."""
    of_pair = loop.of_pair

    def preference_pairs(rows, gradients, wanted, given, losses, first, last):
        """Losses [2, B] of pairs first ... last, as pairs, and the gradients that are wanted."""
        lines = np.empty((_LINES, BLOCK))
        for start in range(first, last, BLOCK):
            part = lines[:, : min(BLOCK, last - start)]
            for k in range(4):
                load(rows[k], start, part[k])
            for i in range(part.shape[1]):
                chosen, rejected = difference(part[0, i], part[2, i]), difference(part[1, i], part[3, i])
                value, for_chosen, for_rejected = of_pair(chosen, rejected, given.parameters)
                losses[0, start + i], losses[1, start + i] = normalised(value)
                coefficient = coefficient_of(given, start + i)
                part[4, i], part[5, i] = scaled(for_chosen, coefficient)
                part[6, i], part[7, i] = scaled(for_rejected, coefficient)
            for k in range(2):
                if wanted[k]:
                    save_pairs(part[4 + 2 * k], part[5 + 2 * k], gradients[k], start)

    return jit.kernel(preference_pairs, loop.name)
