"""Which of the usual mistakes explain a case that fails.

A mistake explains a tensor if it would pass were the mistake right: every element within its own allowance. It explains
a case if it explains all tensors that fail; where it contradicts those that pass it is less likely. Some mistakes are
read off a tensor, some are the right answer to another case, some a small float64 simulation of a mistaken step.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from refloss.cases.source import is_one_number
from refloss.messages import EXPECTED_ERRORS
from refloss.roundoff import roundoff
from refloss.testing.diagnosis import Cause
from refloss.testing.mistakes import (
    alignment_steps,
    blocks,
    box_steps,
    chain_steps,
    contrastive_steps,
    distillation_steps,
    element_steps,
    images,
    linear_steps,
    log_prob_steps,
    others,
    policy_steps,
    router_steps,
    row_labels,
    shard_steps,
    softmax_steps,
    sums,
    topk_steps,
    transducer_steps,
)
from refloss.testing.mistakes.elements import elements_of
from refloss.testing.mistakes.guess import COMMON, POSSIBLE, SELDOM, USUAL, Guess
from refloss.testing.mistakes.outcome import Wrong, combined, glance, magnitudes
from refloss.testing.mistakes.readings import OVER_ALL_ROWS, factors_that_fit, read
from refloss.testing.mistakes.rows import views
from refloss.testing.mistakes.tensors import near

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from refloss.testing.mistakes.outcome import Steps
    from refloss.testing.mistakes.rows import View
    from refloss.testing.mistakes.tensors import Tensor
    from refloss.testing.verdict import Question

LARGEST = 10**6  # input elements of a case on which mistakes are tried, and elements of a tensor that are looked at
# Read off all tensors that fail, they leave nothing to be guessed, unless other factors are the same.
PLAIN = ("a wrong sign", "upstream gradient ignored", "upstream gradient applied twice")
_OF_SOME_NUMBER = (
    *softmax_steps.OF_SOME_NUMBER,
    *row_labels.OF_SOME_NUMBER,
    *linear_steps.OF_SOME_NUMBER,
    *shard_steps.OF_SOME_NUMBER,
)
_IN_PART = 0.5  # what a mistake loses that shows in the gradient alone, though it would in the loss
OF_ALL_ROWS = "the gradient is that of a mean over all rows (loss right)"


@np.errstate(all="ignore")
def causes(asked: Question, judged: Mapping[str, Tensor], failing: tuple[str, ...]) -> tuple[Cause, ...]:
    """Usual mistakes that explain the failing ones of the tensors that are judged, the likeliest first."""
    wrong = [judged[name] for name in failing]
    found = _together(cause._replace(tensors=(tensor.name,)) for tensor in wrong for cause in _read(asked, tensor))
    upstream = asked.case.grad_output
    telling = not is_one_number(upstream) or abs(float(upstream)) not in (0.5, 1.0, 2.0)
    whole = {cause.mistake for cause in found if len(cause.tensors) == len(failing) and cause.factors is None}
    plain = telling and whole and whole <= set(PLAIN)
    if not plain and sum(value.size for value in asked.case.inputs.values()) < LARGEST:
        found += [cause for cause in _guessed(asked, judged, failing) if cause is not None]
    loss_is_right = "loss" in judged and "loss" not in failing
    best: dict[str, Cause] = {}
    for cause in found:
        of_all = loss_is_right and cause.mistake == OVER_ALL_ROWS
        named = cause._replace(mistake=OF_ALL_ROWS, prior=COMMON) if of_all else cause
        known = best.get(named.mistake)
        if known is None or _rank(named) > _rank(known):
            best[named.mistake] = named
    ranked = sorted(best.values(), key=_rank, reverse=True)
    return tuple([cause for cause in ranked if len(cause.tensors) == len(failing)] or ranked)


def _rank(cause: Cause) -> tuple[int, float]:
    return len(cause.tensors), cause.prior


def _read(asked: Question, tensor: Tensor) -> Iterator[Cause]:
    yield from read(asked, tensor)
    yield from sums.one_chain(asked, tensor)


def _together(found: Iterator[Cause]) -> list[Cause]:
    """One cause for each mistake, whichever tensors it was read off."""
    united: list[Cause] = []
    for cause in found:
        for i, other in enumerate(united):
            if _is_same(cause, other):
                united[i] = _united(other, cause)
                break
        else:
            united.append(cause)
    return united


def _is_same(one: Cause, other: Cause) -> bool:
    if one.factors is None or other.factors is None:
        return one.mistake == other.mistake and one.factors is other.factors
    return max(one.factors[0], other.factors[0]) <= min(one.factors[1], other.factors[1])


def _united(one: Cause, other: Cause) -> Cause:
    tensors = (*one.tensors, *(name for name in other.tensors if name not in one.tensors))
    factors = one.factors
    if factors is not None and other.factors is not None:
        factors = max(factors[0], other.factors[0]), min(factors[1], other.factors[1])
    return one._replace(tensors=tensors, prior=max(one.prior, other.prior), factors=factors)


def _guessed(asked: Question, judged: Mapping[str, Tensor], failing: tuple[str, ...]) -> Iterator[Cause | None]:
    slack, every = slack_of(asked), rows_of(asked)
    for guess in guesses(asked, every):
        yield _fitting(guess, judged, failing, slack)
    yield from _only_ignored_rows(every, judged, failing)


def slack_of(asked: Question) -> float:
    """How far off an honest computation with a mistake in it may be, relatively, where nothing better is known."""
    return min(256 * roundoff(asked.compute_dtype).between, 2.0**-6)


def _bound(guess: Guess, tensor: Tensor, slack: float) -> np.ndarray:
    values = guess.tensors[tensor.name]
    known = guess.bounds.get(tensor.name)
    if known is not None:
        return np.asarray(known)
    if not tensor.got.ndim:
        value = float(values)
        return np.asarray(float(tensor.bound) + (slack / 8 * abs(value) if math.isfinite(value) else 0.0))
    return 2 * tensor.bound + slack * np.abs(np.where(np.isfinite(values), values, 0.0))


def _fitting(guess: Guess, judged: Mapping[str, Tensor], failing: tuple[str, ...], slack: float) -> Cause | None:
    """What of the failing tensors a guess explains, unless those that pass say that it is not so."""
    guess = _with_limits(guess, judged, failing, slack)
    explained = []
    for name in sorted(failing, key=lambda name: name != "loss"):
        if _explains(guess, judged[name], slack):
            explained.append(name)
        elif name == "loss" and name in guess.tensors:
            return None
    if not explained:
        return None
    against = [
        name
        for name in judged
        if name not in failing and name in guess.tensors and _contradicts(guess, judged[name], slack)
    ]
    if not any(judged[name].is_gradient for name in explained) and any(judged[name].is_gradient for name in against):
        # A gradient that is right beside a loss that is not: it takes two computations.
        against = against * 2
    prior = guess.prior * _IN_PART ** len(against)
    return Cause(guess.mistake, prior, guess.detail, tuple(explained))


def _explains(guess: Guess, tensor: Tensor, slack: float) -> bool:
    seen = None if guess.glance is None or not tensor.got.ndim else guess.glance(tensor.name, tensor.worst)
    if seen is not None and not tensor.worst_may_be(seen, slack):
        return False
    values = guess.tensors.get(tensor.name)
    if values is None or values.shape != tensor.got.shape or not values.size:
        return False
    if not tensor.worst_may_be(float(values.flat[tensor.worst]), slack):
        return False
    bound = _bound(guess, tensor, slack)
    if tensor.fits(values, bound):
        return True
    if tensor.name not in guess.magnitudes:
        return False
    return tensor.fits(values, bound + slack / 8 * guess.magnitudes[tensor.name])


def _with_limits(guess: Guess, judged: Mapping[str, Tensor], failing: tuple[str, ...], slack: float) -> Guess:
    """Bounds of its own cost more than values, and are asked for where it may fit."""
    if guess.limits is None:
        return guess
    for name in failing:
        values, tensor = guess.tensors.get(name), judged[name]
        if values is not None and values.shape == tensor.got.shape:
            loose = 16 * tensor.bound + 4 * tensor.bound.max(initial=0.0) + 8 * slack * np.abs(values)
            if tensor.may_be(values, loose):
                return guess._replace(bounds=guess.limits())
    return guess._replace(tensors={})


def _contradicts(guess: Guess, tensor: Tensor, slack: float) -> bool:
    """Whether it says something else than what came, by more than twice what is allowed."""
    values = guess.tensors[tensor.name]
    if values.shape != tensor.got.shape:
        return False
    if tensor.may_be(values, _bound(guess, tensor, slack)):
        return False
    return not near(tensor.got, values, 2 * tensor.allowed, undefined_alike=True).all()


def rows_of(asked: Question) -> list[View]:
    """The views of a case's rows; none where it has no rows, or is too odd for a view."""
    try:
        return views(asked.case, asked.result)
    except (*EXPECTED_ERRORS, LookupError):
        return []


