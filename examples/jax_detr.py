"""DETR's loss in JAX, as somebody ports it, differentiated by JAX, and the answers that it gives to golden files.

    refloss golden write golden --only object_detection
    python examples/jax_detr.py golden candidate
    refloss compare golden candidate

In Python the same is one line: refloss.testing.check(loss_and_gradients, function="object_detection",
to_native=jax.numpy.asarray).

Needs jax and scipy. For each decoder layer SciPy finds the cheapest assignment of queries to objects, on the host and
without a gradient; then there are the cross-entropy of all queries' classes and, of those that are matched, the
distances of their boxes and their GIoU. 16 bits are cast to float32 first, as one does in training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import jax
    import jax.numpy as jnp
    from safetensors.flax import load_file, save_file
    from scipy.optimize import linear_sum_assignment
except ImportError as error:
    sys.exit(f"not run: {error}")

if TYPE_CHECKING:
    from collections.abc import Mapping

Labels = list[dict[str, np.ndarray]]  # of an image: class_labels [n], boxes [n, 4]
Pairs = list[tuple[np.ndarray, np.ndarray]]  # of an image: queries and the objects that they are matched with
KNOWN = {"config", "num_boxes"}  # the parameters
OUTPUTS = ("logits", "pred_boxes", "outputs_class", "outputs_coord")


def corners(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The least and the largest corner of boxes [..., 4] of centres and sizes."""
    return boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Generalised IoU of boxes [..., 4] of centres and sizes, in which shapes are broadcast."""
    (a_low, a_high), (b_low, b_high) = corners(a), corners(b)
    sides = jnp.minimum(a_high, b_high) - jnp.maximum(a_low, b_low)
    # Not jnp.maximum(sides, 0), which halves the derivative where boxes touch; torch's clamp does not.
    intersection = jnp.where(sides < 0, 0, sides).prod(-1)
    union = (a_high - a_low).prod(-1) + (b_high - b_low).prod(-1) - intersection
    hull = (jnp.maximum(a_high, b_high) - jnp.minimum(a_low, b_low)).prod(-1)
    return intersection / union - (hull - union) / hull


def distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """|a − b| with a derivative of 0 where they are equal, as torch has it; that of jnp.abs is 1 there."""
    difference = a - b
    return jnp.where(difference == 0, 0, jnp.abs(difference))


def matched(logits: jax.Array, boxes: jax.Array, labels: Labels, config: Mapping[str, Any]) -> Pairs:
    """The cheapest assignment of each image's queries to its objects."""
    pairs = []
    for rows, mine, image in zip(jax.nn.softmax(logits, axis=-1), boxes[:, :, None], labels, strict=True):
        truth = jnp.asarray(image["boxes"], boxes.dtype)
        cost = config["bbox_cost"] * distance(mine, truth).sum(-1) - config["giou_cost"] * giou(mine, truth)
        cost -= config["class_cost"] * rows[:, image["class_labels"]]
        pairs.append(linear_sum_assignment(np.asarray(cost)))
    return pairs


def components(
    logits: jax.Array, boxes: jax.Array, labels: Labels, pairs: Pairs, eos_coefficient: float, num_boxes: float
) -> dict[str, jax.Array]:
    """The losses of one layer; logits [B, Q, K + 1], boxes [B, Q, 4]."""
    no_object = logits.shape[-1] - 1
    images = np.repeat(np.arange(len(pairs)), [len(queries) for queries, _ in pairs])
    queries = np.concatenate([queries for queries, _ in pairs])
    chosen = [(image, objects) for image, (_, objects) in zip(labels, pairs, strict=True)]
    classes = np.concatenate([image["class_labels"][objects] for image, objects in chosen])
    truth = jnp.asarray(np.concatenate([image["boxes"][objects] for image, objects in chosen]), boxes.dtype)
    targets = jnp.full(logits.shape[:2], no_object).at[images, queries].set(classes)
    weights = jnp.where(targets == no_object, eos_coefficient, 1.0).astype(logits.dtype)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), targets[..., None], axis=-1)[..., 0]
    seen = (logits.argmax(-1) != no_object).sum(-1)
    there = np.array([len(image["class_labels"]) for image in labels])
    mine = boxes[images, queries]
    return {
        "loss_ce": -(weights * log_p).sum() / weights.sum(),
        "loss_bbox": distance(mine, truth).sum() / num_boxes,
        "loss_giou": (1 - giou(mine, truth)).sum() / num_boxes,
        "cardinality_error": jnp.abs(seen - there).astype(logits.dtype).mean(),
    }


