"""Files that no writer has written, and disks that are full: one ValueError or OSError, whatever the bytes are."""

import errno
import io
import json
import os
import re
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

import refloss
from refloss import files
from refloss.files import disk_array, load_tensors, nested, save_tensors

VALUES = np.arange(6.0).reshape(2, 3)


def npy(array=VALUES):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_with(header, data=b"", version=1):
    """A .npy file with a header of one's own."""
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


def header_of(shape, descr="<f8"):
    return f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"


def npz(method=zipfile.ZIP_STORED, **members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def in_directory(data, offset, kind, value):
    """An archive whose directory says something else of its first member."""
    at = data.index(b"PK\x01\x02") + offset
    return data[:at] + struct.pack(kind, value) + data[at + struct.calcsize(kind) :]


def lying(data, size):
    """An archive whose directory gives its first member another size."""
    return in_directory(in_directory(data, 20, "<I", size), 24, "<I", size)


def both_headers(data, local, central, kind, value):
    """An archive that says something else of its only member in both places."""
    assert data.startswith(b"PK\x03\x04")
    changed = data[:local] + struct.pack(kind, value) + data[local + struct.calcsize(kind) :]
    return in_directory(changed, central, kind, value)


def at_first_byte(data, value):
    """An archive whose first member begins with another byte."""
    at = 30 + len("a.npy")
    return data[:at] + bytes([value]) + data[at + 1 :]


# Newer zipfile modules find it before we do.
BEYOND_ITS_MEMBER = ("bytes of data; float64 of shape (900,) takes 7200", "Overlapped entries")


SHORT = npy_with(header_of((4,)), bytes(8))  # of four elements only one is there
LONG = npy(np.ones(2000))

FAULTY = {
    "short.npy": (SHORT, "8 bytes of data; float64 of shape (4,) takes 32"),
    "short-stored.npz": (npz(a=SHORT, b=LONG), "8 bytes of data; float64 of shape (4,) takes 32"),
    "short-deflated.npz": (
        npz(zipfile.ZIP_DEFLATED, a=SHORT, b=LONG),
        "8 bytes of data; float64 of shape (4,) takes 32",
    ),
    "sized-into-the-next.npz": (
        lying(npz(a=npy_with(header_of((900,)), bytes(4800)), b=LONG), 9000),
        BEYOND_ITS_MEMBER,
    ),
    "sized-past-the-end.npz": (
        lying(npz(a=npy_with(header_of((900,)), bytes(4800))), 10**9),
        BEYOND_ITS_MEMBER,
    ),
    "torn-header.npy": (npy_with("{'descr': (", VALUES.tobytes()), "TokenError"),
    "torn-header.npz": (npz(a=npy_with("{'descr': (", VALUES.tobytes())), "TokenError"),
    "nested-header.npy": (npy_with("(" * 9000), ""),
    "escaped-header.npy": (npy_with("{'\\d': 1}"), ""),
    "header-of-another-kind.npy": (npy_with("5"), "not a dictionary"),
    "unknown-type.npy": (npy_with(header_of((1,), "tea"), bytes(8)), ""),
    "version.npy": (npy_with(header_of((1,)), bytes(8), version=9), "version (9, 0) of the format"),
    "huge.npy": (npy_with(header_of((2**62, 2**62))), "0 bytes of data"),
    "huge.npz": (npz(a=npy_with(header_of((2**62, 2**62)))), "0 bytes of data"),
    "huge-deflated.npz": (
        npz(zipfile.ZIP_DEFLATED, a=npy_with(header_of((2**40,)))),
        "0 bytes of data",
    ),
    "huge-and-empty.npy": (npy_with(header_of((0, 2**70))), ""),
    "negative.npy": (npy_with(header_of((-1, -1)), bytes(8)), "shape (-1, -1)"),
    "twice.npz": (None, "member 'a.npy' is there twice"),
    "text.npz": (None, "member 'read.me' is no .npy file"),
    "encrypted.npz": (both_headers(npz(a=npy()), 6, 8, "<H", 1), "is encrypted"),
    "unknown-method.npz": (both_headers(npz(a=npy()), 8, 10, "<H", 99), "compression method is not supported"),
    "deflated.npz": (at_first_byte(npz(zipfile.ZIP_DEFLATED, a=LONG), 0xFF), "invalid block type"),
    "bzip2.npz": (npz(zipfile.ZIP_BZIP2, a=LONG).replace(b"BZh9", b"BZh\0"), "Invalid data stream"),
    "lzma.npz": (npz(zipfile.ZIP_LZMA, a=LONG).replace(b"\x5d\x00\x00", b"\xff\x00\x00"), "LZMAError"),
    "gap.safetensors": (
        safetensors({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
        "",
    ),
    "overlap.safetensors": (
        safetensors({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        "",
    ),
    "outside.safetensors": (safetensors({"a": entry([4], 0, 16)}, bytes(8)), ""),
    "backwards.safetensors": (safetensors({"a": entry([1], 4, 0)}, bytes(4)), ""),
    "other-size.safetensors": (safetensors({"a": entry([3], 0, 8)}, bytes(8)), ""),
    "huge.safetensors": (
        safetensors({"a": entry([2**62, 2**62], 0, 8)}, bytes(8)),
        "",
    ),
    "huge-and-empty.safetensors": (safetensors({"a": entry([0, 2**63], 0, 0)}), ""),
    "longer.safetensors": (safetensors({"a": entry([1], 0, 4)}, bytes(8)), ""),
    "negative.safetensors": (safetensors({"a": entry([-1], 0, 4)}, bytes(4)), ""),
    "nested.safetensors": (safetensors(b'{"a":' * 50000 + b"}" * 50000), ""),
    "garbled.safetensors": (safetensors(b"\xff\xfe{}"), ""),
    "list.safetensors": (safetensors([]), ""),
    "no-offsets.safetensors": (safetensors({"a": {"dtype": "F32"}}), ""),
}


def written(folder, name, data):
    path = folder / name
    if data is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", npy())
            if name == "twice.npz":
                with pytest.warns(UserWarning, match="Duplicate name"):
                    archive.writestr("a.npy", npy())
            else:
                archive.writestr("read.me", b"text")
    else:
        path.write_bytes(data)
    return path


@pytest.mark.parametrize(("name", "data", "message"), [(name, *rest) for name, rest in FAULTY.items()], ids=FAULTY)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, name, data, message):
    path = written(tmp_path, name, data)
    with pytest.raises(ValueError, match=re.escape(f"{path}: not a readable {path.suffix} file: ")) as raised:
        load_tensors(path)
    assert any(each in str(raised.value) for each in ([message] if isinstance(message, str) else message))
    assert len(str(raised.value).splitlines()) == 1


SOUND = {
    "c.npy": npy(),
    "fortran.npy": npy(np.asfortranarray(VALUES)),
    "stored.npz": npz(a=npy(), b=npy(np.arange(3))),
    "deflated.npz": npz(zipfile.ZIP_DEFLATED, a=npy(), b=npy(np.arange(3))),
    "bzip2.npz": npz(zipfile.ZIP_BZIP2, a=npy()),
    "lzma.npz": npz(zipfile.ZIP_LZMA, a=npy()),
    "two.safetensors": safetensors({"a": entry([2], 0, 8), "b": entry([2, 2], 8, 24)}, bytes(24)),
}


@pytest.mark.parametrize(("name", "data"), SOUND.items(), ids=SOUND)
def test_no_bytes_do_more_than_raise_an_error(tmp_path, name, data):
    """Cut off everywhere, and with other bytes in every place."""
    path = tmp_path / name
    path.write_bytes(data)
    assert load_tensors(path)
    variants = [data[:size] for size in range(len(data))]
    variants += [
        data[:place] + bytes([other]) + data[place + 1 :]
        for place, byte in enumerate(data)
        for other in {0, 0xFF, byte ^ 1, byte ^ 0x80, *b"(9\\"} - {byte}
    ]
    refused = []
    for variant in variants:
        path.write_bytes(variant)
        try:
            for array in load_tensors(path).values():
                np.array(array)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) >= len(data)
    assert all(len(message.splitlines()) == 1 for message in refused)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_of_every_compression(tmp_path, method):
    (tmp_path / "x.npz").write_bytes(npz(method, a=npy(), b=npy(np.float32(3)), c=npy(np.empty((0, 2))), d=LONG))
    tensors = load_tensors(tmp_path / "x.npz")
    assert np.array_equal(tensors["a"], VALUES)
    assert (tensors["b"].shape, tensors["b"].dtype, float(tensors["b"])) == ((), np.float32, 3.0)
    assert tensors["c"].shape == (0, 2)
    assert np.array_equal(tensors["d"], np.ones(2000))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_of_numpy_s_format(tmp_path, version):
    (tmp_path / "x.npy").write_bytes(npy_with(header_of((2, 3)), VALUES.tobytes(), version))
    assert np.array_equal(load_tensors(tmp_path / "x.npy")[""], VALUES)


def test_the_first_of_several_arrays_in_a_file(tmp_path):
    (tmp_path / "x.npy").write_bytes(npy() + npy(np.arange(3)))
    assert np.array_equal(load_tensors(tmp_path / "x.npy")[""], VALUES)


@pytest.mark.parametrize("tensors", [{"a": 1, "a.0": 2}, {"a.0": 2, "a": 1}, {"a.b.c": 1, "a.b": 2}], ids=str)
def test_a_tensor_that_has_parts(tensors):
    with pytest.raises(ValueError, match="is a tensor itself"):
        nested(tensors)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_space_of_an_array_on_disk_is_taken_before_it_is_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space left on device") as raised:
        disk_array(tmp_path, (3, 4), np.dtype(np.float32)).__enter__()
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path))


@pytest.mark.parametrize("reason", [errno.EOPNOTSUPP, errno.EINVAL, None])
@pytest.mark.parametrize("shape", [(), (3, 4), (700, 1000), (0, 2)])
def test_space_is_taken_by_zeros_where_there_is_no_other_way(tmp_path, monkeypatch, reason, shape):
    if reason is None:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    else:

        def refused(*_):
            raise OSError(reason, os.strerror(reason))

        monkeypatch.setattr(os, "posix_fallocate", refused, raising=False)
    reserved = []
    reserve = files._reserve
    monkeypatch.setattr(
        files, "_reserve", lambda file, size: (reserve(file, size), reserved.append(os.fstat(file.fileno()).st_size))
    )
    with disk_array(tmp_path, shape, np.dtype(np.float32)) as array:
        assert (array.shape, array.dtype) == (shape, np.float32)
        assert not array.any()
        array[...] = 3.0
    assert reserved == ([] if 0 in shape else [array.nbytes])


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (
            "Error while serializing: I/O error: No space left on device (os error 28)",
            OSError,
            r"\[Errno 28\] No space left on device: '.*x.safetensors'",
        ),
        ("something else", ValueError, "x.safetensors: cannot be written: SafetensorError: something else"),
    ],
)
def test_an_error_of_the_library_that_writes_is_one_of_python_s(tmp_path, monkeypatch, words, kind, message):
    def broken(*_):
        raise SafetensorError(words)

    monkeypatch.setattr(files, "save_file", broken)
    with pytest.raises(kind, match=message):
        save_tensors(tmp_path / "x.safetensors", {"a": VALUES})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tiny(tmp_path):
    """A disk of 256 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def compute(folder, out, kib, limit_kib=None):
    """Compute a gradient of so many KiB in a process that may write files of limit_kib."""
    logits = np.ones((kib, 256), np.float32)
    labels = np.zeros(kib, np.int64)
    save_file({"logits": logits, "labels": labels}, folder / "in.safetensors")
    refloss.masked_lm(logits, labels)  # compiled here, so that no cache is written there
    limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_kib} * 1024,) * 2)\n" if limit_kib else ""
    program = f"import resource, sys\nfrom refloss.cli import main\n{limit}main()"
    arguments = ["compute", "masked_lm", str(folder / "in.safetensors"), "--out", str(out)]
    run = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    return run.returncode, run.stderr


@pytest.mark.parametrize("kib", [512, 192], ids=["gradient", "file"])
def test_a_full_disk(tmp_path, tiny, kib):
    """Too small for the gradient, or for the file beside it."""
    status, err = compute(tmp_path, tiny / "out.safetensors", kib)
    assert (status, len(err.splitlines())) == (2, 1), err
    assert err.startswith("refloss: [Errno 28] No space left on device: ")
    assert list(tiny.iterdir()) == []


@pytest.mark.parametrize("limit", [256, 513], ids=["gradient", "file"])
def test_a_limit_on_the_size_of_files(tmp_path, limit):
    pytest.importorskip("resource")
    status, err = compute(tmp_path, tmp_path / "out.safetensors", 512, limit)
    assert (status, len(err.splitlines())) == (2, 1), err
    assert err.startswith(f"refloss: [Errno {errno.EFBIG}] ")
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError), disk_array(tmp_path / "no", (3,), np.dtype(np.float32)):
        pass
    with pytest.raises(FileNotFoundError):
        save_tensors(tmp_path / "no" / "x.safetensors", {"a": VALUES})
