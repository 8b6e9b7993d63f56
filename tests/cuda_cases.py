"""What the tests of the CUDA backend share: the CPU's bits, demanded of a simulated GPU and of a real one.

The cases are chosen by what can differ between them, which kernel is launched and of what types: by default every
function in every format, once.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from refloss.arrays import is_float
from refloss.cases.source import DTYPES, Case
from refloss.files import nested
from refloss.golden import corpus
from refloss.registry import FUNCTIONS

# Fewer queries than in the first cases of these heads, of the same kernels; one image of them.
_SMALLER = {"d_fine_object_detection": "no-denoising", "deimv2_object_detection": "last-layer"}
# Golden cases that launch other kernels than the first one of their function does.
_OTHER_KERNELS = (
    "bce_with_logits-pos-weight",
    "cross_entropy-chain-options-mean",
    "cross_entropy-probabilities-weighted-smoothed",
    "cross_entropy-weighted-smoothed",
    "info_nce-uniform",
    "gaussian_nll-options-shared-lacking-sum",
    "kl_div-log-target",
    "poisson_nll-rates-mean",
)
# Ends of the names of golden cases that take other ways through the same kernels.
_OTHER_WAYS = ("-none", "-weighted", "-float64-none")


@functools.cache
def golden_cases() -> dict[str, Case]:
    """All of them by name."""
    return {case.id: case for case in corpus.corpus()}


@functools.cache
def chosen_cases() -> dict[str, Case]:
    """What is computed by default, by name."""
    in_formats = [in_format(case, name) for case in _in_every_format() for name in DTYPES]
    others = [case for case in golden_cases().values() if case.id.endswith(_OTHER_WAYS) and "-options-" not in case.id]
    return {case.id: case for case in (*in_formats, *others)}


def _in_every_format() -> Iterator[Case]:
    for function in FUNCTIONS:
        wanted = f"{function}-{_SMALLER.get(function, 'float32')}"
        case = next(case for case in golden_cases().values() if case.id.startswith(wanted))
        yield of_one_image(case) if function in _SMALLER else case
    yield from map(golden_cases().__getitem__, _OTHER_KERNELS)
    yield long_rows()
    yield close_rows()
    yield smoothed_close_rows()
    yield coinciding_boxes()
    yield from crossings()
    yield balanced_masks()


def of_one_image(case: Case) -> Case:
    """The same of the first image alone."""
    others = tuple(f"labels.{image}." for image in range(1, 9))
    inputs = {key: array for key, array in case.inputs.items() if not key.startswith(others)}
    return case._replace(
        inputs={key: array if key.startswith("labels.") else array[:1] for key, array in inputs.items()}
    )


def long_rows() -> Case:
    """Rows that a thread alone would be too slow for: one like any, of a sure label, ignored, and undefined."""
    generator = np.random.default_rng(1)
    logits = (generator.standard_normal((4, 131)) * 6).astype(np.float32)
    labels = generator.integers(131, size=4)
    logits[1, labels[1]] = 40.0
    labels[2] = -100
    logits[3, 100] = np.nan
    return Case("cross_entropy-long-rows", "cross_entropy", {"logits": logits, "target": labels}, {}, -1.25)


def close_rows() -> Case:
    """Rows whose target is next to their own softmax: sure of nothing, of one class, of two, and of equal logits."""
    generator = np.random.default_rng(2)
    logits = generator.standard_normal((4, 9)).astype(np.float32)
    logits[1, 3] = logits[2, 3] = logits[2, 5] = 50.0
    logits[3] = 0.5
    terms = np.exp(logits.astype(float) - logits.max(axis=1, keepdims=True))
    target = (terms / terms.sum(axis=1, keepdims=True)).astype(np.float32)
    target[1:3, 6:] *= 1.25
    return Case("cross_entropy-close-rows", "cross_entropy", {"logits": logits, "target": target}, {}, 1 / 3)


def smoothed_close_rows() -> Case:
    """Smoothed labels at their optimum, and a sure one whose weight hides all others."""
    logits = np.zeros((3, 5), np.float32)
    logits[1] = np.arange(5) * 1e-7
    logits[2, 1] = 60.0
    weight = np.array([0.3, 1e20, 0.7, 1.1, 0.9])
    inputs = {"logits": logits, "target": np.array([0, 2, 1]), "weight": weight}
    return Case("cross_entropy-smoothed-close-rows", "cross_entropy", inputs, {"label_smoothing": 1.0}, 1 / 3)


def coinciding_boxes() -> Case:
    """Boxes that share edges, all but coincide, contain each other, touch, and that are far from 1."""
    generator = np.random.default_rng(2)
    first = np.concatenate([generator.random((8, 2)), 0.1 + 0.5 * generator.random((8, 2))], axis=1)
    second = first.copy()
    second[1, 2] *= 0.5
    second[2] *= 1 + 2.0**-20
    second[3, :2] += 0.25
    second[4, 0] += first[4, 2]
    second[5, 2:] *= 0.5
    first[6:], second[6:] = first[6:] * 2.0**-9, second[6:] * 2.0**-9 + 2.0**-12
    inputs = {"boxes1": first.astype(np.float32), "boxes2": second.astype(np.float32)}
    cotangent = np.array([1 / 3, 0.1, -0.7, 1 / 6, 1 / 7, -1.0, 3.0, np.inf])
    return Case("giou-coinciding", "giou", inputs, {"box_format": "cxcywh", "reduction": "none"}, cotangent)


def crossings() -> Iterator[Case]:
    """Elements whose slopes cross 0, and exponents that are large."""
    x = np.array([[0.0, 1e-20, -1e-3, 0.5, -3.0, 8.0, -40.0, 80.0, -np.inf, np.inf]], np.float32)
    t = (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)
    for function in ("sigmoid_focal", "varifocal"):
        for gamma in (0.0, 2.0, 40.0):
            parameters = {"alpha": 0.5, "gamma": gamma, "reduction": "sum", "num_boxes": 3.0}
            yield Case(f"{function}-crossing-{gamma}", function, {"inputs": x, "targets": t}, parameters, 1 / 3)


def balanced_masks() -> Case:
    """Masks of one logit and four pixels, of which one is wanted, and no focal loss: their gradient is 0."""
    case = golden_cases()["segmentation-float32"]
    inputs = {key: array[..., :2, :2] if key.endswith("masks") else array for key, array in case.inputs.items()}
    for key, array in inputs.items():
        if key.startswith("labels") and key.endswith("masks"):
            inputs[key] = np.broadcast_to(np.array([[False, True], [False, False]]), array.shape)
    inputs["pred_masks"] = case.inputs["pred_masks"][..., :1, :1]
    config = case.parameters["config"] | {"mask_loss_coefficient": 0.0}
    return Case("segmentation-balanced", "segmentation", inputs, {"config": config}, 1 / 3)


def in_format(case: Case, name: str) -> Case:
    """A case whose differentiable inputs have another format."""
    wanted = FUNCTIONS[case.function].differentiable
    inputs = {
        key: array.astype(DTYPES[name]) if key in wanted and is_float(array) else array
        for key, array in case.inputs.items()
    }
    return case._replace(id=f"{case.id.replace('-float32', '')}-in-{name}", inputs=inputs)


def assert_same_bits(got: Any, wanted: Any, what: str) -> None:
    """The same type, shape and bits; any NaN for a NaN."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), what
    if got.tobytes() == wanted.tobytes():
        return
    got, wanted = np.atleast_1d(got), np.atleast_1d(wanted)
    undefined = np.isnan(wanted)
    assert np.array_equal(np.isnan(got), undefined), what
    kind = np.dtype(f"u{got.itemsize}")
    different = (np.ascontiguousarray(got).view(kind) != np.ascontiguousarray(wanted).view(kind)) & ~undefined
    assert not different.any(), f"{what}: {got[different][:3]} for {wanted[different][:3]}, {different.sum()} in all"


def assert_same_result(got: Any, wanted: Any) -> None:
    """The same bits in all that a result has, but for what it computes only when asked for."""
    assert_same_bits(got.loss, wanted.loss, "loss")
    for part in ("grads", "components", "intermediates"):
        mine, theirs = (getattr(result, part) for result in (got, wanted))
        if part == "intermediates":
            assert set(mine) == set(theirs)
            mine, theirs = mine.computed(), theirs.computed()
        assert set(mine) == set(theirs)
        for name in theirs:
            assert_same_bits(mine[name], theirs[name], f"{part}[{name!r}]")


def assert_case_has_the_cpu_s_bits(case: Case) -> None:
    """A golden case on both devices."""
    call = FUNCTIONS[case.function].call
    results = [
        call(**nested(case.inputs), **case.parameters, grad_output=case.grad_output, backend=backend)
        for backend in ("cuda", "cpu")
    ]
    assert_same_result(*results)
