"""What runs in a domain of a pool before its first job: a user's initializer, whose result nobody wants."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from domains.scheduler.awaitables import is_awaitable

RUNS_USER_CODE = True
"""It may be interrupted in here: see `domains.interruption`."""


def initialize(f: Callable[..., Any], *args: Any) -> Awaitable[None] | None:
    result = f(*args)
    return _finish(result) if is_awaitable(result) else None


async def initialize_async(f: Callable[..., Awaitable[Any]], *args: Any) -> None:
    await f(*args)


async def _finish(result: Awaitable[Any]) -> None:
    await result
