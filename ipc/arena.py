"""Large buffers in memory that processes share: copied in once, lent to others by a descriptor, read where they lie.

A process has one arena. `keep` copies a buffer into a segment of its own; from then on it is an ordinary buffer, and
as long as anything refers to it its memory is its own. A buffer that lies in an arena, this process's or another's,
travels over a link as a descriptor: where the segment is, which part, and the lease (`domains.ipc.leases`) under which
the receiver has it. The receiver maps the segment once, keeps the mapping, and gets a view whose end gives the lease
back. A lease keeps the lent buffer alive here, so a view of somebody else's memory is passed on like one's own, at no
cost, and whoever is in between stays responsible for it. `domains.ipc.lending` keeps account of what is lent, and
`domains.ipc.borrowing` of what is borrowed; this is where they, and the memory itself, meet, under one lock.

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

import os
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from domains.ipc.blocks import whole_pages
from domains.ipc.borrowing import Borrower
from domains.ipc.descriptors import NO_CELL, Descriptor, LostBuffer
from domains.ipc.frames import byte_view
from domains.ipc.lending import Lender, not_lent, why_not_lent
from domains.ipc.parts import AddressMap, Block, Loan, Own, new_block
from domains.ipc.segment_pool import SegmentPool
from domains.ipc.segments import has_memfd

__all__ = ["Arena", "ArenaStatistics", "process_arena", "usual_limit_bytes"]

IDLE_SECONDS = 5.0
"""How long a segment in which nothing is used is kept."""

_ZEROS = bytes(1 << 20)


class ArenaStatistics(NamedTuple):
    """What an arena holds now: memory of its own, memory lent by others, and the leases it has given."""

    segments: int
    committed_bytes: int
    used_bytes: int
    borrowed_segments: int
    leases: int


class Arena:
    """`named` segments have names in the file system: for systems that have nothing else, and for tests."""

    def __init__(self, limit_bytes: int | None = None, *, named: bool = not has_memfd) -> None:
        self.has_shared = False
        """Whether memory was allocated, here or by others, that both sides may write."""
        self._lock = threading.RLock()  # a finalizer may come back here: it is told by `is_busy`
        self._addresses = AddressMap()
        self._own = SegmentPool(
            usual_limit_bytes() if limit_bytes is None else limit_bytes, self._addresses, named=named
        )
        self._lender = Lender(self._addresses, named=named)
        self._borrower = Borrower(self._addresses, self._own, self._lender)
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
            own, borrowed = self._own, len(self._borrower.segments)
            return ArenaStatistics(
                len(own.segments), own.committed_bytes, own.used_bytes, borrowed, self._lender.leases
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
            if found is None and self._lender.leases:
                self._lender.bury_the_dead()
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
            return [not_lent(buffer) if self.holds(buffer) else buffer for buffer in buffers]
        with self._lock:
            lender = self._lender
            if lender.has_enough:
                self._collect()
                lender.looked_through()
            return [lender.lend(buffer, link, self.has_shared) for buffer in buffers]

    def link_gone(self, link: object) -> None:
        """What went over this link and was not opened never will be; what was opened ends with who opened it."""
        self._make(partial(self._link_gone, link))

    def _link_gone(self, link: object) -> None:
        self._lender.link_gone(link)
        self._collect()

    # Borrowing

    def borrow(self, buffers: Iterable[Any]) -> list[Any]:
        """What came over a link, with a view in place of each descriptor, or a LostBuffer."""
        received: list[Any] = []
        for buffer in buffers:
            descriptor = Descriptor.read(buffer)
            received.append(buffer if descriptor is None else self._borrow(descriptor))
        return received

    def _borrow(self, descriptor: Descriptor) -> Any:
        if descriptor.cell == NO_CELL:
            return LostBuffer(descriptor, why_not_lent())
        if self.is_busy:
            self._borrower.give_back_later(descriptor)
            return LostBuffer(descriptor, "it came to a finalizer, in the midst of other work with shared memory")
        with self._lock:
            memory = self._borrower.open(descriptor, self._part_ended)
        if isinstance(memory, LostBuffer):
            return memory
        if descriptor.has_shared:
            self.has_shared = True  # it may be a view of such memory, though it cannot be written itself
        view = pickle.PickleBuffer(memory).raw()
        return view if descriptor.writable else view.toreadonly()

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
        self._lender.close()
        self._collect()
        self._give_up_idle(0.0)

    def keep_house(self) -> bool:
        """Take back what can be had, and give up what has been idle; to be called every second or so.

        False when there is nothing left that could need it.
        """
        if self.is_busy:
            return True
        with self._lock:
            self._lender.look_after_orphans()
            self._borrower.give_back_unopened()
            self._collect()
            self._give_up_idle(IDLE_SECONDS)
            return bool(self._own.segments or self._borrower.segments or self._borrower.has_unopened)

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
            for segment in *self._own.segments, *self._borrower.segments:
                for loan in segment.all_loans():
                    loan.pass_on(abandon=True)

    def _collect(self) -> None:
        """See what was given back, and what was dropped here."""
        self._lender.end_returned()
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
                    self._borrower.drop(segment)
        while self._postponed:
            self._postponed.popleft()()

    def _give_up_idle(self, seconds: float) -> None:
        self._own.drop_idle(seconds)
        self._borrower.drop_idle(seconds)

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
