"""Large NumPy arrays in the arguments of joblib's calls: copied once for all batches of a `Parallel` call.

Each batch is pickled by itself, so an array that all of them are given would be copied for each. In its place goes a
view of one copy in shared memory, which travels without being copied. The array must not change during the call, as
with joblib's own memory mapping.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from domains.ipc.arena import process_arena


class SharedArrays:
    """The arrays of one `Parallel` call. May be used by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._copies: dict[int, tuple[Any, Any]] = {}  # by identity, with the array, which so keeps its identity

    def share(self, value: Any, least_bytes: float) -> Any:
        """What to send for an argument: for a large array a read-only view of its copy, else the argument itself."""
        numpy = sys.modules.get("numpy")
        if numpy is None or type(value) not in (numpy.ndarray, numpy.memmap) or value.nbytes < least_bytes:
            return value
        flags = value.flags
        if value.dtype.hasobject or not (flags.c_contiguous or flags.f_contiguous):
            return value
        with self._lock:
            known = self._copies.get(id(value))
            if known is None:
                order = "C" if flags.c_contiguous else "F"
                memory = process_arena().keep([value.ravel(order="K").view(numpy.uint8)])
                copy = value if memory is None else numpy.ndarray(value.shape, value.dtype, memory, order=order)
                known = self._copies[id(value)] = value, copy
        return known[1]

    def forget(self) -> None:
        """The call is over."""
        with self._lock:
            self._copies.clear()
