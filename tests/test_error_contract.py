"""The error contract over all functions at once: which argument is at fault is said before anything is written."""

import array
import copy
import functools
import inspect
import json
import math
import types
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refloss
from refloss import arrays
from refloss.files import nested
from refloss.golden.corpus import corpus
from refloss.golden.store import evaluate
from refloss.registry import FUNCTIONS
from refloss.testing.strategies import inputs
from tests.test_arrays import Producer
from tests.test_same_bits import bits

HEADS = [name for name in FUNCTIONS if name.endswith(("detection", "segmentation")) and FUNCTIONS[name].nested]
HUGE = 10**400


def label_of(value):
    return "huge" if value is HUGE else " ".join(repr(value).split())


@functools.cache
def fullest(function):
    """The golden case with the most arguments, of those the smallest."""
    cases = corpus({function})
    return min(
        cases, key=lambda case: (-len(case.inputs), sum(value.nbytes for value in case.inputs.values()), case.id)
    )


def arguments_of(function):
    case = fullest(function)
    return copy.deepcopy(nested(case.inputs) | dict(case.parameters) | {"grad_output": case.grad_output})


def call(function, arguments):
    return FUNCTIONS[function].call(**arguments)


def refusal(function, arguments, errors=(TypeError, ValueError)):
    """The message of an error, which is one of the contract's; none if the call is taken."""
    try:
        call(function, arguments)
    except errors as error:
        return str(error)
    return "nothing is wrong"


# Numbers.

NOT_NUMBERS: tuple[Any, ...] = (math.nan, "2", True, [2.0], np.array([2.0]), 1j, None, HUGE, np.ma.masked, {})
# What is infinite is legal where it has a meaning, as torch and docs/divergences.md have it.
INFINITE = {
    ("huber", "delta"),
    ("smooth_l1", "beta"),
    ("triplet_margin", "p"),
    *((name, "num_items_in_batch") for name in FUNCTIONS),
}
# None stands for no number, where the default is one.
WITHOUT = {("policy_loss", "clip_low")}
NEGATIVE = ("num_boxes", "gamma", "beta", "delta", "num_items_in_batch", "label_smoothing")


def numbers(function):
    """The parameters of a function that are numbers, and what they cannot be."""
    call_of = inspect.signature(FUNCTIONS[function].call)
    for name, kind in FUNCTIONS[function].parameters.items():
        if kind is float:
            without = None if (function, name) in WITHOUT else call_of.parameters[name].default
            yield from ((name, value) for value in NOT_NUMBERS if value is not without)
            if (function, name) not in INFINITE:
                yield from ((name, value) for value in (math.inf, -math.inf, np.float32(np.inf)))
            if name in NEGATIVE:
                yield name, -1.0


@pytest.mark.parametrize("function", FUNCTIONS)
def test_numbers_that_mean_nothing(function):
    arguments = arguments_of(function)
    if function == "sequence_classification":
        arguments |= {"pooled_logits": np.zeros((2, 3)), "labels": np.array([0, 1])}
    for name, value in numbers(function):
        message = refusal(function, arguments | {name: value})
        assert message.startswith(name), (name, value, message)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("value", ["2", True, 1j, None, HUGE, np.ma.masked, {"nonsense": 1.0}], ids=label_of)
def test_cotangents_that_are_no_numbers(function, value):
    arguments = arguments_of(function) | {"grad_output": value}
    assert refusal(function, arguments).startswith("grad_output")


@pytest.mark.parametrize("function", ["sigmoid_focal", "varifocal", "dice"])
def test_nothing_is_written_for_a_number_that_means_nothing(function):
    out = np.full((2, 3), 7.0)
    for value in (math.inf, math.nan, -1.0, 1.7e308 if function != "dice" else math.inf):
        with pytest.raises(ValueError, match="num_boxes"):
            FUNCTIONS[function].call(np.zeros((2, 3)), np.zeros((2, 3)), num_boxes=value, out=out)
    assert (out == 7.0).all()


