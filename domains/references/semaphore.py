"""Semaphores in other domains than their home. The home counts what each domain holds, and takes it back at its end."""

from __future__ import annotations

import contextlib
from typing import Any

from domains.errors import DomainsError
from domains.references.calls import RemoteObject, Served, Withdraw
from domains.references.kind import Export, Kind
from domains.references.registry import References
from domains.scheduler.semaphore import Semaphore


class SemaphoreReference(RemoteObject, Semaphore):
    """A semaphore whose home is another domain. `value` asks the home, and this domain waits for the answer."""

    __slots__ = ("_calls", "_held", "home", "home_name", "number")

    def __init__(self, references: References, home: int, number: int, label: Any) -> None:
        super().__init__(0, label=label)
        self.home = home
        self.number = number
        self._calls = references.calls
        self._held = 0  # permits that this domain has acquired, and not released

    def __repr__(self) -> str:
        return self._describe("semaphore" if self.label is None else f"semaphore {self.label!r}")

    @property
    def value(self) -> int:
        value: int = self._ask("value")
        return value

    async def acquire(self) -> None:
        await self._call("acquire")
        self._held += 1

    def release(self) -> None:
        if self._held:  # it is owed one, so nothing can be wrong with this
            self._held -= 1
            self._tell("release")
        else:
            self._calls.settle(self.home)
            self._ask("release")


class SemaphoreKind(Kind):
    """How semaphores travel."""

    name = "semaphore"
    classes: tuple[type, ...] = (Semaphore, SemaphoreReference)

    def __init__(self) -> None:
        self.operations = {
            "acquire": _acquire,
            "release": _release_too_many,
            "value": lambda semaphore, served: served.resume(semaphore.value) and None,
        }
        self.tells = {"release": _release}

    def make_reference(self, references: References, home: int, number: int, label: Any) -> Any:
        return SemaphoreReference(references, home, number, label)

    def domain_gone(self, export: Export, sender: int, error: DomainsError) -> None:
        _forget_released(export)
        for _ in range(min(export.held.get(sender, 0), export.target._lent)):
            _give_back(export, sender)
            with contextlib.suppress(ValueError):  # others have released all while the last went to one who waited
                export.target.release()
        export.held.pop(sender, None)


class _Permit:
    """A call that waits for a permit: with it, its domain holds one more."""

    __slots__ = ("_served",)

    def __init__(self, served: Served) -> None:
        self._served = served

    def resume(self, value: None) -> bool:
        return _grant(self._served)

    def throw(self, error: BaseException) -> bool:
        return self._served.throw(error)


def _grant(served: Served) -> bool:
    if not served.resume(None):
        return False
    export, semaphore = served.export, served.export.target
    _forget_released(export)
    export.held[served.sender] = export.held.get(served.sender, 0) + 1
    semaphore._lent += 1
    if semaphore._limit is not None:  # others may have released while this was answered
        semaphore._lent = min(semaphore._lent, semaphore._limit - semaphore._value)
    return True


def _acquire(semaphore: Semaphore, served: Served) -> Withdraw | None:
    if semaphore._try_acquire():
        _grant(served)
        return None
    permit = _Permit(served)
    withdraw = semaphore._wait(permit)
    return lambda _: withdraw(permit)


def _release_too_many(semaphore: Semaphore, served: Served) -> None:
    """The sender knows of no permit that it has; perhaps by an earlier reference of its."""
    _give_back(served.export, served.sender)
    semaphore.release()
    served.resume(None)


def _release(export: Export, sender: int) -> None:
    _give_back(export, sender)
    export.target.release()


def _forget_released(export: Export) -> None:
    """Where somebody has released a permit in its holder's stead, it does not come back once more when that ends.

    Which holder's it was can be told only where there is one.
    """
    if len(export.held) == 1:
        ((sender, held),) = export.held.items()
        _set_held(export, sender, min(held, export.target._lent))


def _give_back(export: Export, sender: int) -> None:
    """A permit is about to be released by this domain: one of those that it holds, if it holds any."""
    held = export.held.get(sender, 0)
    if held:
        _set_held(export, sender, held - 1)
        export.target._lent = max(0, export.target._lent - 1)


def _set_held(export: Export, sender: int, held: int) -> None:
    if held:
        export.held[sender] = held
    else:
        del export.held[sender]
