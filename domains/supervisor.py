"""A supervisor: keeps services running, each in a domain of its own, and starts them again when they fail.

A service is Running -> Restarting -> Running ..., and Ended for good when it returned, was stopped, or need not be
restarted. What follows from an end is decided by one fiber at a time, in the order of the ends, so that services which
fail together are not restarted against each other. More restarts than allowed in a time fail the supervisor's block:
that is how a failure climbs to the switch above.
"""

from __future__ import annotations

import enum
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Literal

from domains.domain_manager import Domain, DomainManager
from domains.errors import Closed, RestartsExceeded
from domains.functions import name_of
from domains.retry import doubled
from domains.scheduler.cancel import CancelScope, is_cancelled
from domains.scheduler.clock import sleep
from domains.scheduler.mutex import Mutex
from domains.scheduler.promise import Promise
from domains.scheduler.switch import Switch

__all__ = ["Service", "ServiceState", "Supervisor"]

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
Restart = Literal["always", "on_failure", "never"]

_STRATEGIES = ("one_for_one", "one_for_all", "rest_for_one")
_RESTARTS = ("always", "on_failure", "never")


class ServiceState(enum.Enum):
    RUNNING = "running"
    RESTARTING = "restarting"
    ENDED = "ended"


class Service:
    """One service of a supervisor."""

    def __init__(self, name: str, f: Callable[..., Any], arguments: tuple[Any, ...], restart: Restart) -> None:
        self.name = name
        self.state = ServiceState.RESTARTING
        self.restarts = 0
        """How often it was started again."""
        self.failure: BaseException | None = None
        """How it last failed."""
        self.domain: Domain | None = None
        """The domain that it runs in at this moment."""
        self._f = f
        self._arguments = arguments
        self._restart = restart
        self._scope: CancelScope | None = None
        self._pause: CancelScope | None = None  # in which it last waited to be started again, maybe with others
        self._gone: Promise[None] = Promise.resolved(None)
        self._began = -math.inf
        self._failures_in_a_row = 0

    def __repr__(self) -> str:
        return f"<service {self.name!r}, {self.state.value}, restarted {self.restarts} times>"

    def _wants_restart(self, failure: BaseException | None) -> bool:
        return self._restart == "always" or (self._restart == "on_failure" and failure is not None)


