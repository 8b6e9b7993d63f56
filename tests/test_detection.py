"""The heads that match: values and gradients against mpmath, matching against brute force, options, edges, errors."""

import copy
import itertools
from types import SimpleNamespace

import ml_dtypes
import mpmath
import numpy as np
import pytest

import refloss
from refloss.cases.scenes import CONFIG
from tests import detection_truth as truth
from tests.test_same_bits import bits
from tests.truth import correctly_rounded, ulp_errors

IMAGES, QUERIES, LAYERS = 2, 4, 3
MASKED = ("segmentation", "deformable_detr_segmentation")
SOFTMAX = ("object_detection", "segmentation")
PLAIN = (*SOFTMAX, "deformable_detr_object_detection", "deformable_detr_segmentation")
HEADS = (*PLAIN, "grounding_dino_object_detection")
COUNTS = (2, 1)


def scene(head, seed=0, counts=COUNTS, dtype=np.float32, layers=True, **config):
    """A call's arguments."""
    generator = np.random.default_rng(seed)
    images, labels_of = len(counts), 8 if head.startswith("grounding") else CONFIG["num_labels"]
    classes = labels_of + (head in SOFTMAX)

    def boxes(*shape):
        return np.concatenate([generator.random((*shape, 2)), generator.random((*shape, 2)) * 0.5 + 0.05], axis=-1)

    logits = generator.standard_normal((LAYERS, images, QUERIES, classes)) * 2
    predicted = boxes(LAYERS, images, QUERIES)
    labels = [
        {"class_labels": generator.integers(CONFIG["num_labels"], size=n), "boxes": boxes(n).astype(dtype)}
        for n in counts
    ]
    arguments = {
        "logits": logits[-1].astype(dtype),
        "labels": labels,
        "pred_boxes": predicted[-1].astype(dtype),
        "config": CONFIG | {"auxiliary_loss": layers} | config,
    }
    if layers:
        arguments |= {"outputs_class": logits.astype(dtype), "outputs_coord": predicted.astype(dtype)}
    if head in MASKED:
        arguments["pred_masks"] = (generator.standard_normal((images, QUERIES, 2, 3)) * 3).astype(dtype)
        for i, own in enumerate(labels):
            own["masks"] = generator.random((len(own["class_labels"]), 4 + i, 5 - i)) < 0.4
    if head.startswith("grounding"):
        maps = (generator.random((images, CONFIG["num_labels"], classes)) < 0.4).astype(np.float32)
        maps[..., 0] = 1
        arguments |= {"label_maps": list(maps), "text_mask": np.arange(classes) < classes - 1}
    return arguments


def call(head, arguments, **options):
    return getattr(refloss, head)(**arguments, **options)


def definition(head, arguments, assignments):
    """The total of a head with its layers' matchings given, of the arrays by name."""
    config, labels = arguments["config"], arguments["labels"]
    num_boxes = max(1, sum(len(own["boxes"]) for own in labels))
    count = sum(name.startswith("assignment") for name in assignments)

    def layer(logits, boxes, table):
        classes = np.full(logits.shape[:2], config["num_labels"])
        total = mpmath.mpf(0)
        for image, query, chosen in table:
            classes[image, query] = labels[image]["class_labels"][chosen]
            target = truth.exact(labels[image]["boxes"][chosen])
            box = boxes[image, query]
            giou = truth.overlap(truth.corners(box), truth.corners(target))[1]
            distance = sum(abs(a - b) for a, b in zip(box, target, strict=True))
            total += (
                config["bbox_loss_coefficient"] * distance + config["giou_loss_coefficient"] * (1 - giou)
            ) / num_boxes
        if head in SOFTMAX:
            return total + truth.softmax_classes(logits, classes, config["eos_coefficient"])
        return total + truth.focal_classes(logits, classes, config["focal_alpha"], num_boxes)

    def masks(planes, table):
        size = np.max([own["masks"].shape[1:] for own in labels], axis=0)
        total = mpmath.mpf(0)
        for image, query, chosen in table:
            mask = labels[image]["masks"][chosen]
            target = np.zeros(size)
            target[: mask.shape[0], : mask.shape[1]] = mask
            x, t = truth.upsampled(planes[image, query], tuple(size)), truth.exact(target)
            focal = sum(truth.focal(a, b) for a, b in zip(x.ravel(), t.ravel(), strict=True)) / t.size
            total += config["mask_loss_coefficient"] * focal + config["dice_loss_coefficient"] * truth.dice(x, t)
        return total / num_boxes

    def loss(arrays):
        total = layer(arrays["logits"], arrays["pred_boxes"], assignments["assignment"])
        for i in range(count - 1):
            total += layer(arrays["outputs_class"][i], arrays["outputs_coord"][i], assignments[f"assignment_{i}"])
        if head in MASKED:
            total += masks(arrays["pred_masks"], assignments["assignment"])
        return total

    return loss


