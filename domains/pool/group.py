"""What runs in a domain on behalf of `map`: a user's function over a group of items."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from domains.scheduler import fiber
from domains.scheduler.awaitables import is_awaitable

RUNS_USER_CODE = True
"""Jobs may be interrupted in here: see `domains.interruption`."""


def run_group(f: Callable[[Any], Any], items: list[Any]) -> list[Any] | Awaitable[list[Any]]:
    rest = iter(items)
    first = f(next(rest))
    return finish_async(f, first, rest) if is_awaitable(first) else [first, *map(f, rest)]


async def run_group_async(f: Callable[[Any], Awaitable[Any]], items: list[Any]) -> list[Any]:
    return await fiber.map(f, items)


async def finish_async(f: Callable[[Any], Any], first: Awaitable[Any], rest: Iterable[Any]) -> list[Any]:
    """A plain function has returned what is to be awaited, as it will for the rest of the items."""
    result, results = await fiber.pair(lambda: first, lambda: fiber.map(f, rest))
    return [result, *results]