class Read(dict[str, Any]):
    """A configuration that knows what it was asked for."""

    def __init__(self, values):
        super().__init__(values)
        self.names = set()

    def get(self, name, default=None):
        self.names.add(name)
        return super().get(name, default)


@pytest.mark.parametrize("function", HEADS)
def test_configurations_hold_numbers_and_truths(function):
    arguments = arguments_of(function)
    # What follows the configuration is wrong, too, so that nothing is computed.
    arguments["assignment"] = 5
    arguments["config"] = Read(arguments["config"])
    assert refusal(function, arguments).startswith("assignment")
    for name in arguments["config"].names:
        value = arguments["config"][name]
        wrong = [*NOT_NUMBERS, math.inf, -math.inf]
        if isinstance(value, bool):
            wrong = ["no", 2, 0.0, [], np.array([True, False])]
        elif isinstance(value, int) or name.endswith("gamma"):
            wrong += [-1]
        elif name in ("up", "reg_scale"):
            wrong += [0.0]
        for each in wrong:
            if name == "mal_alpha" and each is None:
                continue  # counts as 1
            message = refusal(function, arguments | {"config": dict(arguments["config"]) | {name: each}})
            assert message.startswith(f"config.{name}"), (name, each, message)


def test_what_overflows_a_divisor_is_told_before():
    arguments = arguments_of("rt_detr_object_detection")
    message = refusal("rt_detr_object_detection", arguments | {"num_boxes": 1.7e308})
    assert message.startswith("num_boxes times")


# Names of gradients.


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("grad", ["nonsense", ["nonsense"], {"nonsense"}, "", ["logits", "inputs", "input", "boxes1"]])
def test_gradients_by_names_that_are_none(function, grad):
    arguments = arguments_of(function) | {"grad": grad}
    message = refusal(function, arguments, ValueError)
    assert message.startswith("grad is ")
    assert "expected one of " in message


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "grad", [None, 1, 0.5, b"logits", [1], {"logits": True}, np.array(True), np.array([1.0])], ids=label_of
)
def test_gradients_are_asked_for_by_a_bool_or_by_names(function, grad):
    assert refusal(function, arguments_of(function) | {"grad": grad}, TypeError).startswith("grad is ")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_gradient_can_be_had_alone(function):
    arguments = arguments_of(function)
    everything = call(function, arguments)
    for name, gradient in everything.grads.items():
        for grad in (name, [name], (name,), {name}):
            alone = call(function, arguments | {"grad": grad})
            assert list(alone.grads) == [name]
            assert alone.grads[name].tobytes() == gradient.tobytes()
        assert np.array_equal(alone.loss, everything.loss, equal_nan=True)
    assert call(function, arguments | {"grad": list(everything.grads)}).grads.keys() == everything.grads.keys()
    assert call(function, arguments | {"grad": []}).grads == {}


def test_a_buffer_is_left_alone_where_the_gradient_of_probabilities_is_asked_for():
    logits, target = np.zeros((2, 3)), np.full((2, 3), 1 / 3)
    out = np.full((2, 3), 7.0)
    assert set(refloss.cross_entropy(logits, target, grad="target", out=out).grads) == {"target"}
    assert (out == 7.0).all()
    with pytest.raises(ValueError, match="grad is 'target'; expected one of 'logits'"):
        refloss.cross_entropy(logits, [0, 1], grad="target", out=out)
    with pytest.raises(ValueError, match="grad is 'targets'; expected one of 'inputs'"):
        refloss.varifocal(logits, target, grad="targets")


# Arrays.


def arrays_of(function):
    """The arrays of a golden case that are not in lists or mappings."""
    facts, arguments = FUNCTIONS[function], arguments_of(function)
    return [name for name in (*facts.required, *facts.optional) if name in arguments and name not in facts.nested]


class Fake(Producer):
    """As torch's FakeTensor: it exports the address of nothing that it holds."""

    def __init__(self, array, **properties):
        super().__init__(np.zeros_like(array))
        self.__dict__ |= properties


class Lost(Producer):
    """As a tensor that a transformation of functions holds: it cannot say where it is."""

    def __dlpack_device__(self):
        raise RuntimeError("there is no rule for this")


