"""Rows of a student's and a teacher's logits: their divergence, and the gradient of both."""

from __future__ import annotations

from refloss import jit
from refloss.kernels.divergences.quick import quick, quick_gradient, settled_loss
from refloss.kernels.divergences.row import PART, PART_LOW, X, Y, clear, know, loss_of, write_gradient
from refloss.kernels.rows import load_strided, row_offset, save_strided
from refloss.numerics.pairs import rounded, to_odd


@jit.helper
def _save_line(scratch, rows, row):
    save_strided(scratch[PART], rows, row_offset(rows, row), rows.class_stride)


@jit.helper
def _save(scratch, rows, row):
    high, low = scratch[PART], scratch[PART_LOW]
    for c in range(high.size if rows.format != 0 else 0):
        high[c] = to_odd((high[c], low[c]))
    _save_line(scratch, rows, row)


@jit.helper
def _load(rows, row, line):
    load_strided(rows, row_offset(rows, row), rows.class_stride, line)


@jit.helper
def _quick_row(scratch, gradients, wanted, given, losses, row):
    """A row's divergence and gradients, if float64 leaves no doubt about any of them; they may be spoilt otherwise."""
    of_student, of_teacher = gradients
    if (wanted[0] and of_student.format == 0) or (wanted[1] and of_teacher.format == 0):
        return False
    known = quick(scratch, given)
    losses[row], sure = settled_loss(known, given)
    if sure and wanted[0]:
        sure = quick_gradient(scratch, known, given, row, of_student.format, False)
        _save_line(scratch, of_student, row)
    if sure and wanted[1]:
        sure = quick_gradient(scratch, known, given, row, of_teacher.format, True)
        _save_line(scratch, of_teacher, row)
    return sure


@jit.kernel
def divergence_rows(logits, gradients, wanted, given, losses, scratch, first, last):
    """The divergences of rows first ... last, and the gradients that are wanted: the student's, the teacher's."""
    student, teacher = logits
    of_student, of_teacher = gradients
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
        if _quick_row(scratch, gradients, wanted, given, losses, row):
            continue
        known = know(scratch, given)
        losses[row] = rounded(loss_of(known, given))
        if wanted[0]:
            write_gradient(scratch, known, given, row, False)
            _save(scratch, of_student, row)
        if wanted[1]:
            write_gradient(scratch, known, given, row, True)
            _save(scratch, of_teacher, row)
