"""Metamorphic checks: honest functions have the properties, and a flaw is told by the properties that it breaks."""

import re
from pathlib import Path

import numpy as np
import pytest

from refloss.registry import FUNCTIONS
from refloss.testing import broken_properties, check_properties
from refloss.testing.checks.metamorphic import PROPERTIES
from tests import flawed_kernels
from tests.flawed_kernels import causal_lm, cross_entropy

OF_ALL = {"well formed", "inputs unchanged", "repeated runs equal", "losses not negative", "linear in the cotangent"}
OF_ROWS = {*OF_ALL, "permuted rows", "neighbours", "batch = loop", "micro-batch = whole"}
OF_ELEMENTS = {*OF_ROWS, "permuted elements"}
OF_DISTANCES = {*OF_ELEMENTS, "symmetric", "moved", "scaled"}
OF_BOXES = {*OF_ROWS, "symmetric", "moved", "scaled"}
OF_LABELS = {*OF_ROWS, "permuted classes", "masked classes", "equal steps", "padding", "ignored rows"}
OF_SOFTMAX = {*OF_LABELS, "shift", "rows of the gradient sum to 0"}
OF_TOKENS = {*OF_SOFTMAX, "shards = whole", "renamed ignore_index"}
OF = {
    **dict.fromkeys(("mse", "l1", "smooth_l1", "huber"), OF_DISTANCES),
    "bce": {*OF_ELEMENTS, "symmetric", "linear in the target", "equal factors"},
    "bce_with_logits": {*OF_ELEMENTS, "symmetric", "linear in the target", "sure and wrong"},
    "kl_div": {*OF_ELEMENTS, "linear in the input", "equal factors"} - {"losses not negative"},
    "sigmoid_focal": {*OF_ELEMENTS, "symmetric", "sure and wrong"},
    "varifocal": {*OF_ELEMENTS, "sure and wrong"},
    "dice": OF_ELEMENTS,
    "iou": OF_BOXES,
    "giou": OF_BOXES,
    "nll": {*OF_LABELS, "renamed ignore_index"},
    "cross_entropy": {*OF_SOFTMAX, "renamed ignore_index", "linear in the target"},
    **dict.fromkeys(("causal_lm", "masked_lm", "token_classification"), OF_TOKENS),
    "sequence_classification": {*OF_SOFTMAX, "renamed ignore_index"},
    "semantic_segmentation": {*OF_SOFTMAX, "renamed ignore_index"},
    "question_answering": OF_SOFTMAX,
}


def properties_of(function):
    return [name for name in PROPERTIES if name in OF.get(function, OF_ALL)]


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
    held = check_properties(oracle(function), function, seeds=[6], compute_dtype=compute_dtype)
    assert held == properties_of(function)


@pytest.mark.parametrize("function", ["cross_entropy", "nll", "kl_div", "dice"])
def test_refloss_has_the_properties_beyond_a_block(function):
    held = check_properties(oracle(function), function, seeds=range(2), sizes="blocks")
    assert held == properties_of(function)


NUMPY = ("cross_entropy", "masked_lm", "causal_lm", "bce_with_logits", "bce", "kl_div", "sigmoid_focal", "dice")
DISTANCES = ("mse", "l1", "huber", "smooth_l1", "iou")


@pytest.mark.parametrize("name", NUMPY + DISTANCES)
def test_numpy_in_float32_has_the_properties(name):
    assert check_properties(getattr(flawed_kernels, name), name, seeds=range(3)) == properties_of(name)


def test_the_same_bits_if_asked():
    assert check_properties(cross_entropy, "cross_entropy", bits=True) == properties_of("cross_entropy")

    def careless(*given):
        return cross_entropy(*given, flaw="the last bit depends on the batch")

    assert check_properties(careless, "cross_entropy") == properties_of("cross_entropy")
    broken = broken_properties(careless, "cross_entropy", bits=True)
    assert set(broken) == {"permuted rows", "batch = loop", "micro-batch = whole"}
    assert all("the same bits are asked for" in message for message in broken.values())


