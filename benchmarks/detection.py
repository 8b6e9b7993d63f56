"""The heads that match: time against transformers, value and all gradients.

Run as `python -m benchmarks.detection [--write]`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import refloss
from benchmarks.competitors import REFLOSS, torch_tensor
from benchmarks.measure import Timing, in_fresh_process, interleaved, machine
from benchmarks.report import Aim, Table, console, publish, wants_write

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TRANSFORMERS, VALUE = "transformers, PyTorch eager", "refloss, grad=False"
LAYERS, OBJECTS = 6, 7
# Denoising queries beside the others, in groups of as many that stand for objects as do not.
DENOISING, BINS = 98, 32
COLUMNS = ("head", "implementation", "ms", "quartiles apart", "fastest", "time / refloss", "aim", "holds")
TOLERANCE = 1e-3


class Scene(NamedTuple):
    """Sizes of a head's inputs, and how much faster than transformers refloss is meant to be."""

    key: str
    images: int
    queries: int
    classes: int
    masks: tuple[tuple[int, int], tuple[int, int]] | None
    aim: float


SCENES = {
    "DETR": Scene("ForObjectDetection", 16, 300, 91, None, 6.0),
    "Deformable DETR": Scene("DeformableDetrForObjectDetection", 16, 300, 90, None, 6.0),
    "DETR with masks": Scene("ForSegmentation", 4, 100, 91, ((100, 125), (400, 500)), 5.0),
    "RT-DETR": Scene("RTDetrForObjectDetection", 16, 300, 80, None, 10.0),
    "D-FINE": Scene("DFineForObjectDetection", 16, 300, 80, None, 6.0),
}
LAYERED = ("RTDetrForObjectDetection", "DFineForObjectDetection")


def configuration(labels: int) -> SimpleNamespace:
    """The models' own weights."""
    return SimpleNamespace(
        num_labels=labels,
        class_cost=1.0,
        bbox_cost=5.0,
        giou_cost=2.0,
        eos_coefficient=0.1,
        focal_alpha=0.25,
        auxiliary_loss=True,
        decoder_layers=LAYERS,
        bbox_loss_coefficient=5.0,
        giou_loss_coefficient=2.0,
        mask_loss_coefficient=1.0,
        dice_loss_coefficient=1.0,
        matcher_class_cost=2.0,
        matcher_bbox_cost=5.0,
        matcher_giou_cost=2.0,
        matcher_alpha=0.25,
        matcher_gamma=2.0,
        use_focal_loss=True,
        focal_loss_alpha=0.75,
        focal_loss_gamma=2.0,
        weight_loss_vfl=1.0,
        weight_loss_bbox=5.0,
        weight_loss_giou=2.0,
        weight_loss_fgl=0.15,
        weight_loss_ddf=1.5,
        max_num_bins=BINS,
        reg_scale=4.0,
        up=0.5,
    )


def _boxes(generator: np.random.Generator, *axes: int) -> np.ndarray:
    sizes = 0.02 + 0.4 * generator.random((*axes, 2))
    return np.concatenate([generator.random((*axes, 2)), sizes], axis=-1).astype(np.float32)


def arguments(scene: Scene) -> tuple[dict[str, Any], list[dict[str, np.ndarray]], SimpleNamespace]:
    """Predictions, labels and configuration."""
    generator = np.random.default_rng(0)
    labels_of = scene.classes - (scene.key in ("ForObjectDetection", "ForSegmentation"))
    predictions = (_layered if scene.key in LAYERED else _stacked)(scene, generator)
    labels = [
        {"class_labels": generator.integers(labels_of, size=OBJECTS), "boxes": _boxes(generator, OBJECTS)}
        for _ in range(scene.images)
    ]
    if scene.masks is not None:
        small, large = scene.masks
        planes = (scene.images, scene.queries, *small)
        predictions["pred_masks"] = 2 * generator.standard_normal(planes, np.float32)
        for own in labels:
            own["masks"] = (generator.random((OBJECTS, *large)) < 0.3).astype(np.float32)
    return predictions, labels, configuration(labels_of)


def _stacked(scene: Scene, generator: np.random.Generator) -> dict[str, Any]:
    """Predictions as DETR has them, layers first."""
    shape = (LAYERS, scene.images, scene.queries)
    classes, coordinates = 2 * generator.standard_normal((*shape, scene.classes), np.float32), _boxes(generator, *shape)
    return {
        "logits": classes[-1].copy(),
        "pred_boxes": coordinates[-1].copy(),
        "outputs_class": classes,
        "outputs_coord": coordinates,
    }


