"""The contests: each measures ours and a peer's in turns, and gives the median, or the rate, of both."""

from __future__ import annotations

import dataclasses
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import domains
from benchmarks.references import peers
from domains import Mutex, Promise, Resolver, Stream, Switch


class Result(NamedTuple):
    ours: float
    theirs: float


@dataclasses.dataclass(frozen=True)
class Contest:
    """One row of the table."""

    name: str
    unit: str
    target: float
    lower_is_better: bool
    run: Callable[[domains.Environment, float], Awaitable[Result]]


async def answer(questions: list[Promise[int]], answers: list[Resolver[int]]) -> None:
    for question, resolver in zip(questions, answers, strict=True):
        resolver.resolve(await question)


async def promise_round_trips(env: domains.Environment, count: int) -> float:
    """The median time from resolving a promise that is awaited there to having one that is resolved there, in µs."""
    questions: list[Any] = [Promise.create() for _ in range(count)]
    answers: list[Any] = [Promise.create() for _ in range(count)]
    times = []
    async with env.domain_mgr.spawn() as domain, Switch() as switch:
        arguments = [promise for promise, _ in questions], [resolver for _, resolver in answers]
        done = switch.fork_promise(domain.call, answer, *arguments)
        for number in range(count):
            started = time.perf_counter()
            questions[number][1].resolve(number)
            await answers[number][0]
            times.append(time.perf_counter() - started)
        await done
    return statistics.median(times) * 1e6


async def promises_and_events(env: domains.Environment, scale: float) -> Result:
    count = max(20, int(2000 * scale))
    return Result(await promise_round_trips(env, count), peers.event_round_trips(max(20, count // 4)))


async def promises_and_links(env: domains.Environment, scale: float) -> Result:
    count = max(20, int(2000 * scale))
    return Result(await promise_round_trips(env, count), peers.link_round_trips(count))


async def lock_often(mutex: Mutex, count: int) -> float:
    times = []
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(count):
            await mutex.lock()
            mutex.unlock()
        times.append((time.perf_counter() - started) / count)
    return statistics.median(times) * 1e6


async def mutexes(env: domains.Environment, scale: float) -> Result:
    count = max(20, int(2000 * scale))
    ours = await env.domain_mgr.run(lock_often, Mutex(), count)
    return Result(ours, peers.proxy_locks(max(20, count)))


async def produce(streams: Promise[Stream[int]], count: int) -> None:
    stream = await streams
    for number in range(count):
        await stream.add(number)
    stream.close()


async def consume_at_home(hand_out: Resolver[Stream[int]], count: int) -> float:
    stream: Stream[int] = Stream(1000)
    hand_out.resolve(stream)
    return await consume(stream, count)


async def consume(stream: Stream[int], count: int) -> float:
    """Items per second, from the first on."""
    await stream.take()
    started = time.perf_counter()
    taken = 1
    async for _ in stream:
        taken += 1
    assert taken == count
    return taken / (time.perf_counter() - started)


async def streams(env: domains.Environment, scale: float) -> Result:
    count = max(1000, int(200_000 * scale))
    promise: Promise[Stream[int]]
    promise, hand_out = Promise.create("the stream")
    async with env.domain_mgr.spawn() as producer, env.domain_mgr.spawn() as consumer, Switch() as switch:
        consuming = switch.fork_promise(consumer.call, consume_at_home, hand_out, count)
        switch.fork(producer.call, produce, promise, count)
        ours = await consuming
    return Result(ours, peers.queue_rate(max(1000, count // 4)))


async def streams_of_a_third(env: domains.Environment, scale: float) -> Result:
    count = max(1000, int(200_000 * scale))
    stream: Stream[int] = Stream(1000)
    async with env.domain_mgr.spawn() as producer, env.domain_mgr.spawn() as consumer, Switch() as switch:
        consuming = switch.fork_promise(consumer.call, consume, stream, count)
        switch.fork(producer.call, produce, Promise.resolved(stream), count)
        ours = await consuming
    return Result(ours, peers.queue_rate(max(1000, count // 4)))


multiprocessing.set_start_method("forkserver", force=True)

CONTESTS = [
    Contest("promise resolved there, another here: round trip / Manager().Event", "µs", 0.3, True, promises_and_events),
    Contest("the same / bare ping-pong on such a link", "µs", 1.5, True, promises_and_links),
    Contest("mutex of another domain, lock + unlock / Manager().Lock", "µs", 0.05, True, mutexes),
    Contest("stream from a domain to another / multiprocessing.Queue", "items/s", 5.0, False, streams),
    Contest("the same, a stream of a third domain", "items/s", 1.0, False, streams_of_a_third),
]
