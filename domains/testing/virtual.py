"""Runs a program in one domain, in virtual time: the same fibers, switches and primitives on the mock loop."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, TypeVar, overload

from domains.domain_manager import DomainManager
from domains.env import Environment
from domains.errors import DomainUnavailable
from domains.ipc.link import Codec
from domains.launcher.provider import Provider
from domains.program import awaitable, takes_environment
from domains.scheduler.clock import Clock
from domains.scheduler.mock import run_mock
from domains.scheduler.switch import Switch

T = TypeVar("T")


class _NoDomains(Provider):
    """Other processes know nothing of virtual time."""

    def launch(self, domain: int, name: str, codec: Codec, descriptors: Mapping[str, int]) -> NoReturn:
        raise DomainUnavailable("there are no other domains in virtual time: use domains.run for what needs them")

    async def close(self) -> None:
        pass

    def abandon(self) -> None:
        pass


@overload
def run(main: Callable[[Environment], Awaitable[T]]) -> T: ...
@overload
def run(main: Callable[[], Awaitable[T]]) -> T: ...
def run(main: Callable[..., Awaitable[Any]]) -> Any:
    """Call `await main(env)`, or `await main()` if it takes no argument, in virtual time, and return its result.

    When nothing is runnable, time jumps to the next deadline, so that a day of sleeps takes milliseconds; it starts at
    0. It stands still while `run_in_thread` is under way, and goes at its real pace while sockets or pipes may bring
    something. `env.random` gives the same numbers on each run. Raises Deadlock, which names each stuck fiber, when
    nothing can ever run again; DomainUnavailable inside, for what needs another domain.
    """
    with_environment = takes_environment(main)
    at_last = contextlib.ExitStack()

    async def root() -> Any:
        if not with_environment:
            return await awaitable(main, main())
        async with Switch("program") as switch:
            manager = DomainManager(_NoDomains(), 1, switch)
            at_last.callback(manager.abandon)
            switch.on_release(manager.close)
            return await awaitable(main, main(Environment(manager, Clock(), random=random.Random(0))))

    with at_last:
        return run_mock(root)
