"""Cross-entropy of a vocabulary in parts: each rank has the logits of some classes, and the loss is that of all.

With rank r's classes V_r, the logits y behind the chain of refloss.cross_entropy, label t and K classes in all, a rank
computes, and collectives carry for each row,

    m_r = max_{j ∈ V_r} y_j                 all-reduced by max: m
    s_r = Σ_{j ∈ V_r} e^(y_j − m)           all-reduced by sum: Z
    y_t where t ∈ V_r, else 0               all-reduced by sum
    Σ_{j ∈ V_r} y_j, with smoothing alone   all-reduced by sum: S

and with lse = m + log Z the loss is

    L = (1 − ε)·(lse − y_t) + ε·(lse − S/K)
    ∂L/∂y_j = e^(y_j − m)/Z − (1 − ε)·[j = t] − ε/K       on the rank that has j

which needs nothing more from others. It is the cross-entropy of the ranks' logits side by side, so that is what is
computed here, and how the classes are cut shows in no bit of loss or gradient. What ranks compute is formed in pairs,
the exponentials of a rank relative to its own maximum, and rounded once (kernels.shards).

Label smoothing has variants. torch's ε/K on every class; Megatron's α on the other classes alone, α/(K − 1) each, which
is ε = α·K/(K − 1). Megatron and what derives from it take K, and the mean of log p, over the classes of the rank: with
K_r and ε_r,

    L_r = (1 − ε_r)·(lse − y_t) + ε_r·(lse − Σ_{j ∈ V_r} y_j/K_r)
    ∂L_r/∂y_j = p_j − (1 − ε_r)·[j = t] − ε_r/K_r          j ∈ V_r

so that each rank has a loss of its own, and the gradients are those of no loss. Source: Shoeybi et al., "Megatron-LM:
Training Multi-Billion Parameter Language Models Using Model Parallelism", 2019, section 3; see docs/many_machines.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from refloss import arrays
from refloss.cases import shards as cases
from refloss.error_model import shards as error_model
from refloss.kernels.shards.run import smoothing_of_all, sums_of_ranks
from refloss.loss import loss
from refloss.losses import cross_entropy as whole
from refloss.losses.parts.chain import (
    CHAIN_PARAMETERS,
    COMPONENTS,
    Z_LOSS,
    LogitOptions,
    cross_entropy_rows,
    logit_options,
)
from refloss.losses.parts.softmax import REDUCTIONS
from refloss.options import Options
from refloss.result import Intermediates, LossResult
from refloss.specification import IGNORE_INDEX, REDUCTION, Argument, Parameter, Softmax, labels, softmax_logits
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction

if TYPE_CHECKING:
    from refloss.cases.draws import Drawn, Draws

Formula = Literal["torch", "megatron"]
Classes = Literal["global", "local"]
FORMULAS, CLASSES = get_args(Formula), get_args(Classes)
_PARAMETERS = {
    **IGNORE_INDEX,
    **REDUCTION,
    "label_smoothing": Parameter(float, (0.0, 0.1, 0.75)),
    "label_smoothing_formula": Parameter(str, FORMULAS),
    # Of local classes there is no one loss: no golden case has them.
    "label_smoothing_classes": Parameter(str, CLASSES[:1], structural=True, words=CLASSES),
    **CHAIN_PARAMETERS,
    **Z_LOSS,
}


def _draw(draws: Draws) -> Drawn:
    return cases.draw(draws, _PARAMETERS)


class _Cut(NamedTuple):
    """The logits of all ranks side by side, and where those of each end."""

    logits: np.ndarray
    ends: tuple[int, ...]
    is_list: bool

    def parts(self, values: np.ndarray) -> list[np.ndarray]:
        """What each rank has of an array of all classes."""
        return np.split(values, self.ends[:-1], axis=-1)


class _Smoothing(NamedTuple):
    """α, and what it is a share of."""

    share: float
    formula: str
    is_local: bool

    def over(self, classes: int) -> float:
        """ε of so many classes."""
        return smoothing_of_all(self.share, self.formula, classes)


@loss(
    Softmax(
        arguments={
            "shards": replace(softmax_logits(-1, on_gpu=False, shape="N V|B S V|... V"), widths="widths"),
            "target": labels("shards"),
            "widths": Argument("lengths", optional=True, batched=False, shape="R"),
        },
        parameters=_PARAMETERS,
        mean="labels",
        per="row",
        padded=(0,),
        order=98,
        follows="Megatron-LM's vocab_parallel_cross_entropy",
        components=COMPONENTS,
        intermediates=("lse", "nll", "maximum", "common_maximum", "sum_exp", "total", "label_logit", "logit_sum"),
        cases=cases.vocab_parallel_cross_entropy,
        draw=_draw,
        bounds=error_model.vocab_parallel_cross_entropy,
    )
)
def vocab_parallel_cross_entropy(
    shards: ArrayLike,
    target: ArrayLike,
    *,
    widths: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    label_smoothing_formula: Formula = "torch",
    label_smoothing_classes: Classes = "global",
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    z_loss: float = 0.0,
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Cross-entropy of logits whose classes lie on several ranks, and what each of them computes and sends.

    L = (1 − ε)·(lse − y_t) + ε·(lse − Σ_j y_j/K) over all K classes, to the bits of refloss.cross_entropy on the shards
    side by side, however they are cut. Gradient: ∂L/∂y_j = p_j − (1 − ε)·[j = t] − ε/K, and through the chain as there.
    Held constant: nothing.

    Args:
        shards: a list of the logits of each rank [N, V_r] or [B, S, V_r], classes last; of one float dtype, any layout
            and widths V_r, 1 and 0 included. Or those of all ranks in one array [N, V].
        target: labels [N] or [B, S] among all classes, any integer dtype.
        widths: [R], where shards is one array: the V_r, which add up to V; one rank if not given.
        ignore_index: rows with this label have loss 0 and gradient 0, whatever their logits.
        reduction: "mean" over the rows that count, "sum" or "none".
        label_smoothing: α in [0, 1]; below 1 for "megatron".
        label_smoothing_formula: "torch" for ε = α, or "megatron" for ε = α·K/(K − 1), computed in float64: α/(K − 1) on
            all classes but the label.
        label_smoothing_classes: "global", or "local" for what ranks compute that take each its own V_r for K: there is
            a loss for each rank then, and the gradients are those of no loss. Without a z_loss.
        logit_scale, softcap, temperature, z_loss: as in refloss.cross_entropy.
        grad_output: the upstream gradient of the loss, or of the loss of each rank.
        grad, grad_dtype, backend: as in refloss.cross_entropy.

    Returns:
        loss in nats; [R] or [R, N] for local classes. grads: "shards", a list of the gradients of each rank, which are
        views of one array; or that array, where the logits are one. components, with a z_loss: "cross_entropy" and
        "z_loss". intermediates, each rounded once, of y behind the chain, in the shape of the rows [N], or [R, N] where
        ranks differ: "maximum" [R, N] and "common_maximum" [N], "sum_exp" [R, N], relative to the latter, and "total"
        [N], "label_logit" [R, N], 0 where a rank does not have the label, and where it is ignored; with smoothing
        "logit_sum" [R, N]; "lse" and "nll" [N] as in refloss.cross_entropy. Each is what a rank sends, or receives.
        Shards of a list are copied to lie side by side: they and their gradient take twice their memory.

    Edges:
        As in refloss.cross_entropy. A rank whose logits are all −inf has the maximum −inf and the sum 0. Where a rank's
        logits hold NaN or +inf, its maximum and all sums are NaN.

    Raises:
        ValueError: a shape, a label, widths or an option that do not fit. TypeError: a dtype that does not.
    """
    cut = _cut_of(shards, widths)
    rows, classes = cut.logits.shape[:-1], cut.logits.shape[-1]
    ignore_index = arrays.label(ignore_index, "ignore_index")
    given = arrays.integer_array(target, "target")
    arrays.check_shape(given, rows, "target", "one label for each row of the shards")
    arrays.check_labels(given, classes, ignore_index, "target")
    arrays.choice(reduction, "reduction", REDUCTIONS)
    arrays.choice(label_smoothing_classes, "label_smoothing_classes", CLASSES)
    smoothing = _smoothing_of(label_smoothing, label_smoothing_formula, label_smoothing_classes == "local", cut)
    of_logits = logit_options(logit_scale, softcap, temperature, z_loss)
    options = Options(grad_output, bool(_wanted(grad)), grad_dtype, None, backend)
    compute = _of_each_rank if smoothing.is_local else _of_all
    result = compute(cut, given, options, of_logits, smoothing, ignore_index=ignore_index, reduction=reduction)
    gradient = result.grads.get("logits")
    grads: dict[str, Any] = {}
    if gradient is not None:
        grads["shards"] = cut.parts(gradient) if cut.is_list else gradient
    known = np.where(given == ignore_index, -1, given).reshape(-1).astype(np.int64)
    between = _intermediates(cut, known, of_logits, is_smoothed=smoothing.share != 0.0)
    seen = {name: result.intermediates[name] for name in ("lse", "nll")}
    return LossResult(result.loss, grads, result.components, Intermediates(seen | between))


