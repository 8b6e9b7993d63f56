"""What a loss is, said once beside its maths; everything that has to know asks here.

The registry, the command line, golden cases, Hypothesis strategies, metamorphic checks, error bounds, explanations, the
comparison with torch and the tables of the documentation are made of it. A loss is a function with a specification:

    @loss(Elementwise(arguments={"input": values(), "target": values()}, magnitudes=..., follows="..."))
    def mse(input, target, *, reduction="mean", grad_output=1.0, ...): ...
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from refloss.cases.draws import Drawn, Draws
    from refloss.cases.source import Case
    from refloss.result import LossResult
    from refloss.roundoff import Roundoff

Role = Literal[
    "values",  # real numbers
    "vectors",  # real numbers along the last axis of each row
    "indices",  # classes that a row names, all of which count
    "logits",
    "log-probabilities",
    "probabilities",  # in [0, 1]
    "signs",  # 1 or −1
    "flags",  # yes or no, bool
    "similarities",  # [N, M], of which those on the diagonal are of pairs
    "labels",  # classes, or ignore_index
    "classes",  # labels, or a distribution over the classes
    "sequences",  # labels in the order in which they are to come
    "lengths",  # how many of something there are
    "weight",  # of each element
    "class weight",
    "boxes",  # [..., 4]
    "masks",
    "objects",  # a list of a mapping for each image
    "mask",  # what counts, bool
    "points",  # [..., 2], x and y in [0, 1]
]
# Kinds of numbers that an array may hold.
Numbers = Literal["float", "integer", "bool"]
# What holds of a loss exactly, for those that compare its results with each other.
Identity = Literal[
    "a distance",  # of x and t: an even function of x − t
    # That of −x, or of the probability 1 − x, for 1 − t, or −t of a sign, and for 1 − alpha if there is an alpha.
    "mirrored",
    "linear in the input",
    "linear in the target",
    "logarithm of the input",  # for a target of 1: a multiple of its logarithm
    "logarithm of the target",  # the target times a linear function of its logarithm
    "a balance",  # of how often experts are chosen and how probable they are, of one softmax a row
]
# What "mean" divides a sum by, or a loss that has no such word.
Mean = Literal["elements", "weights", "rows", "labels", "num_boxes", "objects", "sequences", "tokens"]


class Part(NamedTuple):
    """An array in a list or a mapping: the names of its axes, and what it may hold."""

    shape: str
    numbers: tuple[Numbers, ...] = ("float",)


@dataclass(frozen=True)
class Argument:
    """An array, or lists of arrays, that a function takes.

    Attributes:
        role: what it holds.
        differentiable: whether it has a gradient.
        optional: whether it may be left out; None says what the signature says.
        class_axis: the axis of its classes where it has one: 1 for [N, C, ...], also of the only axis of [C].
        activation: what turns logits into probabilities.
        of: for labels and indices, the argument whose classes they are.
        ignored: for labels, the default of ignore_index; None for one more than there are classes.
        shift: for labels, how many places after its row a label stands.
        resampled: whether rows are made from it, with other sizes, before anything else.
        batched: whether its first axis is that of the batch.
        broadcast: whether it may have fewer axes than the others, or sizes of 1.
        on_gpu: whether it is computed where it lives, if that is a GPU; all other arguments are copied to the host.
        nested: whether it is a list of arrays, or of mappings to arrays.
        layered: whether it may be a list of arrays instead, one for each layer.
        shape: the names of its axes, such as "B S V", "..." for any more of them, and | between several shapes; if
            role and class_axis do not say it.
        numbers: what it may hold, if its role does not say it.
        parts: of what is nested, one entry of the list, or the mapping: a Part, or mappings and lists of such.
        widths: the argument that says how it is cut along its last axis, if it may be a list of the parts instead.
    """

    role: Role
    differentiable: bool = False
    optional: bool = False
    class_axis: int | None = None
    activation: Literal["softmax", "sigmoid", None] = None
    of: str = ""
    ignored: int | None = -100
    shift: int = 0
    resampled: bool = False
    batched: bool = True
    broadcast: bool = False
    on_gpu: bool = False
    nested: bool = False
    layered: bool = False
    shape: str = ""
    numbers: tuple[Numbers, ...] = ()
    parts: Any = None
    widths: str = ""


def values(*, on_gpu: bool = True, differentiable: bool = True, broadcast: bool = False) -> Argument:
    """Real numbers of corresponding elements, with a gradient."""
    return Argument("values", differentiable, on_gpu=on_gpu, broadcast=broadcast)


def probabilities(*, on_gpu: bool = True, differentiable: bool = True) -> Argument:
    """Numbers in [0, 1], with a gradient."""
    return Argument("probabilities", differentiable, on_gpu=on_gpu)


def signs() -> Argument:
    """1 or −1, for which of two classes an element is of; without a gradient."""
    return Argument("signs", on_gpu=True)


def similarities(shape: str) -> Argument:
    """What each of one kind has in common with each of another; row i and column i are a pair."""
    return Argument("similarities", differentiable=True, batched=False, on_gpu=True, shape=shape)


def sigmoid_logits(*, on_gpu: bool = True) -> Argument:
    """Logits that are probabilities each on its own."""
    return Argument("logits", differentiable=True, activation="sigmoid", on_gpu=on_gpu)


def softmax_logits(
    class_axis: int, *, on_gpu: bool = True, optional: bool = False, batched: bool = True, shape: str = ""
) -> Argument:
    """Logits of classes that exclude each other."""
    return Argument(
        "logits",
        differentiable=True,
        optional=optional,
        class_axis=class_axis,
        activation="softmax",
        batched=batched,
        on_gpu=on_gpu,
        shape=shape,
    )


def log_probabilities(*, on_gpu: bool = True) -> Argument:
    """Logarithms of probabilities, each on its own."""
    return Argument("log-probabilities", differentiable=True, on_gpu=on_gpu)


def class_log_probabilities(class_axis: int) -> Argument:
    """Logarithms of probabilities of classes that exclude each other."""
    return Argument("log-probabilities", differentiable=True, class_axis=class_axis)


def boxes() -> Argument:
    """Boxes [..., 4]."""
    return Argument("boxes", differentiable=True)


def sequences(shape: str, *, batched: bool = True) -> Argument:
    """Labels in the order in which they are to come."""
    return Argument("sequences", batched=batched, shape=shape)


def lengths(shape: str, *, batched: bool = True) -> Argument:
    """How many of something there are."""
    return Argument("lengths", batched=batched, shape=shape)


def classes(of: str, *, ignored: int = -100) -> Argument:
    """Classes of the rows of an argument, or distributions over its classes, which have a gradient."""
    return Argument("classes", differentiable=True, of=of, ignored=ignored)


def labels(of: str, *, ignored: int | None = -100, optional: bool = False, shift: int = 0) -> Argument:
    """Classes of the rows of an argument; if they may be left out, they take the place of others."""
    return Argument("labels", optional=optional, of=of, ignored=ignored, shift=shift)


def vectors(shape: str = "N D|D") -> Argument:
    """Rows of real numbers, with a gradient."""
    return Argument("vectors", differentiable=True, on_gpu=True, shape=shape)


def indices(shape: str, *, of: str = "") -> Argument:
    """Classes that rows name, of an argument if they are all that decides which of its classes is meant."""
    return Argument("indices", of=of, ignored=None, shape=shape)


def weight(*, differentiable: bool = False, broadcast: bool = False) -> Argument:
    """A factor for each element, which may be left out."""
    return Argument("weight", differentiable, optional=True, broadcast=broadcast)


def class_weight() -> Argument:
    """A factor for each class, which may be left out."""
    return Argument("class weight", optional=True, class_axis=0, batched=False)


@dataclass(frozen=True)
class Parameter:
    """An argument that is no array.

    Attributes:
        kind: its type on the command line; a mapping is given as JSON there.
        values: those worth trying, the plainest first.
        structural: whether nothing is right without it, so that leaving it out is no usual mistake.
        on_command_line: whether it can be given there.
        words: all that it may be, if it is a word and values does not have them all.
        keys: of a configuration, what is read of it; if it cannot be given on the command line, the parameters that it
            stands for.
    """

    kind: type
    values: tuple[Any, ...] = ()
    structural: bool = False
    on_command_line: bool = True
    words: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


def reduction(*options: str) -> Parameter:
    """How the losses of elements or rows become one; the first option is the default."""
    return Parameter(str, options, structural=True)


REDUCTION = {"reduction": reduction("mean", "sum", "none")}
IGNORE_INDEX = {"ignore_index": Parameter(int, (-100, 0, 255))}
ITEMS = {"num_items_in_batch": Parameter(float, (1, 40, 12.5))}
NUM_LABELS = {"num_labels": Parameter(int, structural=True)}


def configured(*keys: str, on_command_line: bool = True) -> dict[str, Parameter]:
    """Any object or mapping that has some entries."""
    return {"config": Parameter(dict, structural=True, on_command_line=on_command_line, keys=keys)}


class Magnitudes(NamedTuple):
    """Of each element: sums of the magnitudes of the terms that its value and its derivatives are made of.

    What is too small for a type and is lost may be multiplied, or divided by something small, before it is added.
    """

    value: np.ndarray
    first: np.ndarray  # of the derivative for the first argument
    target: np.ndarray  # of that for the second
    multiplied: np.ndarray | float = 0.0  # by what, on the way to the derivative for the second
    third: np.ndarray | float = 0.0  # of that for the third


class AddedTerms(NamedTuple):
    """Of each row: what a softmax loss has beside its masses' likelihood; magnitudes of terms, and of slopes in lse."""

    value: np.ndarray  # added to the loss
    slope: np.ndarray  # ∂value/∂lse
    pushed: np.ndarray  # added to the factor of every probability in the gradient
    pushed_slope: np.ndarray  # ∂pushed/∂lse


