"""Kernels in NumPy that have one mistake each, and the names of these mistakes."""

from typing import Any, NamedTuple

import numpy as np


class Rows:
    """Rows of logits of a call, with what a softmax loss makes of them; a mistake changes one of its attributes."""

    def __init__(self, inputs, parameters, upstream):
        self.logits = np.asarray(inputs["logits"])
        self.wide = np.float64 if self.logits.dtype == np.float64 else np.float32
        target = np.asarray(inputs["labels" if "labels" in inputs else "target"])
        self.axis = self.logits.ndim - 1 if "labels" in inputs else min(1, self.logits.ndim - 1)
        self.moved = np.moveaxis(self.logits, self.axis, -1).astype(self.wide)
        self.classes = self.moved.shape[-1]
        self.x = self.moved.reshape(-1, self.classes)
        self.parameters, self.c = parameters, np.asarray(upstream, self.wide)
        self.hard = target.dtype.kind in "iu"
        self.counted = np.ones(len(self.x), bool)
        self.reduction = parameters.get("reduction", "mean")
        self.smoothing = self.wide(parameters.get("label_smoothing", 0))
        self.weight = np.asarray(inputs.get("weight", np.ones(self.classes))).astype(self.wide)
        if self.hard:
            self.labels = target.reshape(-1)
            self.counted = self.labels != parameters.get("ignore_index", -100)
            self.target = ((self.labels[:, None] == np.arange(self.classes)) & self.counted[:, None]).astype(self.wide)
        else:
            self.target = np.moveaxis(target, self.axis, -1).reshape(self.x.shape).astype(self.wide)
        self.mass = self.weight * self.smoothed(self.target) * self.counted[:, None]
        self.items = parameters.get("num_items_in_batch")
        count = (self.target * self.weight).sum() if self.hard else len(self.x)
        self.over = self.wide(1 if self.reduction != "mean" else count if self.items is None else self.items)
        self.gradient_over = None
        self.losses = self.slopes = None
        below = self.x - self.x.max(axis=1, keepdims=True)
        self.log_p = below - np.log(np.exp(below).sum(axis=1, keepdims=True))
        self.p = np.exp(self.log_p)

    def smoothed(self, target):
        return (1 - self.smoothing) * target + self.smoothing / self.classes

    def answer(self):
        pushed = self.mass.sum(axis=1, keepdims=True)
        terms = self.mass * self.log_p
        losses = -(np.where(self.mass == 0, 0, terms) if self.hard else terms).sum(axis=1)
        losses = losses if self.losses is None else self.losses(losses)
        slopes = np.where(pushed == 0, 0, pushed * self.p) - self.mass
        slopes = slopes if self.slopes is None else self.slopes(slopes)
        upstream = np.broadcast_to(self.c.reshape(-1) if self.c.ndim else self.c, len(self.x))[:, None]
        over = self.over if self.gradient_over is None else self.gradient_over
        gradient = np.where(slopes == 0, 0, upstream / over * slopes)
        loss = losses.reshape(self.moved.shape[:-1]) if self.reduction == "none" else (losses / self.over).sum()
        tensors = {"logits": np.moveaxis(gradient.reshape(self.moved.shape), -1, self.axis)}
        if not self.hard:
            of_target = -upstream / self.over * (1 - self.smoothing) * self.weight * self.log_p
            tensors["target"] = np.moveaxis(of_target.reshape(self.moved.shape), -1, self.axis)
        return np.asarray(loss, self.wide), {name: each.astype(self.logits.dtype) for name, each in tensors.items()}


def rows_of_logits(wrong):
    """A kernel with a mistake."""

    def kernel(inputs, parameters, upstream):
        with np.errstate(all="ignore"):
            rows = Rows(inputs, parameters, upstream)
            wrong(rows)
            return rows.answer()

    return kernel


def changed(**attributes):
    """What a mistake makes of some attributes, each by a function of the rows."""

    def wrong(rows):
        for name, value in {name: make(rows) for name, make in attributes.items()}.items():
            setattr(rows, name, value)

    return wrong


def other_sum(total):
    """Another log Σ e^x."""

    def wrong(rows):
        rows.log_p = rows.x - total(rows)
        rows.p = np.exp(rows.log_p)

    return wrong