class Traced:
    """As JAX's tracers, which have one half of DLPack."""

    def __dlpack__(self):
        raise AssertionError

    def __array__(self, dtype=None, copy=None):
        raise KeyError("an abstract value")


class Labelled:
    """As a column of pandas with missing values."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array.astype(object)


WRONG = {
    "masked": np.ma.masked_array,
    "masked in a list": lambda value: [np.ma.masked_array(value)],
    "masked in lists": lambda value: [[np.ma.masked_array(value)]],
    "fake": lambda value: Fake(value, fake_mode=object()),
    "meta": lambda value: Fake(value, device=types.SimpleNamespace(type="meta")),
    "lost": Lost,
    "traced": lambda value: Traced(),
    "objects": lambda value: value.astype(object),
    "labelled": Labelled,
    "64 axes": lambda value: np.ones((1,) * 64, value.dtype),
    "33 axes": lambda value: value.reshape((1,) * (33 - value.ndim) + value.shape),
    "complex": lambda value: value.astype(complex),
    "structured": lambda value: np.zeros(value.shape, [("real", float), ("imaginary", float)]),
    "dates": lambda value: np.zeros(value.shape, "M8[s]"),
    "words": lambda value: np.full(value.shape, "word"),
    "ragged": lambda value: [[1.0], [2.0, 3.0]],
    "ragged arrays": lambda value: [np.ones(2), np.ones(3)],
    "deep": lambda value: json.loads(70 * "[" + 70 * "]"),
    "a function": lambda value: len,
    "a huge number": lambda value: HUGE,
    "a set": lambda value: {1.0},
    "a mapping": lambda value: {"values": value},
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_arrays_that_are_none(function, kind):
    arguments = arguments_of(function)
    for name in arrays_of(function):
        changed_arguments = arguments | {name: WRONG[kind](arguments[name])}
        if name == "labels":
            changed_arguments.pop("shift_labels", None)  # with which labels have no effect
        message = refusal(function, changed_arguments)
        assert message.startswith(name), (name, message)
        assert kind not in ("fake", "meta") or "of shape and dtype alone; expected an array with values" in message


@pytest.mark.parametrize("kind", ["masked", "fake", "meta", "complex", "structured", "words", "ragged", "64 axes"])
@pytest.mark.parametrize("key", ["class_labels", "boxes", "masks"])
def test_arrays_of_labels_that_are_none(key, kind):
    arguments = arguments_of("segmentation")
    image = next(i for i, each in enumerate(arguments["labels"]) if len(each["boxes"]))
    arguments["labels"][image][key] = WRONG[kind](arguments["labels"][image][key])
    assert refusal("segmentation", arguments).startswith(f'labels[{image}]["{key}"]')


def changed(path, value):
    def change(arguments):
        *folders, last = path
        place = arguments
        for folder in folders:
            place = place[folder]
        place[last] = value

    return change


META = "denoising_meta_values"
NESTED = [
    ("object_detection", ["outputs_class"], [], ValueError, "outputs_class is an empty list"),
    ("object_detection", ["outputs_class"], [np.ones(2), np.ones(3)], ValueError, "outputs_class[1] has shape (3,)"),
    (
        "object_detection",
        ["outputs_class"],
        [np.ones(2, np.float16), np.ones(2, ml_dtypes.bfloat16)],
        (TypeError, ValueError),
        "outputs_class has ",
    ),
    ("object_detection", ["outputs_coord"], ["words"], TypeError, "outputs_coord[0] has dtype <U5"),
    ("object_detection", ["logits"], [[1.0], [2.0, 3.0]], ValueError, "logits[1] has shape (2,); expected (1,)"),
    ("object_detection", ["labels"], 5, TypeError, "labels is a int; expected a list with a mapping"),
    ("object_detection", ["labels"], "labels", TypeError, "labels is a str"),
    ("object_detection", ["labels", 0], 5, TypeError, "labels[0] is a int; expected a mapping"),
    ("object_detection", ["labels", 0], None, TypeError, "labels[0] is a NoneType; expected a mapping"),
    ("object_detection", ["labels", 1], [1, 2], TypeError, "labels[1] is a list; expected a mapping"),
    ("object_detection", ["labels", 1], np.ones(3), TypeError, "labels[1] is a ndarray; expected a mapping"),
    (
        "object_detection",
        ["labels", 0, "class_labels"],
        [[0]],
        ValueError,
        'labels[0]["class_labels"] has shape (1, 1)',
    ),
    ("object_detection", ["labels", 0, "class_labels"], [[0], [0, 1]], TypeError, 'labels[0]["class_labels"]: cannot'),
    (
        "object_detection",
        ["labels", 0, "class_labels"],
        np.array([2**64 - 1], np.uint64),
        ValueError,
        'labels[0]["class_labels"][0] = 18446744073709551615 is outside',
    ),
    ("object_detection", ["labels", 0, "boxes"], [[0, 0, 1], [0]], TypeError, 'labels[0]["boxes"]: cannot make'),
    ("segmentation", ["labels", 0, "masks"], [[[1], [0, 1]]], TypeError, 'labels[0]["masks"]: cannot make'),
    (
        "segmentation",
        ["labels", 0, "masks"],
        [np.ones((2, 2)), np.ones((2, 3))],
        TypeError,
        'labels[0]["masks"]: cannot',
    ),
    (
        "object_detection",
        ["assignment"],
        5,
        TypeError,
        "assignment is 5 of type int; expected None, a mapping, or a list",
    ),
    ("object_detection", ["assignment"], "words", TypeError, "assignment is 'words' of type str"),
    (
        "object_detection",
        ["assignment"],
        [5] + [None] * 9,
        ValueError,
        "assignment has 10 entries; expected one for each",
    ),
    ("object_detection", ["assignment"], {"assignment": 5}, ValueError, "assignment has shape ()"),
    ("object_detection", ["assignment"], {"assignment": None}, TypeError, "assignment: cannot make"),
    (
        "object_detection",
        ["assignment"],
        {"assignment": [(0,)]},
        ValueError,
        "assignment[0] has 1 entries; expected a pair",
    ),
    (
        "object_detection",
        ["assignment"],
        {"assignment": [5]},
        TypeError,
        "assignment[0] is 5 of type int; expected a pair",
    ),
    ("object_detection", ["assignment"], {"assignment": [([0], "a")]}, TypeError, "assignment[0][1] has dtype <U1"),
    (
        "object_detection",
        ["assignment"],
        {"assignment": [([0], [0.5])]},
        TypeError,
        "assignment[0][1] has dtype float64",
    ),
    ("object_detection", ["assignment"], {"assignment_0": [([0], 1, 2)]}, ValueError, "assignment_0[0] has 3 entries"),
    (
        "object_detection",
        ["assignment"],
        {"assignment": np.array([[0, 2**63, 0]], np.uint64)},
        ValueError,
        "assignment[0, 1] = 9223372036854775808 is outside",
    ),
    ("grounding_dino_object_detection", ["label_maps"], 5, TypeError, "label_maps is 5 of type int; expected a list"),
    ("grounding_dino_object_detection", ["label_maps"], None, TypeError, "label_maps is None of type NoneType"),
    ("grounding_dino_object_detection", ["label_maps", 0], [[1], [0, 1]], TypeError, "label_maps[0]: cannot make"),
    ("grounding_dino_object_detection", ["label_maps", 0], [["1"]], TypeError, "label_maps[0] has dtype <U1"),
    ("grounding_dino_object_detection", ["text_mask"], "yes", TypeError, "text_mask has dtype <U3"),
    ("grounding_dino_object_detection", ["text_mask"], None, TypeError, "text_mask: cannot make"),
    ("rt_detr_object_detection", [META], 5, TypeError, f"{META} is a int; expected a mapping"),
    ("rt_detr_object_detection", [META], {}, ValueError, f"{META} has no 'dn_positive_idx'"),
    ("rt_detr_object_detection", [META, "dn_num_split"], 5, TypeError, f'{META}["dn_num_split"] is 5 of type int'),
    ("rt_detr_object_detection", [META, "dn_num_split"], None, TypeError, f'{META}["dn_num_split"] is None'),
    ("rt_detr_object_detection", [META, "dn_num_split"], [1.5, 2], TypeError, f'{META}["dn_num_split"][0] is 1.5'),
    ("rt_detr_object_detection", [META, "dn_num_split"], [9, -5], ValueError, f'{META}["dn_num_split"][1] is -5'),
    (
        "rt_detr_object_detection",
        [META, "dn_num_split"],
        [1],
        ValueError,
        f'{META}["dn_num_split"] is [1]; expected two',
    ),
    (
        "rt_detr_object_detection",
        [META, "dn_positive_idx"],
        3,
        TypeError,
        f'{META}["dn_positive_idx"] is 3 of type int',
    ),
    (
        "rt_detr_object_detection",
        [META, "dn_positive_idx"],
        [3],
        ValueError,
        f'{META}["dn_positive_idx"] has 1 entries',
    ),
    (
        "rt_detr_object_detection",
        [META, "dn_positive_idx", 0],
        "all",
        TypeError,
        f'{META}["dn_positive_idx"][0] has dtype',
    ),
    (
        "rt_detr_object_detection",
        [META, "dn_positive_idx", 0],
        [[0], [1, 2]],
        TypeError,
        f'{META}["dn_positive_idx"][0]: c',
    ),
    (
        "rt_detr_object_detection",
        [META, "dn_num_group"],
        0,
        ValueError,
        f'{META}["dn_num_group"] is 0; expected at least 1',
    ),
    (
        "rt_detr_object_detection",
        [META, "dn_num_group"],
        HUGE,
        ValueError,
        f'{META}["dn_num_group"] is an integer of 1329',
    ),
    ("rt_detr_object_detection", [META, "dn_num_group"], 10**12, ValueError, f'{META}["dn_positive_idx"][0] has shape'),
    ("sequence_classification", ["num_labels"], HUGE, ValueError, "num_labels is an integer of 1329 bits"),
    ("causal_lm", ["ignore_index"], -HUGE, ValueError, "ignore_index is an integer of 1329 bits"),
    ("kl_div", ["log_target"], "no", TypeError, "log_target is 'no' of type str; expected True or False"),
    ("mse", ["reduction"], np.array(["sum", "mean"]), ValueError, "reduction is array(['sum', 'mean']"),
    ("mse", ["grad_dtype"], [], TypeError, "grad_dtype is []"),
    ("mse", ["grad_dtype"], ">f4", TypeError, "grad_dtype is >f4; expected float64"),
    ("mse", ["grad_dtype"], HUGE, TypeError, "grad_dtype is an integer of 1329 bits; expected float64"),
]


@pytest.mark.parametrize(("function", "path", "value", "error", "message"), NESTED, ids=[row[-1] for row in NESTED])
def test_what_is_nested_is_told_by_its_place(function, path, value, error, message):
    arguments = arguments_of(function)
    changed(path, value)(arguments)
    assert refusal(function, arguments, error).startswith(message)


@pytest.mark.parametrize("function", HEADS)
def test_no_images(function):
    arguments = arguments_of(function)
    by_image = not function.startswith(("rt", "d_fine", "deimv2"))
    for name, value in arguments.items():
        if name in ("outputs_class", "outputs_coord", "outputs_masks") and by_image:
            arguments[name] = value[:, :0]
        elif name == META:
            arguments[name] = value | {"dn_positive_idx": []}
        elif FUNCTIONS[function].specification.named("points").count(name):
            arguments[name] = value  # of layers
        elif name == "text_mask":
            arguments[name] = value if value.ndim < 3 else value[:0]
        elif isinstance(value, list | np.ndarray) and np.ndim(value if isinstance(value, np.ndarray) else [0]):
            arguments[name] = value[:0]
    result = call(function, arguments)
    for name, value in result.components.items():
        if not name.startswith(("loss_ce", "cardinality")):
            assert value == 0.0, name
    assert np.isnan(result.loss) or result.loss == 0.0
    assert all(gradient.shape == arguments[name].shape for name, gradient in result.grads.items())


def test_no_masks_are_a_list_as_no_boxes_are():
    arguments = arguments_of("segmentation")
    for image in arguments["labels"]:
        image |= {"boxes": [], "class_labels": [], "masks": []}
    assert call("segmentation", arguments).components["loss_mask"] == 0.0


# Bytes.


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_order_of_bytes_does_not_show(function):
    def turned(value):
        if isinstance(value, dict):
            return {key: turned(part) for key, part in value.items()}
        if isinstance(value, list):
            return [turned(part) for part in value]
        if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and value.dtype.itemsize > 1:
            return value.astype(value.dtype.newbyteorder(">"))
        return value

    arguments = arguments_of(function)
    result = call(function, turned(arguments))
    assert bits(result) == bits(call(function, arguments))
    assert all(gradient.dtype.isnative for gradient in result.grads.values())


@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_labels_choose_their_problem_whatever_the_order_of_their_bytes(kind):
    logits, labels = np.eye(4, 3), np.array([0, 1, 2, 0], kind)
    expected = refloss.sequence_classification(labels, logits)
    result = refloss.sequence_classification(labels.astype(labels.dtype.newbyteorder(">")), logits)
    assert "nll" in result.intermediates
    assert bits(result) == bits(expected)


# Buffers.

WITH_BUFFER = {name: facts for name, facts in FUNCTIONS.items() if "out" in inspect.signature(facts.call).parameters}


def in_arena(arena, value):
    """An array's values at the beginning of some memory."""
    view = arena[: value.nbytes].view(value.dtype).reshape(value.shape)
    view[...] = value
    return view