@pytest.mark.parametrize("head", PLAIN)
def test_gradients_are_correctly_rounded(head):
    arguments = scene(head)
    result = call(head, arguments)
    arrays = {name: arguments[name] for name in result.grads}
    loss = definition(head, arguments, result.intermediates)
    assert ulp_errors(result.loss, truth.value(loss, arrays), "float64") <= 2
    for name in ("pred_masks",) if head in MASKED else ("logits", "pred_boxes", "outputs_coord"):
        errors = ulp_errors(result.grads[name], truth.derivative(loss, arrays, name), "float32")
        assert np.mean(correctly_rounded(errors)) >= 0.99999
        assert errors.max() <= 0.501
    for name in ("outputs_class", "outputs_coord"):
        assert not result.grads[name][-1].any()


def class_costs(head, arguments):
    """[B, Q, K] in float64, as transformers states them."""
    x = arguments["logits"].astype(np.float64)
    if head in (*SOFTMAX, "deformable_detr_segmentation"):
        p = np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
        return -p
    p = 1 / (1 + np.exp(-x))
    positive, negative = 0.25 * (1 - p) ** 2 * -np.log(p + 1e-8), 0.75 * p**2 * -np.log(1 - p + 1e-8)
    if head.startswith("grounding"):
        maps = np.stack(arguments["label_maps"]).astype(np.float64)
        return np.einsum("bqt,bkt->bqk", positive - negative, maps / maps.sum(axis=-1, keepdims=True))
    return positive - negative


@pytest.mark.parametrize("head", HEADS)
def test_costs_are_their_definition(head):
    arguments = scene(head, layers=False)
    costs = call(head, arguments).intermediates["cost_matrix"]
    config, column = arguments["config"], 0
    of_class = class_costs(head, arguments)
    for image, own in enumerate(arguments["labels"]):
        for label, target in zip(own["class_labels"], own["boxes"].astype(float), strict=True):
            for query, box in enumerate(arguments["pred_boxes"][image].astype(float)):
                giou = truth.overlap(truth.corners(box), truth.corners(target))[1]
                expected = config["class_cost"] * of_class[image, query, label]
                expected += config["bbox_cost"] * np.abs(box - target).sum() - config["giou_cost"] * giou
                assert costs[query, column] == pytest.approx(expected, rel=1e-13)
            column += 1


def best_and_next(costs):
    """The two least totals of all assignments of an image, by trying all of them."""
    queries, objects = costs.shape
    if objects <= queries:
        ways = [sum(costs[q, n] for n, q in enumerate(way)) for way in itertools.permutations(range(queries), objects)]
    else:
        ways = [sum(costs[q, n] for q, n in enumerate(way)) for way in itertools.permutations(range(objects), queries)]
    ways = sorted(ways)
    return ways[0], ways[1] if len(ways) > 1 else np.inf


@pytest.mark.parametrize("counts", [(3, 0, 1), (5, 6), (4, 4)], ids=str)
def test_matching_is_the_best_of_all(counts):
    arguments = scene("object_detection", counts=counts, layers=False)
    values = call("object_detection", arguments).intermediates
    offsets = np.cumsum([0, *counts])
    for image, count in enumerate(counts):
        own = values["cost_matrix"][:, offsets[image] : offsets[image + 1]]
        table = values["assignment"][values["assignment"][:, 0] == image]
        assert len(table) == min(count, QUERIES)
        best, second = best_and_next(own)
        assert own[table[:, 1], table[:, 2]].sum() == pytest.approx(best, abs=1e-12)
        assert values["margin"][image] == pytest.approx(second - best, abs=1e-12)


