"""The objects that this domain has handed to others, and those that others have handed to it.

An object keeps its home: the domain that made it. Pickling it exports it under a number that nobody can guess; where
the pickle is opened a reference of the same class stands for it, one per domain, and talks to the home by messages.
Sent home, it is the original object again.

Who keeps what alive: an export lives while a domain holds a reference to it, or while a pickle with it is on its way.
A pickle's journey is a `hold`, kept by who pickled it, until the receiver has said `HoldReference` to the home and then
`DischargeHold`; until the job that it is an argument of has ended; or until the link that it went over is gone. Because
all messages between two domains take one way, a release never overtakes the hold that it comes after.

Messages for a domain that is no neighbour go by way of the parent, and back the way that they came. A domain that has
children of its own tells its parent of each, and of its end, so that those above know which way leads to it.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import Any, Protocol

from domains.conversation import Buffers, Conversation
from domains.errors import Cancelled, ConnectionLost, DomainDied, DomainsError
from domains.failures import pack_failure, unpack_failure
from domains.identity import current
from domains.ipc.carrier import ArenaUse
from domains.ipc.link import Link, wait_for
from domains.ipc.pickling import Memory, Payload, Pickling
from domains.ipc.segments import random_number
from domains.protocol import DischargeHold, HoldReference, HomeGone, Introduce, ReleaseReference
from domains.references.calls import Calls, Withdraw
from domains.references.meetings import Introductions, Meetings
from domains.references.plain import is_plain
from domains.scheduler.switch import Switch
from domains.variables import reduce_variable

_VERDICT_SECONDS = 2.0
"""How soon a parent says that a domain has died; a direct link that broke without that is a fault."""


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


class _Hold:
    """A pickle's journey: what must live meanwhile, and the address that it was sent to, if that is known."""

    __slots__ = ("export", "target", "to")

    def __init__(self, target: Any, export: Export | None) -> None:
        self.target = target
        self.export = export
        self.to: int | None = None


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

    def domain_gone(self, export: Export, sender: int, error: DomainsError) -> None:
        """A domain knows this object no more, because it has died or let go: what it held comes back."""

    def converse(self, references: References, conversation: Conversation) -> None:
        """Register the handlers of messages of its own."""