@dataclass(frozen=True, kw_only=True, eq=False)
class Specification:
    """The facts of a public function; name, required arguments and docstring are the function's own.

    Attributes:
        arguments: its arrays by name, in the order in which they are told.
        parameters: its other arguments, but for the keywords that every loss takes.
        follows: its counterpart, as tables say it; the dotted name of a function of torch that takes its arguments.
        order: where lists have it, those of one number by name.
        keys: those of transformers' LOSS_MAPPING that are this function.
        mean: what "mean", or the only reduction, divides the sum by.
        positive: whether no loss is negative.
        per: what has a loss of its own before reduction.
        losses: the shape of losses that are not reduced, as the names of its axes, if `per` does not say it.
        reduces: whether losses become one number, unless a parameter asks for none of that.
        axes: the fewest axes of arrays of corresponding elements.
        divisor: of a case, what its mean divides by, or None where that is no one number; if `mean` does not say it.
        padded: axes along which rows that are ignored may be added.
        counts_tokens: whether its rows are tokens, whose number and perplexity the command line tells.
        cases: cases(name) are its golden cases; drawn ones if there are none.
        draw: inputs and parameters of a case, where its family has none that fit.
        has_classes: whether the labels of a case are classes, where their dtype does not say it.
        mistakes: mistakes(case) are other inputs, by words for the mistake that takes a case's inputs for them; for
            those that only this function can have.
        upstream_mistakes: the same with other cotangents.
        mistaken_parameters: the same with other parameters.
        bounds: how far an honest implementation may be off, where its family has none that fit: Bounds, or arrays.
        components: the names of the parts of its loss.
        intermediates: the names of what a result may have beside.
        layered: whether components and intermediates are of layers, whose names end in the layer's suffix.
        identities: what holds of it exactly.
        degree: d, where all values times 2 make the loss 2^d times as large; None where they do not.
        scales: the parameters that are such values as well.
        in_parts: whether its rows may lie in several places, as chunks of Dask arrays.
    """

    arguments: Mapping[str, Argument]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    follows: str = ""
    order: int = 1000
    keys: tuple[str, ...] = ()
    mean: Mean = "elements"
    positive: bool = True
    per: Literal["element", "row", "sample"] = "element"
    losses: str = ""
    reduces: bool = True
    axes: int = 0
    divisor: Callable[[Case], float | None] | None = None
    padded: tuple[int, ...] = ()
    counts_tokens: bool = False
    cases: Callable[[str], list[Case]] | None = None
    draw: Callable[[Draws], Drawn] | None = None
    has_classes: Callable[[Case], bool] | None = None
    mistakes: Callable[[Case], dict[str, dict[str, np.ndarray]]] | None = None
    upstream_mistakes: Callable[[Case], dict[str, Any]] | None = None
    mistaken_parameters: Callable[[Case], dict[str, dict[str, Any]]] | None = None
    bounds: Callable[[Case, LossResult, Roundoff], Mapping[str, Any]] | None = None
    components: tuple[str, ...] = ()
    intermediates: tuple[str, ...] = ()
    layered: bool = False
    identities: tuple[Identity, ...] = ()
    degree: int | None = None
    scales: tuple[str, ...] = ()
    in_parts: bool = False

    def named(self, *roles: Role) -> list[str]:
        """The arguments that have one of some roles."""
        return [name for name, argument in self.arguments.items() if argument.role in roles]

    def is_reduced(self, parameters: Mapping[str, Any]) -> bool:
        """Whether a call with some parameters gives one number."""
        return self.reduces and "none" not in (parameters.get("reduction"), parameters.get("aggregation"))

    @property
    def differentiable(self) -> tuple[str, ...]:
        """The arguments that have gradients."""
        return tuple(name for name, argument in self.arguments.items() if argument.differentiable)

    @property
    def required(self) -> tuple[str, ...]:
        """The arguments that have to be given."""
        return tuple(name for name, argument in self.arguments.items() if not argument.optional)

    @property
    def optional(self) -> tuple[str, ...]:
        """The arguments that may be left out."""
        return tuple(name for name, argument in self.arguments.items() if argument.optional)

    @property
    def nested(self) -> tuple[str, ...]:
        """The arguments that are lists of arrays, or of mappings to arrays."""
        return tuple(name for name, argument in self.arguments.items() if argument.nested)

    @property
    def listed(self) -> tuple[str, ...]:
        """The arguments that may be lists of arrays in the place of one array."""
        return tuple(name for name, argument in self.arguments.items() if argument.layered or argument.widths)


