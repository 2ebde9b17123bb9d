"""A stream at its home, while other domains know it.

So that not every add of theirs costs a round trip, it promises places: the answer to an add says how many more may
follow it unasked. Promised places count as taken, and are recalled as soon as somebody has to do without them, or the
stream is closed; those of a domain that has died return by themselves. A closed stream has no more items once every
promise was used or has returned.

Nor does every take of theirs: it lends the next items to a domain that is the only one to take any, as a lot
(`domains.references.lots`), which is taken back as soon as anybody else takes.

Invariants: items, those lent and not taken yet, and promised places together are at most the capacity; adders wait only
while they are as many, as far as is known; nothing is lent while anybody waits to take; a domain whose places were
recalled is promised none before it has used or returned them all, so it is asked but once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import islice
from sys import getsizeof
from typing import Any, TypeVar

from domains.errors import ConnectionLost, DomainDied, DomainsError
from domains.protocol import LendItems, RecallPlaces
from domains.references.calls import Served
from domains.references.kind import Export
from domains.references.lots import Taker
from domains.references.plain import is_plain
from domains.references.registry import References
from domains.scheduler.promise import Returned
from domains.scheduler.stream import Stream
from domains.scheduler.waiters import Waiter

T = TypeVar("T")

_MOST_PROMISED = 1024
_MOST_LENT_BYTES = 1 << 16
"""How large the pickles of lent items may be together: they exist twice."""


class SharedStream(Stream[T]):
    """Made of a `Stream`, and made one again in the end.

    Only what `Stream`'s own methods call is different, never these: they may have been taken hold of before.
    """

    _references: References
    _export: Export
    """`held` is how many places each domain was promised."""
    _promised: int
    _recalled: set[int]
    _unanswered: list[Adder]
    _answering: asyncio.Handle | None
    """The turn in which they are answered at the latest: pending as long as there are any."""
    _takers_elsewhere: dict[int, Taker]
    _lent_to: Taker | None
    _served_last: int | None

    @staticmethod
    def share(stream: Stream[T], references: References, export: Export) -> None:
        """Make a stream one that others may know."""
        stream.__class__ = SharedStream
        assert isinstance(stream, SharedStream)
        stream._local_capacity = 0
        stream._references = references
        stream._export = export
        stream._promised = 0
        stream._recalled = set()
        stream._unanswered = []
        stream._answering = None
        stream._takers_elsewhere = {}
        stream._lent_to = None
        stream._served_last = None

    def unshare(self) -> None:
        """Make it a plain one again: nobody else knows it any more."""
        assert not self._promised
        assert not self._takers_elsewhere
        if self._answering is not None:
            self._answering.cancel()  # those that it was for have died
        del self._references, self._export, self._promised, self._recalled, self._unanswered, self._answering
        del self._takers_elsewhere, self._lent_to, self._served_last
        self._local_capacity = self.capacity
        self.__class__ = Stream  # type: ignore[assignment]

    @property
    def _room(self) -> int:
        lent_to = self._lent_to
        return self.capacity - len(self._items) - self._promised - (0 if lent_to is None else lent_to.left)

    # As at home

    def __len__(self) -> int:
        return len(self._items) + (0 if self._lent_to is None else self._lent_to.left)

    @property
    def is_empty(self) -> bool:
        return not len(self)

    def _put(self, item: T) -> bool:
        """Places that are promised to other domains are no room, and recalled if that is why there is none."""
        if self._adders and self._lent_to is not None:
            self._go_on()  # what was taken meanwhile made room for those who wait, first of all
        if self._room > 0:
            self._items.append(item)
            return True
        self._recall()
        if type(self) is not SharedStream or self._room > 0 or self._takers:
            return self.add_nonblocking(item)  # to send waits in a plain job, and brings news
        return False

    def _wait_to_add(self, waiter: Waiter[None], item: T) -> Callable[[Any], object]:
        withdraw = super()._wait_to_add(waiter, item)
        if self._lent_to is not None:
            self._lent_to.tally.watch()
            self._go_on()
        return withdraw

    def _take(self) -> tuple[bool, T]:
        if self._lent_to is not None:
            self._take_back()
        items = self._items
        taken = (True, items.popleft()) if items and not self._adders else super()._take()
        if self._unanswered and 2 * self._room >= self.capacity:
            self._answer()  # not later: its domain makes the next items while this one uses those that are there
        return taken

    @property
    def _is_drained(self) -> bool:
        return self._closed and not self._promised

    def _has_closed(self) -> None:
        self._recall()
        if self._is_drained:
            self._tell_takers()

    # As others use it

    def promise(self, sender: int) -> int:
        """How many more items a domain may add unasked."""
        export = self._export
        # A domain that has died would never use nor return what it is promised.
        if self._closed or self._adders or sender in self._recalled or sender not in export.holders:
            return 0
        count = min((self._room + 1) // 2, _MOST_PROMISED)
        if count > 0:
            export.held[sender] = export.held.get(sender, 0) + count
            self._promised += count
        return max(count, 0)

    def served(self, sender: int) -> None:
        """A domain that waited has an item, and may be lent those that come with it."""
        self._served_last = sender

    def lend(self, sender: int) -> None:
        """Let a domain, which has just taken an item, take the next ones unasked until somebody else wants any."""
        assert self._lent_to is None
        if not self._items or sender not in self._export.holders:
            return
        taker = self._takers_elsewhere.get(sender)
        if taker is None:
            try:
                taker = self._takers_elsewhere[sender] = Taker(sender)
            except OSError:  # then it asks for each
                return
        count = taker.appetite()
        packed = self._pack(count)
        if packed:
            lot = taker.lend([self._items.popleft() for _ in packed])
            self._lent_to = taker
            if self._adders:
                taker.tally.watch()
            references, number = self._references, self._export.number
            references.send(LendItems(sender, references.address, number, taker.tally.descriptor, lot, packed))
        elif count:
            taker.spare()

    def _pack(self, count: int) -> list[Any]:
        """The first items, as they travel: as many as are small, and nothing but themselves."""
        pickling = self._references.pickling
        packed: list[Any] = []
        size_bytes = 0
        for item in islice(self._items, count):
            if is_plain(item):
                packed.append(item)
                continue
            if getsizeof(item) > _MOST_LENT_BYTES:
                break  # it is not worth a pickle to find that out
            try:
                payload = pickling.dumps(item, "an item of %r", self)
            except DomainsError:
                break  # whoever takes it is told
            size_bytes += len(payload.data)
            if payload.buffers or payload.holds or size_bytes > _MOST_LENT_BYTES:
                self._references.discharge(payload.holds)
                break
            packed.append(payload.data)
        return packed

    def _take_back(self) -> None:
        assert self._lent_to is not None
        taker, self._lent_to = self._lent_to, None
        self._items.extendleft(reversed(taker.take_back()))
        self._go_on()

    def has_taken(self, sender: int, lot: int, count: int) -> bool:
        """Whether a domain that claimed an item as its lot was closed came in time."""
        return self._takers_elsewhere[sender].has_taken(lot, count)

    def taken(self) -> None:
        """Some of what was lent is taken, and somebody may have waited for that."""
        self._go_on()
        if self._unanswered:
            self._answer()

    def domain_gone(self, sender: int, error: DomainsError) -> None:
        """A domain will take nothing any more, nor use the places that it was promised."""
        taker = self._takers_elsewhere.pop(sender, None)
        if taker is not None:
            if self._lent_to is taker:
                self._take_back()
            if not isinstance(error, DomainDied | ConnectionLost):  # else it may live, out of reach
                taker.tally.release()
        if places := self._export.held.get(sender, 0):
            self.returned(sender, places)

    def put(self, sender: int, items: Sequence[T]) -> None:
        """Items for promised places."""
        self._settle_promises(sender, len(items))
        if self._takers:
            first = 0
            self._served_last = None
            while first < len(items) and self._takers.wake_first(items[first]):
                first += 1
            self._items.extend(items[first:])
            if self._served_last is not None and not self._takers:
                self.lend(self._served_last)
        else:
            self._items.extend(items)
        if self._closed:
            self._go_on()

    def returned(self, sender: int, count: int) -> None:
        """Promised places come back unused."""
        self._settle_promises(sender, count)
        self._go_on()

    def _settle_promises(self, sender: int, count: int) -> None:
        held = self._export.held
        left = held.get(sender, 0) - count
        assert left >= 0, "a domain uses no more places than it was promised"
        self._promised -= count
        if left:
            held[sender] = left
        else:
            held.pop(sender, None)
            self._recalled.discard(sender)

    def _go_on(self) -> None:
        """Promises were used or came back: those who waited for that go on."""
        while self._adders and self._room > 0:
            entry = self._adders.pop_first()
            if entry is not None and entry[0].resume(None):
                self._items.append(entry[1])
        if self._is_drained and not self._items:
            self._tell_takers()

    def _recall(self) -> None:
        """Ask for all places back that nobody has asked for yet."""
        references, export, recalled = self._references, self._export, self._recalled
        for sender in list(export.held):
            if sender in export.held and sender not in recalled:
                recalled.add(sender)
                references.send(RecallPlaces(sender, references.address, export.number))

    def added(self, adder: Adder) -> None:
        """An add that had to wait is done; it is answered as soon as it is known what else there is room for."""
        if self._answering is None:
            self._answering = self._references.call_soon(self._answer)
        self._unanswered.append(adder)

    def _answer(self) -> None:
        assert self._answering is not None
        self._answering.cancel()  # it may be early
        self._answering = None
        adders, self._unanswered = self._unanswered, []
        for adder in adders:
            adder.answer(self.promise(adder.served.sender))
        for sender in {adder.served.sender for adder in adders}:
            self._references.flush(sender)


class Borrower:
    """A call that waits to take, of a domain that may be lent more."""

    __slots__ = ("_served", "_stream")

    def __init__(self, stream: SharedStream[T], served: Served) -> None:
        self._stream = stream
        self._served = served

    def resume(self, item: Any) -> bool:
        if not self._served.resume(item):
            return False
        if type(self._stream) is SharedStream:  # still
            self._stream.served(self._served.sender)
        return True

    def throw(self, error: BaseException) -> bool:
        return self._served.throw(error)


class Adder:
    """A call that waits to add."""

    __slots__ = ("_stream", "served")

    def __init__(self, stream: SharedStream[T], served: Served) -> None:
        self._stream = stream
        self.served = served

    def resume(self, value: None) -> bool:
        if not self.served.accept():
            return False
        self._stream.added(self)
        return True

    def throw(self, error: BaseException) -> bool:
        return self.served.throw(error)

    def answer(self, places: int) -> None:
        """Say that the add is done, and how many items may follow it unasked."""
        served = self.served
        served.calls.send_answer(served.sender, served.call, Returned(places))
