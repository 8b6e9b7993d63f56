"""Real models of transformers, tiny and random: every loss that they compute, recorded and replayed on refloss."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import torch
import transformers
from transformers.loss.loss_utils import LOSS_MAPPING

from conformance import detection
from conformance.detection import (
    KEYS,
    Run,
    double_precision,
    matching_disagreements,
    run_refloss,
    run_transformers,
)
from conformance.reference import disagreements
from conformance.test_detection import COSTS, TOLERANCE, allowed_in_float64
from refloss.registry import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

PIXELS = 64
DEEP = ("stage2", "stage3", "stage4")
EVERY = ("stage1", *DEEP)
COMMON: dict[str, Any] = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": 7,
    "num_labels": 5,
}


def backbone(*stages: str) -> transformers.PretrainedConfig:
    """A ResNet of a few channels."""
    sizes = [8, 8, 16, 16]
    options: dict[str, Any] = {"out_features": list(stages)}
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=sizes, depths=[1, 1, 1, 1], layer_type="basic", **options
    )


def detr(model: str, configuration: str, *stages: str, **options: Any) -> Callable[[bool], Any]:
    """A model of the DETR family, with auxiliary losses or without."""

    def build(auxiliary: bool) -> Any:
        config = getattr(transformers, configuration)(
            backbone_config=backbone(*stages), auxiliary_loss=auxiliary, **COMMON, **options
        )
        return getattr(transformers, model)(config).eval()

    return build


def grounding_dino(auxiliary: bool) -> Any:
    """Grounding DINO with a BERT of one layer; its encoder proposes too."""
    text = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=12000
    )
    deep: dict[str, Any] = {"num_feature_levels": 3, "disable_custom_kernels": True, "max_text_len": 16, "d_model": 32}
    config = transformers.GroundingDinoConfig(
        backbone_config=backbone(*DEEP), text_config=text, two_stage=True, auxiliary_loss=auxiliary, **COMMON, **deep
    )
    model: Any = transformers.GroundingDinoForObjectDetection(config)
    return model.eval()


SMALL: dict[str, Any] = {"d_model": 32, "decoder_ffn_dim": 16, "decoder_layers": 3, "num_labels": 5}


def rt_detr(model: str, denoising: int = 12, **options: Any) -> Callable[[bool], Any]:
    """A model that follows RT-DETR, in training: with denoising queries and a batch's own statistics."""

    def build(auxiliary: bool) -> Any:
        config = getattr(transformers, f"{model}Config")(
            backbone_config=backbone(*DEEP),
            encoder_hidden_dim=32,
            encoder_in_channels=[8, 16, 16],
            encoder_ffn_dim=16,
            encoder_attention_heads=4,
            decoder_in_channels=[32, 32, 32],
            decoder_attention_heads=4,
            num_denoising=denoising,
            num_queries=7,
            auxiliary_loss=auxiliary,
            **SMALL,
            **options,
        )
        return getattr(transformers, f"{model}ForObjectDetection")(config).train()

    return build


def lw_detr(model: str, vision: str, windows: dict[str, Any]) -> Callable[[bool], Any]:
    """A model that follows LW-DETR, in training: with three groups of queries."""

    def build(auxiliary: bool) -> Any:
        shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16}
        config = getattr(transformers, f"{model}Config")(
            backbone_config=getattr(transformers, vision)(
                image_size=PIXELS, out_features=["stage1", "stage2"], **shape, **windows
            ),
            projector_scale_factors=[1.0],
            decoder_self_attention_heads=4,
            decoder_cross_attention_heads=4,
            num_queries=4,
            group_detr=3,
            dropout=0.0,
            auxiliary_loss=auxiliary,
            **SMALL,
        )
        return getattr(transformers, f"{model}ForObjectDetection")(config).train()

    return build


