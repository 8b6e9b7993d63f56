"""Arrays by where they lie: the file that parts are written into is the one that is written as a whole."""

import pickle
from itertools import pairwise, product

import ml_dtypes
import numpy as np
import pytest

from refloss.commands import on_disk
from refloss.files import load_tensors, save_tensors

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint64, np.int32, np.int8, np.bool_]


def in_parts(values, cuts):
    """Slices that cut every axis at some places, and the values there."""
    edges = [
        sorted({0, size, *(min(cut, size) for cut in of_axis)})
        for size, of_axis in zip(values.shape, cuts, strict=True)
    ]
    for index in product(*([slice(*ends) for ends in pairwise(of_axis)] for of_axis in edges)):
        yield index, values[index]


def shapes_and_dtypes(tensors):
    return {name: (np.shape(value), np.asarray(value).dtype) for name, value in tensors.items()}


def test_tensors_of_every_dtype_have_the_places_that_the_library_gives_them(tmp_path):
    generator = np.random.default_rng(0)
    names = "é", "b", "a", "grad.logits", "intermediate.nll", "x", "Z", "loss", "y"
    tensors = {
        name: (generator.standard_normal((3, i + 1)) * 9).astype(dtype)
        for i, (name, dtype) in enumerate(zip(names, DTYPES, strict=True))
    }
    tensors |= {"number": np.float64(2.5), "none": np.empty((0, 3), np.float32), "f": np.asfortranarray(np.eye(3))}
    save_tensors(tmp_path / "whole.safetensors", tensors)
    places = on_disk.create(tmp_path / "parts.safetensors", shapes_and_dtypes(tensors))
    # They go to other processes.
    for name, place in pickle.loads(pickle.dumps(places)).items():
        place[(slice(None),) * np.ndim(tensors[name])] = tensors[name]
    assert (tmp_path / "parts.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.parametrize(
    "cuts", [((), (), ()), ((2, 3), (), ()), ((), (1,), ()), ((1,), (2,), (4,)), ((), (), (1, 3)), ((1, 2), (2,), ())]
)
def test_parts_are_put_where_they_belong(tmp_path, cuts):
    tensors = {"before": np.full(3, -1.0), "x": np.arange(60.0).reshape(4, 3, 5), "xx": np.full(3, -2.0)}
    save_tensors(tmp_path / "whole.safetensors", tensors)
    places = on_disk.create(tmp_path / "parts.safetensors", shapes_and_dtypes(tensors))
    for name, values in tensors.items():
        for index, part in reversed([*in_parts(values, cuts if name == "x" else ((),))]):
            places[name][index] = np.asfortranarray(part)
    assert (tmp_path / "parts.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_part_that_does_not_fit_is_an_error(tmp_path):
    places = on_disk.create(tmp_path / "x.safetensors", {"x": ((4, 3), np.float32)})
    before = (tmp_path / "x.safetensors").read_bytes()
    for index, shape in ((slice(0, 2), (2, 3)), ((slice(0, 2), slice(None)), (3, 3)), ((slice(2, 4),) * 2, (2, 2))):
        with pytest.raises(ValueError, match=r"shape|argument"):
            places["x"][index] = np.ones(shape)
    assert (tmp_path / "x.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["x.npy", "f.npy", "x.npz", "x.safetensors"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_arrays_that_are_mapped_are_found_elsewhere(tmp_path, monkeypatch, name, dtype):
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    monkeypatch.chdir(tmp_path)
    if name.endswith(".npy"):
        np.save(name, np.asfortranarray(values) if name == "f.npy" else values)
    elif name == "x.npz":
        np.savez(name, other=np.ones(3), x=values)
    else:
        save_tensors(tmp_path / name, {"other": np.ones(3), "x": values})
    array = load_tensors(tmp_path.relative_to(tmp_path) / name)["" if name.endswith(".npy") else "x"]
    told = on_disk.places({"parts": [array, 3.0], "few": array.sum(), "axis": np.ones(2)})
    monkeypatch.chdir("/")
    there = pickle.loads(pickle.dumps(told))
    place = there["parts"][0]
    assert (place.shape, place.dtype, place.ndim) == (array.shape, dtype, 3)
    assert np.array_equal(place[1:, :2], values[1:, :2])
    assert not isinstance(place[1:], np.memmap)
    found = on_disk.mapped(there)
    assert isinstance(found["parts"][0], np.memmap)
    assert np.array_equal(found["parts"][0], values)
    assert found["parts"][1:] == [3.0]
    assert np.array_equal(found["axis"], [1.0, 1.0])
