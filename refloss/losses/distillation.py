"""Distillation: a student's distribution over the classes of each row is pulled to its teacher's.

Of logits x and y with a temperature τ, s = softmax(x/τ) and t = softmax(y/τ), a row's loss is

    forward_kl   Σ_j t_j·log(t_j/s_j)
    reverse_kl   Σ_j s_j·log(s_j/t_j)
    jsd          β·Σ_j t_j·log(t_j/m_j) + (1 − β)·Σ_j s_j·log(s_j/m_j),    m = β·t + (1 − β)·s
    tvd          ½·Σ_j |s_j − t_j|

With D its value, K_t = Σ t·log(t/m) and K_s = Σ s·log(s/m), g_j = sgn(s_j − t_j), and the softmax's Jacobian, which
takes the mean of a class's slope off it, τ·∂D/∂x_j and τ·∂D/∂y_j are

    forward_kl   s_j − t_j                           −t_j·(log(s_j/t_j) + D)
    reverse_kl   s_j·(log(s_j/t_j) − D)              t_j − s_j
    jsd          (1 − β)·s_j·(log(s_j/m_j) − K_s)    β·t_j·(log(t_j/m_j) − K_t)
    tvd          ½·s_j·(g_j − Σ_i s_i·g_i)           −½·t_j·(g_j − Σ_i t_i·g_i)

because of an f-divergence's derivative for s_j, such as log(s_j/t_j) + 1, all that is not of class j is lost.

Numerics. A student near its teacher leaves little of s − t and log(s/t), and nothing of D if its terms are added up as
they stand: they have both signs. ρ_j = log(s_j/t_j) is made of the exact differences of logits, relative to a class of
the teacher's largest one (kernels/divergences/row), so that equal rows, and rows that differ by a constant, give 0.
With φ(z) = e^z − 1 − z ≥ 0,

    Σ t·log(t/s) = Σ t_j·φ(ρ_j),    Σ s·log(s/t) = Σ s_j·φ(−ρ_j),    Σ t·log(t/m) = Σ t_j·φ(log(m_j/t_j))

whose terms have one sign; next to 0 φ is its series. log(s/m) and log(t/m) differ by ρ, and the one of the larger of s
and t is log1p of something between −1 and 0. In tvd 1 − Σ s·g is twice the mass on the other side and the ties' once.

Sources: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015; Agarwal et al., "On-Policy
Distillation of Language Models: Learning from Self-Generated Mistakes" (GKD), 2024, the generalised Jensen-Shannon
divergence; Wen et al., "f-Divergence Minimization for Sequence-Level Knowledge Distillation", 2023.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal

import numpy as np

from refloss import arrays
from refloss.cases import distillation as cases
from refloss.device import empty
from refloss.error_model import divergences as error_model
from refloss.kernels.divergences.row import FORWARD, JSD, REVERSE, TVD, Given
from refloss.kernels.divergences.run import Task, divergences
from refloss.loss import loss
from refloss.numerics.exact import as_pair, exact_sum, quotient
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Argument, Parameter, Specification, softmax_logits
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction

REDUCTIONS = ("mean", "sum", "none")
Divergence = Literal["forward_kl", "reverse_kl", "jsd", "tvd"]
DIVERGENCES = {"forward_kl": FORWARD, "reverse_kl": REVERSE, "jsd": JSD, "tvd": TVD}
_NAMES = ("student_logits", "teacher_logits")


def _share(beta: Any, kind: int) -> float:
    """β, checked; where it is not read it may be what libraries call the divergence by."""
    share = arrays.number(beta, "beta")
    if not (0.0 < share < 1.0 or (kind != JSD and share in (0.0, 1.0))):
        raise ValueError(
            f"beta is {share}; expected a number between 0 and 1, ends excluded: what libraries mean by 0 and 1 is "
            "divergence='forward_kl' and 'reverse_kl'"
        )
    return share


@loss(
    Specification(
        arguments={
            "student_logits": softmax_logits(-1),
            "teacher_logits": softmax_logits(-1),
            "mask": Argument("mask", optional=True, shape="..."),
        },
        parameters={
            "divergence": Parameter(str, tuple(DIVERGENCES)),
            "beta": Parameter(float, (0.5, 0.1, 0.75)),
            "temperature": Parameter(float, (1.0, 2.0, 0.7)),
            "temperature_squared": Parameter(bool, (False, True)),
            **REDUCTION,
        },
        mean="rows",
        divisor=cases.rows_counted,
        per="row",
        order=94,
        follows="TRL's generalized_jsd_loss",
        cases=cases.distillation,
        draw=cases.draw_distillation,
        bounds=error_model.distillation,
        mistakes=cases.mistakes,
    )
)
def distillation(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    divergence: Divergence = "forward_kl",
    beta: float = 0.5,
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
    """A divergence between the softmaxes of a student's and a teacher's logits.

    s = softmax(x/τ), t = softmax(y/τ), ρ = log(s/t). "forward_kl" is D = Σ t·log(t/s): τ·∂D/∂x = s − t, τ·∂D/∂y =
    −t·(ρ + D). "reverse_kl" is D = Σ s·log(s/t): s·(ρ − D) and t − s. "jsd" is β·K_t + (1 − β)·K_s, K_t = Σ t·log(t/m),
    K_s = Σ s·log(s/m), m = β·t + (1 − β)·s: (1 − β)·s·(log(s/m) − K_s) and β·t·(log(t/m) − K_t). "tvd" is ½·Σ|s − t|:
    ½·s·(g − Σ s·g) and −½·t·(g − Σ t·g), g = sgn(s − t). "mean" divides the sum over the rows that count by their
    number. Held constant: nothing; teachers are usually detached, which is grad="student_logits".

    Args:
        student_logits: x [..., V]; any float dtype and layout.
        teacher_logits: y, of the same shape; any float dtype and layout.
        divergence: "forward_kl", "reverse_kl", "jsd" or "tvd".
        beta: β of "jsd", between 0 and 1, ends excluded: there it is 0, and no limit of a divergence. Libraries that
            take β = 0 and 1 mean "forward_kl" and "reverse_kl". No other divergence reads it.
        temperature: τ, positive; of both.
        temperature_squared: whether losses are multiplied by τ², as Hinton et al. have it.
        mask: [...], which rows count, bool or 0 and 1. Others have loss and gradient 0, whatever their logits are.
        reduction: "mean", "sum" or "none", which gives losses [...].
        grad: True, False, or names of "student_logits", "teacher_logits".
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; grad_dtype and out are of the student's
            gradient, the teacher's has its own dtype.

    Returns:
        loss in nats. grads: "student_logits", "teacher_logits".

    Edges:
        −inf is legal: its class has probability 0, and 0·log 0 = 0. Where t_j = 0 < s_j, "reverse_kl" is +inf, as
        "forward_kl" is where s_j = 0 < t_j. The gradient that is ±(s − t) stays finite there, that of the student in
        "forward_kl" and of the teacher in "reverse_kl". The other is what torch's log_softmax makes of it: −inf (times
        the cotangent) where its own probability is not 0, but NaN elsewhere and in the classes to blame. A tie in
        "tvd" has g = 0. A row that holds NaN or +inf, or −inf alone, in one of both has the loss NaN and makes both of
        its gradients NaN. Rows of no classes have loss 0. No row counts: "mean" is NaN, gradients are 0.

    Raises:
        ValueError: a shape, a range, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", REDUCTIONS)
    kind = DIVERGENCES[arrays.choice(divergence, "divergence", DIVERGENCES)]
    share = _share(beta, kind)
    softness = arrays.number(temperature, "temperature", finite=True, positive=True)
    squared = arrays.flag(temperature_squared, "temperature_squared")
    x, y = (
        arrays.float_array(value, name) for value, name in zip((student_logits, teacher_logits), _NAMES, strict=True)
    )
    if x.ndim == 0:
        raise ValueError("student_logits has shape (); expected [..., V]")
    arrays.check_shape(y, x.shape, "teacher_logits", "the shape of student_logits")
    counts = arrays.counted(mask, x.shape[:-1], "one for each row of student_logits")
    options = Options(grad_output, grad, grad_dtype, out, backend)
    cotangent = options.cotangent(counts.shape if reduction == "none" else ())
    wanted = options.wanted(_NAMES)
    gradients = (
        options.buffer(x, _NAMES[0], wanted=_NAMES[0] in wanted),
        empty(y.shape, y.dtype, like=y) if _NAMES[1] in wanted else None,
    )
    count = Fraction(int(np.count_nonzero(counts)) if reduction == "mean" else 1)
    factor = Fraction(softness) ** 2 if squared else Fraction(1)
    exact_share = Fraction(share) if kind == JSD else Fraction(1, 2)
    given = Given(
        counts=np.ascontiguousarray(counts.reshape(-1)),
        upstream=np.ascontiguousarray(cotangent.reshape(-1)),
        divergence=kind,
        beta=as_pair(exact_share),
        rest=as_pair(1 - exact_share),
        inverse=as_pair(1 / Fraction(softness)),
        factor=as_pair(factor),
        steepness=as_pair(factor / Fraction(softness) / (count or 1)),
    )
    losses = divergences(Task(x, y, gradients, given), backend) if x.shape[-1] else np.zeros(counts.size)
    return LossResult(
        loss=losses.reshape(counts.shape)[()] if reduction == "none" else quotient(exact_sum(losses), count),
        grads={name: buffer for name, buffer in zip(_NAMES, gradients, strict=True) if buffer is not None},
    )