def with_buffer(function, name):
    """Arguments whose buffer has the memory of one of them."""
    arguments = arguments_of(function)
    first = FUNCTIONS[function].differentiable[0]
    shape, dtype = arguments[first].shape, arguments[first].dtype
    arena = np.zeros(1 << 20, np.uint8)
    # A mapping of cotangents is no memory.
    given = 1.0 if isinstance(arguments[name], dict) else arguments[name]
    arguments[name] = in_arena(arena, np.asarray(given))
    size = math.prod(shape) * dtype.itemsize
    return arguments | {"out": arena[:size].view(dtype).reshape(shape)}, arena


@pytest.mark.parametrize("wrap", [lambda value: value, Producer], ids=["NumPy", "DLPack"])
@pytest.mark.parametrize("function", WITH_BUFFER)
def test_a_buffer_has_the_memory_of_no_argument(function, wrap):
    numeric = [name for name, kind in FUNCTIONS[function].parameters.items() if kind is float]
    for name in (*arrays_of(function), *(name for name in numeric if name in arguments_of(function)), "grad_output"):
        arguments, arena = with_buffer(function, name)
        arguments[name] = wrap(arguments[name])
        before = arena.tobytes()
        message = refusal(function, arguments, ValueError)
        assert message == f"out shares memory with {name}; inputs are never changed"
        assert arena.tobytes() == before
    assert "out" not in refusal(function, arguments | {"out": np.empty_like(arguments["out"])})


