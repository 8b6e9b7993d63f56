"""The keys of LOSS_MAPPING against transformers'."""

from __future__ import annotations

from transformers.loss.loss_utils import LOSS_MAPPING

import refloss

MISSING = {
    "ForCTC",
    "ParakeetForRNNT",
    "ParakeetForTDT",
    "PocketTTSForConditionalGeneration",
    "GradiumPhononTTSForConditionalGeneration",
    "RfDetrForInstanceSegmentation",
}


def test_what_is_missing() -> None:
    theirs, ours = set(LOSS_MAPPING), set(refloss.LOSS_MAPPING)
    assert theirs - ours == MISSING
    assert ours <= theirs
