"""The `.mat` reader against SciPy's writer and reader, and on files that are none."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cssformer.prepare import matlab
from cssformer.prepare.matlab import read_label_map, read_mat
from cssformer.utils.errors import UserError

PATH = Path("labels.mat")
NUMBERS = st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])


def mat(compressed: bool = True, **variables: object) -> bytes:
    """A MATLAB file of version 7 (of version 5 if not compressed), written by SciPy."""
    file = io.BytesIO()
    scipy.io.savemat(file, variables, do_compression=compressed)
    return file.getvalue()


def element(kind: int, data: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


def by_hand(order: str = "<", storage: int = 2, numbers: bytes = bytes([1, 2, 3, 4, 5, 6]), size: int = 6) -> bytes:
    """The matrix of doubles [[1, 3, 5], [2, 4, 6]] called S, stored as bytes as MATLAB itself does and SciPy never."""
    body = element(6, struct.pack(f"{order}II", size, 0), order) + element(5, struct.pack(f"{order}2i", 2, 3), order)
    name = struct.pack(f"{order}I", 1 << 16 | 1) + b"S\0\0\0"
    mark = b"IM" if order == "<" else b"MI"
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", 0x0100) + mark
    return header + element(14, body + name + element(storage, numbers, order), order)


@given(
    st.dictionaries(
        st.text("abcdefghijklmnopqrstuvwxyzABC", min_size=1, max_size=31),
        NUMBERS.flatmap(lambda kind: arrays(kind, array_shapes(min_dims=2, max_dims=3, max_side=7))),
        min_size=1,
        max_size=3,
    ),
    st.booleans(),
)
def test_numbers_of_all_kinds(variables: dict[str, np.ndarray], compressed: bool) -> None:
    found = read_mat(mat(compressed, **variables), PATH)
    assert found.keys() == variables.keys()
    for name, array in variables.items():
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name].values, array)


@given(arrays("u2", array_shapes(min_dims=2, max_dims=2, max_side=9)), NUMBERS)
def test_label_map_of_any_number_type(labels: np.ndarray, kind: str) -> None:
    labels = (labels % 128).astype(kind)
    found = read_label_map(read_mat(mat(S=labels), PATH), "S", PATH)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, labels)


def test_what_is_no_number_has_a_shape_only() -> None:
    cells = np.array(["wall", "sky", "a much longer name"], object)
    data = mat(names=cells, captions="some text", structure={"a": 1}, complexes=np.array([[1j, 2]]), S=np.eye(2))
    found = read_mat(data, PATH)
    assert found["names"] == ((1, 3), None)
    assert found["captions"].values is found["structure"].values is found["complexes"].values is None
    np.testing.assert_array_equal(found["S"].values, np.eye(2))


@pytest.mark.parametrize("order", ["<", ">"])
def test_doubles_stored_as_bytes_in_both_byte_orders(order: str) -> None:
    data = by_hand(order)
    theirs = scipy.io.loadmat(io.BytesIO(data))["S"]
    np.testing.assert_array_equal(theirs, [[1, 3, 5], [2, 4, 6]])
    np.testing.assert_array_equal(read_label_map(read_mat(data, PATH), "S", PATH), theirs)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not a MATLAB file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "not a MATLAB file"),
        (b"<html>" + b" " * 500, "not a MATLAB file"),
        (b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + bytes(400), "version 7.3"),
        (bytes(512) + b"\x89HDF\r\n\x1a\n", "version 7.3"),
        (mat(S=np.eye(9))[:-5], "damaged"),
        (mat(False, S=np.eye(9))[:-5], "damaged"),
        (by_hand(storage=99), "damaged"),
        (by_hand(numbers=bytes(5)), "damaged"),
        (mat(S=np.eye(9))[:136] + b"not zlib" * 9, "damaged"),
    ],
)
def test_files_that_are_none(data: bytes, problem: str) -> None:
    with pytest.raises(UserError, match=rf"^labels.mat .*{problem}.*\.$"):
        read_mat(data, PATH)


@pytest.mark.parametrize(
    "values",
    [
        *(np.full((2, 2), value) for value in (0.5, -1, 1 << 16, np.nan, np.inf)),
        *(np.zeros(shape) for shape in ((2, 2, 2), (0, 0))),
        np.eye(2) * 1j,
        "text",
    ],
)
def test_variables_that_are_no_labels(values: object) -> None:
    with pytest.raises(UserError, match=r"^The variable S of labels.mat "):
        read_label_map(read_mat(mat(S=values), PATH), "S", PATH)


def test_a_missing_variable() -> None:
    with pytest.raises(UserError, match=r"has no variable S \(it holds LabelMap\)"):
        read_label_map(read_mat(mat(LabelMap=np.eye(2)), PATH), "S", PATH)


def test_a_variable_that_inflates_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matlab, "MOST_BYTES", 1 << 16)
    header = mat(S=np.eye(2))[:128]
    bomb = zlib.compress(bytes(1 << 20))
    with pytest.raises(UserError, match="damaged"):
        read_mat(header + struct.pack("<II", 15, len(bomb)) + bomb, PATH)
    # What earlier variables took is missing to later ones.
    two = mat(A=np.zeros((64, 64)), B=np.zeros((64, 64)))
    with pytest.raises(UserError, match="damaged"):
        read_mat(two, PATH)
    assert read_mat(mat(A=np.zeros((64, 64))), PATH)["A"].shape == (64, 64)


@given(st.binary(max_size=200), st.integers(0, 400), st.booleans())
def test_any_bytes_are_read_or_refused_in_one_sentence(noise: bytes, place: int, compressed: bool) -> None:
    whole = mat(compressed, S=np.arange(12).reshape(3, 4), names=np.array(["a", "b"], object))
    for data in (noise, whole[:128] + noise, whole[:place] + noise + whole[place + len(noise) :]):
        try:
            read_label_map(read_mat(data, PATH), "S", PATH)
        except UserError as error:
            assert "labels.mat" in str(error) and "\n" not in str(error)
