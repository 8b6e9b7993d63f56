"""A causal language modelling loss in NumPy that refloss judges: in float32, or float64 for float64 logits.

    refloss golden write golden --only causal_lm
    python examples/numpy_causal_lm.py golden candidate
    refloss compare golden candidate

reads the golden cases and leaves what it makes of them in candidate/. A case with a parameter that is not known here is
left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from refloss.files import load_tensors, save_tensors

KNOWN = {"ignore_index", "num_items_in_batch", "vocab_size"}  # the parameters


def causal_lm(
    inputs: dict[str, np.ndarray], parameters: dict[str, Any], grad_output: float
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The loss, and its vector-Jacobian product with the upstream gradient."""
    if unknown := parameters.keys() - KNOWN:
        raise NotImplementedError(f"no {', '.join(sorted(unknown))}")
    logits, ignored = inputs["logits"], parameters.get("ignore_index", -100)
    if "shift_labels" in inputs:
        labels = inputs["shift_labels"]
    else:
        labels = np.full_like(inputs["labels"], ignored)
        labels[:, :-1] = inputs["labels"][:, 1:]
    labels = labels.reshape(-1)
    working = np.float64 if logits.dtype == np.float64 else np.float32
    rows = logits.reshape(labels.size, -1).astype(working)
    counted = labels != ignored
    rows[~counted] = 0.0  # whatever an ignored row holds
    items = working(parameters.get("num_items_in_batch", counted.sum()))
    here = np.flatnonzero(counted), labels[counted]

    shifted = rows - rows.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):  # no labels at all: 0/0
        loss = (np.log(totals)[counted, 0] - shifted[here]).sum() / items
        factor = working(grad_output) / items
    gradient = np.zeros_like(rows)
    gradient[counted] = (exponentials / totals)[counted]
    gradient[here] -= 1.0
    gradient[counted] *= factor
    return np.asarray(loss, working), {"logits": gradient.reshape(logits.shape).astype(logits.dtype)}


def main(golden: Path, candidate: Path) -> None:
    """Write a candidate for every case of causal_lm whose parameters are known."""
    candidate.mkdir(parents=True, exist_ok=True)
    cases = json.loads((golden / "manifest.json").read_text())["cases"]
    for case in cases:
        if case["function"] != "causal_lm" or not case["parameters"].keys() <= KNOWN:
            continue
        tensors = load_tensors(golden / case["file"])
        inputs = {name.removeprefix("input."): value for name, value in tensors.items() if name.startswith("input.")}
        loss, grads = causal_lm(inputs, case["parameters"], case["grad_output"])
        save_tensors(
            candidate / case["file"], {"loss": loss, **{f"grad.{name}": value for name, value in grads.items()}}
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
