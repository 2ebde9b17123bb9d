"""Direct links between domains that share a parent, over ZeroMQ, made when the first message is to go that way.

The parent brings two domains together once: it makes the keys and the address, in its private directory, and sends each
its half over the link that only they two have. Until then what is to go there waits, so that between two domains all
messages take one way. Whom the parent does not know as its own child is reached by way of the parent for good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from domains.conversation import Conversation
from domains.errors import ConnectionLost, DomainUnavailable
from domains.launcher.links import ZeroMQKind
from domains.protocol import Bound, Meet, NoMeeting, ProtocolCodec, Seek
from domains.scheduler.cancel import move_on_after
from domains.scheduler.promise import Promise, Resolver

if TYPE_CHECKING:
    from domains.ipc.carrier import ArenaUse
    from domains.ipc.zeromq import ZeroMQLink
    from domains.references.routes import Routes

_log = logging.getLogger("domains")

_PARTING_SECONDS = 0.5
"""How long a domain that ends waits for the others to take what it has said last."""


class Introductions:
    """The parent's side: who has met whom."""

    def __init__(self, routes: Routes, new_address: Callable[[], str | None]) -> None:
        self._routes = routes
        self._new_address = new_address
        self._met: set[frozenset[int]] = set()
        self._invitations: dict[tuple[int, int], Meet] = {}  # for whom, to connect to what whom binds

    def converse(self, conversation: Conversation) -> None:
        conversation.handle(Seek, lambda message, _: self._sought(conversation, message))
        conversation.handle(Bound, lambda message, _: self._bound(conversation, message))

    def _sought(self, conversation: Conversation, message: Seek) -> None:
        one, other = message.sender, message.address
        pair = frozenset((one, other))
        if pair in self._met:
            return  # they sought each other at the same time
        there = self._routes.child(other)
        address = None if there is None else self._find_address()
        if there is None or address is None:
            conversation.send(NoMeeting(other))
            return
        from domains.ipc.keys import new_key_pair  # imports ZeroMQ, which most programs do not need

        self._met.add(pair)
        server, client = new_key_pair(), new_key_pair()
        self._invitations[other, one] = Meet(
            one, conversation.peer, address, False, client.public, client.secret, server.public
        )
        conversation.send(Meet(other, there.peer, address, True, server.public, server.secret, client.public))

    def _find_address(self) -> str | None:
        try:
            return self._new_address()
        except OSError as error:
            _log.warning(
                "there is no place for a link between two domains: %s; they reach each other through us", error
            )
            return None

    def _bound(self, conversation: Conversation, message: Bound) -> None:
        invitation = self._invitations.pop((message.address, message.sender), None)
        there = self._routes.child(message.address)
        if message.waits:
            if invitation is not None and there is not None:
                there.send(invitation)
        else:
            conversation.send(NoMeeting(message.address))
            if there is not None:
                there.send(NoMeeting(message.sender))

    def forget(self, address: int) -> None:
        """That domain has ended."""
        self._met = {pair for pair in self._met if address not in pair}
        self._invitations = {pair: kept for pair, kept in self._invitations.items() if address not in pair}


class Meetings:
    """A domain's side: its direct links."""

    def __init__(self, routes: Routes, parent: Conversation, arena: ArenaUse) -> None:
        self._routes = routes
        self._parent = parent
        self._arena = arena
        self._kind = ZeroMQKind()
        self._links: dict[ZeroMQLink, tuple[Promise[None], Resolver[None]]] = {}
        self._peers: dict[Conversation, int] = {}
        self._is_closing = False
        parent.handle(Meet, lambda message, _: self._meet(message))
        parent.handle(NoMeeting, lambda message, _: self._no_meeting(message.address))

    def seek(self, address: int) -> None:
        """Ask for a direct link."""
        self._parent.send(Seek(self._routes.address, address))

    def _meet(self, message: Meet) -> None:
        routes = self._routes
        if self._is_closing:
            self._parent.send(Bound(routes.address, message.address, False))
            return
        try:
            link = self._open_end(message)
        except (DomainUnavailable, OSError, ImportError) as error:  # where nothing can be opened, no module can
            _log.warning("no direct link to %s: %s; messages go by way of the parent", message.name, error)
            self._parent.send(Bound(routes.address, message.address, False))
            return
        link.carrier = self._arena.carrier()
        conversation = Conversation(link, routes.pickling, message.name)
        routes.converse(conversation)
        self._links[link] = Promise[None].create(f"the end of the link to {message.name}")
        self._peers[conversation] = message.address

        def gone(reason: ConnectionLost | None) -> None:
            self._links.pop(link)[1].resolve(None)
            routes.direct_link_gone(conversation, self._peers.pop(conversation, None), reason)

        conversation.when_gone(gone)
        conversation.start()
        if message.binds:
            # Nothing goes this way before the other has come, and said who it is: it may not be able to.
            self._parent.send(Bound(routes.address, message.address, True))
        else:
            routes.routed(message.address, conversation)

    def _open_end(self, message: Meet) -> ZeroMQLink:
        from domains.ipc.keys import KeyPair
        from domains.ipc.zeromq import ZeroMQLink

        ours = KeyPair(message.public, message.secret)
        where = ProtocolCodec(), message.name, self._kind.open_context(), message.endpoint
        if message.binds:
            return ZeroMQLink.bind(*where, ours, message.peer_public)
        return ZeroMQLink.connect(*where, message.peer_public, ours)

    def _no_meeting(self, address: int) -> None:
        self.give_up(address)
        self._routes.routed(address, self._parent)

    def give_up(self, address: int) -> None:
        """That domain is not going to come to a link that waits for it."""
        for conversation, peer in list(self._peers.items()):
            if peer == address and self._routes.link_to(address) is not conversation.link:
                del self._peers[conversation]
                conversation.link.abort(None)

    def leads_to(self, conversation: Conversation, address: int) -> bool:
        """Whether this is the direct link to that domain, and not to one that has started it."""
        return self._peers.get(conversation) == address

    def expect_end(self, conversation: Conversation) -> None:
        """The domain at the other end has died: what it has said is still heard."""
        for link in self._links:
            if link is conversation.link:
                link.expect_end()

    async def close(self) -> None:
        """Say goodbye to everybody, and meet nobody any more."""
        self._is_closing = True
        for link in list(self._links):
            link.close()
        with move_on_after(_PARTING_SECONDS):
            for ended, _ in list(self._links.values()):
                await ended
        left = list(self._links.items())
        for link, _ in left:
            link.abort(None)
        for _, (ended, _) in left:
            await ended
        self._kind.close()
