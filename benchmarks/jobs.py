"""What the workers are given to do. A module of its own, and a light one: every worker imports it."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any


def nothing() -> None:
    """The job whose cost is that of running any job."""


def same(x: Any) -> Any:
    return x


def ignore(x: Any) -> None:
    """What it costs to be handed something."""


def first_item(array: Any) -> float:
    return float(array[0])


def compute(size: int) -> float:
    """Count, and return how many seconds of the processor that took."""
    started = time.process_time()
    total = 0
    for number in range(size):
        total += number
    return time.process_time() - started


def wait_for(path: str) -> None:
    """Keep a worker busy until there is such a file."""
    while not os.path.exists(path):
        time.sleep(0.01)


async def sleep_briefly() -> None:
    await asyncio.sleep(0.01)
