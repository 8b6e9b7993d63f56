"""RT-DETR, D-FINE, DEIMv2 and LW-DETR: against mpmath, brute force and their own symmetries; edges and errors."""

import copy
import itertools

import ml_dtypes
import mpmath
import numpy as np
import pytest

import refloss
from refloss.detection.matching import Matching
from refloss.files import nested
from refloss.golden.corpus import cases_of
from refloss.heads.deimv2_object_detection import _union
from tests import detection_truth as truth
from tests import layered_truth as layered
from tests.test_detection import best_and_next, changed
from tests.test_same_bits import bits
from tests.truth import correctly_rounded, pairs, ulp_errors

LOCAL = ("d_fine_object_detection", "deimv2_object_detection")
FOLLOWERS = ("rt_detr_object_detection", *LOCAL)
HEADS = (*FOLLOWERS, "lw_detr_object_detection")
CLASSES = {"rt_detr": "loss_vfl", "d_fine": "loss_vfl", "deimv2": "loss_mal", "lw_detr": "loss_ce"}
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def scene(head, name="float32", **config):
    """The arguments of a golden case."""
    case = next(case for case in cases_of(head) if case.id == f"{head}-{name}")
    arguments = copy.deepcopy(nested(case.inputs))
    return arguments | copy.deepcopy(dict(case.parameters)) | {"config": case.parameters["config"] | config}


def call(head, arguments, **options):
    return getattr(refloss, head)(**arguments, **options)


def layers(result):
    """Of every layer its suffix, its classes and boxes by name, and the index of its part of them."""
    for layer in result.layers:
        yield layer.suffix, layer.inputs["logits"], layer.inputs["pred_boxes"], layer.index


def overlap_of(head, box, target):
    box = truth.exact(box)
    if head in LOCAL:
        box = np.array([min(max(x, mpmath.mpf(0)), mpmath.mpf(1)) for x in box], dtype=object)
    return truth.overlap(truth.corners(box), truth.corners(truth.exact(target)))


def of_classes(head, arguments):
    """The loss of a class as a function of its logit, its weights held."""
    config = arguments["config"]
    if head.startswith("lw"):
        return lambda x, meant, iou: layered.iou_aware(x, meant, iou, config["focal_alpha"])
    kind, alpha = layered.varifocal, config["focal_loss_alpha"]
    if head.startswith("deim"):
        kind, alpha = layered.matching_aware, config["mal_alpha"]
    return lambda x, meant, iou: kind(x, meant, iou, alpha, config["focal_loss_gamma"])


