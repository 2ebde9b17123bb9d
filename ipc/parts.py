"""What a process has in segments: its own and those of others, and the parts of them that something here refers to.

A part is known by a weak reference to the object that all buffers made from it keep alive. When that object goes, at
any moment and in any thread, the part's `on_end` is called, which may do little: the garbage collector calls it.
"""

from __future__ import annotations

import time
import weakref
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from domains.ipc.blocks import Blocks
from domains.ipc.leases import Cells, this_process
from domains.ipc.segments import Segment, address_of

__all__ = ["AddressMap", "Block", "Foreign", "Loan", "Own", "new_block", "new_loan"]


_MOST_LOST_BYTES = 1 << 20
"""So much of a segment may be lost to forked processes while the rest of it is used on."""


class Part(weakref.ref[Any]):
    """Told apart by what it is, not by what it holds. Made by `new_block` and `new_loan`."""

    __slots__ = ("length", "on_end", "process", "segment", "start")
    __hash__ = object.__hash__
    __eq__ = object.__eq__
    segment: Own | Foreign
    start: int
    length: int
    on_end: Callable[[Any], None]
    process: int


class Block(Part):
    """A part of an own segment, used by this process itself; whole pages. `copied`: a forked process has it too."""

    __slots__ = ("copied",)
    segment: Own
    copied: bool


class Loan(Part):
    """A part of a segment that this process has under a lease. `abandoned`: others may have it for longer."""

    __slots__ = ("abandoned", "cells", "index")
    abandoned: bool
    cells: Cells
    index: int

    def pass_on(self, *, abandon: bool = False) -> None:
        """Its view is handed on, or, to `abandon` it, to one who never says when it lets go of it."""
        memory = self()  # held while it is marked, lest its end be overwritten
        if memory is not None:
            self.cells.pass_on(self.index)
            self.abandoned |= abandon


def _ended(part: Any) -> None:
    # A forked copy of this process has copies of its views, and no say in when they end.
    if part.process == this_process():
        part.on_end(part)


def new_block(memory: Any, segment: Own, start: int, length: int, on_end: Callable[[Any], None]) -> Block:
    """A block, known to its segment until `on_end`."""
    block = Block(memory, _ended)
    block.segment, block.start, block.length = segment, start, length
    block.on_end, block.process, block.copied = on_end, this_process(), False
    segment.used.add(block)
    return block


def new_loan(
    memory: Any,
    segment: Own | Foreign,
    start: int,
    length: int,
    on_end: Callable[[Any], None],
    cells: Cells,
    index: int,
) -> Loan:
    """A loan, known to its segment until `on_end`."""
    loan = Loan(memory, _ended)
    loan.segment, loan.start, loan.length = segment, start, length
    loan.on_end, loan.process = on_end, this_process()
    loan.cells, loan.index, loan.abandoned = cells, index, False
    segment.add_loan(loan)
    return loan


class _Mapped:
    """A segment, and the loans that this process has in it.

    They are found by a power of two that is longer than the loan, and by which multiple of it the loan starts behind.
    """

    __slots__ = ("idle_since", "loans", "memory")

    def __init__(self, memory: Segment) -> None:
        self.memory = memory
        self.loans: dict[int, dict[int, set[Loan]]] = {}
        self.idle_since = time.monotonic()

    def add_loan(self, loan: Loan) -> None:
        bits = loan.length.bit_length()
        self.loans.setdefault(bits, {}).setdefault(loan.start >> bits, set()).add(loan)

    def remove_loan(self, loan: Loan) -> None:
        bits = loan.length.bit_length()
        alike = self.loans[bits]
        near = alike[loan.start >> bits]
        near.discard(loan)
        if not near:
            del alike[loan.start >> bits]
            if not alike:
                del self.loans[bits]

    def all_loans(self) -> list[Loan]:
        return [loan for alike in self.loans.values() for near in alike.values() for loan in near]

    def loans_at(self, offset: int) -> list[Loan]:
        """All loans that this byte belongs to, since by which of them a view lives is not known.

        Perhaps also some that ended just now.
        """
        found: list[Loan] = []
        for bits, alike in self.loans.items():
            place = offset >> bits
            for near in alike.get(place - 1, ()), alike.get(place, ()):
                found += [loan for loan in near if loan.start <= offset < loan.start + loan.length]
        return found


class Own(_Mapped):
    """A segment of this process. In use -> Retired, when what may be read by somebody unknown is much, or not known.

    Its loans are to this process itself, over a link that does not leave it.
    """

    __slots__ = ("_lost_bytes", "blocks", "retired", "used")

    def __init__(self, memory: Segment) -> None:
        super().__init__(memory)
        self.blocks = Blocks(memory.size_bytes)
        self.used: set[Block] = set()
        self.retired = False
        self._lost_bytes = 0

    @property
    def is_idle(self) -> bool:
        return not self.used and not self.loans

    @property
    def is_read_by_others(self) -> bool:
        """Whether somebody unknown may read some of what has ended."""
        return self.retired or self._lost_bytes > 0

    def remove_block(self, block: Block) -> None:
        self.used.discard(block)
        if not block.copied:
            self.blocks.give_back(block.start, block.length)
            return
        self._lost_bytes += block.length
        if self._lost_bytes >= _MOST_LOST_BYTES:
            self.retired = True  # so that all of it goes with what still lives in it, and does not fill up


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
    """Which segment an address belongs to. May be read at any moment, also in the midst of a change."""

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
        starts = self._starts
        if not starts:
            return None
        address = address_of(buffer)
        nearest = bisect_right(starts, address)
        if not nearest:
            return None
        start = starts[nearest - 1]
        segment = self._by_start.get(start)
        if segment is None or address - start >= segment.memory.size_bytes:
            return None
        return segment, address - start
