"""Metamorphic checks: honest functions have the properties, and a flaw is told by the property that it breaks."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest

from refloss.registry import FUNCTIONS
from refloss.testing.checks.metamorphic import PROPERTIES, check_properties

OF_ALL = ["inputs unchanged", "repeated runs equal", "losses not negative", "linear in the cotangent"]
OF_ROWS = [*OF_ALL, "permuted rows", "batch = loop", "micro-batch = whole"]
SOFTMAX = (
    "cross_entropy",
    "causal_lm",
    "masked_lm",
    "token_classification",
    "sequence_classification",
    "question_answering",
    "semantic_segmentation",
)


def properties_of(function):
    if function in SOFTMAX:
        return list(PROPERTIES)
    if function == "nll":
        return [name for name in PROPERTIES if name not in ("shift", "rows of the gradient sum to 0")]
    if function == "kl_div":
        return [name for name in OF_ROWS if name != "losses not negative"]
    return OF_ALL if FUNCTIONS[function].nested else OF_ROWS


def oracle(function):
    def fn(inputs, parameters, cotangent):
        result = FUNCTIONS[function].call(**inputs, **parameters, grad_output=cotangent)
        return result.loss, result.grads

    return fn


@pytest.mark.parametrize("function", FUNCTIONS)
def test_refloss_has_the_properties(function):
    assert check_properties(oracle(function), function, seeds=range(2)) == properties_of(function)


@pytest.mark.parametrize("compute_dtype", ["float64", "float16", "bfloat16", "tf32"])
@pytest.mark.parametrize("function", ["cross_entropy", "causal_lm", "bce_with_logits", "giou", "segmentation"])
def test_refloss_has_the_properties_in_every_type(function, compute_dtype):
    held = check_properties(oracle(function), function, seeds=[5], compute_dtype=compute_dtype)
    assert held == properties_of(function)


class Flaw(NamedTuple):
    """A mistake in the implementation below, and the properties that it breaks."""

    name: str
    broken: set[str]


FLAWS = [
    Flaw("writes to its input", {"inputs unchanged"}),
    Flaw("differs from run to run", {"repeated runs equal"}),
    Flaw("too small by a constant", {"losses not negative"}),
    Flaw("ignores the cotangent", {"linear in the cotangent"}),
    Flaw("the cotangent's sign", {"linear in the cotangent"}),
    Flaw("no maximum", {"shift"}),
    Flaw("half a label in the gradient", {"rows of the gradient sum to 0"}),
    Flaw("the first row twice", {"permuted rows", "batch = loop", "micro-batch = whole"}),
    Flaw("class 0 counts double", {"permuted classes"}),
    Flaw("count for sum of weights", {"batch = loop"}),
    Flaw("mean over every row", {"batch = loop", "padding"}),
    Flaw("ignored rows have gradients", {"batch = loop", "padding"}),
]
runs = itertools.count()


@np.errstate(all="ignore")
def softmax_rows(logits, labels, *, weight=None, ignore_index=-100, smoothing=0.0, reduction, divisor, cotangent, flaw):
    """Loss and gradient of rows [R, C] in float32, with a flaw."""
    one = np.float32(1.0)
    classes = logits.shape[1]
    weight = np.ones(classes, np.float32) if weight is None else weight
    if labels.dtype.kind == "f":
        target, counted = labels, np.ones(len(labels), bool)
    else:
        counted = labels != ignore_index
        target = np.eye(classes, dtype=np.float32)[np.where(counted, labels, 0)] * counted[:, None]
    maximum = np.zeros((len(logits), 1), np.float32) if flaw == "no maximum" else logits.max(axis=1, keepdims=True)
    terms = np.exp(logits - maximum)
    total = terms.sum(axis=1, keepdims=True)
    log_probability, probability = (logits - maximum) - np.log(total), terms / total
    smoothing = np.float32(smoothing)
    mass = weight * ((one - smoothing) * target + smoothing / np.float32(classes)) * counted[:, None]
    losses = -(mass * np.where(mass > 0, log_probability, 0)).sum(axis=1)
    pulled = mass * np.float32(0.5) if flaw == "half a label in the gradient" else mass
    pushed = mass.sum(axis=1, keepdims=True)
    if flaw == "ignored rows have gradients":
        pushed = np.where(counted[:, None], pushed, one)
    gradient = pushed * probability - pulled
    gradient[~counted & (flaw != "ignored rows have gradients")] = 0.0
    factors = np.ones(len(logits), np.float32)
    if flaw == "the first row twice":
        factors[0] = 2.0
    if flaw == "class 0 counts double":
        factors[target[:, 0] == 1.0] = 2.0
    losses, gradient = losses * factors, gradient * factors[:, None]
    if flaw == "too small by a constant":
        losses = losses - counted.astype(np.float32)
    if divisor is None:
        by_weight = labels.dtype.kind != "f" and flaw != "count for sum of weights"
        divisor = (target * weight).sum() if by_weight else np.float32(counted.sum())
        divisor = np.float32(len(logits)) if flaw == "mean over every row" else divisor
    cotangent = np.asarray(cotangent, np.float32)
    if flaw == "ignores the cotangent":
        cotangent = np.ones_like(cotangent)
    if flaw == "the cotangent's sign":
        cotangent = np.abs(cotangent)
    divisor = np.float32(divisor)
    gradient = (cotangent[..., None] if cotangent.ndim else cotangent) / divisor * gradient
    loss = losses if reduction == "none" else np.sum(losses) / divisor
    if flaw == "differs from run to run" and reduction == "mean" and next(runs) % 2:
        loss = np.nextafter(loss, np.float32(np.inf))
    return loss, gradient


def cross_entropy(inputs, parameters, cotangent, flaw=None):
    logits, target = inputs["logits"], inputs["target"]
    if logits.ndim > 2 and target.dtype.kind == "f":
        raise NotImplementedError
    reduction = parameters.get("reduction", "mean")
    rows = np.moveaxis(logits, 1, -1)
    loss, gradient = softmax_rows(
        rows.reshape(-1, rows.shape[-1]),
        target if target.dtype.kind == "f" else target.reshape(-1),
        weight=inputs.get("weight"),
        ignore_index=parameters.get("ignore_index", -100),
        smoothing=parameters.get("label_smoothing", 0.0),
        reduction=reduction,
        divisor=None if reduction == "mean" else 1.0,
        cotangent=cotangent,
        flaw=flaw,
    )
    gradient = np.moveaxis(gradient.reshape(rows.shape), -1, 1)
    if flaw == "writes to its input":
        logits -= logits.max()
    return loss, {"logits": gradient}


def masked_lm(inputs, parameters, cotangent, flaw=None):
    logits, labels = inputs["logits"], inputs["labels"]
    items = parameters.get("num_items_in_batch")
    loss, gradient = softmax_rows(
        logits.reshape(-1, logits.shape[-1]),
        labels.reshape(-1),
        ignore_index=parameters.get("ignore_index", -100),
        reduction="sum",
        divisor=None if flaw == "blind to num_items_in_batch" else items,
        cotangent=cotangent,
        flaw=None,
    )
    length = np.float32(labels.shape[1]) if flaw == "mean over sequences" else np.float32(1.0)
    return loss * length, {"logits": gradient.reshape(logits.shape) * length}


def causal_lm(inputs, parameters, cotangent):
    labels = inputs["labels"]
    last = np.full((len(labels), 1), parameters.get("ignore_index", -100))
    shifted = np.concatenate([labels[:, 1:], last], axis=1)
    return masked_lm({"logits": inputs["logits"], "labels": shifted}, parameters, cotangent)


def bce_with_logits(inputs, parameters, cotangent):
    x, t = inputs["logits"], inputs["target"]
    weight = inputs.get("weight", np.float32(1.0))
    losses = weight * (np.maximum(x, 0) - x * t + np.log1p(np.exp(-np.abs(x))))
    gradient = weight * (np.float32(1.0) / (np.float32(1.0) + np.exp(-x)) - t)
    reduction = parameters.get("reduction", "mean")
    divisor = np.float32(x.size if reduction == "mean" else 1)
    loss = losses if reduction == "none" else losses.sum() / divisor
    return loss, {"logits": np.asarray(cotangent, np.float32) / divisor * gradient}


@pytest.mark.parametrize("fn", [cross_entropy, masked_lm, causal_lm, bce_with_logits], ids=lambda fn: fn.__name__)
def test_numpy_in_float32_has_the_properties(fn):
    assert check_properties(fn, fn.__name__, seeds=range(20)) == properties_of(fn.__name__)


def broken_properties(error):
    lines = str(error.value).splitlines()[1:]
    return {line.strip().partition(":")[0] for line in lines}


@pytest.mark.parametrize("flaw", FLAWS, ids=lambda flaw: flaw.name)
def test_a_flaw_breaks_its_property(flaw):
    with pytest.raises(AssertionError) as error:
        check_properties(lambda *given: cross_entropy(*given, flaw=flaw.name), "cross_entropy")
    assert flaw.broken <= broken_properties(error)
    if len(flaw.broken) == 1:
        assert broken_properties(error) == flaw.broken


@pytest.mark.parametrize(
    "flaw",
    [
        Flaw("mean over sequences", {"padding"}),
        Flaw("blind to num_items_in_batch", {"batch = loop", "micro-batch = whole"}),
    ],
    ids=lambda flaw: flaw.name,
)
def test_a_flaw_of_a_head_breaks_its_property(flaw):
    with pytest.raises(AssertionError) as error:
        check_properties(lambda *given: masked_lm(*given, flaw=flaw.name), "masked_lm")
    assert broken_properties(error) == flaw.broken


def test_every_property_is_broken_by_a_flaw():
    assert set().union(*(flaw.broken for flaw in FLAWS)) == set(PROPERTIES)


def test_the_message_has_the_numbers():
    with pytest.raises(AssertionError) as error:
        check_properties(lambda *given: cross_entropy(*given, flaw="ignores the cotangent"), "cross_entropy", seeds=[7])
    message = str(error.value)
    assert message.startswith("cross_entropy lacks 1 of the properties that it should have")
    assert "linear in the cotangent: grad.logits[" in message
    assert "rounding may make a difference of" in message
    assert "(cross_entropy-mean-7)" in message


class Native:
    """An array of another framework."""

    def __init__(self, value):
        self.value = value


def test_arrays_of_a_framework():
    def fn(inputs, parameters, cotangent):
        given = {name: array.value for name, array in inputs.items()}
        cotangent = cotangent.value if isinstance(cotangent, Native) else cotangent
        loss, grads = cross_entropy(given, parameters, cotangent)
        return Native(loss), {name: Native(gradient) for name, gradient in grads.items()}

    held = check_properties(fn, "cross_entropy", to_native=Native, from_native=lambda array: array.value)
    assert held == list(PROPERTIES)


def test_what_is_not_implemented_is_left_out():
    def only_means(inputs, parameters, cotangent):
        if parameters or "weight" in inputs:
            raise NotImplementedError
        return cross_entropy(inputs, parameters, cotangent)

    held = check_properties(only_means, "cross_entropy")
    assert held == [name for name in PROPERTIES if name != "micro-batch = whole"]

    def nothing(inputs, parameters, cotangent):
        raise NotImplementedError

    with pytest.raises(ValueError, match="nothing to check"):
        check_properties(nothing, "cross_entropy")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ((np.zeros(3), {}), r"loss has shape \(3,\); expected shape \(\)"),
        ((np.float64(0.0), {"x": np.zeros(3)}), r"grad.x has shape \(3,\); expected no such tensor"),
        ((np.float64(np.nan), {}), "a loss is nan"),
        ((np.float64(0.0), {"input": np.full((4, 5), np.nan)}), "grad.input.* is nan and nan"),
    ],
)
def test_what_is_not_an_answer_is_told(returned, message):
    with pytest.raises(AssertionError, match=message):
        check_properties(lambda *_: returned, "mse")


@pytest.mark.parametrize("given", [{"function": "l2"}, {"function": "l1", "compute_dtype": "int8"}])
def test_unknown_names(given):
    with pytest.raises(ValueError, match="unknown"):
        check_properties(oracle("l1"), **given)
