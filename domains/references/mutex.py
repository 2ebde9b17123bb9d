"""Mutexes in other domains than their home, by a lock word in shared memory, and the home when it is contended.

Whoever finds the word free takes it, without a message: a microsecond or two. Whoever does not asks the home, whose
queue decides the order: it closes the word to newcomers while anybody waits, and sends the first of them ahead, who
then takes the word, and says so. Whoever gives up a word that is closed tells the home. A holder that dies loses the
word at once; a note beside it says whether it was writing, and then the mutex is poisoned, by whoever finds that.

At home a mutex that others know is a `SharedMutex`. States there: free or held elsewhere, as the word knows; held by a
fiber of the home; poisoned. Beside the queue there is at most one remote fiber that was sent ahead, and did not say yet
that it got there.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

from domains.conversation import Conversation
from domains.errors import ConnectionLost, DomainDied, DomainsError, DomainUnavailable
from domains.identity import current
from domains.ipc.lockword import LockHolder, LockWord
from domains.references.calls import Calls, RemoteObject, Served, Withdraw
from domains.references.kind import Export, Kind
from domains.references.registry import References
from domains.scheduler.context import Fiber, current_fiber
from domains.scheduler.mutex import Mutex
from domains.scheduler.waiters import Waiter, WaitQueue
from domains.scheduler.yielding import yield_now

_LONGEST_STREAK = 64
"""So often the home's fibers may lock it, one after another, before others are heard."""

_WRITES = 1
"""The note of a holder whose death poisons the mutex."""


class _Turn:
    """A fiber of another domain: waits in the queue, or was sent ahead."""

    __slots__ = ("call", "sender")

    def __init__(self, sender: int, call: int) -> None:
        self.sender = sender
        self.call = call