def lse(x):
    largest = x.max(axis=1, keepdims=True)
    return largest + np.log(np.exp(x - largest).sum(axis=1, keepdims=True))


def unscaled(size):
    def total(rows):
        largest, total = np.full((len(rows.x), 1), -np.inf, rows.wide), rows.wide(0)
        for first in range(0, rows.classes, size):
            block = rows.x[:, first : first + size]
            largest = np.maximum(largest, block.max(axis=1, keepdims=True))
            total = total + np.exp(block - largest).sum(axis=1, keepdims=True)
        return largest + np.log(total)

    return total


def softmax(x):
    terms = np.exp(x - x.max(axis=1, keepdims=True))
    return terms / terms.sum(axis=1, keepdims=True)


def means_of_halves(rows):
    halves = np.array_split(np.arange(len(rows.x)), 2)
    if rows.items is None:
        counts = np.concatenate([np.full(len(half), rows.target[half].sum()) for half in halves])
        rows.over = (2 * counts).astype(rows.wide)
        rows.gradient_over = rows.over[:, None]


def items(rows, count):
    return rows.wide(count if rows.items is None and rows.reduction == "mean" else rows.over)


def masked(rows):
    return np.isneginf(rows.x).any(axis=1)


def kept(rows):
    return (1 - rows.smoothing) * rows.target * rows.counted[:, None]


