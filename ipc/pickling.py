"""Turning what users hand over into bytes and back, with large buffers kept apart.

The C pickler goes first; cloudpickle takes over where that fails, or where the result speaks of `__main__`, whose
functions and classes only the sender has. Objects that are passed by reference are reduced by the functions that
the Pickling was made with, in either pickler. Whatever goes wrong becomes one `NotPicklable` that names the path to
the culprit, even where a user's code exits; only Ctrl-C and a cancellation, which come from outside, pass through.
A pickle that is itself large, such as one of `bytes`, which must be copied to be rebuilt, travels as the last of its
buffers, so that envelopes stay small; large objects in it are copied once on this side.
What was pickled is a snapshot, if there is a memory to keep it in.
Nothing here waits or keeps state; opening a pickle runs code, so only authenticated peers get this far.
"""

from __future__ import annotations

import array
import asyncio
import copyreg
import functools
import pickle
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from sys import getsizeof
from typing import Any, Literal, NamedTuple, Protocol

from domains.errors import Cancelled, DomainDied, NotPicklable
from domains.ipc.descriptors import LostBuffer
from domains.ipc.frames import MOST_BUFFERS, byte_view
from domains.ipc.unpicklable import describe, find_culprit

__all__ = ["OUT_OF_BAND_BYTES", "Payload", "Pickling"]

OUT_OF_BAND_BYTES = 1 << 16
"""Buffers from this size on travel beside the pickle."""

_PROTOCOL = 5
_IN_LAST_BUFFER = pickle.STOP
"""Stands for a pickle that is the last buffer; no pickle is this one byte alone."""

_FROM_OUTSIDE = (KeyboardInterrupt, Cancelled)
_SCALARS = frozenset({int, float, bool, str, bytes, type(None), complex})

Reducer = Callable[[Any], Any]
_SURELY_DATA_BYTES = 1 << 17
"""A piece as large as this that does not begin as the pickler begins its own is some object's bytes."""

_BEGINNINGS = (pickle.PROTO, pickle.FRAME)

_Keeper = Callable[[pickle.PickleBuffer], bool]


class Payload(NamedTuple):
    """A pickle, the buffers that belong to it, in order, and what must live until it has arrived."""

    data: bytes
    buffers: list[Any]
    holds: Sequence[int] = ()


class Memory(Protocol):
    """Where large buffers are kept until they were read on the other side; `domains.ipc.arena` has one."""

    has_shared: bool
    """Whether there may be buffers in it that both sides write: those go out of band however small."""

    def keep(self, pieces: Sequence[Any], /) -> memoryview | None:
        """A copy of the pieces, joined, or None if there is no room."""

    def holds(self, buffer: Any, /) -> bool:
        """Whether a buffer lies in there already."""