def test_a_caller_may_match_as_it_likes():
    arguments = scene("object_detection")
    own = call("object_detection", arguments)
    again = call("object_detection", arguments, assignment=own.intermediates)
    assert again.loss == own.loss
    assert all(again.grads[name].tobytes() == gradient.tobytes() for name, gradient in own.grads.items())
    assert "cost_matrix" not in again.intermediates or again.intermediates["cost_matrix"].shape == (QUERIES, 3)
    worse = [(np.array([3, 1]), np.array([0, 1])), (np.array([2]), np.array([0]))]
    result = call("object_detection", arguments, assignment=[worse, None, None])
    np.testing.assert_array_equal(result.intermediates["assignment"], [[0, 3, 0], [0, 1, 1], [1, 2, 0]])
    np.testing.assert_array_equal(result.intermediates["assignment_0"], own.intermediates["assignment_0"])
    costs = own.intermediates["cost_matrix"]
    gap = best_and_next(costs[:, :2])[0] - (costs[3, 0] + costs[1, 1])
    if gap < 0:
        assert result.intermediates["margin"][0] == pytest.approx(gap)
    assert result.components["loss_ce_0"] == own.components["loss_ce_0"]


@pytest.mark.parametrize("head", HEADS)
def test_components_have_gradients_of_their_own(head):
    arguments = scene(head)
    total = call(head, arguments, grad_output=-1.5, grad_dtype=np.float64)
    weights = {"loss_bbox": 5.0, "loss_giou": 2.0, "loss_ce": 2.0 if head.startswith("grounding") else 1.0}
    weights |= {"loss_mask": 1.0, "loss_dice": 1.5}
    cotangents = {
        name: -1.5 * weights.get(name.removesuffix("_0").removesuffix("_1"), 0.0) for name in total.components
    }
    parts = call(head, arguments, grad_output=cotangents, grad_dtype=np.float64)
    assert parts.loss == total.loss
    for name, gradient in total.grads.items():
        np.testing.assert_array_equal(parts.grads[name], gradient)
    only = call(head, arguments, grad_output={"loss_giou_0": 1.0})
    assert {name for name, gradient in only.grads.items() if gradient.any()} == {"outputs_coord"}
    assert not only.grads["outputs_coord"][1:].any()
    assert not any(gradient.any() for gradient in call(head, arguments, grad_output={}).grads.values())
    weighted = sum(weights.get(name.rstrip("_01"), 0.0) * value for name, value in total.components.items())
    assert total.loss == pytest.approx(weighted, rel=1e-14)


@pytest.mark.parametrize("head", HEADS)
def test_inputs_without_effect_have_gradients_of_zero(head):
    arguments = scene(head)
    arguments["config"] = arguments["config"] | {"auxiliary_loss": False}
    before = copy.deepcopy(arguments)
    result = call(head, arguments)
    for name in ("outputs_class", "outputs_coord"):
        assert result.grads[name].shape == arguments[name].shape
        assert not result.grads[name].any()
    assert set(result.components) == set(call(head, scene(head, layers=False)).components)
    np.testing.assert_equal(arguments, before)
    assert call(head, arguments, grad=False).grads == {}


@pytest.mark.parametrize("head", HEADS)
def test_layers_beyond_the_decoders_are_not_in_the_total(head):
    arguments = scene(head, decoder_layers=2)
    result = call(head, arguments)
    assert {"loss_ce_0", "loss_ce_1"} <= set(result.components)
    assert result.grads["outputs_coord"][0].any()
    assert not result.grads["outputs_coord"][1].any()


@pytest.mark.parametrize("head", HEADS)
def test_the_same_bits_whatever_the_threads_the_layout_and_the_kind_of_configuration(head):
    arguments = scene(head, counts=(2, 1, 0), seed=4)
    expected = bits(call(head, arguments))
    before = refloss.get_num_threads()
    try:
        for threads in (1, 2, 3):
            refloss.set_num_threads(threads)
            assert bits(call(head, arguments)) == expected
    finally:
        refloss.set_num_threads(before)
    turned = {
        name: np.asfortranarray(value) if isinstance(value, np.ndarray) and value.dtype == np.float32 else value
        for name, value in arguments.items()
    }
    turned["logits"].flags.writeable = False
    turned["config"] = SimpleNamespace(**arguments["config"])
    assert bits(call(head, turned)) == expected


@pytest.mark.parametrize("head", PLAIN)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_small_formats_are_rounded_once(head, dtype):
    arguments = scene(head, dtype=dtype)
    wide = {
        name: value.astype(np.float64) if isinstance(value, np.ndarray) else value for name, value in arguments.items()
    }
    wide["labels"] = [own | {"boxes": own["boxes"].astype(np.float64)} for own in arguments["labels"]]
    small, expected = call(head, arguments), call(head, wide)
    assert small.loss == expected.loss
    for name, gradient in small.grads.items():
        assert gradient.dtype == dtype
        assert gradient.tobytes() == expected.grads[name].astype(dtype).tobytes()


