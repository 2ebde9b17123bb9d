"""What runs in a domain for a function that came with its job's arguments: see `domains.functions`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

RUNS_USER_CODE = True
"""Jobs may be interrupted in here: see `domains.interruption`."""


def call_passed(f: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return f(*args)


async def call_passed_async(f: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> Any:
    return await f(*args)