class Supervisor(AbstractAsyncContextManager["Supervisor"]):
    """Runs services for the length of an `async with` block; leaving the block waits for them to end.

    `strategy` says what is restarted when one service is: that one ("one_for_one"), all of them ("one_for_all"), or
    that one and those that were started after it ("rest_for_one"); the others are stopped first, in reverse order.
    At most `max_restarts` restarts may fall into `within_seconds`; one more raises RestartsExceeded from the block. A
    service that fails again soon is restarted after `backoff_seconds`, then twice that, up to `most_backoff_seconds`.
    With `heartbeat_seconds`, a service whose domain gives no sign of life for so long counts as dead.
    """

    def __init__(
        self,
        domain_mgr: DomainManager,
        *,
        strategy: Strategy = "one_for_one",
        max_restarts: int = 3,
        within_seconds: float = 5.0,
        backoff_seconds: float = 0.1,
        most_backoff_seconds: float = 10.0,
        heartbeat_seconds: float | None = None,
    ) -> None:
        if strategy not in _STRATEGIES:
            raise ValueError(f"strategy must be one of {_STRATEGIES}, but is {strategy!r}")
        if type(max_restarts) is not int or max_restarts < 0:
            raise ValueError(f"max_restarts must be an int of at least 0, but is {max_restarts!r}")
        for what, seconds in ("within_seconds", within_seconds), ("backoff_seconds", backoff_seconds):
            if not seconds >= 0:
                raise ValueError(f"{what} must be at least 0, but is {seconds!r}")
        self._manager = domain_mgr
        self._strategy = strategy
        self._max_restarts = max_restarts
        self._within_seconds = within_seconds
        self._backoff_seconds = backoff_seconds
        self._most_backoff_seconds = most_backoff_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._switch = Switch(name="supervisor")
        self._services: list[Service] = []  # in the order of their starts; none that has ended for good
        self._deciding = Mutex(label="supervisor")
        self._restarts: deque[float] = deque()
        self._is_open = False

    @property
    def services(self) -> tuple[Service, ...]:
        """Those that have not ended for good, in the order of their starts."""
        return tuple(self._services)

    async def __aenter__(self) -> Supervisor:
        await self._switch.__aenter__()
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return await self._switch.__aexit__(kind, error, trace)
        finally:
            self._is_open = False
            while self._services:
                self._services.pop().state = ServiceState.ENDED

    def start(
        self, f: Callable[..., Any], *args: Any, name: str | None = None, restart: Restart = "on_failure"
    ) -> Service:
        """Start a service: `f(*args)`, plain or `async`, in a domain of its own. Does not wait.

        `restart` says when it is started again: "always", also when it returns; "on_failure"; or "never". A failure
        that leads to no restart is kept as `service.failure`. Raises Closed outside of the supervisor's block.
        """
        if restart not in _RESTARTS:
            raise ValueError(f"restart must be one of {_RESTARTS}, but is {restart!r}")
        if not self._is_open:
            raise Closed("a supervisor starts services only inside its `async with` block")
        service = Service(name or name_of(f), f, args, restart)
        self._begin(service)
        self._services.append(service)
        return service

    async def stop(self, service: Service) -> None:
        """End a service for good, and wait until its domain has ended. It is not restarted."""
        if service in self._services:
            self._services.remove(service)
        if service._pause is not None and all(each._pause is not service._pause for each in self._services):
            service._pause.cancel()
        await self._halt(service)
        service.state = ServiceState.ENDED

    # One service

    def _begin(self, service: Service) -> None:
        """Let it run, once; the fiber that does that also decides what follows from its end."""
        service._scope = scope = CancelScope()
        service._began = time.monotonic()
        service.state = ServiceState.RUNNING
        self._switch.fork(self._live, service, scope, name=f"service {service.name}")

    async def _live(self, service: Service, scope: CancelScope) -> None:
        # Created here, since a fiber whose switch fails before its first turn never has one.
        service._gone, go = Promise[None].create(f"the end of service {service.name}")
        failure: BaseException | None = None
        try:
            with scope:
                async with self._manager.spawn(service.name, heartbeat_seconds=self._heartbeat_seconds) as domain:
                    service.domain = domain
                    try:
                        await domain.call(service._f, *service._arguments)
                    except BaseException as error:
                        if not isinstance(error, GeneratorExit) and not is_cancelled():
                            failure = error  # also an exit or a cancellation: that is how the service has ended
                        raise
        except BaseException as error:
            if error is not failure and not isinstance(error, Exception):
                raise  # it is this fiber that is to end
            failure = error
        finally:
            service.domain = None
            go.resolve(None)
        if scope.cancelled:
            return  # whoever halted it knows what to do
        delay = await self._decide(service, scope, failure)
        if delay is not None:
            await self._pause([service], delay)
            self._begin_again(service, scope)

    async def _halt(self, service: Service) -> None:
        if service._scope is not None:
            service._scope.cancel()
        await service._gone

    # The decisions

    async def _decide(self, service: Service, scope: CancelScope, failure: BaseException | None) -> float | None:
        """What follows from an end. Returns how long to wait before this one service is begun again, if it is."""
        async with self._deciding.ro():
            if service not in self._services or service._scope is not scope:
                return None  # it was stopped meanwhile, or restarted with others
            service.failure = failure or service.failure
            if not service._wants_restart(failure):
                self._services.remove(service)
                service.state = ServiceState.ENDED
                return None
            service.state = ServiceState.RESTARTING
            self._count_restart(service, failure)
            delay = self._backoff(service)
            if self._strategy == "one_for_one":
                return delay
            first = 0 if self._strategy == "one_for_all" else self._services.index(service)
            affected = self._services[first:]
            scopes = [each._scope for each in affected]
            for each in reversed(affected):
                if each in self._services:  # else it was stopped while others were halted
                    each.state = ServiceState.RESTARTING
                await self._halt(each)
            await self._pause(affected, delay)
            for each, ended in zip(affected, scopes, strict=True):
                self._begin_again(each, ended)
            return None

    async def _pause(self, services: list[Service], seconds: float) -> None:
        """Wait before services are begun again, as long as one of them is to be."""
        services = [each for each in services if each in self._services]
        with CancelScope() as pause:
            for each in services:
                each._pause = pause
            if services:
                await sleep(seconds)

    def _begin_again(self, service: Service, scope: CancelScope | None) -> None:
        if service in self._services and service._scope is scope:  # else it was stopped meanwhile
            service.restarts += 1
            self._begin(service)

    def _backoff(self, service: Service) -> float:
        if time.monotonic() - service._began > self._within_seconds:
            service._failures_in_a_row = 0
        service._failures_in_a_row += 1
        if service._failures_in_a_row == 1:
            return 0.0
        return min(doubled(self._backoff_seconds, service._failures_in_a_row - 2), self._most_backoff_seconds)

    def _count_restart(self, service: Service, failure: BaseException | None) -> None:
        now = time.monotonic()
        self._restarts.append(now)
        while now - self._restarts[0] > self._within_seconds:
            self._restarts.popleft()
        if len(self._restarts) > self._max_restarts:
            what = "it returned" if failure is None else f"{type(failure).__name__}: {failure}"
            raise RestartsExceeded(
                f"service {service.name!r} ended again, after {self._max_restarts} restarts within "
                f"{self._within_seconds:g} s: {what}"
            ) from failure
