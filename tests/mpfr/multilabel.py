"""Binary cross-entropies of rows: multilabel_soft_margin, of whose mean every element is one of all."""

from __future__ import annotations

from typing import Any

import refloss
from tests.mpfr import definitions
from tests.mpfr.elements import LOSSES, ElementLoss

_WIDTHS = (7, 5, 3, 2, 1)


def _rows(*, input: Any, target: Any, **options: Any) -> Any:  # noqa: A002
    width = next(width for width in _WIDTHS if input.size % width == 0)
    weight = options.pop("weight", None)
    given = {} if weight is None else {"weight": weight.reshape(-1, width)}
    return refloss.multilabel_soft_margin(input.reshape(-1, width), target.reshape(-1, width), **given, **options)


MULTILABEL = ElementLoss(
    "multilabel_soft_margin",
    lambda _: definitions.bce_with_logits,
    draw=LOSSES["bce_with_logits"].draw,
    close=LOSSES["bce_with_logits"].close,
    crossing=LOSSES["bce_with_logits"].crossing,
    weight="differentiable",
    unit_interval=(False, True),
    call=_rows,
)