@pytest.mark.parametrize("head", HEADS)
def test_no_objects(head):
    result = call(head, scene(head, counts=(0, 0)))
    assert result.components["loss_bbox"] == result.components["loss_giou"] == 0.0
    assert result.components["cardinality_error"] >= 0.0
    assert result.intermediates["num_boxes"] == 1.0
    assert not result.grads["pred_boxes"].any()
    assert np.isfinite(result.loss)


def test_images_may_come_in_any_order():
    arguments = scene("segmentation", counts=(2, 1, 0), layers=False)
    arguments["labels"][2]["masks"] = np.zeros((0, 4, 5), bool)
    order = [2, 0, 1]
    turned = {name: value[order] if isinstance(value, np.ndarray) else value for name, value in arguments.items()} | {
        "labels": [arguments["labels"][i] for i in order]
    }
    first, second = call("segmentation", arguments), call("segmentation", turned)
    assert first.loss == second.loss
    for name, gradient in first.grads.items():
        assert second.grads[name].tobytes() == gradient[order].tobytes()


def test_num_boxes_divides_and_is_at_least_one():
    arguments = scene("deformable_detr_object_detection", layers=False)
    three, six = (call("deformable_detr_object_detection", arguments, num_boxes=n) for n in (None, 6))
    assert three.intermediates["num_boxes"] == 3.0
    assert six.loss == pytest.approx(three.loss / 2, rel=1e-15)
    small, one = (call("deformable_detr_object_detection", arguments, num_boxes=n) for n in (0.2, 1.0))
    assert bits(small) == bits(one)
    with pytest.raises(ValueError, match="num_boxes is nan; expected a finite number"):
        call("deformable_detr_object_detection", arguments, num_boxes=np.nan)


def test_costs_that_are_not_finite_are_chosen_last():
    arguments = scene("object_detection", counts=(2,), layers=False)
    arguments["logits"][0, :2] = np.nan
    values = call("object_detection", arguments).intermediates
    assert (values["cost_matrix"][:2] == np.finfo(np.float32).max).all()
    assert set(values["assignment"][:, 1]) == {2, 3}
    arguments["logits"][:] = np.nan
    assert len(call("object_detection", arguments).intermediates["assignment"]) == 2


def test_the_offset_of_label_maps_is_transformers_own():
    head = "grounding_dino_object_detection"
    arguments = scene(head, counts=(1, 1, 1), layers=False)
    table = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0]])
    found = call(head, arguments, assignment=[table]).components["loss_ce"]
    joined = np.concatenate(arguments["label_maps"])
    target = np.zeros(arguments["logits"].shape, np.float32)
    for image, offset in enumerate((0, 5, 5)):
        target[image, 0] = joined[offset + arguments["labels"][image]["class_labels"][0]]
    kept = arguments["text_mask"]
    expected = refloss.sigmoid_focal(arguments["logits"][..., kept], target[..., kept], 3.0, reduction="sum").loss
    assert found == pytest.approx(expected, rel=1e-15)


def changed(name, value):
    """Put another value into a call's arguments, at a path."""

    def change(arguments):
        *folders, last = name
        place = arguments
        for folder in folders:
            place = place[folder]
        if value is None:
            del place[last]
        else:
            place[last] = value

    return change