class SharedMutex(Mutex):
    """A mutex at its home, while other domains know it: made of a `Mutex`, and made one again in the end.

    Only what `Mutex`'s own methods call is different, never these: they may have been taken hold of before. It always
    has a queue, so that they take no short cut.
    """

    __slots__ = ()

    # Becoming and ending

    @classmethod
    def share(cls, mutex: Mutex, calls: Calls) -> None:
        """Raises OSError where there is no shared memory."""
        word = LockWord.create()
        mutex._calls = calls
        mutex._word = word
        mutex._ahead = None
        mutex._streak = 0
        if mutex._waiters is None:
            mutex._waiters = WaitQueue()
        mutex.__class__ = cls
        if mutex.is_poisoned:
            word.mark_poisoned()
        elif mutex._state is not None:
            word.try_lock(_WRITES)
        if mutex._waiters:
            word.mark_waiting()

    def unshare(self) -> None:
        """Nobody else knows it any more."""
        word: LockWord = self._word
        is_taken = word.is_mine  # if not by a fiber, then by an operation that is about to poison it
        if is_taken:
            word.unlock()
        word.close()
        del self._calls, self._word, self._ahead, self._streak
        if not self._waiters:
            self._waiters = None
        self.__class__ = Mutex  # type: ignore[assignment]
        if self._state is None and not is_taken:
            self._hand_over()  # it may have been held elsewhere until now, while fibers of the home waited

    # As a mutex

    def __repr__(self) -> str:
        holder = self._word.holder  # once: it may be given up at any time
        if self._state is not None or holder is None:
            return super().__repr__()
        name = "" if self.label is None else f" {self.label!r}"
        return f"<mutex{name}, held by process {holder.pid}, {len(self._waiters or ())} waiting>"

    @property
    def is_locked(self) -> bool:
        return not self.is_poisoned and self._word.holder is not None

    async def _lock(self, fiber: Fiber) -> None:
        self._streak += 1
        if self._streak > _LONGEST_STREAK:
            # Whoever else wants it asks by a message, which is not read before the loop turns.
            self._streak = 0
            await yield_now()
        await Mutex._lock(self, fiber)  # no `super`: it may not be shared any more

    def _try_lock(self, holder: Hashable) -> bool:
        if self.is_poisoned:
            raise self._poisoned()
        if self._state is None and self._take(ahead=False):
            self._state = holder
            return True
        if self.is_poisoned:  # as it turned out
            raise self._poisoned()
        return False

    def _unlock(self, holder: Hashable) -> None:
        word: LockWord = self._word
        if self._state is None and word.holder is not None:
            raise RuntimeError(f"{self!r} can be unlocked only by its holder")
        if self._state is None or self._state != holder:
            super()._unlock(holder)  # raises, and poisons what nobody had locked
        if not self._settle():
            Mutex._unlock(self, holder)
            return
        self._state = None
        word.unlock()
        self.advance()

    def _poison(self, cause: BaseException) -> None:
        if not self._settle():
            Mutex._poison(self, cause)
            return
        word: LockWord = self._word
        word.mark_poisoned()
        super()._poison(cause)
        self._waiters = WaitQueue()
        if word.is_mine:
            word.unlock()

    def _settle(self) -> bool:
        """Before others may learn of an operation; brings news. False if nobody else knows it any more: it is plain."""
        self._calls.settle()
        return type(self) is SharedMutex

    # The order in which it is handed over

    def _take(self, *, ahead: bool) -> bool:
        word: LockWord = self._word
        if not word.try_lock(_WRITES, ahead=ahead):
            return False
        died = word.abandoned
        if died is None:
            return True
        if died.note & _WRITES:
            self._poison(_death(died.pid))
            return False
        word.recover(_WRITES)
        return True

    def _wait(self, waiter: Waiter[None], holder: Hashable) -> Callable[[Any], object]:
        is_shared = self._settle()
        if self.is_poisoned:
            waiter.throw(self._poisoned())
            return lambda _: None
        if not is_shared:
            if self.is_locked:
                return Mutex._wait(self, waiter, holder)
            self._state = holder  # whoever held it has let go of it meanwhile
            waiter.resume(None)
            return lambda _: None
        self._streak = 0
        assert self._waiters is not None
        self._waiters.join(waiter, holder)
        self._word.mark_waiting()
        self.advance()
        return lambda waiter: self._withdraw(waiter)

    def _withdraw(self, waiter: Waiter[None]) -> None:
        super()._withdraw(waiter)
        self._reopen()

    def advance(self) -> None:
        """If the word is free, the first who waits takes it, or is sent ahead to take it."""
        word: LockWord = self._word
        waiters = self._waiters
        while waiters and self._ahead is None and not word.is_poisoned:
            if not self._take(ahead=True):
                return  # who gives it up sees that somebody waits, and says so
            entry = waiters.pop_first()
            assert entry is not None
            waiter, holder = entry
            if isinstance(holder, _Turn):
                self._ahead = holder
                word.unlock()  # it stays closed to all others
                if not waiter.resume(None) and self._ahead is holder:
                    self._ahead = None
            elif waiter.resume(None):
                self._state = holder
            else:
                word.unlock()
        self._reopen()

    def _reopen(self) -> None:
        if not self._waiters and self._ahead is None and not self._word.is_poisoned:
            self._word.clear_waiting()

    def arrived(self, sender: int, call: int, took: bool) -> None:
        """Who was sent ahead has the word; or does not, and comes again, first of all."""
        ahead = self._ahead
        if ahead is not None and ahead.sender == sender and ahead.call == call:
            self._ahead = None
            self._reopen() if took else self.advance()

    def domain_gone(self, sender: int, error: DomainsError) -> None:
        """A domain died, or knows it no more: it is neither ahead nor holds it."""
        if self._ahead is not None and self._ahead.sender == sender:
            self._ahead = None
        self.look_after_death(error)

    def look_after_death(self, error: DomainsError) -> None:
        """Somebody who knew it may have died: see what that one has left behind in the word."""
        word: LockWord = self._word
        if word.is_poisoned and not self.is_poisoned and isinstance(error, DomainDied | ConnectionLost):
            self._poison(error)  # as it died, before it could say so and why
            return
        holder = word.holder
        if holder is not None and not word.is_mine and word.try_lock(_WRITES, ahead=True):
            if word.abandoned is not None and holder.note & _WRITES:
                self._poison(error)
            else:
                word.recover()
                word.unlock()
        self.advance()


