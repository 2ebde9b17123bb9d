"""The questions: each measures every contender that can answer it, turn by turn, and keeps each one's best or median.

Taking turns, in one run on one machine, is what makes ratios of noisy figures worth something.
"""

from __future__ import annotations

import asyncio
import compileall
import functools
import gc
import importlib
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

import domains
from benchmarks import first_result
from benchmarks.contenders import WORKERS, Contender, contenders
from benchmarks.jobs import compute, first_item, nothing, same, sleep_briefly, wait_for


class Answer(NamedTuple):
    """One contender's figure; smaller is better. `more` are further figures in the same unit."""

    contender: str
    figure: float
    more: dict[str, float]


class Question(NamedTuple):
    """What is asked, in which unit, and how it is measured: a coroutine function of env and of how much to do."""

    name: str
    unit: str
    measure: Callable[[domains.Environment, float], Awaitable[list[Answer]]]


async def _turns(
    env: domains.Environment, repetitions: int, measure: Callable[[Contender], Awaitable[float | list[float]]]
) -> dict[str, list[float]]:
    """Each contender's figures, over so many turns; those that cannot do it are left out."""
    figures: dict[str, list[float]] = {}
    unable: set[str] = set()
    for _ in range(repetitions):
        for contender in contenders(env):
            if contender.name in unable:
                continue
            try:
                async with contender.running():
                    result = await measure(contender)
            except NotImplementedError:
                unable.add(contender.name)
                continue
            figures.setdefault(contender.name, []).extend(result if isinstance(result, list) else [result])
    return figures


def _medians(figures: dict[str, list[float]]) -> list[Answer]:
    return [
        Answer(name, statistics.median(values), {"best": min(values), "worst": max(values)})
        for name, values in figures.items()
    ]


async def round_trip(env: domains.Environment, scale: float) -> list[Answer]:
    async def measure(contender: Contender) -> list[float]:
        for _ in range(200):
            await contender.one(nothing)
        times = []
        for _ in range(max(200, int(1000 * scale))):
            started = time.perf_counter()
            await contender.one(nothing)
            times.append((time.perf_counter() - started) * 1e6)
        return times

    figures = await _turns(env, 9, measure)  # a turn is short, and a noisy machine is slow for seconds on end
    return [
        Answer(name, statistics.median(times), {"p99": statistics.quantiles(times, n=100)[98]})
        for name, times in figures.items()
    ]


async def many_jobs(env: domains.Environment, scale: float) -> list[Answer]:
    count = int(20_000 * scale)

    async def measure(contender: Contender) -> float:
        await contender.many(nothing, 200)
        started = time.perf_counter()
        await contender.many(nothing, count)
        return (time.perf_counter() - started) / count * 1e6

    return _medians(await _turns(env, 5, measure))


async def async_jobs(most: int, weight: float, env: domains.Environment, scale: float) -> list[Answer]:
    count = int(most * scale)

    async def measure(contender: Contender) -> float:
        await contender.many_async(sleep_briefly, 4, weight)
        started = time.perf_counter()
        await contender.many_async(sleep_briefly, count, weight)
        return (time.perf_counter() - started) * 1e3

    return _medians(await _turns(env, 3, measure))


async def mapping(most: int, env: domains.Environment, scale: float) -> list[Answer]:
    count = int(most * scale)

    async def measure(contender: Contender) -> float:
        await contender.map(same, range(count), count)
        started = time.perf_counter()
        await contender.map(same, range(count), count)
        return (time.perf_counter() - started) * 1e3

    return _medians(await _turns(env, 3, measure))


async def uneven_jobs(env: domains.Environment, scale: float) -> list[Answer]:
    """How much longer 64 jobs that compute, some thirty times as long as others, take than on perfect cores."""
    sizes = [int((1 + (number * 7919) % 32) * 40_000 * scale) for number in range(64)]

    async def measure(contender: Contender) -> float:
        await contender.each(compute, [1, 1, 1, 1])
        started = time.perf_counter()
        seconds = await contender.each(compute, sizes)
        return (time.perf_counter() - started) / (sum(seconds) / WORKERS)

    return _medians(await _turns(env, 3, measure))


async def large_argument(env: domains.Environment, scale: float) -> list[Answer]:
    import numpy

    async def measure(contender: Contender) -> list[float]:
        array = numpy.ones(2_000_000)
        await contender.one(first_item, array)
        times = []
        for number in range(max(3, int(10 * scale))):
            array = numpy.full(2_000_000, float(number))
            started = time.perf_counter()
            await contender.one(first_item, array)
            times.append((time.perf_counter() - started) * 1e3)
        return times

    return _medians(await _turns(env, 2, measure))


