"""A cross-entropy in JAX, differentiated by JAX, and the answers that it gives to golden files.

    refloss golden write golden --only cross_entropy
    python examples/jax_cross_entropy.py golden candidate
    refloss compare golden candidate

In Python the same is one line: refloss.testing.check(loss_and_gradients, function="cross_entropy",
to_native=jax.numpy.asarray).

Needs jax. Everything that torch.nn.functional.cross_entropy offers is here: labels or probabilities, weights,
smoothing, reductions. A case with any other parameter is left out. Logits of 16 bits are cast to float32 first, as one
does in training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

try:
    import jax
    import jax.numpy as jnp
    from safetensors.flax import load_file, save_file
except ImportError as error:
    sys.exit(f"not run: {error}")

KNOWN = {"ignore_index", "reduction", "label_smoothing"}  # the parameters


def cross_entropy(
    logits: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> jax.Array:
    """The loss; classes on axis 1, or on the only one."""
    class_axis = min(1, logits.ndim - 1)
    logits = jnp.moveaxis(logits, class_axis, -1)
    compute_dtype = jnp.promote_types(logits.dtype, jnp.float32)
    classes = logits.shape[-1]
    weight = jnp.ones(classes, compute_dtype) if weight is None else weight.astype(compute_dtype)
    if jnp.issubdtype(target.dtype, jnp.floating):
        probabilities = jnp.moveaxis(target, class_axis, -1).astype(compute_dtype)
        counted = jnp.ones(probabilities.shape[:-1], bool)
        divisor = jnp.asarray(counted.size, compute_dtype)
    else:
        counted = target != ignore_index
        # Replaced before they are used: 0 times the derivative of a row of NaN would be NaN.
        logits = jnp.where(counted[..., None], logits, 0)
        target = jnp.where(counted, target, 0)
        divisor = jnp.where(counted, weight[target], 0).sum()
    log_p = jax.nn.log_softmax(logits.astype(compute_dtype), axis=-1)
    if jnp.issubdtype(target.dtype, jnp.floating):
        losses = -(weight * probabilities * log_p).sum(-1)
    else:
        losses = -weight[target] * jnp.take_along_axis(log_p, target[..., None], axis=-1)[..., 0]
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing / classes * (weight * log_p).sum(-1)
    losses = jnp.where(counted, losses, 0)
    if reduction == "none":
        return losses
    return losses.sum() / divisor if reduction == "mean" else losses.sum()


def loss_and_gradients(
    inputs: dict[str, Any], parameters: dict[str, Any], grad_output: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss, and for each input that has a gradient its vector-Jacobian product with grad_output."""
    if unknown := parameters.keys() - KNOWN:
        raise NotImplementedError(f"no {', '.join(sorted(unknown))}")
    names = [name for name in ("logits", "target") if jnp.issubdtype(inputs[name].dtype, jnp.floating)]
    rest = {name: value for name, value in inputs.items() if name not in names}

    @jax.jit
    def evaluate(arrays: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        loss, backward = jax.vjp(lambda arrays: cross_entropy(**rest | arrays, **parameters), arrays)
        (gradients,) = backward(jnp.asarray(grad_output, loss.dtype))
        return loss, gradients

    answer: tuple[jax.Array, dict[str, jax.Array]] = evaluate({name: inputs[name] for name in names})
    return answer


def answer(case: dict[str, Any], golden: Path, candidate: Path) -> bool:
    """Whether a case is a cross-entropy whose parameters are known; if so, its file is written."""
    if case["function"] != "cross_entropy" or not case["parameters"].keys() <= KNOWN:
        return False
    tensors = load_file(str(golden / case["file"]))
    inputs = {name.removeprefix("input."): value for name, value in tensors.items() if name.startswith("input.")}
    # The manifest has the upstream gradient if it is a number, the file if it is an array.
    upstream = tensors.get("grad_output", case["grad_output"])
    loss, gradients = loss_and_gradients(inputs, case["parameters"], upstream)
    answers = {"loss": loss, **{f"grad.{name}": value for name, value in gradients.items()}}
    save_file(answers, str(candidate / case["file"]))
    return True


def main() -> int:
    """Answer the cases of a golden folder."""
    if len(sys.argv) != 3:
        print("usage: jax_cross_entropy.py GOLDEN CANDIDATE", file=sys.stderr)
        return 2
    jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]  # or cases in float64 would be answered in float32
    golden, candidate = Path(sys.argv[1]), Path(sys.argv[2])
    candidate.mkdir(parents=True, exist_ok=True)
    cases = json.loads((golden / "manifest.json").read_text())["cases"]
    answered = sum(answer(case, golden, candidate) for case in cases)
    print(f"{answered} cases written to {candidate}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