def test_a_buffer_that_is_a_view_of_the_cotangent():
    cotangents = np.random.default_rng(0).standard_normal(6000)
    before = cotangents.copy()
    with pytest.raises(ValueError, match="out shares memory with grad_output"):
        refloss.mse(np.ones(6000), np.zeros(6000), reduction="none", grad_output=cotangents, out=cotangents[::-1])
    assert np.array_equal(cotangents, before)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("weight", lambda out: memoryview(out.reshape(-1)[:3])),
        ("weight", lambda out: types.SimpleNamespace(__array_interface__=out.reshape(-1)[:3].__array_interface__)),
        ("target", lambda out: [out[0], out[1]]),
        ("weight", lambda out: out.reshape(-1)[:3].view(">f8")),
        ("label_smoothing", lambda out: out[0, 0:1].reshape(())),
    ],
    ids=["memory", "interface", "parts of a list", "other byte order", "a number"],
)
def test_a_buffer_that_another_form_of_an_argument_shares(name, make):
    out = np.full((2, 3), 0.25)
    arguments = {"logits": np.zeros((2, 3)), "target": np.full((2, 3), 1 / 3)}
    with pytest.raises(ValueError, match=f"out shares memory with {name}"):
        refloss.cross_entropy(**arguments | {name: make(out)}, out=out)
    assert (out == 0.25).all()


