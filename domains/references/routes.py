"""Who is where among the domains that talk to each other, and by which way a message gets there.

Messages for a domain that is no neighbour go by way of the parent, and back the way that they came, unless the two have
been brought together. A domain that has children of its own tells its parent of each, and of its end, so that those
above know which way leads to it. All messages between two domains take one way, so that none overtakes another.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from domains.conversation import Buffers, Conversation
from domains.errors import ConnectionLost, DomainDied, DomainsError, copy_of
from domains.failures import pack_failure, unpack_failure
from domains.identity import current
from domains.ipc.carrier import ArenaUse
from domains.ipc.link import Link, wait_for
from domains.ipc.pickling import Pickling
from domains.ipc.segments import random_number
from domains.protocol import DischargeHold, HomeGone, Introduce, ReleaseReference
from domains.references.meetings import Introductions, Meetings

_VERDICT_SECONDS = 2.0
"""How soon a parent says that a domain has died; a direct link that broke without that is a fault."""


class Routes(ABC):
    """The ways from one process to all others. Belongs to one loop and its thread.

    Who has something there, `domains.references.registry`, is told what becomes of it by the abstract methods.
    """

    pickling: Pickling

    def __init__(self) -> None:
        self.address = random_number()
        self._conversations: set[Conversation] = set()
        self._routes: dict[int, Conversation] = {}
        self._children: dict[int, Conversation] = {}
        self._parent: Conversation | None = None
        self._parent_address: int | None = None
        self._seeking: dict[int, list[tuple[Any, Any, Iterable[int]]]] = {}  # what waits for a direct link
        self._verdicts: dict[int, tuple[float, ConnectionLost]] = {}
        """Whose direct link has ended, by a fault as it seems, and when that is taken for certain."""
        self._unreachable: dict[int, DomainsError] = {}  # why, for as long as there are references to objects there
        self._ending: dict[Conversation, DomainsError] = {}  # direct links whose peer has died
        self._introductions: Introductions | None = None
        self._meetings: Meetings | None = None
        self._is_pumping = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    # For who has something elsewhere

    @abstractmethod
    def _register(self, conversation: Conversation) -> None:
        """Register the handlers of messages that are not about ways."""

    @abstractmethod
    def _sent(self, holds: Iterable[int], to: int) -> None:
        """A message with these holds is on its way."""

    @abstractmethod
    def _undeliverable(self, message: Any, holds: Iterable[int], error: DomainsError) -> None:
        """No way leads to where this message is to go, because of this error."""

    @abstractmethod
    def _knows(self, home: int) -> bool:
        """Whether somebody here has a reference to an object of that domain."""

    @abstractmethod
    def _forget_holder(self, holder: int, error: DomainsError) -> None:
        """A domain has ended that may have had references to objects of this one."""

    @abstractmethod
    def _fail_references(self, home: int, error: DomainsError) -> None:
        """A domain has ended, or can never be reached, that may be the home of objects which are known here."""

    # Meeting others

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
        self.handle(conversation, HomeGone, functools.partial(self._home_gone, conversation))
        self._register(conversation)
        conversation.when_gone(lambda _: self._conversations.discard(conversation))
        conversation.send(Introduce(self.address))

    def handle(self, conversation: Conversation, message_type: type, handler: Callable[[Any, Buffers], None]) -> None:
        """Have messages of this type that are for this domain handled; others are passed on."""

        def receive(message: Any, buffers: Buffers) -> None:
            sender = message.sender
            # It may come back from where nobody knows whom it is for any more; and what waits for a way must not be
            # overtaken by what is sent from now on.
            if sender != self.address and sender not in self._seeking:
                self._routes.setdefault(sender, conversation)
            if message.to == self.address:
                handler(message, buffers)
            else:
                self.send(message, buffers)

        conversation.handle(message_type, receive)

    def send(self, message: Any, buffers: Any = (), holds: Iterable[int] = ()) -> None:
        """Send a message on its way to `message.to`. May be called from any thread, and in a plain job."""
        if not self.is_own_thread:
            self.call_on_own_thread(self.send, message, buffers, holds)
            return
        conversation = self._routes.get(message.to)
        if conversation is None and self._meetings is not None and message.to not in self._unreachable:
            self._seek(message, buffers, holds)
            return
        if conversation is None or not conversation.link.is_open:
            self._undeliverable(message, holds, self._why_unreachable(message.to))
            if not isinstance(message, HomeGone | ReleaseReference | DischargeHold):
                self._answer_gone(message)
            return
        if holds:
            self._sent(holds, message.to)
        conversation.send(message, buffers)
        if asyncio._get_running_loop() is None:
            conversation.link.flush()  # a plain job keeps the loop from its turn, and others should not wait for that

    @property
    def is_own_thread(self) -> bool:
        """Whether this is the loop's thread, the only one that may pickle and that hears of others."""
        return threading.get_ident() == self._thread

    def call_on_own_thread(self, f: Callable[..., object], *args: object) -> None:
        """Have the loop's thread call this, behind what it was told to call before. May be called from any thread."""
        self._loop.call_soon_threadsafe(f, *args)

    def link_to(self, address: int) -> Link | None:
        """The link by which messages for that address leave, if it is known."""
        route = self._routes.get(address)
        return None if route is None else route.link

    def flush(self, address: int) -> None:
        """Let what was sent to that address leave at once: it has something to do as soon as it hears of it."""
        link = self.link_to(address)
        if link is not None:
            link.flush()

    def call_soon(self, callback: Callable[[], object]) -> asyncio.Handle:
        """Do this in the next turn; may be called in a plain job."""
        return self._loop.call_soon(callback)

    def _seek(self, message: Any, buffers: Any, holds: Iterable[int]) -> None:
        assert self._meetings is not None
        waiting = self._seeking.get(message.to)
        if waiting is None:
            waiting = self._seeking[message.to] = []
            self._meetings.seek(message.to)
        waiting.append((message, buffers, holds))
        if asyncio._get_running_loop() is None and not self._is_interrupted:
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
        conversation.address = message.address
        self.routed(message.address, conversation)
        if conversation is self._parent:
            self._parent_address = message.address

    def _child_introduced(self, conversation: Conversation, message: Introduce) -> None:
        """A child says first who it is, and then which domains it has started, or those have."""
        if conversation.address is None:
            conversation.address = message.address
            self._children[message.address] = conversation
        self._routes[message.address] = conversation
        if self._parent is not None and self._parent.link.is_open:
            self._parent.send(message)

    def direct_link_gone(self, conversation: Conversation, peer: int | None, reason: ConnectionLost | None) -> None:
        """A direct link has ended: because its peer has died or is about to end, which the parent says, or by a fault.

        What is for the peer waits until that is known. It is None if nobody waits for that one to come any more.
        """
        error = self._ending.pop(conversation, None)
        gone = {address for address, route in self._routes.items() if route is conversation}
        if peer is not None and peer not in self._routes:
            gone.add(peer)
        for address in gone:
            self._routes.pop(address, None)
            if error is not None:
                self._gone(address, error)
            else:
                self._seeking.setdefault(address, [])
                lost = reason or ConnectionLost(f"{conversation.peer} has said goodbye")
                self._verdicts[address] = time.monotonic() + _VERDICT_SECONDS, lost
                self._loop.call_later(_VERDICT_SECONDS, self._lost, address)

    def _lost(self, address: int) -> None:
        if address in self._verdicts:
            self._gone(address, self._verdicts[address][1])

    def _gone(self, address: int, error: DomainsError) -> None:
        """Nothing comes from that address any more, nor goes there."""
        self._routes.pop(address, None)
        self._verdicts.pop(address, None)
        if self._meetings is not None:
            self._meetings.give_up(address)
        seeking = self._seeking.pop(address, ())
        if seeking or self._knows(address) or isinstance(error, ConnectionLost):  # that one lives, and is met once only
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

    def _why_unreachable(self, address: int) -> DomainsError:
        error = self._unreachable.get(address)
        if error is None:
            return DomainDied("that an object had its home in", what="or cannot be reached any more")
        return copy_of(error)  # each raises its own: a shared one would keep all their frames

    def _answer_gone(self, message: Any) -> None:
        error = self._why_unreachable(message.to)
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

    def pump(self, home: int) -> None:
        """Let this domain wait, in the middle of a fiber's turn, until something has arrived, and handle that.

        What is handled never runs a fiber. Raises DomainDied when nothing can come from that home any more, and
        RuntimeError where a message is being written, or in the midst of work with shared memory.
        """
        route = self._routes.get(home, self._parent)
        if route is None or not route.link.is_open:
            raise self._why_unreachable(home)
        running = asyncio._get_running_loop()
        asyncio._set_running_loop(self._loop)  # in a plain job none is said to run
        was_pumping, self._is_pumping = self._is_pumping, True
        try:
            for address, (deadline, _) in list(self._verdicts.items()):
                if time.monotonic() >= deadline:  # the loop's timer cannot come as long as somebody waits here
                    self._lost(address)
            wait_for([conversation.link for conversation in self._conversations])
        finally:
            self._is_pumping = was_pumping
            asyncio._set_running_loop(running)

    @property
    def may_wait(self) -> bool:
        """Whether `pump` may be called here: in a fiber or a plain job, but not where messages are handled or written.

        That is where finalizers may be called.
        """
        if self._is_pumping or not self.is_own_thread or self._is_interrupted:
            return False
        loop = asyncio._get_running_loop()
        return loop is None or asyncio.current_task(loop) is not None

    @property
    def _is_interrupted(self) -> bool:
        return any(conversation.link.is_interrupted for conversation in self._conversations)