def _wanted(grad: Gradients) -> set[str]:
    return arrays.wanted_gradients(grad, ("shards",))


def _cut_of(shards: Any, widths: Any) -> _Cut:
    if isinstance(shards, list | tuple):
        if widths is not None:
            raise ValueError(
                "shards is a list, and widths is given; expected one array, for a list has widths of its own"
            )
        return _side_by_side([arrays.float_array(shard, f"shards[{r}]") for r, shard in enumerate(shards)])
    logits = arrays.float_array(shards, "shards")
    if logits.ndim == 0:
        raise ValueError("shards has shape (); expected [..., V], or a list of such")
    if widths is None:
        return _Cut(logits, (logits.shape[-1],), False)
    sizes = arrays.index_array(widths, "widths")
    if sizes.ndim != 1 or not sizes.size:
        raise ValueError(f"widths has shape {sizes.shape}; expected [R], the classes of each rank")
    arrays.check_range(sizes, 0, logits.shape[-1], "widths")
    if sizes.sum() != logits.shape[-1]:
        raise ValueError(f"widths add up to {sizes.sum()}; expected {logits.shape[-1]}, the classes of shards")
    return _Cut(logits, tuple(np.cumsum(sizes).tolist()), False)


def _side_by_side(parts: list[np.ndarray]) -> _Cut:
    if not parts:
        raise ValueError("shards is empty; expected the logits of at least one rank")
    first = parts[0]
    for rank, part in enumerate(parts):
        if part.ndim == 0 or part.shape[:-1] != first.shape[:-1]:
            expected = ", ".join([*map(str, first.shape[:-1]), "V_r"])
            raise ValueError(f"shards[{rank}] has shape {part.shape}; expected [{expected}]")
        if part.dtype != first.dtype:
            raise TypeError(f"shards[{rank}] has dtype {part.dtype}; expected {first.dtype}, that of shards[0]")
    ends = np.cumsum([part.shape[-1] for part in parts])
    return _Cut(np.concatenate(parts, axis=-1), tuple(ends.tolist()), True)


