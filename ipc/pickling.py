"""Turning what users hand over into bytes and back, with large buffers kept apart.

The C pickler goes first; cloudpickle takes over where that fails, or where the result speaks of `__main__`, whose
functions and classes only the sender has. Objects that are passed by reference are reduced by the functions that
the Pickling was made with, in either pickler. Whatever goes wrong becomes one `NotPicklable` that names the path to
the culprit. Nothing here waits or keeps state; opening a pickle runs code, so only authenticated peers get this far.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cloudpickle
from domains.ipc.unpicklable import find_culprit

from domains.errors import NotPicklable

__all__ = ["OUT_OF_BAND_BYTES", "Payload", "Pickling"]

OUT_OF_BAND_BYTES = 1 << 16
"""Buffers from this size on travel beside the pickle, uncopied."""

_PROTOCOL = 5
_SCALARS = frozenset({int, float, bool, str, bytes, type(None), complex})

Reducer = Callable[[Any], Any]


class Payload(NamedTuple):
    """A pickle, and the buffers that belong to it, in order."""

    data: bytes
    buffers: list[Any]


class Pickling:
    """Pickles for one process's conversations. `reducers` are for the classes that travel by reference."""

    def __init__(self, reducers: Mapping[type, Reducer] | None = None) -> None:
        self._reducers = dict(reducers or {})
        self._registered = -1
        self._table: dict[type, Reducer] = {}
        # A class of its own, because the C pickler reads the table from there, and only as it is made.
        table = ChainMap(self._reducers, cloudpickle.Pickler.dispatch_table)
        self._cloud_pickler = type("Pickler", (cloudpickle.Pickler,), {"dispatch_table": table})

    def dumps(self, value: object, what: str) -> Payload:
        """Pickle a value. Raises NotPicklable: `what`, and the path in it, is what cannot travel."""
        kind = type(value)
        if kind in _SCALARS or (isinstance(value, tuple) and kind is tuple and _SCALARS.issuperset(map(type, value))):
            return Payload(pickle.dumps(value, _PROTOCOL), [])
        try:
            payload = self._dump(value)
        except Exception:
            pass
        else:
            if b"__main__" not in payload.data:
                return payload
        return self._dump_by_value(value, what)

    def dumps_function(self, f: Callable[..., Any]) -> bytes:
        """Pickle a function: by name where another process can import it, else by value. Raises NotPicklable."""
        payload = self.dumps(f, f"function {getattr(f, '__qualname__', None) or f!r}")
        if payload.buffers:
            # Functions are kept and compared as bytes, so what they hold goes in band, however large.
            return self._cloud(f, None)
        return payload.data

    def loads(self, data: bytes | memoryview, buffers: Sequence[Any]) -> Any:
        """Open a pickle. Raises NotPicklable for whatever goes wrong in that."""
        try:
            return pickle.loads(data, buffers=buffers)
        except Exception as error:
            raise NotPicklable(
                "what arrived", f"it cannot be rebuilt here: {type(error).__name__}: {error}", _hint(error)
            ) from error

    def _dump(self, value: object) -> Payload:
        if len(copyreg.dispatch_table) != self._registered:
            self._registered = len(copyreg.dispatch_table)
            self._table = {**copyreg.dispatch_table, **self._reducers}
        buffers: list[Any] = []
        file = io.BytesIO()
        pickler = pickle.Pickler(file, _PROTOCOL, buffer_callback=_keeper(buffers))
        pickler.dispatch_table = self._table
        pickler.dump(value)
        return Payload(file.getvalue(), buffers)

    def _dump_by_value(self, value: object, what: str) -> Payload:
        buffers: list[Any] = []
        try:
            return Payload(self._cloud(value, _keeper(buffers)), buffers)
        except Exception as error:
            culprit = find_culprit(value, self._refusal)
            path, why = ("", str(error)) if culprit is None else culprit
            raise NotPicklable(
                f"{what}{path}",
                why,
                "Send what it is made from instead, and build it in the domain; what several domains must share goes "
                "by a promise, a stream or a mutex of domains.",
            ) from error

    def _refusal(self, value: object) -> str | None:
        """Why a value cannot be pickled, or None if it can."""
        try:
            self._dump(value)
        except Exception:
            try:
                self._cloud(value, None)
            except Exception as error:
                return f"{type(error).__name__}: {error}"
        return None

    def _cloud(self, value: object, keep: Callable[[pickle.PickleBuffer], bool] | None) -> bytes:
        file = io.BytesIO()
        self._cloud_pickler(file, _PROTOCOL, buffer_callback=keep).dump(value)
        return file.getvalue()


def _keeper(buffers: list[Any]) -> Callable[[pickle.PickleBuffer], bool]:
    """A buffer callback: True leaves the buffer in the pickle."""

    def keep(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < OUT_OF_BAND_BYTES:
            return True
        buffers.append(buffer)
        return False

    return keep


def _hint(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "The module must be importable in every domain: install it, or run from the directory that holds it."
    return ""
