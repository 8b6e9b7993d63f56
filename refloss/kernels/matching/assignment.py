"""The assignment of least cost between queries and objects, for many images at a time.

Shortest augmenting paths, a row of costs after the other (Crouse, "On implementing 2D rectangular assignment
algorithms", IEEE TAES 52, 2016). Which of several assignments of one cost is found is part of a result: rows, columns
and ties are taken in the order in which scipy.optimize.linear_sum_assignment takes them, with the same arithmetic.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit

NONE = -1


class _Search(NamedTuple):
    """Potentials, the matching so far, and the tree of shortest paths from a row."""

    row_potential: np.ndarray
    column_potential: np.ndarray
    column_of: np.ndarray  # of each row
    row_of: np.ndarray  # of each column
    distance: np.ndarray  # of each column from the row
    parent: np.ndarray  # the row before each column
    reached: np.ndarray  # 1 for a row that has been
    left: np.ndarray  # columns that have not


@jit.helper
def _new_search(rows, columns):
    whole, real = np.empty((2, rows), np.int64), np.zeros(rows)
    of_columns, real_of_columns = np.empty((3, columns), np.int64), np.zeros((2, columns))
    whole[0], of_columns[0] = NONE, NONE
    return _Search(
        row_potential=real,
        column_potential=real_of_columns[0],
        column_of=whole[0],
        row_of=of_columns[0],
        distance=real_of_columns[1],
        parent=of_columns[1],
        reached=whole[1],
        left=of_columns[2],
    )


@jit.helper
def _relax(costs, search, row, count, so_far):
    """Paths through a row to the columns that are left; where the nearest of these is in the list."""
    lowest, nearest = np.inf, NONE
    for k in range(count):
        j = search.left[k]
        # In this order: another would round otherwise.
        through = ((so_far + costs[row, j]) - search.row_potential[row]) - search.column_potential[j]
        if through < search.distance[j]:
            search.parent[j], search.distance[j] = row, through
        here = search.distance[j]
        if here < lowest or (here == lowest and search.row_of[j] == NONE):
            lowest, nearest = here, k
    return lowest, nearest


@jit.helper
def _augment(costs, search, first):
    """Match one more row; False where no path has a finite length."""
    rows, columns = costs.shape
    for k in range(columns):
        search.left[k], search.distance[k] = columns - 1 - k, np.inf
    search.reached[:] = 0
    row, sink, length, count = first, NONE, 0.0, columns
    while sink == NONE:
        search.reached[row] = 1
        length, nearest = _relax(costs, search, row, count, length)
        if length == np.inf:
            return False
        j = search.left[nearest]
        row = search.row_of[j]
        sink = j if row == NONE else NONE
        count -= 1
        # The columns behind the count are those that have been reached.
        search.left[nearest], search.left[count] = search.left[count], j
    search.row_potential[first] += length
    for i in range(rows):
        if search.reached[i] == 1 and i != first:
            search.row_potential[i] += length - search.distance[search.column_of[i]]
    for k in range(count, columns):
        j = search.left[k]
        search.column_potential[j] -= length - search.distance[j]
    row = NONE
    while row != first:
        row = search.parent[sink]
        search.row_of[sink] = row
        search.column_of[row], sink = sink, search.column_of[row]
    return True


@jit.helper
def _problem(costs, first, last, start, count, by_object):
    """Costs of an image and a group, whose rows are the fewer of both sides."""
    objects = last - first
    result = np.empty((objects if by_object else count, count if by_object else objects))
    for n in range(objects):
        for q in range(count):
            if by_object:
                result[n, q] = costs[first + n, start + q]
            else:
                result[q, n] = costs[first + n, start + q]
    return result


@jit.helper
def _solve(problem, search):
    """Match every row; False where that takes sums that are not finite."""
    row = 0
    while row < problem.shape[0] and _augment(problem, search, row):
        row += 1
    return row == problem.shape[0]


@jit.kernel
def assign(costs, offsets, groups, table):
    """Images, queries and objects into a table [3, M], from costs [N, Q]; how many, −1 where sums are not finite.

    The queries are in groups that are matched each on its own; those of a group are in order.
    """
    size, done = costs.shape[1] // groups, 0
    for image in range(offsets.size - 1):
        first, last = offsets[image], offsets[image + 1]
        for start in range(0, groups * size if first < last else 0, max(size, 1)):
            by_object = last - first < size
            problem = _problem(costs, first, last, start, size, by_object)
            search = _new_search(problem.shape[0], problem.shape[1])
            if not _solve(problem, search):
                return -1
            for q in range(size):
                n = search.row_of[q] if by_object else search.column_of[q]
                if n != NONE:
                    table[0, done], table[1, done], table[2, done] = image, start + q, n
                    done += 1
    return done
