"""Mutexes in other domains than their home.

The home hands the lock to a call as to one of its own fibers. A section for writing is named as such, so that the
home knows what to do when its domain dies: the mutex is poisoned then, and otherwise just unlocked.
"""

from __future__ import annotations

from typing import Any

from domains.errors import DomainsError
from domains.references.calls import RemoteObject, Served, Withdraw
from domains.references.registry import Export, Kind, References
from domains.scheduler.context import current_fiber
from domains.scheduler.mutex import Mutex


class RemoteHolder:
    """Stands for the fiber of another domain that holds a mutex, or waits for it."""

    __slots__ = ("call", "sender", "writes")

    def __init__(self, sender: int, call: int, writes: bool) -> None:
        self.sender = sender
        self.call = call
        self.writes = writes

    def __repr__(self) -> str:
        return f"a fiber of another domain ({self.sender:x})"


class MutexReference(RemoteObject, Mutex):
    """A mutex whose home is another domain. `_state` is the fiber of this domain that holds it, if one does."""

    __slots__ = ("_calls", "_held_by", "home", "home_name", "number")

    def __init__(self, references: References, home: int, number: int, label: Any) -> None:
        super().__init__(label)
        self.home = home
        self.number = number
        self._calls = references.calls
        self._held_by = 0  # the call that got the lock, by which the home knows it

    def __repr__(self) -> str:
        return self._describe("mutex" if self.label is None else f"mutex {self.label!r}")

    @property
    def is_locked(self) -> bool:
        return self._state is not None or bool(self._ask("is_locked"))

    @property
    def is_poisoned(self) -> bool:
        return bool(self._ask("is_poisoned"))

    async def lock(self, *, writes: bool = False) -> None:
        fiber = current_fiber()
        cancellation = fiber.context.cancellation
        if cancellation is not None:
            raise cancellation.tell(fiber)
        if self._state is fiber:
            raise RuntimeError(f"{self!r} is held by the very fiber that locks it: this would wait forever")
        call = self._calls.begin(self, "lock", (writes,))
        await call.outcome()
        self._state = fiber
        self._held_by = call.number

    def try_lock(self) -> bool:
        fiber = current_fiber()
        call: int = self._ask("try_lock")
        if call:
            self._state = fiber
            self._held_by = call
        return bool(call)

    def unlock(self) -> None:
        if self._state is not current_fiber():
            if self._state is None:
                self._tell("unlock", 0)
            raise RuntimeError(f"{self!r} can be unlocked only by its holder")
        held_by, self._held_by, self._state = self._held_by, 0, None
        self._tell("unlock", held_by)

    def rw(self, *, protect: bool = False) -> Any:
        section = super().rw(protect=protect)
        section._mutex = _ForWriting(self)  # type: ignore[assignment]
        return section

    def _poison(self, cause: BaseException) -> None:
        self._state = None
        self._tell("poison", cause)


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
    classes: tuple[type, ...] = (Mutex, MutexReference)

    def __init__(self) -> None:
        self.operations = {
            "lock": _lock,
            "try_lock": _try_lock,
            "is_locked": lambda mutex, served: served.resume(mutex.is_locked) and None,
            "is_poisoned": lambda mutex, served: served.resume(mutex.is_poisoned) and None,
        }
        self.tells = {"unlock": _unlock, "poison": _poison}

    def make_reference(self, references: References, home: int, number: int, label: Any) -> Any:
        return MutexReference(references, home, number, label)

    def domain_gone(self, export: Export, sender: int, error: DomainsError) -> None:
        mutex: Mutex = export.target
        holder = mutex._state
        if isinstance(holder, RemoteHolder) and holder.sender == sender:
            if holder.writes:
                mutex._poison(error)
            else:
                mutex._unlock(holder)


def _lock(mutex: Mutex, served: Served, writes: bool) -> Withdraw | None:
    holder = RemoteHolder(served.sender, served.call, writes)
    if mutex._try_lock(holder):
        served.resume(None)
        return None
    return mutex._wait(served, holder)


def _try_lock(mutex: Mutex, served: Served) -> None:
    holder = RemoteHolder(served.sender, served.call, False)
    served.resume(served.call if mutex._try_lock(holder) else 0)


def _unlock(export: Export, sender: int, call: int) -> None:
    mutex: Mutex = export.target
    holder = mutex._state
    if isinstance(holder, RemoteHolder) and holder.sender == sender and holder.call == call:
        mutex._unlock(holder)
    elif holder is None:
        mutex._poison(RuntimeError(f"{mutex!r} was unlocked by another domain, but nobody had locked it"))


def _poison(export: Export, sender: int, cause: BaseException) -> None:
    export.target._poison(cause)
