"""refloss.pocket_tts against transformers' loss: of arrays, and through its own modules down to their parameters."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers.loss import loss_lsd
from transformers.models.pocket_tts.configuration_pocket_tts import PocketTTSFlowHeadConfig
from transformers.models.pocket_tts.modeling_pocket_tts import PocketTTSFlowHead, PocketTTSFlowLossWeighting

import refloss
from conformance import flow
from conformance.call import Call
from conformance.cases import Case
from conformance.comparison import FORMULA_TOLERANCE, assert_mutants_fail, identifier, scale
from conformance.error_model import question, tolerances
from conformance.reference import disagreements, formula_precision, outcome_of, refloss_result
from refloss.cases.draws import Limits
from refloss.golden import corpus
from refloss.golden.drawn import seeded
from refloss.registry import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from refloss.cases.source import Case as Drawn

LIMITS = Limits(("float64",), max_rows=4, max_classes=5, extreme=False, exact=True)
PAGE = Path(__file__).parents[1] / "docs" / "speech_synthesis.md"


def _called(cases: Iterable[Drawn]) -> tuple[Case, ...]:
    return tuple(Case(case.id, flow.KEYS[0], case.inputs, case.parameters, case.grad_output) for case in cases)


GOLDEN = _called(case for case in corpus.cases_of("pocket_tts") if case.inputs["velocity"].dtype == np.float64)
DRAWN = _called(case for seed in range(2) for case in seeded(FUNCTIONS["pocket_tts"], LIMITS, seed))
CASES = (*GOLDEN, *DRAWN)
OF_SOMEBODY = {case.id for case in GOLDEN}
RUNS = [(case, dtype) for case, dtype in product(CASES, (torch.float32, torch.bfloat16))]
# What is left of these differences may be lost in 16 bits, as it may of few drawn numbers.
FEW_DIGITS = ("nearly-hit", "draws-that-cancel", "weights-at-their-optimum", "far-weights")


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_formula(case: Case) -> None:
    call = Call(case, torch.float64)
    with formula_precision():
        expected = flow.run(call)
    tolerance = {name: np.asarray(FORMULA_TOLERANCE * max(1.0, scale(values))) for name, values in expected.items()}
    lines = disagreements(outcome_of(refloss_result(call)), expected, tolerance)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=identifier)
def test_as_shipped(case: Case, dtype: torch.dtype) -> None:
    """And wrong answers fail."""
    call = Call(case, dtype)
    asked, expected = question(call), flow.run(call)
    allowed = tolerances(asked, call)
    lines = disagreements(expected, outcome_of(asked.result), allowed)
    assert not lines, "\n".join(lines)
    if dtype == torch.float32 or (case.id in OF_SOMEBODY and not case.id.removesuffix("-float64").endswith(FEW_DIGITS)):
        assert_mutants_fail(asked, expected, allowed)


@pytest.fixture
def models() -> dict[str, Any]:
    """transformers' modules, small, in float64 and away from their initial values, and a step's data."""
    torch.manual_seed(5)
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "latent_dim": 4,
        "condition_dim": 6,
        "frequency_embedding_size": 8,
    }
    head = PocketTTSFlowHeadConfig(**sizes, loss_weighting_hidden_size=5, loss_weighting_num_layers=2)
    weights = {"lsd_diagonal_weight": 0.6, "lsd_distill_probability": 0.7, "eos_loss_weight": 0.3}
    modules = {"flow_head": PocketTTSFlowHead(head), "loss_weighting": PocketTTSFlowLossWeighting(head)}
    for module in modules.values():
        module.double()
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return modules | {
        "conditions": torch.randn(5, 6, dtype=torch.float64, requires_grad=True),
        "targets": torch.randn(5, 4, dtype=torch.float64),
        "eos_logits": torch.randn(7, dtype=torch.float64, requires_grad=True),
        "eos_labels": torch.arange(7) > 4,
        "config": SimpleNamespace(flow_loss_num_samples=3, lsd_time_logit_mean=0.4, lsd_time_logit_std=1.0, **weights),
    }


def gradients(models: dict[str, Any]) -> dict[str, np.ndarray]:
    """Of every parameter and of what the modules are given; they are taken away."""
    leaves = {name: models[name] for name in ("conditions", "eos_logits")}
    for module in ("flow_head", "loss_weighting"):
        leaves |= {f"{module}.{name}": parameter for name, parameter in models[module].named_parameters()}
    found = {name: leaf.grad.numpy().copy() for name, leaf in leaves.items()}
    for leaf in leaves.values():
        leaf.grad = None
    return found


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch.func's
def test_the_page_s_program_trains_as_transformers_does(models: dict[str, Any]) -> None:
    """A draw decides whether a step distils; transformers' modules in between, and its own rule for the last one."""
    keep = torch.Generator().manual_seed(0)
    torch.manual_seed(6)
    with formula_precision():
        loss = loss_lsd.PocketTTSForConditionalGenerationLoss(**models, distill_generator=keep, training=True)
    loss.backward()
    expected = gradients(models)
    torch.manual_seed(6)
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names = dict(models)
    exec(program, names)
    np.testing.assert_allclose(names["result"].loss, loss.item(), rtol=1e-13)
    found = gradients(models)
    for name, wanted in expected.items():
        np.testing.assert_allclose(
            found[name], wanted, rtol=0, atol=1e-12 * max(1.0, np.abs(wanted).max()), err_msg=name
        )
        assert np.any(wanted), name
    # Without what reaches x_e it is another gradient.
    torch.manual_seed(6)
    names = dict(models)
    exec(program.replace(", of_x_e])", ", 0 * of_x_e])"), names)
    assert not np.allclose(gradients(models)["flow_head.input_proj.weight"], expected["flow_head.input_proj.weight"])


def test_both_keys_are_this_function() -> None:
    assert all(refloss.LOSS_MAPPING[key].__name__ == "pocket_tts" for key in flow.KEYS)
