"""Streams in other domains than their home: each add and take has its turn in the home's queues."""

from __future__ import annotations

from typing import Any, TypeVar

from domains.errors import Closed
from domains.references.calls import RemoteObject, Served, Withdraw
from domains.references.registry import Kind, References
from domains.scheduler.stream import Stream

T = TypeVar("T")


class StreamReference(RemoteObject, Stream[T]):
    """A stream whose home is another domain.

    `len`, `is_empty` and the nonblocking calls ask the home, and this domain waits for the answer.
    """

    def __init__(self, references: References, home: int, number: int, label: Any) -> None:
        capacity, name = label
        super().__init__(capacity, label=name)
        self.home = home
        self.number = number
        self._calls = references.calls

    def __repr__(self) -> str:
        name = "" if self.label is None else f" {self.label!r}"
        return self._describe(f"stream{name} of capacity {self.capacity}")

    def __len__(self) -> int:
        length: int = self._ask("len")
        return length

    def __bool__(self) -> bool:
        return True

    @property
    def is_empty(self) -> bool:
        return not len(self)

    async def add(self, item: T) -> None:
        await self._call("add", item)

    def add_nonblocking(self, item: T) -> bool:
        added: bool = self._ask("add_nonblocking", item)
        return added

    async def take(self) -> T:
        item: T = await self._call("take")
        return item

    def take_nonblocking(self) -> T | None:
        item: T | None = self._ask("take_nonblocking")
        return item

    def close(self) -> None:
        self._tell("close")


class StreamKind(Kind):
    """How streams travel."""

    name = "stream"
    classes: tuple[type, ...] = (Stream, StreamReference)

    def __init__(self) -> None:
        self.operations = {
            "add": _add,
            "take": _take,
            "len": lambda stream, served: served.resume(len(stream)) and None,
            "add_nonblocking": lambda stream, served, item: served.resume(stream.add_nonblocking(item)) and None,
            "take_nonblocking": lambda stream, served: served.resume(stream.take_nonblocking()) and None,
        }
        self.tells = {"close": lambda export, sender: export.target.close()}

    def label_of(self, target: Stream[Any]) -> tuple[int, str | None]:
        return target.capacity, target.label

    def make_reference(self, references: References, home: int, number: int, label: Any) -> Any:
        return StreamReference(references, home, number, label)


def _add(stream: Stream[Any], served: Served, item: Any) -> Withdraw | None:
    if stream.add_nonblocking(item):
        served.resume(None)
        return None
    return stream._wait_to_add(served, item)


def _take(stream: Stream[Any], served: Served) -> Withdraw | None:
    found, item = stream._take()
    if found:
        served.resume(item)
        return None
    if stream._closed:
        raise Closed(f"{stream!r} has no more items")
    return stream._wait_to_take(served)
