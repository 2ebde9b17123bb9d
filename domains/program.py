"""Runs a program: an event loop, a root fiber, the environment, and an end that leaves nothing behind."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from domains.cores import recommended_domain_count
from domains.domain_manager import DomainManager
from domains.env import Environment
from domains.functions import name_of, no_function
from domains.launcher.links import kind_called
from domains.launcher.local import LocalProvider
from domains.launcher.warm import LauncherProcess
from domains.scheduler.clock import Clock
from domains.scheduler.run import event_loop_factory
from domains.scheduler.run import run as run_scheduler
from domains.scheduler.switch import Switch

event_loop_factory()  # what makes loops is imported with all the rest, while no signal can cut that in two


def run_program(
    main: Callable[..., Awaitable[Any]],
    launcher: LauncherProcess | None,
    domains: int | None,
    link: str,
    dump_on_signal: int | None,
) -> Any:
    """Call `main` as `run` describes, with domains from this launcher."""
    kind = kind_called("socketpair" if link == "auto" else link)
    with_environment = takes_environment(main)
    at_last = contextlib.ExitStack()

    async def root() -> Any:
        async with Switch("program") as switch:
            manager = DomainManager(LocalProvider(kind, launcher), domains or recommended_domain_count(), switch)
            at_last.callback(manager.abandon)
            switch.on_release(manager.close)
            return await awaitable(main, main(Environment(manager, Clock())) if with_environment else main())

    with at_last:
        return run_scheduler(root, dump_on_signal=dump_on_signal)


def takes_environment(main: Callable[..., Any]) -> bool:
    """Whether a program's main function has a positional parameter. Raises TypeError for what is no function."""
    if not callable(main):
        raise no_function("main", main)
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


def awaitable(main: Callable[..., Any], returned: Any) -> Awaitable[Any]:
    """What a program's main function has returned. Raises TypeError if that cannot be awaited."""
    if not inspect.isawaitable(returned):
        raise TypeError(f"main must be an async function, but {name_of(main)} returned {type(returned).__name__}")
    return returned
