"""Large arguments: `python -m benchmarks.references.arrays`. What 16 MB cost to send, beside what they cost to copy.

All contenders take turns in one run, in small series. "fresh" is another array each time; "again" is one that came from
a domain and goes back to it, so that it lies in shared memory already. Targets: fresh at most a tenth of
ProcessPoolExecutor, and at most two memcpy and a round trip; again at most 1.5 round trips.
"""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor

import numpy

import domains
from benchmarks.jobs import first_item, ignore, nothing

ITEMS = 2_000_000
ROUNDS = 4


async def timed(figures: dict[str, list[float]], name: str, action: Callable[[], Awaitable[object]]) -> None:
    started = time.perf_counter()
    await action()
    figures.setdefault(name, []).append((time.perf_counter() - started) * 1e6)


async def main(env: domains.Environment) -> None:
    figures: dict[str, list[float]] = {}
    target = numpy.ones(ITEMS)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as peer:
        async with domains.ExecutorPool(env.domain_mgr, domain_count=1) as pool:

            async def copy(source: numpy.ndarray) -> None:
                numpy.copyto(target, source)

            async def ours(argument: numpy.ndarray) -> None:
                await pool.submit(first_item, argument, weight=1.0)

            async def theirs(argument: numpy.ndarray) -> None:
                await asyncio.wrap_future(peer.submit(first_item, argument))

            again = await pool.submit(numpy.full, ITEMS, 1.0, weight=1.0)
            for _ in range(ROUNDS):
                for _ in range(300):
                    await timed(figures, "no-op round trip", lambda: pool.submit(nothing, weight=1.0))
                    await timed(figures, "16 MB, again", lambda: pool.submit(ignore, again, weight=1.0))
                for name, action in ("memcpy", copy), ("16 MB, fresh", ours), ("16 MB, ProcessPoolExecutor", theirs):
                    # The first shows what the one before left behind: threads of the peer's that still work.
                    await action(numpy.zeros(ITEMS))
                    for number in range(15):
                        fresh = numpy.full(ITEMS, float(number))
                        await timed(figures, name, functools.partial(action, fresh))
    median = {name: statistics.median(times) for name, times in figures.items()}
    for name, figure in median.items():
        print(f"{name:28} {figure:10.0f} µs")
    fresh_time = median["16 MB, fresh"]
    print(f"fresh / ProcessPoolExecutor      {fresh_time / median['16 MB, ProcessPoolExecutor']:6.3f}   (at most 0.1)")
    copied = 2 * median["memcpy"] + median["no-op round trip"]
    print(f"fresh / (2 memcpy + round trip)  {fresh_time / copied:6.3f}   (at most 1)")
    print(
        f"again / round trip               {median['16 MB, again'] / median['no-op round trip']:6.3f}   (at most 1.5)"
    )


if __name__ == "__main__":
    domains.run(main)
