"""A lock between processes that costs a microsecond, says who holds it, and cannot be held by the dead.

Who has it is for the kernel to say: it is a POSIX record lock on one byte of a memfd, which ends with its process, at
whatever instruction that dies. Beside it, in the memfd itself, lies what the kernel does not tell: who holds it, a note
of the holder's, whether somebody waits, and whether it is poisoned. The holder is written after the lock was taken, and
erased before it is given up; so whoever takes a lock and finds a holder there knows that this one died inside, or has
abandoned it.

Measured per lock and unlock: record lock 1.0 µs, flock 0.9, open-file-description lock 1.5, robust pthread mutex
by ctypes 0.7, token in a pipe 0.8. A pipe loses the token with its holder; flock and OFD locks live on in a child that
the holder forked; a pthread mutex belongs to a thread, and macOS has no robust ones. Record locks belong to the
process: two fibers or threads of one exclude each other by a table here. Closing any descriptor of the file would end
them, so a page of lock words stays open as long as one of its words is attached.

Nobody waits here: who finds it held asks the lock's home, which marks that somebody waits; then the fast path is closed
to all but whom the home sends ahead, and an unlock tells its caller to inform the home. The mark is written before
the lock is tried, and read after it is released: so either the one who waits gets the lock, or the one who unlocks
sees the mark.
"""

from __future__ import annotations

import fcntl
import os
from typing import NamedTuple

from domains.ipc.leases import this_process
from domains.ipc.segments import Segment
from domains.ipc.slots import SlotPage, SlotPages

__all__ = ["LockHolder", "LockWord"]

_WORDS = 1 << 10
_WORD_BYTES = 64  # a cache line, so that busy neighbours do not disturb each other
_HOLDER, _NOTE, _WAITING, _POISONED = range(4)  # each but the last is written by one process at a time

_FIELDS = _WORD_BYTES // 8
_GONE = 1 << 63
"""Turned over in the holder's name this makes one that no process has, not even the holder's own."""


class LockHolder(NamedTuple):
    """A process, as `domains.ipc.leases.is_alive` takes it, and the note that it left."""

    process: int
    note: int

    @property
    def pid(self) -> int:
        return self.process & 0xFFFFFFFF


class _Page(SlotPage):
    """Lock words that share a file; record locks are per process and file. When it is closed no lock is held."""

    def __init__(self, segment: Segment, slots: int) -> None:
        super().__init__(segment, slots)
        self.held: dict[int, LockWord] = {}


_pages = SlotPages(_Page, "lock word", _WORDS, _WORD_BYTES)


def _forget() -> None:
    """In a forked child: its parent's locks are not its own."""
    for page in _pages:
        page.held.clear()


os.register_at_fork(after_in_child=_forget)


