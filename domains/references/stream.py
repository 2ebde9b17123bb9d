"""Streams in other domains than their home: each add and take has its turn in the home's queues.

So that not every item costs a round trip, the home promises places (`domains.references.shared_stream`): the answer to
an add says how many more may follow it unasked. What uses them goes out as one message a turn.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

from domains.conversation import Buffers, Conversation
from domains.errors import Closed, DomainsError
from domains.ipc.link import Link
from domains.ipc.pickling import Payload
from domains.protocol import AddItems, RecallPlaces
from domains.references.calls import RemoteObject, Served, Withdraw
from domains.references.plain import MOST_INT, is_plain
from domains.references.registry import Export, Kind, References
from domains.references.shared_stream import Adder, SharedStream
from domains.scheduler.context import check
from domains.scheduler.stream import Stream

T = TypeVar("T")

_log = logging.getLogger("domains")


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
        self._link: Link  # that it was sent by

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
            kind = type(item)
            message = self._message
            if (kind is int and -MOST_INT < item < MOST_INT) or is_plain(item):  # type: ignore[operator]
                if message is not None and self._link.latest is message:
                    # What `_post` comes to, in the fewest steps: most items go this way.
                    message.items.append(item)
                    self._places -= 1
                else:
                    self._post(item, (), (), False)
            else:
                self._post(*self._pack(item), True)
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
            self._post(*self._pack(item), True)
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

    def _pack(self, item: T) -> Payload:
        return self._references.pickling.dumps(item, "an item for %r", self)

    def _post(self, packed: Any, buffers: Sequence[Any], holds: Sequence[int], is_pickle: bool) -> None:
        """Send an item for a promised place: with those before it, unless something else was sent in between."""
        self._places -= 1
        message = self._message
        if message is not None and self._link.latest is message and not buffers and not holds:
            message.items.append(packed)
            message.has_pickles = message.has_pickles or is_pickle
        else:
            references = self._references
            message = AddItems(self.home, references.address, self.number, [packed], is_pickle, len(buffers))
            self._calls.posted(self.home)
            references.send(message, buffers, holds)
            link = references.link_to(self.home)
            self._message = None
            if link is not None and not buffers:
                self._message, self._link = message, link


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
        assert self._references is not None
        SharedStream.share(export.target, self._references, export)

    def dropped(self, target: SharedStream[Any]) -> None:
        target.unshare()

    def label_of(self, target: Stream[Any]) -> tuple[int, str | None]:
        return target.capacity, target.label

    def make_reference(self, references: References, home: int, number: int, label: Any) -> Any:
        return StreamReference(references, home, number, label)

    def domain_gone(self, export: Export, sender: int, error: DomainsError) -> None:
        if places := export.held.get(sender, 0):
            export.target.returned(sender, places)

    def converse(self, references: References, conversation: Conversation) -> None:
        self._references = references
        references.handle(conversation, AddItems, partial(_add_items, references))
        references.handle(conversation, RecallPlaces, partial(_recalled, references))


def _add(stream: SharedStream[Any], served: Served, item: Any) -> Withdraw | None:
    if stream.add_nonblocking(item):
        served.resume(stream.promise(served.sender))
        served.calls.flush(served.sender)  # it makes the next items while this domain uses those that are there
        return None
    adder = Adder(stream, served)
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
    export.target.returned(sender, places)


def _add_items(references: References, message: AddItems, buffers: Buffers) -> None:
    export = references.exports.get(message.number)
    if export is None:
        return
    stream: SharedStream[Any] = export.target
    if not message.has_pickles:
        stream.put(message.sender, message.items)
        return
    for packed in message.items:
        try:
            item = references.pickling.unpack(packed, buffers)
        except DomainsError as error:
            # Whoever added it was told long ago that it is done.
            _log.error("an item that another domain added to %r is lost", stream, exc_info=error)
            stream.returned(message.sender, 1)
        else:
            stream.put(message.sender, [item])


def _recalled(references: References, message: RecallPlaces, _: Buffers) -> None:
    reference = references.reference(message.sender, message.number)
    if isinstance(reference, StreamReference):
        reference.recalled()
