"""Match, then terms, layer by layer: the engine of every DETR-like head.

Layers are matched and computed several at a time. A head is a matcher, the terms of its layers, and the weights of
their components in the total. Each term computes components and adds their vector-Jacobian products to the gradients of
a layer's inputs; no two terms write to the same element.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss import arrays, parallel
from refloss.detection import matching as pairing
from refloss.detection.matching import KEY, Matcher, Matching
from refloss.detection.targets import Targets, check_boxes
from refloss.numerics.exact import Exact, exact, product, rounded
from refloss.result import Intermediates, LossResult, MatchedLayer, Pairs

if TYPE_CHECKING:
    from refloss.detection.inputs import Inputs
    from refloss.typing import Assignment, Backend, Cotangents, Scalar

UNION = "_union"


class Tensor(NamedTuple):
    """An input, and where its gradient goes: zeros to begin with, None if it is not wanted."""

    value: np.ndarray
    gradient: np.ndarray | None

    def part(self, index: Any) -> Tensor:
        """A view of both."""
        return Tensor(self.value[index], None if self.gradient is None else self.gradient[index])

    def wanted(self, is_wanted: bool) -> Tensor:
        """The same, without a buffer for the gradient if that is not wanted."""
        return self if is_wanted else Tensor(self.value, None)


class Layer(NamedTuple):
    """The predictions of a decoder layer, and what its components' names end in."""

    suffix: str
    tensors: Mapping[str, Tensor]  # "logits" [B, Q, C], "pred_boxes" [B, Q, 4], and what else its terms need
    names: Mapping[str, str]  # the same by the names that the caller gave them, for errors
    inputs: Mapping[str, str]  # the arguments that they are, or are part of
    index: Any  # which part
    counts: bool = True  # whether it is part of the total
    terms: tuple[Term, ...] = ()  # beside those of every layer
    matching: Matching | None = None  # where nothing is to be matched: denoising queries know their objects
    repeats: int = 1  # how often it shows every object, which num_boxes is multiplied by
    costs: pairing.MoreCosts | None = None  # what a query and an object cost beside their classes and boxes


class Scene(NamedTuple):
    """What the terms of a layer look at."""

    layer: Layer
    targets: Targets
    matching: Matching
    num_boxes: float
    backend: Backend
    background: Background | None
    shared: dict[str, Any]  # what a term leaves for those that come after it

    @property
    def queries(self) -> int:
        """Q."""
        return int(self.layer.tensors["logits"].value.shape[1])

    @property
    def rows(self) -> np.ndarray:
        """Of every pair the query among those of all images."""
        return np.asarray(self.matching.image * self.queries + self.matching.query)

    @property
    def objects(self) -> np.ndarray:
        """Of every pair the object among those of all images."""
        return np.asarray(self.targets.offsets[self.matching.image] + self.matching.object)


class Outcome(NamedTuple):
    """Components of a layer by name, and values on the way."""

    components: dict[str, Any]
    intermediates: Intermediates


class Background(NamedTuple):
    """The classes of a layer as if no query saw an object, before it is known which do."""

    losses: np.ndarray  # [B, Q]
    lse: np.ndarray  # [B, Q]
    normaliser: float


class Term(NamedTuple):
    """Components that are computed together; compute gets the cotangent of each.

    A term may do the better part of its work before the matching, which then has the log-sum-exps.
    """

    components: tuple[str, ...]
    compute: Callable[[Scene, Mapping[str, Exact]], Outcome]
    before: Callable[[Layer, int, Mapping[str, Exact], Backend], Background] | None = None
    of_union: bool = False  # whether it takes the union of all layers' matchings, where the head makes one


class Head(NamedTuple):
    """What differs between heads."""

    matcher: Matcher
    terms: tuple[Term, ...]
    weights: Mapping[str, float]
    weighted: bool = False  # whether components are reported times their weights
    union: Callable[[list[Matching], Targets], Matching] | None = None  # of the layers' matchings


class Options(NamedTuple):
    """The keywords that every head takes."""

    grad_output: Cotangents
    assignment: Assignment | None
    num_boxes: Scalar | None
    backend: Backend