def _smoothing_of(label_smoothing: Any, formula: str, is_local: bool, cut: _Cut) -> _Smoothing:
    share = arrays.number(label_smoothing, "label_smoothing")
    arrays.choice(formula, "label_smoothing_formula", FORMULAS)
    is_torch = formula == FORMULAS[0]
    if not 0.0 <= share <= 1.0 or (share == 1.0 and not is_torch):
        raise ValueError(f"label_smoothing is {share}; expected a number in [0, {'1]' if is_torch else '1)'}")
    sizes = np.diff(cut.ends, prepend=0) if is_local else cut.ends[-1:]
    least = 1 if is_torch else 2
    if share and min(sizes) < least and (is_local or not is_torch):
        raise ValueError(f"label_smoothing over {min(sizes)} classes; expected at least {least}")
    return _Smoothing(share, formula, is_local)


def _of_all(
    cut: _Cut, target: np.ndarray, options: Options, of_logits: LogitOptions, smoothing: _Smoothing, **of_rows: Any
) -> LossResult:
    return cross_entropy_rows(
        whole.LOOP,
        cut.logits,
        target,
        options,
        of_logits,
        class_axis=cut.logits.ndim - 1,
        label_smoothing=smoothing.over(cut.logits.shape[-1]),
        **of_rows,
    )


