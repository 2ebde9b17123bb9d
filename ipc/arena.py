"""Large buffers in memory that processes share: copied in once, lent to others by a descriptor, read where they lie.

A process has one arena. `keep` copies a buffer into a segment of its own; from then on it is an ordinary buffer, and
as long as anything refers to it its memory is its own. A buffer that lies in an arena, this process's or another's,
travels over a link as a descriptor: where the segment is, which part, and the lease (`domains.ipc.leases`) under which
the receiver has it. The receiver maps the segment once, keeps the mapping, and gets a view whose end gives the lease
back. A lease keeps the lent buffer alive here, so a view of somebody else's memory is passed on like one's own, at no
cost, and whoever is in between stays responsible for it.

Memory is used again only when nobody can read it any more. Where that cannot be known, because one who had passed a
view on has died, its segment is retired: never used again, and freed by the kernel with its last mapping. Of what is in
use at a fork, the same holds for each block, and for its segment when that becomes much.
Segments are kept warm, since fresh memory costs several times the copy; idle ones are given up (`keep_house`).
Where there is no room, by `limit_bytes` or because the system has none, `keep` returns None and data travels inline.

All methods may be called from any thread; garbage collection, which comes at any moment, only leaves notes. A finalizer
of the user's that comes in the midst of one of them finds the arena busy, as if there were no room in it; what it
changes is done later, and it can wait for no other domain.
"""

from __future__ import annotations

import errno
import os
import pickle
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from domains.ipc.blocks import whole_pages
from domains.ipc.frames import byte_view
from domains.ipc.leases import CELLS, Cells, LeaseState, StaleLease, is_alive
from domains.ipc.parts import AddressMap, Block, Foreign, Loan, Own, new_block, new_loan
from domains.ipc.segment_pool import SegmentPool
from domains.ipc.segments import LOCATION_BYTES, Segment, has_memfd, location_number

__all__ = ["DESCRIPTOR_BYTES", "Arena", "ArenaStatistics", "LostBuffer", "process_arena", "usual_limit_bytes"]

IDLE_SECONDS = 5.0
"""How long a segment in which nothing is used is kept."""

_FEW_LEASES = 32
"""Leases are looked through for those that are over whenever there are twice as many as were left the last time."""

_MAGIC = b"domains' arena 1"
_SEGMENT_AT = len(_MAGIC)
_CELLS_AT = _SEGMENT_AT + LOCATION_BYTES
_LEASE_AT = _CELLS_AT + LOCATION_BYTES
_LEASE = struct.Struct("=IIQQ??")
_NO_CELL = 0xFFFFFFFF
"""In place of a cell's index: this is shared memory that could not be lent, and a copy of it will not do."""

DESCRIPTOR_BYTES = _LEASE_AT + _LEASE.size
"""How long a descriptor is. Data that goes out of band without one is longer."""

_ZEROS = bytes(1 << 20)


_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class LostBuffer(bytes):
    """A descriptor whose memory cannot be had; using it is an error. `why` is None if the lender is gone."""

    why: str | None = None


class ArenaStatistics(NamedTuple):
    """What an arena holds now: memory of its own, memory lent by others, and the leases it has given."""

    segments: int
    committed_bytes: int
    used_bytes: int
    borrowed_segments: int
    leases: int


class _Lease(NamedTuple):
    """What is lent, which keeps it alive, where that lies, and over which link it went."""

    buffer: Any
    segment: Own | Foreign
    start: int
    link: object


