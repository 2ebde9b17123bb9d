"""Functions for fibers: run several at once, let others run, ask about cancellation.

Every function that runs others keeps them inside: when it returns or raises, all of them have ended. They start in
order. `f`, `g` and so on take no arguments (use `functools.partial`), and may be plain or `async`.
"""

from __future__ import annotations

import functools
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeVar, overload

from domains.scheduler.awaitables import call as _call
from domains.scheduler.context import check, current_fiber, is_cancelled
from domains.scheduler.dump import dump
from domains.scheduler.suspend import suspend
from domains.scheduler.switch import Switch
from domains.scheduler.yielding import yield_now

__all__ = [
    "all",
    "any",
    "await_cancel",
    "both",
    "check",
    "dump",
    "filter",
    "filter_map",
    "first",
    "is_cancelled",
    "iter",
    "map",
    "n_any",
    "pair",
    "yield_now",
]

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")

_builtin_iter = iter


async def both(f: Callable[[], object], g: Callable[[], object]) -> None:
    """Run f and g, and return when both have ended. The failure of one cancels the other, and is raised.

    If both fail on their own, an ExceptionGroup holds both failures.
    """
    check()
    async with Switch("both") as switch:
        switch.fork(f)
        switch.fork(g)


@overload
async def pair(f: Callable[[], Awaitable[A]], g: Callable[[], Awaitable[B]]) -> tuple[A, B]: ...
@overload
async def pair(f: Callable[[], A], g: Callable[[], B]) -> tuple[A, B]: ...
async def pair(f: Callable[[], Any], g: Callable[[], Any]) -> tuple[Any, Any]:
    """Run f and g, and return both results; failures as in `both`."""
    first_result, second_result = await _all("pair", [f, g])
    return first_result, second_result


@overload
async def all(functions: Iterable[Callable[[], Awaitable[T]]]) -> list[T]: ...
@overload
async def all(functions: Iterable[Callable[[], T]]) -> list[T]: ...
async def all(functions: Iterable[Callable[[], Any]]) -> list[Any]:
    """Run all functions, and return their results in the order of the functions; failures as in `both`."""
    return await _all("all", list(functions))


async def _all(name: str, functions: list[Callable[[], Any]]) -> list[Any]:
    check()
    results: list[Any] = [None] * len(functions)
    if functions:
        async with Switch(name) as switch:
            for index, f in enumerate(functions):
                switch.fork(_store, results, index, f, name=getattr(f, "__name__", name))
    return results


async def _store(results: list[Any], index: int, f: Callable[..., Any], *args: Any) -> None:
    results[index] = await _call(f, *args)


@overload
async def first(
    f: Callable[[], Awaitable[T]], g: Callable[[], Awaitable[T]], combine: Callable[[T, T], T] | None = None
) -> T: ...
@overload
async def first(f: Callable[[], T], g: Callable[[], T], combine: Callable[[T, T], T] | None = None) -> T: ...
async def first(f: Callable[[], Any], g: Callable[[], Any], combine: Callable[[Any, Any], Any] | None = None) -> Any:
    """Run f and g, and return the result of the one that is first; the other is cancelled, and has ended.

    If the other succeeds all the same, `combine(a, b)` decides, a being the first; without it b is dropped. A failure
    is raised, be it before anyone has succeeded or while being cancelled.
    """
    return await _any("first", [f, g], combine)


@overload
async def any(functions: Iterable[Callable[[], Awaitable[T]]], combine: Callable[[T, T], T] | None = None) -> T: ...
@overload
async def any(functions: Iterable[Callable[[], T]], combine: Callable[[T, T], T] | None = None) -> T: ...
async def any(functions: Iterable[Callable[[], Any]], combine: Callable[[Any, Any], Any] | None = None) -> Any:
    """Run all functions, and return the result of the one that is first; as `first` otherwise.

    Without any function it waits until it is cancelled.
    """
    return await _any("any", list(functions), combine)


async def _any(name: str, functions: list[Callable[[], Any]], combine: Callable[[Any, Any], Any] | None) -> Any:
    results = await _race(name, functions)
    return results[0] if combine is None else functools.reduce(combine, results)


@overload
async def n_any(functions: Iterable[Callable[[], Awaitable[T]]]) -> list[T]: ...
@overload
async def n_any(functions: Iterable[Callable[[], T]]) -> list[T]: ...
async def n_any(functions: Iterable[Callable[[], Any]]) -> list[Any]:
    """Like `any`, but returns every result that there was, in the order of finishing."""
    return await _race("n_any", list(functions))