class MutexReference(RemoteObject, Mutex):
    """A mutex whose home is another domain. `_state` is the fiber of this domain that holds it, if one does."""

    __slots__ = ("_descriptor", "_why_no_word", "home", "home_name", "number")

    def __init__(self, references: References, home: int, number: int, label: Any) -> None:
        name, descriptor = label
        super().__init__(name)
        self.home = home
        self.number = number
        self._calls = references.calls
        self._descriptor: bytes = descriptor  # the home's own: another domain's would end with that one
        self._word = None
        self._why_no_word = ""
        self._find_word()

    def __del__(self) -> None:
        # Before the home hears that nobody here has it any more, and looks what was left behind: that takes a turn.
        word: LockWord | None = getattr(self, "_word", None)
        if word is not None and word.is_mine:
            word.abandon()

    def __repr__(self) -> str:
        return self._describe("mutex" if self.label is None else f"mutex {self.label!r}")

    @property
    def is_locked(self) -> bool:
        return self._word is not None and self._word.holder is not None and not self._word.is_poisoned

    @property
    def is_poisoned(self) -> bool:
        return self._word is not None and self._word.is_poisoned

    async def lock(self, *, writes: bool = False) -> None:
        fiber = current_fiber()
        cancellation = fiber.context.cancellation
        if cancellation is not None:
            raise cancellation.tell(fiber)
        if not self._take(fiber, writes, ahead=False):
            if self._state is fiber:
                raise RuntimeError(f"{self!r} is held by the very fiber that locks it: this would wait forever")
            await self._wait_for_turn(fiber, writes)

    async def _wait_for_turn(self, fiber: Fiber, writes: bool) -> None:
        again = False
        while True:
            call = self._calls.begin(self, "lock", (again,))
            await call.outcome()
            took = self._take(fiber, writes, ahead=True)
            self._tell("arrived", call.number, took)
            if took:
                return
            if self._word is None:
                raise self._without_word()
            again = True

    def try_lock(self) -> bool:
        if self._take(current_fiber(), False, ahead=False):
            return True
        if self._word is None or self._word.is_poisoned:
            self._ask("check")
        if self._word is None:
            raise self._without_word()
        return False

    def unlock(self) -> None:
        if self._state is None or self._state is not current_fiber():
            if not self.is_locked:
                self._tell("unlocked_unlocked")
            raise RuntimeError(f"{self!r} can be unlocked only by its holder")
        self._calls.settle()
        self._state = None
        if self._word.unlock():
            self._tell("freed")

    def rw(self, *, protect: bool = False) -> Any:
        section = super().rw(protect=protect)
        section._mutex = _ForWriting(self)  # type: ignore[assignment]
        return section

    def _same_lock(self) -> Callable[[], Awaitable[None]]:
        holder: LockHolder | None = self._word.holder if self._word is not None else None
        return functools.partial(self.lock, writes=holder is not None and bool(holder.note & _WRITES))

    def _find_word(self) -> LockWord | None:
        """The word, opened if it is not yet; None if that fails: its home has ended, or this domain lacks something."""
        if self._word is None and self._descriptor:
            try:
                self._word = LockWord.attach(self._descriptor)
            except OSError as error:
                self._why_no_word = str(error)
        word: LockWord | None = self._word
        return word

    def _without_word(self) -> DomainUnavailable:
        """What to raise where there is no word though the home lives, as that has answered."""
        return DomainUnavailable(
            f"{self!r} cannot be locked by domain {current().name!r}, which cannot open its lock word: "
            f"{self._why_no_word}; see that it can, then try again"
        )

    def _take(self, fiber: Fiber, writes: bool, *, ahead: bool) -> bool:
        word = self._find_word()
        note = _WRITES if writes else 0
        if word is None or not word.try_lock(note, ahead=ahead):
            return False
        died = word.abandoned
        if died is not None:
            if died.note & _WRITES:
                word.mark_poisoned()
                word.unlock()
                self._tell("abandoned", died.pid)
                return False
            word.recover(note)
        self._state = fiber
        return True

    def _poison(self, cause: BaseException) -> None:
        self._calls.settle()
        self._word.mark_poisoned()  # before it is free: nobody gets in between
        self._state = None
        self._word.unlock()
        self._calls.tell_failure(self, "poison", cause)

    def home_gone(self, error: DomainsError) -> None:
        """The word is closed for good: whoever comes asks the home, and hears of its end."""
        self._descriptor = b""
        if self._word is not None:
            self._word.mark_waiting()


