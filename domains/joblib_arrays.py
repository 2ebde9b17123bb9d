"""Large NumPy arrays in the arguments of joblib's calls: copied once for all batches of a `Parallel` call.

Each batch is pickled by itself, so an array that all of them are given would be copied for each. In its place goes a
view of one copy in shared memory, which travels without being copied. The array must not change during the call, as
with joblib's own memory mapping. An array that is a mapped file, or a part of one, is mapped by the domains as well, so
that what they write, where it may be written, is in the file.
"""

from __future__ import annotations

import mmap
import sys
import threading
from typing import Any, Literal, NamedTuple

from domains.ipc.arena import process_arena


class _MappedFile(NamedTuple):
    """Stands for a `numpy.memmap` or a part of one, and arrives as that: what to map, and where in it the items lie."""

    filename: str
    mode: Literal["r", "r+"]
    offset: int
    length: int
    first: int
    dtype: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return _map_file, tuple(self)


def _map_file(
    filename: str,
    mode: Literal["r", "r+"],
    offset: int,
    length: int,
    first: int,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> Any:
    import numpy

    memory = numpy.memmap(filename, numpy.uint8, mode, offset, length)
    array = numpy.ndarray(shape, dtype, memory, first, strides).view(numpy.memmap)
    array.__array_finalize__(memory)  # which tells it the name of its file
    return array


def _describe_mapped(array: Any, numpy: Any) -> _MappedFile | None:
    """None if the array does not lie in a mapped file, or its changes are not for the file."""
    mapped = array
    while not isinstance(base := getattr(mapped, "base", None), mmap.mmap | None):
        mapped = base
    if base is None or not isinstance(mapped, numpy.memmap) or not mapped.filename:
        return None
    if mapped.mode == "c" or not array.nbytes:
        return None
    reaches = [(count - 1) * stride for count, stride in zip(array.shape, array.strides, strict=True)]
    first = -sum(reach for reach in reaches if reach < 0)
    length = first + sum(reach for reach in reaches if reach > 0) + array.itemsize
    offset = mapped.offset + _address(array) - _address(mapped) - first
    mode: Literal["r", "r+"] = "r+" if array.flags.writeable else "r"
    return _MappedFile(str(mapped.filename), mode, offset, length, first, array.dtype, array.shape, array.strides)


def _address(array: Any) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


class SharedArrays:
    """The arrays of one `Parallel` call. May be used by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._copies: dict[int, tuple[Any, Any]] = {}  # by identity, with the array, which so keeps its identity

    def share(self, value: Any, least_bytes: float) -> Any:
        """What to send for an argument: for a large array a read-only view of its copy, else mostly the argument."""
        numpy = sys.modules.get("numpy")
        if numpy is None or type(value) not in (numpy.ndarray, numpy.memmap):
            return value
        mapped = _describe_mapped(value, numpy)
        if mapped is not None:
            return mapped
        if value.nbytes < least_bytes:
            return value
        flags = value.flags
        order = "C" if flags.c_contiguous else "F"
        if value.dtype.hasobject or not (flags.c_contiguous or flags.f_contiguous):
            return value
        with self._lock:
            known = self._copies.get(id(value))
            if known is None:
                memory = process_arena().keep([value.ravel(order="K").view(numpy.uint8)])
                copy = value if memory is None else numpy.ndarray(value.shape, value.dtype, memory, order=order)
                known = self._copies[id(value)] = value, copy
        return known[1]

    def forget(self) -> None:
        """The call is over."""
        with self._lock:
            self._copies.clear()
