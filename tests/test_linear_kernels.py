"""Honest kernels of a linear layer's losses pass in each way that libraries compute them. Mistakes: the gauntlet."""

import numpy as np
import pytest

from refloss.error_model import bounds
from refloss.golden.corpus import cases_of
from refloss.testing.judging import judge
from tests.gauntlet.honest import HONEST, LINEAR
from tests.gauntlet.kernels import with_steps
from tests.gauntlet.linear import LinearCrossEntropy
from tests.gauntlet.rows import CrossEntropy

NAMES = ("many-none", "many-bfloat16", "float32-mean", "sure", "options-chain", "options-written-bfloat16")
DECLARING = [case for case in cases_of("linear_cross_entropy") if case.id.split("cross_entropy-")[1] in NAMES]


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


def judged_as(case, kernel, dtype, **declared):
    """Which tensors of a kernel are off by more than it declares."""
    loss, grads, *_ = kernel("linear_cross_entropy")(case.inputs, case.parameters, case.grad_output)
    asked = judge.question(case, dtype)
    asked = asked._replace(bounds=bounds(case, asked.result, dtype, **declared))
    judged = judge.judge(asked, {"loss": loss} | {f"grad.{name}": value for name, value in grads.items()})
    return {tensor.name for tensor in judged.tensors if tensor.passed is False and tensor.worst}


def left_out_below(threshold):
    def derivative(self, rows, p, q):
        slopes = CrossEntropy.derivative(self, rows, p, q)
        return np.where(np.abs(slopes) < threshold, 0, slopes)

    return with_steps(LinearCrossEntropy, derivative=derivative)


def times(factor):
    return with_steps(LinearCrossEntropy, stored=lambda self, g, _: np.asarray(g * factor, g.dtype))


@pytest.mark.parametrize("case", DECLARING, ids=lambda case: case.id)
def test_a_filter_passes_where_it_is_declared_and_larger_ones_fail(case):
    """Of CCE's kind (ml-cross-entropy#14)."""
    dtype = judge.default_compute_dtype(case)
    assert judged_as(case, left_out_below(2.0**-12), dtype)
    assert not judged_as(case, left_out_below(2.0**-12), dtype, filtered=2.0**-12)
    assert judged_as(case, left_out_below(2.0**-7), dtype, filtered=2.0**-12)
    assert "grad.linear_weight" in judged_as(case, times(1.2), dtype, filtered=2.0**-12)


@pytest.mark.parametrize("case", DECLARING, ids=lambda case: case.id)
def test_parts_in_the_parameters_type_pass_where_they_are_declared(case):
    """Liger's accum_dtype=None (Liger-Kernel#1391)."""
    kind, dtype = case.inputs["linear_weight"].dtype, judge.default_compute_dtype(case)
    kernel = with_steps(
        LinearCrossEntropy,
        rows_at_once=lambda self, rows: 1,
        added=lambda self, total, part: (total + part).astype(kind).astype(total.dtype),
    )
    rows = len(case.inputs["input"])
    assert bool(judged_as(case, kernel, dtype)) == (kind.itemsize == 2)
    assert not judged_as(case, kernel, dtype, parts=rows)
    assert "grad.linear_weight" in judged_as(case, times(2.0), dtype, parts=rows)
