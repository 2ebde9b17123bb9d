"""What runs in a domain on behalf of `map`: a user's function over a group of items."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from domains.scheduler import fiber

RUNS_USER_CODE = True
"""Jobs may be interrupted in here: see `domains.interruption`."""


def run_group(f: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    return list(map(f, items))


async def run_group_async(f: Callable[[Any], Awaitable[Any]], items: list[Any]) -> list[Any]:
    return await fiber.map(f, items)
