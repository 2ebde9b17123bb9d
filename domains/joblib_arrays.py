"""Large NumPy arrays in the arguments of joblib's calls: copied once for all batches of a `Parallel` call.

Each batch is pickled by itself, so an array that all of them are given would be copied for each. In its place goes a
view of one copy in shared memory, which travels without being copied. The array must not change during the call, as
with joblib's own memory mapping. An array that is a mapped file is mapped by the domains as well, so that what they
write, where it may be written, is in the file.
"""

from __future__ import annotations

import mmap
import sys
import threading
from typing import Any, NamedTuple

from domains.ipc.arena import process_arena


class _MappedFile(NamedTuple):
    """Stands for a `numpy.memmap`, and arrives as one."""

    filename: str
    dtype: Any
    mode: str
    offset: int
    shape: tuple[int, ...]
    order: str

    def __reduce__(self) -> tuple[Any, ...]:
        return _map_file, tuple(self)


def _map_file(*description: Any) -> Any:
    import numpy

    return numpy.memmap(*description)


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
        flags = value.flags
        order = "C" if flags.c_contiguous else "F"
        if type(value) is numpy.memmap and isinstance(value.base, mmap.mmap) and value.filename and value.mode != "c":
            mode = "r" if value.mode == "r" else "r+"
            return _MappedFile(str(value.filename), value.dtype, mode, value.offset, value.shape, order)
        if value.nbytes < least_bytes:
            return value
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
