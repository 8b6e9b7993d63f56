"""Load balancing of a mixture of experts: experts that are chosen often should become less probable.

Of logits z [N, E], the rows that count of all layers together, each of which is sent to the k experts of its largest
logits, with p = softmax(z),

    f_e = c_e/N,  c_e = how many rows choose expert e      P_e = (1/N)·Σ_i p_ie      L = E·Σ_e f_e·P_e

f is a constant: choosing has no derivative. So

    ∂L/∂z_ie = (E/N)·p_ie·(f_e − Σ_j f_j·p_ij) = (E/N²)·p_ie·Σ_j (c_e − c_j)·p_ij

A router that chooses each expert as often as any has L = k and no gradient. Counts are whole numbers, and so are their
differences: what cancels is put together by them (kernels/routers/loop.py). P is added up exactly.

Layers apart: with L_l of layer l alone, the mean of the L_l. With normalise_top_k, f_e = c_e/(k·N): balance is 1.
Scores other than a softmax of the logits, such as DeepSeek-V3's sigmoids, are not covered.

Transformers counterpart: load_balancing_loss_func (models/mixtral, and 30 models with the same one). Source: Fedus et
al., "Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity", 2021, equations (4)
to (6). Who divides how: docs/mixture_of_experts.md.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss import arrays
from refloss.cases import routers as cases
from refloss.error_model import routers as error_model
from refloss.kernels.routers.loop import Given
from refloss.kernels.routers.run import Task, Totals, choices_of, write_slopes
from refloss.loss import loss
from refloss.losses.parts.routers import Router, router_of, selected_experts
from refloss.numerics.exact import Exact, as_pair, exact, quotient, ratio
from refloss.numerics.sums import UNITS
from refloss.options import Options
from refloss.result import Intermediates, LossResult
from refloss.specification import Argument, Parameter, Specification, softmax_logits
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients

if TYPE_CHECKING:
    from refloss.cases.draws import Drawn, Draws

_PARAMETERS = {
    "top_k": Parameter(int, (2, 1, 3), structural=True),
    "pool_layers": Parameter(bool, (True, False)),
    "normalise_top_k": Parameter(bool, (False, True)),
}


def _draw(draws: Draws) -> Drawn:
    return cases.draw_moe_load_balancing(draws, _PARAMETERS)


class _Part(NamedTuple):
    """Rows that are balanced together: all of them, or those of a layer."""

    first: int
    last: int
    rows: int  # that count
    tokens: np.ndarray  # [E] int64, c
    totals: Totals

    def frequencies(self, divisor: int) -> np.ndarray:
        """f, of counts over rows times a divisor."""
        return np.asarray(self.tokens / np.float64(self.rows * divisor))

    def _probabilities(self) -> list[Exact]:
        if self.totals.undefined or not self.rows:
            return [math.nan] * len(self.tokens)
        return [Fraction(total, UNITS * self.rows) for total in self.totals.probabilities]

    def probabilities(self) -> np.ndarray:
        """P."""
        return np.array([quotient(value, Fraction(1)) for value in self._probabilities()])

    def loss(self, divisor: int) -> Exact:
        """L, exact."""
        if self.totals.undefined or not self.rows:
            return math.nan
        chosen = sum(c * total for c, total in zip(self.tokens.tolist(), self.totals.probabilities, strict=True))
        return Fraction(len(self.tokens) * chosen, UNITS * self.rows**2 * divisor)


@loss(
    Specification(
        arguments={
            "router_logits": replace(softmax_logits(-1, batched=False, shape="N E|L N E"), layered=True),
            "mask": Argument("mask", optional=True, batched=False, shape="N|L N|..."),
            "selected": Argument("indices", optional=True, batched=False, layered=True, shape="N K|L N K"),
        },
        parameters=_PARAMETERS,
        mean="rows",
        per="row",
        axes=2,
        order=96,
        follows="transformers' load_balancing_loss_func",
        cases=cases.moe_load_balancing,
        draw=_draw,
        bounds=error_model.moe_load_balancing,
        mistakes=cases.mistakes,
        mistaken_parameters=cases.mistaken_parameters,
        identities=("a balance",),
        intermediates=("tokens_per_expert", "router_prob_per_expert", "selected", "layer_losses"),
    )
)
def moe_load_balancing(
    router_logits: ArrayLike,
    top_k: int,
    *,
    mask: ArrayLike | None = None,
    pool_layers: bool = True,
    selected: ArrayLike | None = None,
    normalise_top_k: bool = False,
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """How unevenly a router sends tokens to experts, by how often each is chosen and how probable it is.

    L = E·Σ_e f_e·P_e, f_e = c_e/N of the N rows that count, c_e of which have e among their k experts, and P_e the mean
    of p_ie; ∂L/∂z_ie = (E/N)·p_ie·(f_e − Σ_j f_j·p_ij). Held constant: f.

    Args:
        router_logits: z [T, E] of one layer, [L, T, E] or [L, ..., E]; or a list of layers of one shape, which is one
            array of them, as transformers has it. Any float dtype and layout.
        top_k: k in [1, E], how many experts a row is sent to: those of its largest logits, of equal ones the first. The
            logits are compared as they are, not their probabilities in some type.
        mask: which rows count, bool or 0 and 1, such as an attention mask [B, S] of T = B·S tokens: T elements, the
            same for every layer, or the shape of router_logits without the last axis. What does not count is never
            read, and has the gradient 0.
        pool_layers: whether counts and probabilities of all layers are put together before they are multiplied, as
            transformers does it: layers that prefer different experts may then look balanced. Else L is the mean of the
            layers' own.
        selected: the experts of each row, where they are known [..., k]: what ties, another type, a bias or noise
            have decided; a list of layers as well. Rows that do not count may have any.
        normalise_top_k: whether f is divided by k, as in Megatron: L is 1 at balance, not k.
        grad, grad_output, grad_dtype, out, backend: as in refloss.cross_entropy.

    Returns:
        loss. grads: "router_logits", one array for a list as well. intermediates: "tokens_per_expert" f and
        "router_prob_per_expert" P, [E], or [L, E] where layers are not pooled, which then have "layer_losses" [L] too;
        "selected" [..., k], −1 where a row does not count.

    Edges:
        −inf is legal: an expert with the probability 0, chosen last. A row that holds NaN or +inf, or −inf alone, has
        no probabilities: P and the loss are NaN, and so is its own gradient, not that of other rows; it chooses the
        first k experts. No row that counts, in a layer where they are not pooled: the loss is NaN, the gradient 0.

    Raises:
        ValueError: a shape, a mask, top_k, an expert that is not there or named twice, or a buffer that does not fit.
        TypeError: a dtype that does not.
    """
    router = router_of(router_logits, mask)
    x = router.logits
    if x.ndim < 2:
        raise ValueError(f"router_logits has shape {x.shape}; expected [T, E] or [L, T, E]")
    k = arrays.integer(top_k, "top_k", low=1)
    if k > x.shape[-1]:
        raise ValueError(f"top_k is {k}; expected at most {x.shape[-1]}, the number of experts")
    pooled, divisor = (
        arrays.flag(pool_layers, "pool_layers"),
        k if arrays.flag(normalise_top_k, "normalise_top_k") else 1,
    )
    options = Options(grad_output, grad, grad_dtype, out, backend)
    cotangent = exact(float(options.cotangent(())[0]))
    gradient = options.buffer(x, "router_logits", wanted="router_logits" in options.wanted(("router_logits",)))
    chosen = np.full((len(router.counts), k), -1) if selected is None else selected_experts(selected, router, k)
    given = Given(router.counts, chosen, selected is not None, np.zeros(x.shape[-1]), (0.0, 0.0))
    parts = _parts(router, given, 1 if pooled else router.layers, backend)
    if gradient is not None:
        for part in parts:
            whole = Fraction(part.rows**2 * divisor * len(parts), x.shape[-1])
            factor = ratio(cotangent, whole) if part.rows else 0.0
            of_part = given._replace(tokens=part.tokens.astype(np.float64), factor=as_pair(factor))
            write_slopes(Task(x, gradient, of_part, part.first, part.last), backend)
    return _result(parts, divisor, chosen.reshape(*x.shape[:-1], k), gradient, pooled=pooled)


def _parts(router: Router, given: Given, count: int, backend: str) -> list[_Part]:
    """What is to be known of rows that are balanced together; experts are chosen."""
    size, parts = len(given.counts) // max(count, 1), []
    for i in range(count):
        rows = slice(i * size, (i + 1) * size)
        totals = choices_of(Task(router.logits, None, given, rows.start, rows.stop), backend)
        chosen = given.chosen[rows]
        tokens = np.bincount(chosen[chosen >= 0], minlength=router.logits.shape[-1])
        parts.append(_Part(rows.start, rows.stop, int(np.count_nonzero(given.counts[rows])), tokens, totals))
    return parts


def _result(
    parts: list[_Part], divisor: int, selected: np.ndarray, gradient: np.ndarray | None, *, pooled: bool
) -> LossResult:
    losses = [part.loss(divisor) for part in parts]
    frequencies = np.array([part.frequencies(divisor) for part in parts])
    probabilities = np.array([part.probabilities() for part in parts])
    intermediates = {
        "tokens_per_expert": frequencies[0] if pooled else frequencies,
        "router_prob_per_expert": probabilities[0] if pooled else probabilities,
        "selected": selected,
    }
    if not pooled:
        intermediates["layer_losses"] = np.array([quotient(value, Fraction(1)) for value in losses])
    whole: Exact = math.nan if any(map(math.isnan, losses)) else sum(losses, Fraction(0))
    return LossResult(
        loss=quotient(whole, Fraction(len(losses))),
        grads={} if gradient is None else {"router_logits": gradient},
        intermediates=Intermediates(intermediates),
    )
