"""MATLAB's files of versions 5 to 7 (``.mat``): a header, then an element a variable, each perhaps deflated.

The layout is that of "MAT-File Format" (The MathWorks). Reading label maps needs so little of it that memory stays
bounded whatever a file claims. SciPy's reader (1.17) ends the process by a segmentation fault on damaged files.
"""

import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cssformer.utils.errors import UserError

_HEADER = 128
_MATRIX, _DEFLATED = 14, 15
# How numbers are stored, whatever the class of their array: MATLAB stores doubles that are small integers as bytes.
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
# Array classes of numbers (double to uint64), and those above all others, laid out in a way of their own.
_NUMERIC, _OPAQUE = range(6, 16), 17
_COMPLEX = 0x800
MOST_BYTES = 1 << 28
"""Of all variables of a file together, after inflating."""


class Variable(NamedTuple):
    """A variable of a file: its shape, and its values if they are real numbers."""

    shape: tuple[int, ...]
    values: NDArray[Any] | None


def read_mat(data: bytes, path: Path) -> dict[str, Variable]:
    """Decode the variables of a MATLAB file of version 5, 6 or 7.

    Raises:
        UserError: another kind of file (MATLAB 7.3 writes HDF5), damaged, or inflating to more than ``MOST_BYTES``.
    """
    if data[:10] == b"MATLAB 7.3" or data[512:516] == b"\x89HDF":
        raise UserError(f"{path} is a MATLAB file of version 7.3 (HDF5); save it in MATLAB with the option -v7.")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:_HEADER])
    if order is None:
        raise UserError(f"{path} is not a MATLAB file (.mat); get a whole copy of the annotations.")
    try:
        return dict(_variables(memoryview(data)[_HEADER:], order))
    except (ValueError, KeyError, zlib.error):
        raise UserError(f"{path} is damaged; get a whole copy of the annotations.") from None


def read_label_map(variables: dict[str, Variable], name: str, path: Path) -> NDArray[np.uint16]:
    """Return the variable ``name`` as labels (H, W).

    Raises:
        UserError: there is no such variable, or it is no matrix of integers from 0 to 65535.
    """
    if name not in variables:
        there = ", ".join(variables) or "nothing"
        raise UserError(f"{path} has no variable {name} (it holds {there}); these are not the right annotations.")
    values = variables[name].values
    if values is None or values.ndim != 2 or not values.size:
        raise UserError(f"The variable {name} of {path} is no matrix of labels.")
    if not 0 <= values.min() <= values.max() < 1 << 16 or (values != (labels := values.astype(np.uint16))).any():
        raise UserError(f"The variable {name} of {path} holds values that are no labels.")
    return labels


def _variables(data: memoryview, order: str) -> Iterator[tuple[str, Variable]]:
    left = MOST_BYTES
    for kind, body in _elements(data, order):
        if kind == _DEFLATED:
            inflator = zlib.decompressobj()
            # None at all would mean: without limit.
            inflated = memoryview(inflator.decompress(body, max(1, left)))
            if not inflator.eof:
                raise ValueError("a variable is cut off or too large")
            left -= len(inflated)
            kind, body = next(_elements(inflated, order), (0, inflated))
        if kind == _MATRIX and body:
            yield from _variable(body, order)


def _variable(body: memoryview, order: str) -> Iterator[tuple[str, Variable]]:
    elements = _elements(body, order)
    flags = np.frombuffer(next(elements, (0, b""))[1], f"{order}u4")
    if not flags.size or flags[0] & 0xFF >= _OPAQUE:
        return
    (_, dimensions), (_, name) = islice(elements, 2)
    shape = tuple(np.frombuffer(dimensions, f"{order}i4").tolist())
    values = None
    if flags[0] & 0xFF in _NUMERIC and not flags[0] & _COMPLEX:
        kind, numbers = next(elements, (2, b""))
        values = np.frombuffer(numbers, f"{order}{_NUMBERS[kind]}")
        if min(shape) < 0:
            raise ValueError(f"a shape of {shape}")
        values = values.reshape(shape, order="F")
    yield bytes(name).decode("ascii"), Variable(shape, values)


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The data elements in a row, each a kind and its bytes."""
    position = 0
    while position + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, position)
        start, end = position + 8, position + 8 + size
        if kind >> 16:
            # Up to four bytes stand within the tag.
            kind, size = kind & 0xFFFF, kind >> 16
            start, end = position + 4, position + 4 + min(size, 4)
            position += 8
        else:
            position = end if kind == _DEFLATED else end + -size % 8
        if end > len(data):
            raise ValueError("it ends before its data do")
        yield kind, data[start:end]