async def _race(name: str, functions: list[Callable[[], Any]]) -> list[Any]:
    check()
    if not functions:
        await await_cancel()
    results: list[Any] = []
    fiber = current_fiber()
    foreign_cancels = fiber.foreign_cancels
    try:
        async with Switch(name) as switch:
            for f in functions:
                switch.fork(_finish_first, switch, results, f, name=getattr(f, "__name__", name))
    except CancelledError as error:
        # Cancelled from outside while one had its result already: what it has taken must not be lost.
        if results and fiber.foreign_cancels > foreign_cancels:
            fiber.cancel_again(error)
        elif not results or not is_cancelled():
            raise
    return results


async def _finish_first(switch: Switch, results: list[Any], f: Callable[[], Any]) -> None:
    results.append(await _call(f))
    switch.cancel()


@overload
async def map(f: Callable[[A], Awaitable[T]], xs: Iterable[A], max_fibers: int | None = None) -> list[T]: ...
@overload
async def map(f: Callable[[A], T], xs: Iterable[A], max_fibers: int | None = None) -> list[T]: ...
async def map(f: Callable[[A], Any], xs: Iterable[A], max_fibers: int | None = None) -> list[Any]:
    """Run f for each of xs, in fibers of their own, at most `max_fibers` at a time; the results in the order of xs.

    xs is read only as far as fibers are free; what it raises while it is read cancels what was started, and is raised.
    Raises ValueError for `max_fibers` below 1, before anything starts.
    """
    check()
    if max_fibers is not None and type(max_fibers) is not int:
        raise TypeError(f"max_fibers must be None or an integer, but is {max_fibers!r}")
    if max_fibers is not None and max_fibers < 1:
        raise ValueError(f"max_fibers must be None or at least 1, but is {max_fibers!r}")
    results: list[Any] = []
    name = getattr(f, "__name__", "map")
    async with Switch("map") as switch:
        if max_fibers is None:
            for index, x in enumerate(xs):
                results.append(None)
                switch.fork(_store, results, index, f, x, name=name)
        else:
            source = _builtin_iter(xs)
            switch.fork(_work, switch, source, f, results, max_fibers - 1, name=name)
    return results


async def _work(switch: Switch, source: Iterator[Any], f: Callable[[Any], Any], results: list[Any], more: int) -> None:
    """Take items one after another; the first thing is to start the next worker, if there is something for it."""
    for x in source:
        check()
        index = len(results)
        results.append(None)
        if more:
            switch.fork(_work, switch, source, f, results, more - 1, name=getattr(f, "__name__", "map"))
            more = 0
        results[index] = await _call(f, x)


async def filter(p: Callable[[A], Awaitable[bool] | bool], xs: Iterable[A], max_fibers: int | None = None) -> list[A]:
    """Those of xs for which p is true, in the order of xs; as `map` otherwise."""
    kept: list[tuple[bool, A]] = await map(functools.partial(_test, p), xs, max_fibers)
    return [x for keep, x in kept if keep]


async def _test(p: Callable[[A], Any], x: A) -> tuple[bool, A]:
    return bool(await _call(p, x)), x


@overload
async def filter_map(
    f: Callable[[A], Awaitable[T | None]], xs: Iterable[A], max_fibers: int | None = None
) -> list[T]: ...
@overload
async def filter_map(f: Callable[[A], T | None], xs: Iterable[A], max_fibers: int | None = None) -> list[T]: ...
async def filter_map(f: Callable[[A], Any], xs: Iterable[A], max_fibers: int | None = None) -> list[Any]:
    """The results of f for each of xs, without those that are None; as `map` otherwise."""
    return [result for result in await map(f, xs, max_fibers) if result is not None]


async def iter(f: Callable[[A], object], xs: Iterable[A], max_fibers: int | None = None) -> None:
    """Run f for each of xs; as `map`, without results."""
    await map(f, xs, max_fibers)


async def await_cancel() -> NoReturn:
    """Wait until this fiber is cancelled; never returns, but raises Cancelled."""
    await suspend(_never, "await_cancel")
    raise AssertionError("nobody can resume this")


def _never(_: object) -> None:
    """Registers nowhere."""