class LockWord:
    """One lock. `create` makes it, in its home; others `attach` to it by its descriptor. States: Free, Held(holder)."""

    __slots__ = ("__weakref__", "_index", "_is_home", "_page", "_start")

    def __init__(self, page: _Page, index: int, is_home: bool) -> None:
        self._page = page
        self._index = index
        self._start = index * _FIELDS
        self._is_home = is_home

    @classmethod
    def create(cls) -> LockWord:
        """A free lock. Raises OSError where the system cannot have such locks, or no more of them."""
        return cls(*_pages.create(), True)

    @classmethod
    def attach(cls, descriptor: bytes) -> LockWord:
        """The lock that another process has, while that one lives. Raises OSError if it does not."""
        return cls(*_pages.attach(descriptor), False)

    @property
    def descriptor(self) -> bytes:
        """By which another process attaches to it, for as long as this process is attached."""
        return self._page.descriptor(self._index)

    def try_lock(self, note: int = 0, *, ahead: bool = False) -> bool:
        """Take it if it is free and nobody waits, or though somebody does if `ahead`.

        The note, 64 bits, is for those who find the lock abandoned. If it is found so, `abandoned` tells, and says the
        same to whoever comes next, until `recover` or `unlock`.
        """
        page, start = self._page, self._start
        if page.fields[start + _WAITING] and not ahead:
            return False
        if self.is_mine or page.held.setdefault(self._index, self) is not self:
            return False
        try:
            fcntl.lockf(page.segment.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._index)
        except OSError:
            del page.held[self._index]
            return False
        if page.fields[start + _POISONED]:
            fcntl.lockf(page.segment.descriptor, fcntl.LOCK_UN, 1, self._index)
            del page.held[self._index]
            return False
        if not page.fields[start + _HOLDER]:
            page.fields[start + _NOTE] = note
            page.fields[start + _HOLDER] = this_process()
        return True

    @property
    def abandoned(self) -> LockHolder | None:
        """For who has just locked it: the one who died holding it, and what that one had noted."""
        assert self.is_mine
        holder = self.holder
        return None if holder is None or holder.process == this_process() else holder

    def recover(self, note: int = 0) -> None:
        """Say that what the dead holder left has been seen to: the lock is held by this process now like any other."""
        assert self.is_mine
        start = self._start
        # In this order, so that whoever comes if this process dies in between finds one of the two states whole.
        self._page.fields[start + _HOLDER] = 0
        self._page.fields[start + _NOTE] = note
        self._page.fields[start + _HOLDER] = this_process()

    def unlock(self) -> bool:
        """Give it up. True if somebody is marked as waiting: tell the home."""
        page = self._page
        assert page.held.get(self._index) is self, "a lock is unlocked by the one who locked it"
        page.fields[self._start + _HOLDER] = 0
        fcntl.lockf(page.segment.descriptor, fcntl.LOCK_UN, 1, self._index)
        del page.held[self._index]
        return bool(page.fields[self._start + _WAITING])

    def abandon(self) -> None:
        """Leave it as one who dies holding it does: for those who are about to be gone, though their process is not."""
        page = self._page
        assert page.held.get(self._index) is self, "a lock is abandoned by the one who locked it"
        page.fields[self._start + _HOLDER] ^= _GONE
        if page.segment.descriptor >= 0:  # else the page is garbage as well, and its end was the lock's
            fcntl.lockf(page.segment.descriptor, fcntl.LOCK_UN, 1, self._index)
        del page.held[self._index]

    def mark_waiting(self) -> None:
        """Said by the home, before it tries the lock for the first who waits."""
        self._page.fields[self._start + _WAITING] = 1

    def mark_poisoned(self) -> None:
        """Said by the holder, or by the home: nobody gets it any more, however it asks."""
        self._page.fields[self._start + _POISONED] = 1

    @property
    def is_poisoned(self) -> bool:
        return bool(self._page.fields[self._start + _POISONED])

    def clear_waiting(self) -> None:
        """Said by the home: nobody waits any more."""
        self._page.fields[self._start + _WAITING] = 0

    @property
    def is_waited_for(self) -> bool:
        return bool(self._page.fields[self._start + _WAITING])

    @property
    def is_mine(self) -> bool:
        """Whether it was locked by this very object, in this process."""
        return self._page.held.get(self._index) is self

    @property
    def holder(self) -> LockHolder | None:
        """Who holds it, or died holding it; None if it is free, or changes hands right now."""
        process = self._page.fields[self._start + _HOLDER]
        return LockHolder(process, self._page.fields[self._start + _NOTE]) if process else None

    def close(self) -> None:
        """Let go of it; it must not be held here. After its home has, the word may become another lock's.

        Unless some process, which nobody can ask any more, has never unlocked it.
        """
        assert not self.is_mine, "a lock that is held is not let go of"
        if self._is_home:
            self._is_home = False
            descriptor = self._page.segment.descriptor
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._index)
            except OSError:
                return
            fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, self._index)
            self._page.free.append(self._index)
