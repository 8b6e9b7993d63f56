"""Honest kernels of a linear layer's losses pass in each way that libraries compute them. Mistakes: the gauntlet."""

import pytest

from refloss.golden.corpus import cases_of
from refloss.testing.judging import judge
from tests.gauntlet.honest import HONEST, LINEAR
from tests.gauntlet.kernels import with_steps


@pytest.fixture(autouse=True)
def _without_explanations(monkeypatch):
    monkeypatch.setattr(judge, "_causes", lambda asked, tensors, candidate: ())


def written_down(values, dtype):
    """What a 16-bit type is computed in, it is between operations as well."""
    return values if dtype is None else values.astype(dtype).astype(values.dtype)


@pytest.mark.parametrize("parts", [1, 3, 64])
@pytest.mark.parametrize("function", LINEAR)
def test_honest_kernels_by_parts_pass_in_the_type_of_their_input(function, parts):
    """Logits and their gradients are written down in it: torch and Liger do so."""
    wrong = {}
    for case in cases_of(function):
        dtype = case.inputs["input"].dtype
        stored = dtype if dtype.itemsize == 2 else None
        kernel = with_steps(
            HONEST[function],
            rows_at_once=lambda self, rows: -(-rows // parts),
            written=lambda self, z, given, stored=stored: written_down(z, given or stored),
            stored=lambda self, g, _, stored=stored: written_down(g, stored),
        )(function)
        loss, grads, *components = kernel(case.inputs, case.parameters, case.grad_output)
        tensors = {"loss": loss} | {f"grad.{name}": value for name, value in grads.items()}
        tensors |= {f"component.{name}": value for part in components for name, value in part.items()}
        judged = judge.judge(judge.question(case, dtype.name), tensors)
        wrong |= {(case.id, tensor.name): tensor.message for tensor in judged.tensors if not tensor.passed}
    assert wrong == {}
