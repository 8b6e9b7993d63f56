"""Compile what many tests need, before pytest's workers each would: python -m tests.ahead PART, one of two at a time.

Kernels are kept on disk. The parts share few of them, and take about as long.
"""

import sys

import numpy as np

from refloss.files import nested
from refloss.registry import FUNCTIONS
from tests.cuda_cases import chosen_cases

PARTS = ("few", "heads")
# Of kernels that heads share with nothing else, and that take as long to compile as all others.
FEW = (
    *("cross_entropy", "nll", "semantic_segmentation", "dice"),
    *("mse", "l1", "huber", "smooth_l1", "bce", "kl_div"),
)


def compile_part(part: str) -> None:
    """Compute the cases that are computed everywhere, which are those of every kernel in every format."""
    with np.errstate(all="ignore"):
        for case in chosen_cases().values():
            if (case.function in FEW) == (part == "few"):
                call = FUNCTIONS[case.function].call
                call(**nested(case.inputs), **case.parameters, grad_output=case.grad_output)


if __name__ == "__main__":
    compile_part(sys.argv[1])
