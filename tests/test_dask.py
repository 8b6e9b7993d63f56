"""Losses of Dask arrays: the bits of one machine, whatever the chunks, the scheduler and what happens to a worker."""

import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

import refloss
from refloss.golden.corpus import corpus
from refloss.lazy import accepts_dask_arrays, graph
from refloss.registry import FUNCTIONS
from refloss.result import LossResult

IN_PARTS = [name for name, function in FUNCTIONS.items() if function.specification.in_parts]
# Of each function, spread over its cases; larger ones are of kernels, not of chunks.
CASES_EACH, LARGEST = 6, 3000


def some_cases(name):
    """Cases of a function whose arrays have the shapes that chunks are made of."""
    fitting = [case for case in corpus([name]) if max(map(np.size, case.inputs.values())) <= LARGEST]
    fitting = [case for case in fitting if not any(word in case.id for word in ("shared", "options-target", "flat"))]
    return fitting[:: max(1, len(fitting) // CASES_EACH)][:CASES_EACH]


def in_random_chunks(array, generator):
    # Few of them: what is computed of a chunk takes less time than what a graph does around it.
    chunks = tuple(int(generator.integers(-(-size // 2), size + 1)) if size else 1 for size in array.shape)
    return da.from_array(array, chunks=chunks)


def assert_same_bits(got, expected):
    got, expected = np.asarray(got), np.asarray(expected)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert got.tobytes() == expected.tobytes()


def assert_same_result(lazy, result):
    """A lazy result, of which all is computed at once."""
    assert {*lazy.intermediates} == {*result.intermediates}
    loss, grads, components, intermediates = dask.compute(
        lazy.loss, lazy.grads, lazy.components, dict(lazy.intermediates), scheduler="synchronous"
    )
    assert_same_bits(loss, result.loss)
    pairs = ((grads, result.grads), (components, result.components), (intermediates, dict(result.intermediates)))
    for got, expected in pairs:
        assert {*got} == {*expected}
        for name in expected:
            assert_same_bits(got[name], expected[name])


@pytest.mark.parametrize("name", IN_PARTS)
def test_whatever_the_chunks_the_bits_are_those_of_one_machine(name):
    generator = np.random.default_rng(len(name))
    call = FUNCTIONS[name].call
    for case in some_cases(name):
        inputs = {name: np.asarray(value) for name, value in case.inputs.items()}
        given = {"grad_output": case.grad_output, **case.parameters}
        lead, *others = inputs
        chosen = [lead, *(name for name in others if generator.random() < 0.7)]
        arrays = inputs | {name: in_random_chunks(inputs[name], generator) for name in chosen}
        lazy = call(**arrays, **given)
        assert_same_result(lazy, call(**inputs, **given))
        assert all(lazy.grads[name].chunks == arrays[name].chunks for name in set(chosen) & {*lazy.grads})


def tokens(*, batch=6, length=10, classes=23, dtype=np.float32):
    generator = np.random.default_rng(0)
    logits = (4 * generator.standard_normal((batch, length, classes))).astype(dtype)
    labels = generator.integers(classes, size=(batch, length))
    labels[1, 3:6] = -100
    return logits, labels


def test_a_shift_crosses_chunks_of_a_sequence():
    logits, labels = tokens()
    lazy = refloss.causal_lm(da.from_array(logits, chunks=(6, 3, 23)), labels, grad_output=-1 / 3)
    assert_same_result(lazy, refloss.causal_lm(logits, labels, grad_output=-1 / 3))


def test_labels_alone_may_be_in_chunks_and_so_may_numbers():
    logits, labels = tokens()
    lazy = refloss.causal_lm(logits, da.from_array(labels, chunks=(4, 7)), num_items_in_batch=da.from_array(12.5))
    assert_same_result(lazy, refloss.causal_lm(logits, labels, num_items_in_batch=12.5))


def test_one_row_has_no_axes_of_rows():
    logits, _ = tokens()
    lazy = refloss.cross_entropy(da.from_array(logits[0, 0], chunks=5), 3, grad_output=-1 / 3)
    assert_same_result(lazy, refloss.cross_entropy(logits[0, 0], 3, grad_output=-1 / 3))


def test_cotangents_of_rows_are_cut_as_rows_are():
    logits, labels = (array.reshape(-1, *array.shape[2:]) for array in tokens())
    upstream = np.random.default_rng(1).standard_normal(labels.shape)
    given = {"reduction": "none", "z_loss": 0.1, "label_smoothing": 0.1}
    lazy = refloss.cross_entropy(
        da.from_array(logits, chunks=(7, 5)), labels, **given, grad_output={"z_loss": da.from_array(upstream, chunks=4)}
    )
    assert_same_result(lazy, refloss.cross_entropy(logits, labels, **given, grad_output={"z_loss": upstream}))


def test_a_mapping_of_no_cotangents_is_none():
    logits, labels = tokens()
    lazy = refloss.masked_lm(da.from_array(logits, chunks=(2, 5, -1)), labels, z_loss=0.1, grad_output={})
    assert_same_result(lazy, refloss.masked_lm(logits, labels, z_loss=0.1, grad_output={}))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_sum_beyond_float64_is_nothing_beside_one_that_is_infinite(reduction):
    error, weight = np.array([1.0, 1.0, 1.0]), np.array([1.7e308, 1.7e308, -np.inf])
    lazy = refloss.mse(da.from_array(error, chunks=2), np.zeros(3), weight, reduction=reduction)
    assert_same_result(lazy, refloss.mse(error, np.zeros(3), weight, reduction=reduction))


def test_lists_are_what_they_are_without_dask():
    logits, labels = (array.reshape(-1, *array.shape[2:])[:6] for array in tokens())
    chunked, weight = da.from_array(logits, chunks=4), [*range(23)]
    assert_same_result(
        refloss.cross_entropy(chunked, labels.tolist(), weight), refloss.cross_entropy(logits, labels, weight)
    )
    one_hot = (labels[:, None] == np.arange(23)).astype(int).tolist()
    assert_same_result(refloss.cross_entropy(chunked, one_hot), refloss.cross_entropy(logits, one_hot))
    assert_same_result(refloss.l1(chunked, one_hot), refloss.l1(logits, one_hot))


def test_an_axis_of_one_may_have_an_empty_chunk():
    logits, weight = tokens()[0][0], np.arange(10.0)[:, None]
    chunked = da.from_array(weight, chunks=((5, 5), (0, 1)))
    lazy = refloss.bce_with_logits(da.from_array(logits, chunks=(4, 9)), logits, chunked)
    assert_same_result(lazy, refloss.bce_with_logits(logits, logits, weight))


def test_options_may_be_dask_arrays_and_labels_of_any_width():
    logits, labels = tokens()
    shifted = np.abs(labels).astype(np.uint8) % 23
    options = {"ignore_index": 7, "softcap": 1.5, "z_loss": 0.5, "shift_labels": shifted}
    lazy = refloss.causal_lm(
        da.from_array(logits, chunks=(2, 5, -1)),
        labels,
        **{name: da.from_array(np.array(value), chunks=4) for name, value in options.items()},
    )
    assert_same_result(lazy, refloss.causal_lm(logits, labels, **options))


def test_workers_find_a_function_by_its_name(monkeypatch):
    logits, labels = tokens()
    monkeypatch.setattr(graph, "lazily", lambda function, *_: function)
    assert refloss.causal_lm(da.from_array(logits), labels) is refloss.causal_lm


def test_processes_give_the_same_bits():
    logits, labels = tokens()
    expected = refloss.causal_lm(logits, labels)
    lazy = refloss.causal_lm(da.from_array(logits, chunks=(3, 10, -1)), labels)
    loss, gradient = dask.compute(lazy.loss, lazy.grads["logits"], scheduler="processes", num_workers=2)
    assert_same_bits(loss, expected.loss)
    assert_same_bits(gradient, expected.grads["logits"])


def test_logits_are_not_read_before_it_is_known_what_divides():
    logits, labels = tokens()
    counted, at_reading = [], []

    class Source:
        shape, dtype, ndim = logits.shape, logits.dtype, logits.ndim

        def __getitem__(self, index):
            at_reading.append(len(counted))
            return logits[index]

    def slowly(block):
        time.sleep(0.05)
        counted.append(block)
        return block

    read = da.from_array(Source(), chunks=(2, 5, -1), name=False, meta=logits[:0])
    others = da.from_array(labels, chunks=(2, 5)).map_blocks(slowly, dtype=labels.dtype, meta=labels[:0])
    refloss.masked_lm(read, others).loss.compute(scheduler="threads", num_workers=4)
    assert at_reading == [6] * 6


def test_weights_that_divide_have_gradients_without_all_chunks_in_memory():
    generator = np.random.default_rng(0)
    error, weight = generator.standard_normal((2, 20, 300))
    alive, most = set(), []

    def tracked(block):
        block = block.copy()
        alive.add(id(block))
        most.append(len(alive))
        weakref.finalize(block, alive.discard, id(block))
        return block

    chunked = da.from_array(error, chunks=(1, 300)).map_blocks(tracked, dtype=error.dtype, meta=error[:0])
    lazy = refloss.mse(chunked, 0 * error, weight)
    gradient = lazy.grads["weight"].sum(axis=-1).compute(scheduler="synchronous")
    assert_same_bits(gradient, refloss.mse(error, 0 * error, weight).grads["weight"].sum(axis=-1))
    assert max(most) <= 4


def test_only_what_is_asked_for_is_computed():
    logits, labels = tokens()
    lazy = refloss.causal_lm(da.from_array(logits, chunks=(2, 5, -1)), labels, grad=False)
    assert lazy.grads == {}
    assert lazy.loss.compute(scheduler="threads") == refloss.causal_lm(logits, labels, grad=False).loss


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"labels": np.zeros((6, 9), int)}, ValueError, r"a row for each of labels \(6, 9\)"),
        ({"out": np.zeros((6, 10, 23), np.float32)}, ValueError, "dask.array.store"),
        ({"labels": np.zeros((6, 10))}, TypeError, "expected an integer dtype"),
        ({"grad_dtype": "int8"}, TypeError, "grad_dtype"),
        ({"grad": "labels"}, ValueError, "grad"),
        ({"softcap": -1.0}, ValueError, "softcap"),
        ({"backend": "gpu"}, ValueError, "backend"),
        ({"labels": np.zeros(60, int)}, ValueError, r"labels has shape \(60,\); with Dask arrays expected .*\(6, 10\)"),
        ({"labelz": 1}, TypeError, r"causal_lm\(\) got .* argument 'labelz'; did you mean 'labels'\?"),
        ({"reduction": "sum"}, TypeError, r"causal_lm\(\) got an unexpected keyword argument 'reduction'$"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_computed(arguments, error, words):
    logits, labels = tokens()
    with pytest.raises(error, match=words):
        refloss.causal_lm(**{"logits": da.from_array(logits, chunks=(2, 5, -1)), "labels": labels} | arguments)


def test_a_label_that_is_none_says_in_which_chunk_it_is():
    logits, labels = tokens()
    labels[4, 7] = 23
    lazy = refloss.masked_lm(da.from_array(logits, chunks=(2, 5, -1)), labels)
    with pytest.raises(ValueError, match=r"labels\[0, 2\] = 23 .* begins at \[4, 5\]"):
        lazy.loss.compute(scheduler="synchronous")


@pytest.mark.parametrize(("dtype", "wrong"), [(np.int64, 23), (np.uint64, 2**64 - 100)])
def test_a_shifted_label_that_is_none_is_where_it_was_given(dtype, wrong):
    logits, labels = tokens()
    labels = np.abs(labels).astype(dtype) % dtype(23)
    labels[:, 0] = labels[4, 7] = wrong  # the first of a sequence is of no row
    lazy = refloss.causal_lm(da.from_array(logits, chunks=(2, 5, -1)), da.from_array(labels, chunks=(3, 4)))
    with pytest.raises(ValueError, match=rf"^labels\[4, 7\] = {wrong} is outside \[0, 23\)"):
        lazy.loss.compute(scheduler="synchronous")


def test_chunks_of_unknown_sizes_are_an_error():
    logits, labels = tokens()
    chunked = da.from_array(logits.reshape(60, 23), chunks=(7, -1))
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        refloss.cross_entropy(chunked[chunked[:, 0] > 0], labels.reshape(-1))


def test_a_loss_that_has_no_parts_loads_what_it_is_given():
    generator = np.random.default_rng(0)
    log_probs, advantages = generator.standard_normal((2, 4, 8)), generator.standard_normal(4)
    expected = refloss.policy_loss(*log_probs, advantages)
    got = refloss.policy_loss(*(da.from_array(each, chunks=3) for each in log_probs), advantages)
    assert_same_bits(got.loss, expected.loss)


def test_a_loss_that_does_not_ask_what_divides_it_loads_what_it_is_given():
    def distance(input, target, **_):  # noqa: A002
        return LossResult(np.float64(np.sum(np.abs(np.asarray(input) - np.asarray(target)))))

    lazy = accepts_dask_arrays(FUNCTIONS["mse"].specification)(distance)
    assert lazy(da.from_array(np.arange(4.0), chunks=2), np.ones(4)).loss == 4.0


def test_a_dask_that_cannot_be_imported_is_a_clear_error(monkeypatch):
    logits, labels = tokens()
    refloss.causal_lm(da.from_array(logits, chunks=(2, 5, -1)), labels)
    monkeypatch.setitem(sys.modules, "refloss.lazy.graph", None)
    monkeypatch.delattr(refloss.lazy, "graph")
    with pytest.raises(ImportError, match=r"refloss\[dask\]"):
        refloss.causal_lm(da.from_array(logits, chunks=(2, 5, -1)), labels)


def killing(block, flag):
    """The first worker that comes here ends as if its machine had."""
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return block


@pytest.mark.filterwarnings("ignore:.*:ResourceWarning")
def test_a_worker_that_is_killed_changes_nothing(tmp_path):
    logits, labels = tokens(batch=8)
    expected = refloss.causal_lm(logits, labels, grad_output=-1 / 3)
    chunked = da.from_array(logits, chunks=(2, 5, -1)).map_blocks(
        killing, tmp_path / "killed", dtype=logits.dtype, meta=logits[:0]
    )
    lazy = refloss.causal_lm(chunked, labels, grad_output=-1 / 3)
    options = {"n_workers": 2, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        before = set(client.scheduler_info()["workers"])
        loss, gradient = dask.compute(lazy.loss, lazy.grads["logits"])
        assert set(client.scheduler_info()["workers"]) != before
    assert (tmp_path / "killed").exists()
    assert_same_bits(loss, expected.loss)
    assert_same_bits(gradient, expected.grads["logits"])


BEYOND_MEMORY = """
import resource, sys, threading
import dask, dask.array as da, numpy as np, zarr
import refloss

folder, limit = sys.argv[1], int(sys.argv[2])
refloss.causal_lm(np.zeros((1, 2, 8), np.float32), np.zeros((1, 2), int))  # what it takes to compute at all
logits = da.from_zarr(f"{folder}/logits.zarr")
labels = np.load(f"{folder}/labels.npy", mmap_mode="r")
lazy = refloss.causal_lm(logits, labels)
sink = zarr.open_array(f"{folder}/gradient.zarr")
threading.stack_size(1 << 20)  # stacks are counted, and hardly used
with open("/proc/self/statm") as file:
    own = int(file.read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (own + limit, own + limit))
stored = da.store(lazy.grads["logits"], sink, lock=False, compute=False)
loss, _ = dask.compute(lazy.loss, stored, scheduler="threads", num_workers=2)
print(repr(float(loss)))
"""


def test_a_gradient_that_is_larger_than_memory_goes_to_zarr(tmp_path):
    import zarr

    shape, chunks, limit = (8, 512, 8000), (1, 64, 8000), 80 << 20  # 125 MiB each of logits and gradient
    generator = np.random.default_rng(0)
    logits = generator.standard_normal(shape, np.float32)
    labels = generator.integers(shape[-1], size=shape[:-1])
    assert logits.nbytes > limit
    zarr.create_array(tmp_path / "logits.zarr", data=logits, chunks=chunks, compressors=None)
    zarr.create_array(tmp_path / "gradient.zarr", shape=shape, dtype="f4", chunks=chunks, compressors=None)
    np.save(tmp_path / "labels.npy", labels)
    run = subprocess.run(
        [sys.executable, "-c", BEYOND_MEMORY, tmp_path, str(limit)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    expected = refloss.causal_lm(logits, labels)
    assert float(run.stdout) == expected.loss
    assert_same_bits(zarr.open_array(tmp_path / "gradient.zarr")[:], expected.grads["logits"])


def test_refloss_does_not_import_dask():
    code = "import sys, refloss, refloss.lazy; refloss.mse([1.0], [2.0]); assert 'dask' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
