"""Distillation from the log-probabilities that a teacher gives of its K most probable classes.

With q = softmax(x/τ), p_k = e^ℓ_k of the classes that a row names, P = Σ p_k, Q = Σ q_k over them, R = 1 − P and
T = 1 − Q = Σ q_j over all others, the loss of a row is

    drop            Σ p_k·(log p_k − log q_k)
    bucket          that + R·(log R − log T)
    renormalise     Σ v_k·(log v_k − log u_k),  v = p/P, u = q/Q

Since ∂log q_k/∂x_j = ([j = k] − q_j)/τ, ∂log T/∂x_j = ([j is no k]·q_j/T − q_j)/τ and u is the softmax of the K logits,

    drop            ∂/∂x_j = (P·q_j − p_j)/τ, with p_j = 0 for what is not named
    bucket          ∂/∂x_j = (q_j − p_j)/τ of named classes, (1 − R/T)·q_j/τ of all others
    renormalise     ∂/∂x_j = (u_j − v_j)/τ of named classes, 0 of all others

drop is no divergence: where the student gives the K classes more than the teacher does it can be negative, and is
least, P·log P, for q = p/P. The other two are.

Numerics. Every gradient is a difference of which nothing may be left, M·e_j − m_j·Z with masses m that sum to M: rows
of pairs of float64 (kernels/logits/row), and where these leave too little Σ_i (m_i·e_j − m_j·e_i). Of a sure class both
terms are sums over the others, and 1 − e^ℓ is −(e^ℓ − 1) as such. All others have (P·T − R·Q)·q_j/T = (T − R)·q_j/T: T
and q_j/T come from a sum with a maximum of its own, and so T is known where Q is next to 1. Of two distributions

    Σ p·(log p − log q) = Σ p·(e^δ − 1 − δ),  δ = log q − log p

whose terms are all positive; e^δ − 1 − δ is a series for a small δ. drop's sum may cancel: it is off by at most an ulp
and 2^-96 of Σ p_k·(|log p_k| + |log q_k|). Where teacher and student agree to n bits, the other two are off by an ulp
and 2^(n − 98) of their value: it shows where float64 log-probabilities are the student's own.

Source: verl's forward_kl_topk (drop) and its tail bucket; Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural
Network", 2015.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from refloss import arrays
from refloss.cases import topk as cases
from refloss.error_model import topk as error_model
from refloss.kernels.topk.loop import BUCKET, DROP, NOT_NAMED, RENORMALISE, Given
from refloss.kernels.topk.run import Task, topk_losses
from refloss.loss import loss
from refloss.numerics.exact import as_pair, exact_sum, quotient
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import Argument, Parameter, Specification, indices, reduction, softmax_logits
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction

if TYPE_CHECKING:
    from refloss.cases.draws import Drawn, Draws

Tail = Literal["drop", "bucket", "renormalise"]
_TAILS = {"drop": DROP, "bucket": BUCKET, "renormalise": RENORMALISE}
_REDUCTIONS = ("mean", "sum", "none")
_PARAMETERS = {
    "tail": Parameter(str, tuple(_TAILS)),
    "temperature": Parameter(float, (1.0, 0.7, 2.0)),
    "temperature_squared": Parameter(bool, (False, True)),
    "reduction": reduction(*_REDUCTIONS),
}


class _Teacher(NamedTuple):
    """What a teacher gives, checked."""

    log_probs: np.ndarray  # [R, K] float64
    classes: np.ndarray  # [R, K] int64
    counts: np.ndarray  # [R] bool


def _draw(draws: Draws) -> Drawn:
    return cases.draw(draws, draws.parameters(_PARAMETERS))


@loss(
    Specification(
        arguments={
            "student_logits": softmax_logits(-1),
            "teacher_log_probs": Argument("log-probabilities", shape="... K"),
            "teacher_ids": indices("... K", of="student_logits"),
            "mask": Argument("mask", optional=True, shape="..."),
        },
        parameters=_PARAMETERS,
        mean="rows",
        positive=False,
        per="row",
        order=95,
        divisor=cases.divisor,
        follows="verl's forward_kl_topk",
        cases=cases.topk_distillation,
        draw=_draw,
        bounds=error_model.topk_distillation,
        mistakes=cases.mistakes,
    )
)
def topk_distillation(
    student_logits: ArrayLike,
    teacher_log_probs: ArrayLike,
    teacher_ids: ArrayLike,
    *,
    tail: Tail = "drop",
    temperature: float = 1.0,
    temperature_squared: bool = False,
    mask: ArrayLike | None = None,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Divergence of a student from the K most probable classes of a teacher.

    With q = softmax(x/τ), p_k = e^ℓ_k, P = Σ p_k and Q = Σ q_k over the K classes: "drop" Σ p_k·(log p_k − log q_k),
    which can be negative; "bucket" that + (1 − P)·log((1 − P)/(1 − Q)), the KL divergence of K + 1 outcomes;
    "renormalise" that of p/P from q/Q. τ·∂/∂x_j: P·q_j − p_j; q_j − p_j of the K classes and
    q_j·(1 − (1 − P)/(1 − Q)) of all others; q_j/Q − p_j/P and 0. Held constant: what the teacher gives.

    Args:
        student_logits: x [..., V]; any float dtype and layout.
        teacher_log_probs: ℓ [..., K], log-probabilities among all V classes, so that Σ p ≤ 1. They are what they are:
            no temperature is applied to them.
        teacher_ids: the classes [..., K] that they are of, all different; any integer dtype. A place whose ℓ is −inf
            names no class, whatever its id is, such as −1 or 0: it is padding, and the class is one of the others.
        tail: what becomes of the classes that are not named: "drop", "bucket" or "renormalise".
        temperature: τ of the student's logits, positive.
        temperature_squared: whether the loss is multiplied by τ².
        mask: [...], which rows count, bool or 0 and 1. Others have loss and gradient 0, whatever they hold.
        reduction: "mean" over the rows that count, "sum" or "none".
        grad: True, False, or "student_logits".
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy.

    Returns:
        loss in nats. grads: "student_logits".

    Edges:
        A row that names no class has loss and gradient 0. "bucket" takes 1 − P below 0, which is rounding, for 0; there
        is no bucket, and the row is as with "drop", where 1 − P is 0 or where the student has no other class, with all
        V named or all others −inf: a teacher's rounding must not decide whether a loss is infinite. A named class whose
        x is −inf makes the loss +inf; its gradient, −p_j, is finite. "renormalise" does not look at other classes. x of
        NaN, +inf or −inf alone, and ℓ of NaN or +inf, make loss and gradient of their row NaN. No rows that count:
        "mean" is NaN.

    Raises:
        ValueError: a shape, an id of a row that counts, a class that is named twice, an option or a buffer that does
            not fit.
        TypeError: a dtype that does not.
    """
    kind = _TAILS[arrays.choice(tail, "tail", _TAILS)]
    arrays.choice(reduction, "reduction", _REDUCTIONS)
    tau = arrays.number(temperature, "temperature", finite=True, positive=True)
    factor = Fraction(tau) ** 2 if arrays.flag(temperature_squared, "temperature_squared") else Fraction(1)
    x = arrays.float_array(student_logits, "student_logits")
    if x.ndim == 0:
        raise ValueError("student_logits has shape (); expected [..., V]")
    teacher, rows = _teacher(teacher_log_probs, teacher_ids, mask, x.shape), x.shape[:-1]
    options = Options(grad_output, grad, grad_dtype, out, backend)
    count = int(np.count_nonzero(teacher.counts)) if reduction == "mean" else 1
    given = Given(
        *teacher,
        cotangent=options.cotangent(rows if reduction == "none" else ()),
        temperature=tau,
        factor=as_pair(factor),
        normaliser=float(count),
        tail=kind,
    )
    gradient = options.buffer(x, "student_logits", wanted="student_logits" in options.wanted(("student_logits",)))
    losses = topk_losses(Task(x, gradient, given), backend)
    of_rows = (losses[0] + losses[1]).reshape(rows)[()]
    return LossResult(
        loss=of_rows if reduction == "none" else quotient(exact_sum(losses), Fraction(count)),
        grads={} if gradient is None else {"student_logits": gradient},
    )