class Arena:
    """`named` segments have names in the file system: for systems that have nothing else, and for tests."""

    def __init__(self, limit_bytes: int | None = None, *, named: bool = not has_memfd) -> None:
        self.has_shared = False
        """Whether memory was allocated, here or by others, that both sides may write."""
        self._named = named
        self._lock = threading.RLock()  # a finalizer may come back here: it is told by `is_busy`
        self._addresses = AddressMap()
        self._own = SegmentPool(
            usual_limit_bytes() if limit_bytes is None else limit_bytes, self._addresses, named=named
        )
        self._foreign: dict[int, Foreign] = {}
        self._cells: Cells | None = None
        self._foreign_cells: weakref.WeakValueDictionary[int, Cells] = weakref.WeakValueDictionary()
        self._leases: dict[int, _Lease] = {}
        self._leases_enough = _FEW_LEASES
        self._orphans: set[int] = set()
        self._unopened: list[bytes] = []
        """Descriptors of what was lent to this process when it could not map it, to be given back."""
        self._ended: deque[Block | Loan] = deque()
        self._postponed: deque[Callable[[], None]] = deque()
        """What finalizers had to say in the midst of other changes."""
        self._users = 0

    @property
    def limit_bytes(self) -> int:
        return self._own.limit_bytes

    def statistics(self) -> ArenaStatistics:
        is_busy = self.is_busy
        with self._lock:
            if not is_busy:
                self._collect()
            own = self._own
            return ArenaStatistics(
                len(own.segments), own.committed_bytes, own.used_bytes, len(self._foreign), len(self._leases)
            )

    @property
    def is_busy(self) -> bool:
        """Whether this thread has the lock already, and is now in a finalizer that the change may not see."""
        return self._lock._is_owned()  # type: ignore[attr-defined,no-any-return]

    def _make(self, change: Callable[[], None]) -> None:
        """Make this change now, or once the one is done in whose midst this finalizer came."""
        if self.is_busy:
            self._postponed.append(change)
            return
        with self._lock:
            change()

    # Own memory

    def keep(self, pieces: Sequence[Any]) -> memoryview | None:
        """Copy buffers, one after the other, into memory that can be lent; None if there is no room."""
        views = [byte_view(piece) for piece in pieces]
        block = self._allocate(sum(view.nbytes for view in views))
        if block is None:
            return None
        at = 0
        for view in views:
            block[at : at + view.nbytes] = view
            at += view.nbytes
        return block.toreadonly()

    def allocate_shared(self, length: int) -> memoryview | None:
        """Zeroed memory that all who are lent it may write; None if there is no room."""
        block = self._allocate(max(1, length))
        if block is None:
            return None
        for at in range(0, block.nbytes, len(_ZEROS)):
            block[at : at + len(_ZEROS)] = _ZEROS[: block.nbytes - at]
        self.has_shared = True
        return block[:length]

    def _allocate(self, length: int) -> memoryview | None:
        size = whole_pages(length)
        if self.is_busy:
            return None
        with self._lock:
            self._collect()
            found = self._own.take(size)
            if found is None and self._leases:
                self._bury_the_dead()
                self._collect()
                found = self._own.take(size)
            if found is None:
                return None
            own, start = found
            memory = own.memory.part(start, length)
            new_block(memory, own, start, size, self._part_ended)
        return pickle.PickleBuffer(memory).raw()

    def holds(self, buffer: Any) -> bool:
        """Whether a contiguous buffer lies in an arena: this one, or one that lent it to this process."""
        return self._addresses.locate(buffer) is not None

    # Lending

    def lend(self, buffers: Iterable[Any], link: object) -> list[Any]:
        """What to send over a link for these buffers: a descriptor for each that lies in an arena."""
        if self.is_busy:
            return [self._not_lent(buffer) if self.holds(buffer) else buffer for buffer in buffers]
        with self._lock:
            if len(self._leases) >= self._leases_enough:
                self._collect()
                self._leases_enough = max(_FEW_LEASES, 2 * len(self._leases))
            return [self._lend(buffer, link) for buffer in buffers]

    def _lend(self, buffer: Any, link: object) -> Any:
        view = byte_view(buffer)
        found = self._addresses.locate(view) if view.nbytes else None
        if found is None:
            return buffer
        segment, start = found
        cells = self._own_cells()
        cell = None if cells is None or len(self._leases) >= CELLS else cells.send()
        if cells is None or cell is None:
            return self._not_lent(buffer)
        index, generation = cell
        for loan in segment.loans_at(start):
            loan.pass_on()
        self._leases[index] = _Lease(view, segment, start, link)
        lease = _LEASE.pack(index, generation, start, view.nbytes, not view.readonly, self.has_shared)
        return b"".join((_MAGIC, segment.memory.location, cells.segment.location, lease))

    def _not_lent(self, buffer: Any) -> Any:
        """What to send of an arena's that cannot be lent: a copy, unless others shall see what is written."""
        view = byte_view(buffer)
        if view.readonly:
            return buffer
        return _MAGIC + bytes(2 * LOCATION_BYTES) + _LEASE.pack(_NO_CELL, 0, 0, view.nbytes, True, True)

    def _own_cells(self) -> Cells | None:
        if self._cells is None:
            try:
                self._cells = Cells.create(named=self._named)
            except OSError:
                return None
        return self._cells

    def link_gone(self, link: object) -> None:
        """What went over this link and was not opened never will be; what was opened ends with who opened it."""
        self._make(partial(self._link_gone, link))

    def _link_gone(self, link: object) -> None:
        for index in [index for index, lease in self._leases.items() if lease.link is link]:
            assert self._cells is not None
            if self._cells.retract(index):
                del self._leases[index]
            else:
                self._orphans.add(index)
        self._bury_the_dead()
        self._collect()

    def _bury_the_dead(self) -> None:
        """End the leases of processes that have died."""
        cells = self._cells
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

    def _end(self, index: int, lease: _Lease, *, abandoned: bool) -> None:
        assert self._cells is not None
        if abandoned:
            if isinstance(lease.segment, Own):
                lease.segment.retired = True
            for loan in lease.segment.loans_at(lease.start):
                loan.abandoned = True
        del self._leases[index]
        self._orphans.discard(index)
        self._cells.free(index)

    def _end_returned(self) -> None:
        cells = self._cells
        if self._leases and cells is not None:
            for index in cells.over(self._leases):
                lease = self._leases.get(index)
                if lease is None:
                    cells.free(index)
                else:
                    self._end(index, lease, abandoned=cells.state(index) == LeaseState.ABANDONED)

    def _collect(self) -> None:
        """See what was given back, and what was dropped here."""
        self._end_returned()
        while self._ended:
            part = self._ended.popleft()
            segment = part.segment
            if isinstance(part, Loan):
                segment.remove_loan(part)
            else:
                part.segment.remove_block(part)
            if segment.is_idle:
                segment.idle_since = time.monotonic()
                if isinstance(segment, Own):
                    if segment.is_read_by_others or not self._users:
                        self._own.drop(segment)
                elif not self._users:
                    self._drop_foreign(segment)
        while self._postponed:
            self._postponed.popleft()()

    # Borrowing

    def borrow(self, buffers: Iterable[Any]) -> list[Any]:
        """What came over a link, with a view in place of each descriptor, or a LostBuffer."""
        received: list[Any] = []
        for buffer in buffers:
            if buffer.nbytes == DESCRIPTOR_BYTES and (descriptor := bytes(buffer)).startswith(_MAGIC):
                received.append(self._borrow(descriptor))
            else:
                received.append(buffer)
        return received

    def _borrow(self, descriptor: bytes) -> Any:
        index, generation, start, length, writable, has_shared = _LEASE.unpack_from(descriptor, _LEASE_AT)
        if index == _NO_CELL:
            why = f"its sender could not share it: {CELLS} parts of arrays are lent already, or descriptors are lacking"
            return _lost(descriptor, why)
        if self.is_busy:
            self._unopened.append(descriptor)
            return _lost(descriptor, "it came to a finalizer, in the midst of other work with shared memory")
        with self._lock:
            try:
                segment = self._find(descriptor[_SEGMENT_AT:_CELLS_AT])
                cells = self._find_cells(descriptor)
                memory = segment.memory.part(start, length)
                cells.open(index, generation)
            except (OSError, ValueError, IndexError, OverflowError, StaleLease) as error:
                if isinstance(error, OSError) and error.errno in _SHORTAGES:
                    self._unopened.append(descriptor)
                    return _lost(descriptor, f"its memory cannot be had here: {type(error).__name__}: {error}")
                return LostBuffer(descriptor)
            if isinstance(segment, Foreign):
                segment.cells = cells
            new_loan(memory, segment, start, length, self._part_ended, cells, index)
        if has_shared:
            self.has_shared = True  # it may be a view of such memory, though it cannot be written itself
        view = pickle.PickleBuffer(memory).raw()
        return view if writable else view.toreadonly()

    def _give_back_unopened(self) -> None:
        unopened, self._unopened = self._unopened, []
        for descriptor in unopened:
            index, generation, *_ = _LEASE.unpack_from(descriptor, _LEASE_AT)
            try:
                cells = self._find_cells(descriptor)
                cells.open(index, generation)
            except OSError as error:
                if error.errno in _SHORTAGES:
                    self._unopened.append(descriptor)
            except (StaleLease, ValueError, IndexError, OverflowError):
                pass  # there is no such lease
            else:
                cells.give_back(index)

    def _find(self, location: bytes) -> Own | Foreign:
        number = location_number(location)
        found = self._foreign.get(number)
        if found is not None:
            return found
        for own in self._own.segments:
            if own.memory.number == number:
                return own
        found = self._foreign[number] = Foreign(Segment.open(location))
        self._addresses.add(found)
        return found

    def _find_cells(self, descriptor: bytes) -> Cells:
        location = descriptor[_CELLS_AT:_LEASE_AT]
        number = location_number(location)
        cells = self._foreign_cells.get(number)
        if cells is None:
            if self._cells is not None and self._cells.segment.number == number:
                return self._cells
            cells = self._foreign_cells[number] = Cells(Segment.open(location))
            cells.segment.close()  # only the mapping is needed
        return cells

    # Keeping house

    def enter(self) -> None:
        """A program uses the arena from now on: segments are kept warm."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """The opposite of `enter`; once the last has left, only what is in use stays, and nothing is lent any more."""
        self._make(self._leave)

    def _leave(self) -> None:
        self._users -= 1
        assert self._users >= 0
        if self._users:
            return
        self._collect()
        self._bury_the_dead()
        for index in list(self._leases):
            self._end(index, self._leases[index], abandoned=True)  # this process may end before it is given back
        if self._cells is not None:
            self._cells.segment.close()
            self._cells = None
        self._collect()
        self._give_up_idle(0.0)

    def keep_house(self) -> bool:
        """Take back what can be had, and give up what has been idle; to be called every second or so.

        False when there is nothing left that could need it.
        """
        if self.is_busy:
            return True
        with self._lock:
            if self._orphans:
                self._bury_the_dead()
            self._give_back_unopened()
            self._collect()
            self._give_up_idle(IDLE_SECONDS)
            return bool(self._own.segments or self._foreign or self._unopened)

    def prepare_fork(self) -> None:
        """There will be a copy of all views, in a process that never says when it lets go of them."""
        is_busy = self.is_busy
        with self._lock:
            if not is_busy:
                self._collect()
            for own in self._own.segments:
                own.retired |= is_busy  # in the midst of a change there may be blocks that are not in `used`
                for block in own.used:
                    block.copied = True
            for segment in *self._own.segments, *self._foreign.values():
                for loan in segment.all_loans():
                    loan.pass_on(abandon=True)

    def _give_up_idle(self, seconds: float) -> None:
        self._own.drop_idle(seconds)
        now = time.monotonic()
        for foreign in list(self._foreign.values()):
            if foreign.is_idle and now - foreign.idle_since >= seconds:
                self._drop_foreign(foreign)

    def _drop_foreign(self, foreign: Foreign) -> None:
        self._addresses.remove(foreign)
        del self._foreign[foreign.memory.number]
        foreign.memory.close()

    def _part_ended(self, part: Block | Loan) -> None:
        """Nothing refers to it any more. Called by the garbage collector, maybe while this thread has the lock."""
        if isinstance(part, Loan):
            part.cells.give_back(part.index, abandon=part.abandoned)
        self._ended.append(part)
        if not self._users and not self.is_busy and self._lock.acquire(blocking=False):
            try:
                self._collect()
            finally:
                self._lock.release()


def _lost(descriptor: bytes, why: str) -> LostBuffer:
    lost = LostBuffer(descriptor)
    lost.why = why
    return lost


def usual_limit_bytes() -> int:
    """An eighth of the memory that this machine, or this container, has."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes":
        try:
            with open(path) as file:
                memory = min(memory, int(file.read()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return memory // 8


_of_this_process: Arena | None = None
_publishing = threading.RLock()  # a finalizer may come back here


def process_arena() -> Arena:
    """The arena of this process, made when it is first asked for."""
    global _of_this_process
    if _of_this_process is None:
        made = Arena()
        with _publishing:
            if _of_this_process is None:  # another thread, or a finalizer, may have been faster
                _of_this_process = made
    return _of_this_process


def _prepare_fork() -> None:
    if _of_this_process is not None:
        _of_this_process.prepare_fork()


def _forget() -> None:
    """In a forked child: the arena is its parent's."""
    global _of_this_process, _publishing
    _of_this_process = None
    _publishing = threading.RLock()


os.register_at_fork(before=_prepare_fork, after_in_child=_forget)
