"""What transformers does otherwise with masks at points than one thinks; conformance/ledger has the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import refloss
from conformance.detection import double_precision, golden_run, run_refloss, run_transformers
from refloss.golden.corpus import cases_of

if TYPE_CHECKING:
    pass

KEY = "RfDetrForInstanceSegmentation"


def test_masks_of_images_must_be_of_one_size() -> None:
    run = golden_run(KEY, "last-layer")
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
