"""Fused cross-entropies in Triton, forward and backward, and the answers that they give to golden files.

    refloss golden write golden --only cross_entropy,linear_cross_entropy
    python examples/triton_cross_entropy.py golden candidate
    refloss compare golden candidate

Needs torch and triton. On an NVIDIA GPU the kernels are compiled; elsewhere Triton's interpreter runs them, which is
slow, and enough to know whether they are right. They take labels, an ignore_index and label smoothing, compute in
float32 whatever the logits are, and never hold a row of probabilities; cases with weights, with probabilities for
targets, with any other parameter or in float64 are not theirs and are left out.

That of a linear layer's outputs has the logits of some rows at a time. It makes them again in the backward pass, when
the upstream gradient of every row is known, and adds up the gradients of parameters in float32.
"""

# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-def, untyped-decorator"

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

try:
    import torch
    from safetensors.torch import load_file, save_file

    ON_GPU = torch.cuda.is_available()
    if not ON_GPU:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported
    import triton
    import triton.language as tl
except ImportError as error:
    sys.exit(f"not run: {error}")

DEVICE = "cuda" if ON_GPU else "cpu"
LARGEST_BLOCK = 4096
SIDE = 32  # of a block of a matrix
ROWS_AT_ONCE = 1024 if ON_GPU else 16  # whose logits there are
KNOWN = {"ignore_index", "reduction", "label_smoothing"}  # the parameters


@triton.jit
def forward_kernel(
    logits,
    labels,
    loss,
    maxima,
    totals,
    row_stride,
    classes,
    ignore_index,
    smoothing,
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Of one row the maximum m, Z = Σ exp(x_j − m), and (1 − ε)·(log Z − (x_y − m)) + ε/C·Σ (log Z − (x_j − m)).

    Two numbers are kept for the backward pass and not their log-sum-exp m + log Z, which would round log Z away where
    m is large: for logits near 10⁴ in float32 the gradient would be right to three digits.
    """
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    if label == ignore_index:
        tl.store(loss + row, 0.0)
        return
    logits += row * row_stride
    # The maximum so far, and the sum of the exponentials below it: one pass over the row.
    maximum = tl.full((), -float("inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, classes, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(logits + column, mask=column < classes, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(maximum, tl.max(x, axis=0))
        total = total * tl.exp(maximum - higher) + tl.sum(tl.exp(x - higher), axis=0)
        maximum = higher
    nll = tl.log(total) - (tl.load(logits + label).to(tl.float32) - maximum)
    if smoothing > 0:
        below = tl.full((), 0.0, tl.float32)
        for start in range(0, classes, BLOCK):
            column = start + tl.arange(0, BLOCK)
            x = tl.load(logits + column, mask=column < classes, other=0.0).to(tl.float32)
            below += tl.sum(tl.where(column < classes, maximum - x, 0.0), axis=0)
        nll = (1 - smoothing) * nll + smoothing * (tl.log(total) + below / classes)
    tl.store(loss + row, nll)
    tl.store(maxima + row, maximum)
    tl.store(totals + row, total)


@triton.jit
def backward_kernel(
    logits,
    labels,
    maxima,
    totals,
    dloss,
    dlogits,
    row_stride,
    classes,
    ignore_index,
    smoothing,
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Of one row dloss·(p_j − (1 − ε)·[j = y] − ε/C); 0 where it is ignored, whatever its logits are."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    logits += row * row_stride
    dlogits += row * row_stride
    if label == ignore_index:
        for start in range(0, classes, BLOCK):
            column = start + tl.arange(0, BLOCK)
            tl.store(dlogits + column, tl.zeros((BLOCK,), dlogits.dtype.element_ty), mask=column < classes)
        return
    coefficient = tl.load(dloss + row)
    maximum = tl.load(maxima + row)
    total = tl.load(totals + row)
    for start in range(0, classes, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(logits + column, mask=column < classes, other=-float("inf")).to(tl.float32)
        target = tl.where(column == label, 1 - smoothing, 0.0) + smoothing / classes
        gradient = coefficient * (tl.exp(x - maximum) / total - target)
        tl.store(dlogits + column, gradient.to(dlogits.dtype.element_ty), mask=column < classes)


class CrossEntropy(torch.autograd.Function):
    """The loss of every row of logits [R, C] under labels [R], 0 where they are ignored."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor, ignore_index: int, smoothing: float
    ) -> torch.Tensor:
        """One program a row."""
        rows, classes = logits.shape
        loss = logits.new_empty(rows, dtype=torch.float32)
        maxima, totals = torch.empty_like(loss), torch.empty_like(loss)
        ctx.options = (logits.stride(0), classes, ignore_index, smoothing)
        ctx.block = min(LARGEST_BLOCK, triton.next_power_of_2(classes))
        ctx.save_for_backward(logits, labels, maxima, totals)
        forward_kernel[(rows,)](logits, labels, loss, maxima, totals, *ctx.options, BLOCK=ctx.block)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """The upstream gradient has an element a row."""
        logits, labels, maxima, totals = ctx.saved_tensors
        # The interpreter cuts bits off where bfloat16 is to be rounded: there it is torch that rounds.
        dlogits = torch.empty_like(logits, dtype=logits.dtype if ON_GPU else torch.float32)
        dloss = grad_outputs[0].contiguous()
        backward_kernel[(len(logits),)](logits, labels, maxima, totals, dloss, dlogits, *ctx.options, BLOCK=ctx.block)
        return dlogits.to(logits.dtype), None, None, None


