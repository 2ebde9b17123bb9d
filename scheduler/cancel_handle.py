"""What cancels a switch from elsewhere: a capability to end it, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from domains.scheduler.switch import Switch

__all__ = ["CancelHandle"]


class CancelHandle:
    """Cancels its switch: the one part of a switch that can be handed to another domain."""

    __slots__ = ("__weakref__", "_switch", "label")

    def __init__(self, switch: Switch) -> None:
        self._switch = switch
        self.label = switch.name

    def __repr__(self) -> str:
        return f"<cancel handle of {self._switch!r}>"

    def cancel(self) -> None:
        """End everything inside the switch, quietly; nothing happens if it has ended."""
        self._switch.cancel()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} travels only between domains: as a job's argument or result, or inside another one")