@dataclass(frozen=True, kw_only=True, eq=False)
class Elementwise(Specification):
    """A loss of corresponding elements.

    Attributes:
        magnitudes: magnitudes(x, t, case, unit) of the terms that an element is made of; see refloss.testing.bounds.
    """

    magnitudes: Callable[[np.ndarray, np.ndarray, Case, Roundoff], Magnitudes]
    intermediates: tuple[str, ...] = ("losses",)
    in_parts: bool = True

    def elements(self, inputs: Mapping[str, np.ndarray]) -> tuple[int, ...]:
        """The shape of the elements of a case, to which its first two arguments may broadcast."""
        return np.broadcast_shapes(*(inputs[name].shape for name in self.required[:2]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Softmax(Specification):
    """A loss of a row's softmax, of labels or of distributions over the classes.

    Attributes:
        added: added(lse, mass, parameters) is what it has beside the likelihood of its masses, whose sum is mass.
    """

    added: Callable[[np.ndarray, np.ndarray, Mapping[str, Any]], AddedTerms] | None = None
    intermediates: tuple[str, ...] = ("lse", "nll", "log_probabilities", "probabilities")


@dataclass(frozen=True, kw_only=True, eq=False)
class MatchingHead(Specification):
    """A head that matches predictions with objects.

    Attributes:
        classes: what its loss of classes is.
        clamps: whether boxes are clamped to [0, 1].
    """

    classes: Literal["cross-entropy", "focal", "varifocal", "matching-aware", "IoU-aware"]
    clamps: bool = False
    mean: Mean = "objects"
    intermediates: tuple[str, ...] = ("cost_matrix", "assignment", "margin", "iou", "giou", "num_boxes")
    layered: bool = True
