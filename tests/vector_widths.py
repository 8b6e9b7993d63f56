"""One problem for each family of kernels, large enough for whole vectors: python -m tests.vector_widths prints bits.

tests/test_vector_widths.py runs it as on processors with other vectors.
"""

import hashlib
import json
from typing import Any

import numba
import numpy as np

import refloss
from refloss.cases.scenes import CONFIG, LAYERED_CONFIG
from refloss.cases.source import DTYPES

FORMATS = ("float32", "bfloat16")
FAMILIES = ("rows", "columns", "elementwise", "one_class", "boxes", "masks", "distillation", "matching")
_QUERIES, _CLASSES, _OBJECTS = 150, 40, 70


def _boxes(generator: np.random.Generator, *shape: int) -> np.ndarray:
    centers, sizes = generator.uniform(0.2, 0.8, (*shape, 2)), generator.uniform(0.05, 0.4, (*shape, 2))
    return np.concatenate([centers, sizes], axis=-1).astype(np.float32)


def results(dtype: Any) -> dict[str, list[Any]]:
    """What each family computes."""
    generator = np.random.default_rng(5)

    def normal(*shape: int, scale: float = 3.0) -> np.ndarray:
        return (generator.standard_normal(shape) * scale).astype(dtype)

    rows = refloss.cross_entropy(normal(40, 517), generator.integers(517, size=40))
    columns = refloss.cross_entropy(normal(700, 21), generator.integers(21, size=700))
    elements = refloss.bce_with_logits(normal(301), generator.random(301).astype(dtype))
    logits, masks = normal(1, _QUERIES, _CLASSES), normal(1, _QUERIES, 9, 31)
    layers = [{"outputs_class": normal(1, 2, _QUERIES, _CLASSES)}]
    boxes = _boxes(generator, 3, 1, _QUERIES).astype(dtype)
    labels = [
        {
            "class_labels": generator.integers(_CLASSES - 1, size=_OBJECTS),
            "boxes": _boxes(generator, _OBJECTS),
            "masks": generator.random((_OBJECTS, 21, 67)) < 0.4,
        }
    ]
    bins = LAYERED_CONFIG["max_num_bins"] + 1
    edges = {
        "outputs_class": layers[0]["outputs_class"],
        "outputs_coord": np.stack([boxes[0], boxes[1]], axis=1),
        "enc_topk_logits": normal(1, _QUERIES, _CLASSES),
        "enc_topk_bboxes": boxes[2],
        "predicted_corners": normal(1, 2, _QUERIES, 4 * bins),
        "initial_reference_points": np.stack([boxes[1], boxes[2]], axis=1),
    }
    layered = refloss.d_fine_object_detection(
        logits, labels, boxes[0], LAYERED_CONFIG | {"num_labels": _CLASSES}, **edges
    )
    config = CONFIG | {"num_labels": _CLASSES - 1, "auxiliary_loss": False}
    segmented = refloss.segmentation(logits, labels, boxes[0], masks, config)
    return {
        "rows": [rows.loss, rows.grads["logits"], rows.intermediates["lse"]],
        "columns": [columns.loss, columns.grads["logits"], columns.intermediates["lse"]],
        "elementwise": [elements.loss, elements.grads["logits"], elements.grads["target"]],
        "one_class": [layered.components["loss_vfl"], layered.grads["logits"]],
        "boxes": [layered.components["loss_giou"], layered.components["loss_bbox"], layered.grads["pred_boxes"]],
        "masks": [segmented.components["loss_mask"], segmented.components["loss_dice"], segmented.grads["pred_masks"]],
        "distillation": [layered.components["loss_ddf_aux_0"], layered.grads["predicted_corners"]],
        "matching": [layered.intermediates["cost_matrix"], segmented.intermediates["cost_matrix"]],
    }


def bits(values: list[Any]) -> str:
    """A hash of arrays."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(value).tobytes() for value in values)).hexdigest()


def all_bits() -> dict[str, str]:
    """Family by family and format by format."""
    return {f"{family}-{name}": bits(values) for name in FORMATS for family, values in results(DTYPES[name]).items()}


def registers() -> list[str]:
    """The vector registers that loops are compiled for."""

    @numba.njit("void(float64[::1])")
    def double(values):
        for i in range(values.size):
            values[i] *= 2.0

    code = "".join(double.inspect_asm().values())
    return [name for name in ("xmm", "ymm", "zmm") if f"%{name}" in code]


if __name__ == "__main__":
    print(json.dumps({"bits": all_bits(), "registers": registers()}))
