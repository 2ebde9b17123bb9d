"""Many fibers asleep: what each takes of memory, and what cancelling it costs, when there are more and more of them.

Run as a program of its own, `python -m benchmarks.scheduler.sleepers PARTY LOOP COUNT`, for memory that one has used
is never quite given back: writes bytes per fiber, and nanoseconds to cancel one, as JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from typing import NamedTuple

import psutil

from benchmarks.scheduler.contests import LOOPS, OURS
from domains.scheduler import Switch
from domains.scheduler.clock import sleep
from domains.scheduler.run import run

PARTIES = [OURS, "asyncio"]
_AN_HOUR = 3600


class Sleepers(NamedTuple):
    """Of so many fibers asleep at once, per fiber."""

    count: int
    bytes: float
    cancel_nanoseconds: float


def measure(party: str, loop: str, count: int) -> Sleepers:
    """In a fresh process."""
    command = [sys.executable, "-m", "benchmarks.scheduler.sleepers", party, loop, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Sleepers(count, **json.loads(done.stdout))


def _resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


async def domains_sleepers(count: int) -> dict[str, float]:
    before = _resident()
    async with Switch() as outer:
        async with Switch() as switch:
            for _ in range(count):
                switch.fork(sleep, _AN_HOUR)
            await sleep(0.01)
            grown = _resident() - before
            started = time.thread_time()
            switch.cancel()
        cancelled = time.thread_time() - started
        outer.check()
    return {"bytes": grown / count, "cancel_nanoseconds": cancelled / count * 1e9}


async def asyncio_sleepers(count: int) -> dict[str, float]:
    before = _resident()
    tasks = [asyncio.create_task(asyncio.sleep(_AN_HOUR)) for _ in range(count)]
    await asyncio.sleep(0.01)
    grown = _resident() - before
    started = time.thread_time()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    cancelled = time.thread_time() - started
    return {"bytes": grown / count, "cancel_nanoseconds": cancelled / count * 1e9}


def main(party: str, loop: str, count: int) -> dict[str, float]:
    new_loop = LOOPS[loop]
    if party == OURS:
        return run(lambda: domains_sleepers(count), loop_factory=new_loop)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(asyncio_sleepers(count))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