class References:
    """One process's share in the objects that several domains know. Belongs to one loop and its thread."""

    def __init__(self, kinds: Iterable[Kind], switch: Switch, memory: Memory | None = None) -> None:
        self.address = random_number()
        self.kinds = {kind.name: kind for kind in kinds}
        self.pickling = ReferencePickling(self, memory)
        self.calls = Calls(self, switch)
        self._switch = switch
        self.exports: dict[int, Export] = {}
        self._by_identity: dict[int, Export] = {}
        self._imports: dict[tuple[int, int], weakref.ref[Any]] = {}
        self._holds: dict[int, _Hold] = {}
        self._kept: set[int] = set()  # holds of pickles that are sent again if they are lost
        self._latest_hold = 0
        self._conversations: set[Conversation] = set()
        self._routes: dict[int, Conversation] = {}
        self._children: dict[int, Conversation] = {}
        self._parent: Conversation | None = None
        self._parent_address: int | None = None
        self.open_manager: Callable[[int], Any] | None = None
        """What a domain manager that was handed to this process means here, given its default number of domains."""
        self._seeking: dict[int, list[tuple[Any, Any, Iterable[int]]]] = {}  # what waits for a direct link
        self._unreachable: dict[int, DomainsError] = {}  # why, for as long as there are references to objects there
        self._ending: dict[Conversation, DomainsError] = {}  # direct links whose peer has died
        self._introductions: Introductions | None = None
        self._meetings: Meetings | None = None
        self.when_domain_gone: list[Callable[[int, DomainsError], None]] = []
        """Called with the address of each domain that has ended, and how."""
        self._is_pumping = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    # Who is where

    def introduce_domains(self, new_address: Callable[[], str | None]) -> None:
        """As a parent: bring together those children that have something to say to each other."""
        self._introductions = Introductions(self, new_address)

    def converse_with_parent(self, conversation: Conversation, arena: ArenaUse) -> Meetings:
        """Take part in the conversation with the parent; others are met with its help. Whoever calls closes these."""
        self._parent = conversation
        self._meetings = Meetings(self, conversation, arena)
        self.converse(conversation)
        return self._meetings

    def converse_with_child(self, conversation: Conversation) -> None:
        """Take part in the conversation with a domain that this one has started."""
        assert self._introductions is not None
        self._introductions.converse(conversation)
        conversation.handle(Introduce, lambda message, _: self._child_introduced(conversation, message))
        self._converse(conversation)

    def converse(self, conversation: Conversation) -> None:
        """Take part in a conversation with any other domain, which has not started."""
        conversation.handle(Introduce, lambda message, _: self._introduced(conversation, message))
        self._converse(conversation)

    def _converse(self, conversation: Conversation) -> None:
        self._conversations.add(conversation)
        self.handle(conversation, HoldReference, self._hold)
        self.handle(conversation, DischargeHold, self._discharged)
        self.handle(conversation, ReleaseReference, self._release)
        self.handle(conversation, HomeGone, functools.partial(self._home_gone, conversation))
        self.calls.converse(conversation)
        for kind in self.kinds.values():
            kind.converse(self, conversation)
        conversation.when_gone(lambda _: self._conversations.discard(conversation))
        conversation.send(Introduce(self.address))

    def handle(self, conversation: Conversation, message_type: type, handler: Callable[[Any, Buffers], None]) -> None:
        """Have messages of this type that are for this domain handled; others are passed on."""

        def receive(message: Any, buffers: Buffers) -> None:
            if message.sender != self.address:  # else it comes back from where nobody knows whom it is for any more
                self._routes.setdefault(message.sender, conversation)
            if message.to == self.address:
                handler(message, buffers)
            else:
                self.send(message, buffers)

        conversation.handle(message_type, receive)

    def send(self, message: Any, buffers: Any = (), holds: Iterable[int] = ()) -> None:
        """Send a message on its way to `message.to`. May be called from any thread, and in a plain job."""
        if threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self.send, message, buffers, holds)
            return
        conversation = self._routes.get(message.to)
        if conversation is None and self._meetings is not None and message.to not in self._unreachable:
            self._seek(message, buffers, holds)
            return
        if conversation is None or not conversation.link.is_open:
            self.discharge(holds)
            if isinstance(message, HoldReference):
                self._send_discharge(message.issuer, message.hold)
            if not isinstance(message, HomeGone | ReleaseReference | DischargeHold):
                self._answer_gone(message)
            return
        for hold in holds:
            if hold in self._holds:  # else it was discharged while the message waited for its way
                self._holds[hold].to = message.to
        conversation.send(message, buffers)
        if asyncio._get_running_loop() is None:
            conversation.link.flush()  # a plain job keeps the loop from its turn, and others should not wait for that

    def link_to(self, address: int) -> Link | None:
        """The link by which messages for that address leave, if it is known."""
        route = self._routes.get(address)
        return None if route is None else route.link

    def flush(self, address: int) -> None:
        """Let what was sent to that address leave at once: it has something to do as soon as it hears of it."""
        link = self.link_to(address)
        if link is not None:
            link.flush()

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Do this in the next turn; may be called in a plain job."""
        self._loop.call_soon(callback)

    def _seek(self, message: Any, buffers: Any, holds: Iterable[int]) -> None:
        assert self._meetings is not None
        waiting = self._seeking.get(message.to)
        if waiting is None:
            waiting = self._seeking[message.to] = []
            self._meetings.seek(message.to)
        waiting.append((message, buffers, holds))
        if asyncio._get_running_loop() is None:
            self._push(message.to)

    def _push(self, address: int) -> None:
        """In a plain job, which may last: see that what waits for this address is on its way."""
        while address in self._seeking:
            self.pump(address)
        route = self._routes.get(address)
        while route is not None and route.link.is_open and route.link.has_unsent:
            self.pump(address)

    def routed(self, address: int, conversation: Conversation) -> None:
        """From now on what is for this address goes there, and first what has waited for that."""
        self._routes[address] = conversation
        for waiting in self._seeking.pop(address, ()):
            self.send(*waiting)

    def child(self, address: int) -> Conversation | None:
        """The conversation with the child of this domain that has this address."""
        conversation = self._children.get(address)
        return conversation if conversation is not None and conversation.link.is_open else None

    def _introduced(self, conversation: Conversation, message: Introduce) -> None:
        self._routes[message.address] = conversation
        if conversation is self._parent:
            self._parent_address = message.address

    def _child_introduced(self, conversation: Conversation, message: Introduce) -> None:
        """A child says first who it is, and then which domains it has started, or those have."""
        if conversation not in self._children.values():
            self._children[message.address] = conversation
        self._routes[message.address] = conversation
        if self._parent is not None and self._parent.link.is_open:
            self._parent.send(message)

    def direct_link_gone(self, conversation: Conversation, reason: ConnectionLost | None) -> None:
        """A direct link has ended: because its peer has died or is about to end, which the parent says, or by a fault.

        What is for the peer waits until that is known.
        """
        error = self._ending.pop(conversation, None)
        for address in [address for address, route in self._routes.items() if route is conversation]:
            del self._routes[address]
            if error is not None:
                self._gone(address, error)
            else:
                self._seeking[address] = []
                lost = reason or ConnectionLost(f"{conversation.peer} has said goodbye")
                self._loop.call_later(_VERDICT_SECONDS, self._lost, address, lost)

    def _lost(self, address: int, error: ConnectionLost) -> None:
        if address not in self._unreachable:
            self._gone(address, error)

    def _gone(self, address: int, error: DomainsError) -> None:
        """Nothing comes from that address any more, nor goes there."""
        self._routes.pop(address, None)
        seeking = self._seeking.pop(address, ())
        if seeking or self._knows(address):
            self._unreachable[address] = error
        for waiting in seeking:
            self.send(*waiting)
        self._forget_holder(address, error)
        self._fail_references(address, error)

    def domain_ended(self, conversation: Conversation, error: DomainsError) -> None:
        """The domain at the other end, a child of this one, has ended: tell whoever depends on its objects."""
        gone = [address for address, route in self._routes.items() if route is conversation]
        for address in gone:
            del self._routes[address]
            self._children.pop(address, None)
            if self._introductions is not None:
                self._introductions.forget(address)
        self._descendants_gone(gone, error)

    def _descendants_gone(self, gone: list[int], error: DomainsError, told_by: Conversation | None = None) -> None:
        others = [
            address
            for address, route in self._routes.items()
            if route is not told_by and (route is not self._parent or address == self._parent_address)
        ]
        for address in gone:
            self._forget_holder(address, error)
            self._fail_references(address, error)
            for other in others:
                self._tell_gone(other, address, error)

    def _answer_gone(self, message: Any) -> None:
        gone = DomainDied("that an object had its home in", what="or cannot be reached any more")
        error = self._unreachable.get(message.to, gone)
        if message.sender == self.address:
            self._loop.call_soon(self._fail_references, message.to, error)
        else:
            self._tell_gone(message.sender, message.to, error)

    def _tell_gone(self, to: int, home: int, error: DomainsError) -> None:
        packed = pack_failure(error, self.pickling, f"domain {current().name!r}")
        self.send(HomeGone(to, self.address, home, packed.data, len(packed.buffers)), packed.buffers)

    def _home_gone(self, conversation: Conversation, message: HomeGone, buffers: Buffers) -> None:
        error = unpack_failure(message.data, buffers, self.pickling)
        assert isinstance(error, DomainsError)
        home = message.home
        route = self._routes.get(home)
        if home == self.address or home == self._parent_address:
            return  # whoever says so cannot be right
        if route is not None and route in self._children.values():
            if route is conversation and home not in self._children:
                del self._routes[home]
                self._descendants_gone([home], error, conversation)
        elif route is None or route is self._parent:
            self._gone(home, error)
        elif self._meetings is not None and self._meetings.leads_to(route, home):
            self._ending[route] = error  # what it has said before is still on its way
            self._meetings.expect_end(route)
        elif route is conversation:
            self._gone(home, error)  # else its parent, whom the route leads to, will say so behind what it has said

    def _fail_references(self, home: int, error: DomainsError) -> None:
        for (address, _), found in list(self._imports.items()):
            reference = found() if address == home else None
            if reference is not None:
                reference.home_gone(copy(error))  # each raises its own: a shared one would keep all their frames
        self.calls.home_gone(home, error)
        # Nobody is left to say that these have arrived.
        self.discharge(
            [hold for hold, found in self._holds.items() if found.export is None and found.target.home == home]
        )

    def pump(self, home: int) -> None:
        """Let this domain wait, in the middle of a fiber's turn, until something has arrived, and handle that.

        What is handled never runs a fiber. Raises DomainDied when nothing can come from that home any more.
        """
        route = self._routes.get(home, self._parent)
        if route is None or not route.link.is_open:
            gone = DomainDied("that an object had its home in", what="or cannot be reached any more")
            raise copy(self._unreachable.get(home, gone))
        running = asyncio._get_running_loop()
        asyncio._set_running_loop(self._loop)  # in a plain job none is said to run
        was_pumping, self._is_pumping = self._is_pumping, True
        try:
            wait_for([conversation.link for conversation in self._conversations])
        finally:
            self._is_pumping = was_pumping
            asyncio._set_running_loop(running)

    @property
    def may_wait(self) -> bool:
        """Whether `pump` may be called here: in a fiber or a plain job, but not where messages are handled."""
        if self._is_pumping or threading.get_ident() != self._thread:
            return False
        loop = asyncio._get_running_loop()
        return loop is None or asyncio.current_task(loop) is not None

    # Pickling

    def reduce(self, target: Any, kind: Kind) -> Any:
        """What an object, or a reference to one, is pickled as; begins a hold."""
        hold = self._latest_hold = self._latest_hold + 1
        export: Export | None = None
        is_reference = type(target) is kind.classes[-1]
        if not is_reference:
            export = self._export(target, kind)
            export.holds += 1
            home, number, home_name = self.address, export.number, current().name
        else:
            home, number, home_name = target.home, target.number, target.home_name
        self._holds[hold] = _Hold(target, export)
        self.pickling.holds.append(hold)
        return _open, (kind.name, home, number, home_name, self.address, hold, kind.label_of(target))

    def _export(self, target: Any, kind: Kind) -> Export:
        export = self._by_identity.get(id(target))
        if export is None:
            export = Export(random_number(), target, kind.name)
            kind.exported(export)
            self.exports[export.number] = self._by_identity[id(target)] = export
        return export

    def discharge(self, holds: Iterable[int]) -> None:
        """Pickles will not be opened any more."""
        for hold in holds:
            self._kept.discard(hold)
            found = self._holds.pop(hold, None)
            if found is not None and found.export is not None:
                found.export.holds -= 1
                self._drop_if_unused(found.export)

    def keep(self, holds: Iterable[int]) -> None:
        """These pickles may be opened more than once: that one has arrived does not discharge them."""
        self._kept.update(holds)

    def undelivered(self, holds: Iterable[int], error: DomainsError) -> None:
        """The domain that pickles were sent to has died: one that never opened them is a holder that is gone."""
        for hold in holds:
            self._kept.discard(hold)
            found = self._holds.pop(hold, None)
            if found is not None and found.export is not None:
                export = found.export
                export.holds -= 1
                if not export.holders and not export.holds:
                    self.kinds[export.kind].holder_gone(export, error)
                self._drop_if_unused(export)

    def _drop_if_unused(self, export: Export) -> None:
        if not export.holders and not export.holds and export.number in self.exports:
            del self.exports[export.number]
            del self._by_identity[id(export.target)]
            self.kinds[export.kind].dropped(export.target)

    # Opening

    def open(self, name: str, home: int, number: int, home_name: str, issuer: int, hold: int, label: Any) -> Any:
        """What a pickle's reference means here: the object itself at home, else the one reference to it."""
        if home == self.address:
            export = self.exports.get(number)
            if export is None:
                raise LookupError("the object that came home is not known here any more")
            target = export.target
            self._send_discharge(issuer, hold)
            return target
        reference = self.reference(home, number)
        if reference is None:
            if (home, number) in self._imports:
                # The one before is gone, and what it held with it; the home was not told yet.
                self.send(ReleaseReference(home, self.address, number))
            reference = self.kinds[name].make_reference(self, home, number, label)
            reference.home_name = home_name
            self._imports[home, number] = weakref.ref(reference, self._dropper(home, number))
            self.send(HoldReference(home, self.address, number, issuer, hold))
        else:
            self._send_discharge(issuer, hold)
        return reference

    def reference(self, home: int, number: int) -> Any:
        """The reference to that object, if somebody here has one."""
        found = self._imports.get((home, number))
        return None if found is None else found()

    def _send_discharge(self, issuer: int, hold: int) -> None:
        if issuer == self.address:
            self._arrived(hold)
        else:
            self.send(DischargeHold(issuer, self.address, hold))

    def _dropper(self, home: int, number: int) -> Callable[[weakref.ref[Any]], None]:
        def dropped(found: weakref.ref[Any]) -> None:
            # Called by the garbage collector, in whichever thread it runs.
            try:
                self._loop.call_soon_threadsafe(self._dropped, home, number, found)
            except RuntimeError:
                return  # the loop is closed, and the link with it

        return dropped

    def _dropped(self, home: int, number: int, found: weakref.ref[Any]) -> None:
        # If it came again meanwhile there is a new reference, and a new hold; this release must not undo that.
        if self._imports.get((home, number)) is found:
            del self._imports[home, number]
            if not self._is_ending():
                self.send(ReleaseReference(home, self.address, number))
            if home in self._unreachable and not self._knows(home):
                del self._unreachable[home]

    def _knows(self, home: int) -> bool:
        """Whether somebody here has a reference to an object of that domain."""
        return any(address == home for address, _ in self._imports)

    def _is_ending(self) -> bool:
        """Whether this domain was told to end: what it drops then is lost with it, and its home is told so by that."""
        try:
            self._switch.check()
        except Cancelled:
            return True
        return False

    # At home

    def _hold(self, message: HoldReference, _: Buffers) -> None:
        export = self.exports.get(message.number)
        if export is not None:
            export.holders.add(message.sender)
        self._send_discharge(message.issuer, message.hold)

    def _discharged(self, message: DischargeHold, _: Buffers) -> None:
        self._arrived(message.hold)

    def _arrived(self, hold: int) -> None:
        if hold not in self._kept:
            self.discharge([hold])

    def _release(self, message: ReleaseReference, _: Buffers) -> None:
        export = self.exports.get(message.number)
        if export is not None:
            export.holders.discard(message.sender)
            self.kinds[export.kind].domain_gone(export, message.sender, _released(export))
            self._drop_if_unused(export)

    def _forget_holder(self, holder: int, error: DomainsError) -> None:
        self.undelivered([hold for hold, found in self._holds.items() if found.to == holder], error)
        self.calls.caller_gone(holder)
        for callback in self.when_domain_gone:
            callback(holder, error)
        for export in list(self.exports.values()):
            if holder in export.holders:
                export.holders.discard(holder)
                self.kinds[export.kind].domain_gone(export, holder, error)
                if not export.holders and not export.holds:
                    self.kinds[export.kind].holder_gone(export, error)
                self._drop_if_unused(export)


