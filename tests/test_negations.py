"""No kernel negates the result of a fused multiply-add: the sign of a 0 would depend on how LLVM compiles it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.negations import negated

# Functions whose cases need the kernels of every family.
REST = (
    "mse huber smooth_l1 bce_with_logits kl_div sigmoid_focal varifocal dice giou cross_entropy nll"
    " semantic_segmentation segmentation d_fine_object_detection lw_detr_object_detection"
)


@pytest.mark.parametrize("functions", ["bce", pytest.param(REST, marks=pytest.mark.slow)], ids=["one", "every family"])
def test_no_kernel_negates_a_fused_multiply_add(functions, tmp_path):
    # What is loaded from a cache has no IR.
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.negations", *functions.split()]
    root = Path(__file__).parents[1]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert any("compute_elements" in name for name in found)
    assert {name: irs for name, irs in found.items() if any(irs)} == {}


FMA = "  %1 = tail call double @llvm.fma.f64(double %a, double %b, double %c)\n"


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("  %2 = fneg double %1\n  ret double %2\n", ["%1"]),
        ("  %2 = fneg double %1\n  %3 = fmul double %1, %2\n", []),
        ("  %10 = fneg double %a\n  ret double %1\n", []),
        ("  %12 = fneg double %11\n  ret double %1\n", []),
    ],
    ids=["only negated", "used otherwise", "an operand", "another name"],
)
def test_negations_are_found(rest, expected):
    assert negated(f"define double @f() {{\n{FMA}{rest}}}\n") == expected
