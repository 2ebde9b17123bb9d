"""What runs in a domain on behalf of `map`: a user's function over a group of items."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from domains.scheduler import fiber
from domains.scheduler.awaitables import is_awaitable

RUNS_USER_CODE = True
"""Jobs may be interrupted in here: see `domains.interruption`."""


def run_group(f: Callable[[Any], Any], items: list[Any]) -> list[Any] | Awaitable[list[Any]]:
    return run_all(f, iter(items))


async def run_group_async(f: Callable[[Any], Awaitable[Any]], items: list[Any]) -> list[Any]:
    return await fiber.map(f, items)


def run_all(f: Callable[[Any], Any], items: Iterator[Any]) -> list[Any] | Awaitable[list[Any]]:
    """The results of a plain function; from the first on that is to be awaited they go on beside each other."""
    results: list[Any] = []
    add = results.append
    plain: type | None = None  # to ask of each whether it is to be awaited takes longer than most functions
    for item in items:
        result = f(item)
        if type(result) is not plain:
            if is_awaitable(result):
                return _finish(f, results, result, items)
            plain = type(result)
        add(result)
    return results


async def _finish(f: Callable[[Any], Any], results: list[Any], next_one: Awaitable[Any], rest: Iterator[Any]) -> Any:
    result, others = await fiber.pair(lambda: next_one, lambda: fiber.map(f, rest))
    return [*results, result, *others]
