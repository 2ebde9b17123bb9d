"""What a process has of the memory that others, or itself over a link, have lent to it.

The segment of a descriptor is mapped once, and kept while anything in it is used and for a while after. What cannot be
opened for want of descriptors or memory is given back as soon as that can be, or its lender would keep it for good. Not
thread-safe: the arena that it belongs to has the lock.
"""

from __future__ import annotations

import errno
import time
import weakref
from collections.abc import Callable
from typing import Any

from domains.ipc.descriptors import Descriptor, LostBuffer
from domains.ipc.leases import Cells, StaleLease
from domains.ipc.lending import Lender
from domains.ipc.parts import AddressMap, Block, Foreign, Loan, Own, new_loan
from domains.ipc.segment_pool import SegmentPool
from domains.ipc.segments import Segment, location_number

__all__ = ["Borrower"]

_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Borrower:
    """The loans of one process; `own` and `lender` are its own memory and leases, for what comes home."""

    def __init__(self, addresses: AddressMap, own: SegmentPool, lender: Lender) -> None:
        self._addresses = addresses
        self._own = own
        self._lender = lender
        self._segments: dict[int, Foreign] = {}
        self._cells: weakref.WeakValueDictionary[int, Cells] = weakref.WeakValueDictionary()
        self._unopened: list[Descriptor] = []
        """Of what was lent to this process when it could not map it."""

    @property
    def segments(self) -> list[Foreign]:
        """Those of others that are mapped."""
        return list(self._segments.values())

    @property
    def has_unopened(self) -> bool:
        return bool(self._unopened)

    def open(self, descriptor: Descriptor, on_end: Callable[[Block | Loan], None]) -> Any:
        """What keeps the loan, a buffer; a LostBuffer if it cannot be had. `on_end` is called at its end."""
        try:
            segment = self._find(descriptor.segment)
            cells = self._find_cells(descriptor.cells)
            memory = segment.memory.part(descriptor.start, descriptor.length)
            cells.open(descriptor.cell, descriptor.generation)
        except (OSError, ValueError, IndexError, OverflowError, StaleLease) as error:
            if isinstance(error, OSError) and error.errno in _SHORTAGES:
                self.give_back_later(descriptor)
                return LostBuffer(descriptor, f"its memory cannot be had here: {type(error).__name__}: {error}")
            return LostBuffer(descriptor, None)
        if isinstance(segment, Foreign):
            segment.cells = cells
        new_loan(memory, segment, descriptor.start, descriptor.length, on_end, cells, descriptor.cell)
        return memory

    def give_back_later(self, descriptor: Descriptor) -> None:
        """This cannot be opened now, nor given back. May be called in the midst of all else."""
        self._unopened.append(descriptor)

    def give_back_unopened(self) -> None:
        """Give back, as far as possible, what could not be opened."""
        unopened, self._unopened = self._unopened, []
        for descriptor in unopened:
            try:
                cells = self._find_cells(descriptor.cells)
                cells.open(descriptor.cell, descriptor.generation)
            except OSError as error:
                if error.errno in _SHORTAGES:
                    self._unopened.append(descriptor)
            except (StaleLease, ValueError, IndexError, OverflowError):
                pass  # there is no such lease
            else:
                cells.give_back(descriptor.cell)

    def _find(self, location: bytes) -> Own | Foreign:
        number = location_number(location)
        found = self._segments.get(number)
        if found is not None:
            return found
        for own in self._own.segments:
            if own.memory.number == number:
                return own
        found = self._segments[number] = Foreign(Segment.open(location))
        self._addresses.add(found)
        return found

    def _find_cells(self, location: bytes) -> Cells:
        number = location_number(location)
        cells = self._cells.get(number)
        if cells is None:
            of_this_process = self._lender.cells
            if of_this_process is not None and of_this_process.segment.number == number:
                return of_this_process
            cells = self._cells[number] = Cells(Segment.open(location))
            cells.segment.close()  # only the mapping is needed
        return cells

    def drop_idle(self, seconds: float) -> None:
        """Give up the segments that were idle for so long."""
        now = time.monotonic()
        for foreign in self.segments:
            if foreign.is_idle and now - foreign.idle_since >= seconds:
                self.drop(foreign)

    def drop(self, foreign: Foreign) -> None:
        """Give up an idle segment."""
        self._addresses.remove(foreign)
        del self._segments[foreign.memory.number]
        foreign.memory.close()