def weight_of(head, arguments, component):
    if head.startswith("lw"):
        return arguments["config"]["class_loss_coefficient"]
    return arguments["config"][f"weight_{component}"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head", HEADS)
def test_gradients_of_classes_are_correctly_rounded(head, dtype):
    arguments = scene(head, dtype if dtype == "float32" else "other-focus")
    for name, value in arguments.items():
        if isinstance(value, np.ndarray) and value.dtype == np.float32:
            arguments[name] = value.astype(DTYPES[dtype])
    confident = arguments["logits"]
    confident[0, -1, :3] = [60, -60, 0]
    check_classes(head, arguments, dtype)


def check_classes(head, arguments, dtype):
    component = CLASSES[head.removesuffix("_object_detection")]
    result = call(head, arguments, grad_output=-1.5)
    loss_of, weight = of_classes(head, arguments), weight_of(head, arguments, component)
    total = mpmath.mpf(0)
    for suffix, classes, boxes, index in layers(result):
        logits, predicted = arguments[classes][index], arguments[boxes][index]
        num_boxes = mpmath.mpf(float(result.intermediates[f"num_boxes{suffix}"]))
        meant = {(i, q): n for i, q, n in result.intermediates[f"assignment{suffix}"].tolist()}
        expected, value = np.empty(logits.shape, dtype=object), mpmath.mpf(0)
        with mpmath.workprec(layered.PRECISION_BITS):
            for i, q, c in np.ndindex(logits.shape):
                own, label = meant.get((i, q)), None
                iou = mpmath.mpf(0)
                if own is not None:
                    target = arguments["labels"][i]
                    label = int(target["class_labels"][own])
                    iou = overlap_of(head, predicted[i, q], target["boxes"][own])[0]
                x = mpmath.mpf(float(logits[i, q, c]))
                loss = loss_of(x, c == label, iou)
                value += loss(x)
                expected[i, q, c] = -1.5 * weight * layered.slope(loss, x) / num_boxes
            reported = value / num_boxes * (1 if head.startswith("lw") else weight)
            assert ulp_errors(result.components[component + suffix], pairs(reported), "float64") <= 3
            total += value / num_boxes * weight
            errors = ulp_errors(result.grads[classes][index], pairs(expected), dtype)
        assert np.mean(correctly_rounded(errors)) >= 0.99999, (suffix, errors.max())
        assert errors.max() <= 0.501


@pytest.mark.parametrize("name", ["float32", "nearly-taught", "wide-bins"])
@pytest.mark.parametrize("head", LOCAL)
def test_gradients_of_edges_are_correctly_rounded(head, name):
    arguments = scene(head, name)
    config, corners = arguments["config"], arguments["predicted_corners"]
    result = call(head, arguments, grad_output=-1.5)
    values = layered.weighting(config["max_num_bins"], config["up"], config["reg_scale"])
    for suffix, classes, boxes, index in layers(result):
        if f"loss_fgl{suffix}" not in result.components:
            continue
        union = "_union" if "num_boxes_union" in result.intermediates and not suffix.startswith("_dn") else suffix
        num_boxes = float(result.intermediates[f"num_boxes{union}"])
        meant = {(i, q): n for i, q, n in result.intermediates[f"assignment{union}"].tolist()}
        images, queries = corners[index].shape[:2]
        rows = corners[index].reshape(images, queries, 4, -1)
        last = (slice(None), -1, index[2])
        taught = corners[last].reshape(rows.shape)
        every, matched = images * queries * 4, len(meant) * 4
        with mpmath.workprec(600):
            roots = mpmath.sqrt(mpmath.mpf(matched) / images), mpmath.sqrt(mpmath.mpf(every - matched) / images)
            expected, fine, distilled = np.empty(rows.shape, dtype=object), mpmath.mpf(0), mpmath.mpf(0)
            for i, q in np.ndindex(images, queries):
                own, targets = meant.get((i, q)), None
                share = max(truth.sigmoid(x) for x in truth.exact(arguments[classes][last][i, q]))
                share *= roots[1] / sum(roots) / (every - matched)
                if own is not None:
                    box = arguments["labels"][i]["boxes"][own]
                    iou = overlap_of(head, arguments[boxes][index][i, q], box)[0]
                    share = iou * roots[0] / sum(roots) / matched
                    reference = truth.exact(arguments["initial_reference_points"][index][i, q])
                    distances = layered.edges(reference, truth.corners(truth.exact(box)), config["reg_scale"])
                    targets = [layered.mixture(each, values) for each in distances]
                for edge in range(4):
                    row, teacher = truth.exact(rows[i, q, edge]), truth.exact(taught[i, q, edge])
                    s, t = (
                        [mpmath.exp(x) for x in layered.log_softmax([x / 5 for x in each])] for each in (row, teacher)
                    )
                    slopes = [5 * config["weight_loss_ddf"] * share * (a - b) for a, b in zip(s, t, strict=True)]
                    distilled += share * layered.divergence(row, teacher)
                    if targets is not None:
                        p = [mpmath.exp(x) for x in layered.log_softmax(row)]
                        factor = mpmath.mpf(config["weight_loss_fgl"]) * iou / num_boxes
                        slopes = [
                            slope + factor * (a - b) for slope, a, b in zip(slopes, p, targets[edge], strict=True)
                        ]
                        fine += iou * layered.fine_grained(row, targets[edge])
                    expected[i, q, edge] = [-1.5 * slope for slope in slopes]
            found = result.grads["predicted_corners"][index].reshape(rows.shape)
            errors = ulp_errors(found, pairs(expected), "float32")
            fine *= mpmath.mpf(config["weight_loss_fgl"]) / num_boxes
            distilled *= config["weight_loss_ddf"]
            assert ulp_errors(result.components[f"loss_fgl{suffix}"], pairs(fine), "float64") <= 3
            assert ulp_errors(result.components[f"loss_ddf{suffix}"], pairs(distilled), "float64") <= 3
        assert np.mean(correctly_rounded(errors)) >= 0.99999, (suffix, errors.max())
        assert errors.max() <= 0.501


def test_gradients_of_edges_are_the_slopes_of_their_terms():
    """The gradients above are the terms' derivatives."""
    row, teacher = truth.exact([0.5, -2.0, 1.5, 0.25]), truth.exact([1.0, 0.0, -1.0, 3.0])
    target = [mpmath.mpf(0), mpmath.mpf(0.25), mpmath.mpf(0.75), mpmath.mpf(0)]
    with mpmath.workprec(layered.PRECISION_BITS):
        p = [mpmath.exp(x) for x in layered.log_softmax(row)]
        s, t = ([mpmath.exp(x) for x in layered.log_softmax([x / 5 for x in each])] for each in (row, teacher))

        def moved(j, x):
            return [x if k == j else each for k, each in enumerate(row)]

        for j in range(4):
            of_fine = layered.slope(lambda x, j=j: layered.fine_grained(moved(j, x), target), row[j])
            of_divergence = layered.slope(lambda x, j=j: layered.divergence(moved(j, x), teacher), row[j])
            assert abs(of_fine - (p[j] - target[j])) < 1e-100
            assert abs(of_divergence - 5 * (s[j] - t[j])) < 1e-100


@pytest.mark.parametrize("head", LOCAL)
def test_boxes_have_no_gradient_outside(head):
    arguments = scene(head, "outside")
    arguments["enc_topk_bboxes"][..., 0] += 0.6
    result = call(head, arguments, grad_dtype=np.float64)
    inside = dict(arguments)
    names = ("pred_boxes", "outputs_coord", "enc_topk_bboxes")
    for name in names:
        inside[name] = np.clip(arguments[name], 0, 1)
    expected = call(head, inside, grad_dtype=np.float64)
    assert result.loss == expected.loss
    for name in names:
        outside = (arguments[name] < 0) | (arguments[name] > 1)
        assert outside.any()
        assert expected.grads[name][outside].any()
        np.testing.assert_array_equal(result.grads[name], np.where(outside, 0, expected.grads[name]))


@pytest.mark.parametrize("head", HEADS)
def test_the_same_bits_whatever_the_threads_and_the_layout(head):
    arguments = scene(head)
    expected = bits(call(head, arguments))
    before = refloss.get_num_threads()
    try:
        for threads in (1, 3):
            refloss.set_num_threads(threads)
            assert bits(call(head, arguments)) == expected
    finally:
        refloss.set_num_threads(before)
    turned = {
        name: np.asfortranarray(value) if isinstance(value, np.ndarray) else value for name, value in arguments.items()
    }
    turned["logits"].flags.writeable = False
    assert bits(call(head, turned)) == expected


@pytest.mark.parametrize("head", HEADS)
def test_components_have_gradients_of_their_own(head):
    arguments = scene(head)
    before = copy.deepcopy(arguments)
    total = call(head, arguments, grad_output=2.0, grad_dtype=np.float64)
    np.testing.assert_equal(arguments, before)
    config = arguments["config"]
    weights = {"loss_bbox": config.get("bbox_loss_coefficient"), "loss_giou": config.get("giou_loss_coefficient")}
    weights["loss_ce"] = config.get("class_loss_coefficient")

    def cotangent(name):
        if not head.startswith("lw"):
            return 2.0
        return 2.0 * weights.get(next((each for each in weights if name.startswith(each)), ""), 0.0)

    parts = call(
        head, arguments, grad_output={name: cotangent(name) for name in total.components}, grad_dtype=np.float64
    )
    for name, gradient in total.grads.items():
        np.testing.assert_array_equal(parts.grads[name], gradient)
    only = call(head, arguments, grad_output={"loss_bbox": 1.0})
    assert {name for name, gradient in only.grads.items() if gradient.any()} == {"pred_boxes"}
    assert call(head, arguments, grad=False).grads == {}
    assert set(total.grads) == {
        name for name, value in arguments.items() if isinstance(value, np.ndarray) and value.dtype.kind == "f"
    }
    for name in {"initial_reference_points"} & set(total.grads):
        assert not total.grads[name].any()


@pytest.mark.parametrize("head", HEADS)
def test_a_caller_may_match_as_it_likes(head):
    arguments = scene(head)
    own = call(head, arguments)
    again = call(head, arguments, assignment=own.intermediates)
    assert bits(again)[0] == bits(own)[0]
    tables = [name for name in own.intermediates if name.startswith("cost_matrix")]
    listed = []
    for name in tables:
        table = own.intermediates[name.replace("cost_matrix", "assignment")]
        listed.append([table[table[:, 0] == i, 1:].T for i in range(len(arguments["labels"]))])
    listed = [[tuple(pair) for pair in layer] for layer in listed]
    assert call(head, arguments, assignment=listed).loss == own.loss
    halved = call(head, arguments, num_boxes=2 * float(own.intermediates["num_boxes"]))
    if "num_boxes_union" not in own.intermediates:
        assert halved.components["loss_bbox"] == pytest.approx(own.components["loss_bbox"] / 2)


def test_groups_are_matched_each_on_its_own():
    arguments = scene("lw_detr_object_detection", "float32")
    values = call("lw_detr_object_detection", arguments).intermediates
    size = arguments["logits"].shape[1] // 2
    offsets = np.cumsum([0, *(len(own["boxes"]) for own in arguments["labels"])])
    for image, (first, last) in enumerate(itertools.pairwise(offsets)):
        gaps = []
        for group in range(2):
            costs = values["cost_matrix"][group * size : (group + 1) * size, first:last]
            table = values["assignment"]
            mine = table[(table[:, 0] == image) & (table[:, 1] // size == group)]
            best, second = best_and_next(costs)
            assert costs[mine[:, 1] - group * size, mine[:, 2]].sum() == pytest.approx(best)
            gaps.append(second - best)
        assert values["margin"][image] == pytest.approx(min(gaps), abs=1e-12)
    assert values["num_boxes"] == 2 * offsets[-1]


def test_a_rest_of_queries_is_matched_with_nothing():
    arguments = scene("lw_detr_object_detection", "groups-with-a-rest")
    table = call("lw_detr_object_detection", arguments).intermediates["assignment"]
    assert table[:, 1].max() < 4


def matching(*pairs):
    return Matching(*np.array(pairs, np.int64).reshape(-1, 3).T)


def test_the_union_keeps_what_most_layers_made():
    layers = [
        matching((0, 1, 0), (0, 2, 1), (1, 5, 0)),
        matching((0, 1, 1), (0, 2, 1), (1, 4, 0)),
        matching((0, 1, 1), (0, 3, 0), (1, 5, 1)),
    ]
    union = _union(layers, None)
    # The pairs of two layers first, then by query; query 5 was matched once with either, the smaller one counts.
    assert union.table().tolist() == [[0, 1, 1], [0, 2, 1], [0, 3, 0], [1, 4, 0], [1, 5, 0]]
    nothing = _union([matching()], None)
    assert nothing.table().shape == (0, 3)


def test_a_union_of_ones_own():
    arguments = scene("deimv2_object_detection")
    own = np.array([[0, 0, 0], [0, 1, 0], [2, 5, 1]])
    result = call("deimv2_object_detection", arguments, assignment={"assignment_union": own})
    np.testing.assert_array_equal(result.intermediates["assignment_union"], own)
    assert result.intermediates["num_boxes_union"] == 3
    assert len(result.intermediates["iou_aux_0"]) == 3


@pytest.mark.parametrize("head", FOLLOWERS)
def test_denoising_queries_stand_for_their_objects(head):
    arguments = scene(head)
    result = call(head, arguments)
    table = result.intermediates["assignment_dn_1"]
    assert table.tolist() == [
        *([0, 6 * group + n, n] for group in range(2) for n in range(3)),
        *([2, 6 * group + n, n] for group in range(2) for n in range(2)),
    ]
    assert result.intermediates["num_boxes_dn_1"] == 2 * result.intermediates["num_boxes"] == 10
    as_lists = copy.deepcopy(arguments)
    meta = as_lists["denoising_meta_values"]
    meta["dn_positive_idx"] = tuple(queries.tolist() for queries in meta["dn_positive_idx"])
    meta["dn_num_split"], meta["dn_num_group"] = tuple(meta["dn_num_split"].tolist()), int(meta["dn_num_group"])
    assert call(head, as_lists).loss == result.loss


@pytest.mark.parametrize("head", HEADS)
def test_infinite_logits(head):
    arguments = scene(head)
    arguments["logits"][0, -1, 1] = -np.inf
    result = call(head, arguments)
    assert np.isfinite(result.loss)
    assert result.grads["logits"][0, -1, 1] == 0
    arguments["logits"][0, -1, 1] = np.nan
    result = call(head, arguments)
    assert np.isnan(result.loss)
    assert np.isnan(result.grads["logits"][0, -1, 1])
    assert np.isfinite(result.grads["logits"][1:]).all()


def test_edges_far_from_their_teacher():
    """Beyond the range of the formula for layers close to their teacher."""
    arguments = scene("d_fine_object_detection", "wide-bins")
    corners = arguments["predicted_corners"].astype(np.float64)
    corners[0, 0, 0, :3] = [30000.0, -30000.0, 5.0]
    corners[0, -1, 0, :3] = [-30000.0, 30000.0, 5.0]
    result = call("d_fine_object_detection", arguments | {"predicted_corners": corners})
    assert np.isfinite(result.loss)
    row, teacher = corners[0, 0, 0, :9], corners[0, -1, 0, :9]
    with mpmath.workprec(600):
        distance = layered.divergence(truth.exact(row), truth.exact(teacher))
        share = max(truth.sigmoid(x) for x in truth.exact(arguments["outputs_class"][0, -1, 0]))
        queries, matched = 3 * 6 * 4, 4 * len(result.intermediates["assignment_aux_0"])
        roots = mpmath.sqrt(mpmath.mpf(matched)), mpmath.sqrt(mpmath.mpf(queries - matched))
        share *= roots[1] / sum(roots) / (queries - matched) * arguments["config"]["weight_loss_ddf"]
    if [0, 0] not in result.intermediates["assignment_aux_0"][:, :2].tolist():
        near = call("d_fine_object_detection", arguments | {"predicted_corners": corners * 1.0})
        assert near.components["loss_ddf_aux_0"] == pytest.approx(float(share * distance), rel=1e-3)
    corners[0, 0, 0, 0] = -np.inf
    assert np.isfinite(call("d_fine_object_detection", arguments | {"predicted_corners": corners}).loss)
    corners[0, 0, 0, 0] = np.nan
    assert np.isnan(call("d_fine_object_detection", arguments | {"predicted_corners": corners}).loss)


def test_no_object_and_no_image():
    for head in HEADS:
        result = call(head, scene(head, "no-objects"))
        assert result.components["loss_bbox"] == 0.0
        assert np.isfinite(result.loss)
        arguments = scene(head, "no-objects" if head.startswith("lw") else "last-layer")
        empty = {
            name: value[:, :0] if head.startswith("lw") and name.startswith("outputs") else value[:0]
            for name, value in arguments.items()
            if isinstance(value, np.ndarray)
        }
        result = call(head, empty | {"labels": [], "config": arguments["config"]})
        assert result.loss == 0.0


META = ["denoising_meta_values"]
ERRORS = [
    (changed([*META, "dn_num_group"], None), "denoising_meta_values has no 'dn_num_group'"),
    (
        changed([*META, "dn_num_split"], [11, 6]),
        'denoising_meta_values["dn_num_split"] is [11, 6]; expected two numbers that add up to 18 queries',
    ),
    (
        changed([*META, "dn_positive_idx"], [[]]),
        'denoising_meta_values["dn_positive_idx"] has 1 entries; expected one for each of 3 images',
    ),
    (
        changed([*META, "dn_positive_idx", 0], np.arange(5)),
        'denoising_meta_values["dn_positive_idx"][0] has shape (5,); expected (6,), 2 groups of 3 objects',
    ),
    (
        changed([*META, "dn_positive_idx", 2], np.array([0, 1, 2, 12])),
        'denoising_meta_values["dn_positive_idx"][2][3] = 12 is outside [0, 12), the denoising queries',
    ),
    (
        changed([*META, "dn_positive_idx", 2], np.array([0, 1, 2, 1])),
        'denoising_meta_values["dn_positive_idx"][2] has a query twice',
    ),
    (changed(["enc_topk_logits"], None), "enc_topk_logits is None; expected an array, because config.auxiliary_loss"),
    (changed(["enc_topk_bboxes"], np.ones((3, 5, 4))), "enc_topk_bboxes has shape (3, 5, 4); expected [3, 6, 4]"),
    (
        changed(["outputs_coord"], np.full((3, 3, 18, 4), np.nan)),
        "outputs_coord[:, 0, 12:][0, 0] = [nan, nan, nan, nan] is no box",
    ),
    (
        changed(["predicted_corners"], np.ones((3, 3, 18, 32))),
        "predicted_corners has shape (3, 3, 18, 32); expected [3, L, 18, 36]",
    ),
    (
        changed(["initial_reference_points"], np.ones((3, 3, 18, 5))),
        "initial_reference_points has shape (3, 3, 18, 5); expected [3, L, 18, 4]",
    ),
    (changed(["logits"], np.ones((3, 18, 6))), "logits has shape (3, 18, 6); expected [B, Q, 5]"),
    (changed(["config", "max_num_bins"], 7), "config.max_num_bins is 7; expected an even number of at least 4"),
    (changed(["config", "weight_loss_fgl"], None), "config has no 'weight_loss_fgl', which this loss reads"),
    (
        changed(["assignment"], {"assignment_union": np.array([[0, 6, 0]])}),
        "assignment_union: query 6 of pair 0 is outside [0, 6)",
    ),
]


@pytest.mark.parametrize(("change", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_errors(change, message):
    arguments = scene("deimv2_object_detection")
    arguments["config"] = dict(arguments["config"])
    change(arguments)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call("deimv2_object_detection", arguments)
    assert str(caught.value).startswith(message)


def test_errors_of_groups():
    arguments = scene("lw_detr_object_detection", group_detr=0)
    with pytest.raises(ValueError, match=r"config\.group_detr is 0; expected at least 1"):
        call("lw_detr_object_detection", arguments)
    del arguments["enc_outputs_class"]
    with pytest.raises(ValueError, match="enc_outputs_class is None; expected an array"):
        call("lw_detr_object_detection", arguments)


def varifocal_inputs(dtype):
    generator = np.random.default_rng(3)
    x = (generator.standard_normal((5, 16)) * generator.choice([0.1, 3.0, 40.0], (5, 16))).astype(dtype)
    t = np.where(generator.random((5, 16)) < 0.5, generator.random((5, 16)), 0.0)
    # Some targets are what the logit says, or nearly so.
    t[0] = 1 / (1 + np.exp(-x[0].astype(float)))
    return x, np.clip(t, 0, 1).astype(dtype)


@pytest.mark.parametrize("options", [(0.75, 2.0), (0.25, 1.5), (1.0, 0.0)], ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_varifocal_is_correctly_rounded(dtype, options):
    x, t = varifocal_inputs(DTYPES.get(dtype, np.float64))
    result = refloss.varifocal(x, t, 3.0, *options, reduction="sum", grad_output=-1.75)
    with mpmath.workprec(layered.PRECISION_BITS):
        expected, value = np.empty(x.shape, dtype=object), mpmath.mpf(0)
        for index in np.ndindex(x.shape):
            at, quality = mpmath.mpf(float(x[index])), mpmath.mpf(float(t[index]))
            loss = layered.varifocal(at, quality > 0, quality, *options)
            value += loss(at) / 3
            expected[index] = mpmath.mpf(-1.75) * layered.slope(loss, at) / 3
        errors = ulp_errors(result.grads["inputs"], pairs(expected), dtype)
        assert ulp_errors(result.loss, pairs(value), "float64") <= 2
    if dtype == "float64":
        assert errors.max() <= 8
    else:
        assert np.mean(correctly_rounded(errors)) >= 0.99999
        assert errors.max() <= 0.501
    assert set(result.grads) == {"inputs"}


def test_varifocal_reductions_and_errors():
    x, t = varifocal_inputs(np.float32)
    each = refloss.varifocal(x, t, reduction="none", grad_output=0.5)
    mean = refloss.varifocal(x, t, 2.0, grad_output=16.0)
    np.testing.assert_allclose(mean.loss, each.loss.mean(axis=1).sum() / 2, rtol=1e-14)
    np.testing.assert_array_equal(mean.grads["inputs"], each.grads["inputs"])
    edge = refloss.varifocal(np.array([[-np.inf, np.nan]]), np.zeros((1, 2)), reduction="none")
    np.testing.assert_array_equal(edge.loss, [[0.0, np.nan]])
    with pytest.raises(ValueError, match="gamma is -1"):
        refloss.varifocal(x, t, gamma=-1)
    with pytest.raises(ValueError, match=r"targets\[0, 0\] = 2"):
        refloss.varifocal(x, t * 0 + 2)
