"""What a class of objects that several domains share has to say of itself, and what is known of each object at home."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from domains.errors import DomainsError

if TYPE_CHECKING:
    from domains.conversation import Conversation
    from domains.references.calls import Withdraw
    from domains.references.registry import References


class Reference(Protocol):
    """An object that stands for one whose home is another domain."""

    home: int
    number: int
    home_name: str

    def home_gone(self, error: DomainsError) -> None:
        """The home has ended: whoever waits, or comes later, gets this error."""


class Export:
    """An object of this domain that others know: who holds references to it, and how many pickles are on their way.

    `held` is what each of those domains has of the object itself, such as permits.
    """

    __slots__ = ("held", "holders", "holds", "kind", "number", "target")

    def __init__(self, number: int, target: Any, kind: str) -> None:
        self.number = number
        self.target = target
        self.kind = kind
        self.holders: set[int] = set()
        self.holds = 0
        self.held: dict[int, Any] = {}


class Kind:
    """How one class of objects travels, what others may have done to them, and what becomes of what others hold."""

    name: str
    classes: tuple[type, ...]
    """The class itself, what it may become once it is exported, and last that of its references."""
    operations: Mapping[str, Callable[..., Withdraw | None]] = MappingProxyType({})
    """`operation(target, served, *args)` answers by `served.resume`, or raises, or returns what withdraws it."""
    tells: Mapping[str, Callable[..., None]] = MappingProxyType({})
    """`tell(export, sender, *args)`: what is done without an answer."""
    failures: Mapping[str, Callable[[Export, int, BaseException], None]] = MappingProxyType({})
    """The same for what comes with an exception, of whatever sort."""

    def make_reference(self, references: References, home: int, number: int, label: Any) -> Any:
        """A reference, in a domain that is not the home."""
        raise NotImplementedError

    def label_of(self, target: Any) -> Any:
        """What a reference should know of the object from the start: something small that can be pickled."""
        return target.label

    def exported(self, export: Export) -> None:
        """It is about to be known to others for the first time."""

    def dropped(self, target: Any) -> None:
        """Nobody else knows it any more."""

    def holder_gone(self, export: Export, error: DomainsError) -> None:
        """A domain that held a reference to this object has died, and no other has one."""

    def undelivered(self, export: Export, error: DomainsError) -> None:
        """A domain has died that had not said yet that it knows this object: perhaps it did, and used it."""

    def domain_gone(self, export: Export, sender: int, error: DomainsError) -> None:
        """A domain knows this object no more, because it has died or let go: what it held comes back."""

    def converse(self, references: References, conversation: Conversation) -> None:
        """Register the handlers of messages of its own."""
