"""What runs in a domain on behalf of an executor's `map`: a user's function over a chunk of items."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from domains.pool.group import run_all
from domains.scheduler import fiber

RUNS_USER_CODE = True
"""Jobs may be interrupted in here: see `domains.interruption`."""


def call_chunk(f: Callable[..., Any], chunk: Sequence[tuple[Any, ...]]) -> list[Any] | Awaitable[list[Any]]:
    return run_all(lambda args: f(*args), iter(chunk))


async def call_chunk_async(f: Callable[..., Awaitable[Any]], chunk: Sequence[tuple[Any, ...]]) -> list[Any]:
    return await fiber.map(lambda args: f(*args), chunk)
