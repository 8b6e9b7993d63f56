"""Masks at points: where they lie, which are chosen and drawn, and the heads that look at them; edges and errors."""

import copy
import itertools
import re
from fractions import Fraction

import mpmath
import numpy as np
import pytest

import refloss
from refloss.detection.points import Given, Plan, Points, drawn
from refloss.files import nested
from refloss.golden.corpus import cases_of
from refloss.kernels.points.loop import Cotangents, Planes, locate
from refloss.kernels.points.run import compare, sample
from refloss.losses.parts.mask_points import LOOP
from refloss.numerics.exact import as_pair
from refloss.registry import FUNCTIONS
from tests import detection_truth as truth
from tests.mpfr.measure import measured
from tests.test_same_bits import bits
from tests.truth import correctly_rounded, ulp_errors

HEADS = ("rf_detr_instance_segmentation", "mask2former")
RF_DETR, MASK2FORMER = HEADS
COMPONENTS = {RF_DETR: ("loss_mask_ce", "loss_mask_dice"), MASK2FORMER: ("loss_mask", "loss_dice")}
MASKS = {RF_DETR: "pred_masks", MASK2FORMER: "masks_queries_logits"}


def scene(head, name="float32", **config):
    """The arguments of a golden case."""
    case = next(case for case in cases_of(head) if case.id == f"{head}-{name}")
    arguments = copy.deepcopy(nested(case.inputs))
    return arguments | copy.deepcopy(dict(case.parameters)) | {"config": case.parameters["config"] | config}


def call(head, arguments, **options):
    return getattr(refloss, head)(**arguments, **options)


def exactly(plane, point, size=None):
    """A bilinear sample as a fraction; a plane is padded with 0 to a size."""
    total, (height, width) = Fraction(0), plane.shape if size is None else size
    x = Fraction(float(point[0])) * width - Fraction(1, 2)
    y = Fraction(float(point[1])) * height - Fraction(1, 2)
    for i, j in np.ndindex(*plane.shape):
        weight = max(1 - abs(y - i), Fraction(0)) * max(1 - abs(x - j), Fraction(0))
        total += weight * Fraction(float(plane[i, j]))
    return total


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (5, 2)], ids=str)
def test_samples_are_exact(size):
    generator = np.random.default_rng(1)
    planes = generator.standard_normal((2, *size)) * 10
    points = generator.random((2, 40, 2))
    points[:, :6] = [[0, 0], [1, 1], [0.5, 0.5], [2.0**-60, 1 - 2.0**-53], [1 / 3, 2.0**-1074], [0.25, 0.75]]
    high, low = sample(Planes(planes, np.array([1, 0]), np.array([0, 1])), points, "cpu")
    for r, plane in enumerate(planes[::-1]):
        for k, point in enumerate(points[r]):
            found, expected = Fraction(high[r, k]) + Fraction(low[r, k]), exactly(plane, point)
            assert abs(found - expected) <= Fraction(2) ** -100 * Fraction(float(np.abs(plane).max()))


def test_a_smaller_plane_is_padded():
    planes = np.arange(6.0).reshape(1, 2, 3) + 1
    points = np.random.default_rng(2).random((1, 30, 2))
    high, low = sample(Planes(planes, np.zeros(1, int), np.zeros(1, int)), points, "cpu", (4, 5))
    for k, point in enumerate(points[0]):
        assert abs(high[0, k] + low[0, k] - float(exactly(planes[0], point, (4, 5)))) < 1e-15


def test_the_nearest_pixel_of_two_is_the_even_one():
    """Places −1/2, 1/2, 3/2, ... lie between pixels; the next number on either side does not."""
    for size in (3, 4, 7, 8):
        for edge in range(size + 1):
            at = edge / size
            exact = Fraction(at) * size
            even = edge - edge % 2
            expected = edge - 1 if exact < edge else edge if exact > edge else even
            assert locate(np.array([[[at, at]]]), (size, size)).nearest().tolist() == [[[expected, expected]]]
        between = np.nextafter(0.5 / size + 0.5 / size, [0, 1])
        places = locate(np.stack([between, between], axis=-1)[None], (size, size)).nearest()
        assert places[0, :, 0].tolist() == [0, 1]