class ReferencePickling(Pickling):
    """Pickling in which objects with a home travel by reference. A payload's holds are its sender's to discharge."""

    def __init__(self, references: References, memory: Memory | None) -> None:
        self._references = references
        self.holds: list[int] = []
        reducers: dict[type, Callable[[Any], Any]] = {contextvars.ContextVar: reduce_variable}
        for kind in references.kinds.values():
            for each in kind.classes:
                reducers[each] = functools.partial(references.reduce, kind=kind)
        super().__init__(reducers, memory)

    def dumps(self, value: object, what: str, *about: object) -> Payload:
        try:
            payload = super().dumps(value, what, *about)
        except BaseException:
            self._begin_attempt()
            raise
        if self.holds:
            payload = payload._replace(holds=self.holds)
            self.holds = []
        return payload

    def pack(self, value: Any, what: str, *about: object) -> Payload:
        """As `dumps`, but a plain value is its own `data`."""
        return Payload(value, ()) if is_plain(value) else self.dumps(value, what, *about)  # type: ignore[arg-type]

    def unpack(self, data: Any, buffers: Sequence[Any]) -> Any:
        """The opposite of `pack`; raises as `loads` does."""
        return self.loads(data, buffers) if type(data) is bytes else data

    def _begin_attempt(self) -> None:
        holds, self.holds = self.holds, []
        self._references.discharge(holds)

    def loads(self, data: bytes | memoryview, buffers: Sequence[Any]) -> Any:
        _opening.append(self._references)
        try:
            return super().loads(data, buffers)
        finally:
            _opening.pop()


_opening: list[References] = []
"""The registry whose pickle is being opened; a stack, because opening one may run code that opens another."""


def _open(name: str, home: int, number: int, home_name: str, issuer: int, hold: int, label: Any) -> Any:
    """What references are pickled as; called by the unpickler."""
    if not _opening:
        raise RuntimeError(
            "this pickle holds references to objects of other domains, and can only be opened by domains"
        )
    return _opening[-1].open(name, home, number, home_name, issuer, hold, label)


def open_domain_manager(default_count: int) -> Any:
    """What domain managers are pickled as: the receiver's own."""
    if not _opening or _opening[-1].open_manager is None:
        raise RuntimeError("a domain manager can only be handed to a domain, as a job's argument or inside another one")
    return _opening[-1].open_manager(default_count)


def _released(export: Export) -> DomainsError:
    return DomainsError(f"the last reference to {export.target!r} in another domain was dropped while it held it")
