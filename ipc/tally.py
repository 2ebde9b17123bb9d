"""A count that one process keeps of what it took from a lot, and that the lot's giver may close at any moment.

The giver opens a lot of things under a number; the taker claims them one by one: it writes how many it has claimed, and
then looks whether the lot is still open. The giver closes it, and then reads the count, which from then on is final.
Both write first and look afterwards, so whoever is second sees the other: a claim that found the lot open counts; of
one that found it closed only the giver knows whether it came in time, and is to be asked. Nobody waits for anybody, and
when the taker dies, at whatever instruction, the count says what it had.

Tallies lie in pages that are mapped by all who use them. One is given up only once its taker has said that it will not
touch it any more, or is dead.
"""

from __future__ import annotations

from domains.ipc.fence import fence, fence_lock
from domains.ipc.slots import SlotPage, SlotPages

__all__ = ["Tally"]

_TALLIES = 1 << 9
_TALLY_BYTES = 128  # a cache line for each side
_COUNT, _OPEN = 0, 8
_FIELDS = _TALLY_BYTES // 8
_LOT_BITS = 32

_pages = SlotPages(SlotPage, "tally", _TALLIES, _TALLY_BYTES)


class Tally:
    """One count. `create` makes it, where things are given; the taker attaches to it by its descriptor.

    States: Closed -> Open(lot) -> Closed ..., or Open -> Watched(lot) -> Closed.
    """

    __slots__ = ("_fields", "_index", "_lot", "_page", "_start")

    def __init__(self, page: SlotPage, index: int) -> None:
        self._page = page
        self._fields = page.fields
        self._index = index
        self._start = index * _FIELDS
        self._lot = 0

    @classmethod
    def create(cls) -> Tally:
        """A closed one. Raises OSError where there is no shared memory."""
        return cls(*_pages.create())

    @classmethod
    def attach(cls, descriptor: bytes) -> Tally:
        """That of another process, while that one lives. Raises OSError if it does not."""
        return cls(*_pages.attach(descriptor))

    @property
    def descriptor(self) -> bytes:
        """By which the taker attaches to it."""
        return self._page.descriptor(self._index)

    # The giver's side

    def open(self) -> int:
        """A new lot, of which nothing was claimed; returns its number."""
        assert not self._fields[self._start + _OPEN]
        self._lot += 1
        self._fields[self._start + _OPEN] = 2 * self._lot
        return self._lot

    @property
    def count(self) -> int:
        """How many things of the open lot were claimed by now."""
        lot, count = divmod(self._fields[self._start + _COUNT], 1 << _LOT_BITS)
        return count if lot == self._lot else 0

    def close(self) -> int:
        """No more claims; returns how many there were."""
        self._fields[self._start + _OPEN] = 0
        fence()
        return self.count

    def watch(self) -> None:
        """Have the taker say when it claims any more of this lot; `count` says after this what it has before."""
        assert self._fields[self._start + _OPEN]
        self._fields[self._start + _OPEN] = 2 * self._lot + 1
        fence()

    def release(self) -> None:
        """Give it up: its taker is not going to use it."""
        self._page.free.append(self._index)

    # The taker's side

    def claim(self, lot: int, count: int) -> bool:
        """Claim the next of a lot, which makes it so many. True if the lot is open and nobody watches."""
        fields, start = self._fields, self._start
        fields[start + _COUNT] = lot << _LOT_BITS | count
        with fence_lock:
            pass
        return fields[start + _OPEN] == 2 * lot

    def is_open(self, lot: int) -> bool:
        """Whether what was claimed counts for certain. If not, ask whether it was in time."""
        return self._fields[self._start + _OPEN] >> 1 == lot

    @property
    def is_watched(self) -> bool:
        return self._fields[self._start + _OPEN] & 1 != 0
