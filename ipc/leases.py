"""Who has what of the memory that a process lends: one cell per loan, in memory that lender and borrower share.

A cell is written by one side at a time, and says where its loan is:

    FREE -> SENT                      the lender: a message with it is about to go out
    SENT -> OPEN                      the borrower: the message came, a view exists
    OPEN -> PASSED_ON                 the borrower: others have it from here
    OPEN, PASSED_ON -> RETURNED       the borrower: its last view was collected
    PASSED_ON -> ABANDONED            the borrower: one who had it from here died, and may have passed it on
    SENT -> FREE                      the lender: the message will never be opened, its link is gone

No message tells of these: a store to memory does, which works while the borrower's loop is busy, and at any moment of
a garbage collection. The lender reads the cells when it needs memory, or has nothing else to do. A borrower that is
dead returns nothing; that it is dead is known by the cell, which names its process and when that was born.

Python has no atomic compare-and-swap, and the last transition races with the first of the borrower's: so both write
first and look afterwards. The lender changes the cell's generation, then reads its state; the borrower writes its
state, then reads the generation. Whoever is second sees the other, and the lender keeps what the borrower may have.
"""

from __future__ import annotations

import enum
import os
import sys
from typing import Any

from domains.ipc.fence import fence
from domains.ipc.segments import Segment

__all__ = ["CELLS", "Cells", "LeaseState", "StaleLease", "is_alive", "this_process"]

CELLS = 1 << 16
"""How many loans a process may have out at a time; beyond, data travels as a copy, and shared memory not at all."""

_GENERATIONS_AT = CELLS
_BORROWERS_AT = 8 * CELLS
_SIZE_BYTES = 16 * CELLS
_FEW = 32


class LeaseState(enum.IntEnum):
    FREE = 0
    SENT = 1
    OPEN = 2
    PASSED_ON = 3
    RETURNED = 4
    ABANDONED = 5


# As plain integers: the states are read and written one by one, often.
_FREE, _SENT, _OPEN, _PASSED_ON, _RETURNED, _ABANDONED = (int(state) for state in LeaseState)


class StaleLease(Exception):
    """The lender has taken the loan back: it thought that this process was gone."""


class Cells:
    """One process's cells, mapped by it and by those it lends to."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        whole = memoryview(segment.map)
        self._states = whole[:CELLS]
        self._generations = whole[_GENERATIONS_AT : _GENERATIONS_AT + 4 * CELLS].cast("I")
        self._borrowers = whole[_BORROWERS_AT:_SIZE_BYTES].cast("Q")
        self._latest = CELLS - 1

    @classmethod
    def create(cls, *, named: bool) -> Cells:
        """Raises OSError."""
        segment = Segment.create(_SIZE_BYTES, named=named)
        try:
            segment.commit(0, _SIZE_BYTES)
        except BaseException:
            segment.close()
            raise
        return cls(segment)

    # The lender's side; one thread at a time.

    def send(self) -> tuple[int, int] | None:
        """A cell for a loan that is about to be sent, and its generation; None if all are in use.

        Cells are used in turn, so that it takes long until one is used again.
        """
        states = self._states
        index = (self._latest + 1) % CELLS
        while states[index] != _FREE:
            if index == self._latest:
                return None
            index = (index + 1) % CELLS
        self._latest = index
        self._borrowers[index] = 0
        generation = self._bump(index)
        states[index] = _SENT
        return index, generation

    def retract(self, index: int) -> bool:
        """Take back what was sent and will not be opened. False if somebody has opened it all the same."""
        self._bump(index)
        fence()
        if self._states[index] != _SENT:
            return False
        self._states[index] = _FREE
        return True

    def state(self, index: int) -> int:
        return self._states[index]

    def borrower(self, index: int) -> int:
        """The process that has it, as `is_alive` takes it."""
        return self._borrowers[index]

    def free(self, index: int) -> None:
        """The loan is over."""
        self._states[index] = _FREE

    def over(self, indices: Any) -> list[int]:
        """Those among the cells, a sized container of indices, that were returned or abandoned."""
        if len(indices) <= _FEW:
            states = self._states
            return [index for index in indices if states[index] >= _RETURNED]
        states_now = bytes(self._states)
        found = []
        for state in (_RETURNED, _ABANDONED):
            index = states_now.find(state)
            while index >= 0:
                found.append(index)
                index = states_now.find(state, index + 1)
        return found

    def _bump(self, index: int) -> int:
        generation = self._generations[index] = (self._generations[index] + 1) & 0xFFFFFFFF
        return generation

    # The borrower's side.

    def open(self, index: int, generation: int) -> None:
        """Take a loan that was sent to this process. Raises StaleLease if it was taken back meanwhile."""
        generations, states = self._generations, self._states
        if generations[index] != generation or states[index] != _SENT:
            raise StaleLease
        self._borrowers[index] = this_process()
        states[index] = _OPEN
        fence()
        if generations[index] != generation:
            states[index] = _RETURNED
            raise StaleLease

    def pass_on(self, index: int) -> None:
        """Others will have it from here."""
        self._states[index] = _PASSED_ON

    def give_back(self, index: int, *, abandon: bool = False) -> None:
        """The last view is gone; `abandon` if another may still have one that nobody knows of."""
        self._states[index] = _ABANDONED if abandon else _RETURNED


_this_process = 0


def this_process() -> int:
    """This process, told apart from any later one with the same number.

    Where it cannot find out when it was born, as for want of descriptors, it is its bare number, from then on.
    """
    global _this_process
    if not _this_process:
        pid = os.getpid()
        try:
            _this_process = _identify(pid) or pid
        except OSError:
            _this_process = pid
    return _this_process


def _forget() -> None:
    global _this_process
    _this_process = 0


os.register_at_fork(after_in_child=_forget)


def is_alive(process: int) -> bool:
    """Whether a process, as `this_process` tells it there, still has its memory; also if that cannot be found out."""
    pid = process & 0xFFFFFFFF
    try:
        found = _identify(pid)
    except OSError:
        return True  # to take a dead one for alive costs memory for a while, the converse lets data change in use
    return found is not None and process in (found, pid)


def _identify(pid: int) -> int | None:
    """The process that has this number now, if it lives. Raises OSError if that cannot be found out."""
    if sys.platform.startswith("linux"):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        if fields[0] in (b"Z", b"X"):
            return None
        return (int(fields[19]) & 0xFFFFFFFF) << 32 | pid
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return pid
