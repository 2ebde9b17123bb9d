"""Runs a program: an event loop, a root fiber, the environment, and an end that leaves nothing behind."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar, overload

from domains.cores import recommended_domain_count
from domains.domain_manager import DomainManager
from domains.env import Environment
from domains.launcher.links import kind_called
from domains.launcher.local import LocalProvider
from domains.scheduler.cancel import protect
from domains.scheduler.clock import Clock
from domains.scheduler.run import run as run_scheduler

T = TypeVar("T")
Link = Literal["auto", "socketpair", "zmq"]


@overload
def run(main: Callable[[Environment], Awaitable[T]], *, domains: int | None = None, link: Link = "auto") -> T: ...
@overload
def run(main: Callable[[], Awaitable[T]], *, domains: int | None = None, link: Link = "auto") -> T: ...
def run(main: Callable[..., Awaitable[Any]], *, domains: int | None = None, link: Link = "auto") -> Any:
    """Call `await main(env)`, or `await main()` if it takes no argument, and return its result.

    `domains` is how many domains a pool has that does not say; by default `recommended_domain_count()`. `link` is the
    kind of link to them: "auto" takes the fastest. Ctrl-C cancels the program once, and raises KeyboardInterrupt here
    when it has unwound; a second one ends it at once. Raises RuntimeError inside a running event loop.
    """
    if domains is not None and (type(domains) is not int or domains < 1):
        raise ValueError(f"domains must be None or an int of at least 1, but is {domains!r}")
    kind = kind_called("socketpair" if link == "auto" else link)
    takes_environment = _takes_environment(main)

    async def root() -> Any:
        manager = DomainManager(LocalProvider(kind), domains or recommended_domain_count())
        try:
            if takes_environment:
                return await main(Environment(manager, Clock()))
            return await main()
        finally:
            with protect():
                await manager.close()

    return run_scheduler(root)


def _takes_environment(main: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(main).parameters.values()
    except (TypeError, ValueError):
        return True
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    return any(parameter.kind in positional for parameter in parameters)
