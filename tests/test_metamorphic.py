"""Metamorphic checks: honest functions have the properties, and a flaw is told by the properties that it breaks."""

import numpy as np
import pytest

from refloss.registry import FUNCTIONS
from refloss.testing import broken_properties, check_properties
from refloss.testing.checks import trials
from refloss.testing.checks.metamorphic import PROPERTIES
from tests.gauntlet import flaws
from tests.gauntlet.honest import HONEST
from tests.gauntlet.mistakes import MISTAKES
from tests.questions import Remembered

MISTAKEN = {mistake.name: mistake for mistake in MISTAKES}
cross_entropy = HONEST["cross_entropy"]("cross_entropy")
remembered = Remembered()


def flawed(function, flaw):
    """A kernel with a mistake of the gauntlet, or a flaw that only shows what a property is for."""
    own = flaws.FLAWS.get(function, {})
    return (own[flaw] if flaw in own else MISTAKEN[flaw].kernel)(function)


@pytest.fixture(autouse=True)
def _right_answers_are_kept(monkeypatch):
    """Every kernel is asked the same questions."""
    monkeypatch.setattr(trials, "question", remembered)


OF_ALL = {
    *("well formed", "inputs unchanged", "repeated runs equal", "losses not negative"),
    "linear in the upstream gradient",
}
OF_ROWS = {*OF_ALL, "permuted rows", "neighbours", "batch = loop", "micro-batch = whole"}
OF_ELEMENTS = {*OF_ROWS, "permuted elements"}
OF_DISTANCES = {*OF_ELEMENTS, "symmetric", "moved", "scaled"}
OF_BOXES = {*OF_ROWS, "symmetric", "moved", "scaled"}
OF_LABELS = {*OF_ROWS, "permuted classes", "masked classes", "equal steps", "padding", "ignored rows"}
OF_SOFTMAX = {*OF_LABELS, "shift", "rows of the gradient sum to 0"}
OF_TOKENS = {*OF_SOFTMAX, "shards = whole", "renamed ignore_index"}
OF_MASKED = {*OF_ROWS, "padding", "ignored rows"}
OF = {
    **dict.fromkeys(("mse", "l1", "smooth_l1", "huber"), OF_DISTANCES),
    "bce": {*OF_ELEMENTS, "symmetric", "linear in the target", "equal factors"},
    "bce_with_logits": {*OF_ELEMENTS, "symmetric", "linear in the target", "sure and wrong"},
    "kl_div": {*OF_ELEMENTS, "linear in the input", "equal factors"} - {"losses not negative"},
    "sigmoid_focal": {*OF_ELEMENTS, "symmetric", "sure and wrong"},
    "varifocal": {*OF_ELEMENTS, "sure and wrong"},
    "soft_margin": {*OF_ELEMENTS, "symmetric"},
    "multilabel_soft_margin": {*OF_ELEMENTS, "symmetric", "linear in the target"},
    "hinge_embedding": {*OF_ELEMENTS, "scaled"} - {"losses not negative"},
    "info_nce": {*OF_ALL, "permuted pairs", "transposed"},
    "sigmoid_contrastive": {*OF_ALL, "permuted pairs", "transposed"},
    "linear_cross_entropy": {*OF_ALL, "permuted classes", "equal steps", "linear in the target"},
    "linear_selected_log_probs": {*OF_ALL, "permuted classes", "equal steps"} - {"losses not negative"},
    "poisson_nll": OF_ELEMENTS - {"losses not negative"},
    "gaussian_nll": {*OF_ELEMENTS, "symmetric", "moved"} - {"losses not negative"},
    **dict.fromkeys(("dice", "margin_ranking", "kto"), OF_ELEMENTS),
    "preference_loss": OF_ELEMENTS - {"losses not negative"},
    "iou": OF_BOXES,
    "giou": OF_BOXES,
    "ctc": OF_ALL - {"losses not negative"},
    **dict.fromkeys(("multi_margin", "multilabel_margin"), OF_ROWS),
    "cosine_embedding": OF_ROWS,
    "value_loss": {*OF_MASKED, "permuted elements"},
    "policy_loss": {*OF_MASKED, "permuted elements"} - {"losses not negative"},
    "triplet_margin": {*OF_ELEMENTS, "scaled"},
    "nll": {*OF_LABELS, "renamed ignore_index"},
    "cross_entropy": {*OF_SOFTMAX, "renamed ignore_index", "linear in the target"},
    **dict.fromkeys(("causal_lm", "masked_lm", "token_classification"), OF_TOKENS),
    "vocab_parallel_cross_entropy": {*OF_SOFTMAX, "renamed ignore_index", "classes cut elsewhere"},
    "sequence_classification": {*OF_SOFTMAX, "renamed ignore_index"},
    "semantic_segmentation": {*OF_SOFTMAX, "renamed ignore_index"},
    "question_answering": OF_SOFTMAX,
    "moe_load_balancing": {
        *OF_ALL,
        *("shift", "rows of the gradient sum to 0", "permuted tokens", "permuted experts", "masked tokens"),
    },
    "router_z_loss": OF_ROWS - {"micro-batch = whole"},
    "pocket_tts": OF_ALL - {"losses not negative"},
    **dict.fromkeys(("rnnt", "tdt"), OF_ROWS),
    "topk_distillation": {*OF_SOFTMAX} - {"losses not negative", "equal steps", "padding", "ignored rows"},
    "distillation": {*OF_ROWS, "permuted classes", "masked classes", "shift", "rows of the gradient sum to 0"},
    "selected_log_probs": {*OF_SOFTMAX} - {"losses not negative", "padding", "ignored rows"},
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


def test_the_same_bits_if_asked():
    assert check_properties(cross_entropy, "cross_entropy", bits=True) == properties_of("cross_entropy")

    careless = flawed("cross_entropy", "the last bit depends on the batch")
    assert check_properties(careless, "cross_entropy") == properties_of("cross_entropy")
    broken = broken_properties(careless, "cross_entropy", bits=True)
    assert set(broken) == {"permuted rows", "batch = loop", "micro-batch = whole"}
    assert all("the same bits are asked for" in message for message in broken.values())


@pytest.mark.parametrize("factor", [64.0, -3.0])
@pytest.mark.parametrize("name", ["cross_entropy", "kl_div", "sigmoid_focal", "iou"])
def test_a_constant_factor_breaks_none(name, factor):
    kernel, factor = HONEST[name](name), np.float32(factor)
    for of_loss, of_gradients in ((factor, 1), (1, factor), (factor, factor)):

        def fn(*given, of_loss=of_loss, of_gradients=of_gradients):
            loss, grads, *_ = kernel(*given)
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
        "upstream ignored": {"linear in the upstream gradient"},
        "the cotangent's sign": {"linear in the upstream gradient"},
        "the first upstream for all": {"linear in the upstream gradient", *IN_THE_BATCH},
        # It overflows.
        "no maximum is subtracted": {"shift", "well formed"},
        "the batch's maximum for the row's": {"shift", "well formed", "batch = loop"},
        "a maximum of at least −64": {"shift"},
        # The gradient of a class of −inf is then e^−50.
        "distances clamped at −50": {"equal steps", "masked classes"},
        "log(max(p, FLT_MIN))": {"equal steps"},
        "log(p + 1e-30)": {"equal steps"},
        "blocks: the sum is not rescaled": {"permuted classes", "rows of the gradient sum to 0"},
        "blocks: the tail is lost": {"permuted classes", "rows of the gradient sum to 0"},
        "padded classes": {
            *("masked classes", "shift", "rows of the gradient sum to 0"),
            "well formed",  # e^0 beside rows far below
        },
        # Some cases have such a class.
        "one-hot times −inf": {"masked classes", "well formed"},
        "half a label in the gradient": {"rows of the gradient sum to 0"},
        "the first row twice": IN_THE_BATCH,
        # It depends on the sum of a row's logits.
        "a row depends on the next one": {"neighbours", "ignored rows", "shift", *IN_THE_BATCH},
        "class 0 counts double": {"permuted classes", "equal steps", "linear in the target"},
        "rows for their weights": {"batch = loop"},
        "a mean over all rows": {"batch = loop", "padding"},
        "ignored rows have a gradient": {"ignored rows", "padding", "batch = loop", "rows of the gradient sum to 0"},
        "smoothing of ignored rows": {"ignored rows", "padding", "batch = loop"},
        "ignore_index in 32 bits": {"renamed ignore_index"},
        "ignore_index is not read": {
            *("renamed ignore_index", "ignored rows", "padding", "batch = loop", "permuted classes"),
        },
        "Σq is 1": {"linear in the target", "rows of the gradient sum to 0"},
    },
    "vocab_parallel_cross_entropy": {"sums of ranks are not rescaled": {"classes cut elsewhere"}},
    "masked_lm": {
        "sequences' means": {"padding", "shards = whole", "batch = loop", "micro-batch = whole"},
        "num_items_in_batch is ignored": {"batch = loop", "micro-batch = whole", "shards = whole"},
    },
    "causal_lm": {
        "shift_labels are not read": {"shards = whole"},
        # With padding, shards are cut elsewhere; where the only label is lost, a mean is over nothing.
        "shifted in each shard": {"shards = whole", "padding", "well formed"},
    },
    "bce_with_logits": {
        "logits clamped": {"sure and wrong"},
        "softplus overflows": {"sure and wrong", "well formed"},
        "targets are rounded": {"linear in the target", "symmetric"},
        "negative logits have half the slope": {"symmetric"},
    },
    "bce": {"log of p + 1e-7": {"equal factors"}},
    "kl_div": {
        "log(max(t, 1e-10))": {"equal factors"},
        "t·log t": {"linear in the input"},
        "KL reversed": {"linear in the input", "equal factors"},
    },
    "sigmoid_focal": {
        "logits clamped": {"sure and wrong"},
        "0/0 where nothing is missed": {"sure and wrong"},
        "α on positives only": {"symmetric"},
    },
    "dice": {"the first pixel counts double": {"permuted elements"}},
    "info_nce": {"rows alone": {"transposed"}},
    "moe_load_balancing": {
        "the padding is balanced as well": {"masked tokens"},
        "the first expert counts double": {"permuted experts"},
        "the first token counts double": {"permuted tokens"},
    },
    "sigmoid_contrastive": {"the first row is left out": {"permuted pairs", "transposed"}},
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
    assert set(broken_properties(flawed(function, flaw), function)) == FLAWS[function][flaw]


