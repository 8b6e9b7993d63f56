"""Golden and drawn cases of heads over tokens, sequences and pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from refloss.cases.classes import WRAPS_TO_A_CLASS, WRAPS_TO_THE_DEFAULT, Rows, apart, improbable, many
from refloss.cases.draws import Drawn, Draws, Tried
from refloss.cases.formats import in_every_format, in_format
from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_ITEMS = (1, 40, 12.5)  # values of num_items_in_batch
_MOST_CLASSES_OF_PIXELS = 5000


def _language(function: str, seed: int, shift: int = 0) -> list[Case]:
    """The cases that losses of tokens share; each position asks for the token so many places after it."""

    def case(name: str, logits: np.ndarray, labels: np.ndarray, grad_output: float = 1.0, **parameters: Any) -> Case:
        return Case(f"{function}-{name}", function, {"logits": logits, "labels": labels}, parameters, grad_output)

    source = Source(seed)
    logits = source.normal(2, 9, 17) * 4.0
    labels = source.integers(17, 2, 9)
    single = logits.astype(np.float32)
    padded = labels.copy()
    padded[0, 6:] = -100
    padded[1, 2] = -100
    confident = single.copy()
    targets = np.roll(labels, -shift, axis=1)
    np.put_along_axis(confident, targets[..., None], np.float32(30.0), axis=-1)
    masked = single.copy()
    masked[..., 5] = -np.inf
    visible = np.where(padded == 5, 6, padded)
    poisoned = single.copy()
    poisoned[0, 7] = np.nan
    return [
        *(case(name, logits.astype(dtype), padded, grad_output=-0.625) for name, dtype in DTYPES.items()),
        case("num-items", single, padded, num_items_in_batch=40, grad_output=3.0),
        case("num-items-fraction", single, padded, num_items_in_batch=12.5, grad_output=-1.0),
        case("vocab-size", single, labels, vocab_size=17, grad_output=0.1),
        case("ignore-a-class", single, labels, ignore_index=int(labels[0, 3]), grad_output=2.0),
        case("ignore-index-0", single, labels, ignore_index=0, grad_output=-2.0),
        case("confident", confident, labels, grad_output=100.0),
        case("masked-classes", masked, visible, grad_output=1.5),
        case("all-ignored", single, np.full((2, 9), -100), grad_output=1.0),
        case("poisoned-ignored-row", poisoned, padded, grad_output=-4.0),
        case("flat-logits", single.reshape(18, 17), padded, grad_output=0.9),
        case("int32-labels", single, padded.astype(np.int32), grad_output=-0.2),
        case("large-cotangent", logits.astype(np.float16), padded, grad_output=65536.0),
        *in_every_format(_of_tokens(case, seed, shift)),
        *_of_many_tokens(case, seed, shift),
    ]


def _of_tokens(case: Callable[..., Case], seed: int, shift: int) -> list[Case]:
    """Options that show, sequences of very different lengths, and labels at which softmax kernels break."""
    source = Source(100 + seed)
    logits, labels = source.normal(3, 9, 11) * 4.0, source.integers(11, 3, 9)
    labels[:, 4], labels[1, 3] = 0, 5
    labels[0, 7:], labels[1, 4:], labels[2, 1:3] = 3, 3, 3
    wrapping = np.where(labels == 3, WRAPS_TO_A_CLASS, labels)
    logits[0] *= 2.0  # long sequences are wrong by more than short ones
    return [
        case("options", logits, labels, ignore_index=3, grad_output=-1.25),
        case("ignore-index-of-64-bits", logits, wrapping, ignore_index=WRAPS_TO_A_CLASS, grad_output=0.5),
        case("options-num-items", logits, labels, ignore_index=5, num_items_in_batch=12.5, grad_output=3.0),
        case("nothing-counts", logits, np.full_like(labels, 3), ignore_index=3, grad_output=2.0),
        case("improbable", *_sequence(improbable(), shift), grad_output=-3.0),
        case("apart", *_sequence(apart(), shift), grad_output=2.0),
    ]


def _of_many_tokens(case: Callable[..., Case], seed: int, shift: int) -> list[Case]:
    """A large vocabulary, and labels of many bits."""
    source = Source(200 + seed)
    logits, labels = source.normal(2, 5, 11) * 4.0, source.integers(11, 2, 5)
    labels[0, 3:] = WRAPS_TO_THE_DEFAULT
    ignored = case("ignore-index-below-0", logits, labels, ignore_index=WRAPS_TO_THE_DEFAULT, grad_output=-0.5)
    return [
        in_format(ignored, "float32"),
        *(
            in_format(case(f"classes-{rows.classes}", *_sequence(rows, shift), grad_output=-1.25), name)
            for name, rows in many(300 + seed)
        ),
    ]


def _sequence(rows: Rows, shift: int) -> Rows:
    """Rows as one sequence, in which each is asked for the label so many places after it."""
    ignored = np.full(shift, -100)
    logits = np.concatenate([rows.logits, rows.logits[:shift]])
    return Rows(logits[None], np.concatenate([ignored, rows.labels])[None])


def causal_lm(function: str) -> list[Case]:
    """Those of tokens, and labels that are shifted already."""
    source = Source(3)
    logits = (source.normal(2, 6, 13) * 4.0).astype(np.float32)
    labels, shifted = source.integers(13, 2, 6), source.integers(13, 2, 6)
    shifted[1, 3:] = -100
    inputs = {"logits": logits, "labels": labels, "shift_labels": shifted}
    exact = {**inputs, "logits": source.normal(2, 6, 13) * 4.0, "shift_labels": np.where(shifted < 0, 12, shifted)}
    options = {"num_items_in_batch": 7, "ignore_index": 12}
    return [
        *_language(function, 2, shift=1),
        Case(f"{function}-shift-labels", function, inputs, {"num_items_in_batch": 30}, -1.75),
        Case(f"{function}-one-token", function, {"logits": logits[:, :1], "labels": labels[:, :1]}, {}, 1.0),
        *in_every_format([Case(f"{function}-options-shift-labels", function, exact, options, 2.5)]),
    ]


def masked_lm(function: str) -> list[Case]:
    """Those of tokens."""
    return _language(function, 4)


def token_classification(function: str) -> list[Case]:
    """Those of tokens, with the name that its number of classes has."""
    wanted = ("vocab-size", "int32-labels", "flat-logits")
    return [
        case._replace(
            parameters={"num_labels" if key == "vocab_size" else key: value for key, value in case.parameters.items()}
        )
        for case in _language(function, 5)
        if not case.id.endswith(wanted[1:])
    ]


def sequence_classification(function: str) -> list[Case]:
    """One label, several, or values."""
    source = Source(6)
    logits = source.normal(5, 4) * 3.0
    single = logits.astype(np.float32)
    labels, values = source.integers(4, 5), source.normal(5, 4).astype(np.float32)
    several = source.integers(2, 5, 4).astype(np.float32)

    def case(name: str, logits: np.ndarray, labels: np.ndarray, grad_output: float = -1.5, **parameters: Any) -> Case:
        inputs = {"pooled_logits": logits, "labels": labels}
        return Case(f"{function}-{name}", function, inputs, parameters, grad_output)

    return [
        *(case(f"{name}-one-label", logits.astype(dtype), labels) for name, dtype in DTYPES.items()),
        case("ignored", single, np.where(labels == 2, -100, labels), 2.0, num_labels=4),
        case("ignore-a-class", single, labels, 2.0, ignore_index=int(labels[0])),
        case("num-items", single, labels, 0.5, num_items_in_batch=11),
        case("several-labels", single, several, 3.0),
        case("several-labels-bfloat16", logits.astype(ml_dtypes.bfloat16), several, 3.0, num_labels=4),
        case("several-labels-stated", single, several.astype(np.int64), problem_type="multi_label_classification"),
        case("values", single, values, 0.25, problem_type="regression"),
        case("one-value", single[:, :1], values[:, 0]),
        case("one-value-float16", logits[:, :1].astype(np.float16), values[:, :1], 100.0, num_labels=1),
        case("one-value-of-one", single[:1, :1], values[:1, :1], 4.0),
        case("stated-one-label", single, labels, 1.0, problem_type="single_label_classification"),
        *in_every_format(_of_sequences(case)),
        *(
            in_format(case(f"classes-{rows.classes}", *rows, num_labels=rows.classes), name)
            for name, rows in many(106)
            if rows.classes > 1
        ),
    ]


def _of_sequences(case: Callable[..., Case]) -> list[Case]:
    """Options that show, and labels at which softmax kernels break."""
    source = Source(206)
    logits, labels, values = source.normal(6, 5) * 3.0, source.integers(5, 6), source.normal(6, 5)
    labels[0], labels[2], labels[5] = 0, 3, 3
    wrapping = np.where(labels == 3, WRAPS_TO_A_CLASS, labels)
    several = source.integers(2, 6, 5)
    saturated = logits * 12.0
    stated = {name: {"problem_type": name} for name in ("regression", "multi_label_classification")}
    return [
        case("options", logits, labels, ignore_index=3),
        case("ignore-index-of-64-bits", logits, wrapping, ignore_index=WRAPS_TO_A_CLASS),
        case(
            "options-num-items",
            logits,
            labels,
            ignore_index=3,
            num_items_in_batch=11.5,
        ),
        case("options-values", logits, values, 0.75, **stated["regression"]),
        case("options-one-value", logits[:, :1], values[:, 0], -2.0, num_labels=1),
        case("options-several-labels", saturated, several, 2.0, **stated["multi_label_classification"]),
        case("nothing-counts", logits, np.full_like(labels, 3), ignore_index=3),
        case("improbable", *improbable()),
        case("apart", *apart()),
    ]


def question_answering(function: str) -> list[Case]:
    """Positions within and outside."""
    source = Source(7)
    start, end = source.normal(5, 9) * 4.0, source.normal(5, 9) * 4.0
    first, last = source.integers(9, 5), source.integers(9, 5)
    outside = np.array([0, 9, 14, -3, 5])

    def case(
        name: str, at: np.ndarray = first, dtype: Any = np.float32, grad_output: float = -1.5, **parameters: Any
    ) -> Case:
        inputs = {"start_logits": start.astype(dtype), "end_logits": end.astype(dtype)}
        inputs |= {"start_positions": at, "end_positions": last}
        return Case(f"{function}-{name}", function, inputs, parameters, grad_output)

    return [
        *(case(name, dtype=dtype) for name, dtype in DTYPES.items()),
        *(case(f"{name}-outside", outside, dtype, 2.0) for name, dtype in DTYPES.items()),
        case("additional-axis", first[:, None], grad_output=0.5),
        case("num-items", outside, num_items_in_batch=8, grad_output=3.0),
        case("all-outside", np.full(5, 20), grad_output=1.0),
        case("int32-positions", first.astype(np.int32), grad_output=7.0),
        *in_every_format(_of_answers(function)),
        *(
            in_format(_answers(function, f"classes-{rows.classes}", rows, _reversed(rows)), name)
            for name, rows in many(107)
        ),
    ]


def _of_answers(function: str) -> list[Case]:
    """As many positions outside as make the means differ, and ones at which softmax kernels break, on either side."""
    source = Source(207)
    plain = Rows(source.normal(6, 11) * 4.0, source.integers(11, 6))
    outside = Rows(source.normal(6, 11) * 4.0, np.array([0, 11, 16, 7, 99, 5]))
    return [
        _answers(function, "options", plain, outside, num_items_in_batch=2.5),
        _answers(function, "nothing-counts", outside._replace(labels=np.full(6, 11)), plain),
        *(
            _answers(function, f"{name}-{side}", *((rows, other) if side == "start" else (other, rows)))
            for name, rows in (("improbable", improbable()), ("apart", apart()))
            for side, other in (("start", _ordinary(rows)), ("end", _ordinary(rows)))
        ),
    ]


def _answers(function: str, name: str, start: Rows, end: Rows, **parameters: Any) -> Case:
    inputs = {"start_logits": start.logits, "end_logits": end.logits}
    inputs |= {"start_positions": start.labels, "end_positions": end.labels}
    return Case(f"{function}-{name}", function, inputs, parameters, -1.5)


def _reversed(rows: Rows) -> Rows:
    """The same, from the last one to the first."""
    return Rows(rows.logits[::-1], rows.labels[::-1])


def _ordinary(rows: Rows) -> Rows:
    """The same labels of rows that no kernel minds."""
    return Rows(Source(210).normal(*rows.logits.shape) * 3.0, rows.labels)


def semantic_segmentation(function: str) -> list[Case]:
    """Sizes that differ, auxiliary logits, ignored pixels."""
    source = Source(8)
    logits, auxiliary = source.normal(2, 4, 3, 5) * 3.0, (source.normal(2, 4, 2, 2) * 3.0).astype(np.float32)
    labels = source.integers(4, 2, 7, 8)
    ignored = labels.copy()
    ignored[0, 2:4] = 255

    def case(
        name: str, at: np.ndarray = ignored, dtype: Any = np.float32, grad_output: float = -1.5, **given: Any
    ) -> Case:
        inputs = {"logits": logits.astype(dtype), "labels": at}
        if "auxiliary_logits" in given:
            inputs["auxiliary_logits"] = given.pop("auxiliary_logits")
        return Case(f"{function}-{name}", function, inputs, given, grad_output)

    return [
        *(case(name, dtype=dtype) for name, dtype in DTYPES.items()),
        case("all-pixels", labels, grad_output=2.0),
        case("auxiliary", auxiliary_logits=auxiliary, grad_output=0.5),
        case("auxiliary-weight", auxiliary_logits=auxiliary, auxiliary_loss_weight=1.5),
        case("ignore-a-class", labels, ignore_index=2, grad_output=3.0),
        case("num-items", num_items_in_batch=200, grad_output=-4.0),
        case("same-size", labels[:, :3, :5], grad_output=1.0),
        case("smaller", labels[:, :2, :2], grad_output=2.5),
        case("all-ignored", np.full((2, 7, 8), 255), grad_output=1.0),
        *in_every_format(_of_pixels(function)),
        *(in_format(each, "float32") for each in _of_tiles(function)),
        *(in_format(_pixels(function, f"classes-{rows.classes}", rows), name) for name, rows in _few_of_many()),
    ]


def _of_pixels(function: str) -> list[Case]:
    """Options that show, and labels at which softmax kernels break, of either logits."""
    source = Source(208)
    logits, auxiliary = source.normal(2, 5, 3, 4) * 3.0, source.normal(2, 5, 2, 3) * 3.0
    labels = source.integers(5, 2, 7, 6)
    labels[0, 1:], labels[1, 3, :3] = 2, 2
    inputs = {"logits": logits, "labels": labels, "auxiliary_logits": auxiliary}
    wrapping = inputs | {"labels": np.where(labels == 2, WRAPS_TO_A_CLASS, labels)}
    nothing = inputs | {"labels": np.full_like(labels, 2)}
    options = {"auxiliary_loss_weight": 1.5}
    return [
        Case(f"{function}-options", function, inputs, options | {"ignore_index": 2}, -2.5),
        Case(f"{function}-ignore-index-of-64-bits", function, wrapping, {"ignore_index": WRAPS_TO_A_CLASS}, -2.5),
        Case(
            f"{function}-options-num-items",
            function,
            inputs,
            options | {"ignore_index": 2, "num_items_in_batch": 17},
            1.5,
        ),
        Case(f"{function}-nothing-counts", function, nothing, {"ignore_index": 2}, 0.5),
        _pixels(function, "improbable", improbable()),
        _pixels(function, "improbable-auxiliary", _ordinary(improbable()), improbable()),
        _pixels(function, "apart", apart()),
        _pixels(function, "apart-auxiliary", _ordinary(apart()), apart()),
    ]


def _pixels(function: str, name: str, rows: Rows, auxiliary: Rows | None = None) -> Case:
    """Rows as the pixels of one line, of logits and of auxiliary ones."""
    inputs = {"logits": _line(rows.logits), "labels": rows.labels[None, None]}
    if auxiliary is not None:
        inputs["auxiliary_logits"] = _line(auxiliary.logits)
    return Case(f"{function}-{name}", function, inputs, {}, -1.5)


def _line(logits: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(logits.T)[None, :, None, :]


def _few_of_many() -> Iterator[tuple[str, Rows]]:
    """Rows of as many classes as images have at most."""
    for name, rows in many(108):
        if rows.classes < _MOST_CLASSES_OF_PIXELS:
            yield from ((each, rows) for each in ((name,) if name != "float64" else ("float32", name)))


def _of_tiles(function: str) -> list[Case]:
    """Masks that no tile divides, larger than the logits and smaller."""
    source = Source(209)
    labels = source.integers(3, 1, 67, 131)
    labels[0, :5] = 255
    return [
        Case(
            f"{function}-tiles-{h}x{w}",
            function,
            {"logits": source.normal(1, 3, h, w) * 3.0, "labels": labels},
            {},
            60.0,
        )
        for h, w in ((17, 33), (67, 131))
    ]


def draw_tokens(
    draws: Draws, size_name: str, *, shifted: bool = False, options: Mapping[str, Tried] | None = None
) -> Drawn:
    """A class, or a token, for each position of each sequence; options are what else a head takes."""
    classes, rows = draws.classes(), draws.row_shape(2 if draws.limits.exact else 1, 2)
    parameters = draws.options(num_items_in_batch=_ITEMS, ignore_index=(-100, 0, 255), **{size_name: (classes,)})
    parameters |= draws.parameters(options or {})
    ignore_index = parameters.get("ignore_index", -100)
    labels = draws.labels(rows, classes, ignore_index)
    tensors, asked = {"labels": labels}, labels
    if shifted and not draws.limits.exact and draws.maybe():
        asked = tensors["shift_labels"] = draws.labels(rows, classes, ignore_index)
    elif shifted:
        asked = np.full(rows, ignore_index, np.int64)
        asked[..., :-1] = labels[..., 1:]
    logits = draws.logits(*rows, classes)
    draws.adverse(logits, -1, asked, asked == ignore_index, masks=True)
    flat = not draws.limits.exact and draws.maybe()
    return Drawn({"logits": logits.reshape(-1, classes) if flat else logits} | tensors, parameters)


def draw_sequences(draws: Draws) -> Drawn:
    """Sequences with one label, several, or values."""
    kind = draws.one_of("single_label_classification", "multi_label_classification", "regression")
    rows, classes = draws.rows(), draws.classes(1 if kind == "regression" else 2)
    parameters = draws.options(num_labels=(classes,), problem_type=(kind,))
    logits = draws.logits(rows, classes)
    if kind == "single_label_classification":
        parameters |= draws.options(num_items_in_batch=_ITEMS, ignore_index=(-100, 0, 255))
        ignore_index = parameters.get("ignore_index", -100)
        labels = draws.labels((rows,), classes, ignore_index)
        # Without a problem type it is these two dtypes that say what labels are.
        labels = (
            labels
            if "problem_type" in parameters or draws.limits.exact
            else labels.astype(draws.one_of(np.int64, np.int32))
        )
        draws.adverse(logits, -1, labels, labels == ignore_index, masks=True)
    elif kind == "multi_label_classification":
        labels = draws.probabilities(rows, classes)
    else:
        labels = draws.logits(rows, classes)
        # Numbers of several labels are only taken for values where that is said.
        parameters |= {"problem_type": kind} if classes > 1 else {}
        labels = labels[:, 0] if classes == 1 and "problem_type" not in parameters else labels
    return Drawn({"pooled_logits": logits, "labels": labels}, parameters)


def draw_answers(draws: Draws) -> Drawn:
    """Where answers start and end, some of them outside."""
    rows, length = draws.rows(), draws.classes()
    tensors: dict[str, np.ndarray] = {}
    beyond = draws.ignored((rows,))
    # What is below 0 is taken for 0, whichever class that is.
    outside = (length,) if draws.limits.exact else (length, length + 5, -3)
    for name in ("start", "end"):
        positions = (draws.uniform(rows) * length).astype(np.int64)
        beyond = beyond if draws.limits.exact else draws.ignored((rows,))
        positions = np.where(beyond, draws.one_of(*outside), positions)
        logits = draws.logits(rows, length)
        draws.adverse(logits, -1, np.clip(positions, 0, length), positions >= length, masks=True)
        positions = draws.integers(positions)
        tensors[f"{name}_logits"] = logits
        tensors[f"{name}_positions"] = positions[:, None] if draws.maybe() else positions
    return Drawn(tensors, draws.options(num_items_in_batch=_ITEMS))


def draw_images(draws: Draws) -> Drawn:
    """Images and labels of other sizes."""
    images, classes = min(draws.rows(), 2), draws.few_classes()
    parameters = draws.options(
        ignore_index=(255, 0, -100), num_items_in_batch=_ITEMS, auxiliary_loss_weight=(0.4, 1.5, 0.0)
    )
    labels = draws.labels((images, draws.side(5), draws.side(5)), classes, parameters.get("ignore_index", 255))
    names = ("logits", "auxiliary_logits") if draws.maybe() else ("logits",)
    logits = {name: draws.logits(images, classes, draws.size(1, 3), draws.size(1, 3), axis=1) for name in names}
    return Drawn(logits | {"labels": labels}, parameters)


def tokens_counted(case: Case, *, shift: int = 0) -> float:
    """How many labels count; those that are not shifted yet are moved by so many places."""
    shifted = case.inputs.get("shift_labels")
    labels = case.inputs["labels"][..., shift:] if shifted is None else shifted
    return float(np.count_nonzero(labels != case.parameters.get("ignore_index", -100)))


def sequences_have_classes(case: Case) -> bool:
    """Whether labels are one class for each sequence, instead of several or of values."""
    if "problem_type" in case.parameters:
        return bool(case.parameters["problem_type"] == "single_label_classification")
    count = case.parameters.get("num_labels", case.inputs["pooled_logits"].shape[-1])
    return count != 1 and case.inputs["labels"].dtype in (np.int64, np.int32)


def sequences_counted(case: Case) -> float:
    """How many labels count, or how many numbers there are."""
    return tokens_counted(case) if sequences_have_classes(case) else float(case.inputs["pooled_logits"].size)


def answers_counted(case: Case) -> float | None:
    """How many starts are inside; None unless as many ends are."""
    counts = {
        int(np.count_nonzero(case.inputs[f"{side}_positions"] < case.inputs[f"{side}_logits"].shape[1]))
        for side in ("start", "end")
    }
    return float(counts.pop()) if len(counts) == 1 else None


def pixels_counted(case: Case) -> float:
    """How many labels count."""
    return float(np.count_nonzero(case.inputs["labels"] != case.parameters.get("ignore_index", 255)))


def wrong_shifts(case: Case, *, shift: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Labels that are shifted too little, too far or around; or shifted where they should not be."""
    ignored = case.parameters.get("ignore_index", -100)
    if not shift or "shift_labels" in case.inputs:
        name = "shift_labels" if "shift_labels" in case.inputs else "labels"
        return {"labels are shifted by one position": {name: _moved(case.inputs[name], 1, ignored)}}
    tokens = case.inputs["labels"]
    rolled = "labels are rolled, so that the last position predicts the first token"
    return {
        "labels are not shifted": {"shift_labels": tokens},
        "labels are shifted by one position too many": {"shift_labels": _moved(tokens, 2, ignored)},
        rolled: {"shift_labels": np.roll(tokens, -1, -1)},
    }


def _moved(tokens: np.ndarray, count: int, ignored: int) -> np.ndarray:
    moved = np.full_like(tokens, ignored)
    moved[..., :-count] = tokens[..., count:]
    return moved
