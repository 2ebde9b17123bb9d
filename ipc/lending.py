"""What a process has lent of the memory in its arena, and to whom: each lease keeps alive what is lent under it.

A lease ends when its borrower has given it back, or is dead; or with its link, if nobody has opened it. The segment of
what a dead borrower had passed on is retired, for nobody knows who else can read it. Not thread-safe: the arena that it
belongs to has the lock.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from domains.ipc.descriptors import Descriptor
from domains.ipc.frames import byte_view
from domains.ipc.leases import CELLS, Cells, LeaseState, is_alive
from domains.ipc.parts import AddressMap, Foreign, Own

__all__ = ["Lender", "not_lent", "why_not_lent"]

_FEW_LEASES = 32
"""Leases are looked through for those that are over whenever there are twice as many as were left the last time."""


class _Lease(NamedTuple):
    """What is lent, which keeps it alive, where that lies, and over which link it went."""

    buffer: Any
    segment: Own | Foreign
    start: int
    link: object


class Lender:
    """The leases of one process. `cells`, which it shares with those it lends to, are made for the first of them."""

    def __init__(self, addresses: AddressMap, *, named: bool) -> None:
        self.cells: Cells | None = None
        self._addresses = addresses
        self._named = named
        self._leases: dict[int, _Lease] = {}
        self._enough = _FEW_LEASES
        self._orphans: set[int] = set()

    @property
    def leases(self) -> int:
        """How many there are."""
        return len(self._leases)

    @property
    def has_enough(self) -> bool:
        """Whether it is time to look which leases are over: then call `looked_through`."""
        return len(self._leases) >= self._enough

    def looked_through(self) -> None:
        self._enough = max(_FEW_LEASES, 2 * len(self._leases))

    def lend(self, buffer: Any, link: object, has_shared: bool) -> Any:
        """What to send over a link for this buffer: a descriptor if it lies in an arena."""
        view = byte_view(buffer)
        found = self._addresses.locate(view) if view.nbytes else None
        if found is None:
            return buffer
        segment, start = found
        cells = self._open_cells()
        cell = None if cells is None or len(self._leases) >= CELLS else cells.send()
        if cells is None or cell is None:
            return not_lent(buffer)
        index, generation = cell
        for loan in segment.loans_at(start):
            loan.pass_on()
        self._leases[index] = _Lease(view, segment, start, link)
        where = segment.memory.location, cells.segment.location
        return Descriptor(*where, index, generation, start, view.nbytes, not view.readonly, has_shared).pack()

    def _open_cells(self) -> Cells | None:
        if self.cells is None:
            try:
                self.cells = Cells.create(named=self._named)
            except OSError:
                return None
        return self.cells

    def link_gone(self, link: object) -> None:
        """What went over this link and was not opened never will be; what was opened ends with who opened it."""
        for index in [index for index, lease in self._leases.items() if lease.link is link]:
            assert self.cells is not None
            if self.cells.retract(index):
                del self._leases[index]
            else:
                self._orphans.add(index)
        self.bury_the_dead()

    def look_after_orphans(self) -> None:
        """End those leases whose link is gone, if their borrower is dead by now."""
        if self._orphans:
            self.bury_the_dead()

    def bury_the_dead(self) -> None:
        """End the leases of processes that have died."""
        cells = self.cells
        alive: dict[int, bool] = {}
        for index, lease in list(self._leases.items()):
            assert cells is not None
            state = cells.state(index)
            if state not in (LeaseState.OPEN, LeaseState.PASSED_ON):
                continue
            borrower = cells.borrower(index)
            if borrower not in alive:
                alive[borrower] = is_alive(borrower)
            # Read again: it may have given it back, and then died.
            if not alive[borrower] and (state := cells.state(index)) in (LeaseState.OPEN, LeaseState.PASSED_ON):
                self._end(index, lease, abandoned=state == LeaseState.PASSED_ON)

    def end_returned(self) -> None:
        """End the leases that were given back."""
        cells = self.cells
        if self._leases and cells is not None:
            for index in cells.over(self._leases):
                lease = self._leases.get(index)
                if lease is None:
                    cells.free(index)
                else:
                    self._end(index, lease, abandoned=cells.state(index) == LeaseState.ABANDONED)

    def close(self) -> None:
        """End all leases: this process may end before they are given back."""
        self.bury_the_dead()
        for index in list(self._leases):
            self._end(index, self._leases[index], abandoned=True)
        if self.cells is not None:
            self.cells.segment.close()
            self.cells = None

    def _end(self, index: int, lease: _Lease, *, abandoned: bool) -> None:
        assert self.cells is not None
        if abandoned:
            if isinstance(lease.segment, Own):
                lease.segment.retired = True
            for loan in lease.segment.loans_at(lease.start):
                loan.abandoned = True
        del self._leases[index]
        self._orphans.discard(index)
        self.cells.free(index)


def not_lent(buffer: Any) -> Any:
    """What to send of an arena's that cannot be lent: a copy, unless others shall see what is written."""
    view = byte_view(buffer)
    return buffer if view.readonly else Descriptor.without_lease(view.nbytes).pack()


def why_not_lent() -> str:
    """Why shared memory came without a lease."""
    return f"its sender could not share it: {CELLS} parts of arrays are lent already, or descriptors are lacking"
