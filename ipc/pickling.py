"""Turning what users hand over into bytes and back, with large buffers kept apart.

The C pickler goes first; cloudpickle takes over where that fails, or where the result speaks of `__main__`, whose
functions and classes only the sender has. Objects that are passed by reference are reduced by the functions that
the Pickling was made with, in either pickler. Whatever goes wrong becomes one `NotPicklable` that names the path to
the culprit, even where a user's code exits; only Ctrl-C and a cancellation, which come from outside, pass through.
A pickle that is itself large travels as the last of its buffers, so that envelopes stay small.
Nothing here waits or keeps state; opening a pickle runs code, so only authenticated peers get this far.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cloudpickle

from domains.errors import Cancelled, NotPicklable
from domains.ipc.unpicklable import describe, find_culprit

__all__ = ["OUT_OF_BAND_BYTES", "Payload", "Pickling"]

OUT_OF_BAND_BYTES = 1 << 16
"""Buffers from this size on travel beside the pickle, uncopied."""

_PROTOCOL = 5
_IN_LAST_BUFFER = pickle.STOP
"""Stands for a pickle that is the last buffer; no pickle is this one byte alone."""

_FROM_OUTSIDE = (KeyboardInterrupt, Cancelled)
_SCALARS = frozenset({int, float, bool, str, bytes, type(None), complex})

Reducer = Callable[[Any], Any]
_Keeper = Callable[[pickle.PickleBuffer], bool]


class Payload(NamedTuple):
    """A pickle, the buffers that belong to it, in order, and what must live until it has arrived."""

    data: bytes
    buffers: list[Any]
    holds: Sequence[int] = ()


class Pickling:
    """Pickles for one process's conversations. `reducers` are for the classes that travel by reference."""

    def __init__(self, reducers: Mapping[type, Reducer] | None = None) -> None:
        self._reducers = dict(reducers or {})
        self._registered: dict[Any, Any] | None = None
        self._table: dict[type, Reducer] = {}
        # A class of its own, because the C pickler reads the table from there, and only as it is made.
        table = ChainMap(self._reducers, cloudpickle.Pickler.dispatch_table)
        self._cloud_pickler = type("Pickler", (cloudpickle.Pickler,), {"dispatch_table": table})

    def dumps(self, value: object, what: str) -> Payload:
        """Pickle a value. Raises NotPicklable: `what`, and the path in it, is what cannot travel."""
        kind = type(value)
        if kind in _SCALARS or (isinstance(value, tuple) and kind is tuple and _SCALARS.issuperset(map(type, value))):
            return _payload(pickle.dumps(value, _PROTOCOL), [])
        buffers: list[Any] = []
        try:
            data = self._dump(value, _keeper(buffers))
            by_value = b"__main__" in data
        except _FROM_OUTSIDE:
            raise
        except BaseException:
            by_value = True
        if by_value:
            buffers = []
            data = self._dump_by_value(value, what, _keeper(buffers))
        return _payload(data, buffers)

    def dumps_function(self, f: Callable[..., Any]) -> bytes:
        """Pickle a function: by name where another process can import it, else by value. Raises NotPicklable."""
        # Functions are kept and compared as bytes, so what they hold goes in band, however large.
        try:
            data = self._dump(f, None)
            if b"__main__" not in data:
                return data
        except _FROM_OUTSIDE:
            raise
        except BaseException:
            pass
        return self._dump_by_value(f, f"function {getattr(f, '__qualname__', None) or type(f).__qualname__}", None)

    def loads(self, data: bytes | memoryview, buffers: Sequence[Any]) -> Any:
        """Open a pickle. Raises NotPicklable for whatever goes wrong in that."""
        try:
            if data == _IN_LAST_BUFFER:
                return pickle.loads(buffers[-1], buffers=buffers[:-1])
            return pickle.loads(data, buffers=buffers)
        except _FROM_OUTSIDE:
            raise
        except BaseException as error:
            raise NotPicklable("what arrived", f"it cannot be rebuilt here: {describe(error)}", _hint(error)) from error

    def _begin_attempt(self) -> None:
        """A pickle is begun; whatever reducers did for the one before, which is not used, is to be undone."""

    def _dump(self, value: object, keep: _Keeper | None) -> bytes:
        self._begin_attempt()
        if copyreg.dispatch_table != self._registered:
            self._registered = dict(copyreg.dispatch_table)
            self._table = {**self._registered, **self._reducers}
        file = io.BytesIO()
        pickler = pickle.Pickler(file, _PROTOCOL, buffer_callback=keep)
        pickler.dispatch_table = self._table
        pickler.dump(value)
        return file.getvalue()

    def _dump_by_value(self, value: object, what: str, keep: _Keeper | None) -> bytes:
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

    def _cloud(self, value: object, keep: _Keeper | None) -> bytes:
        self._begin_attempt()
        file = io.BytesIO()
        self._cloud_pickler(file, _PROTOCOL, buffer_callback=keep).dump(value)
        return file.getvalue()


def _payload(data: bytes, buffers: list[Any]) -> Payload:
    if len(data) < OUT_OF_BAND_BYTES:
        return Payload(data, buffers)
    return Payload(_IN_LAST_BUFFER, [*buffers, data])


def _keeper(buffers: list[Any]) -> _Keeper:
    """A buffer callback: True leaves the buffer in the pickle."""

    def keep(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < OUT_OF_BAND_BYTES:
            return True
        buffers.append(buffer)
        return False

    return keep


def _hint(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return "The module must be importable in every domain: install it, or run from the directory that holds it."
    return ""