MODELS: dict[str, Callable[[bool], Any]] = {
    "DetrForObjectDetection": detr("DetrForObjectDetection", "DetrConfig", "stage4", d_model=32),
    "DetrForSegmentation": detr("DetrForSegmentation", "DetrConfig", *EVERY, d_model=64),
    "ConditionalDetrForObjectDetection": detr(
        "ConditionalDetrForObjectDetection", "ConditionalDetrConfig", "stage4", d_model=32
    ),
    "ConditionalDetrForSegmentation": detr(
        "ConditionalDetrForSegmentation", "ConditionalDetrConfig", *EVERY, d_model=64
    ),
    "DabDetrForObjectDetection": detr("DabDetrForObjectDetection", "DabDetrConfig", "stage4", hidden_size=32),
    "DeformableDetrForObjectDetection": detr(
        "DeformableDetrForObjectDetection",
        "DeformableDetrConfig",
        *DEEP,
        d_model=32,
        num_feature_levels=3,
        disable_custom_kernels=True,
    ),
    "GroundingDinoForObjectDetection": grounding_dino,
    "RTDetrForObjectDetection": rt_detr("RTDetr"),
    "RTDetrForObjectDetection, no denoising": rt_detr("RTDetr", 0),
    "RTDetrV2ForObjectDetection": rt_detr("RTDetrV2"),
    "DFineForObjectDetection": rt_detr("DFine"),
    "DFineForObjectDetection, no denoising": rt_detr("DFine", 0),
    "Deimv2ForObjectDetection": rt_detr("Deimv2"),
    "Deimv2ForObjectDetection, one to one": rt_detr("Deimv2", use_dense_one_to_one=False),
    "LwDetrForObjectDetection": lw_detr(
        "LwDetr", "LwDetrViTConfig", {"pretrain_image_size": PIXELS, "num_windows": 4, "window_block_indices": [0]}
    ),
    "RfDetrForObjectDetection": lw_detr("RfDetr", "RfDetrDinov2Config", {"num_windows": 2}),
}


def images(dtype: torch.dtype) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Three images, one of them without objects; classes that the prompt of two has as well."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(3, 3, PIXELS, PIXELS, generator=generator, dtype=dtype)
    labels = []
    for count in (2, 0, 3):
        centers = torch.rand(count, 2, generator=generator, dtype=dtype)
        sizes = 0.1 + 0.4 * torch.rand(count, 2, generator=generator, dtype=dtype)
        labels.append(
            {
                "class_labels": torch.randint(2, (count,), generator=generator),
                "boxes": torch.cat([centers, sizes], dim=1),
                "masks": (torch.rand(count, PIXELS, PIXELS, generator=generator) < 0.4).to(dtype),
            }
        )
    return pixels, labels


def recorded(name: str, auxiliary: bool, dtype: torch.dtype) -> list[Run]:
    """The calls of losses that a model makes in one forward pass, with inputs cut off from the model."""
    runs: list[Run] = []

    def recorder(key: str, loss: Any) -> Any:
        def record(*given: Any, **options: Any) -> Any:
            arguments = inspect.signature(loss).bind(*given, **options).arguments
            arguments |= arguments.pop("kwargs", {})
            del arguments["device"]
            present = tuple(each for each in FUNCTIONS[KEYS[key]].differentiable if arguments.get(each) is not None)
            for each in present:
                arguments[each] = arguments[each].detach().requires_grad_()
            runs.append(Run(key, arguments, present))
            return loss(*given, **options)

        return record

    torch.manual_seed(0)
    model = MODELS[name](auxiliary).to(dtype)
    pixels, labels = images(dtype)
    text = {"input_ids": torch.tensor([[101, 3869, 1012, 11420, 1012, 102]] * 3)} if "Grounding" in name else {}
    with mock.patch.dict(LOSS_MAPPING, {key: recorder(key, loss) for key, loss in LOSS_MAPPING.items()}):
        model(pixel_values=pixels, labels=labels, **text)
    return runs


@pytest.mark.parametrize("auxiliary", [False, True], ids=["last-layer", "all-layers"])
@pytest.mark.parametrize("name", MODELS)
def test_formula(name: str, auxiliary: bool) -> None:
    with double_precision():
        runs = recorded(name, auxiliary, torch.float64)
        expected = [run_transformers(run, -0.75) for run in runs]
    assert len(runs) == 1
    for run, (theirs, matchings) in zip(runs, expected, strict=True):
        ours, result = run_refloss(run, -0.75)
        lines = disagreements(ours, theirs, allowed_in_float64(theirs))
        lines += matching_disagreements(result, matchings, COSTS.get(run.key, TOLERANCE))
        assert not lines, "\n".join(lines)


@pytest.mark.parametrize("name", MODELS)
def test_as_shipped(name: str) -> None:
    for run in recorded(name, True, torch.float32):
        theirs, matchings = run_transformers(run, -0.75)
        pairs = [matched.pairs for matched in matchings]
        ours, result = run_refloss(run, -0.75, assignment=pairs)
        asked = detection.question(run, result, -0.75, pairs)
        lines = disagreements(theirs, ours, detection.tolerances(run, asked))
        assert not lines, "\n".join(lines)
