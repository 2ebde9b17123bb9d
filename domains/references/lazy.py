"""Lazy values in other domains than their home: forced at home, by a fiber of its own, and the value travels."""

from __future__ import annotations

from typing import Any, TypeVar

from domains.references.calls import RemoteObject, Served, Withdraw
from domains.references.kind import Kind
from domains.references.registry import References
from domains.scheduler.lazy import Lazy

T = TypeVar("T")


class LazyReference(RemoteObject, Lazy[T]):
    """A lazy value whose home is another domain; it keeps the value once it has it."""

    __slots__ = ("_calls", "_value", "home", "home_name", "number")

    def __init__(self, references: References, home: int, number: int, label: Any) -> None:
        super().__init__(_at_home, label=label)
        self.home = home
        self.number = number
        self._calls = references.calls
        self._value: list[T] = []

    def __repr__(self) -> str:
        return self._describe("lazy" if self.label is None else f"lazy {self.label!r}")

    @property
    def is_forced(self) -> bool:
        return bool(self._value) or bool(self._ask("is_forced"))

    async def force(self) -> T:
        if not self._value:
            value = await self._call("force")
            if not self._value:
                self._value.append(value)
        return self._value[0]


def _at_home() -> Any:
    raise AssertionError("a lazy value is computed at its home")


class LazyKind(Kind):
    """How lazy values travel."""

    name = "lazy"
    classes: tuple[type, ...] = (Lazy, LazyReference)

    def __init__(self) -> None:
        self.operations = {
            "force": _force,
            "is_forced": lambda lazy, served: served.resume(lazy.is_forced) and None,
        }

    def make_reference(self, references: References, home: int, number: int, label: Any) -> Any:
        return LazyReference(references, home, number, label)


def _force(lazy: Lazy[Any], served: Served) -> Withdraw:
    return served.calls.run(served, lazy.force)
