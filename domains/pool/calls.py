"""What runs in a domain on behalf of an executor's `map`: a user's function over a chunk of items."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import starmap
from typing import Any

from domains.pool.group import finish_async
from domains.scheduler import fiber
from domains.scheduler.awaitables import is_awaitable

RUNS_USER_CODE = True
"""Jobs may be interrupted in here: see `domains.interruption`."""


def call_chunk(f: Callable[..., Any], chunk: Sequence[tuple[Any, ...]]) -> list[Any] | Awaitable[list[Any]]:
    rest = iter(chunk)
    first = f(*next(rest))
    return finish_async(lambda args: f(*args), first, rest) if is_awaitable(first) else [first, *starmap(f, rest)]


async def call_chunk_async(f: Callable[..., Awaitable[Any]], chunk: Sequence[tuple[Any, ...]]) -> list[Any]:
    return await fiber.map(lambda args: f(*args), chunk)
