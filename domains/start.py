"""The way into a program: `run` starts the launcher process first, and only then imports what the program runs on.

So the launcher, which has to import the same, does it at the same time on another core: without this the first result
of a domain comes half as late again. Everything heavy is therefore imported inside `run`.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from domains.held_interrupts import interrupts_held
from domains.launcher.warm import LauncherProcess
from domains.standard_descriptors import open_standard_descriptors

if TYPE_CHECKING:
    from domains.env import Environment

T = TypeVar("T")
Link = Literal["auto", "socketpair", "zmq"]


@overload
def run(
    main: Callable[[Environment], Awaitable[T]],
    *,
    domains: int | None = None,
    link: Link = "auto",
    dump_on_signal: int | None = None,
) -> T: ...
@overload
def run(
    main: Callable[[], Awaitable[T]],
    *,
    domains: int | None = None,
    link: Link = "auto",
    dump_on_signal: int | None = None,
) -> T: ...
def run(
    main: Callable[..., Awaitable[Any]],
    *,
    domains: int | None = None,
    link: Link = "auto",
    dump_on_signal: int | None = None,
) -> Any:
    """Call `await main(env)`, or `await main()` if it takes no argument, and return its result.

    `domains` is how many domains a pool has that does not say; by default `recommended_domain_count()`. `link` is the
    kind of link to them: "auto" takes the fastest. Ctrl-C cancels the program once, and raises KeyboardInterrupt here
    when it has unwound; a second one ends it at once. `dump_on_signal`, such as `signal.SIGUSR1`, writes what all
    fibers do to the standard error stream. Raises RuntimeError inside a running event loop.
    """
    open_standard_descriptors()
    if domains is not None and (type(domains) is not int or domains < 1):
        raise ValueError(f"domains must be None or an int of at least 1, but is {domains!r}")
    launcher = None
    try:
        with interrupts_held(), _no_collection():
            with contextlib.suppress(OSError):  # whoever needs it tries again, and is told
                launcher = LauncherProcess()
            from domains.program import run_program

        return run_program(main, launcher, domains, link, dump_on_signal)
    finally:
        if launcher is not None:
            with interrupts_held():
                launcher.close()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """What modules are made of stays: looking through it for garbage, again and again, finds none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