def _layered(scene: Scene, generator: np.random.Generator) -> dict[str, Any]:
    """Predictions as RT-DETR has them, images first, with denoising queries."""
    shape = (scene.images, LAYERS, DENOISING + scene.queries)
    classes, coordinates = 2 * generator.standard_normal((*shape, scene.classes), np.float32), _boxes(generator, *shape)
    groups = DENOISING // (2 * OBJECTS)
    positive = (2 * OBJECTS * np.arange(groups)[:, None] + np.arange(OBJECTS)).reshape(-1)
    predictions: dict[str, Any] = {
        "logits": classes[:, -1].copy(),
        "pred_boxes": coordinates[:, -1].copy(),
        "outputs_class": classes,
        "outputs_coord": coordinates,
        "enc_topk_logits": 2 * generator.standard_normal((scene.images, scene.queries, scene.classes), np.float32),
        "enc_topk_bboxes": _boxes(generator, scene.images, scene.queries),
        "denoising_meta_values": {
            "dn_positive_idx": [positive] * scene.images,
            "dn_num_group": groups,
            "dn_num_split": [DENOISING, scene.queries],
        },
    }
    if scene.key == "DFineForObjectDetection":
        predictions["predicted_corners"] = generator.standard_normal((*shape, 4 * (BINS + 1)), np.float32)
        predictions["initial_reference_points"] = _boxes(generator, *shape)
    return predictions


def calls(name: str) -> dict[str, Callable[[], Any]]:
    """A head by refloss, by transformers, and by refloss without gradients."""
    import torch
    from transformers.loss.loss_utils import LOSS_MAPPING

    scene = SCENES[name]
    predictions, labels, config = arguments(scene)
    given: dict[str, Any] = {
        key: torch_tensor(value) for key, value in predictions.items() if isinstance(value, np.ndarray)
    }
    tensors = {key: value.requires_grad_() for key, value in given.items() if key != "initial_reference_points"}
    given |= {key: _as_torch(value) for key, value in predictions.items() if key not in given}
    targets = [{key: torch.tensor(value) for key, value in own.items()} for own in labels]
    mapping: Mapping[str, Any] = LOSS_MAPPING

    def theirs() -> tuple[Any, Any]:
        loss, _, _ = mapping[scene.key](**given, labels=targets, config=config, device="cpu")
        return loss.detach(), dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))

    def ours(grad: bool = True) -> refloss.LossResult:
        result: refloss.LossResult = refloss.LOSS_MAPPING[scene.key](
            **predictions, labels=labels, config=config, grad=grad
        )
        return result

    return {REFLOSS: ours, TRANSFORMERS: theirs, VALUE: lambda: ours(grad=False)}


def _as_torch(meta: dict[str, Any]) -> dict[str, Any]:
    import torch

    return meta | {"dn_positive_idx": [torch.tensor(queries) for queries in meta["dn_positive_idx"]]}


def check(implementations: Mapping[str, Callable[[], Any]]) -> None:
    """Refuse to time calls that do not compute the same."""
    result = implementations[REFLOSS]()
    loss, grads = implementations[TRANSFORMERS]()
    distances = [
        np.abs(theirs.numpy() - result.grads[name]).max() / np.abs(result.grads[name]).max()
        for name, theirs in grads.items()
    ]
    if abs(float(loss) - result.loss) > TOLERANCE * result.loss or max(distances) > TOLERANCE:
        raise ValueError(f"loss {float(loss)} and {result.loss}, gradients {distances} of the largest apart")


def times(name: str) -> dict[str, Timing]:
    """Timings of everyone who computes a head."""
    implementations = calls(name)
    check(implementations)
    return interleaved(implementations)


def first_call() -> Table:
    """Seconds of the first call of DETR in a process, with nothing compiled and with kernels on disk."""
    code = "from benchmarks.detection import SCENES, first; first()"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for state in ("nothing compiled", "kernels on disk"):
            environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
            run = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
            rows.append((state, f"{float(run.stdout):.1f}"))
    return Table("The first call of DETR in a process", ("cache", "seconds"), rows)


def first() -> None:
    """Print how long a first call of DETR takes."""
    predictions, labels, config = arguments(SCENES["DETR"])
    start = time.perf_counter()
    refloss.LOSS_MAPPING["ForObjectDetection"](**predictions, labels=labels, config=config)
    print(time.perf_counter() - start)


def comparison() -> tuple[Table, list[Aim]]:
    """The table, and the aims in it."""
    rows: list[tuple[str, ...]] = []
    aims: list[Aim] = []
    for name, scene in SCENES.items():
        with console.status(name):
            timings = in_fresh_process(times, name)
        base = timings[REFLOSS].median
        for implementation, timing in timings.items():
            aim = Aim(timing.median / base, scene.aim, "× refloss") if implementation == TRANSFORMERS else None
            aims += [aim] if aim else []
            cells = (*(f"{seconds * 1e3:.1f}" for seconds in timing), f"{timing.median / base:.2f}")
            first_column = name if implementation == REFLOSS else ""
            rows.append((first_column, implementation, *cells, *(aim.cells() if aim else ("", ""))))
    return Table("Value and all gradients, float32", COLUMNS, rows), aims


def main() -> None:
    """Measure, print and, with --write, document."""
    write = wants_write(__doc__)
    table, aims = comparison()
    held = sum(aim.holds() for aim in aims)
    conclusion = f"{held} of {len(aims)} aims hold."
    packages = ("refloss", "numpy", "numba", "scipy", "torch", "transformers")
    publish("detection", machine(packages), (table, first_call()), conclusion, write)


if __name__ == "__main__":
    main()
