"""Streams in other domains than their home: each add and take has its turn in the home's queues.

So that not every item costs a round trip, the home promises places: the answer to an add says how many more may
follow it unasked. What uses them goes out as one message a turn. Promised places count as taken, and are recalled as
soon as somebody has to wait for them, or the stream is closed; those of a domain that has died return by themselves.
A closed stream has no more items once every promise was used or has returned.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from domains.conversation import Buffers, Conversation
from domains.errors import Closed, DomainsError
from domains.protocol import AddItems, RecallPlaces
from domains.references.calls import RemoteObject, Served, Withdraw
from domains.references.registry import Export, Kind, References
from domains.scheduler.context import check
from domains.scheduler.promise import Returned
from domains.scheduler.stream import Stream

T = TypeVar("T")

_log = logging.getLogger("domains")

_MOST_PROMISED = 1024
_SMALL_INT = 1 << 62


class SharedStream(Stream[T]):
    """A stream at its home, while other domains know it: made of a `Stream`, and made one again in the end.

    Invariant: items and promised places together are at most the capacity.
    """

    _promised: int
    _recall: Callable[[], None]

    @property
    def _room(self) -> int:
        return self.capacity - len(self._items) - self._promised

    def add_nonblocking(self, item: T) -> bool:
        if self._closed:
            raise Closed(f"{self!r} takes no more items")
        if self._takers and self._takers.wake_first(item):
            return True
        if self._room > 0:
            self._items.append(item)
            return True
        if self._promised:
            self._recall()
        return False

    @property
    def _is_drained(self) -> bool:
        return self._closed and not self._promised

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._adders.throw_all(lambda: Closed(f"{self!r} was closed while an item waited to be added"))
            if self._promised:
                self._recall()
            else:
                self._tell_takers()

    def promise(self, export: Export, sender: int) -> int:
        """How many more items a domain may add unasked."""
        if self._closed or self._adders:
            return 0
        count = min((self._room + 1) // 2, _MOST_PROMISED)
        if count > 0:
            export.held[sender] = export.held.get(sender, 0) + count
            self._promised += count
        return max(count, 0)

    def put(self, item: T) -> None:
        """An item for a promised place."""
        self._promised -= 1
        if not (self._takers and self._takers.wake_first(item)):
            self._items.append(item)

    def returned(self, count: int) -> None:
        """Promised places come back unused."""
        self._promised -= count
        self.settle()

    def settle(self) -> None:
        """Promises were used or came back: those who waited for that go on."""
        while self._adders and self._room > 0:
            entry = self._adders.pop_first()
            if entry is not None and entry[0].resume(None):
                self._items.append(entry[1])
        if self._is_drained and not self._items:
            self._tell_takers()


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
        self._references = references
        self._places = 0  # promised to this domain, and not used yet
        self._adding = 0  # fibers that wait for the answer to an add, which may promise more
        self._recalled_early = False
        self._message: AddItems | None = None  # the latest that was sent; more is added to it while it is here

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
        check()
        if self._places:
            self._post(item)
        else:
            self._adding += 1
            try:
                places = await self._calls.begin(self, "add", (item,)).outcome()
            finally:
                self._adding -= 1
            self._places += places  # read only now: other fibers add as well meanwhile
            if self._recalled_early:
                self.recalled()

    def add_nonblocking(self, item: T) -> bool:
        if self._places:
            self._post(item)
            return True
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
        self.recalled()  # no add of this domain comes behind its close

    def recalled(self) -> None:
        """Somebody else needs the places."""
        self._recalled_early = self._adding > 0  # the answers to these may have come before, and be read later
        places, self._places = self._places, 0
        if places:
            self._tell("returned", places)

    def home_gone(self, error: DomainsError) -> None:
        self._places = 0

    def _post(self, item: T) -> None:
        """Send an item for a promised place: with those before it, unless something else was sent in between."""
        packed: Any = item
        buffers: Sequence[Any] = ()
        holds: Sequence[int] = ()
        kind = type(item)
        if not (
            (kind is int and -_SMALL_INT < packed < _SMALL_INT)
            or kind is float
            or item is None
            or kind is bool
            or (kind is str and packed.isascii())
        ):
            packed, buffers, holds = self._references.pickling.dumps(item, f"an item for {self!r}")
        self._places -= 1
        self._calls.posted(self.home)
        message = self._message
        if message is not None and not buffers and not holds and self._references.is_latest(message):
            message.items.append(packed)
        else:
            references = self._references
            message = AddItems(self.home, references.address, self.number, [packed], len(buffers))
            self._message = None if buffers else message
            references.send(message, buffers, holds)


class StreamKind(Kind):
    """How streams travel. `held` is how many places each domain was promised."""

    name = "stream"
    classes: tuple[type, ...] = (Stream, SharedStream, StreamReference)

    def __init__(self) -> None:
        self._references: References | None = None
        self.operations = {
            "add": _add,
            "take": _take,
            "len": lambda stream, served: served.resume(len(stream)) and None,
            "add_nonblocking": lambda stream, served, item: served.resume(stream.add_nonblocking(item)) and None,
            "take_nonblocking": lambda stream, served: served.resume(stream.take_nonblocking()) and None,
        }
        self.tells = {"close": lambda export, sender: export.target.close(), "returned": _returned}

    def exported(self, export: Export) -> None:
        stream: Any = export.target
        stream.__class__ = SharedStream
        stream._promised = 0
        stream._recall = partial(self._recall, export)

    def dropped(self, target: Any) -> None:
        assert not target._promised
        del target._promised, target._recall
        target.__class__ = Stream

    def label_of(self, target: Stream[Any]) -> tuple[int, str | None]:
        return target.capacity, target.label

    def make_reference(self, references: References, home: int, number: int, label: Any) -> Any:
        return StreamReference(references, home, number, label)

    def domain_gone(self, export: Export, sender: int, error: DomainsError) -> None:
        if places := export.held.pop(sender, 0):
            export.target.returned(places)

    def converse(self, references: References, conversation: Conversation) -> None:
        self._references = references
        references.handle(conversation, AddItems, partial(_add_items, references))
        references.handle(conversation, RecallPlaces, partial(_recalled, references))

    def _recall(self, export: Export) -> None:
        references = self._references
        assert references is not None
        for sender, places in export.held.items():
            if places:
                references.send(RecallPlaces(sender, references.address, export.number))


class _Adder:
    """A call that waits to add: answered at the end of the turn, when it is known what else there is room for."""

    __slots__ = ("_served",)

    def __init__(self, served: Served) -> None:
        self._served = served

    def resume(self, value: None) -> bool:
        served = self._served
        if served.calls.served.pop((served.sender, served.call), None) is None:
            return False
        asyncio.get_running_loop().call_soon(self._answer)
        return True

    def throw(self, error: BaseException) -> bool:
        return self._served.throw(error)

    def _answer(self) -> None:
        served = self._served
        export = served.export
        # Meanwhile its domain may have died, and would never use nor return what it is promised.
        places = export.target.promise(export, served.sender) if served.sender in export.holders else 0
        served.calls.send_answer(served.sender, served.call, Returned(places))


def _add(stream: SharedStream[Any], served: Served, item: Any) -> Withdraw | None:
    if stream.add_nonblocking(item):
        served.resume(stream.promise(served.export, served.sender))
        return None
    adder = _Adder(served)
    withdraw = stream._wait_to_add(adder, item)
    return lambda _: withdraw(adder)


def _take(stream: SharedStream[Any], served: Served) -> Withdraw | None:
    found, item = stream._take()
    if found:
        served.resume(item)
        return None
    if stream._is_drained:
        raise Closed(f"{stream!r} has no more items")
    return stream._wait_to_take(served)


def _returned(export: Export, sender: int, places: int) -> None:
    export.held[sender] -= places
    export.target.returned(places)


def _add_items(references: References, message: AddItems, buffers: Buffers) -> None:
    export = references.exports.get(message.number)
    if export is None:
        return
    stream: SharedStream[Any] = export.target
    pickling = references.pickling
    export.held[message.sender] -= len(message.items)
    for packed in message.items:
        try:
            item = pickling.loads(packed, buffers) if type(packed) is bytes else packed
        except DomainsError as error:
            # Whoever added it was told long ago that it is done.
            _log.error("an item that another domain added to %r is lost", stream, exc_info=error)
            stream.returned(1)
        else:
            stream.put(item)
    if stream._closed:
        stream.settle()


def _recalled(references: References, message: RecallPlaces, _: Buffers) -> None:
    reference = references.reference(message.sender, message.number)
    if isinstance(reference, StreamReference):
        reference.recalled()