ERRORS = [
    (changed(["labels", 1, "class_labels"], np.array([9])), 'labels[1]["class_labels"][0] = 9 is outside [0, 5)'),
    (changed(["labels", 0, "class_labels"], np.array([0, -1])), 'labels[0]["class_labels"][1] = -1 is outside [0, 5)'),
    (changed(["labels", 0, "boxes"], np.ones((2, 5))), 'labels[0]["boxes"] has shape (2, 5); expected (2, 4)'),
    (changed(["labels", 1, "boxes"], np.ones((2, 4))), 'labels[1]["boxes"] has shape (2, 4); expected (1, 4)'),
    (
        changed(["labels", 1, "boxes"], np.array([[0.5, 0.5, -0.1, 0.2]])),
        'labels[1]["boxes"][0] = [0.5, 0.5, -0.1, 0.2]',
    ),
    (changed(["labels", 0, "boxes"], None), "labels[0] has no 'boxes'"),
    (changed(["labels", 0, "class_labels"], None), "labels[0] has no 'class_labels'"),
    (changed(["labels", 1, "masks"], None), "labels[1] has no 'masks'"),
    (changed(["labels", 0, "masks"], np.ones((4, 5))), 'labels[0]["masks"] has shape (4, 5); expected (2, H, W)'),
    (changed(["labels", 0, "masks"], np.ones((1, 4, 5))), 'labels[0]["masks"] has shape (1, 4, 5); expected (2, H, W)'),
    (changed(["labels", 0, "masks"], np.full((2, 4, 5), 255)), 'labels[0]["masks"][0, 0, 0] = 255 is outside [0, 1]'),
    (changed(["labels"], [{}]), "labels has 1 entries; expected one for each of 2 images"),
    (changed(["pred_boxes"], np.ones((2, 3, 4))), "pred_boxes has shape (2, 3, 4); expected [2, 4, 4]"),
    (changed(["pred_boxes"], np.full((2, 4, 4), np.nan)), "pred_boxes[0, 0] = [nan, nan, nan, nan] is no box"),
    (changed(["pred_masks"], np.ones((2, 4, 5))), "pred_masks has shape (2, 4, 5); expected [2, 4, h, w]"),
    (changed(["logits"], np.ones((2, 4, 5))), "logits has shape (2, 4, 5); expected [B, Q, 6]"),
    (changed(["outputs_class"], np.ones((3, 2, 5, 6))), "outputs_class has shape (3, 2, 5, 6); expected [L, 2, 4, 6]"),
    (changed(["outputs_coord"], np.ones((2, 2, 4, 4))), "outputs_coord has shape (2, 2, 4, 4); expected [3, 2, 4, 4]"),
    (
        changed(["outputs_class"], None),
        "outputs_class is None; expected an array, because config.auxiliary_loss is set",
    ),
    (changed(["config", "giou_cost"], None), "config has no 'giou_cost', which this loss reads"),
    (changed(["config", "decoder_layers"], None), "config has no 'decoder_layers', which this loss reads"),
    (changed(["grad_output"], {"loss_x": 1.0}), "grad_output has 'loss_x'; expected components: loss_ce, loss_bbox"),
    (
        changed(["assignment"], [[]]),
        "assignment has 1 entries; expected one for each layer: 'assignment', 'assignment_0'",
    ),
    (changed(["assignment"], {"assignment": np.array([[0, 4, 0]])}), "assignment: query 4 of pair 0 is outside [0, 4)"),
    (
        changed(["assignment"], {"assignment": np.array([[1, 0, 1]])}),
        "assignment: object 1 of pair 0 is outside [0, 1)",
    ),
    (changed(["assignment"], {"assignment": np.array([[0, 1, 0], [0, 1, 1]])}), "assignment: a query is matched twice"),
    (changed(["assignment"], {"assignment_0": np.array([0, 1])}), "assignment_0 has shape (2,); expected [M, 3]"),
]


@pytest.mark.parametrize(("change", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_errors(change, message):
    arguments = scene("segmentation")
    change(arguments)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call("segmentation", arguments)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (changed(["labels"], {}), TypeError, "labels is a dict; expected a list with a mapping for each image"),
        (changed(["labels", 0, "class_labels"], np.ones(2)), TypeError, 'labels[0]["class_labels"] has dtype float64'),
        (
            changed(["text_mask"], np.ones(7, bool)),
            ValueError,
            "text_mask has shape (7,); expected one that broadcasts",
        ),
        (changed(["label_maps"], []), ValueError, "label_maps has 0 entries; expected one for each of 2 images"),
        (changed(["label_maps", 1], np.ones((5, 7))), ValueError, "label_maps[1] has shape (5, 7); expected [K, 8]"),
        (changed(["label_maps", 1], np.full((5, 8), 2)), ValueError, "label_maps[1] has other numbers than 0 and 1"),
        (changed(["config", "two_stage"], True), ValueError, "encoder_logits is None; expected an array"),
        (
            changed(["config"], CONFIG | {"class_cost": 0, "bbox_cost": 0, "giou_cost": 0, "auxiliary_loss": False}),
            ValueError,
            "config: class_cost, bbox_cost and giou_cost are all 0",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_of_text(change, error, message):
    arguments = scene("grounding_dino_object_detection")
    change(arguments)
    with pytest.raises(error) as caught:
        call("grounding_dino_object_detection", arguments)
    assert str(caught.value).startswith(message)