def _teacher(log_probs: Any, ids: Any, mask: Any, shape: tuple[int, ...]) -> _Teacher:
    """What a teacher gives of logits of a shape, checked."""
    counts = arrays.counted(mask, shape[:-1], "one for each row of student_logits")
    given = arrays.float_array(log_probs, "teacher_log_probs")
    if given.ndim != len(shape) or given.shape[:-1] != shape[:-1]:
        expected = f"{shape[:-1]} and K classes for each row of student_logits {shape}"
        raise ValueError(f"teacher_log_probs has shape {given.shape}; expected {expected}")
    classes = arrays.integer_array(ids, "teacher_ids")
    arrays.check_shape(classes, given.shape, "teacher_ids", "one for each of teacher_log_probs")
    named = counts[..., None] & ~np.isneginf(given)
    known = np.where(named, classes, classes.dtype.type(0))
    if np.any(named):
        arrays.check_range(known, 0, shape[-1] - 1, "teacher_ids")
    known = np.where(named, known.astype(np.int64), NOT_NAMED)
    _check_different(known)
    places = int(np.prod(counts.shape, dtype=np.int64)), given.shape[-1]
    return _Teacher(
        np.ascontiguousarray(given.astype(np.float64)).reshape(places),
        np.ascontiguousarray(known).reshape(places),
        np.ascontiguousarray(counts).reshape(-1),
    )


def _check_different(known: np.ndarray) -> None:
    """Raise where a row names a class twice."""
    order = np.argsort(known, axis=-1, kind="stable")
    ordered = np.take_along_axis(known, order, axis=-1)
    twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] != NOT_NAMED)
    if twice.any():
        *row, place = (int(i) for i in np.argwhere(twice)[0])
        first, second = sorted(int(order[(*row, place + k)]) for k in range(2))
        where = ", ".join(map(str, [*row, second]))
        value = int(known[(*row, second)])
        raise ValueError(
            f"teacher_ids[{where}] = {value} is the class of place {first} as well; expected different ones"
        )