@pytest.mark.parametrize("factor", [64.0, -3.0, 1e-3])
@pytest.mark.parametrize("name", ["cross_entropy", "causal_lm", "kl_div", "sigmoid_focal", "iou", "smooth_l1"])
def test_a_constant_factor_breaks_none(name, factor):
    kernel, factor = getattr(flawed_kernels, name), np.float32(factor)
    for of_loss, of_gradients in ((factor, 1), (1, factor), (factor, factor)):

        def fn(*given, of_loss=of_loss, of_gradients=of_gradients):
            loss, grads = kernel(*given)
            return of_loss * loss, {name: of_gradients * gradient for name, gradient in grads.items()}

        negative = of_loss < 0 and "losses not negative" in properties_of(name)
        assert set(broken_properties(fn, name, seeds=[0])) == ({"losses not negative"} if negative else set())


IN_THE_BATCH = {"permuted rows", "batch = loop", "micro-batch = whole"}
# The properties that each flaw breaks: its own, and those that follow from it.
FLAWS = {
    "cross_entropy": {
        "writes to its input": {"inputs unchanged"},
        "differs from run to run": {"repeated runs equal"},
        # So is that of a target of 0.
        "too small by a constant": {"losses not negative", "linear in the target"},
        "ignores the cotangent": {"linear in the cotangent"},
        "the cotangent's sign": {"linear in the cotangent"},
        "the first cotangent for all rows": {"linear in the cotangent", *IN_THE_BATCH},
        # It overflows.
        "no maximum": {"shift", "well formed"},
        "the batch's maximum": {"shift", "well formed", "ignored rows", "batch = loop"},
        "the maximum is not taken below -64": {"shift"},
        # The gradient of a class of −inf is then e^−50.
        "distances clamped at -50": {"equal steps", "masked classes"},
        "log of max(p, tiny)": {"equal steps"},
        "log of p + 1e-30": {"equal steps"},
        "blocks are not rescaled": {"permuted classes", "rows of the gradient sum to 0"},
        "the tail is left out": {"permuted classes", "rows of the gradient sum to 0"},
        "padded classes are counted": {
            *("masked classes", "shift", "permuted classes", "rows of the gradient sum to 0"),
            "well formed",  # e^0 beside rows far below
        },
        # Some cases have such a class.
        "NaN of masked classes": {"masked classes", "well formed"},
        "half a label in the gradient": {"rows of the gradient sum to 0"},
        "the first row twice": IN_THE_BATCH,
        # It depends on the sum of a row's logits.
        "a row depends on the next one": {"neighbours", "ignored rows", "shift", *IN_THE_BATCH},
        "class 0 counts double": {"permuted classes", "equal steps"},
        "count for sum of weights": {"batch = loop"},
        "mean over every row": {"batch = loop", "padding"},
        "ignored rows have gradients": {"ignored rows", "padding", "batch = loop", "rows of the gradient sum to 0"},
        "smoothing reaches ignored rows": {"ignored rows", "padding"},
        "ignore_index of 32 bits": {"renamed ignore_index"},
        "ignore_index is -100": {"renamed ignore_index", "ignored rows", "padding", "batch = loop"},
        "targets are taken to sum to 1": {"linear in the target", "rows of the gradient sum to 0"},
    },
    "masked_lm": {
        "mean over sequences": {"padding", "shards = whole"},
        "blind to num_items_in_batch": {"batch = loop", "micro-batch = whole", "shards = whole"},
    },
    "causal_lm": {"shifted within each shard": {"shards = whole"}},
    "bce_with_logits": {
        "logits are clamped": {"sure and wrong"},
        "softplus overflows": {"sure and wrong", "well formed"},
        "targets are rounded": {"linear in the target", "symmetric"},
        "negative logits have half the slope": {"symmetric"},
    },
    "bce": {"log of p + 1e-7": {"equal factors"}},
    "kl_div": {
        "log of max(t, 1e-10)": {"equal factors"},
        "NaN where t is 0": {"linear in the input"},
        "the divergence is reversed": {"linear in the input", "equal factors"},
    },
    "sigmoid_focal": {
        "logits are clamped": {"sure and wrong"},
        "γ < 1 is infinite": {"sure and wrong"},
        "α is on positives alone": {"symmetric"},
    },
    # Twice a hit may be more than there is.
    "dice": {"the first pixel counts double": {"permuted elements", "losses not negative"}},
    "mse": {"negative differences have half the slope": {"symmetric"}},
    "l1": {"√(d² + ε)": {"scaled"}, "inputs are clamped at 16": {"moved", "scaled"}},
    "smooth_l1": {"Huber for smooth L1": {"scaled"}},
    "iou": {
        "a pixel is added to sizes": {"scaled"},
        "an ε in the quotient": {"scaled"},
        "the first area for the union": {"symmetric"},
        "coordinates are clamped to [0, 1]": {"moved", "scaled"},
    },
}


