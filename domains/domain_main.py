"""What a domain's process does from its birth to its end: talk to its parent, run jobs, unwind, exit.

The domain has one switch, which everything in it belongs to. It is left when the parent says `Finish` and the last
job has ended, or cancelled when the parent is gone. The exit status is 0 in both cases: it did what it was for.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from domains.conversation import Conversation
from domains.errors import ConnectionLost
from domains.heartbeat import answer_heartbeats
from domains.identity import DomainInfo, become
from domains.interruption import Interruptions
from domains.ipc.carrier import ArenaUse
from domains.ipc.claims import ReceivedClaims
from domains.ipc.interrupts import ReceivedInterrupts
from domains.ipc.link import Link
from domains.job_runner import JobRunner
from domains.launcher.control import Birth
from domains.launcher.links import kind_called
from domains.logs import forward_logs
from domains.protocol import ProtocolCodec, Ready
from domains.references.kinds import kinds
from domains.references.registry import References
from domains.scheduler.promise import Promise
from domains.scheduler.run import event_loop_factory, run
from domains.scheduler.switch import Switch
from domains.standard_streams import print_whole_lines
from domains.state import domain_state

if TYPE_CHECKING:
    from domains.domain_manager import DomainManager

event_loop_factory()  # imported here, the loop is in the launcher's image, and no domain has to wait for it


def become_domain(birth: Birth, descriptors: Mapping[str, int]) -> int:
    """Live as the domain that `birth` describes; returns the exit status."""
    become(DomainInfo(birth.domain, birth.name, os.getpid()))
    atexit.register(vars(domain_state).clear)  # after whatever jobs register
    print_whole_lines()
    claims = ReceivedClaims(descriptors)
    interruptions = Interruptions(ReceivedInterrupts(descriptors))  # open to the end: the signal comes till then
    interruptions.install()
    answer_heartbeats(descriptors)

    async def main() -> None:
        kind = kind_called(birth.link)
        link = kind.accept(ProtocolCodec(), birth.description, descriptors)
        try:
            await serve(link, claims, interruptions, birth)
        finally:
            kind.close()

    run(main)
    claims.close()
    return 0


async def serve(link: Link, claims: ReceivedClaims, interruptions: Interruptions, birth: Birth) -> None:
    """Serve the parent at the other end of `link` until it has no more use for this domain."""
    name = birth.name
    finished, finish = Promise[None].create(f"the end of domain {name}")
    gone, go = Promise[None].create("the end of the link to the parent")
    arena = ArenaUse()
    try:
        async with Switch(name=f"domain {name}") as switch:
            references = References(kinds(), switch, arena.arena)
            link.carrier = arena.carrier()
            conversation = Conversation(link, references.pickling, "the parent")

            def parent_gone(_: ConnectionLost | None) -> None:
                go.resolve(None)
                finish.try_resolve(None)
                switch.cancel()

            conversation.when_gone(parent_gone)
            meetings = references.converse_with_parent(conversation, arena)
            references.open_manager = own_manager = _OwnManager(references, switch, birth.link)
            forward_logs(conversation)
            JobRunner(conversation, switch, claims, interruptions, lambda: finish.try_resolve(None))
            conversation.start()
            try:
                conversation.send(Ready(os.getpid()))
                await finished
            finally:
                # Among the switch's hooks, so that it comes after all that runs in it, however the domain ends.
                switch.on_release(_say_goodbye, link, gone)
                switch.on_release(meetings.close)
                switch.on_release(own_manager.close)
    finally:
        arena.close()


async def _say_goodbye(link: Link, gone: Promise[None]) -> None:
    link.close()
    await gone


class _OwnManager:
    """What a domain manager means that this domain is handed: made when the first one is opened."""

    def __init__(self, references: References, switch: Switch, link: str) -> None:
        self._references = references
        self._switch = switch
        self._link = link
        self._manager: DomainManager | None = None

    def __call__(self, default_count: int) -> DomainManager:
        if self._manager is None:
            # Slow to import, and most domains start none.
            from domains.domain_manager import DomainManager
            from domains.launcher.local import LocalProvider

            provider = LocalProvider(kind_called(self._link))
            self._manager = DomainManager(provider, default_count, self._switch, self._references)
        return self._manager

    async def close(self) -> None:
        if self._manager is not None:
            await self._manager.close()