def of_pairs(planes, candidates, random=None, uncertain=2):
    candidates = np.asarray(candidates, float)[None, None]
    random = np.zeros((1, 1, 0, 2)) if random is None else random
    plan = Plan(1, candidates.shape[2], uncertain, random.shape[2])
    points = Points([plan], 0, Given(None, candidates, random))
    return points.of_pairs(0, planes, np.zeros(1, int), "cpu")[0].tolist()


def test_the_least_certain_points_are_chosen_of_equals_the_first():
    planes = np.array([[[0.0, 1.0, -1.0, 3.0]]])
    centres = {name: [(k + 0.5) / 4, 0.5] for k, name in enumerate(("zero", "one", "minus", "three"))}
    for names, expected in {
        ("three", "one", "minus", "zero"): ("one", "zero"),
        ("minus", "one", "three"): ("minus", "one"),
        ("three", "minus", "one", "three"): ("minus", "one"),
        ("three", "three", "one"): ("three", "one"),
        ("one", "minus", "zero"): ("one", "zero"),
    }.items():
        assert of_pairs(planes, [centres[name] for name in names]) == [centres[name] for name in expected]
    planes[0, 0, 3] = np.nan
    assert of_pairs(planes, [centres["zero"], centres["three"]], uncertain=1) == [centres["three"]]