def layers(outputs: dict[str, jax.Array], config: Mapping[str, Any]) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Logits and boxes by the suffix of their components, in float32 or wider; those of the last layer have none."""
    wide = {name: value.astype(jnp.promote_types(value.dtype, jnp.float32)) for name, value in outputs.items()}
    found = {"": (wide["logits"], wide["pred_boxes"])}
    if config["auxiliary_loss"]:
        others = zip(wide["outputs_class"][:-1], wide["outputs_coord"][:-1], strict=True)
        found |= {f"_{i}": layer for i, layer in enumerate(others)}
    return found


def loss_and_gradients(
    inputs: dict[str, Any], parameters: dict[str, Any], grad_output: Any
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
    """The total, its vector-Jacobian products with grad_output, and the components of all layers."""
    if unknown := parameters.keys() - KNOWN:
        raise NotImplementedError(f"no {', '.join(sorted(unknown))}")
    config = parameters["config"]
    labels = [{name: np.asarray(value) for name, value in image.items()} for image in inputs["labels"]]
    num_boxes = max(parameters.get("num_boxes", sum(len(image["boxes"]) for image in labels)), 1.0)
    outputs = {name: inputs[name] for name in OUTPUTS if name in inputs}
    pairs = {suffix: matched(*layer, labels, config) for suffix, layer in layers(outputs, config).items()}
    weights = {
        "loss_ce": 1.0,
        "loss_bbox": config["bbox_loss_coefficient"],
        "loss_giou": config["giou_loss_coefficient"],
    }
    counted = ["", *(f"_{i}" for i in range(config["decoder_layers"] - 1))]  # what the total has of all layers

    def evaluate(outputs: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        found = {
            f"{name}{suffix}": value
            for suffix, layer in layers(outputs, config).items()
            for name, value in components(*layer, labels, pairs[suffix], config["eos_coefficient"], num_boxes).items()
        }
        there = [suffix for suffix in counted if f"loss_ce{suffix}" in found]
        return sum(weights[name] * found[f"{name}{suffix}"] for suffix in there for name in weights), found

    loss, backward, found = jax.vjp(evaluate, outputs, has_aux=True)
    (gradients,) = backward(jnp.asarray(grad_output, loss.dtype))
    return loss, gradients, found


def answer(case: dict[str, Any], golden: Path, candidate: Path) -> bool:
    """Whether a case is of DETR's loss, and its upstream gradient one number; if so, its file is written."""
    is_ours = case["function"] == "object_detection" and case["parameters"].keys() <= KNOWN
    if not is_ours or not isinstance(case["grad_output"], float):
        return False
    tensors = load_file(str(golden / case["file"]))
    inputs: dict[str, Any] = {name: tensors[f"input.{name}"] for name in OUTPUTS if f"input.{name}" in tensors}
    inputs["labels"] = [
        {name: tensors[f"input.labels.{image}.{name}"] for name in ("class_labels", "boxes")}
        for image in range(len(inputs["logits"]))
    ]
    loss, gradients, found = loss_and_gradients(inputs, case["parameters"], case["grad_output"])
    answers = {"loss": loss, **{f"grad.{name}": value for name, value in gradients.items()}}
    answers |= {f"component.{name}": value for name, value in found.items()}
    save_file(answers, str(candidate / case["file"]))
    return True


def main() -> int:
    """Answer the cases of a golden folder."""
    if len(sys.argv) != 3:
        print("usage: jax_detr.py GOLDEN CANDIDATE", file=sys.stderr)
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
