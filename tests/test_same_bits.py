"""One result, whatever the threads, the split into rows, the order of the classes, or the layout in memory."""

import ml_dtypes
import numpy as np
import pytest

import refloss
from refloss.kernels import rows
from refloss.kernels.nll.loop import nll_rows
from refloss.kernels.softmax import run as launch
from refloss.kernels.softmax.columns import label_columns
from refloss.kernels.softmax.loop import label_rows, smoothed_rows
from refloss.losses.cross_entropy import LOOP

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


def problem(dtype, shape=(37, 101)):
    generator = np.random.default_rng(11)
    logits = (generator.standard_normal(shape) * 7).astype(dtype)
    labels = generator.integers(shape[1], size=(shape[0], *shape[2:]))
    labels.reshape(-1)[::5] = -100
    return logits, labels


def options(shape=(37, 101)):
    generator = np.random.default_rng(12)
    return {"weight": generator.uniform(0.5, 2.0, shape[1]), "label_smoothing": 0.2, "grad_output": -1.3}


def bits(result):
    arrays = [result.loss, *result.grads.values(), *result.intermediates.computed().values()]
    return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)


NEGATIVE_NAN = np.array([0xFFF8 << 48 | 7], np.uint64).view(np.float64)[0]
NOT_FINITE = [NEGATIVE_NAN, np.inf, -np.inf, 1.0, -2.0, 0.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name",
    [
        *("mse", "l1", "smooth_l1", "huber", "bce_with_logits", "kl_div", "sigmoid_focal", "varifocal", "dice"),
        *("cross_entropy", "nll", "iou", "giou", "soft_margin", "hinge_embedding", "multilabel_soft_margin"),
    ],
)
def test_every_nan_is_the_same(name, dtype):
    """The one that NumPy writes, whichever an operation or an input has."""
    x = np.array([np.roll(NOT_FINITE, k)[:4] for k in range(6)]).astype(dtype)
    t = np.eye(6, 4).astype(dtype)
    target = np.arange(6) % 4 if name == "nll" else t
    for grad_output in (1.0, np.inf, -0.0):
        result = getattr(refloss, name)(x, target, grad_output=grad_output)
        values = [result.loss, *result.grads.values(), *(result.intermediates[key] for key in result.intermediates)]
        arrays = [np.asarray(value) for value in values]
        assert any(np.isnan(array).any() for array in arrays)
        for array in arrays:
            odd = array[np.isnan(array)]
            assert odd.tobytes() == np.full(odd.shape, np.nan).astype(odd.dtype).tobytes()


@pytest.fixture
def _other_threads(monkeypatch):
    monkeypatch.setattr(launch, "BLOCK_ELEMENTS", 256)
    threads = refloss.get_num_threads()
    yield
    refloss.set_num_threads(threads)


@pytest.mark.usefixtures("_other_threads")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_threads_and_blocks_do_not_show(dtype, reduction, monkeypatch):
    logits, labels = problem(dtype)
    seen = set()
    for threads in (1, 2, 5):
        for block in (1, 256, 1 << 18):
            refloss.set_num_threads(threads)
            monkeypatch.setattr(launch, "BLOCK_ELEMENTS", block)
            seen.add(bits(refloss.cross_entropy(logits, labels, reduction=reduction, **options())))
    assert len(seen) == 1


@pytest.mark.usefixtures("_other_threads")
def test_threads_do_not_show_for_probabilities():
    logits, _ = problem(np.float32)
    target = np.random.default_rng(1).dirichlet(np.ones(101), 37).astype(np.float32)
    seen = set()
    for threads in (1, 3):
        refloss.set_num_threads(threads)
        seen.add(bits(refloss.cross_entropy(logits, target, **options())))
    assert len(seen) == 1


def test_repeated_runs_agree():
    logits, labels = problem(np.float32)
    assert len({bits(refloss.cross_entropy(logits, labels, **options())) for _ in range(5)}) == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_rows_can_be_split_anywhere(dtype):
    logits, labels = problem(dtype)
    whole = refloss.cross_entropy(logits, labels, reduction="sum", **options())
    for split in (1, 17, 36):
        parts = [
            refloss.cross_entropy(logits[part], labels[part], reduction="sum", **options())
            for part in (slice(0, split), slice(split, None))
        ]
        gradient = np.concatenate([part.grads["logits"] for part in parts])
        assert gradient.tobytes() == whole.grads["logits"].tobytes()
        nll = np.concatenate([part.intermediates["nll"] for part in parts])
        assert nll.tobytes() == whole.intermediates["nll"].tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("smooth", [False, True])
def test_classes_can_be_permuted(dtype, smooth):
    logits, labels = problem(dtype)
    order = np.random.default_rng(2).permutation(101)
    place = np.argsort(order)
    settings = options() if smooth else {}
    moved = dict(settings)
    if smooth:
        moved["weight"] = settings["weight"][order]
    result = refloss.cross_entropy(logits, labels, **settings)
    permuted = refloss.cross_entropy(logits[:, order], np.where(labels < 0, labels, place[labels]), **moved)
    assert permuted.loss == result.loss
    assert permuted.grads["logits"].tobytes() == result.grads["logits"][:, order].tobytes()
    assert bits(permuted).endswith(result.intermediates["nll"].tobytes())