class _ForWriting:
    """A mutex as a writing section sees it."""

    __slots__ = ("_mutex",)

    def __init__(self, mutex: MutexReference) -> None:
        self._mutex = mutex

    async def lock(self) -> None:
        await self._mutex.lock(writes=True)

    def unlock(self) -> None:
        self._mutex.unlock()

    def _is_mine(self) -> bool:
        return self._mutex._is_mine()

    def _poison(self, cause: BaseException) -> None:
        self._mutex._poison(cause)


class MutexKind(Kind):
    """How mutexes travel."""

    name = "mutex"
    classes: tuple[type, ...] = (Mutex, SharedMutex, MutexReference)

    def __init__(self) -> None:
        self._calls: Calls | None = None
        self.operations = {"lock": _lock, "check": _check}
        self.tells = {
            "arrived": lambda export, sender, call, took: export.target.arrived(sender, call, took),
            "freed": lambda export, sender: export.target.advance(),
            "abandoned": lambda export, sender, pid: export.target._poison(_death(pid)),
            "unlocked_unlocked": _unlocked_unlocked,
        }
        self.failures = {"poison": lambda export, sender, cause: export.target._poison(cause)}

    def exported(self, export: Export) -> None:
        assert self._calls is not None
        SharedMutex.share(export.target, self._calls)

    def dropped(self, target: SharedMutex) -> None:
        target.unshare()

    def converse(self, references: References, conversation: Conversation) -> None:
        self._calls = references.calls

    def label_of(self, target: Mutex) -> tuple[str | None, bytes]:
        return target.label, target._descriptor if isinstance(target, MutexReference) else target._word.descriptor

    def make_reference(self, references: References, home: int, number: int, label: Any) -> Any:
        return MutexReference(references, home, number, label)

    def domain_gone(self, export: Export, sender: int, error: DomainsError) -> None:
        export.target.domain_gone(sender, error)

    def undelivered(self, export: Export, error: DomainsError) -> None:
        export.target.look_after_death(error)


def _lock(mutex: SharedMutex, served: Served, again: bool) -> Withdraw | None:
    if mutex.is_poisoned:
        raise mutex._poisoned()
    turn = _Turn(served.sender, served.call)
    withdraw = mutex._wait(served, turn)
    if again and mutex._waiters is not None:
        mutex._waiters.put_first(served)
    return withdraw


def _check(mutex: SharedMutex, served: Served) -> None:
    if mutex.is_poisoned:
        raise mutex._poisoned()
    served.resume(None)


def _unlocked_unlocked(export: Export, sender: int) -> None:
    mutex: SharedMutex = export.target
    if not mutex.is_locked:
        mutex._poison(RuntimeError(f"{mutex!r} was unlocked by another domain, but nobody had locked it"))


def _death(pid: int) -> DomainDied:
    return DomainDied(f"process {pid}", what="while it held a mutex to write")