@pytest.mark.parametrize(("function", "flaw"), [(name, flaw) for name, flaws in FLAWS.items() for flaw in flaws])
def test_a_flaw_breaks_its_properties_and_no_other(function, flaw):
    kernel = getattr(flawed_kernels, function)
    broken = broken_properties(lambda *given: kernel(*given, flaw=flaw), function)
    assert set(broken) == FLAWS[function][flaw]


def test_labels_shifted_over_the_flattened_batch_leave_no_row_alone():
    broken = broken_properties(lambda *given: causal_lm(*given, flaw="shifted over the flattened batch"), "causal_lm")
    assert {*IN_THE_BATCH, "shards = whole", "padding"} <= set(broken)


def test_every_property_is_broken_by_a_flaw():
    assert set().union(*(broken for flaws in FLAWS.values() for broken in flaws.values())) == set(PROPERTIES)


def test_every_flaw_is_tried():
    """A flaw that a kernel does not know of would be no flaw, and one that nobody asks for no test."""
    source = Path(flawed_kernels.__file__).read_text()
    known = set(re.findall(r'flaw (?:==|!=) "([^"]+)"', source)) | set(
        re.findall(r'flaw in \("([^"]+)", "([^"]+)"\)', source)[0]
    )
    tried = {flaw for flaws in FLAWS.values() for flaw in flaws}
    assert known == tried | {"the last bit depends on the batch", "shifted over the flattened batch"}


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
    assert held == properties_of("cross_entropy")


def test_what_is_not_implemented_is_left_out():
    def only_means(inputs, parameters, cotangent):
        if parameters or "weight" in inputs:
            raise NotImplementedError
        return cross_entropy(inputs, parameters, cotangent)

    held = check_properties(only_means, "cross_entropy")
    asked = ("micro-batch = whole", "renamed ignore_index", "linear in the target")  # in no case without parameters
    assert held == [name for name in properties_of("cross_entropy") if name not in asked]

    def nothing(inputs, parameters, cotangent):
        raise NotImplementedError

    with pytest.raises(ValueError, match="nothing to check"):
        check_properties(nothing, "cross_entropy")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ((np.zeros(3), {}), r"loss has shape \(3,\); expected shape \(\)"),
        ((np.float64(0.0), {"x": np.zeros(3)}), r"grad.x has shape \(3,\); expected no such tensor"),
        ((np.float64(np.nan), {}), "loss is nan; the right answer is a finite number"),
        ((np.float64(0.0), {"input": np.full((4, 5), np.nan)}), r"grad.input\[0, 0\] is nan; the right answer is a"),
    ],
)
def test_what_is_not_an_answer_is_told_once(returned, message):
    with pytest.raises(AssertionError, match=message) as error:
        check_properties(lambda *_: returned, "mse")
    assert "mse lacks 1 of the properties" in str(error.value)


@pytest.mark.parametrize(
    "given", [{"function": "l2"}, {"function": "l1", "compute_dtype": "int8"}, {"function": "l1", "sizes": "all"}]
)
def test_unknown_names(given):
    with pytest.raises(ValueError, match="unknown"):
        check_properties(oracle("l1"), **given)
