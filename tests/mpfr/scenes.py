"""What the heads that match are given: scenes of many queries, and what makes them hard to round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from refloss.cases.scenes import CONFIG, LAYERED_CONFIG
from tests.mpfr import boxes
from tests.mpfr.detection import Scene
from tests.mpfr.elements import COTANGENTS

CLASSES, LAYERS, BINS = 11, 3, 8
SOFTMAX = ("object_detection", "segmentation")
AT_POINTS = ("rf_detr_instance_segmentation",)
MASKED = ("segmentation", "deformable_detr_segmentation", *AT_POINTS)
FOLLOWERS = ("rt_detr_object_detection", "d_fine_object_detection", "deimv2_object_detection")
LOCAL = FOLLOWERS[1:]
HEADS = (
    *SOFTMAX,
    "deformable_detr_object_detection",
    "deformable_detr_segmentation",
    "grounding_dino_object_detection",
    *FOLLOWERS,
    "lw_detr_object_detection",
    "rf_detr_instance_segmentation",
)
GROUPED = ("lw_detr_object_detection", "rf_detr_instance_segmentation")
Draw = Callable[[np.random.Generator, int], Iterator[Scene]]


class Scenes:
    """The kinds of scenes of a head; each method draws scenes of about as many elements as asked for."""

    def __init__(self, head: str) -> None:
        self.head = head

    def kinds(self) -> dict[str, Draw]:
        """By name."""
        kinds: dict[str, Draw] = {
            "ordinary": self.ordinary,
            "cotangents": self.cotangents,
            "confident": self.confident,
            "good boxes": self.good_boxes,
            "formats": self.formats,
        }
        if self.head in LOCAL:
            kinds["near the teacher"] = self.near_the_teacher
        if self.head in AT_POINTS:
            kinds["balanced masks"] = self.balanced_masks
        return kinds

    def _queries(self, size: int, parts: int) -> int:
        """Of a scene with two images."""
        many = LAYERS + 1 + (self.head in FOLLOWERS or self.head.startswith(("lw", "rf", "grounding")))
        each = many * (CLASSES + 4) + (LAYERS * (4 * (BINS + 1) + 4) if self.head in LOCAL else 0)
        each += 20 if self.head in MASKED else 0
        return max(6, size // parts // (2 * each))

    def _scene(
        self,
        generator: np.random.Generator,
        queries: int,
        cotangent: float,
        dtype: Any = np.float32,
        scale: float = 2.0,
    ) -> Scene:
        images, classes = 2, CLASSES + (self.head in SOFTMAX)
        counts = [max(1, queries // 3), max(1, queries // 4)]
        labels: list[dict[str, np.ndarray]] = [
            {
                "class_labels": generator.integers(
                    CLASSES if self.head != "grounding_dino_object_detection" else 5, size=n
                ),
                "boxes": boxes.draw(generator, n, "cxcywh").astype(np.float32),
            }
            for n in counts
        ]

        def logits(*shape: int) -> np.ndarray:
            return (generator.standard_normal(shape) * scale).astype(dtype)

        def drawn_boxes(*shape: int) -> np.ndarray:
            drawn = boxes.draw(generator, int(np.prod(shape)), "cxcywh")
            return drawn.reshape(*shape, 4).astype(dtype)

        arguments: dict[str, Any] = {
            "logits": logits(images, queries, classes),
            "labels": labels,
            "pred_boxes": drawn_boxes(images, queries),
        }
        of_layers = (images, LAYERS, queries) if self.head in FOLLOWERS else (LAYERS, images, queries)
        arguments |= {"outputs_class": logits(*of_layers, classes), "outputs_coord": drawn_boxes(*of_layers)}
        config = (LAYERED_CONFIG if self.head in FOLLOWERS else CONFIG) | {
            "num_labels": CLASSES,
            "auxiliary_loss": True,
            "max_num_bins": BINS,
            "group_detr": 2,
            "class_loss_coefficient": 1.5,
            "mask_class_loss_coefficient": 2.5,
            "mask_dice_loss_coefficient": 5.0,
            "mask_point_sample_ratio": 2,
            "two_stage": True,
        }
        proposals = {
            **dict.fromkeys(GROUPED, ("enc_outputs_class", "enc_outputs_coord")),
            "grounding_dino_object_detection": ("encoder_logits", "encoder_pred_boxes"),
            **dict.fromkeys(FOLLOWERS, ("enc_topk_logits", "enc_topk_bboxes")),
        }
        if self.head in proposals:
            of_classes, of_boxes = proposals[self.head]
            arguments |= {of_classes: logits(images, queries, classes), of_boxes: drawn_boxes(images, queries)}
        if self.head in LOCAL:
            arguments["predicted_corners"] = logits(*of_layers, 4 * (BINS + 1))
            arguments["initial_reference_points"] = drawn_boxes(*of_layers)
        if self.head in MASKED:
            arguments["pred_masks"] = logits(images, queries, 4, 5)
            for own, count in zip(labels, counts, strict=True):
                own["masks"] = generator.random((count, 8, 7)) < 0.4
        if self.head in AT_POINTS:
            arguments["outputs_masks"] = logits(LAYERS, images, queries, 4, 5)
            arguments["enc_outputs_masks"] = logits(images, queries, 4, 5)
            arguments["seed"] = int(generator.integers(2**32))
        if self.head == "grounding_dino_object_detection":
            maps = (generator.random((images, 5, classes)) < 0.4).astype(np.float32)
            maps[..., 0] = 1
            arguments |= {"label_maps": list(maps), "text_mask": np.arange(classes) < classes - 1}
        arguments["config"] = config
        return Scene(self.head, arguments, cotangent)

    def ordinary(self, generator: np.random.Generator, size: int) -> Iterator[Scene]:
        """As one would test it."""
        yield self._scene(generator, self._queries(size, 1), 1.0)

    def cotangents(self, generator: np.random.Generator, size: int) -> Iterator[Scene]:
        """Numbers without end in binary."""
        for cotangent in COTANGENTS:
            yield self._scene(generator, self._queries(size, 5), cotangent)

    def confident(self, generator: np.random.Generator, size: int) -> Iterator[Scene]:
        """Logits far out."""
        for scale in (10.0, 40.0):
            yield self._scene(generator, self._queries(size, 2), 0.7, scale=scale)

    def good_boxes(self, generator: np.random.Generator, size: int) -> Iterator[Scene]:
        """Boxes that fit, and classes that know how well; some boxes leave the image."""
        for distance in (0.0, 2.0**-22, 2.0**-12, 0.03):
            scene = self._scene(generator, self._queries(size, 4), COTANGENTS[generator.integers(5)])
            arguments = scene.arguments
            for image, own in enumerate(arguments["labels"]):
                many = len(own["boxes"])
                moved = own["boxes"] * (1 + distance * generator.integers(-2, 3, own["boxes"].shape))
                arguments["pred_boxes"][image, :many] = moved
                coordinates = arguments["outputs_coord"]
                of_image = coordinates[image] if self.head in FOLLOWERS else coordinates[:, image]
                of_image[:, :many] = moved
            for name in ("pred_boxes", "outputs_coord"):
                arguments[name][..., -1, 0] += 0.6
            yield scene

    def formats(self, generator: np.random.Generator, size: int) -> Iterator[Scene]:
        """Predictions in other formats than float32."""
        for k, dtype in enumerate((ml_dtypes.bfloat16, np.float16, np.float64)):
            yield self._scene(generator, self._queries(size, 3), COTANGENTS[k], dtype)

    def balanced_masks(self, generator: np.random.Generator, size: int) -> Iterator[Scene]:
        """Logits of 0 and points that mirror each other, which leave nothing; some that are no short numbers."""
        mirrored = np.array([[0.375, 0.5], [0.625, 0.5], [0.3, 0.5], [0.7, 0.5], [0.3, 0.5], [0.125, 1 / 3]])
        for scale in (0.0, 1e-6):
            scene = self._scene(generator, self._queries(size, 2), 0.7, scale=scale)
            masks = [own["masks"] for own in scene.arguments["labels"]]
            for own in masks:
                own[:, :, :4], own[:, :, 4:] = True, False
            pairs = 2 * sum(map(len, masks))
            scene.arguments["points"] = np.broadcast_to(mirrored, (LAYERS + 1, pairs, *mirrored.shape))
            yield scene

    def near_the_teacher(self, generator: np.random.Generator, size: int) -> Iterator[Scene]:
        """Edges close to those of the last layer, or shifted by a constant."""
        for distance in (0.0, 2.0**-22, 2.0**-12):
            scene = self._scene(generator, self._queries(size, 3), 0.7)
            rows = scene.arguments["predicted_corners"]
            rows[:, 0] = rows[:, -1] * (1 + distance * generator.integers(-2, 3, rows[:, 0].shape))
            # Short numbers, so that the sums are exact.
            rows[:, -1, 0] = np.round(rows[:, -1, 0] * 4) / 4
            rows[:, 1] = rows[:, -1]
            rows[:, :2, 0] = rows[:, -1:, 0] + 1.5
            yield scene