def test_drawn_points_follow_from_the_seed_alone():
    """Words of NumPy's Philox, which does not change them; of each number of float32 that torch.rand has."""
    points = drawn(7, 2, 1, 5, 3)
    words = np.random.Philox(key=7, counter=[0, 7, 5, 0]).random_raw(6)
    np.testing.assert_array_equal(points.reshape(-1), (words // 2**40) / 2**24)
    np.testing.assert_array_equal(drawn(7, 2, 1, 5, 9)[:3], points)
    np.testing.assert_array_equal(points, points.astype(np.float32))
    np.testing.assert_array_equal(drawn(0, 0, 0, 0, 1), [[193722 / 2**24, 4052523 / 2**24]])
    many = [drawn(*place, 4).tobytes() for place in np.ndindex(2, 3, 3, 3)]
    assert len(set(many)) == len(many)
    assert 0.49 < drawn(1, 0, 0, 0, 10_000).mean() < 0.51


@pytest.mark.parametrize("head", HEADS)
def test_points_that_are_chosen_may_be_given(head):
    for name in ("seed", "candidates"):
        arguments = scene(head, name)
        own = call(head, arguments)
        suffixes = [layer.suffix for layer in own.layers]
        given = {key: [own.intermediates[key + suffix] for suffix in suffixes] for key in ("points", "matcher_points")}
        kept = {key: value for key, value in arguments.items() if key not in ("candidate_points", "random_points")}
        assert bits(call(head, kept | given | {"seed": 3}))[0] == bits(own)[0]
        turned = kept | given | {"points": [points[:, ::-1] for points in given["points"]]}
        assert bits(call(head, turned))[0] == bits(own)[0]
        assert call(head, kept | {"seed": 3}).loss != own.loss


@pytest.mark.parametrize("head", HEADS)
def test_a_pair_s_points_are_those_of_its_row(head):
    arguments = scene(head)
    own = call(head, arguments)
    more = arguments["points"].copy()
    count = len(own.intermediates["points"])
    more[:, count:] = 0.5
    assert call(head, arguments | {"points": more}).loss == own.loss
    more[0, count - 1, 0] = 0.125
    assert (
        call(head, arguments | {"points": more}).components[COMPONENTS[head][0]] != own.components[COMPONENTS[head][0]]
    )


def slopes(head, arguments, result):
    """Of every matched mask of the last layer the derivative of the total, by differences in mpmath."""
    entropy, dice = (result.layers[0].weights[name] for name in COMPONENTS[head])
    planes = arguments[MASKS[head]]
    for pair, (image, query, number) in enumerate(result.intermediates["assignment"]):
        points = result.intermediates["points"][pair]
        mask, size = targets_of(head, arguments, image, number)

        def loss(given, points=points, mask=mask, size=size):
            x = np.array([at(given["plane"], point) for point in points], dtype=object)
            t = [nearest(mask, point) if size is None else at(truth.exact(mask), point, size) for point in points]
            t = np.array(t, dtype=object)
            cross = [b * truth.softplus(-a) + (1 - b) * truth.softplus(a) for a, b in zip(x, t, strict=True)]
            whole = mpmath.mpf(entropy) * sum(cross) / len(points) + mpmath.mpf(dice) * truth.dice(x, t)
            return mpmath.mpf(-1.5) * whole / mpmath.mpf(float(result.intermediates["num_boxes"]))

        yield (image, query), truth.derivative(loss, {"plane": planes[image, query]}, "plane")


def at(plane, point, size=None):
    """A sample in mpmath."""
    (height, width), total = plane.shape if size is None else size, mpmath.mpf(0)
    x, y = mpmath.mpf(float(point[0])) * width - 0.5, mpmath.mpf(float(point[1])) * height - 0.5
    for i, j in np.ndindex(*plane.shape):
        total += max(1 - abs(y - i), 0) * max(1 - abs(x - j), 0) * plane[i, j]
    return total


def nearest(mask, point):
    places = locate(point[None, None], mask.shape).nearest()[0, 0]
    inside = all(0 <= k < n for k, n in zip(places, mask.shape, strict=True))
    return mpmath.mpf(float(mask[tuple(places)]) if inside else 0.0)


def targets_of(head, arguments, image, number):
    """An object's mask, and the size to which masks are padded, where they are."""
    if head == RF_DETR:
        return arguments["labels"][image]["masks"][number], None
    masks = arguments["mask_labels"]
    return masks[image][number], tuple(np.max([own.shape[1:] for own in masks], axis=0))


@pytest.mark.parametrize("head", HEADS)
def test_gradients_are_derivatives_rounded_once(head):
    arguments = scene(head)
    for key, value in arguments.items():
        if key == "points":
            arguments[key] = value[:, :, :4]
    for dtype in ("float32", "bfloat16"):
        kind = refloss.arrays.FLOAT_DTYPES[[each.name for each in refloss.arrays.FLOAT_DTYPES].index(dtype)]
        result = call(head, arguments, grad_output=-1.5, grad_dtype=kind)
        for place, true in itertools.islice(slopes(head, arguments, result), 1):
            errors = ulp_errors(result.grads[MASKS[head]][place], true, dtype)
            assert correctly_rounded(errors).all(), errors.max()
        untouched = np.ones(result.grads[MASKS[head]].shape[:2], bool)
        untouched[tuple(result.intermediates["assignment"][:, :2].T)] = False
        assert not result.grads[MASKS[head]][untouched].any()


@pytest.mark.parametrize(("head", "kind"), [(RF_DETR, "balanced masks"), (MASK2FORMER, "balanced")])
def test_what_cancels_is_rounded_once(head, kind):
    """Against MPFR: masks of zeros, points that mirror each other or fall together, at places of many digits."""
    for tally in measured(head, kind, 1000, seed=1):
        if "masks" in tally.name:
            assert tally.wrong == 0, tally.example


def test_of_terms_that_cancel_nothing_is_left():
    """Weights λ, μ and λ + μ of many digits times thirds, of either sign: their products are rounded, if to pairs."""
    generator = np.random.default_rng(3)
    for _ in range(20):
        shares = np.floor(generator.random(2) * 2.0**51) / 2.0**52
        points = np.full((1, 3, 2), 0.5)
        points[0, :, 0] = (np.append(shares, shares.sum()) + 0.5) / 2
        targets = np.array([[[0.0, 0.0, 1.0]], [[0.0, 0.0, 0.0]]])
        gradient, cotangents = np.ones((1, 1, 2)), Cotangents(as_pair(Fraction(1, 3)), (0.0, 0.0))
        compare(LOOP, np.zeros((1, 1, 2)), gradient, np.zeros(1, int), points, targets, cotangents, "cpu")
        assert gradient.tolist() == [[[1 / 6, 0.0]]]


@pytest.mark.parametrize("head", HEADS)
def test_the_same_bits_whatever_the_threads_and_the_layout(head):
    arguments = scene(head, "candidates")
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
    assert bits(call(head, turned)) == expected


@pytest.mark.parametrize("head", HEADS)
def test_components_have_gradients_of_their_own(head):
    arguments = scene(head)
    total = call(head, arguments, grad_output=2.0, grad_dtype=np.float64)
    weights = {name + layer.suffix: weight for layer in total.layers for name, weight in layer.weights.items()}
    parts = call(
        head, arguments, grad_output={name: 2.0 * each for name, each in weights.items()}, grad_dtype=np.float64
    )
    for name, gradient in total.grads.items():
        np.testing.assert_array_equal(parts.grads[name], gradient)
    assert set(total.grads) == {name for name in FUNCTIONS[head].differentiable if name in arguments}
    assert all(gradient.any() for gradient in total.grads.values())
    only = call(head, arguments, grad_output={COMPONENTS[head][1]: 1.0})
    assert {name for name, gradient in only.grads.items() if gradient.any()} == {MASKS[head]}
    assert call(head, arguments, grad=False).grads == {}
    assert call(head, arguments, grad=[MASKS[head]]).grads.keys() == {MASKS[head]}


@pytest.mark.parametrize("head", HEADS)
def test_a_caller_may_match_as_it_likes(head):
    arguments = scene(head)
    own = call(head, arguments)
    assert bits(call(head, arguments, assignment=own.intermediates))[0] == bits(own)[0]
    assert all(np.all(own.intermediates[f"margin{layer.suffix}"] > 0) for layer in own.layers)
    moved = own.intermediates["assignment"].copy()
    moved[:2, 2] = moved[1::-1, 2]
    other = call(head, arguments, assignment=own.intermediates | {"assignment": moved})
    assert other.loss != own.loss
    assert other.intermediates["margin"][moved[0, 0]] < 0


@pytest.mark.parametrize("head", HEADS)
def test_without_objects_masks_cost_nothing(head):
    result = call(head, scene(head, "no-objects"))
    for layer in result.layers:
        for name in COMPONENTS[head]:
            assert result.components[name + layer.suffix] == 0.0
        assert result.intermediates[f"points{layer.suffix}"].shape[0] == 0
    assert not result.grads[MASKS[head]].any()


def test_without_points_of_the_matcher_masks_decide_nothing():
    arguments = scene(RF_DETR)
    none = arguments | {"matcher_points": np.zeros((4, 0, 2), np.float32)}
    without = none | {
        "config": none["config"] | {"mask_class_loss_coefficient": 0.0, "mask_dice_loss_coefficient": 0.0}
    }
    costs = [call(RF_DETR, given).intermediates["cost_matrix"] for given in (none, without, arguments)]
    np.testing.assert_array_equal(costs[0], costs[1])
    assert (costs[2] != costs[1]).all()


def test_the_matcher_s_points_do_not_depend_on_the_batch():
    """transformers counts them from the shape of the boxes."""
    arguments = scene(RF_DETR, "seed")
    for number, shape in ((None, (6, 2)), (1, (6, 2))):
        some = {name: value[:number] if name not in ("config", "seed") else value for name, value in arguments.items()}
        found = call(RF_DETR, some).intermediates["matcher_points"]
        assert found.shape == shape
        np.testing.assert_array_equal(found, drawn(12, 0, 0, 0, 6))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("head", HEADS)
def test_a_pixel_that_is_not_finite_reaches_its_own_mask_alone(head, value):
    arguments = scene(head)
    table = call(head, arguments).intermediates["assignment"]
    image, query, _ = table[0]
    arguments[MASKS[head]][image, query] = value
    result = call(head, arguments, assignment={"assignment": table})
    undefined = np.isnan(result.grads[MASKS[head]]).any(axis=(2, 3))
    # A sure logit is as good as any other, but for its loss.
    assert undefined[image, query] == np.isnan(value)
    assert np.count_nonzero(undefined) == np.isnan(value)
    assert not np.isfinite(result.loss)
    assert np.isfinite(result.intermediates["cost_matrix"]).all()


def changed(name, change):
    return lambda arguments: arguments.__setitem__(name, change(arguments[name]))


WEIGHTLESS = dict.fromkeys(("class_weight", "mask_weight", "dice_weight"), 0)
ERRORS = [
    (RF_DETR, changed("points", lambda x: x[:3]), "points has 3 entries; expected one for each of 4 layers"),
    (RF_DETR, changed("points", lambda x: x[:, :2]), "points[0] has 2 entries; expected at least 10"),
    (RF_DETR, changed("points", lambda x: x[:, :, :0]), "points[0] has shape (12, 0, 2); expected [N, P, 2] with P of"),
    (RF_DETR, changed("points", lambda x: x + 1), "points[0][0, 0, 0] = "),
    (RF_DETR, changed("matcher_points", lambda x: x * np.nan), "matcher_points[0][0, 0] = nan is outside [0, 1]"),
    (RF_DETR, changed("matcher_points", lambda x: x[..., :1]), "matcher_points[0] has shape (7, 1); expected [P, 2]"),
    (
        MASK2FORMER,
        changed("matcher_points", lambda x: x[:, 0]),
        "matcher_points[0] has shape (7, 2); expected [3, P, 2]",
    ),
    (RF_DETR, changed("outputs_masks", lambda x: None), "outputs_masks is None; expected an array, because"),
    (RF_DETR, changed("enc_outputs_masks", lambda x: None), "enc_outputs_masks is None; expected an array, because"),
    (RF_DETR, changed("enc_outputs_masks", lambda x: x[:, :2]), "enc_outputs_masks has shape (3, 2, 4, 5); expected"),
    (RF_DETR, changed("pred_masks", lambda x: x[..., :0]), "pred_masks has shape (3, 6, 4, 0); expected masks with"),
    (RF_DETR, changed("config", lambda x: x | {"mask_point_sample_ratio": 0}), "config.mask_point_sample_ratio is 0;"),
    (MASK2FORMER, changed("class_labels", lambda x: x[:1]), "class_labels has 1 entries; expected one for each of 3"),
    (MASK2FORMER, changed("mask_labels", lambda x: x[::-1]), "mask_labels[0] has shape (2, 11, 9); expected (3, H, W)"),
    (MASK2FORMER, changed("class_labels", lambda x: [x[0] + 5, *x[1:]]), "class_labels[0]["),
    (
        MASK2FORMER,
        changed("class_labels", lambda x: [x[0][None], *x[1:]]),
        "class_labels[0] has shape (1, 3); expected [n]",
    ),
    (MASK2FORMER, changed("auxiliary_masks_queries_logits", lambda x: None), "auxiliary_masks_queries_logits is None"),
    (
        MASK2FORMER,
        changed("config", lambda x: x | WEIGHTLESS),
        "config: class_weight, mask_weight and dice_weight are all 0",
    ),
    (
        MASK2FORMER,
        changed("config", lambda x: x | {"importance_sample_ratio": 1.5}),
        "config.importance_sample_ratio is 1.5",
    ),
]


@pytest.mark.parametrize(("head", "change", "message"), ERRORS, ids=[f"{head}-{text}" for head, _, text in ERRORS])
def test_errors(head, change, message):
    arguments = scene(head)
    change(arguments)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call(head, arguments)


def test_points_take_the_place_of_candidates():
    arguments = scene(RF_DETR)
    with pytest.raises(ValueError, match="points is given with candidate_points"):
        call(RF_DETR, arguments | {"candidate_points": arguments["points"]})
    with pytest.raises(ValueError, match="seed is -1"):
        call(RF_DETR, arguments, seed=-1)
    with pytest.raises(TypeError, match="mask_labels is a dict"):
        call(MASK2FORMER, scene(MASK2FORMER) | {"mask_labels": {}})
