"""Flaws that show what a property is for, beside the gauntlet's mistakes: other steps of the honest kernels."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.contrastive import SigmoidContrastive
from tests.gauntlet.elements import L1, BceWithLogits, Mse
from tests.gauntlet.honest import HONEST
from tests.gauntlet.kernels import Kernel
from tests.gauntlet.mistakes.mistake import from_above, stepped, without
from tests.gauntlet.regions import Iou
from tests.gauntlet.routers import MoeLoadBalancing
from tests.gauntlet.rows import CrossEntropy

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.gauntlet.kernels import Answer
    from tests.gauntlet.rows import Rows

runs = itertools.count()


def subtracted_in_place(self: Kernel, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
    answer = HONEST[self.function].answer(self, inputs, parameters, cotangent)
    inputs["logits"] -= inputs["logits"].max()
    return answer


def up_every_other_time(self: Kernel, values: np.ndarray, axis: int | None = None) -> np.ndarray:
    total = Kernel.sum(self, values, axis)
    return np.nextafter(total, np.inf, dtype=total.dtype) if axis is None and next(runs) % 2 else total


def by_rows(factors: Callable[[CrossEntropy, Rows], np.ndarray]) -> Callable[[str], Kernel]:
    """A kernel that multiplies the loss of each row, and its gradient, by a number of its own."""

    def likelihood(self: CrossEntropy, rows: Rows, q: np.ndarray, log_p: np.ndarray) -> np.ndarray:
        return factors(self, rows).astype(q.dtype) * CrossEntropy.likelihood(self, rows, q, log_p)

    def derivative(self: CrossEntropy, rows: Rows, p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return factors(self, rows).astype(q.dtype)[:, None] * CrossEntropy.derivative(self, rows, p, q)

    return stepped(likelihood=likelihood, derivative=derivative)


def first_row_twice(self: CrossEntropy, rows: Rows) -> np.ndarray:
    return np.where(np.arange(len(rows.x)) == 0, 2, 1)


def first_class_twice(self: CrossEntropy, rows: Rows) -> np.ndarray:
    return np.where(self.hard(rows)[:, 0] == 1, 2, 1)


def next_row(self: CrossEntropy, rows: Rows) -> np.ndarray:
    sums = np.where(np.isfinite(rows.x), rows.x, 0).sum(axis=1)
    return 1 + 1e-3 * np.tanh(np.roll(sums, -1))


def last_bit(self: CrossEntropy, rows: Rows) -> np.ndarray:
    is_last = np.arange(len(rows.x)) == max(len(rows.x) - 1, 1)
    return np.where(is_last, np.nextafter(np.float32(1), np.float32(0)), np.float32(1))


def halved_below_zero(self: BceWithLogits, *given: Any) -> Any:
    losses, of_x, of_t = BceWithLogits.element(self, *given)
    return losses, np.where(given[0] < 0, of_x / 2, of_x), of_t


def rounded_targets(self: BceWithLogits, x: np.ndarray, t: np.ndarray, *rest: Any) -> Any:
    return BceWithLogits.element(self, x, np.round(t), *rest)


def square_root(self: L1, x: np.ndarray, t: np.ndarray, *rest: Any) -> Any:
    size = np.sqrt((x - t) ** 2 + x.dtype.type(1e-6))
    return size, (x - t) / size, (t - x) / size


def clamped_arguments(self: L1, x: np.ndarray, t: np.ndarray, *rest: Any) -> Any:
    return np.abs(np.clip(x, -16, 16) - np.clip(t, -16, 16)), *L1.element(self, x, t, *rest)[1:]


def first_pixel_twice(self: Any, values: np.ndarray) -> np.ndarray:
    return self.sum(values, axis=1)[:, None] + values[:, :1]


def without_first_row(self: SigmoidContrastive, x: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(x))[:, None] == 0, 0, SigmoidContrastive.signs(self, x)).astype(x.dtype)


def first_token_twice(self: MoeLoadBalancing, *given: Any) -> np.ndarray:
    hits = MoeLoadBalancing.chosen(self, *given)
    return hits * np.where(np.arange(len(hits))[:, None] == 0, 2, 1).astype(hits.dtype)


def first_expert_twice(self: MoeLoadBalancing, *given: Any) -> np.ndarray:
    hits = MoeLoadBalancing.chosen(self, *given)
    return hits * np.where(np.arange(hits.shape[1]) == 0, 2, 1).astype(hits.dtype)


def longer_by(pixel: float) -> Callable[..., Any]:
    """Lengths that include the last pixel."""

    def side(self: Iou, first: np.ndarray, second: np.ndarray, axis: int) -> Any:
        longer = (each + np.where(np.arange(4) < 2, 0, pixel).astype(each.dtype) for each in (first, second))
        return Iou.side(self, next(longer), next(longer), axis)

    return side


def with_epsilon(self: Iou, x: Any, y: Any) -> np.ndarray:
    common = x.common * y.common
    return 1 - common / (x.length * y.length + x.other * y.other - common + x.length.dtype.type(1e-7))


def first_area_for_union(self: Iou, x: Any, y: Any) -> np.ndarray:
    return np.asarray(1 - x.common * y.common / (x.length * y.length))


def within_one(self: Iou, boxes: np.ndarray, parameters: dict[str, Any]) -> np.ndarray:
    return np.clip(Iou.corners(self, boxes, parameters), 0, 1)


FLAWS: dict[str, dict[str, Callable[[str], Kernel]]] = {
    "cross_entropy": {
        "writes to its input": stepped(answer=subtracted_in_place),
        "differs from run to run": stepped(sum=up_every_other_time),
        "too small by a constant": stepped(likelihood=lambda *given: CrossEntropy.likelihood(*given) - 1),
        "the cotangent's sign": from_above(np.abs),
        "half a label in the gradient": stepped(
            derivative=lambda self, rows, p, q: CrossEntropy.derivative(self, rows, p, q) + q / 2
        ),
        "the first row twice": by_rows(first_row_twice),
        "a row depends on the next one": by_rows(next_row),
        "class 0 counts double": by_rows(first_class_twice),
        "the last bit depends on the batch": by_rows(last_bit),
    },
    "causal_lm": {"shift_labels are not read": functools.partial(without, "shift_labels")},
    "bce_with_logits": {
        "targets are rounded": stepped(element=rounded_targets),
        "negative logits have half the slope": stepped(element=halved_below_zero),
    },
    "sigmoid_contrastive": {"the first row is left out": stepped(signs=without_first_row)},
    "moe_load_balancing": {
        "the first token counts double": stepped(chosen=first_token_twice),
        "the first expert counts double": stepped(chosen=first_expert_twice),
    },
    "bce": {
        "log of p + 1e-7": stepped(
            logarithms=lambda self, p: (np.log(p + p.dtype.type(1e-7)), np.log1p(-p + p.dtype.type(1e-7)))
        ),
    },
    "sigmoid_focal": {
        "0/0 where nothing is missed": stepped(
            slope=lambda self, missed, gamma: missed.dtype.type(gamma) * (missed / missed)
        ),
    },
    "dice": {"the first pixel counts double": stepped(sums=first_pixel_twice)},
    "mse": {
        "negative differences have half the slope": stepped(
            slope=lambda self, difference: np.where(difference < 0, 1, 2) * Mse.slope(self, difference / 2)
        ),
    },
    "l1": {"√(d² + ε)": stepped(element=square_root), "inputs are clamped at 16": stepped(element=clamped_arguments)},
    "iou": {
        "a pixel is added to sizes": stepped(side=longer_by(2**-4)),
        "an ε in the quotient": stepped(loss=with_epsilon),
        "the first area for the union": stepped(loss=first_area_for_union),
        "coordinates are clamped to [0, 1]": stepped(corners=within_one),
    },
}
