"""Mistakes of logit chains and z-losses: what real kernels forget of a derivative, put elsewhere, or divide by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.testing.mistakes import chain_steps
from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, ignored, stepped

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.cases.source import Case
    from tests.gauntlet.rows import Rows

CHAINED = ("cross_entropy", "causal_lm", "masked_lm", "linear_cross_entropy")


def given(name: str, plain: float | None) -> Callable[[Case], bool]:
    """Whether an option is there and does something."""
    return lambda case: case.parameters.get(name, plain) != plain


def no_slope_of_cap(self: Any, rows: Rows, x: np.ndarray) -> Any:
    return x.dtype.type(1)


def cap_after_temperature(self: Any, rows: Rows, x: np.ndarray) -> np.ndarray:
    """c·tanh(x·s/τ/c), with the derivative of that."""
    return np.asarray(x * x.dtype.type(rows.scale) / x.dtype.type(rows.temperature))


def as_it_is(self: Any, rows: Rows, x: np.ndarray) -> np.ndarray:
    """The chain where the temperature has been applied already."""
    x = self.scaled(rows, x)
    return x if rows.cap is None else np.asarray(x.dtype.type(rows.cap) * self.tanh(rows, x))


def no_temperature(self: Any, rows: Rows, x: np.ndarray) -> Any:
    return x.dtype.type(1)


def no_slope_of_square(self: Any, rows: Rows, lse: np.ndarray) -> np.ndarray:
    return np.zeros_like(lse)


def half_slope_of_square(self: Any, rows: Rows, lse: np.ndarray) -> np.ndarray:
    return np.asarray(lse.dtype.type(rows.z_loss) * lse)


def weighted(self: Any, rows: Rows, lse: np.ndarray) -> np.ndarray:
    return np.asarray(lse.dtype.type(rows.z_loss) * lse[:, 0] ** 2 * self.mass(rows, self.masses(rows))[:, 0])


def weighted_slope(self: Any, rows: Rows, lse: np.ndarray) -> np.ndarray:
    return np.asarray(lse.dtype.type(2 * rows.z_loss) * lse * self.mass(rows, self.masses(rows)))


def slope_beside_temperature(case: Case) -> bool:
    return given("softcap", None)(case) and given("temperature", 1.0)(case)


CHAIN_MISTAKES: list[Mistake] = [
    Mistake(
        "softcap without its derivative",
        "linkedin/Liger-Kernel#423",
        CHAINED,
        stepped(of_cap=no_slope_of_cap),
        chain_steps.NO_SLOPE_OF_CAP,
        given("softcap", None),
        "where logits are capped",
    ),
    Mistake(
        "softcap after the temperature",
        TUTORIALS,
        CHAINED,
        stepped(scaled=cap_after_temperature, chain=as_it_is),
        chain_steps.CAP_LAST,
        slope_beside_temperature,
        "where capped logits have a temperature",
    ),
    Mistake(
        "temperature not in the gradient",
        TUTORIALS,
        CHAINED,
        stepped(of_temperature=no_temperature),
        chain_steps.NO_TEMPERATURE,
        given("temperature", 1.0),
        "where logits have a temperature",
    ),
    Mistake(
        "z-loss without gradient",
        TUTORIALS,
        CHAINED,
        stepped(squared_slope=no_slope_of_square),
        chain_steps.NO_SLOPE,
        given("z_loss", 0.0),
        "where there is a z-loss",
    ),
    Mistake(
        "half the gradient of z-loss",
        TUTORIALS,
        CHAINED,
        stepped(squared_slope=half_slope_of_square),
        chain_steps.HALF_SLOPE,
        given("z_loss", 0.0),
        "where there is a z-loss",
    ),
    Mistake(
        "z-loss weighted by class",
        TUTORIALS,
        ("cross_entropy",),
        stepped(squared=weighted, squared_slope=weighted_slope),
        chain_steps.WEIGHTED,
        lambda case: given("z_loss", 0.0)(case) and "weight" in case.inputs,
        "where classes have weights beside a z-loss",
    ),
    ignored("softcap", "linkedin/Liger-Kernel#418", CHAINED),
    ignored("temperature", "radixark/miles#68", CHAINED),
    ignored("z_loss", TUTORIALS, CHAINED),
]