def guesses(asked: Question, every: list[View], only: set[str] | None = None) -> Iterator[Guess]:
    """Everything that is tried on a case, or the mistakes of some names."""
    yield from _guarded(lambda: _of_rows(every, only))
    yield from _guarded(lambda: _of_elements(asked, only))
    yield from _named(_guarded(lambda: chain_steps.of_chains(asked)), only)
    yield from _named(_guarded(lambda: images.of_dice(asked.case)), only)
    yield from _named(_guarded(lambda: box_steps.of_boxes(asked.case)), only)
    yield from _named(_guarded(lambda: contrastive_steps.of_pairs(asked.case)), only)
    yield from _named(_guarded(lambda: log_prob_steps.of_log_probs(asked)), only)
    yield from _named(_guarded(lambda: topk_steps.of_topk(asked)), only)
    yield from _named(_guarded(lambda: distillation_steps.of_divergences(asked)), only)
    yield from _named(_guarded(lambda: router_steps.of_routers(asked)), only)
    yield from _named(_guarded(lambda: policy_steps.of_policies(asked)), only)
    yield from _named(_guarded(lambda: alignment_steps.of_alignments(asked)), only)
    yield from _named(_guarded(lambda: transducer_steps.of_lattices(asked)), only)
    yield from _named(_guarded(lambda: images.resamplings(asked.case, every)), only)
    yield from _named(_guarded(lambda: blocks.elements_left_out(asked)), only)
    yield from _named(_guarded(lambda: sums.in_16_bits(asked, every, only)), only)
    yield from _guarded(lambda: _of_layers(asked, only))
    yield from _guarded(lambda: others.guesses(asked, only, of_rows=bool(every)))


