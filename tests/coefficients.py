"""Derive the constants of refloss/numerics/exponential.py and of numerics/accurate.py from their definitions.

python -m tests.coefficients

prints each constant with its value here, says where a module has another one, and prints how closely each polynomial
fits. Nothing is fitted by trial: a polynomial with N coefficients is the one that equals its function at the N
Chebyshev nodes of an interval,

    (low + high)/2 + (high − low)/2·cos(π·(k − 1/2)/N),    k = 1 ... N,

unweighted, computed with DIGITS digits (mpmath.chebyfit); each coefficient is then rounded to float64 on its own. For
the polynomials 25 digits are enough; what ln 2 leaves of its first two float64 takes more than 50.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import mpmath
import numpy as np

from refloss.numerics import accurate, exponential, triples

DIGITS = 80
# Of the Taylor series below: what is left is less than (1/9)^80, or 10^-76, of the sum.
TERMS = 80


class Fit(NamedTuple):
    """A polynomial in x: what it stands for, and where."""

    names: tuple[str, ...]  # of the coefficients, constant term first
    taylor: Callable[[int], Any]  # the coefficient of x^k in the function
    interval: Callable[[], tuple[Any, Any]]
    serves: Callable[[Any], Any]  # what an error of 1 in the polynomial at x is, relative to the result it is used for

    def true(self, x: Any) -> Any:
        """The function."""
        return value_at([self.taylor(k) for k in range(TERMS)], x)

    def coefficients(self) -> list[Any]:
        """The polynomial's coefficients, constant term first."""
        with mpmath.workdps(DIGITS), warnings.catch_warnings():
            # mpmath 1.4 wants to be told of the order of powers that 1.3 knows no other of.
            warnings.simplefilter("ignore", DeprecationWarning)
            fitted: list[Any] = mpmath.chebyfit(self.true, list(self.interval()), len(self.names))
            return fitted[::-1]

    def largest_error(self, coefficients: list[float], points: int = 401) -> float:
        """The largest relative error of the result with float64 coefficients, over points of the interval."""
        with mpmath.workdps(DIGITS):
            low, high = self.interval()
            exact = [mpmath.mpf(coefficient) for coefficient in coefficients]
            at = [low + (high - low) * k / (points - 1) for k in range(points)]
            return float(max(abs(self.serves(x) * (value_at(exact, x) - self.true(x))) for x in at))


def value_at(coefficients: Sequence[Any], x: Any) -> Any:
    """A polynomial, given from its constant term on."""
    return mpmath.fsum(coefficient * x**k for k, coefficient in enumerate(coefficients))


def _reduced_arguments() -> tuple[Any, Any]:
    # n is the integer nearest to x·LOG2_E, not to x/ln 2, so r goes a little beyond ln(2)/2.
    reach = mpmath.log(2) / 2 * (1 + mpmath.mpf(2) ** -20)
    return -reach, reach


def _quotients_squared() -> tuple[Any, Any]:
    # s = (f − 1)/(f + 1) is ±(3 − 2√2) at f = √½ and √2; √½ and s are rounded.
    return mpmath.mpf(0), (3 - 2 * mpmath.sqrt(2)) ** 2 * mpmath.mpf("1.0001")


EXPONENTIAL = Fit(
    # P(r) = (e^r − 1 − r)/r²
    tuple(f"E{k}" for k in range(2, 13)),
    lambda k: 1 / mpmath.factorial(k + 2),
    _reduced_arguments,
    lambda r: r * r / mpmath.exp(r),
)
ARTANH = Fit(
    # L(x) = (2·artanh(s)/s − 2)/x, x = s²
    tuple(f"L{k}" for k in range(3, 18, 2)),
    lambda k: mpmath.mpf(2) / (2 * k + 3),
    _quotients_squared,
    lambda x: x / (2 + 2 * x / 3),
)
UNIT = Fit(
    # U(x) = (2·artanh(z/2)/z − 1)/x, x = z²; z = 2u/(2 + u) is 2/3 at u = 1.
    tuple(f"U{k}" for k in range(11)),
    lambda k: 1 / (mpmath.mpf(4) ** (k + 1) * (2 * k + 3)),
    lambda: (mpmath.mpf(0), mpmath.mpf(4) / 9),
    lambda x: x / (1 + x / 12),
)
FITS = (EXPONENTIAL, ARTANH, UNIT)