def layouts(array):
    """The same values in every kind of memory."""
    wide = np.zeros(tuple(2 * size + 1 for size in array.shape), array.dtype)
    wide[tuple(slice(1, None, 2) for _ in array.shape)] = array
    yield "strided", wide[tuple(slice(1, None, 2) for _ in array.shape)]
    yield "Fortran order", np.asfortranarray(array)
    reverse = tuple(slice(None, None, -1) for _ in array.shape)
    yield "negative strides", np.ascontiguousarray(array[reverse])[reverse]
    yield "last axis first", np.moveaxis(np.ascontiguousarray(np.moveaxis(array, -1, 0)), 0, -1)
    raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
    raw[:] = np.frombuffer(array.tobytes(), np.uint8)
    yield "unaligned", raw.view(array.dtype).reshape(array.shape)
    if array.dtype.itemsize > 2:
        yield "big-endian", array.astype(array.dtype.newbyteorder(">"))
    frozen = array.copy()
    frozen.flags.writeable = False
    yield "read-only", frozen


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("shape", [(37, 101), (5, 11, 3), (2, 40, 3, 7)], ids=str)
def test_memory_layout_does_not_show(dtype, shape, monkeypatch):
    monkeypatch.setattr(rows, "TILE_ROWS", 4)
    logits, labels = problem(dtype, shape)
    expected = bits(refloss.cross_entropy(logits, labels, **options(shape)))
    for name, view in layouts(logits):
        before = view.tobytes()
        assert bits(refloss.cross_entropy(view, labels, **options(shape))) == expected, name
        assert view.tobytes() == before, name
    for name, view in layouts(labels):
        assert bits(refloss.cross_entropy(logits, view, **options(shape))) == expected, name


@pytest.mark.parametrize("shape", [(37, 101), (5, 11, 3)], ids=str)
def test_layout_of_probabilities_does_not_show(shape):
    logits, _ = problem(np.float32, shape)
    target = np.random.default_rng(3).random(shape)
    expected = bits(refloss.cross_entropy(logits, target, **options(shape)))
    for name, view in layouts(target):
        assert bits(refloss.cross_entropy(logits, view, **options(shape))) == expected, name


def test_what_is_read_only_compiles_nothing_anew():
    logits, labels = problem(np.float32)
    weight, cotangent = options()["weight"], np.linspace(-1, 1, 37)
    wide = np.tile(logits, 2)
    kernels = (label_columns(LOOP), label_rows(LOOP), smoothed_rows(LOOP), nll_rows)

    def compute(*arrays):
        labels, weight, cotangent = arrays
        given = {"weight": weight, "reduction": "none", "grad_output": cotangent}
        results = [
            refloss.cross_entropy(logits, labels, **given),
            refloss.cross_entropy(wide, labels, **given | {"weight": np.tile(weight, 2)}),
            refloss.cross_entropy(logits, labels, label_smoothing=0.1, **given),
            refloss.nll(logits, labels, **given),
        ]
        return [part for result in results for part in (result.loss, *result.grads.values())]

    expected = compute(labels, weight, cotangent)
    compiled = [len(kernel.signatures) for kernel in kernels]
    for array in (labels, weight, cotangent):
        array.flags.writeable = False
    for got, wanted in zip(compute(labels, weight, cotangent), expected, strict=True):
        assert got.tobytes() == wanted.tobytes()
    assert [len(kernel.signatures) for kernel in kernels] == compiled


def test_broadcast_logits_are_read_in_place():
    logits = np.broadcast_to(np.float32([1.0, 2.0, -3.0]), (6, 3))
    labels = np.arange(6) % 3
    assert bits(refloss.cross_entropy(logits, labels)) == bits(refloss.cross_entropy(logits.copy(), labels))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_out_receives_the_gradient_in_any_layout(dtype):
    logits, labels = problem(dtype, (5, 11, 3))
    expected = refloss.cross_entropy(logits, labels, **options((5, 11, 3)))
    for name, buffer in layouts(np.zeros(logits.shape, dtype)):
        if name in ("read-only", "unaligned", "big-endian"):
            continue
        result = refloss.cross_entropy(logits, labels, out=buffer, **options((5, 11, 3)))
        assert result.grads["logits"] is buffer
        assert np.array_equal(buffer, expected.grads["logits"]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_classes_that_tie_can_be_permuted(dtype):
    generator = np.random.default_rng(13)
    logits = generator.standard_normal((200, 5)).astype(dtype)
    logits[:, 3] = logits[:, 1] = logits.max(axis=1)
    target = generator.dirichlet(np.ones(5), 200).astype(dtype)
    order = [4, 3, 2, 1, 0]
    result = refloss.cross_entropy(logits, target).grads["logits"]
    permuted = refloss.cross_entropy(logits[:, order], target[:, order]).grads["logits"]
    assert permuted.tobytes() == np.ascontiguousarray(result[:, order]).tobytes()


ROWS = {
    "usual": lambda x: 3 * x,
    "tiny magnitudes beside large ones": lambda x: x * 10.0 ** np.linspace(-20, 2, x.shape[1]),
    "the largest is tiny": lambda x: np.where(np.arange(x.shape[1]) == 7, 1e-30, -np.abs(x)),
    "exponentials that are subnormal, or 0": lambda x: 300 * x,
    "classes without a logit": lambda x: np.where(x > 1, -np.inf, x),
}


@pytest.mark.parametrize("cotangent", [1.0, -1e-3, 3e-37, 1e37])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_a_narrow_format_takes_shortcuts_only_to_the_same_bits(dtype, rows, cotangent):
    x = ROWS[rows](np.random.default_rng(3).standard_normal((5, 300))).astype(dtype)
    labels = np.arange(5)
    narrow = refloss.cross_entropy(x, labels, reduction="sum", grad_output=cotangent)
    wide = refloss.cross_entropy(x.astype(np.float64), labels, reduction="sum", grad_output=cotangent)
    assert np.array_equal(narrow.loss, wide.loss)
    assert np.array_equal(narrow.intermediates["lse"], wide.intermediates["lse"])
    with np.errstate(over="ignore", under="ignore"):
        assert narrow.grads["logits"].tobytes() == wide.grads["logits"].astype(dtype).tobytes()
