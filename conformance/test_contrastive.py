"""Losses of similarities against transformers' own: CLIP's, ALIGN's, and the head of SigLIP's model."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import SiglipConfig, SiglipModel
from transformers.models.align.modeling_align import align_loss
from transformers.models.clip.modeling_clip import contrastive_loss, image_text_contrastive_loss

import refloss
from conformance.call import array
from conformance.comparison import FORMULA_TOLERANCE, scale
from conformance.error_model import with_rounding
from conformance.reference import disagreements
from refloss.cases.source import Case
from refloss.registry import FUNCTIONS
from refloss.testing.judging.judge import question_of

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def _siglip(logits: torch.Tensor) -> torch.Tensor:
    """The loss of SiglipModel.forward."""
    sign = -torch.ones_like(logits) + 2 * torch.eye(len(logits), dtype=logits.dtype)
    return -torch.nn.functional.logsigmoid(sign * logits).sum(dim=-1).mean()


LOSSES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str, dict[str, Any]]] = {
    "clip": (image_text_contrastive_loss, "info_nce", {}),
    "clip-rows": (contrastive_loss, "info_nce", {"symmetric": False}),
    "align": (align_loss, "info_nce", {"label_smoothing": 0.1}),
    "siglip": (_siglip, "sigmoid_contrastive", {}),
}


def _matrices() -> dict[str, np.ndarray]:
    random = np.random.default_rng(51)
    x = 3 * random.standard_normal((6, 6))
    return {
        "ordinary": x,
        "one": x[:1, :1],
        "learnt": x + 12 * np.eye(6),
        "equal": np.zeros((4, 4)),
        "transposed": x.T,
        "many": 4 * random.standard_normal((40, 40)),
    }


MATRICES = _matrices()


@pytest.mark.parametrize(("loss", "name", "dtype"), list(product(LOSSES, MATRICES, DTYPES)), ids=str)
def test_transformers_agrees(loss: str, name: str, dtype: torch.dtype) -> None:
    theirs, function, options = LOSSES[loss]
    (argument,) = FUNCTIONS[function].required
    x = torch.tensor(MATRICES[name]).to(dtype).requires_grad_()
    value = theirs(x)
    (gradient,) = torch.autograd.grad(value, x, torch.tensor(-3.5, dtype=value.dtype))
    expected = {"loss": array(value), f"grad.{argument}": array(gradient)}
    result = getattr(refloss, function)(x.detach(), grad_output=-3.5, **options)
    found = {"loss": np.asarray(result.loss), f"grad.{argument}": result.grads[argument].astype(np.float64)}
    if dtype == torch.float64:
        allowed = {key: np.asarray(FORMULA_TOLERANCE * scale(given)) for key, given in expected.items()}
    else:
        case = Case(loss, function, {argument: array(x)}, options, -3.5)
        asked = question_of(case, result, str(dtype).removeprefix("torch."))
        bounds = {key: np.asarray(asked.bounds[key]) for key in expected}
        allowed = with_rounding(bounds, found, {argument: x}, dtype)
    assert not disagreements(expected, found, allowed)


def test_the_model_of_siglip_has_this_loss() -> None:
    torch.manual_seed(3)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config=small | {"vocab_size": 20, "max_position_embeddings": 8},
        vision_config=small | {"image_size": 8, "patch_size": 4},
    )
    model = SiglipModel(config).double()
    given = {"input_ids": torch.randint(3, 20, (5, 8)), "pixel_values": torch.randn(5, 3, 8, 8, dtype=torch.float64)}
    found = model(**given, return_loss=True)
    found.logits_per_text.retain_grad()
    found.loss.backward()
    result = refloss.sigmoid_contrastive(found.logits_per_text.detach())
    np.testing.assert_allclose(result.loss, found.loss.item(), rtol=1e-12)
    np.testing.assert_allclose(result.grads["logits"], found.logits_per_text.grad.numpy(), rtol=1e-10)
    # docs/contrastive.md: the chain rule to the scale, of which the model holds the logarithm, and the bias.
    logits, slope = array(found.logits_per_text), result.grads["logits"]
    cosines = (logits - model.logit_bias.item()) / np.exp(model.logit_scale.item())
    of_scale = (slope * cosines).sum() * np.exp(model.logit_scale.item())
    np.testing.assert_allclose(model.logit_scale.grad.item(), of_scale, rtol=1e-10)
    np.testing.assert_allclose(model.logit_bias.grad.item(), slope.sum(), rtol=1e-10)