def _in_parts(number: Any, parts: int) -> list[float]:
    """A number as a sum of float64, each the nearest to what the ones before it leave."""
    found: list[float] = []
    for _ in range(parts):
        found.append(float(number))
        number -= found[-1]
    return found


def _truncated(number: Any, bits: int) -> float:
    """A number in [1/2, 1) without what comes after its first bits."""
    return math.ldexp(int(mpmath.floor(mpmath.ldexp(number, bits))), -bits)


def exponential_constants() -> dict[str, float | int]:
    """Every constant of refloss/numerics/exponential.py."""
    with mpmath.workdps(DIGITS):
        ln2 = mpmath.log(2)
        high, low = _in_parts(ln2, 2)
        short = _truncated(ln2, 32)
        rest, rest_low = _in_parts(ln2 - short, 2)
        logarithms = {
            "LOG2_E": float(1 / ln2),
            "LN2_HIGH": high,
            "LN2_LOW": low,
            "LN2_SHORT": short,
            "LN2_REST": rest,
            "LN2_REST_LOW": rest_low,
            "TWO_THIRDS": _in_parts(mpmath.mpf(2) / 3, 2)[0],
            "TWO_THIRDS_LOW": _in_parts(mpmath.mpf(2) / 3, 2)[1],
            "SQRT_HALF_BITS": int(np.float64(mpmath.sqrt(0.5)).view(np.int64)),
        }
    fitted = [dict(zip(fit.names, map(float, fit.coefficients()), strict=True)) for fit in FITS]
    return logarithms | {name: value for found in fitted for name, value in found.items()}


def accurate_constants() -> list[tuple[ModuleType, str, Any]]:
    """The constants of numerics/accurate.py and numerics/triples.py that stand for a real number."""
    with mpmath.workdps(DIGITS):
        logarithm = _in_parts(mpmath.log(2), 4)
        pairs = [_in_parts(1 / mpmath.factorial(k), 2) for k in range(len(accurate.INVERSE_FACTORIALS))]
        thirds = [_in_parts(1 / mpmath.factorial(k), 3) for k in range(triples.INVERSE_FACTORIALS.shape[1])]
    return [
        (accurate, "LN2_LOWEST", logarithm[2]),
        (accurate, "INVERSE_FACTORIALS", [parts[0] for parts in pairs]),
        (accurate, "INVERSE_FACTORIALS_LOW", [parts[1] for parts in pairs]),
        (triples, "LN2_FOURTH", logarithm[3]),
        (triples, "INVERSE_FACTORIALS", [[parts[k] for parts in thirds] for k in range(3)]),
    ]


def constants() -> list[tuple[ModuleType, str, Any]]:
    """Module, name and value of every constant that is derived here."""
    return [*((exponential, name, value) for name, value in exponential_constants().items()), *accurate_constants()]


def in_module(module: ModuleType, name: str) -> Any:
    """The value that a module has; arrays and tuples as lists."""
    value = getattr(module, name)
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(value) if isinstance(value, tuple) else value


def main() -> int:
    """Print the constants and the errors of the fits; 1 if a module has other constants."""
    differing = 0
    for module, name, value in constants():
        same = in_module(module, name) == value
        differing += not same
        print(f"{name} = {value!r}" + ("" if same else f"    # {module.__name__} has {in_module(module, name)!r}"))
    for fit in FITS:
        error = fit.largest_error([getattr(exponential, name) for name in fit.names])
        print(f"{fit.names[0]} ... {fit.names[-1]}: largest relative error of the result 2^{math.log2(error):.2f}")
    print(f"{differing} differ" if differing else "all as in the modules")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
