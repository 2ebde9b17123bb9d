"""What runs in a domain where a function, or some of what it is called with, came apart: see `domains.functions`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

RUNS_USER_CODE = True
"""Jobs may be interrupted in here: see `domains.interruption`."""


def call_passed(f: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return f(*args)


async def call_passed_async(f: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> Any:
    return await f(*args)


def call_bound(f: Callable[..., Any], first: tuple[Any, ...], keywords: dict[str, Any], args: tuple[Any, ...]) -> Any:
    return f(*first, *args, **keywords)


async def call_bound_async(
    f: Callable[..., Awaitable[Any]], first: tuple[Any, ...], keywords: dict[str, Any], args: tuple[Any, ...]
) -> Any:
    return await f(*first, *args, **keywords)