def normaliser(num_boxes: Any, targets: Targets, groups: int) -> float:
    """How many objects all groups of queries see, or what the caller has averaged over ranks; at least 1."""
    if num_boxes is None:
        return max(float(groups * len(targets.labels)), 1.0)
    return max(arrays.number(num_boxes, "num_boxes", finite=True, low=0.0), 1.0)


class _Run(NamedTuple):
    """What is the same for every layer."""

    head: Head
    targets: Targets
    cotangents: Mapping[str, Exact]
    num_boxes: float
    given: Mapping[str, Any]  # the caller's matchings
    backend: Backend


class _Prepared(NamedTuple):
    """A layer whose matching is known."""

    scene: Scene
    terms: tuple[tuple[Term, Mapping[str, Exact]], ...]  # with the cotangents of their components
    intermediates: Intermediates


def run(head: Head, layers: list[Layer], targets: Targets, inputs: Inputs, options: Options) -> LossResult:
    """The weighted sum of the components of all layers; gradients go into the layers' tensors, which are of inputs."""
    inputs.check_gradients()
    pairing.check_matcher(head.matcher)
    weights = _weights(head, layers)
    cotangents = _cotangents(options.grad_output, weights, head.weighted)
    suffixes = [layer.suffix for layer in layers if layer.matching is None]
    given = pairing.given_matchings(options.assignment, suffixes, () if head.union is None else (UNION,))
    for layer in layers:
        if "pred_boxes" in layer.tensors:
            check_boxes(layer.tensors["pred_boxes"].value, layer.names["pred_boxes"])
    num_boxes = normaliser(options.num_boxes, targets, head.matcher.groups)
    for layer in layers:
        arrays.number(num_boxes * layer.repeats, f"num_boxes times {layer.repeats} groups", finite=True)
    common = _Run(head, targets, cotangents, num_boxes, given, options.backend)
    prepared = parallel.each(functools.partial(_prepare, common), layers)
    intermediates = Intermediates()
    union = None if head.union is None else _union(common, prepared, intermediates)
    components: dict[str, Any] = {}
    for layer, outcome in zip(layers, parallel.each(functools.partial(_compute, union), prepared), strict=True):
        components.update({name + layer.suffix: value for name, value in outcome.components.items()})
        intermediates.include(outcome.intermediates.renamed(suffix=layer.suffix))
    loss = _total(components, weights)
    if head.weighted:
        components = {name: np.float64(weights[name]) * value for name, value in components.items()}
    return LossResult(
        loss=loss,
        grads=inputs.grads,
        components=components,
        intermediates=intermediates,
        layers=tuple(_record(each, union, weights, is_weighted=head.weighted) for each in prepared),
    )