def _named(found: Iterator[Guess], only: set[str] | None) -> Iterator[Guess]:
    return (guess for guess in found if only is None or guess.mistake in only)


def _guarded(generate: Callable[[], Iterator[Guess]]) -> Iterator[Guess]:
    """What can be tried; a case that is too odd for a simulation has none of it."""
    try:
        yield from generate()
    except (*EXPECTED_ERRORS, LookupError, AssertionError):
        return


def _of_layers(asked: Question, only: set[str] | None) -> Iterator[Guess]:
    """Of a linear layer's sums, and of its outputs, which are rows of logits."""
    layer = linear_steps.layer_of(asked)
    if layer is None:
        return
    yield from _named(linear_steps.in_16_bits(layer), only)
    every = linear_steps.computed_alike(layer, rows_of(layer.asked))
    of_logits = (
        _of_rows(every, only, linear_steps.STEPS),
        _named(_guarded(lambda: chain_steps.of_chains(layer.asked)), only),
        _named(log_prob_steps.of_log_probs(layer.asked), only),
    )
    yield from (linear_steps.back(layer, guess) for guess in itertools.chain(*of_logits))


def _of_rows(every: list[View], only: set[str] | None, beside: Steps | None = None) -> Iterator[Guess]:
    of_softmax = {} if not every or any(view.is_log for view in every) else softmax_steps.STEPS
    if of_softmax:
        others_ = {words: (USUAL, step) for words, step in softmax_steps.along_other_axes(every[0]).items()}
        of_softmax = of_softmax | others_
    for mistake, (prior, step) in (of_softmax | row_labels.STEPS | shard_steps.STEPS | (beside or {})).items():
        if only is not None and mistake not in only:
            continue
        for wrong in _in_views([list(step(view)) for view in every]):
            yield Guess(
                mistake,
                prior,
                combined(every, wrong),
                magnitudes=magnitudes(every, wrong),
                glance=functools.partial(glance, every, wrong),
                is_certain=step not in _OF_SOME_NUMBER,
            )


def _in_views(variants: list[list[Wrong]]) -> Iterator[list[Wrong]]:
    """One variant for each view: what shows in one side of two may not show in the other."""
    for i in range(max((len(each) for each in variants), default=0)):
        yield [each[min(i, len(each) - 1)] if each else Wrong() for each in variants]
    for side, own in enumerate(variants if len(variants) > 1 else []):
        for wrong in own:
            yield [wrong if other == side else Wrong() for other in range(len(variants))]


def _of_elements(asked: Question, only: set[str] | None) -> Iterator[Guess]:
    given = elements_of(asked.case)
    if given is None:
        return
    for mistake, step in element_steps.STEPS.get(given.kind, {}).items():
        if only is None or mistake in only:
            for tensors in step(given):
                limits = {
                    name.removeprefix("bound."): value for name, value in tensors.items() if name.startswith("bound.")
                }
                values = {name: value for name, value in tensors.items() if not name.startswith("bound.")}
                prior = POSSIBLE if step in element_steps.VAGUE else USUAL
                certain = step not in element_steps.OF_SOME_NUMBER
                yield Guess(mistake, prior, values, limits, is_certain=certain)


def _only_ignored_rows(every: list[View], judged: Mapping[str, Tensor], failing: tuple[str, ...]) -> Iterator[Cause]:
    """Whether all that is wrong is wrong where ignored rows are, whatever the class that they are taken to have."""
    found: dict[tuple[str, float], list[str]] = {}
    for view in every:
        if view.tensor in failing and view.has_labels and not view.counted.all():
            for mistake in _leaks(view, judged[view.tensor]):
                found.setdefault(mistake, []).append(view.tensor)
    yield from (Cause(mistake, prior, tensors=tuple(names)) for (mistake, prior), names in found.items())


def _leaks(view: View, tensor: Tensor) -> Iterator[tuple[str, float]]:
    if not view.counted.any():
        if not np.isfinite(tensor.got).all():
            yield "all labels ignored gives a gradient of NaN instead of 0", USUAL
            yield row_labels.LEAK, SELDOM
        return
    touched = view.back(np.broadcast_to(~view.counted[:, None], view.logits.shape).astype(np.float64)) != 0
    ignored = (tensor.expected == 0) & touched
    if not ignored.any() or not tensor.got[ignored].any():
        return
    rest = tensor.part(~ignored)
    if rest.is_right().all():
        yield row_labels.LEAK, COMMON - 0.1
        return
    interval = factors_that_fit(rest)
    if interval is not None and interval.low <= view.normaliser / len(view.counted) <= interval.high:
        yield row_labels.COUNTED, COMMON - 0.1
