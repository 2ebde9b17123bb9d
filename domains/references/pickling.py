"""Pickling between domains: objects that have a home travel as references to it, and what opens them says which.

A pickle is opened for one registry at a time; outside of that nothing in it means anything.
"""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from domains.ipc.pickling import Memory, Payload, Pickling
from domains.references.plain import is_plain
from domains.variables import reduce_variable

if TYPE_CHECKING:
    from domains.references.registry import References


class ReferencePickling(Pickling):
    """Pickling in which objects with a home travel by reference. A payload's holds are its sender's to discharge."""

    def __init__(self, references: References, memory: Memory | None) -> None:
        self._references = references
        self.holds: list[int] = []
        """Those of the pickle that is being made."""
        reducers: dict[type, Callable[[Any], Any]] = {contextvars.ContextVar: reduce_variable}
        for kind in references.kinds.values():
            for each in kind.classes:
                reducers[each] = functools.partial(references.reduce, kind=kind)
        super().__init__(reducers, memory)

    def dumps(self, value: object, what: str, *about: object) -> Payload:
        outer, self.holds = self.holds, []  # pickling runs a user's code, which may have something else pickled
        try:
            payload = super().dumps(value, what, *about)
            return payload._replace(holds=self.holds) if self.holds else payload
        except BaseException:
            self._begin_attempt()
            raise
        finally:
            self.holds = outer

    def dumps_function(self, f: Callable[..., Any]) -> bytes:
        """As always, but b"" where it refers to objects with a home: its pickle may be opened any number of times."""
        outer, self.holds = self.holds, []
        try:
            code = super().dumps_function(f)
            return b"" if self.holds else code
        finally:
            self._begin_attempt()
            self.holds = outer

    def pack(self, value: Any, what: str, *about: object) -> Payload:
        """As `dumps`, but a plain value is its own `data`."""
        return Payload(value, ()) if is_plain(value) else self.dumps(value, what, *about)  # type: ignore[arg-type]

    def unpack(self, data: Any, buffers: Sequence[Any]) -> Any:
        """The opposite of `pack`; raises as `loads` does."""
        return self.loads(data, buffers) if type(data) is bytes else data

    def _begin_attempt(self) -> None:
        if self.holds:
            holds, self.holds = self.holds, []
            self._references.discharge(holds)

    def loads(self, data: bytes | memoryview, buffers: Sequence[Any]) -> Any:
        opening = _opening.registries
        opening.append(self._references)
        try:
            return super().loads(data, buffers)
        finally:
            opening.pop()


class _Opening(threading.local):
    """The registry whose pickle is being opened; a stack, because opening one may run code that opens another.

    One for each thread: another one may run a program of its own.
    """

    def __init__(self) -> None:
        self.registries: list[References] = []


_opening = _Opening()


def open_reference(name: str, home: int, number: int, home_name: str, issuer: int, hold: int, label: Any) -> Any:
    """What references are pickled as; called by the unpickler."""
    if not _opening.registries:
        raise RuntimeError(
            "this pickle holds references to objects of other domains, and can only be opened by domains"
        )
    return _opening.registries[-1].open(name, home, number, home_name, issuer, hold, label)


def open_domain_manager(default_count: int) -> Any:
    """What domain managers are pickled as: the receiver's own."""
    registries = _opening.registries
    if not registries or registries[-1].open_manager is None:
        raise RuntimeError("a domain manager can only be handed to a domain, as a job's argument or inside another one")
    return registries[-1].open_manager(default_count)