_SMOOTHED = "cross_entropy"
ROWS = [
    ("upstream gradient ignored", "masked_lm", changed(c=lambda rows: np.asarray(1, rows.wide))),
    ("a wrong sign", "masked_lm", changed(slopes=lambda rows: np.negative)),
    ("off by a constant factor of 1.3", "masked_lm", changed(slopes=lambda rows: lambda each: each * rows.wide(1.3))),
    ("the logarithm is of p + ε", "masked_lm", changed(log_p=lambda rows: np.log(rows.p + rows.wide(1e-6)))),
    (
        "blocks of classes: the running sum is not rescaled when the maximum grows",
        "masked_lm",
        other_sum(unscaled(8)),
    ),
    (
        "blocks of classes: the tail is left out",
        "masked_lm",
        other_sum(lambda rows: lse(rows.x[:, : rows.classes // 4 * 4])),
    ),
    (
        "blocks of classes: only the first block has a gradient",
        "masked_lm",
        changed(slopes=lambda rows: lambda each: np.where(np.arange(rows.classes) < 8, each, 0)),
    ),
    (
        "blocks of classes: the tail reads the next row",
        "masked_lm",
        other_sum(lambda rows: lse(np.concatenate([rows.x, np.roll(rows.x, -1, 0)[:, : -rows.classes % 8]], axis=1))),
    ),
    (
        "padded classes are counted",
        "masked_lm",
        other_sum(lambda rows: lse(np.pad(rows.x, ((0, 0), (0, -rows.classes % 8))))),
    ),
    (
        "−inf logits (masked classes) give NaN",
        "masked_lm",
        changed(
            losses=lambda rows: lambda each: np.where(masked(rows), np.nan, each),
            slopes=lambda rows: lambda each: np.where(masked(rows)[:, None], np.nan, each),
        ),
    ),
    (
        "a mean over all rows instead of the rows that count",
        "masked_lm",
        changed(over=lambda rows: items(rows, len(rows.x))),
    ),
    (
        "the gradient is that of a mean over all rows (loss right)",
        "masked_lm",
        changed(gradient_over=lambda rows: items(rows, len(rows.x))),
    ),
    ("a mean of the means of chunks", "masked_lm", means_of_halves),
    ("num_items_in_batch is ignored", "masked_lm", changed(over=lambda rows: rows.wide(rows.counted.sum()))),
    ("all labels ignored gives 0 instead of NaN", "masked_lm", changed(over=lambda rows: max(rows.over, rows.wide(1)))),
    (
        "ignored rows are included: their gradient is not 0",
        "token_classification",
        changed(slopes=lambda rows: lambda each: np.where(rows.counted[:, None], each, rows.p)),
    ),
    (
        "double softmax, or sigmoid: probabilities are taken as logits",
        "token_classification",
        changed(p=lambda rows: softmax(rows.p), log_p=lambda rows: np.log(softmax(rows.p))),
    ),
    (
        "no maximum is subtracted before the exponential",
        _SMOOTHED,
        other_sum(lambda rows: np.log(np.exp(rows.x).sum(axis=1, keepdims=True))),
    ),
    (
        "label smoothing without 1/K",
        _SMOOTHED,
        changed(
            mass=lambda rows: (
                rows.weight * ((1 - rows.smoothing) * rows.target + rows.smoothing) * rows.counted[:, None]
            )
        ),
    ),
    (
        "label smoothing reaches ignored rows",
        _SMOOTHED,
        changed(mass=lambda rows: rows.weight * rows.smoothed(rows.target)),
    ),
    (
        "class weights do not weigh label smoothing",
        _SMOOTHED,
        changed(
            mass=lambda rows: (
                (rows.weight * (1 - rows.smoothing) * rows.target + rows.smoothing / rows.classes)
                * rows.counted[:, None]
            )
        ),
    ),
    (
        "a mean over rows instead of their weights",
        _SMOOTHED,
        changed(over=lambda rows: items(rows, rows.counted.sum())),
    ),
    (
        "the first element of the upstream gradient is used for all rows",
        _SMOOTHED,
        changed(c=lambda rows: rows.c.reshape(-1)[0]),
    ),
    (
        "soft targets are taken to sum to 1: Σq is dropped from the gradient",
        _SMOOTHED,
        changed(slopes=lambda rows: lambda each: each if rows.hard else rows.p - rows.mass),
    ),
    (
        "label_smoothing is ignored",
        _SMOOTHED,
        changed(mass=lambda rows: rows.weight * rows.target * rows.counted[:, None]),
    ),
]


def below(limit):
    """Distances to the maximum that are clamped."""

    def wrong(rows):
        distances = np.maximum(rows.x - rows.x.max(axis=1, keepdims=True), -rows.wide(limit))
        rows.log_p = distances - np.log(np.exp(distances).sum(axis=1, keepdims=True))
        rows.p = np.exp(rows.log_p)

    return wrong


def shifted_by(shift):
    """Something else than the row's maximum is subtracted."""

    def wrong(rows):
        terms = np.exp(rows.x - shift(rows))
        total = terms.sum(axis=1, keepdims=True)
        rows.log_p, rows.p = rows.x - shift(rows) - np.log(total), terms / total

    return wrong


def derived_from_clamped(rows):
    tiny = rows.wide(1e-30)
    rows.log_p = np.log(np.maximum(rows.p, tiny))
    kept = np.where(rows.p < tiny, 0, rows.mass)
    rows.slopes = lambda _: rows.p * kept.sum(axis=1, keepdims=True) - kept


def first_class_of_other_shard(rows):
    other = np.where(rows.labels >= rows.classes // 2, 0, rows.classes // 2)
    found = np.where(rows.counted, rows.x[np.arange(len(rows.x)), other], 0)
    rows.losses = lambda each: each - found


_CLAMPED = "the logarithm is of max(p, tiny): improbable targets are clamped"
# They show where labels are improbable, or rows far apart.
EXTREME = [
    (_CLAMPED, changed(log_p=lambda rows: np.log(np.maximum(rows.p, np.finfo(np.float32).tiny)))),
    (_CLAMPED, derived_from_clamped),
    ("the logarithm is of p + ε", changed(log_p=lambda rows: np.log(rows.p + rows.wide(1e-30)))),
    ("distances to the maximum are clamped", below(50)),
    ("distances to the maximum are clamped", below(80)),
    (
        "the row's maximum is not taken below a limit",
        shifted_by(lambda rows: np.maximum(rows.x.max(axis=1, keepdims=True), 0)),
    ),
    ("the maximum of the whole batch is subtracted instead of the row's", shifted_by(lambda rows: rows.x.max())),
    ("no maximum is subtracted before the exponential", shifted_by(lambda rows: rows.wide(0))),
    ("a vocabulary shard without the label answers with its own first class", first_class_of_other_shard),
]


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Elementwise(NamedTuple):
    """A mistaken loss of elements: formula(x, t, inputs, parameters) gives value and derivatives."""

    words: str
    function: str
    names: tuple[str, str]
    formula: Any
    options: Any = (({}, {}), ({"reduction": "sum"}, {}), ({"reduction": "none"}, {}))
    targets: str = "soft"
    for_target: bool = True
    of_elements: bool = False  # whether batchmean divides by their number


def elementwise(mistake):
    """A kernel with a mistake."""

    def kernel(inputs, parameters, upstream):
        x, t = (np.asarray(inputs[name]) for name in mistake.names)
        with np.errstate(all="ignore"):
            value, for_x, for_t = mistake.formula(x.astype(np.float32), t.astype(np.float32), inputs, parameters)
            reduction = parameters.get("reduction", "mean")
            over = np.float32({"mean": x.size, "batchmean": x.shape[0]}.get(reduction, 1))
            if mistake.function == "sigmoid_focal":
                over = np.float32(x.shape[1] if reduction == "mean" else 1)
            if mistake.of_elements and reduction == "batchmean":
                over = np.float32(x.size)
            upstream = np.asarray(upstream, np.float32) / over
            gradients = {mistake.names[0]: for_x} | ({mistake.names[1]: for_t} if mistake.for_target else {})
            loss = value if reduction == "none" else value.sum() / over
            return np.asarray(loss), {name: (upstream * each).astype(x.dtype) for name, each in gradients.items()}

    return kernel


def bce(x, t, positive=1.0, negative=1.0):
    return (
        positive * t * softplus(-x) + negative * (1 - t) * softplus(x),
        negative * sigmoid(x) * (1 - t) - positive * t * sigmoid(-x),
        positive * softplus(-x) - negative * softplus(x),
    )


def kl(x, t):
    log_t = np.log(t)
    return np.where(t == 0, 0, t * log_t) - t * x, -t, np.where(t == 0, np.nan, log_t + 1 - x)


def focal(x, t, parameters, alpha=lambda a, t: a * t + (1 - a) * (1 - t), held=False, infinite=False):
    a, gamma = np.float32(parameters.get("alpha", 0.25)), np.float32(parameters.get("gamma", 2))
    cross, missed = t * softplus(-x) + (1 - t) * softplus(x), sigmoid(x) * (1 - t) + sigmoid(-x) * t
    if infinite:
        further = gamma * cross * (1 - 2 * t) * sigmoid(x) * sigmoid(-x) * missed ** (gamma - 1)
    else:
        ratio = np.where(missed == 0, 0, sigmoid(x) * sigmoid(-x) / missed)
        further = gamma * cross * (1 - 2 * t) * ratio * missed**gamma
    slope = missed**gamma * (sigmoid(x) * (1 - t) - t * sigmoid(-x)) + (0 if held else further)
    return alpha(a, t) * missed**gamma * cross, alpha(a, t) * slope, None


def huber(x, t, delta):
    d, clipped = x - t, np.clip(x - t, -delta, delta)
    return np.where(abs(d) <= delta, d * d / 2, delta * (abs(d) - delta / 2)), clipped, -clipped


_LOGITS, _FOCAL, _PLAIN = ("logits", "target"), ("inputs", "targets"), ("input", "target")
_WEIGHTED = tuple(
    ({"reduction": name}, {"pos_weight": np.linspace(0.5, 3, 6, dtype=np.float32)}) for name in ("mean", "none")
)
_GAMMAS: Any = (
    ({}, {}),
    ({"reduction": "sum", "gamma": 0.5}, {}),
    ({"reduction": "none", "gamma": 0.0}, {}),
    ({"reduction": "sum", "gamma": 1.5, "alpha": 0.6}, {}),
)
_BATCH: Any = (({}, {}), ({"reduction": "batchmean"}, {}), ({"reduction": "none"}, {}))
_BETAS: Any = (({"beta": 0.25}, {}), ({"beta": 3.0}, {}), ({"beta": 3.0, "reduction": "none"}, {}), ({}, {}))
ELEMENTS = [
    Elementwise(
        "softplus overflows: log(1 + e^x) without |x|",
        "bce_with_logits",
        _LOGITS,
        lambda x, t, *_: (np.log(1 + np.exp(x)) - t * x, *bce(x, t)[1:]),
    ),
    Elementwise("logits are clamped", "bce_with_logits", _LOGITS, lambda x, t, *_: bce(np.clip(x, -15, 15), t)),
    Elementwise(
        "log σ(x) by the logarithm of a rounded sigmoid",
        "bce_with_logits",
        _LOGITS,
        lambda x, t, *_: (
            -t * np.maximum(np.log(sigmoid(x)), -100) - (1 - t) * np.maximum(np.log(1 - sigmoid(x)), -100),
            *bce(x, t)[1:],
        ),
        (({"reduction": "none"}, {}),),
    ),
    Elementwise(
        "pos_weight is on the negative side",
        "bce_with_logits",
        _LOGITS,
        lambda x, t, inputs, _: bce(x, t, 1.0, inputs["pos_weight"]),
        _WEIGHTED,
    ),
    Elementwise("pos_weight is ignored", "bce_with_logits", _LOGITS, lambda x, t, *_: bce(x, t), _WEIGHTED),
    Elementwise(
        "the logarithm is not clamped at −100",
        "bce",
        _PLAIN,
        lambda p, t, *_: (
            -np.where(t == 0, 0, t * np.log(p)) - np.where(t == 1, 0, (1 - t) * np.log1p(-p)),
            (p - t) / np.maximum(p * (1 - p), 1e-12),
            None,
        ),
        for_target=False,
    ),
    Elementwise(
        "KL divergence is reversed",
        "kl_div",
        _PLAIN,
        lambda x, t, *_: (
            np.exp(x) * (x - np.log(np.maximum(t, 1e-30))),
            np.exp(x) * (x - np.log(np.maximum(t, 1e-30)) + 1),
            None,
        ),
        _BATCH,
        for_target=False,
    ),
    Elementwise("the entropy of the target is left out", "kl_div", _PLAIN, lambda x, t, *_: (-t * x, -t, -x), _BATCH),
    Elementwise(
        "soft targets: t·log t is NaN where t is 0",
        "kl_div",
        _PLAIN,
        lambda x, t, *_: (t * (np.log(t) - x), *kl(x, t)[1:]),
        _BATCH,
    ),
    Elementwise(
        "soft targets: log of max(t, ε)",
        "kl_div",
        _PLAIN,
        lambda x, t, *_: (t * (np.log(np.maximum(t, 1e-10)) - x), -t, np.log(np.maximum(t, 1e-10)) + 1 - x),
        _BATCH,
    ),
    Elementwise(
        "batchmean is a mean over elements", "kl_div", _PLAIN, lambda x, t, *_: kl(x, t), _BATCH, of_elements=True
    ),
    Elementwise(
        "α is swapped",
        "sigmoid_focal",
        _FOCAL,
        lambda x, t, _, given: focal(x, t, given, lambda a, t: (1 - a) * t + a * (1 - t)),
        _GAMMAS,
        "hard",
        False,
    ),
    Elementwise(
        "α is on both sides",
        "sigmoid_focal",
        _FOCAL,
        lambda x, t, _, given: focal(x, t, given, lambda a, t: a + 0 * t),
        _GAMMAS,
        "hard",
        False,
    ),
    Elementwise(
        "α is only on positives",
        "sigmoid_focal",
        _FOCAL,
        lambda x, t, _, given: focal(x, t, given, lambda a, t: a * t + 1 - t),
        _GAMMAS,
        "hard",
        False,
    ),
    Elementwise(
        "the focal factor is held constant",
        "sigmoid_focal",
        _FOCAL,
        lambda x, t, _, given: focal(x, t, given, held=True),
        _GAMMAS,
        "hard",
        False,
    ),
    Elementwise(
        "γ < 1: the power (1 − p_t)^(γ − 1) is infinite",
        "sigmoid_focal",
        _FOCAL,
        lambda x, t, _, given: focal(x, t, given, infinite=True),
        _GAMMAS,
        "hard",
        False,
    ),
    Elementwise(
        "Huber for smooth L1 (a factor of β)",
        "smooth_l1",
        _PLAIN,
        lambda x, t, _, given: huber(x, t, np.float32(given.get("beta", 1))),
        _BETAS,
    ),
    Elementwise("beta is ignored", "smooth_l1", _PLAIN, lambda x, t, *_: huber(x, t, np.float32(1)), _BETAS),
    Elementwise("the derivative lacks its factor 2", "mse", _PLAIN, lambda x, t, *_: ((x - t) ** 2, x - t, t - x)),
]
