"""A fused cross-entropy in Triton, forward and backward, and the answers that it gives to golden files.

    refloss golden write golden --only cross_entropy
    python examples/triton_cross_entropy.py golden candidate
    refloss compare golden candidate

Needs torch and triton. On an NVIDIA GPU the kernels are compiled; elsewhere Triton's interpreter runs them, which is
slow, and enough to know whether they are right. They take labels, an ignore_index and label smoothing, compute in
float32 whatever the logits are, and never hold a row of probabilities; cases with weights, with probabilities for
targets, with any other parameter or in float64 are not theirs and are left out.
"""

# mypy: disable-error-code="import-not-found, no-untyped-def, untyped-decorator"

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
        dlogits = torch.empty_like(logits)
        dloss = grad_outputs[0].contiguous()
        backward_kernel[(len(logits),)](logits, labels, maxima, totals, dloss, dlogits, *ctx.options, BLOCK=ctx.block)
        return dlogits, None, None, None


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
    if reduction == "mean":
        losses = losses.sum() / (target != ignore_index).sum()
    elif reduction == "sum":
        losses = losses.sum()
    return losses.reshape(target.shape if reduction == "none" else ())


def answer(case: dict[str, Any], golden: Path, candidate: Path) -> bool:
    """Whether a case is one for these kernels; if so, its file is written."""
    if case["function"] != "cross_entropy" or not case["parameters"].keys() <= KNOWN:
        return False
    tensors = {name: tensor.to(DEVICE) for name, tensor in load_file(golden / case["file"]).items()}
    if "input.weight" in tensors:
        return False
    logits, target = tensors["input.logits"].requires_grad_(), tensors["input.target"]
    if target.is_floating_point() or logits.dtype == torch.float64:
        return False
    loss = cross_entropy(logits, target, **case["parameters"])
    # The manifest has the upstream gradient if it is a number, the file if it is an array.
    upstream = tensors.get("grad_output", torch.tensor(case["grad_output"] or 0.0, device=DEVICE)).to(loss.dtype)
    (gradient,) = torch.autograd.grad(loss, logits, upstream)
    save_file({"loss": loss.detach(), "grad.logits": gradient.contiguous()}, candidate / case["file"])
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