def _of_each_rank(
    cut: _Cut,
    target: np.ndarray,
    options: Options,
    of_logits: LogitOptions,
    smoothing: _Smoothing,
    *,
    ignore_index: int,
    reduction: str,
) -> LossResult:
    """The losses L_r, and the gradients ∂L_r/∂y of the classes of each; lse and nll are those of all ranks."""
    if of_logits.z_loss:
        raise ValueError(f"z_loss is {of_logits.z_loss}; expected 0 with label smoothing over local classes")
    known = {"ignore_index": ignore_index, "reduction": reduction}
    result = _of_all(
        cut, target, options._replace(grad_output=0.0), of_logits, _Smoothing(0.0, "torch", False), **known
    )
    shape = (len(cut.ends), *(target.shape if reduction == "none" else ()))
    given = options.cotangent(shape)
    cotangent = np.broadcast_to(given if given.size == 1 else given.reshape(shape), shape)
    counted = target != ignore_index
    losses, gradient = np.zeros(shape), result.grads.get("logits")
    starts = (0, *cut.ends[:-1])
    for rank, (start, end) in enumerate(zip(starts, cut.ends, strict=True)):
        own = cotangent[rank][counted] if reduction == "none" else float(cotangent[rank])
        masses = _masses(target[counted], cut.logits.shape[-1], slice(start, end), smoothing)
        of_rank = cross_entropy_rows(
            whole.LOOP,
            cut.logits[counted],
            masses,
            options._replace(grad_output=own),
            of_logits,
            class_axis=1,
            reduction=reduction,
        )
        losses[(rank, counted) if reduction == "none" else rank] = of_rank.loss
        if gradient is not None:
            gradient[counted, start:end] = of_rank.grads["logits"][:, start:end]
    return LossResult(losses, result.grads, {}, result.intermediates)


def _masses(target: np.ndarray, classes: int, own: slice, smoothing: _Smoothing) -> np.ndarray:
    """What a rank takes for the target: of the label, and of its own classes."""
    masses = np.zeros((len(target), classes))
    share = smoothing.over(own.stop - own.start)
    masses[:, own] = share / (own.stop - own.start)
    masses[np.arange(len(target)), target] += 1.0 - share
    return masses


def _intermediates(cut: _Cut, labels: np.ndarray, of_logits: LogitOptions, *, is_smoothed: bool) -> dict[str, Any]:
    """What ranks compute and send; labels are −1 where they do not count."""
    found = sums_of_ranks(cut.parts(cut.logits), labels, of_logits.chain)
    rows, ranks = cut.logits.shape[:-1], len(cut.ends)
    by_rank = {"maximum": found.maximum, "sum_exp": found.common.sums, "label_logit": found.label}
    if is_smoothed:
        by_rank["logit_sum"] = found.logits
    of_all = {"common_maximum": found.common.maximum, "total": found.common.total}
    return {
        **{name: value.reshape(ranks, *rows) for name, value in by_rank.items()},
        **{name: value.reshape(rows) for name, value in of_all.items()},
    }
