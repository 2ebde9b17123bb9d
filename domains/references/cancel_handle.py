"""A switch's cancel handle in other domains than the switch's: cancelling is a message."""

from __future__ import annotations

from typing import Any

from domains.references.calls import RemoteObject
from domains.references.kind import Kind
from domains.references.registry import References
from domains.scheduler.cancel_handle import CancelHandle


class CancelHandleReference(RemoteObject, CancelHandle):
    """The handle of a switch in another domain."""

    __slots__ = ("_calls", "home", "home_name", "label", "number")

    def __init__(self, references: References, home: int, number: int, label: Any) -> None:
        self.home = home
        self.number = number
        self.label = label
        self._calls = references.calls

    def __repr__(self) -> str:
        return self._describe(f"cancel handle of switch {self.label!r}")

    def cancel(self) -> None:
        self._tell("cancel")


class CancelHandleKind(Kind):
    """How cancel handles travel."""

    name = "cancel handle"
    classes: tuple[type, ...] = (CancelHandle, CancelHandleReference)

    def __init__(self) -> None:
        self.tells = {"cancel": lambda export, sender: export.target.cancel()}

    def make_reference(self, references: References, home: int, number: int, label: Any) -> Any:
        return CancelHandleReference(references, home, number, label)
