"""Whatever refloss's generator of cases draws, against torch and transformers: every function that has a counterpart.

As in test_language: the formula in float64, then both sides as people train, and wrong answers. Edges, divergences and
what people call with their own keywords are in the lists of the other files.
"""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from conformance import flow
from conformance.call import TORCH_FUNCTIONS, Call
from conformance.cases import Case
from conformance.chain import taken
from conformance.comparison import assert_as_shipped, assert_formula, identifier
from conformance.reference import run_refloss
from refloss.cases.draws import Limits
from refloss.golden.drawn import seeded
from refloss.registry import FUNCTIONS
from refloss.roundoff import STEPS, roundoff
from refloss.specification import MatchingHead

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conformance.cases import Array
    from refloss.cases.source import Case as Drawn

# torch warns that "mean" is not the mathematical divergence; it is the loss that is compared here.
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss:UserWarning")

SEEDS = range(2)
# torch has them in no shorter type on a CPU.
IN_FLOAT32 = ("ctc", "multi_margin", "multilabel_margin")
LIMITS = Limits(("float64",), max_rows=4, max_classes=5, extreme=False, exact=True)
# What a head reads from its configuration only.
OF_CONFIG = ("num_labels", "problem_type")


def cases() -> Iterator[Case]:
    """Those of some seeds, of every function that torch or a key of transformers has."""
    for name, function in FUNCTIONS.items():
        keys = function.specification.keys[:1]
        # What transformers makes with modules of its own has a test of its own.
        if isinstance(function.specification, MatchingHead) or keys == flow.KEYS[:1]:
            continue
        if not (name in TORCH_FUNCTIONS or keys):
            continue
        for seed in SEEDS:
            for drawn in seeded(function, LIMITS, seed):
                yield _called(drawn, name if name in TORCH_FUNCTIONS else keys[0])


def _called(drawn: Drawn, loss: str) -> Case:
    options: dict[str, Any] = dict(drawn.parameters)
    if "config" in FUNCTIONS[drawn.function].specification.parameters:
        logits = drawn.inputs[FUNCTIONS[drawn.function].required[0]]
        given = {name: options.pop(name, None) for name in OF_CONFIG}
        options["config"] = SimpleNamespace(**given | {"num_labels": logits.shape[-1]})
    return Case(drawn.id, loss, drawn.inputs, options, drawn.grad_output, degenerate=not np.any(drawn.grad_output))


CASES = tuple(cases())
RUNS = [
    (case, dtype)
    for case, dtype in product(CASES, (torch.float32, torch.bfloat16))
    if case.loss not in IN_FLOAT32 or dtype == torch.float32
]


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_formula(case: Case) -> None:
    assert_formula(case)


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=identifier)
def test_as_shipped(case: Case, dtype: torch.dtype) -> None:
    """And wrong answers fail."""
    # Distances that are nearly equal leave nothing of 8 bits; nor do logits that are sums of few products in them.
    blurred = case.loss in {"triplet_margin", "linear_cross_entropy"} and dtype == torch.bfloat16
    assert_as_shipped(case, dtype, telling=not case.degenerate and not blurred and not _hidden(case, dtype))


def _hidden(case: Case, dtype: torch.dtype) -> bool:
    """Whether a cap hides wrong answers: it saturates, and little of its slope is left.

    The slope 1 − tanh² of a type with the unit roundoff u is off by up to k·u (error_model.chain), and in torch it is 0
    below u. It multiplies p − q, whose two terms, each with that error, may be four times as much. What has to show of
    it is a fifth in 16 bits, else a percent, less what the rounding to the gradient's own type takes: it does where the
    slope is above 4·k·u over that. No other chain hides anything.
    """
    chain, _ = taken(case.options)
    if chain.softcap is None:
        return False
    compute_dtype = Call(case, dtype).compute_dtype
    off = 4 * STEPS * roundoff(str(compute_dtype).removeprefix("torch.")).between
    shown = 0.2 if compute_dtype == torch.bfloat16 else 0.01 - torch.finfo(dtype).eps
    slope = 1 / np.cosh(_logits(case) * chain.logit_scale / chain.softcap) ** 2
    return bool(slope.max(initial=0.0) < off / shown)


def _logits(case: Case) -> Array:
    """What goes through the chain, of rows that count; a masked class has no slope."""
    if case.loss == "linear_cross_entropy":
        z: Array = case.inputs["input"] @ case.inputs["linear_weight"].T + case.inputs.get("linear_bias", 0.0)
        return z
    given, slopes = case.inputs["logits"], run_refloss(Call(case, torch.float64))["grad.logits"]
    counted: Array = given[(slopes != 0) & np.isfinite(given)]
    return counted
