"""Every public function, its kinds of inputs, and what a measurement of one of them finds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tests.mpfr import (
    alignments,
    boxes,
    contrastive,
    detection,
    elements,
    flow,
    language,
    linear,
    linear_log_probs,
    log_probs,
    masks,
    multilabel,
    points,
    policies,
    rows,
    scenes,
    transducers,
    triples,
    vectors,
)
from tests.mpfr.rounding import Comparison, Tally, tally

Measure = Callable[[np.random.Generator, int], Iterator[Comparison]]


def _of_samples(
    draw: Callable[[np.random.Generator, int], Iterator[Any]], compare: Callable[[Any], Iterator[Comparison]]
) -> Measure:
    """Compare every call that is drawn."""

    def measure(generator: np.random.Generator, size: int) -> Iterator[Comparison]:
        for sample in draw(generator, size):
            yield from compare(sample)

    return measure


def _element_kinds(*names: str) -> dict[str, Measure]:
    return {
        f"{kind}{name.removeprefix(names[0])}": _of_samples(draw, functools.partial(elements.compare, loss))
        for name in names
        for loss in (elements.LOSSES[name],)
        for kind, draw in elements.Inputs(loss).kinds().items()
    }


def _sequence_kinds() -> dict[str, Measure]:
    """Those of the three problem types."""
    kinds = {
        f"{kind}, {problem}": _of_samples(draw, functools.partial(language.mean_only, loss))
        for problem, loss in language.SEQUENCE_LOSSES.items()
        for kind, draw in elements.Inputs(loss).kinds().items()
    }
    return kinds | {kind: _of_samples(draw, language.one_class_each) for kind, draw in language.draws().items()}


def _box_kinds(function: str) -> dict[str, Measure]:
    return {kind: _of_samples(draw, functools.partial(boxes.compare, function)) for kind, draw in boxes.KINDS.items()}


def _vector_kinds(function: str) -> dict[str, Measure]:
    compare = functools.partial(vectors.compare, function)
    return {kind: _of_samples(draw, compare) for kind, draw in vectors.KINDS[function].items()}


_MARGINS = ("soft_margin", "hinge_embedding")
_ELEMENTS = ("mse", "l1", "smooth_l1", "huber", "bce", "bce_with_logits", *_MARGINS, "sigmoid_focal", "varifocal")
KINDS: Mapping[str, Mapping[str, Measure]] = {
    **{name: _element_kinds(name) for name in _ELEMENTS},
    "kl_div": _element_kinds("kl_div", "kl_div of logs"),
    "sigmoid_contrastive": {
        kind: _of_samples(draw, contrastive.sigmoid_contrastive) for kind, draw in contrastive.KINDS.items()
    },
    "poisson_nll": _element_kinds("poisson_nll", "poisson_nll of rates"),
    **{
        name: {
            kind: _of_samples(draw, functools.partial(triples.compare, loss))
            for kind, draw in triples.Inputs(loss).kinds().items()
        }
        for name, loss in triples.LOSSES.items()
    },
    "info_nce": {kind: _of_samples(draw, contrastive.info_nce) for kind, draw in contrastive.INFO_NCE.items()},
    "linear_cross_entropy": {
        kind: _of_samples(draw, linear.linear_cross_entropy) for kind, draw in linear.KINDS.items()
    },
    "linear_selected_log_probs": {
        kind: _of_samples(draw, linear_log_probs.compare) for kind, draw in linear_log_probs.KINDS.items()
    },
    "multilabel_soft_margin": {
        kind: _of_samples(draw, functools.partial(language.mean_only, multilabel.MULTILABEL))
        for kind, draw in elements.Inputs(multilabel.MULTILABEL).kinds().items()
    },
    **{
        name: {kind: _of_samples(draw, functools.partial(policies.compare, name)) for kind, draw in kinds.items()}
        for name, kinds in (("value_loss", policies.VALUES), ("policy_loss", policies.POLICIES))
    },
    "cross_entropy": {kind: _of_samples(draw, rows.cross_entropy) for kind, draw in rows.KINDS.items()},
    "selected_log_probs": {kind: _of_samples(draw, log_probs.compare) for kind, draw in log_probs.KINDS.items()},
    "nll": {kind: _of_samples(draw, rows.nll) for kind, draw in rows.LABELS.items()},
    **{
        name: {kind: _of_samples(draw, call) for kind, draw in language.draws().items()}
        for name, call in language.HEADS.items()
    },
    "sequence_classification": _sequence_kinds(),
    "ctc": {kind: _of_samples(draw, alignments.ctc) for kind, draw in alignments.LOG_PROBABILITIES.items()},
    "ctc_of_logits": {kind: _of_samples(draw, alignments.ctc_of_logits) for kind, draw in alignments.LOGITS.items()},
    **{function: _vector_kinds(function) for function in vectors.KINDS},
    "iou": _box_kinds("iou"),
    "giou": _box_kinds("giou"),
    "dice": {kind: _of_samples(draw, masks.dice) for kind, draw in masks.DICE.items()},
    **{
        head: {kind: _of_samples(draw, detection.compare) for kind, draw in scenes.Scenes(head).kinds().items()}
        for head in scenes.HEADS
    },
    "pocket_tts": {kind: _of_samples(draw, flow.compare) for kind, draw in flow.KINDS.items()},
    "mask2former": {kind: _of_samples(draw, points.compare) for kind, draw in points.KINDS.items()},
    "rnnt": {kind: _of_samples(draw, transducers.compare) for kind, draw in transducers.RNNT.items()},
    "tdt": {kind: _of_samples(draw, transducers.compare) for kind, draw in transducers.TDT.items()},
    "semantic_segmentation": {
        kind: _of_samples(draw, masks.semantic_segmentation) for kind, draw in masks.IMAGES.items()
    },
}
"""By function and kind of inputs what compares about as many elements as are asked for."""


def measured(function: str, kind: str, elements: int, seed: int) -> list[Tally]:
    """What a kind of inputs shows, by gradient and format."""
    # Every kind has numbers of its own, whichever are run beside it.
    generator = np.random.default_rng([seed, *f"{function} {kind}".encode()])
    found: dict[tuple[str, str], Tally] = {}
    for comparison in KINDS[function][kind](generator, elements):
        new = tally(function, kind, comparison)
        key = new.name, new.format
        found[key] = merged(found[key], new) if key in found else new
    return list(found.values())


def merged(first: Tally, second: Tally) -> Tally:
    """Two tallies as one; the worst element of both."""
    worst = max(first, second, key=lambda each: (each.worst, each.wrong > 0))
    return worst._replace(size=first.size + second.size, wrong=first.wrong + second.wrong)
