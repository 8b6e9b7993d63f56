"""Rows of a student's and a teacher's logits: their divergence, and the gradient of both."""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.kernels.divergences.row import LINES, PART, PART_LOW, X, Y, clear, know, loss_of, write_gradient
from refloss.kernels.rows import load_strided, row_offset, save_strided
from refloss.numerics.pairs import rounded, to_odd


@jit.helper
def _save(scratch, rows, row):
    high, low = scratch[PART], scratch[PART_LOW]
    for c in range(high.size if rows.format != 0 else 0):
        high[c] = to_odd((high[c], low[c]))
    save_strided(high, rows, row_offset(rows, row), rows.class_stride)


@jit.helper
def _load(rows, row, line):
    load_strided(rows, row_offset(rows, row), rows.class_stride, line)


@jit.kernel
def divergence_rows(logits, gradients, wanted, given, losses, first, last):
    """The divergences of rows first ... last, and the gradients that are wanted: the student's, the teacher's."""
    student, teacher = logits
    of_student, of_teacher = gradients
    scratch = np.empty((LINES, student.classes))
    for row in range(first, last):
        losses[row] = 0.0
        if not given.counts[row]:
            clear(scratch)
            if wanted[0]:
                _save(scratch, of_student, row)
            if wanted[1]:
                _save(scratch, of_teacher, row)
            continue
        _load(student, row, scratch[X])
        _load(teacher, row, scratch[Y])
        known = know(scratch, given)
        losses[row] = rounded(loss_of(known, given))
        if wanted[0]:
            write_gradient(scratch, known, given, row, False)
            _save(scratch, of_student, row)
        if wanted[1]:
            write_gradient(scratch, known, given, row, True)
            _save(scratch, of_teacher, row)
