"""Assignments of least cost: those that SciPy finds, whichever of several they are."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from refloss.kernels.matching.run import assignment
from tests.test_detection import bits, call, scene

HUGE = float(np.finfo(np.float64).max)
COSTS = {
    "random": lambda generator, shape: generator.random(shape),
    "tied": lambda generator, shape: generator.integers(0, 4, shape).astype(np.float64),
    "all alike": lambda generator, shape: np.full(shape, generator.standard_normal()),
    "of any size": lambda generator, shape: generator.standard_normal(shape) * 10.0 ** generator.integers(-9, 9, shape),
    "replaced": lambda generator, shape: np.where(generator.random(shape) < 0.4, HUGE, generator.random(shape)),
}


def expected(costs, offsets, groups):
    """Image, query and object of each pair."""
    size, pairs = len(costs) // groups, [np.empty((3, 0), np.int64)]
    for image, (first, last) in enumerate(itertools.pairwise(offsets)):
        for start in range(0, groups * size, max(size, 1)):
            query, chosen = linear_sum_assignment(costs[start : start + size, first:last])
            pairs.append(np.stack([np.full(len(query), image), start + query, chosen]))
    return np.concatenate(pairs, axis=1)


@pytest.mark.parametrize("kind", COSTS)
def test_assignments_are_those_of_scipy(kind):
    generator = np.random.default_rng(0)
    for _ in range(300):
        groups, counts = int(generator.integers(1, 4)), generator.integers(0, 12, generator.integers(1, 4))
        queries, offsets = int(generator.integers(0, 30)), np.cumsum([0, *counts])
        costs = COSTS[kind](generator, (queries, int(offsets[-1])))
        np.testing.assert_array_equal(np.stack(assignment(costs, offsets, groups)), expected(costs, offsets, groups))


def test_a_mask_may_be_of_any_type():
    arguments = scene("segmentation", counts=(2, 1, 0), seed=4)
    for own in arguments["labels"]:
        own["masks"] = np.asarray(own["masks"]) > 0.5
    whole = bits(call("segmentation", arguments))
    for dtype in (np.float32, np.int64):
        for own in arguments["labels"]:
            own["masks"] = own["masks"].astype(dtype)
        assert bits(call("segmentation", arguments)) == whole
    # In one image fractions, which a byte would make 0.
    masks = arguments["labels"][1]["masks"]
    arguments["labels"][1]["masks"] = masks / 2
    halves = bits(call("segmentation", arguments))
    arguments["labels"][1]["masks"] = masks * 0
    assert bits(call("segmentation", arguments)) != halves
