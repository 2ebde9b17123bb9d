"""Plain and `async` functions of the user's are called alike: what they return says whether it is to be awaited."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import GeneratorType
from typing import Any

__all__ = ["call", "is_awaitable"]


def is_awaitable(value: object) -> bool:
    """Whether a function was `async`, or as good as that, seen from what it returned."""
    if value is None:
        return False
    if isinstance(value, GeneratorType):  # as `yield_now` returns
        return bool(value.gi_code.co_flags & inspect.CO_ITERABLE_COROUTINE)
    return hasattr(type(value), "__await__")


async def call(f: Callable[..., Any], *args: Any) -> Any:
    """The result of `f(*args)`, plain or `async`."""
    result = f(*args)
    if is_awaitable(result):
        result = await result
    return result