def test_a_buffer_beside_its_inputs():
    memory = np.zeros((3, 4, 5))
    refloss.mse(memory[0], memory[1], out=memory[2])
    values = array.array("d", [1.0, 2.0, 3.0])
    assert refloss.mse(values, np.zeros(3), out=np.empty(3)).loss == 14 / 3


@pytest.mark.parametrize("function", WITH_BUFFER)
def test_a_buffer_that_is_not_aligned(function):
    arguments = arguments_of(function)
    first = FUNCTIONS[function].differentiable[0]
    shape, dtype = arguments[first].shape, arguments[first].dtype
    memory = np.full(math.prod(shape) * dtype.itemsize + 1, 7, np.uint8)
    out = memory[1:].view(dtype).reshape(shape)
    assert refusal(function, arguments | {"out": out}, ValueError).startswith("out is not aligned; expected")
    assert refusal(function, arguments | {"out": np.ma.masked_array(out)}, TypeError).startswith("out is a MaskedArray")
    assert (memory == 7).all()


def test_a_buffer_that_cannot_be_taken_in_another_shape():
    logits = np.zeros((4, 6))
    out = np.zeros((4, 12))[:, ::2].T.reshape(4, 6, order="F")
    for head in (refloss.masked_lm, refloss.token_classification):
        size = "vocab_size" if head is refloss.masked_lm else "num_labels"
        with pytest.raises(ValueError, match=r"out has shape \(4, 6\) and strides .*; expected memory that"):
            head(logits, np.zeros((4, 2), int), **{size: 3}, out=np.zeros((6, 4)).T if out.flags.c_contiguous else out)


