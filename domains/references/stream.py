"""Streams in other domains than their home: each add and take has its turn in the home's queues.

So that not every item costs a round trip, the home promises places (`domains.references.shared_stream`): the answer to
an add says how many more may follow it unasked. What uses them goes out as one message a turn. And the home lends items
(`domains.references.lots`): the answer to a take comes with more that may be taken unasked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from domains.conversation import Buffers, Conversation
from domains.errors import Closed, DomainsError
from domains.ipc.link import Link
from domains.ipc.pickling import Payload
from domains.ipc.tally import Tally
from domains.protocol import AddItems, LendItems, RecallPlaces
from domains.references.calls import RemoteObject, Served, Withdraw
from domains.references.kind import Export, Kind
from domains.references.lots import LentItems
from domains.references.plain import MOST_INT, is_plain
from domains.references.registry import References
from domains.references.shared_stream import Adder, Borrower, SharedStream
from domains.scheduler.context import check
from domains.scheduler.stream import Stream
from domains.scheduler.waiters import Waiter

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
        self._taking = 0  # fibers that wait for the home because of a take
        self._lent: LentItems | None = None  # what may be taken unasked
        self._tally: Tally | None = None
        self._is_telling = False

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
        check()
        lent = self._lent
        while lent is not None:
            if lent.claim() or self._is_mine(lent) or await self._wait_for("has_taken", *lent.latest):
                return self._unpack(lent.item)
            lent = self._lent
        # Only who knows all of its claims to be settled may be lent more.
        item: T = await self._wait_for("take" if self._taking else "take_and_borrow")
        return item

    async def _wait_for(self, operation: str, *args: Any) -> Any:
        self._taking += 1
        try:
            return await self._call(operation, *args)
        finally:
            self._taking -= 1

    async def __anext__(self) -> T:
        try:
            return await self.take()
        except Closed:
            raise StopAsyncIteration from None

    def take_nonblocking(self) -> T | None:
        lent = self._lent
        if lent is not None and (lent.claim() or self._is_mine(lent) or self._ask("has_taken", *lent.latest)):
            return self._unpack(lent.item)
        item: T | None = self._ask("take_nonblocking")
        return item

    def _is_mine(self, lent: LentItems) -> bool:
        """Whether a claim counts for certain, that is the last of its lot, is watched, or may have come too late."""
        is_mine = lent.is_mine
        if not is_mine or lent.is_used_up:
            self._lent = None
        if lent.is_watched:
            self._tell_taken(lent)
        return is_mine

    def _unpack(self, packed: Any) -> T:
        item: T = self._references.pickling.loads(packed, ()) if type(packed) is bytes else packed
        return item

    def lent(self, tally: bytes, lot: int, items: Sequence[Any]) -> None:
        """The home lends these; what it lent before it has taken back."""
        if self._tally is None or self._tally.descriptor != tally:
            try:
                self._tally = Tally.attach(tally)
            except OSError:  # the home has ended, or the system does not let us: the next take asks for it
                self._lent = None
                return
        self._lent = LentItems(self._tally, lot, items)

    def _tell_taken(self, lent: LentItems) -> None:
        """Somebody waits for room, and there is some: say so once a turn, but at half time at once."""
        if lent.is_half_taken or asyncio._get_running_loop() is None:
            self._calls.tell(self, "taken", ())
            self._references.flush(self.home)
        elif not self._is_telling:
            self._is_telling = True
            asyncio.get_running_loop().call_soon(self._tell_taken_now)

    def _tell_taken_now(self) -> None:
        self._is_telling = False
        self._calls.tell(self, "taken", ())

    def close(self) -> None:
        self._tell("close")
        self.recalled()  # no add of this domain comes behind its close

    def recalled(self) -> None:
        """Somebody else needs the places."""
        self._recalled_early = self._adding > 0  # the answers to these may have come before, and be read later
        places, self._places = self._places, 0
        if places:
            self._calls.tell(self, "returned", (places,))

    def home_gone(self, error: DomainsError) -> None:
        self._places = 0
        self._lent = None

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
            "take_and_borrow": _take_and_borrow,
            "has_taken": lambda stream, served, lot, count: (
                served.resume(stream.has_taken(served.sender, lot, count)) and None
            ),
            "len": lambda stream, served: served.resume(len(stream)) and None,
            "add_nonblocking": lambda stream, served, item: served.resume(stream.add_nonblocking(item)) and None,
            "take_nonblocking": lambda stream, served: served.resume(stream.take_nonblocking()) and None,
        }
        self.tells = {
            "close": lambda export, sender: export.target.close(),
            "returned": lambda export, sender, places: export.target.returned(sender, places),
            "taken": lambda export, sender: export.target.taken(),
        }

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
        export.target.domain_gone(sender, error)

    def converse(self, references: References, conversation: Conversation) -> None:
        self._references = references
        references.handle(conversation, AddItems, partial(_add_items, references))
        references.handle(conversation, RecallPlaces, partial(_recalled, references))
        references.handle(conversation, LendItems, partial(_lent, references))


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
    return _wait_to_take(stream, served)


def _take_and_borrow(stream: SharedStream[Any], served: Served) -> Withdraw | None:
    found, item = stream._take()
    if found:
        served.resume(item)
        stream.lend(served.sender)
        return None
    borrower = Borrower(stream, served)
    withdraw = _wait_to_take(stream, borrower)
    return lambda _: withdraw(borrower)


def _wait_to_take(stream: SharedStream[Any], waiter: Waiter[Any]) -> Callable[[Any], object]:
    if stream._is_drained:
        raise Closed(f"{stream!r} has no more items")
    return stream._wait_to_take(waiter)


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


def _lent(references: References, message: LendItems, _: Buffers) -> None:
    reference = references.reference(message.sender, message.number)
    if isinstance(reference, StreamReference):
        reference.lent(message.tally, message.lot, message.items)