def _compile_ours() -> None:
    """Write our bytecode, which peers have since their installation, also where Python was asked to write none."""
    for package in "domains", "domains.scheduler", "domains.ipc", "benchmarks":
        for folder in importlib.import_module(package).__path__:
            compileall.compile_dir(folder, quiet=1)


async def time_to_first_result(env: domains.Environment, scale: float) -> list[Answer]:
    figures: dict[str, list[float]] = {}
    able = [contender.name for contender in contenders(env) if contender.name in first_result.MEASURES]
    await domains.run_in_thread(_compile_ours)
    for _ in range(max(3, int(10 * scale))):
        for name in able:
            command = [sys.executable, "-m", "benchmarks.first_result", name]
            run = functools.partial(subprocess.run, command, capture_output=True, text=True, check=True)
            done = await domains.run_in_thread(run)
            figures.setdefault(name, []).append(float(done.stdout) * 1e3)
    return _medians(figures)


async def idle_memory(env: domains.Environment, scale: float) -> list[Answer]:
    async def measure(contender: Contender) -> float:
        try:
            await contender.many(nothing, 100)
        except NotImplementedError:
            await contender.many_async(sleep_briefly, 4, 0.001)
        sizes = [psutil.Process(pid).memory_full_info().uss / 1e6 for pid in contender.workers()]
        return statistics.mean(sizes)

    figures = await _turns(env, 2, measure)
    figures.pop("domains, a fiber per job", None)
    return _medians(figures)


async def queued_memory(env: domains.Environment, scale: float) -> list[Answer]:
    """Python's memory in the parent alone: what else a contender has, such as Ray's store, would come on top."""
    count = int(20_000 * scale)

    async def measure(contender: Contender) -> float:
        with tempfile.TemporaryDirectory() as folder:
            gate = Path(folder, "gate")
            started = [contender.start(wait_for, str(gate)) for _ in range(WORKERS)]
            await asyncio.sleep(0.5)
            gc.collect()
            tracemalloc.start()
            try:
                started += [contender.start(nothing) for _ in range(count)]
                await asyncio.sleep(1.0)  # those that have threads of their own are done with it
                size_bytes, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
                gate.touch()  # noqa: ASYNC240
            await contender.end(started)
        return size_bytes / count / 1e3

    return _medians(await _turns(env, 2, measure))


class _EnoughError(Exception):
    """Leaves a pool without waiting for what was submitted."""


async def late_submits(env: domains.Environment, scale: float) -> list[Answer]:
    """What the last of a million submits take, while no job ends, and what the first did."""
    count, few = int(1_000_000 * scale), int(20_000 * scale)
    submit_times: list[float] = []

    def timed(submit: Callable[[], object], number: int) -> None:
        started = time.process_time()
        for _ in range(number):
            submit()
        submit_times.append((time.process_time() - started) / number * 1e6)

    try:
        async with domains.ExecutorPool(env.domain_mgr, domain_count=WORKERS) as pool, domains.Switch() as switch:
            for number in (few, count - 2 * few, few):
                timed(lambda: pool.submit_fork(switch, nothing, weight=1.0), number)
            raise _EnoughError
    except _EnoughError:
        first, _, last = submit_times
    return [Answer("domains", last, {"the first": first})]


QUESTIONS = [
    Question("round trip of one no-op job, median", "µs", round_trip),
    Question("20,000 no-op jobs submitted and awaited, per job", "µs", many_jobs),
    Question("2,000 async jobs that sleep 10 ms", "ms", functools.partial(async_jobs, 2_000, 0.001)),
    Question("20,000 async jobs that sleep 10 ms", "ms", functools.partial(async_jobs, 20_000, 0.0005)),
    Question("map of 200,000 no-ops", "ms", functools.partial(mapping, 200_000)),
    Question("map of 2,000,000 no-ops", "ms", functools.partial(mapping, 2_000_000)),
    Question("64 uneven CPU-bound jobs, time over the ideal", "x", uneven_jobs),
    Question("a 16 MB NumPy argument", "ms", large_argument),
    Question("memory of a queued job, of 20,000", "KB", queued_memory),
    Question("submitting one job after 1,000,000, CPU time", "µs", late_submits),
    Question("two workers and a first result, from nothing", "ms", time_to_first_result),
    Question("memory of an idle worker (USS)", "MB", idle_memory),
]


def as_json(question: Question, answers: list[Answer]) -> dict[str, Any]:
    return {
        "question": question.name,
        "unit": question.unit,
        "answers": {answer.contender: {"figure": answer.figure, **answer.more} for answer in answers},
    }