def test_labels_shifted_over_the_flattened_batch_leave_no_row_alone():
    broken = broken_properties(flawed("causal_lm", "shifted over the batch"), "causal_lm")
    assert {*IN_THE_BATCH, "shards = whole", "padding"} <= set(broken)


def test_every_property_is_broken_by_a_flaw():
    assert set().union(*(broken for flaws in FLAWS.values() for broken in flaws.values())) == set(PROPERTIES)


def test_every_flaw_is_tried():
    tried = {(function, flaw) for function, known in FLAWS.items() for flaw in known}
    own = {(function, flaw) for function, known in flaws.FLAWS.items() for flaw in known}
    assert own - tried == {("cross_entropy", "the last bit depends on the batch")}
    assert all(function in MISTAKEN[flaw].functions for function, flaw in tried - own)


def test_the_message_has_the_numbers():
    with pytest.raises(AssertionError) as error:
        check_properties(flawed("cross_entropy", "upstream ignored"), "cross_entropy", seeds=[7])
    message = str(error.value)
    assert message.startswith("cross_entropy lacks 1 of the properties that it should have")
    assert "linear in the upstream gradient: grad.logits[" in message
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
        loss, grads, *_ = cross_entropy(given, parameters, cotangent)
        return Native(loss), {name: Native(gradient) for name, gradient in grads.items()}

    held = check_properties(fn, "cross_entropy", to_native=Native, from_native=lambda array: array.value)
    assert held == properties_of("cross_entropy")


def test_what_is_not_implemented_is_left_out():
    def only_means(inputs, parameters, cotangent):
        if parameters or "weight" in inputs:
            raise NotImplementedError
        return cross_entropy(inputs, parameters, cotangent)

    held = check_properties(only_means, "cross_entropy")
    # In no case without parameters.
    of_options = ("micro-batch = whole", "renamed ignore_index", "linear in the target")
    assert held == [name for name in properties_of("cross_entropy") if name not in of_options]

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
