"""What people train with, judged by refloss.testing: torch, transformers, torch.compile, optax, and the examples.

An implementation that is further off than an honest one in its type can be, or that means something else, is listed
with the tensors that differ; where they no longer do, the entry fails. docs/outside_users.md tells what was found.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
import pytest

from conformance.outside_users import OUTSIDE_USERS, OutsideUser
from examples import jax_cross_entropy, jax_detr
from refloss.golden import store
from refloss.golden.corpus import corpus
from refloss.golden.manifest import MANIFEST
from refloss.testing import MismatchError, check, judge_folders

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.cases.source import Case
    from refloss.testing import CaseVerdict

_POISONED = {"grad.logits"}  # 0 times NaN, in the backward pass of log_softmax
_LABEL_OF_ZERO = {"grad.targets"}  # the derivative of logsumexp in a factor b of 0 is taken to be 0
# By implementation and case: the tensors that differ.
KNOWN = {
    ("torch", "causal_lm-poisoned-ignored-row"): _POISONED,
    ("torch", "masked_lm-poisoned-ignored-row"): _POISONED,
    # Its least p·(1 − p) is float32's 1e-12, which float64 tells from its own.
    ("torch", "bce-options-sure-float64"): {"grad.input"},
    # And float16 has none: 0/0.
    ("torch", "bce-options-sure-float16"): {"grad.input", "grad.target"},
    # Log-sum-exp and logit are rounded before their difference.
    **{("optax", f"cross_entropy-{name}"): {"loss"} for name in ("offset", "apart")},
    **{
        ("optax", f"sigmoid_focal-{name}"): _LABEL_OF_ZERO
        for name in (
            *("float32", "bfloat16", "sum", "none", "no-alpha", "elements-17554-bfloat16", "elements-66049"),
            *(
                f"saturated-gamma-{gamma}"
                for gamma in ("0.5", "1", "2", "5", "0.5-bfloat16", "1-bfloat16", "2-bfloat16", "5-bfloat16")
            ),
            *(f"options-{reduction}{dtype}" for reduction in ("mean", "sum", "none") for dtype in ("", "-bfloat16")),
        )
    },
}
CALLS = [(user, case) for user in OUTSIDE_USERS for case in corpus(set(user.losses)) if user.offers(case)]


def identifier(value: OutsideUser | Case) -> str:
    return value.name if isinstance(value, OutsideUser) else value.id


def judged(user: OutsideUser, case: Case) -> CaseVerdict:
    function, compute_dtype = user.losses[case.function], user.computes_in(case)
    try:
        judgement = check(function, cases=[case], to_native=user.to_native, compute_dtype=compute_dtype)
    except MismatchError as error:
        judgement = error.judgement
    (verdict,) = judgement.cases
    return verdict


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, when it first compiles
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")  # kl_div's advice
@pytest.mark.parametrize(("user", "case"), CALLS, ids=identifier)
def test_outside_users_are_as_right_as_their_type_allows(user: OutsideUser, case: Case) -> None:
    verdict = judged(user, case)
    assert verdict.tensors, verdict.message
    faults = {tensor.name: tensor.message for tensor in verdict.tensors if not tensor.passed}
    assert faults.keys() == KNOWN.get((user.name, case.id), set()), faults


def test_all_known_differences_are_of_cases_that_there_are() -> None:
    assert KNOWN.keys() <= {(user.name, case.id) for user, case in CALLS}


def test_the_jax_example_is_right() -> None:
    function, patterns = "cross_entropy", ("*-mean", "*-probabilities", "*-none")
    judgement = check(jax_cross_entropy.loss_and_gradients, function=function, cases=patterns, to_native=jnp.asarray)
    assert len(judgement.judged) >= 6


def test_the_jax_port_of_detr_is_right() -> None:
    judgement = check(jax_detr.loss_and_gradients, function="object_detection", to_native=jnp.asarray)
    absent = {case.id for case in judgement.cases if case.passed is None}
    assert absent == {case.id for case in corpus({"object_detection"}) if case.inputs["logits"].dtype == np.float64}


@pytest.mark.parametrize(
    ("name", "wrong", "case", "tensor"),
    [
        ("distance", lambda a, b: jnp.abs(a - b), "perfect-boxes", "grad.pred_boxes"),
        ("giou", lambda a, b: jnp.minimum(a, b).prod(-1), "float32", "component.loss_giou"),
    ],
)
def test_a_port_with_a_mistake_fails(
    name: str, wrong: Callable[..., object], case: str, tensor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax_detr, name, wrong)
    with pytest.raises(MismatchError) as raised:
        check(jax_detr.loss_and_gradients, cases=f"object_detection-{case}", to_native=jnp.asarray)
    (verdict,) = raised.value.judgement.cases
    assert tensor in {each.name for each in verdict.tensors if not each.passed}


def _detr_answers(case: Case) -> bool:
    """Whether the upstream gradient is one number."""
    return isinstance(case.grad_output, float)


def _jax_answers(case: Case) -> bool:
    """Whether a case has no parameter but torch's."""
    return case.parameters.keys() <= {"ignore_index", "reduction", "label_smoothing"}


def _triton_answers(case: Case) -> bool:
    """Whether a case has labels, no weights of classes, no parameter but torch's, and nothing that is float64."""
    labels, dtypes = case.inputs["target"].dtype.kind in "iu", {value.dtype for value in case.inputs.values()}
    return _jax_answers(case) and labels and "weight" not in case.inputs and np.dtype(np.float64) not in dtypes


def _leave_out(golden: Path, case_id: str) -> None:
    path = golden / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["cases"] = [entry for entry in manifest["cases"] if entry["id"] != case_id]
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("example", "functions", "answers"),
    [
        ("jax_cross_entropy", {"cross_entropy"}, _jax_answers),
        ("jax_detr", {"object_detection"}, _detr_answers),
        pytest.param(
            "triton_cross_entropy",
            {"cross_entropy", "linear_cross_entropy"},
            _triton_answers,
            marks=pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
        ),
    ],
)
def test_an_example_answers_golden_files_and_passes(
    example: str, functions: set[str], answers: Callable[[Case], bool], tmp_path: Path
) -> None:
    golden, candidate = tmp_path / "golden", tmp_path / "candidate"
    store.write(golden, functions | {"nll"})
    slow = "cross_entropy-rows-70000"  # of which Triton's interpreter takes one after the other
    _leave_out(golden, slow)
    count = sum(answers(case) for case in corpus(functions) if case.id != slow)
    command = [sys.executable, f"examples/{example}.py", str(golden), str(candidate)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"{count} cases written")
    judgement = judge_folders(golden, candidate)
    assert len(judgement.judged) == count
    assert judgement.passed, [tensor for case in judgement.judged for tensor in case.tensors if not tensor.passed]
