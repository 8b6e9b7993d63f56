"""Tensors are judged block by block, against right values that were not rounded to 16 bits."""

import ml_dtypes
import numpy as np
import pytest

from refloss.cases.source import Case, Source
from refloss.testing.judging import judge as judging
from refloss.testing.judging.judge import judge, question
from tests.gauntlet.survey import without_causes
from tests.questions import questions

COARSE = [ml_dtypes.bfloat16, np.float16]


def coarse_questions(*functions):
    """Those with gradients of 16 bits, each with such a gradient that has numbers."""
    for function in functions:
        for asked in questions(function):
            for name, exact in asked.exact.items():
                if np.any(np.isfinite(exact) & (exact != 0)):
                    yield asked, name


def moved(values, direction):
    """The next number of a type, away from 0 or towards it."""
    return np.nextafter(values, np.asarray(np.copysign(direction, values), values.dtype))


def towards_zero(exact, dtype):
    rounded = exact.astype(dtype)
    over = np.abs(rounded.astype(np.float32)) > np.abs(exact)
    return np.where(over, np.nextafter(rounded, np.zeros((), dtype)), rounded).astype(dtype)


def passes(asked, name, values):
    """Whether a tensor does, whatever the cause if it does not, which takes longer to find."""
    with without_causes():
        (verdict,) = judge(asked._replace(expected={name: asked.expected[name]}), {name: values}).tensors
    assert verdict.fault in {None, "too far off"}
    return verdict.passed


FUNCTIONS = ("cross_entropy", "causal_lm", "mse", "bce_with_logits", "dice", "object_detection")


def test_what_is_truncated_or_one_ulp_off_everywhere_fails():
    seen = set()
    for asked, name in coarse_questions(*FUNCTIONS):
        right = asked.expected[name]
        assert passes(asked, name, right), (asked.case.id, name)
        assert passes(asked, name, asked.exact[name].astype(right.dtype))
        # Of few numbers, or of such that their type holds, truncation may be rounding.
        exact = asked.exact[name][np.isfinite(right)]
        cut = towards_zero(asked.exact[name], right.dtype)
        lost = np.abs(cut.astype(np.float32) - asked.exact[name])[np.isfinite(right)]
        if np.any(lost > 0.75 * np.spacing(np.abs(exact).astype(right.dtype)).astype(np.float32)):
            assert not passes(asked, name, cut), (asked.case.id, name)
            seen.add((asked.case.function, str(right.dtype)))
        for direction in (np.inf, 0.0):
            with np.errstate(over="ignore"):
                assert not passes(asked, name, moved(right, direction)), (asked.case.id, name, direction)
    assert all(exact.dtype == np.float32 for asked in questions("kl_div") for exact in asked.exact.values())
    assert seen == {(function, dtype) for function in FUNCTIONS for dtype in ("bfloat16", "float16")}


def test_a_candidate_between_two_neighbours_may_be_either():
    """Half way between two numbers of 16 bits, float32's rounding decides."""
    target = np.zeros(1, ml_dtypes.bfloat16)
    cotangent = 1.0 + 2.0**-8
    case = Case("tie", "mse", {"input": np.ones(1, ml_dtypes.bfloat16), "target": target}, {}, cotangent / 2)
    asked = question(case)
    assert asked.exact["grad.input"] == np.float32(cotangent)
    for value in (1.0, 1.0 + 2.0**-7):
        assert passes(asked, "grad.input", np.full(1, value, ml_dtypes.bfloat16))
    assert not passes(asked, "grad.input", np.full(1, 1.0 + 2.0**-6, ml_dtypes.bfloat16))


def test_golden_values_of_another_version_are_what_is_right():
    (asked,) = (asked for asked in questions("mse") if asked.case.id == "mse-bfloat16-mean")
    other = (asked.expected["grad.input"].astype(np.float32) * 2).astype(ml_dtypes.bfloat16)
    changed = asked._replace(expected=asked.expected | {"grad.input": other})
    assert passes(changed, "grad.input", other)
    assert not passes(changed, "grad.input", asked.expected["grad.input"])


@pytest.mark.parametrize("order", ["C", "F", "reversed"])
def test_layouts_and_blocks_do_not_matter(monkeypatch, order):
    source = Source(5)
    case = Case("layouts", "mse", {"input": source.normal(13, 17), "target": source.normal(13, 17)}, {}, -1 / 3)
    asked = question(case)
    right = asked.expected["grad.input"]
    wrong = right.copy()
    wrong[7, 11] *= 1.01
    layouts = {"C": wrong, "F": np.asfortranarray(wrong), "reversed": wrong[::-1].copy()[::-1]}
    verdicts = []
    for block in (1, 50, 2**16):
        monkeypatch.setattr(judging, "BLOCK", block)
        verdicts.append(judge(asked, {"loss": asked.expected["loss"], "grad.input": layouts[order]}).tensors[1])
    assert verdicts[0] == verdicts[1] == verdicts[2]
    assert verdicts[0].worst.index == (7, 11)
    assert verdicts[0].spread.above == 1
    np.testing.assert_allclose(verdicts[0].spread.worst[0].got, wrong[7, 11])


def test_intermediates_are_judged_where_they_are_brought():
    asked = questions("cross_entropy")[0]
    assert any(name.startswith("intermediate.") for name in asked.expected)
    verdict = judge(asked, asked.expected)
    assert {"intermediate.lse", "intermediate.nll"} <= {tensor.name for tensor in verdict.tensors}
    assert verdict.passed
