"""NumPy arrays in memory that several domains write at the same time.

Such an array is an ordinary `numpy.ndarray`. What makes it shared is where it lies: passed to another domain, in an
argument, a result or a promise's value, it arrives as a view of the same memory. It is released when the last view of
it, in whichever domain, is gone. Who writes when is for the program to say, with a mutex of its own, for instance.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from domains.errors import ArenaFull
from domains.ipc.arena import process_arena

if TYPE_CHECKING:
    import numpy
    from numpy.typing import DTypeLike


def shared_array(shape: int | Sequence[int], dtype: DTypeLike = float) -> numpy.ndarray[Any, Any]:
    """A new array of zeros that every domain it is passed to may read and write.

    Contiguous parts of it are shared as well when they are passed on; other parts travel as copies, and so does all of
    it to another machine. Raises ArenaFull if there is not so much shared memory left, ValueError for a negative size,
    TypeError for a dtype that holds Python objects or has no size, such as "U" for text of any length.
    """
    import numpy

    kind = numpy.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"an array of dtype {kind} holds Python objects, which cannot be shared between domains")
    if not kind.itemsize:
        raise TypeError(f"an array of dtype {kind} has no size: say how long an item is, such as {kind.char + '10'!r}")
    sizes = tuple(map(operator.index, shape)) if isinstance(shape, Sequence) else (operator.index(shape),)
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape must have no negative size, but is {shape!r}")
    length = math.prod(sizes) * kind.itemsize
    arena = process_arena()
    memory = arena.allocate_shared(length)
    if memory is None:
        raise ArenaFull(length, arena.limit_bytes)
    return numpy.ndarray(sizes, kind, memory)
