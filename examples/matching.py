"""Draw what a detection head does to one image: the matching, its costs, and where the gradient pulls the boxes.

    python examples/matching.py [--out docs/img/matching.svg]

The gradient is that of the box losses alone. An arrow on a box's edge is minus its derivative: where the edge would go.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import refloss

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLASSES = ("cat", "dog", "bird")
PREDICTED, TARGET, IDLE = "#2f6fb0", "#d9822b", "#8a8f98"
ARROW_LENGTH = 0.08
CONFIG = {
    "num_labels": len(CLASSES),
    "class_cost": 1.0,
    "bbox_cost": 5.0,
    "giou_cost": 2.0,
    "eos_coefficient": 0.1,
    "auxiliary_loss": False,
    "bbox_loss_coefficient": 5.0,
    "giou_loss_coefficient": 2.0,
}
# Centre and size in parts of the image's.
TARGETS = np.array([[0.27, 0.36, 0.30, 0.40], [0.72, 0.30, 0.26, 0.28], [0.66, 0.76, 0.36, 0.26]])
BOXES = np.array(
    [
        [0.33, 0.43, 0.26, 0.30],
        [0.80, 0.35, 0.20, 0.34],
        [0.56, 0.70, 0.24, 0.30],
        [0.15, 0.82, 0.16, 0.20],
        [0.91, 0.06, 0.12, 0.08],
    ]
)
# The probabilities of the three classes and of no object.
LOGITS = np.log([[6, 1, 1, 2], [1, 5, 2, 2], [1, 1, 4, 4], [1, 2, 1, 8], [2, 2, 2, 5]])


def losses() -> refloss.LossResult:
    """The head's answer for the scene; its gradient is that of the box losses."""
    labels = [{"class_labels": np.arange(len(CLASSES)), "boxes": TARGETS}]
    weights = {"loss_bbox": CONFIG["bbox_loss_coefficient"], "loss_giou": CONFIG["giou_loss_coefficient"]}
    result: refloss.LossResult = refloss.object_detection(
        LOGITS[None], labels, BOXES[None], CONFIG, grad_output=weights
    )
    return result


def edges(box: np.ndarray, gradient: np.ndarray) -> list[tuple[float, float, float, float]]:
    """Of each edge its middle, and minus its derivative, from those of centre and size."""
    (x, y, w, h), (dx, dy, dw, dh) = box, gradient
    # With c = (a + b)/2 and s = b − a, ∂/∂a = ∂/∂c / 2 − ∂/∂s and ∂/∂b = ∂/∂c / 2 + ∂/∂s.
    return [
        (x - w / 2, y, -(dx / 2 - dw), 0.0),
        (x + w / 2, y, -(dx / 2 + dw), 0.0),
        (x, y - h / 2, 0.0, -(dy / 2 - dh)),
        (x, y + h / 2, 0.0, -(dy / 2 + dh)),
    ]


def draw_scene(axes: Axes, result: refloss.LossResult) -> None:
    """Boxes, lines between those that are matched, and arrows."""
    table = result.intermediates["assignment"]
    costs = result.intermediates["cost_matrix"]
    gradient = result.grads["pred_boxes"][0]
    arrows = [arrow for query in table[:, 1] for arrow in edges(BOXES[query], gradient[query])]
    longest = max(np.hypot(u, v) for _, _, u, v in arrows)
    for box, name in zip(TARGETS, CLASSES, strict=True):
        x, y, w, h = box
        axes.add_patch(Rectangle((x - w / 2, y - h / 2), w, h, fill=False, edgecolor=TARGET, linewidth=2.2))
        axes.text(x - w / 2, y - h / 2 - 0.012, name, color=TARGET, fontsize=11, va="bottom", weight="bold")
    matched = set(table[:, 1].tolist())
    for query, (x, y, w, h) in enumerate(BOXES):
        color = PREDICTED if query in matched else IDLE
        style = "-" if query in matched else (0, (4, 3))
        axes.add_patch(
            Rectangle((x - w / 2, y - h / 2), w, h, fill=False, edgecolor=color, linewidth=1.6, linestyle=style)
        )
        label = f"query {query}" if query in matched else f"query {query}: no object"
        side, align = (x - w / 2, "left") if x < 0.5 else (x + w / 2, "right")
        axes.text(side, y + h / 2 + 0.012, label, color=color, fontsize=9.5, va="top", ha=align)
    for _, query, number in table:
        axes.plot(
            *zip(BOXES[query, :2], TARGETS[number, :2], strict=True), color=PREDICTED, linewidth=1, marker="o", ms=3
        )
        middle = (BOXES[query, :2] + TARGETS[number, :2]) / 2
        axes.annotate(
            f"{costs[query, number]:.2f}", middle, (7, 7), textcoords="offset points", fontsize=9.5, color=PREDICTED
        )
    for x, y, u, v in arrows:
        axes.annotate(
            "",
            (x + ARROW_LENGTH * u / longest, y + ARROW_LENGTH * v / longest),
            (x, y),
            arrowprops={"arrowstyle": "-|>", "color": "#c0392b", "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0},
        )
    axes.set(xlim=(0, 1), ylim=(1.0, 0), aspect="equal", xticks=[], yticks=[])
    margin = float(result.intermediates["margin"][0])
    axes.set_title(f"Matching and pull of the gradient; the next best matching costs {margin:.2f} more", fontsize=10.5)


def draw_costs(axes: Axes, result: refloss.LossResult) -> None:
    """The cost matrix with the matching marked."""
    costs = result.intermediates["cost_matrix"]
    axes.imshow(costs, cmap="Blues_r", aspect="auto", vmin=costs.min(), vmax=costs.max() + 3)
    for (query, number), cost in np.ndenumerate(costs):
        dark = cost < costs.min() + 0.35 * (costs.max() - costs.min())
        axes.text(number, query, f"{cost:.2f}", ha="center", va="center", fontsize=10, color="w" if dark else "#1c2733")
    for _, query, number in result.intermediates["assignment"]:
        axes.add_patch(
            Rectangle((number - 0.47, query - 0.47), 0.94, 0.94, fill=False, edgecolor=TARGET, linewidth=2.4)
        )
    axes.set_xticks(range(len(CLASSES)), CLASSES)
    axes.set_yticks(range(len(costs)), [f"query {query}" for query in range(len(costs))])
    axes.tick_params(length=0)
    axes.set_title("Costs", fontsize=10.5)


def draw(out: Path) -> None:
    """Write the picture; the same bytes each time."""
    options: Any = {"svg.hashsalt": "refloss", "svg.fonttype": "none", "font.family": "sans-serif"}
    with mpl.rc_context(options):
        figure = Figure(figsize=(11, 6.2), facecolor="white", layout="constrained")
        scene, costs = figure.subplots(1, 2, width_ratios=(1.75, 1))
        result = losses()
        draw_scene(scene, result)
        draw_costs(costs, result)
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=110)


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("docs/img/matching.svg"))
    draw(parser.parse_args().out)


if __name__ == "__main__":
    main()
