"""What the scheduler's tests get: a program is run on each kind of event loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from domains.scheduler.mock import run_mock
from domains.scheduler.run import event_loop_factory, run

Run = Callable[[Callable[[], Awaitable[Any]]], Any]


@pytest.fixture(name="run", params=["asyncio", "uvloop"])
def run_on_each_loop(request: pytest.FixtureRequest) -> Run:
    """`run(main)`, on asyncio's own loop and on uvloop's."""
    return _run_on(request.param)


@pytest.fixture(name="run_timed", params=["asyncio", "uvloop", "virtual"])
def run_on_each_clock(request: pytest.FixtureRequest) -> Run:
    """As `run`, and in virtual time as well."""
    return _run_on(request.param)


def _run_on(kind: str) -> Run:
    if kind == "virtual":
        return run_mock
    return functools.partial(run, loop_factory=asyncio.new_event_loop if kind == "asyncio" else event_loop_factory())
