"""Context managers that are entered now and left when a switch ends, as its other resources are released.

One that begins a cancellation context of its own cannot be kept so: contexts end in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from domains.scheduler.awaitables import is_awaitable
from domains.scheduler.context import current_fiber

if TYPE_CHECKING:
    from domains.scheduler.switch import Switch

__all__ = ["enter"]


async def enter(switch: Switch, manager: Any) -> Any:
    """What `Switch.enter` does, on a switch that is open."""
    fiber = current_fiber()
    context = fiber.context
    kind = type(manager)
    if hasattr(kind, "__aenter__"):
        value = await kind.__aenter__(manager)
        leave = kind.__aexit__
    elif hasattr(kind, "__enter__"):
        value = kind.__enter__(manager)
        leave = kind.__exit__
    else:
        raise TypeError(f"enter takes a context manager, not {manager!r}")
    if fiber.context is not context:
        await _refuse(switch, manager, leave)
    switch.on_release(_leave, switch, manager, leave)
    return value


async def _refuse(switch: Switch, manager: Any, leave: Callable[..., Any]) -> NoReturn:
    name = type(manager).__name__
    error = RuntimeError(f"{switch!r} cannot keep a {name}, which is a block of its own: use `async with` for it")
    try:
        left = leave(manager, RuntimeError, error, None)
        if is_awaitable(left):
            await left
        raise error
    finally:
        del error  # whose traceback holds this frame


async def _leave(switch: Switch, manager: Any, leave: Callable[..., Any]) -> None:
    error = switch.comes_to()
    try:
        left = leave(manager, None if error is None else type(error), error, error and error.__traceback__)
        if is_awaitable(left):
            await left
    except BaseException as raised:
        if raised is not error:
            raise
    finally:
        del error  # which, where it is raised, holds this frame
