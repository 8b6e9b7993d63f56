"""What transformers does otherwise with masks at points than one thinks; docs/divergences.md has a line for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
import torch
from transformers.loss.loss_utils import LOSS_MAPPING

import refloss
from conformance.detection import Run, double_precision, prepared, run_refloss, run_transformers
from refloss.golden.corpus import cases_of

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY, FUNCTION = "RfDetrForInstanceSegmentation", "rf_detr_instance_segmentation"


def run_of(name: str, **config: Any) -> Run:
    """A golden case in float64."""
    case = next(case for case in cases_of(FUNCTION) if case.id == f"{FUNCTION}-{name}")
    return prepared(KEY, case.inputs, case.parameters["config"] | config, torch.float64)


def test_the_matcher_counts_its_points_from_the_boxes() -> None:
    """B·Q·4 // ratio of them, where masks of 4 × 5 pixels have 4·5 // ratio."""
    run, asked = run_of("last-layer"), []
    generate = torch.rand

    def recorded(*shape: int, **options: Any) -> torch.Tensor:
        asked.append(shape)
        return generate(*shape, **options)

    mapping: Mapping[str, Any] = LOSS_MAPPING
    with double_precision(), mock.patch("torch.rand", recorded):
        mapping[KEY](**run.arguments, device="cpu")
    images, queries = run.arguments["logits"].shape[:2]
    assert asked[0] == (1, images * queries * 4 // 2, 2)
    own = {name: value for name, value in run.arguments.items() if not name.endswith("points")}
    assert refloss.LOSS_MAPPING[KEY](**own).intermediates["matcher_points"].shape == (4 * 5 // 2, 2)


def test_without_objects_its_loss_is_an_empty_tensor() -> None:
    run = run_of("no-objects", auxiliary_loss=False)
    mapping: Mapping[str, Any] = LOSS_MAPPING
    with double_precision():
        loss, components, _ = mapping[KEY](**run.arguments, device="cpu")
    assert loss.shape == components["loss_mask_ce"].shape == (0, 4, 5)
    with pytest.raises(RuntimeError, match="grad can be implicitly created only for scalar outputs"):
        loss.backward()
    found, result = run_refloss(run, 1.0)
    assert found["component.loss_mask_ce"] == found["component.loss_mask_dice_enc"] == 0.0
    weight = run.arguments["config"].class_loss_coefficient
    assert result.loss == pytest.approx(weight * components["loss_ce"].item(), rel=1e-6)
    assert not result.grads["pred_masks"].any()


def test_masks_of_images_must_be_of_one_size() -> None:
    run = run_of("last-layer")
    shown = run.arguments["labels"][0]
    shown["masks"] = shown["masks"].repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    with double_precision(), pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        run_transformers(run, 1.0)
    result = run_refloss(run, 1.0)[1]
    assert np.isfinite(result.loss)


def test_targets_are_padded_for_the_losses_and_not_for_the_matching() -> None:
    """In Mask2Former the same point is another place of an image that is smaller than the largest."""
    case = next(case for case in cases_of("mask2former") if case.id == "mask2former-last-layer")
    generator = np.random.default_rng(0)
    arguments = {
        "masks_queries_logits": generator.standard_normal((2, 3, 4, 4)),
        "class_queries_logits": generator.standard_normal((2, 3, 6)),
        "mask_labels": [np.ones((1, 4, 4)), np.ones((1, 8, 8))],
        "class_labels": [np.array([1]), np.array([2])],
        "config": case.parameters["config"],
        "matcher_points": np.full((1, 2, 1, 2), 0.75),
        "points": np.full((1, 2, 1, 2), 0.75),
    }
    result = refloss.mask2former(**arguments)
    logit = refloss.mask2former(**arguments | {"mask_labels": [np.ones((1, 8, 8)), np.ones((1, 8, 8))]})
    # The first image's object fills its image, and is nothing at three quarters of the padded one.
    first = 0 if result.intermediates["assignment"][0, 0] == 0 else 1
    assert result.intermediates["dice"][first] > logit.intermediates["dice"][first]
    np.testing.assert_array_equal(result.intermediates["cost_matrix"], logit.intermediates["cost_matrix"])
