"""Letting others run: the smallest operation, on which a fiber's speed is measured."""

from __future__ import annotations

import types
from collections.abc import Generator
from typing import Any

from domains.scheduler.context import FiberTask, current_fiber
from domains.scheduler.running import here, running_task

__all__ = ["yield_now"]


@types.coroutine
def yield_now() -> Generator[None, None, None]:
    """Let every fiber that can run now run once. Raises Cancelled, before or after, in a cancelled context."""
    try:
        fiber: Any = running_task(here.loop)
    except RuntimeError:  # no loop runs here
        fiber = None
    if type(fiber) is not FiberTask:
        fiber = current_fiber()
    cancellation = fiber.context.cancellation
    if cancellation is not None:
        raise cancellation.tell(fiber)
    yield
    cancellation = fiber.context.cancellation
    if cancellation is not None:
        raise cancellation.tell(fiber)
