"""From nothing to the first result: a fresh interpreter starts two workers, and has one result from each.

Run by `benchmarks.questions` as `python -m benchmarks.first_result CONTENDER`; prints the seconds since the start.
"""

from __future__ import annotations

import sys
import time


def of_ours() -> float:
    started = time.perf_counter()
    import domains
    from benchmarks.jobs import nothing

    async def main(env: domains.Environment) -> float:
        async with domains.ExecutorPool(env.domain_mgr, domain_count=2) as pool, domains.Switch() as switch:
            for promise in [pool.submit_fork(switch, nothing, weight=1.0) for _ in range(2)]:
                await promise
            return time.perf_counter() - started

    return domains.run(main)


def of_the_standard_executor() -> float:
    started = time.perf_counter()
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from benchmarks.jobs import nothing

    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver")) as executor:
        for future in [executor.submit(nothing) for _ in range(2)]:
            future.result()
        return time.perf_counter() - started


def of_loky() -> float:
    started = time.perf_counter()
    import loky

    from benchmarks.jobs import nothing

    with loky.ProcessPoolExecutor(2) as executor:
        for future in [executor.submit(nothing) for _ in range(2)]:
            future.result()
        return time.perf_counter() - started


MEASURES = {"domains": of_ours, "ProcessPoolExecutor": of_the_standard_executor, "loky": of_loky}

if __name__ == "__main__":
    print(MEASURES[sys.argv[1]]())