@triton.jit
def product_kernel(
    a,
    b,
    c,
    rows,
    inner,
    columns,
    a_row_stride,
    a_inner_stride,
    b_inner_stride,
    b_column_stride,
    c_row_stride,
    SIDE: tl.constexpr,  # noqa: N803
):
    """A block of c + a·b, in float32: added up in pieces of the inner axis."""
    row = tl.program_id(0).to(tl.int64) * SIDE + tl.arange(0, SIDE)[:, None]
    column = tl.program_id(1).to(tl.int64) * SIDE + tl.arange(0, SIDE)[None, :]
    places = c + row * c_row_stride + column
    within = (row < rows) & (column < columns)
    total = tl.load(places, mask=within, other=0.0)
    for start in range(0, inner, SIDE):
        across = start + tl.arange(0, SIDE)[None, :]
        down = start + tl.arange(0, SIDE)[:, None]
        left = tl.load(
            a + row * a_row_stride + across * a_inner_stride, mask=(row < rows) & (across < inner), other=0.0
        )
        right = tl.load(
            b + down * b_inner_stride + column * b_column_stride, mask=(down < inner) & (column < columns), other=0.0
        )
        # Without TF32, which rounds factors to eleven bits.
        total += tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    tl.store(places, total, mask=within)


def add_product(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """c += a·b of any layout and type, into float32 whose rows lie one after the other."""
    (rows, inner), columns = a.shape, b.shape[1]
    grid = (triton.cdiv(rows, SIDE), triton.cdiv(columns, SIDE))
    product_kernel[grid](a, b, c, rows, inner, columns, *a.stride(), *b.stride(), c.stride(0), SIDE=SIDE)


def logits_of(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x·weightᵀ + bias, in float32."""
    logits = torch.zeros(len(x), len(weight), dtype=torch.float32, device=x.device)
    if bias is not None:
        logits += bias
    add_product(logits, x, weight.T)
    return logits


class LinearCrossEntropy(torch.autograd.Function):
    """The loss of every row of x [R, K] under labels [R], whose logits are x·weightᵀ + bias; 0 where ignored."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        ignore_index: int,
        smoothing: float,
    ) -> torch.Tensor:
        """Of some rows at a time the logits, and one program a row."""
        # What ignored rows hold is in no product: 0 times infinity would be.
        x = torch.where((labels != ignore_index)[:, None], x, torch.zeros((), dtype=x.dtype, device=x.device))
        loss = torch.empty(len(x), dtype=torch.float32, device=x.device)
        maxima, totals = torch.empty_like(loss), torch.empty_like(loss)
        ctx.options = (len(weight), len(weight), ignore_index, smoothing)
        ctx.block = min(LARGEST_BLOCK, triton.next_power_of_2(len(weight)))
        ctx.save_for_backward(x, weight, bias, labels, maxima, totals)
        for part in parts(len(x)):
            logits = logits_of(x[part], weight, bias)
            of_rows = (tensor[part] for tensor in (labels, loss, maxima, totals))
            forward_kernel[(len(logits),)](logits, *of_rows, *ctx.options, BLOCK=ctx.block)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The upstream gradient has an element a row, and is in the gradients of logits before anything is added."""
        x, weight, bias, labels, maxima, totals = ctx.saved_tensors
        dloss = grad_outputs[0].contiguous()
        dx, dweight = (torch.zeros(t.shape, dtype=torch.float32, device=t.device) for t in (x, weight))
        dbias = torch.zeros(1, len(weight), dtype=torch.float32, device=x.device)
        for part in parts(len(x)):
            logits = logits_of(x[part], weight, bias)
            dlogits = torch.empty_like(logits)
            of_rows = (tensor[part] for tensor in (labels, maxima, totals, dloss))
            backward_kernel[(len(logits),)](logits, *of_rows, dlogits, *ctx.options, BLOCK=ctx.block)
            add_product(dx[part], dlogits, weight)
            add_product(dweight, dlogits.T, x[part])
            add_product(dbias, torch.ones_like(dloss[None, part]), dlogits)
        of_bias = None if bias is None else dbias[0].to(bias.dtype)
        return dx.to(x.dtype), dweight.to(weight.dtype), of_bias, None, None, None


def parts(rows: int) -> list[slice]:
    """Some rows after the others."""
    return [slice(first, first + ROWS_AT_ONCE) for first in range(0, rows, ROWS_AT_ONCE)]


def linear_cross_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """torch.nn.functional.linear_cross_entropy for labels without weights of classes."""
    rows, labels = x.reshape(-1, x.shape[-1]), target.reshape(-1)
    losses: torch.Tensor = LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        rows, weight, bias, labels, ignore_index, label_smoothing
    )
    return reduced(losses, target, ignore_index, reduction)


def cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """torch.nn.functional.cross_entropy for labels without weights: classes on axis 1, or on the only one."""
    rows = logits.movedim(min(1, logits.ndim - 1), -1).reshape(-1, logits.shape[min(1, logits.ndim - 1)])
    losses: torch.Tensor = CrossEntropy.apply(  # type: ignore[no-untyped-call]
        rows.contiguous(), target.reshape(-1), ignore_index, label_smoothing
    )
    return reduced(losses, target, ignore_index, reduction)


def reduced(losses: torch.Tensor, target: torch.Tensor, ignore_index: int, reduction: str) -> torch.Tensor:
    """One number, or the losses as their labels lie."""
    if reduction == "mean":
        losses = losses.sum() / (target != ignore_index).sum()
    elif reduction == "sum":
        losses = losses.sum()
    return losses.reshape(target.shape if reduction == "none" else ())


# The functions, by the names of what they have gradients for.
FUNCTIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "cross_entropy": (cross_entropy, ("logits",)),
    "linear_cross_entropy": (
        lambda input, linear_weight, target, linear_bias=None, **given: linear_cross_entropy(  # noqa: A006
            input, linear_weight, target, bias=linear_bias, **given
        ),
        ("input", "linear_weight", "linear_bias"),
    ),
}


def answer(case: dict[str, Any], golden: Path, candidate: Path) -> bool:
    """Whether a case is one for these kernels; if so, its file is written."""
    if case["function"] not in FUNCTIONS or not case["parameters"].keys() <= KNOWN:
        return False
    tensors = {name: tensor.to(DEVICE) for name, tensor in load_file(golden / case["file"]).items()}
    inputs = {name.removeprefix("input."): value for name, value in tensors.items() if name.startswith("input.")}
    if "weight" in inputs or inputs["target"].is_floating_point():
        return False
    function, names = FUNCTIONS[case["function"]]
    differentiable = {name: inputs[name].requires_grad_() for name in names if name in inputs}
    if any(tensor.dtype == torch.float64 for tensor in differentiable.values()):
        return False
    loss = function(**inputs, **case["parameters"])
    # The manifest has the upstream gradient if it is a number, the file if it is an array.
    upstream = tensors.get("grad_output", torch.tensor(case["grad_output"] or 0.0, device=DEVICE)).to(loss.dtype)
    gradients = torch.autograd.grad(loss, tuple(differentiable.values()), upstream)
    found = {f"grad.{name}": value.contiguous() for name, value in zip(differentiable, gradients, strict=True)}
    save_file({"loss": loss.detach(), **found}, candidate / case["file"])
    return True


def main() -> int:
    """Answer the cases of a golden folder."""
    if len(sys.argv) != 3:
        print("usage: triton_cross_entropy.py GOLDEN CANDIDATE", file=sys.stderr)
        return 2
    golden, candidate = Path(sys.argv[1]), Path(sys.argv[2])
    candidate.mkdir(parents=True, exist_ok=True)
    cases = json.loads((golden / "manifest.json").read_text())["cases"]
    answered = sum(answer(case, golden, candidate) for case in cases)
    print(f"{answered} cases written to {candidate}, computed {'on the GPU' if ON_GPU else 'by the interpreter'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
