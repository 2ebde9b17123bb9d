"""What the scheduler's tests get: a program is run on each kind of event loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from domains.scheduler.run import event_loop_factory, run

Run = Callable[[Callable[[], Awaitable[Any]]], Any]


@pytest.fixture(name="run", params=["asyncio", "uvloop"])
def run_on_each_loop(request: pytest.FixtureRequest) -> Run:
    """`run(main)`, on asyncio's own loop and on uvloop's."""
    return functools.partial(
        run, loop_factory=asyncio.new_event_loop if request.param == "asyncio" else event_loop_factory()
    )
