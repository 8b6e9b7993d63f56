"""What a model's head does to its logits before their softmax: y = c·tanh(z·s/c)/τ, and ∂y/∂z.

With v = z·s/c and e = e^(−2|v|),

    tanh |v| = (1 − e)/(1 + e),    ∂y/∂z = (s/τ)·(1 − tanh² v) = (s/τ)·4e/(1 + e)²

so that nothing cancels where tanh saturates: its derivative is small there, and known as well as anywhere. For small v,
1 − e is −(e^(−2|v|) − 1), which is computed as such. All is in pairs; relative errors are below 2^-95.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.numerics.accurate import exp_less_one, reduced
from refloss.numerics.exponential import UNDERFLOW, scale
from refloss.numerics.pairs import add, divide, fast_two_sum, multiply, negate, pair

# Above it a cap and what it divides are taken over a power of two, so that s/c and its low part are normal numbers and
# c/τ is finite; and tanh v is v, to pairs, for |v| up to 2^-60.
FAR_CAP = 2.0**900
_SHRUNK = 2.0**-200
_LINEAR = 2.0**-60


class Chain(NamedTuple):
    """Its numbers: finite, but for a cap of +inf, which is none."""

    scale: float
    cap: float
    temperature: float


@jit.scalar
def _tanh(v):
    """tanh v of a pair, and its derivative; ±1 and 0 for ±inf."""
    below = v[0] < 0.0
    size = negate(v) if below else v
    beyond = not 2.0 * size[0] < -UNDERFLOW
    rest, n = reduced(UNDERFLOW if beyond else -2.0 * size[0], 0.0 if beyond else -2.0 * size[1])
    excess = exp_less_one(rest)
    top, low = fast_two_sum(1.0, excess[0])
    top, low = fast_two_sum(top, low + excess[1])
    e = (0.0 if beyond else scale(top, n), 0.0 if beyond else scale(low, n))
    less = add(pair(1.0), negate(e))
    near = n == 0
    less = (-excess[0] if near else less[0], -excess[1] if near else less[1])
    inverse = divide(pair(1.0), add(pair(1.0), e))
    value = multiply(less, inverse)
    slope = multiply(multiply((4.0 * e[0], 4.0 * e[1]), inverse), inverse)
    undefined = v[0] != v[0]
    high, tail = (-value[0] if below else value[0]), (-value[1] if below else value[1])
    return (np.nan if undefined else high, tail), (np.nan if undefined else slope[0], slope[1])


@jit.scalar
def chain_slope(chain):
    """s/τ, the derivative where nothing is capped, a pair."""
    return divide(pair(chain.scale), pair(chain.temperature))


@jit.scalar
def uncapped(z, chain):
    """y of a pair z, without a cap."""
    return multiply(z, chain_slope(chain))


@jit.scalar
def capped(z, chain):
    """y of a pair z and ∂y/∂z, with a cap. Quotients are of the chain's own numbers: loops have them once."""
    value, slope = _tanh(multiply(z, divide(pair(chain.scale), pair(chain.cap))))
    return multiply(value, divide(pair(chain.cap), pair(chain.temperature))), multiply(slope, chain_slope(chain))


@jit.scalar
def capped_far(z, chain):
    """The same with a cap above FAR_CAP."""
    cap = pair(chain.cap * _SHRUNK)
    v = multiply((z[0] * _SHRUNK, z[1] * _SHRUNK), divide(pair(chain.scale), cap))
    if abs(v[0]) < _LINEAR:
        return uncapped(z, chain), chain_slope(chain)
    value, slope = _tanh(v)
    value = multiply(value, divide(cap, pair(chain.temperature)))
    return (value[0] / _SHRUNK, value[1] / _SHRUNK), multiply(slope, chain_slope(chain))


@jit.scalar
def chained(z, chain):
    """y of a pair z and ∂y/∂z, both pairs."""
    if chain.cap > FAR_CAP and chain.cap < np.inf:
        return capped_far(z, chain)
    if chain.cap < np.inf:
        return capped(z, chain)
    return uncapped(z, chain), chain_slope(chain)


@jit.helper
def chain_numbers(x, chain, high, low, slope, slope_low):
    """Logits through the chain, and their derivatives."""
    if chain.cap > FAR_CAP and chain.cap < np.inf:
        for i in range(x.size):
            value, steep = capped_far(pair(x[i]), chain)
            high[i], low[i] = value
            slope[i], slope_low[i] = steep
        return
    if chain.cap < np.inf:
        for i in range(x.size):
            value, steep = capped(pair(x[i]), chain)
            high[i], low[i] = value
            slope[i], slope_low[i] = steep
        return
    steep = chain_slope(chain)
    for i in range(x.size):
        high[i], low[i] = uncapped(pair(x[i]), chain)
        slope[i], slope_low[i] = steep


@jit.helper
def chain_pairs(z, z_low, chain, high, low, slope, slope_low):
    """The same of logits that are pairs, whose place the first two lines may take."""
    if chain.cap < np.inf:
        for i in range(z.size):
            value, steep = chained((z[i], z_low[i]), chain)
            high[i], low[i] = value
            slope[i], slope_low[i] = steep
        return
    steep = chain_slope(chain)
    for i in range(z.size):
        high[i], low[i] = uncapped((z[i], z_low[i]), chain)
        slope[i], slope_low[i] = steep
