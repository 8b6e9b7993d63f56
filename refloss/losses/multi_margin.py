"""Multi-class margin loss: a label should lead all other classes by a margin; see losses/parts/class_margins.py.

Torch counterpart: torch.nn.functional.multi_margin_loss. Source: Weston, Watkins, "Support Vector Machines for
Multi-Class Pattern Recognition", ESANN 1999, equation 2 with its slack summed over the classes; p = 2 squares it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss import arrays
from refloss.cases import vectors as cases
from refloss.cases.draws import Drawn
from refloss.error_model import vectors as error_model
from refloss.loss import loss
from refloss.losses.parts.class_margins import LOOP
from refloss.losses.parts.softmax import factor_of_each_class
from refloss.losses.parts.vectors import REDUCTIONS, loss_of_vectors, vector_array
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Parameter, Specification, class_weight, indices, vectors
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction

if TYPE_CHECKING:
    from refloss.cases.draws import Draws
    from refloss.cases.source import Case
    from refloss.error_model.bound import Bound
    from refloss.roundoff import Roundoff

_POWERS = (1, 2)
_PARAMETERS = {"p": Parameter(int, _POWERS), "margin": Parameter(float, (1.0, 0.25, 3.0))} | REDUCTION


def _draw(draws: Draws) -> Drawn:
    rows, classes = draws.row_shape(0, 1), draws.classes()
    labels = draws.integers((draws.uniform(*rows) * classes).astype(np.int64))
    inputs = {"input": draws.logits(*rows, classes), "target": labels}
    if draws.maybe():
        inputs["weight"] = draws.class_weights(classes)
    return Drawn(inputs, draws.parameters(_PARAMETERS), rows)


def _bounds(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    targets = case.inputs["target"].reshape(-1, 1).astype(np.int64)
    weight = np.asarray(case.inputs.get("weight", np.ones(int(targets.max(initial=0)) + 1)), np.float64)
    margin, p = case.parameters.get("margin", 1.0), case.parameters.get("p", 1)
    return error_model.class_margins(case, targets, weight[targets[:, 0]], unit, margin=margin, p=p)


@loss(
    Specification(
        arguments={"input": vectors("N C|C"), "target": indices("N|"), "weight": class_weight()},
        parameters=_PARAMETERS,
        mean="rows",
        per="row",
        order=141,
        follows="torch.nn.functional.multi_margin_loss",
        cases=cases.multi_margin,
        draw=_draw,
        bounds=_bounds,
        intermediates=("losses",),
    )
)
def multi_margin(
    input: ArrayLike,  # noqa: A002
    target: ArrayLike,
    *,
    p: int = 1,
    margin: float = 1.0,
    weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Multi-class margin loss, as torch.nn.functional.multi_margin_loss.

    ℓ_r = w_y·Σ_{j≠y} max(0, z_j)^p/C with z_j = margin − x_y + x_j; "mean" divides the sum by the number of rows,
    whatever the weights. With c = grad_output over that, times w_y/C: ∂/∂x_j = c·[z_j > 0] for p = 1, c·2·max(0, z_j)
    for p = 2; ∂/∂x_y is minus the sum of these. Held constant: weight.

    Args:
        input: logits [N, C], or [C]; any float dtype and layout.
        target: labels [N], or a scalar for [C], for which [1] keeps its axis; any integer dtype.
        p: 1 or 2.
        margin: by how much a label should lead; any sign.
        weight: [C], a factor for each class.
        reduction: "mean", "sum" or "none".
        grad_output, grad, grad_dtype, out, backend: as in refloss.cross_entropy.

    Returns:
        loss in units of the input, to the power p. grads: "input". intermediates: "losses" of the rows.

    Edges:
        z = 0: no gradient, as torch has it. z is NaN: neither loss nor gradient, as torch has it. No rows: "mean" is
        NaN. One class: 0.

    Raises:
        ValueError: a shape, a label, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", REDUCTIONS)
    power = arrays.integer(p, "p") if not isinstance(p, float) else arrays.number(p, "p")
    if power not in _POWERS:
        raise ValueError(f"p is {power}; expected 1 or 2")
    x = vector_array(input, "input", "[N, C] or [C] with at least one class")
    classes, labels = x.shape[-1] if x.ndim else 1, arrays.integer_array(target, "target")
    if x.ndim > 1 or labels.shape != (1,):
        arrays.check_shape(labels, x.shape[:-1], "target", f"one label for each row of input {x.shape}")
    arrays.check_range(labels, 0, classes - 1, "target")
    factors, flat = factor_of_each_class(weight, classes), labels.reshape(-1).astype(np.int64)
    return loss_of_vectors(
        LOOP,
        {"input": x},
        Options(grad_output, grad, grad_dtype, out, backend),
        row_shape=labels.shape,
        parameters=(arrays.number(margin, "margin", finite=True), float(power)),
        labels=flat[:, None],
        factor=None if factors is None else factors[flat],
        divisor=float(classes),
        reduction=reduction,
    )
