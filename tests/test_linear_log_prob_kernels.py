"""What kernels of a linear layer's log-probabilities do: honest ones pass the judge, and each usual mistake fails.

The kernel is NumPy in float32, by chunks of rows: a layer around the steps of tests/gauntlet/log_probs.py. A mistake
replaces one of the steps.
"""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refloss.golden.corpus import cases_of
from refloss.testing.judging import judge
from tests.gauntlet.kernels import with_steps
from tests.gauntlet.log_probs import SelectedLogProbs

FUNCTION = "linear_selected_log_probs"
CASES = cases_of(FUNCTION)


class Linear(SelectedLogProbs):
    """Log-probabilities of X·Wᵀ + b."""

    def weights(self, w: np.ndarray) -> np.ndarray:
        """Those of the classes."""
        return w

    def bias(self, b: np.ndarray) -> np.ndarray:
        """Those of the classes."""
        return b

    def chunks(self) -> int:
        """How many parts the rows are taken in."""
        return 1

    def rows_of(self, cotangent: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The cotangents of some rows."""
        return cotangent[rows]

    def added(self, total: np.ndarray, part: np.ndarray) -> np.ndarray:
        """Gradients of parameters, of one part more."""
        return total + part

    def written(self, z: np.ndarray, x: np.ndarray, parameters: dict[str, Any]) -> np.ndarray:
        """Logits as they are stored: what a 16-bit type is computed in, it is between operations as well."""
        dtype = parameters.get("logits_dtype") or (x.dtype if x.dtype.itemsize == 2 else None)
        return z if dtype is None else z.astype(dtype).astype(z.dtype)

    def answer(self, inputs, parameters, cotangent):
        given, size = inputs["input"], inputs["input"].shape[-1]
        count = given.size // size
        x, w = self.widened(given).reshape(count, size), self.weights(self.widened(inputs["linear_weight"]))
        counts, index = self.counted(inputs, count), inputs["index"].reshape(count, -1)
        x = np.where(counts[:, None], x, 0)
        named = cotangent if isinstance(cotangent, dict) else {"log_probs": cotangent}
        shapes = {"log_probs": index.shape, "entropy": (count,)}
        upstream = {
            name: np.broadcast_to(np.asarray(value).reshape(shapes[name] if np.ndim(value) else ()), shapes[name])
            for name, value in named.items()
        }
        chain = {name: value for name, value in parameters.items() if name != "logits_dtype"}
        of_weight, of_bias, found = np.zeros_like(w), np.zeros_like(w[:, 0]), []
        for rows in np.array_split(np.arange(count), min(self.chunks(), count)):
            z = x[rows] @ w.T
            if "linear_bias" in inputs:
                z = z + self.bias(self.widened(inputs["linear_bias"]))
            part = {"logits": self.written(z, given, parameters), "index": index[rows], "mask": counts[rows]}
            own = {name: self.rows_of(value, rows) for name, value in upstream.items()}
            log_probs, grads, components = super().answer(part, chain, own)
            g = self.written(grads["logits"], given, {})
            of_weight, of_bias = self.added(of_weight, g.T @ x[rows]), self.added(of_bias, g.sum(axis=0))
            found.append((log_probs, components["entropy"], g @ w))
        log_probs, entropy, of_input = (np.concatenate(parts) for parts in zip(*found, strict=True))
        grads = {"input": of_input.reshape(given.shape), "linear_weight": of_weight, "linear_bias": of_bias}
        log_probs = log_probs.reshape(inputs["index"].shape)
        components = {"log_probs": log_probs, "entropy": entropy.reshape(given.shape[:-1])}
        grads = {name: grads[name].astype(inputs[name].dtype) for name in grads if name in inputs}
        return log_probs, grads, components


def failing(kernel):
    """The cases that fail, with the tensors that do; each computed in its own type."""
    found = {}
    for case in CASES:
        loss, grads, components = kernel(FUNCTION)(case.inputs, case.parameters, case.grad_output)
        tensors = {"loss": loss}
        tensors |= {f"grad.{name}": value for name, value in grads.items()}
        tensors |= {f"component.{name}": value for name, value in components.items()}
        judged = judge.judge(judge.question(case, case.inputs["input"].dtype.name), tensors)
        wrong = {tensor.name for tensor in judged.tensors if tensor.passed is False}
        if wrong:
            found[case.id.removeprefix(f"{FUNCTION}-")] = wrong
    return found


@pytest.fixture(autouse=True)
def _without_explanations(monkeypatch):
    monkeypatch.setattr(judge, "_causes", lambda asked, tensors, candidate: ())


@pytest.mark.parametrize("chunks", [1, 3])
def test_honest_kernels_pass(chunks):
    assert failing(with_steps(Linear, chunks=lambda self: chunks)) == {}


def _in_bfloat16(_, total, part):
    return (total + part).astype(ml_dtypes.bfloat16).astype(total.dtype)


MISTAKES = {
    "weights of the classes in another order": ({"weights": lambda self, w: w[::-1]}, "float32", "grad.input"),
    "bias forgotten": ({"bias": lambda self, b: 0 * b}, "float32", "component.entropy"),
    "first cotangent for all rows": (
        {"rows_of": lambda self, cotangent, rows: np.broadcast_to(cotangent[:1], cotangent[rows].shape)},
        "log-probs",
        "grad.linear_weight",
    ),
    "gradients summed in bfloat16": ({"chunks": lambda self: 40, "added": _in_bfloat16}, "many", "grad.linear_weight"),
    "the temperature is forgotten in the gradient": (
        {"slope": lambda self, slope, temperature: slope},
        "each-of-both",
        "grad.input",
    ),
    "the entropy is detached": (
        {"entropy_slope": lambda self, p, surprise, entropy: np.zeros_like(p)},
        "entropy",
        "grad.linear_weight",
    ),
    "a bonus for a penalty": (
        {"entropy_slope": lambda self, p, surprise, entropy: p * (entropy - surprise)},
        "entropy",
        "grad.input",
    ),
    "a masked class makes the entropy NaN": (
        {"surprise": lambda self, p, log_p: -log_p},
        "masked-classes",
        "component.entropy",
    ),
    "the mask is ignored": (
        {"counted": lambda self, inputs, rows: np.ones(rows, bool)},
        "padded",
        "grad.linear_weight",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_fails(name):
    steps, case, tensor = MISTAKES[name]
    assert tensor in failing(with_steps(Linear, **steps))[case]
