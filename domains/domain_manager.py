"""Starts domains, names them, and sees to it that none outlives the program: the authority behind `env.domain_mgr`.

Every domain that it opens is in `_open` until it has ended; closing the manager ends what is left, and so does
abandoning it, where the program was ended before that could be waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, TypeVar, TypeVarTuple, overload

from domains.conversation import Conversation
from domains.domain import CANCELLING_SECONDS, FINISHING_SECONDS, DomainHandle
from domains.errors import Closed, DomainsError, DomainUnavailable
from domains.functions import FunctionCatalogue
from domains.heartbeat import Heartbeat
from domains.held_interrupts import interrupts_held
from domains.identity import current
from domains.ipc.carrier import ArenaUse
from domains.ipc.claims import OfferedClaims
from domains.ipc.interrupts import SentInterrupts
from domains.ipc.pulse import Pulse
from domains.job import Job
from domains.launcher.provider import Provider
from domains.logs import levels
from domains.plain_text import plain_text
from domains.pool.checks import checked_heartbeat
from domains.protocol import ProtocolCodec
from domains.references.kinds import kinds
from domains.references.pickling import open_domain_manager
from domains.references.registry import References
from domains.scheduler import fiber
from domains.scheduler.suspend import Suspension, suspend
from domains.scheduler.switch import Switch

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class DomainManager:
    """Starts domains. Belongs to one event loop; obtained as `env.domain_mgr`.

    It can be handed to other domains, as an argument of what runs there: there it is their own, and what they start
    with it ends when they do. `default_count` is how many domains a pool has that does not say.
    """

    def __init__(
        self, provider: Provider, default_count: int, switch: Switch, references: References | None = None
    ) -> None:
        """`references` are those of this process, where it has some already because it is a domain."""
        self.default_count = default_count
        self._arena = ArenaUse()
        self.references = references or References(kinds(), switch, self._arena.arena)
        self.references.open_manager = lambda default_count: self
        self.pickling = self.references.pickling
        self.catalogue = FunctionCatalogue(self.pickling)
        self.references.introduce_domains(provider.meeting_place)
        self._provider = provider
        self._numbers = itertools.count(1)
        self._open: dict[DomainHandle, contextlib.ExitStack] = {}  # with what lets go of all that it holds
        self._closed = False

    def __reduce__(self) -> Any:
        return open_domain_manager, (self.default_count,)

    @overload
    async def run(self, f: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T: ...
    @overload
    async def run(self, f: Callable[[*Ts], T], *args: *Ts) -> T: ...
    async def run(self, f: Callable[..., Any], *args: Any) -> Any:  # type: ignore[misc]  # mypy does not match Any with a TypeVarTuple
        """Run a function, plain or `async`, in a domain of its own, and return its result.

        Raises what it raises, with the remote traceback; NotPicklable for what cannot travel; DomainDied if its
        domain dies. Cancelling it cancels the function there and waits until its domain has ended.
        """
        async with self.spawn() as domain:
            return await domain.call(f, *args)

    def spawn(
        self, name: str | None = None, *, heartbeat_seconds: float | None = None
    ) -> AbstractAsyncContextManager[Domain]:
        """A domain for the length of an `async with` block: what it still runs at the end is waited for.

        Leaving the block by an exception cancels what runs in the domain. With `heartbeat_seconds` it is asked for a
        sign of life that often, and killed when it gives none until the next time: it was stopped, or is stuck in C
        code. The DomainDied that its callers get shows the stacks of its threads.
        """
        if name is not None and not isinstance(name, str):
            raise TypeError(f"a domain's name must be a str or None, but is {name!r}")
        return _Spawned(self, name, checked_heartbeat(heartbeat_seconds))

    def open(self, name: str | None = None, heartbeat_seconds: float | None = None) -> DomainHandle:
        """Start a domain and return at once; whoever opens it closes it. Raises DomainUnavailable or Closed."""
        if self._closed:
            raise Closed("no domain can be started any more: the program that this manager belongs to has ended")
        number = next(self._numbers)
        if name is None:
            parent = current()
            name = f"domain-{number}" if parent.id == 0 else f"{parent.name}.{number}"
        name = plain_text(name)
        log_levels = levels()  # loggers may be of any class and raise: before anything is begun
        with _unavailable(name), contextlib.ExitStack() as held:
            claims = OfferedClaims()
            held.callback(claims.close)
            interrupts = SentInterrupts()
            held.callback(interrupts.close)
            descriptors = {**claims.descriptors(), **interrupts.descriptors()}
            pulse = None
            if heartbeat_seconds is not None:
                pulse = Pulse()
                held.callback(pulse.close)
                descriptors |= pulse.descriptors()
            process = self._provider.launch(number, name, ProtocolCodec(), descriptors)
            held.callback(process.link.abandon)
            process.link.carrier = self._arena.carrier()
            conversation = Conversation(process.link, self.pickling, f"domain {name!r}")
            self.references.converse_with_child(conversation)
            conversation.send(log_levels)
            handle = DomainHandle(number, name, process, conversation, claims, interrupts)
            self._open[handle] = held.pop_all()
        handle.when_ended(self._forget)
        if pulse is not None:
            assert heartbeat_seconds is not None
            Heartbeat(handle, pulse, heartbeat_seconds)
        return handle

    def _forget(self, handle: DomainHandle) -> None:
        self._open.pop(handle, None)
        self.references.domain_ended(handle.conversation, handle.error())

    async def close(self) -> None:
        """End every domain that is left, and what they were started with. No domain can be started afterwards."""
        self._closed = True
        for handle in list(self._open):
            handle.kill("the program that started it ends")
        for handle in list(self._open):
            await handle.close(CANCELLING_SECONDS)
        try:
            await self._provider.close()
        finally:
            self._arena.close()

    def abandon(self) -> None:
        """What `close` does, for when the loop is closed and that was cut short, or never came.

        Waits as long as domains may take to unwind that have lost their parent. Who waits for them is told nothing,
        but for other threads, which live on.
        """
        self._closed = True
        with interrupts_held(), contextlib.ExitStack() as steps:
            for outsider in list(self.references.outsiders):  # last, also where a step before raises
                steps.callback(outsider.loop_ended)
            steps.callback(self._arena.close)
            steps.callback(self._provider.abandon)
            while self._open:
                steps.push(self._open.popitem()[1])


@contextlib.contextmanager
def _unavailable(name: str) -> Iterator[None]:
    """What the system refuses is why the domain cannot be started."""
    try:
        yield
    except OSError as error:
        raise DomainUnavailable(f"domain {name!r} could not be started: {error}") from error


class Domain:
    """A domain that runs what it is called with, until its `async with` block is left."""

    def __init__(self, handle: DomainHandle, manager: DomainManager) -> None:
        self._handle = handle
        self._manager = manager

    def __repr__(self) -> str:
        return repr(self._handle)

    @property
    def id(self) -> int:
        """Its number among the domains of this process."""
        return self._handle.id

    @property
    def name(self) -> str:
        return self._handle.name

    @property
    def pid(self) -> int | None:
        """Its process, or None until that is known to run."""
        return self._handle.pid

    @property
    def alive(self) -> bool:
        """False once it has ended, for whatever reason."""
        return not self._handle.has_ended

    @overload
    async def call(self, f: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T: ...
    @overload
    async def call(self, f: Callable[[*Ts], T], *args: *Ts) -> T: ...
    async def call(self, f: Callable[..., Any], *args: Any) -> Any:  # type: ignore[misc]  # mypy does not match Any with a TypeVarTuple
        """Run a function, plain or `async`, in this domain, beside what already runs there.

        Raises what it raises, NotPicklable, DomainDied, or Closed after the end of the block. Cancelling it cancels
        the function there and waits until it has ended.
        """
        fiber.check()
        handle = self._handle
        while handle.link.is_congested:  # others who waited may have filled it again
            await _writable(handle)
        function = self._manager.catalogue.add(f)
        job: Job[Any] = Job(function, args, self._manager.references, 0, handle)
        try:
            handle.start([job])
        except DomainsError as error:
            job.fail_undelivered(error)
        return await job.outcome()


async def _writable(handle: DomainHandle) -> None:
    """Wait until the domain has read enough of what it was sent; returns too when it is gone."""

    def begin(suspension: Suspension[None]) -> Callable[[Suspension[None]], object]:
        withdraw = handle.link.when_writable(lambda: suspension.resume(None))
        return lambda _: withdraw()

    await suspend(begin, "Domain.call", handle)


class _Spawned(AbstractAsyncContextManager[Domain]):
    """Opens a domain on entering, closes it on leaving."""

    def __init__(self, manager: DomainManager, name: str | None, heartbeat_seconds: float | None) -> None:
        self._manager = manager
        self._name = name
        self._heartbeat_seconds = heartbeat_seconds
        self._handle: DomainHandle | None = None

    async def __aenter__(self) -> Domain:
        fiber.check()
        self._handle = self._manager.open(self._name, self._heartbeat_seconds)
        return Domain(self._handle, self._manager)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._handle is not None
        if error is None:
            await _finish(self._handle)
        else:
            self._handle.cancel_jobs(error)
            await self._handle.close(CANCELLING_SECONDS)


async def _finish(handle: DomainHandle) -> None:
    """Wait for what the domain runs, then for its end; being cancelled cancels what it runs."""
    handle.finish()
    try:
        await handle.idle()
    except asyncio.CancelledError as cancelled:
        handle.cancel_jobs(cancelled)
        await handle.close(CANCELLING_SECONDS)
        raise
    await handle.close(FINISHING_SECONDS)
