"""Cosine embedding loss: vectors that belong together should point one way, others should not.

With A = Σ x², B = Σ y², P = Σ x·y, A' = A + ε, B' = B + ε for torch's ε = 1e-12, Q = √(A'·B') and cos = P/Q,

    t = 1: ℓ = 1 − cos        t = −1: ℓ = max(0, cos − m)        any other t: 0
    ∂cos/∂x = (n + ε·y)/(A'·Q),    n = A·y − P·x,    ∂cos/∂y = (n' + ε·x)/(B'·Q),    n' = B·x − P·y

1 − |cos| of nearly parallel vectors and n cancel to nothing. By Lagrange's identity

    Q² − P² = Σ n²/A + ε·(A + B) + ε²,    1 − |cos| = (Q² − P²)/(Q·(Q + |P|))

has no negative term, and n is formed from products of pairs of which no digit is rounded away: an error of P is one of
second order in Σ n². Where vectors are parallel, n is 0 and what ε leaves comes out right. cos − m is 0 where P is 0
and m is: the slope passes there, as torch has it.

Torch counterpart: torch.nn.functional.cosine_embedding_loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss import arrays, jit
from refloss.cases import vectors as cases
from refloss.cases.draws import Drawn
from refloss.error_model import vectors as error_model
from refloss.kernels.vectors.loop import VectorLoop, total_of
from refloss.loss import loss
from refloss.losses.parts.vectors import REDUCTIONS, loss_of_vectors, vector_array
from refloss.numerics.exponential import scale
from refloss.numerics.pairs import add, divide, multiply, negate, pair, two_product, two_sum
from refloss.numerics.roots import root
from refloss.numerics.sums import exponent_of
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Argument, Parameter, Specification, vectors
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction

if TYPE_CHECKING:
    from refloss.cases.draws import Draws
    from refloss.cases.source import Case

# Added to both squared lengths.
_EPSILON = 1e-12
# Lines of the scratch: the vectors, their slopes, and terms of a sum.
_X, _Y, _SLOPES, _TERM, _TERM_LOW = 0, 1, 2, 6, 7
_LINES = 8
# Vectors of larger elements are scaled: their sixth powers stay within float64.
_FAR = 100
_UNDEFINED = 1025
# An exponent at which nothing is left of ε.
_GONE = -2000
# What pairs leave of a difference of equal numbers.
_NOTHING = 2.0**-96


@jit.helper
def _shift(line):
    """Divide a vector of large elements by a power of two; its exponent."""
    exponent = 0
    for i in range(line.size):
        exponent = max(exponent, exponent_of(line[i]))
    if exponent <= _FAR or exponent >= _UNDEFINED:
        return 0
    for i in range(line.size):
        line[i] = scale(line[i], -exponent)
    return exponent


@jit.helper
def _products(x, y, scratch):
    """Σ x·y, a pair."""
    for i in range(x.size):
        high, low = two_product(x[i], y[i])
        scratch[_TERM, i], scratch[_TERM_LOW, i] = high, low if abs(high) < np.inf else 0.0
    return total_of(scratch[_TERM], scratch[_TERM_LOW])


@jit.scalar
def _across(square, y, product, x):
    """A·y − P·x for pairs A and P: what cancels is exact."""
    first, first_low = two_product(square[0], y)
    second, second_low = two_product(-product[0], x)
    high, rest = two_sum(first, second)
    low, lowest = two_product(square[1], y)
    other, otherest = two_product(-product[1], x)
    small = add(two_sum(first_low, second_low), two_sum(low, other))
    small = add(small, (rest, lowest + otherest))
    return add(pair(high), small)


@jit.helper
def _gap(scratch, squares, product, epsilons, size):
    """1 − |cos|, a pair, from Q = size."""
    for i in range(scratch.shape[1]):
        across = _across(squares[0], scratch[_Y, i], product, scratch[_X, i])
        scratch[_TERM, i], scratch[_TERM_LOW, i] = multiply(across, across)
    total = divide(total_of(scratch[_TERM], scratch[_TERM_LOW]), squares[0])
    for k in range(2):
        total = add(total, multiply(pair(epsilons[1 - k]), squares[k]))
    total = add(total, two_product(epsilons[0], epsilons[1]))
    positive = product if product[0] > 0.0 else negate(product)
    return divide(total, multiply(size, add(size, positive)))


@jit.scalar
def _less(cosine, margin):
    """cos − m; 0 where nothing but the errors of pairs is left."""
    rest = add(cosine, pair(-margin))
    return pair(0.0) if abs(rest[0]) < _NOTHING * (abs(cosine[0]) + abs(margin)) else rest


@jit.scalar
def _value(target, margin, cosine, gap, is_near):
    """1 − cos or cos − m: of |cos| near 1 from 1 − |cos|."""
    above = cosine[0] > 0.0
    if target == 1:
        if is_near:
            return gap if above else add(pair(2.0), negate(gap))
        return add(pair(1.0), negate(cosine))
    if is_near:
        return add(two_sum(1.0, -margin), negate(gap)) if above else add(gap, two_sum(-1.0, -margin))
    return _less(cosine, margin)


@jit.helper
def _fill(scratch, value):
    for line in range(_SLOPES, _SLOPES + 4, 2):
        for i in range(scratch.shape[1]):
            scratch[line, i], scratch[line + 1, i] = value, 0.0


@jit.helper
def _slopes_of(scratch, own, other, square, product, epsilon, factor, line):
    """(n + ε·other)·factor, pairs, into two lines."""
    for i in range(scratch.shape[1]):
        across = _across(square, scratch[other, i], product, scratch[own, i])
        whole = add(across, two_product(epsilon, scratch[other, i]))
        scratch[line, i], scratch[line + 1, i] = multiply(whole, factor)


@jit.helper
def _of_row(scratch, labels, parameters, with_slopes):
    """The loss of a row, and its slopes."""
    margin, target = parameters[0], labels[0]
    shifts = _shift(scratch[_X]), _shift(scratch[_Y])
    epsilons = scale(_EPSILON, max(-2 * shifts[0], _GONE)), scale(_EPSILON, max(-2 * shifts[1], _GONE))
    squares = _products(scratch[_X], scratch[_X], scratch), _products(scratch[_Y], scratch[_Y], scratch)
    product = _products(scratch[_X], scratch[_Y], scratch)
    if not abs(squares[0][0] + squares[1][0] + product[0]) < np.inf:
        # As torch has it, for rows that have no target, too.
        _fill(scratch, np.nan)
        return pair(np.nan if abs(target) == 1 else 0.0)
    lengths = add(squares[0], pair(epsilons[0])), add(squares[1], pair(epsilons[1]))
    size = root(multiply(lengths[0], lengths[1]))
    cosine, gap = divide(product, size), pair(0.0)
    is_near = abs(cosine[0]) > 0.5
    if is_near:
        gap = _gap(scratch, squares, product, epsilons, size)
    value = _value(target, margin, cosine, gap, is_near)
    active = target == 1 or (target == -1 and value[0] >= 0.0)
    if with_slopes and active:
        sign = -1.0 if target == 1 else 1.0
        for k in range(2):
            factor = divide(pair(sign), multiply(lengths[k], size))
            factor = scale(factor[0], -shifts[k]), scale(factor[1], -shifts[k])
            _slopes_of(scratch, k, 1 - k, squares[k], product, epsilons[k], factor, _SLOPES + 2 * k)
    elif with_slopes:
        _fill(scratch, 0.0)
    return value if active else pair(0.0)


LOOP = VectorLoop("cosine_embedding", 2, _LINES, _of_row)
_PARAMETERS = {"margin": Parameter(float, (0.0, 0.25, -0.5))} | REDUCTION


def _draw(draws: Draws) -> Drawn:
    """The second vector is anything, or a multiple of the first one, or next to one."""
    rows, size = draws.row_shape(0, 1), draws.classes()
    first, second = draws.logits(*rows, size), draws.logits(*rows, size)
    if not draws.limits.exact and draws.maybe():
        second = draws.near(draws.one_of(1.0, -0.5) * first.astype(np.float64))
    target = np.where(draws.uniform(*rows) < 0.5, 1, -1)
    floats = not draws.limits.exact and draws.maybe()
    inputs = {"input1": first, "input2": second, "target": draws.cast(target) if floats else target}
    return Drawn(inputs, draws.parameters(_PARAMETERS), rows)


def _mistakes(case: Case) -> dict[str, dict[str, np.ndarray]]:
    target = case.inputs["target"]
    return {
        "targets of −1 are taken for others": {"target": np.where(target == 0, -1, np.where(target == -1, 0, target))},
        "targets that are neither 1 nor −1 are taken for −1": {"target": np.where(target == 1, target, -1)},
        "targets are taken for their negatives": {"target": -target},
    }


@loss(
    Specification(
        arguments={
            "input1": vectors("N D|D"),
            "input2": vectors("N D|D"),
            "target": Argument("values", shape="N|", numbers=("integer", "float")),
        },
        parameters=_PARAMETERS,
        mean="rows",
        per="row",
        order=144,
        follows="torch.nn.functional.cosine_embedding_loss",
        cases=cases.cosine_embedding,
        draw=_draw,
        bounds=error_model.cosine_embedding,
        mistakes=_mistakes,
        intermediates=("losses",),
    )
)
def cosine_embedding(
    input1: ArrayLike,
    input2: ArrayLike,
    target: ArrayLike,
    *,
    margin: float = 0.0,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Cosine embedding loss, as torch.nn.functional.cosine_embedding_loss.

    With cos = Σ xy/√((Σ x² + 1e-12)·(Σ y² + 1e-12)): ℓ_r = 1 − cos where the target is 1, max(0, cos − margin) where it
    is −1, 0 for any other; "mean" divides the sum by the number of rows. With c = grad_output over that and A' = Σ x² +
    1e-12: ∂/∂x_i = ∓c·(y_i − x_i·Σ xy/A')/√(A'·B') for a target of ±1, and for y the same the other way round. Held
    constant: target.

    Args:
        input1, input2: [N, D], or [D], of one shape; any float dtype and layout. torch broadcasts.
        target: 1 and −1, [N], or a scalar for [D]; any integer or float dtype.
        margin: cosines up to it cost nothing where the target is −1.
        reduction: "mean", "sum" or "none".
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for input1's gradient.

    Returns:
        loss between 0 and 2 (for margins of at least −1). grads: "input1" and "input2". intermediates: "losses" of the
        rows.

    Edges:
        cos = margin: the slope passes. A vector of zeros has cos = 0, and a gradient of up to 1e6. A row with NaN or an
        infinity has a gradient of NaN, whatever its target, as torch has it. No rows: "mean" is NaN.

    Raises:
        ValueError: a shape, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", REDUCTIONS)
    inputs = {
        name: vector_array(value, name, "[N, D] or [D]", axes=2)
        for name, value in (("input1", input1), ("input2", input2))
    }
    first = inputs["input1"]
    if not first.ndim:
        raise ValueError(f"input1 has shape {first.shape}; expected [N, D] or [D]")
    arrays.check_shape(inputs["input2"], first.shape, "input2", "the shape of input1")
    wanted = arrays.as_array(target, "target")
    if not arrays.is_real(wanted):
        raise TypeError(f"target has dtype {wanted.dtype}; expected an integer or float dtype")
    arrays.check_shape(wanted, first.shape[:-1], "target", f"one number for each row of input1 {first.shape}")
    flat = wanted.reshape(-1)
    return loss_of_vectors(
        LOOP,
        inputs,
        Options(grad_output, grad, grad_dtype, out, backend),
        row_shape=first.shape[:-1],
        parameters=(arrays.number(margin, "margin", finite=True),),
        labels=((flat == 1).astype(np.int64) - (flat == -1))[:, None],
        reduction=reduction,
    )
