"""What a process has in segments: its own and those of others, and the parts of them that something here refers to.

A part is known by a weak reference to the object that all buffers made from it keep alive. When that object goes, at
any moment and in any thread, the part's `on_end` is called, which may do little: the garbage collector calls it.
"""

from __future__ import annotations

import os
import time
import weakref
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from domains.ipc.blocks import Blocks
from domains.ipc.leases import Cells
from domains.ipc.segments import Segment, address_of

__all__ = ["AddressMap", "Block", "Foreign", "Loan", "Own", "Part"]


class Part(weakref.ref[Any]):
    """Told apart by what it is, not by what it holds."""

    __slots__ = ("length", "on_end", "pid", "segment", "start")
    __hash__ = object.__hash__
    __eq__ = object.__eq__
    segment: Own | Foreign
    start: int
    length: int
    on_end: Callable[[Any], None]
    pid: int

    def __new__(cls, memory: Any, *_: Any) -> Part:
        return super().__new__(cls, memory, _ended)

    def __init__(
        self, memory: Any, segment: Own | Foreign, start: int, length: int, on_end: Callable[[Any], None]
    ) -> None:
        self.segment = segment
        self.start = start
        self.length = length
        self.on_end = on_end
        self.pid = os.getpid()

    def covers(self, offset: int) -> bool:
        return self.start <= offset < self.start + self.length


def _ended(part: Any) -> None:
    # A forked copy of this process has copies of its views, and no say in when they end.
    if part.pid == os.getpid():
        part.on_end(part)


class Block(Part):
    """A part of an own segment, used by this process itself; whole pages."""

    __slots__ = ()
    segment: Own


class Loan(Part):
    """A part of a segment that this process has under a lease. `abandoned`: others may have it for longer."""

    __slots__ = ("abandoned", "cells", "index")

    def __init__(
        self,
        memory: Any,
        segment: Own | Foreign,
        start: int,
        length: int,
        on_end: Callable[[Any], None],
        cells: Cells,
        index: int,
    ) -> None:
        super().__init__(memory, segment, start, length, on_end)
        self.cells = cells
        self.index = index
        self.abandoned = False


class _Mapped:
    """A segment, and the loans that this process has in it, by where they start."""

    __slots__ = ("idle_since", "loans", "memory")

    def __init__(self, memory: Segment) -> None:
        self.memory = memory
        self.loans: dict[int, set[Loan]] = {}
        self.idle_since = time.monotonic()

    def add_loan(self, loan: Loan) -> None:
        self.loans.setdefault(loan.start, set()).add(loan)

    def remove_loan(self, loan: Loan) -> None:
        same_start = self.loans[loan.start]
        same_start.discard(loan)
        if not same_start:
            del self.loans[loan.start]

    def loans_at(self, offset: int) -> list[Loan]:
        """The loans that this byte belongs to, and perhaps some that ended just now."""
        candidates = self.loans.get(offset) or {loan for loans in self.loans.values() for loan in loans}
        return [loan for loan in candidates if loan.covers(offset)]


class Own(_Mapped):
    """A segment of this process. In use -> Retired, when part of it may be read by somebody unknown.

    Its loans are to this process itself, over a link that does not leave it.
    """

    __slots__ = ("blocks", "retired", "used")

    def __init__(self, memory: Segment) -> None:
        super().__init__(memory)
        self.blocks = Blocks(memory.size_bytes)
        self.used: set[Block] = set()
        self.retired = False

    @property
    def is_idle(self) -> bool:
        return not self.used and not self.loans


class Foreign(_Mapped):
    """A segment of another process. `cells` are those of whoever lent of it last, kept mapped as long as it is."""

    __slots__ = ("cells",)

    def __init__(self, memory: Segment) -> None:
        super().__init__(memory)
        self.cells: Cells | None = None

    @property
    def is_idle(self) -> bool:
        return not self.loans


class AddressMap:
    """Which segment an address belongs to."""

    def __init__(self) -> None:
        self._by_start: dict[int, Own | Foreign] = {}
        self._starts: list[int] = []

    def add(self, segment: Own | Foreign) -> None:
        self._by_start[segment.memory.start] = segment
        self._starts = sorted(self._by_start)

    def remove(self, segment: Own | Foreign) -> None:
        del self._by_start[segment.memory.start]
        self._starts = sorted(self._by_start)

    def locate(self, buffer: Any) -> tuple[Own | Foreign, int] | None:
        """The segment that a contiguous buffer lies in, and how far from its start."""
        address = address_of(buffer)
        nearest = bisect_right(self._starts, address)
        if not nearest:
            return None
        segment = self._by_start[self._starts[nearest - 1]]
        offset = address - segment.memory.start
        return (segment, offset) if offset < segment.memory.size_bytes else None
