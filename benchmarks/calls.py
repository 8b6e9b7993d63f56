"""Small calls: what a loss costs beside its kernel, the checks of its arguments and the way there and back.

Run as `python -m benchmarks.calls [--write]`.
"""

from __future__ import annotations

import gc
import statistics
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import refloss
from benchmarks.detection import configuration
from benchmarks.measure import machine
from benchmarks.report import Aim, Table, publish, wants_write

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Call = Callable[[], refloss.LossResult]

# Turns of a few calls each: long enough to be timed, short enough to pass between two interruptions.
ROUNDS, CALLS = 100, 10
IMAGES, QUERIES, OBJECTS, LABELS, LAYERS, DENOISING = 2, 10, 3, 5, 2, 12
SHAPE = (4, 50)
AIMS = {"cross_entropy": 60.0, "mse": 60.0, "object_detection": 500.0}
COLUMNS = ("call", "inputs", "µs", "fastest", "aim", "holds")


def _floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _probabilities(*shape: int) -> np.ndarray:
    exponentials = np.exp(_floats(*shape))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)


def _labels(classes: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(classes, size=shape)


def _boxes(*shape: int) -> np.ndarray:
    generator = np.random.default_rng(2)
    return np.concatenate([generator.random((*shape, 2)), 0.1 + 0.3 * generator.random((*shape, 2))], -1).astype("f4")


def elementwise_calls() -> dict[str, Call]:
    """Losses of corresponding elements."""
    x, t, p = _floats(*SHAPE), _floats(*SHAPE)[::-1].copy(), _probabilities(*SHAPE)
    yes = (t > 0).astype(np.float32)
    return {
        "mse": partial(refloss.mse, x, t),
        "l1": partial(refloss.l1, x, t),
        "smooth_l1": partial(refloss.smooth_l1, x, t),
        "huber": partial(refloss.huber, x, t),
        "bce": partial(refloss.bce, p, yes),
        "bce_with_logits": partial(refloss.bce_with_logits, x, yes),
        "kl_div": partial(refloss.kl_div, np.log(p), p[::-1].copy()),
        "sigmoid_focal": partial(refloss.sigmoid_focal, x, yes),
        "varifocal": partial(refloss.varifocal, x, yes),
        "dice": partial(refloss.dice, x, yes),
    }


def row_calls() -> dict[str, Call]:
    """Losses of rows of classes, and of pairs of boxes."""
    x, p, y = _floats(*SHAPE), _probabilities(*SHAPE), _labels(SHAPE[1], SHAPE[0])
    return {
        "cross_entropy": partial(refloss.cross_entropy, x, y),
        "cross_entropy, label_smoothing": partial(refloss.cross_entropy, x, y, label_smoothing=0.1),
        "cross_entropy, probabilities": partial(refloss.cross_entropy, x, p),
        "nll": partial(refloss.nll, np.log(p), y),
        "causal_lm": partial(refloss.causal_lm, _floats(2, 5, 32), _labels(32, 2, 5)),
        "semantic_segmentation": partial(refloss.semantic_segmentation, _floats(1, 3, 4, 4), _labels(3, 1, 16, 16)),
        "giou": partial(refloss.giou, _boxes(20), _boxes(20)[::-1].copy(), box_format="cxcywh"),
    }


def head_calls() -> dict[str, Call]:
    """Heads that match, without auxiliary losses."""
    boxes, config = _boxes(IMAGES, QUERIES), configuration(LABELS)
    config.auxiliary_loss = False
    labels = [{"class_labels": _labels(LABELS, OBJECTS), "boxes": _boxes(OBJECTS)} for _ in range(IMAGES)]
    layered = _layered()
    corners = _floats(IMAGES, LAYERS, DENOISING + QUERIES, 4 * (config.max_num_bins + 1))
    references = _boxes(*corners.shape[:-1])
    return {
        "object_detection": partial(
            refloss.object_detection, _floats(IMAGES, QUERIES, LABELS + 1), labels, boxes, config
        ),
        "deformable_detr_object_detection": partial(
            refloss.deformable_detr_object_detection, _floats(IMAGES, QUERIES, LABELS), labels, boxes, config
        ),
        "rt_detr_object_detection": partial(refloss.rt_detr_object_detection, labels=labels, config=config, **layered),
        "d_fine_object_detection": partial(
            refloss.d_fine_object_detection,
            labels=labels,
            config=config,
            predicted_corners=corners,
            initial_reference_points=references,
            **layered,
        ),
    }


def _layered() -> dict[str, Any]:
    """Predictions of two layers, with denoising queries."""
    shape = (IMAGES, LAYERS, DENOISING + QUERIES)
    classes, coordinates = _floats(*shape, LABELS), _boxes(*shape)
    groups = DENOISING // (2 * OBJECTS)
    positive = (2 * OBJECTS * np.arange(groups)[:, None] + np.arange(OBJECTS)).reshape(-1)
    return {
        "logits": classes[:, -1].copy(),
        "pred_boxes": coordinates[:, -1].copy(),
        "outputs_class": classes,
        "outputs_coord": coordinates,
        "enc_topk_logits": _floats(IMAGES, QUERIES, LABELS),
        "enc_topk_bboxes": _boxes(IMAGES, QUERIES),
        "denoising_meta_values": {
            "dn_positive_idx": [positive] * IMAGES,
            "dn_num_group": groups,
            "dn_num_split": [DENOISING, QUERIES],
        },
    }


def times(calls: Mapping[str, Call]) -> dict[str, tuple[float, float]]:
    """Microseconds of each call, the median and the fastest: in turn, on one thread, without garbage collection."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    refloss.set_num_threads(1)
    gc.disable()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            # What others have put into the processor's caches is no part of a call.
            for _ in range(CALLS):
                call()
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            seconds[name].append((time.perf_counter() - start) / CALLS * 1e6)
        gc.collect()
    gc.enable()
    return {name: (statistics.median(values), min(values)) for name, values in seconds.items()}


def comparison() -> tuple[Table, list[Aim]]:
    """The table, and the aims in it."""
    calls = elementwise_calls() | row_calls() | head_calls()
    rows: list[tuple[str, ...]] = []
    aims: list[Aim] = []
    for name, (median, fastest) in times(calls).items():
        aim = Aim(median, AIMS[name], "µs", at_least=False) if name in AIMS else None
        aims += [aim] if aim else []
        cells = (f"{median:.0f}", f"{fastest:.0f}", *(aim.cells() if aim else ("", "")))
        rows.append((name, _inputs(calls[name]), *cells))
    return Table("Value and all gradients, float32", COLUMNS, rows), aims


def _inputs(call: Any) -> str:
    """The shape of what a call is given first."""
    first = call.args[0] if call.args else call.keywords["logits"]
    return " × ".join(str(size) for size in first.shape)


def main() -> None:
    """Measure, print and, with --write, document."""
    write = wants_write(__doc__)
    table, aims = comparison()
    conclusion = f"{sum(aim.holds() for aim in aims)} of {len(aims)} aims hold."
    publish("calls", machine(("refloss", "numpy", "numba", "scipy")), (table,), conclusion, write)


if __name__ == "__main__":
    main()
