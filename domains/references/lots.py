"""Items of a stream that another domain may take unasked, in their order: lent as a lot, and taken back at any moment.

Whoever takes a lot's items claims them one by one in a tally (`domains.ipc.tally`), so their home knows at any moment
which of them are taken, also of a domain that has died, and asks nobody to take back the others. There is one open
lot of a stream at most, and only while nobody else takes from it: so items leave in the order of their adds, however
they go. A domain that uses its lots up gets larger ones; one that does not is lent nothing for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from domains.ipc.tally import Tally

_MOST_LENT = 512
_PAUSE = 32
"""How many takes a domain is lent nothing after it had not used any of a lot."""


class Taker:
    """The home's account of one domain that takes from a stream. Idle -> Lent(lot) -> Idle ...."""

    __slots__ = ("_appetite", "_ended", "_ended_before", "_items", "_lot", "sender", "tally")

    def __init__(self, sender: int) -> None:
        """Raises OSError where there is no shared memory."""
        self.sender = sender
        self.tally = Tally.create()
        self._appetite = 1
        self._lot = 0
        self._items: Sequence[Any] = ()
        self._ended = (0, 0)  # the latest lot that is over, and how many of its items were taken
        self._ended_before = (0, 0)
        """The one before. A take that is answered with a large item is answered before its lot comes, and the next one
        may ask for a lot by then: so claims of two lots can be unsettled, and of no more."""

    def appetite(self) -> int:
        """How many items to lend it now; none for so many takes as it is below zero."""
        if self._appetite < 1:
            self._appetite += 1
            return 0
        return self._appetite

    def spare(self) -> None:
        """There was nothing that could be lent, or that it used: try again after a while."""
        self._appetite = min(self._appetite, -_PAUSE)

    def lend(self, items: Sequence[Any]) -> int:
        """Open a lot of these; returns its number."""
        self._items = items
        self._lot = self.tally.open()
        return self._lot

    @property
    def left(self) -> int:
        """How many items of the open lot are not taken yet."""
        return len(self._items) - self.tally.count

    def take_back(self) -> Sequence[Any]:
        """Close the lot; returns what was not taken."""
        taken = self.tally.close()
        self._ended, self._ended_before = (self._lot, taken), self._ended
        left, self._items = self._items[taken:], ()
        if taken:
            self._appetite = min(taken if left else 2 * taken, _MOST_LENT)
        else:
            self.spare()
        return left

    def has_taken(self, lot: int, count: int) -> bool:
        """Whether the claim that made it so many came in time: the lot is over by now."""
        ended, taken = self._ended if lot == self._ended[0] else self._ended_before
        assert lot == ended
        return count <= taken


class LentItems:
    """The open lot as the domain sees it that may take it."""

    __slots__ = ("_items", "_lot", "_most", "_taken", "_tally")

    def __init__(self, tally: Tally, lot: int, items: Sequence[Any]) -> None:
        self._tally = tally
        self._lot = lot
        self._items = items
        self._most = len(items)
        self._taken = 0

    def claim(self) -> bool:
        """Claim the next item. True if there is nothing to it but to use that; else look at all that follows."""
        taken = self._taken = self._taken + 1
        return self._tally.claim(self._lot, taken) and taken < self._most

    @property
    def item(self) -> Any:
        """What was claimed last, in its packed form."""
        return self._items[self._taken - 1]

    @property
    def is_mine(self) -> bool:
        """Whether the latest claim counts for certain; if not, the home knows."""
        return self._tally.is_open(self._lot)

    @property
    def latest(self) -> tuple[int, int]:
        """By which the home knows the latest claim."""
        return self._lot, self._taken

    @property
    def is_watched(self) -> bool:
        """Whether the home would like to hear of claims."""
        return self._tally.is_watched

    @property
    def is_used_up(self) -> bool:
        return self._taken == self._most

    @property
    def is_half_taken(self) -> bool:
        """True after one of the claims."""
        return 2 * self._taken - len(self._items) in (0, 1)