def _prepare(run: _Run, layer: Layer) -> _Prepared:
    """Match a layer's queries with the objects, after what its terms do before."""
    terms = tuple(
        (term, {name: run.cotangents[name + layer.suffix] for name in term.components})
        for term in (*run.head.terms, *layer.terms)
    )
    queries = layer.tensors["logits"].value.shape[1]
    matching = layer.matching
    if layer.suffix in run.given:
        matching = pairing.read_matching(run.given[layer.suffix], KEY + layer.suffix, queries, run.targets)
    groups = run.head.matcher.groups
    pairs = groups * int(np.minimum(run.targets.counts, queries // groups).sum())
    pairs = pairs if matching is None else len(matching.query)
    background = None
    for term, cotangents in terms:
        if term.before is not None:
            background = term.before(layer, pairs, cotangents, run.backend)
    num_boxes = run.num_boxes * layer.repeats
    intermediates = Intermediates({"num_boxes": np.float64(num_boxes)})
    if layer.matching is None:
        matching = _assign(run, layer, matching, None if background is None else background.lse, intermediates)
    assert matching is not None
    intermediates[KEY] = matching.table()
    scene = Scene(layer, run.targets, matching, num_boxes, run.backend, background, {})
    return _Prepared(scene, terms, intermediates)


def _assign(
    run: _Run, layer: Layer, matching: Matching | None, lse: np.ndarray | None, intermediates: Intermediates
) -> Matching:
    """The matching of least cost unless there is one already, and how it came about."""
    logits, boxes = layer.tensors["logits"].value, layer.tensors.get("pred_boxes")
    predicted = None if boxes is None else boxes.value
    matcher, more = run.head.matcher, layer.costs
    cost = functools.partial(pairing.costs, matcher, logits, predicted, run.targets, lse, run.backend, more)
    groups = run.head.matcher.groups
    if matching is None:
        intermediates["cost_matrix"] = cost()
        matching = pairing.match(intermediates["cost_matrix"], run.targets, groups)
    else:
        intermediates.later["cost_matrix"] = cost
    chosen = matching
    intermediates.later["margin"] = lambda: pairing.margins(intermediates["cost_matrix"], chosen, run.targets, groups)
    return matching


def _union(run: _Run, prepared: list[_Prepared], intermediates: Intermediates) -> Matching:
    """The union of the matchings of all layers that were matched, or the caller's."""
    assert run.head.union is not None
    name = KEY + UNION
    scenes = [each.scene for each in prepared if each.scene.layer.matching is None]
    if UNION in run.given:
        union = pairing.read_matching(run.given[UNION], name, min(scene.queries for scene in scenes), run.targets)
    else:
        union = run.head.union([scene.matching for scene in scenes], run.targets)
    pairing.check_queries(union, name, min(scene.queries for scene in scenes))
    intermediates.update({name: union.table(), "num_boxes" + UNION: np.float64(max(len(union.query), 1))})
    return union


def _of_union(scene: Scene, union: Matching | None) -> Scene:
    """The scene for terms that go by the union of the layers' matchings, where there is one."""
    if union is None or scene.layer.matching is not None:
        return scene
    return scene._replace(matching=union, num_boxes=float(max(len(union.query), 1)), shared={})


def _compute(union: Matching | None, prepared: _Prepared) -> Outcome:
    """The terms of a layer."""
    scene, of_union = prepared.scene, _of_union(prepared.scene, union)
    components: dict[str, Any] = {}
    for term, cotangents in prepared.terms:
        outcome = term.compute(of_union if term.of_union else scene, cotangents)
        components.update(outcome.components)
        prepared.intermediates.update(outcome.intermediates)
    return Outcome(components, prepared.intermediates)


def _record(
    prepared: _Prepared, union: Matching | None, weights: dict[str, float], *, is_weighted: bool
) -> MatchedLayer:
    """What is left with the result of a layer."""
    scene, layer = prepared.scene, prepared.scene.layer
    of_union = _of_union(scene, union)
    names = [name for term, _ in prepared.terms for name in term.components]
    return MatchedLayer(
        suffix=layer.suffix,
        inputs=layer.inputs,
        index=layer.index,
        weights={name: weights[name + layer.suffix] for name in names},
        is_weighted=is_weighted,
        pairs=Pairs(scene.matching.table(), scene.num_boxes),
        of_boxes=Pairs(of_union.matching.table(), of_union.num_boxes),
    )


def _weights(head: Head, layers: list[Layer]) -> dict[str, float]:
    """The weight of every component in the total, 0 for those that are not part of it."""
    return {
        name + layer.suffix: head.weights.get(name, 0.0) if layer.counts else 0.0
        for layer in layers
        for term in (*head.terms, *layer.terms)
        for name in term.components
    }


def _cotangents(grad_output: Any, weights: dict[str, float], weighted: bool) -> dict[str, Exact]:
    """The cotangent of every component before it is weighted: of the total, or the caller's own."""
    if not isinstance(grad_output, Mapping):
        total = arrays.number(grad_output, "grad_output")
        return {name: product(exact(total), exact(weight)) for name, weight in weights.items()}
    unknown = [name for name in grad_output if name not in weights]
    if unknown:
        raise ValueError(f"grad_output has {unknown[0]!r}; expected components: {', '.join(weights)}")
    return {
        name: product(
            exact(arrays.number(grad_output.get(name, 0.0), f"grad_output[{name!r}]")),
            exact(weight if weighted else 1.0),
        )
        for name, weight in weights.items()
    }


def _total(components: dict[str, Any], weights: dict[str, float]) -> np.float64:
    """Σ weight·component, rounded once."""
    parts = [(weight, float(components[name])) for name, weight in weights.items() if weight != 0.0]
    if not all(map(math.isfinite, itertools.chain.from_iterable(parts))):
        with np.errstate(invalid="ignore"):
            return np.float64(sum(np.float64(weight) * value for weight, value in parts))
    return np.float64(rounded(sum((Fraction(weight) * Fraction(value) for weight, value in parts), Fraction(0))))