# Warnings.


def everything_of(result):
    for name in list(result.intermediates.later):
        _ = result.intermediates[name]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_warning_escapes(function):
    def check(case, extreme, poison, spoilt):
        name = FUNCTIONS[function].differentiable[0]
        values = np.array(case.inputs[name])
        if spoilt and values.size and function not in ("bce", "iou", "giou"):
            values.reshape(-1)[0] = poison
        grad_output = case.grad_output if extreme is None or np.ndim(case.grad_output) else extreme
        parameters = dict(case.parameters)
        if "num_boxes" in parameters and extreme is not None:
            parameters["num_boxes"] = 1e-300
        if "num_items_in_batch" in parameters and extreme is not None:
            parameters["num_items_in_batch"] = 0
        asked = case._replace(inputs=case.inputs | {name: values}, grad_output=grad_output, parameters=parameters)
        with np.errstate(all="raise"):
            everything_of(evaluate(asked))

    extremes = st.sampled_from([None, 1e308, -5e-324, math.inf, math.nan, 0.0])
    poisons = st.sampled_from([math.nan, math.inf, -math.inf, 6e4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = given(inputs(function, max_rows=4, max_classes=4), extremes, poisons, st.booleans())
        settings(max_examples=40, derandomize=True, database=None, deadline=None)(drawn(check))()


def test_no_warning_escapes_from_margins_of_costs_that_are_not_finite():
    arguments = arguments_of("object_detection")
    arguments = {name: value for name, value in arguments.items() if not name.startswith("outputs")}
    arguments["config"] |= {"auxiliary_loss": False}
    arguments["logits"] = np.full(arguments["logits"].shape, math.nan)
    arguments["pred_boxes"] = arguments["pred_boxes"].astype(np.float64)
    with np.errstate(all="raise"):
        result = call("object_detection", arguments)
        assert (result.intermediates["cost_matrix"] == np.finfo(np.float64).max).all()
        everything_of(result)


def test_what_is_shown_of_an_argument_fits_on_a_line():
    with pytest.raises(TypeError) as caught:
        arrays.integer(np.zeros((50, 50)), "vocab_size")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 160