class Pickling:
    """Pickles for one process's conversations. `reducers` are for the classes that travel by reference."""

    def __init__(self, reducers: Mapping[type, Reducer] | None = None, memory: Memory | None = None) -> None:
        self._memory = memory
        self._reducers: dict[type, Reducer] = {
            memoryview: _reduce_memoryview,
            array.array: _reduce_array,
            **(reducers or {}),
        }
        self._registered: dict[Any, Any] | None = None
        self._knows_numpy = False
        self._table: dict[type, Reducer] = {}
        self._cloud_pickler: Any = None

    def dumps(self, value: object, what: str, *about: object) -> Payload:
        """Pickle a value. Raises NotPicklable: `what % about`, and the path in it, is what cannot travel."""
        kind = type(value)
        if kind is tuple:
            assert isinstance(value, tuple)
            if _SCALARS.issuperset(map(type, value)) and sum(map(getsizeof, value)) < OUT_OF_BAND_BYTES:
                return Payload(pickle.dumps(value, _PROTOCOL), [])
        elif kind in _SCALARS and getsizeof(value) < OUT_OF_BAND_BYTES:
            return Payload(pickle.dumps(value, _PROTOCOL), [])
        buffers: list[pickle.PickleBuffer] = []
        keep = self._keeper(buffers)
        try:
            pieces = self._dump(value, keep)
            by_value = _speaks_of_main(pieces)
        except _FROM_OUTSIDE:
            raise
        except BaseException:
            by_value = True
        if by_value:
            buffers.clear()
            pieces = self._dump_by_value(value, what % about if about else what, keep)
        if len(buffers) >= MOST_BUFFERS:
            why = f"it has {len(buffers)} large buffers or parts of shared arrays, and a message takes {MOST_BUFFERS}"
            raise NotPicklable(what % about if about else what, why, "Send the arrays as a whole.")
        return self._payload(pieces, buffers)

    def dumps_function(self, f: Callable[..., Any]) -> bytes:
        """Pickle a function: by name where another process can import it, else by value. Raises NotPicklable."""
        # Functions are kept and compared as bytes, so what they hold goes in band, however large.
        try:
            pieces = self._dump(f, None)
            if not _speaks_of_main(pieces):
                return b"".join(pieces)
        except _FROM_OUTSIDE:
            raise
        except BaseException:
            pass
        what = f"function {getattr(f, '__qualname__', None) or type(f).__qualname__}"
        return b"".join(self._dump_by_value(f, what, None))

    def loads(self, data: bytes | memoryview, buffers: Sequence[Any]) -> Any:
        """Open a pickle. Raises NotPicklable for whatever goes wrong in that, and DomainDied if part of it is gone."""
        for buffer in buffers:
            if isinstance(buffer, LostBuffer):
                if buffer.why is not None:
                    raise NotPicklable("what arrived", buffer.why)
                raise DomainDied("that sent this", what="before the data was received")
        try:
            if data == _IN_LAST_BUFFER:
                return pickle.loads(buffers[-1], buffers=buffers[:-1])
            return pickle.loads(data, buffers=buffers)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if isinstance(error, Cancelled) and asyncio._get_running_loop() is None:
                raise  # a plain job is interrupted; where a loop runs nobody is
            raise NotPicklable("what arrived", f"it cannot be rebuilt here: {describe(error)}", _hint(error)) from error

    def _begin_attempt(self) -> None:
        """A pickle is begun; whatever reducers did for the one before, which is not used, is to be undone."""

    def _keeper(self, buffers: list[pickle.PickleBuffer]) -> _Keeper:
        """A buffer callback: True leaves the buffer in the pickle."""
        memory = self._memory

        def keep(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes < OUT_OF_BAND_BYTES and not (memory is not None and memory.has_shared and memory.holds(raw)):
                return True
            buffers.append(buffer)
            return False

        return keep

    def _payload(self, pieces: list[Any], buffers: list[pickle.PickleBuffer]) -> Payload:
        memory = self._memory
        kept: list[Any] = [_snapshot(buffer, memory) for buffer in buffers] if memory is not None else list(buffers)
        if len(pieces) == 1 and len(pieces[0]) < OUT_OF_BAND_BYTES:
            return Payload(pieces[0], kept)
        if sum(map(len, pieces)) < OUT_OF_BAND_BYTES:
            return Payload(b"".join(pieces), kept)
        data = memory.keep(pieces) if memory is not None else None
        kept.append(b"".join(pieces) if data is None else data)
        return Payload(_IN_LAST_BUFFER, kept)

    def _dump(self, value: object, keep: _Keeper | None) -> list[Any]:
        self._begin_attempt()
        if not self._knows_numpy and "numpy" in sys.modules:
            self._learn_numpy(sys.modules["numpy"])
        if copyreg.dispatch_table != self._registered:
            self._registered = dict(copyreg.dispatch_table)
            self._table = {**self._registered, **self._reducers}
        return _pieces_of(pickle.Pickler, value, keep, self._table)

    def _learn_numpy(self, numpy: Any) -> None:
        """Plain arrays travel in half the time that they take by NumPy's own way."""
        if hasattr(numpy, "ndarray"):  # else it is being imported right now
            self._knows_numpy = True
            self._reducers[numpy.ndarray] = functools.partial(_reduce_ndarray, numpy.dtype)
            self._registered = None

    def _dump_by_value(self, value: object, what: str, keep: _Keeper | None) -> list[Any]:
        try:
            return self._cloud(value, keep)
        except _FROM_OUTSIDE:
            raise
        except BaseException as error:
            culprit = find_culprit(value, self._refusal)
            path, why = ("", describe(error)) if culprit is None else culprit
            raise NotPicklable(
                f"{what}{path}",
                why,
                "Send what it is made from instead, and build it in the domain; what several domains must share goes "
                "by a promise, a stream or a mutex of domains.",
            ) from error

    def _refusal(self, value: object) -> str | None:
        """Why a value cannot be pickled, or None if it can."""
        for dump in self._dump, self._cloud:
            try:
                dump(value, None)
            except _FROM_OUTSIDE:
                raise
            except BaseException as error:
                why = describe(error)
            else:
                return None
        return why

    def _cloud(self, value: object, keep: _Keeper | None) -> list[Any]:
        if self._cloud_pickler is None:
            import cloudpickle  # slow to import, and many programs do not need it

            # A class of its own, because the C pickler reads the table from there, and only as it is made.
            table = ChainMap(self._reducers, cloudpickle.Pickler.dispatch_table)
            self._cloud_pickler = type("Pickler", (cloudpickle.Pickler,), {"dispatch_table": table})
        self._begin_attempt()
        return _pieces_of(self._cloud_pickler, value, keep, None)


class _Pieces(list[Any]):
    """A file that keeps what is written to it in pieces, large ones as they are: the pickler hands over no copies."""

    __slots__ = ()
    write = list.append


def _pieces_of(kind: Any, value: object, keep: _Keeper | None, table: Mapping[type, Reducer] | None) -> list[Any]:
    """Pickle a value. What is returned is valid until the value changes."""
    pieces = _Pieces()
    pickler = kind(pieces, _PROTOCOL, buffer_callback=keep)
    if table is not None:
        pickler.dispatch_table = table
    pickler.dump(value)
    return pieces


def _speaks_of_main(pieces: list[Any]) -> bool:
    # A large int lies among what the pickler says itself; bytes that begin alike are searched for nothing.
    return any(b"__main__" in piece for piece in pieces if len(piece) < _SURELY_DATA_BYTES or piece[:1] in _BEGINNINGS)


def _snapshot(buffer: pickle.PickleBuffer, memory: Memory) -> Any:
    """What the buffer holds now; or the buffer itself, if it lies where both sides have it or does not change."""
    raw = buffer.raw()
    if memory.holds(raw):
        return raw
    kept = memory.keep([raw])
    if kept is not None:
        return kept
    return raw if raw.readonly else memoryview(bytes(raw))


def _reduce_memoryview(view: memoryview) -> tuple[Any, ...]:
    _cast(memoryview(b""), view.format, (0,))  # raises what would be raised over there
    if not view.c_contiguous:
        return _rebuild_memoryview, (view.tobytes(), view.format, view.shape)
    return _rebuild_memoryview, (pickle.PickleBuffer(view), view.format, view.shape)


def _rebuild_memoryview(buffer: Any, format: str, shape: tuple[int, ...]) -> memoryview[Any]:
    return _cast(memoryview(buffer).cast("B"), format, shape)


def _cast(view: Any, format: str, shape: tuple[int, ...]) -> memoryview[Any]:
    cast: memoryview[Any] = view.cast(format) if 0 in shape else view.cast(format, shape)
    return cast


def _reduce_array(values: array.array[Any]) -> Any:
    if values.itemsize * len(values) < OUT_OF_BAND_BYTES:
        return values.__reduce_ex__(_PROTOCOL)
    return _rebuild_array, (values.typecode, pickle.PickleBuffer(values))


def _rebuild_array(typecode: str, buffer: Any) -> array.array[Any]:
    values = array.array(typecode)
    values.frombytes(byte_view(buffer))
    return values


def _reduce_ndarray(dtype: Callable[[str], Any], values: Any) -> Any:
    kind = values.dtype
    # The one dtype object of its kind, so nothing but the character need be said of it.
    if kind.kind in "biufc" and dtype(kind.char) is kind and values.flags.c_contiguous:
        return _rebuild_ndarray, (pickle.PickleBuffer(values), kind.char, values.shape)
    # NumPy gives no buffer for times, nor for structures with one, so it would copy them, even if they are shared.
    if kind.kind in "mMV" and values.flags.forc and kind.itemsize and not kind.hasobject:
        order = "C" if values.flags.c_contiguous else "F"
        data = values.reshape(-1, order=order).view("u1")
        return _rebuild_ndarray, (pickle.PickleBuffer(data), kind, values.shape, order)
    return values.__reduce_ex__(_PROTOCOL)


def _rebuild_ndarray(buffer: Any, kind: Any, shape: tuple[int, ...], order: Literal["C", "F"] = "C") -> Any:
    import numpy

    return numpy.ndarray(shape, kind, buffer, order=order)


def _hint(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return "The module must be importable in every domain: install it, or run from the directory that holds it."
    return ""
