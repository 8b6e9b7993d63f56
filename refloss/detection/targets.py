"""What the images really show, as the caller's labels say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from refloss import arrays


class Targets(NamedTuple):
    """The objects of all images, one image after the other: those of image b are offsets[b] ... offsets[b + 1]."""

    offsets: np.ndarray  # [B + 1] int64
    labels: np.ndarray  # [N] int64
    boxes: np.ndarray  # [N, 4] float64, centre and size
    masks: list[np.ndarray]  # [n, H, W] of each image; empty where masks do not matter

    @property
    def counts(self) -> np.ndarray:
        """The number of objects of each image."""
        return np.diff(self.offsets)


def read_targets(labels: Any, images: int, classes: Sequence[int], *, with_masks: bool = False) -> Targets:
    """The caller's list of a mapping for each image, checked; an image's labels are below its number of classes."""
    if isinstance(labels, Mapping | str) or not isinstance(labels, Sequence):
        raise TypeError(f"labels is a {type(labels).__name__}; expected a list with a mapping for each image")
    if len(labels) != images:
        raise ValueError(f"labels has {len(labels)} entries; expected one for each of {images} images")
    read = [_image(image, f"labels[{i}]", classes[i]) for i, image in enumerate(labels)]
    masks = []
    if with_masks:
        of_images = [_item(image, "masks", f"labels[{i}]") for i, image in enumerate(labels)]
        masks = [_masks(each, f'labels[{i}]["masks"]', len(read[i][0])) for i, each in enumerate(of_images)]
    return Targets(
        offsets=np.cumsum([0, *(len(image) for image, _ in read)], dtype=np.int64),
        labels=np.concatenate([np.empty(0, np.int64), *(image for image, _ in read)]),
        boxes=np.concatenate([np.empty((0, 4)), *(boxes for _, boxes in read)]),
        masks=masks,
    )


def read_masks(mask_labels: Any, class_labels: Any, images: int, classes: int) -> Targets:
    """The caller's two lists with an entry for each image, checked; a box is as good as another one."""
    given = {"mask_labels": mask_labels, "class_labels": class_labels}
    for name, value in given.items():
        if isinstance(value, Mapping | str) or not isinstance(value, Sequence):
            raise TypeError(f"{name} is a {type(value).__name__}; expected a list with an array for each image")
        if len(value) != images:
            raise ValueError(f"{name} has {len(value)} entries; expected one for each of {images} images")
    labels = [_labels(of_image, f"class_labels[{i}]") for i, of_image in enumerate(class_labels)]
    for i, of_image in enumerate(labels):
        _check_labels(of_image, f"class_labels[{i}]", classes)
    masks = [_masks(of_image, f"mask_labels[{i}]", len(labels[i])) for i, of_image in enumerate(mask_labels)]
    return Targets(
        offsets=np.cumsum([0, *map(len, labels)], dtype=np.int64),
        labels=np.concatenate([np.empty(0, np.int64), *labels]),
        boxes=np.ones((sum(map(len, labels)), 4)),
        masks=masks,
    )


def _item(image: Any, key: str, name: str) -> Any:
    if not hasattr(image, "__getitem__") or isinstance(image, str | bytes | list | tuple | np.ndarray):
        raise TypeError(f"{name} is a {type(image).__name__}; expected a mapping with {key!r}")
    try:
        return image[key]
    except Exception:
        raise ValueError(f"{name} has no {key!r}") from None


def _labels(values: Any, name: str) -> np.ndarray:
    labels = arrays.index_array(values, name)
    if labels.ndim != 1:
        raise ValueError(f"{name} has shape {labels.shape}; expected [n]")
    return labels


def _check_labels(labels: np.ndarray, name: str, classes: int) -> None:
    outside = labels.view(np.uint64) >= classes  # what is below 0 is far above all classes there
    if np.count_nonzero(outside):
        wrong = np.flatnonzero(outside)
        raise ValueError(f"{name}[{wrong[0]}] = {labels[wrong[0]]} is outside [0, {classes})")


def _image(image: Any, name: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    label_name, box_name = f'{name}["class_labels"]', f'{name}["boxes"]'
    labels = _labels(_item(image, "class_labels", name), label_name)
    boxes = arrays.float_array(_item(image, "boxes", name), box_name)
    # A list without boxes has lost its second axis.
    boxes = boxes.reshape(0, 4) if boxes.shape == (0,) else boxes
    if boxes.shape != (labels.size, 4):
        raise ValueError(f"{box_name} has shape {boxes.shape}; expected ({labels.size}, 4), a box for each class label")
    _check_labels(labels, label_name, classes)
    wide = boxes.astype(np.float64)
    check_boxes(wide, box_name)
    return labels, wide


def _masks(masks: Any, name: str, count: int) -> np.ndarray:
    array = arrays.as_array(masks, name)
    # A list without masks has lost two axes.
    array = array.reshape(0, 0, 0) if array.shape == (0,) else array
    if array.ndim != 3 or array.shape[0] != count:
        raise ValueError(f"{name} has shape {array.shape}; expected ({count}, H, W), a mask for each class label")
    if array.dtype.kind not in "biu":
        array = arrays.float_array(array, name)
    arrays.check_range(array, 0, 1, name)
    return array


def check_boxes(boxes: np.ndarray, name: str) -> None:
    """Raise unless every box (centre and size) has corners in order, as transformers does; NaN has none."""
    # Of nearly all boxes this is the proof, in a tenth of the time.
    if np.isfinite(boxes).all() and (boxes[..., 2:] >= 0).all():
        return
    half = 0.5 * boxes[..., 2:].astype(np.float64)
    centers = boxes[..., :2].astype(np.float64)
    with np.errstate(invalid="ignore"):
        sound = centers + half >= centers - half
    if np.count_nonzero(sound) == sound.size:
        return
    index = tuple(int(i) for i in np.argwhere(~sound.all(axis=-1))[0])
    shown = f"{name}[{', '.join(str(i) for i in index)}]"
    raise ValueError(f"{shown} = {boxes[index].tolist()} is no box: its width or height is negative or undefined")
