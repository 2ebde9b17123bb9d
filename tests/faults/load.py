"""A program under a mixed load, whose domains are killed at random: counts what it did, and what went wrong.

Run by `soak.py` as `load.py LINK SEED SECONDS`. Prints a line of JSON twice a second and at its end: its counts, and
what runs, so that `soak.py` can tell what hangs. An operation may end with its result, or with the error of a death;
anything else is `lost`.
"""

import asyncio
import collections
import contextlib
import faulthandler
import itertools
import json
import logging
import os
import random
import signal
import sys
import time

import domains
from domains import (
    Closed,
    DomainDied,
    DomainUnavailable,
    ExecutorPool,
    Mutex,
    Promise,
    Semaphore,
    Switch,
    move_on_after,
)

# A promise whose domain died before anybody looked at it is what this is about.
logging.getLogger("domains").addFilter(lambda record: "nobody has looked at it" not in record.getMessage())

LINK, SEED, SECONDS = sys.argv[1], sys.argv[2], float(sys.argv[3])
KILL_EVERY_SECONDS = 0.38
"""While there is somebody to kill: so the rounds come to one in 0.5 s, with their starts and ends."""
WORKERS = 12

faulthandler.register(signal.SIGWINCH)  # on which domains write their stacks as well
began = time.monotonic()

counts = collections.Counter()
rng = random.Random(SEED)
problems = []
numbers = itertools.count()
running = {"program": ["starting", next(numbers)]}
pools = []


def say_counts():
    state = []
    for pool in pools:
        with contextlib.suppress(Closed, DomainUnavailable):
            state.append(str(pool.stats()))
    said = {"counts": counts, "problems": problems, "running": running, "pools": state}
    os.write(1, (json.dumps(said) + "\n").encode())


# Jobs


def square(x):
    return x * x


async def square_later(x, seconds):
    await asyncio.sleep(seconds)
    return x * x


def compute(x, rounds):
    for _ in range(rounds):
        x = (x * 1103515245 + 12345) % (1 << 31)
    return x


def spin():
    while True:
        pass


def fail(text):
    raise LookupError(text)


def echo(value):
    return value


async def resolve_it(resolver, value):
    resolver.resolve(value)
    return value


async def await_it(promise):
    return await promise


async def lock_it(mutex, value):
    async with mutex.ro():
        await asyncio.sleep(0.001)
    return value


async def acquire_it(semaphore, value):
    async with semaphore:
        await asyncio.sleep(0.001)
    return value


async def run_below(domain_mgr, x):
    async with domain_mgr.spawn() as domain:
        return await domain.call(square_later, x, 0.01)


def pid():
    return os.getpid()


# Operations: each returns normally, or raises what a death explains


def check(value, expected):
    if value != expected:
        raise AssertionError(f"got {str(value)[:100]!r} and not {str(expected)[:100]!r}")


async def plain(env, pool):
    x = rng.randrange(1000)
    check(await pool.submit(square, x, weight=rng.choice([0.0, 0.3, 1.0])), x * x)


async def computing(env, pool):
    x, rounds = rng.randrange(1000), rng.randrange(20000)
    check(await pool.submit(compute, x, rounds, weight=1.0), compute(x, rounds))


async def waiting(env, pool):
    x = rng.randrange(1000)
    check(await pool.submit(square_later, x, rng.random() / 20, weight=0.001), x * x)


async def retried(env, pool):
    check(await pool.submit(square, 7, weight=1.0, retries=10), 49)


async def failing(env, pool):
    try:
        await pool.submit(fail, "text", weight=1.0)
    except LookupError as error:
        check(error.args, ("text",))
    else:
        raise AssertionError("it did not fail")


async def large(env, pool):
    block = os.urandom(1 << 10) * rng.randrange(1, 2000)
    check(await pool.submit(echo, block, weight=0.5), block)


async def cancelled(env, pool):
    job = rng.choice([(spin,), (square_later, 1, 10.0), (compute, 1, 100000)])
    with move_on_after(rng.random() / 10) as scope:
        await pool.submit(*job, weight=rng.choice([0.001, 1.0]))
    if not scope.cancelled and job[0] is not compute:
        raise AssertionError("it was not cancelled, and ended")


async def timed_out(env, pool):
    try:
        await pool.submit(*rng.choice([(spin,), (square_later, 1, 10.0)]), weight=1.0, timeout=rng.random() / 10)
    except TimeoutError:
        return
    raise AssertionError("its timeout did not expire")


async def promised(env, pool):
    promise, resolver = Promise.create()
    async with Switch() as sw:
        returned = sw.fork_promise(resolver_job, pool, resolver)
        try:
            check(await returned, 5)
        except DomainUnavailable:
            raise  # the pool had given up, perhaps before the submit, and then the resolver is nowhere but here
        except DomainDied:
            with contextlib.suppress(DomainDied):
                check(await promise, 5)
            raise
        check(await promise, 5)


async def resolver_job(pool, resolver):
    return await pool.submit(resolve_it, resolver, 5, weight=0.1)


async def shared(env, pool):
    promise, resolver = Promise.create()
    async with Switch() as sw:
        awaiting = sw.fork_promise(pool.submit_it, await_it, promise)
        resolving = sw.fork_promise(pool.submit_it, resolve_it, resolver, 6)
        try:
            check(await resolving, 6)
        except DomainDied:
            resolver.try_resolve(6)  # it may have been killed before or after
        check(await awaiting, 6)


async def mapped(env, pool):
    count = rng.randrange(1, 500)
    results = [y async for y in pool.map(square, range(count), weight=rng.choice([0.1, 1.0]))]
    check(results, [x * x for x in range(count)])


async def mapped_and_left(env, pool):
    count = 0
    async for _ in pool.map(square, iter(int, 1), weight=1.0, ordered=False):
        count += 1
        if count > 50:
            break


async def run_alone(env, pool):
    check(await env.domain_mgr.run(square, 9), 81)


async def spawned(env, pool):
    async with env.domain_mgr.spawn() as domain, Switch() as sw:
        squares = [sw.fork_promise(domain.call, square_later, x, 0.01) for x in range(5)]
        if rng.random() < 0.5:
            process = await domain.call(pid)
            kill(process, signal.SIGKILL)
        check([await y for y in squares], [x * x for x in range(5)])


async def below(env, pool):
    async with env.domain_mgr.spawn() as domain, Switch() as sw:
        squared = sw.fork_promise(domain.call, run_below, env.domain_mgr, 8)
        if rng.random() < 0.5:
            await asyncio.sleep(rng.random() / 2)
            if domain.pid is not None:
                kill(domain.pid, signal.SIGKILL)
        check(await squared, 64)


async def each_survives(outcomes, expected):
    for outcome in outcomes:
        try:
            check(await outcome, expected)
        except DomainDied:
            counts["died"] += 1


async def locked(env, pool):
    mutex = Mutex()
    async with Switch() as sw:
        await each_survives([sw.fork_promise(pool.submit_it, lock_it, mutex, 3) for _ in range(6)], 3)
    async with mutex.rw():
        pass


async def acquired(env, pool):
    semaphore = Semaphore(2)
    async with Switch() as sw:
        await each_survives([sw.fork_promise(pool.submit_it, acquire_it, semaphore, 4) for _ in range(6)], 4)
    await semaphore.acquire()
    await semaphore.acquire()


async def own_pool(env, pool):
    async with ExecutorPool(env.domain_mgr, domain_count=1) as own:
        check(await own.submit(square, 3, weight=1.0), 9)


OPERATIONS = {
    plain: 20,
    computing: 20,
    waiting: 20,
    retried: 5,
    failing: 10,
    large: 4,
    cancelled: 10,
    timed_out: 5,
    promised: 10,
    shared: 10,
    mapped: 5,
    mapped_and_left: 3,
    run_alone: 2,
    spawned: 2,
    own_pool: 1,
    below: 1,
    locked: 4,
    acquired: 4,
}


async def worker(env, pool, name, deadline):
    while time.monotonic() < deadline:
        (operation,) = rng.choices(list(OPERATIONS), list(OPERATIONS.values()))
        running[name] = operation.__name__, next(numbers)
        try:
            await operation(env, pool)
            counts["done"] += 1
        except (DomainDied, DomainUnavailable) as death:
            counts["died"] += 1
            if isinstance(death, DomainUnavailable):
                counts["unavailable"] += 1
        except ExceptionGroup as group:
            if group.split((DomainDied, DomainUnavailable))[1] is None:
                counts["died"] += 1
            else:
                lose(operation, group)
        except Exception as error:
            lose(operation, error)
        del running[name]
        counts[operation.__name__] += 1


def lose(operation, error):
    counts["lost"] += 1
    problems.append(f"{operation.__name__}: {type(error).__name__}: {error}"[:1000])


# Faults


def kill(process, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)
        counts["kills"] += 1
        counts[signal.Signals(number).name] += 1


async def killer(env):
    """Kills any domain of the program's. What falls due while there is none lapses, but for one.

    Who made up for it would kill each domain as it comes, and nothing could ever be done.
    No more than two in a row that have not begun to serve: a pool gives up after three, and other tests see to that.
    """
    due = began
    bad_starts = 0
    async with Switch() as sw:
        while True:
            await asyncio.sleep(max(0.01, due - time.monotonic()))
            domains = [handle for handle in env.domain_mgr._open if handle.pid is not None and handle.ending is None]
            if bad_starts >= 2:
                domains = [domain for domain in domains if domain.was_ready]
            if not domains:
                continue
            due = max(due, time.monotonic()) + rng.expovariate(1 / KILL_EVERY_SECONDS)
            if rng.random() < 0.05 and not bad_starts:
                bad_starts += 1
                kill(env.domain_mgr._provider._connection.process.pid, signal.SIGKILL)
                continue
            domain = rng.choice(sorted(domains, key=lambda domain: domain.id))
            bad_starts = 0 if domain.was_ready else bad_starts + 1
            number = rng.choice([signal.SIGKILL] * 6 + [signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT, signal.SIGSTOP])
            kill(domain.pid, number)
            if number == signal.SIGSTOP:
                sw.fork(let_continue, domain.pid, rng.random() / 2)


async def let_continue(process, seconds):
    try:
        await asyncio.sleep(seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


async def teller():
    while True:
        await asyncio.sleep(0.5)
        say_counts()


async def main(env):
    deadline = time.monotonic() + SECONDS
    async with Switch() as background:
        background.fork_daemon(teller)
        async with ExecutorPool(env.domain_mgr, domain_count=3) as pool:
            del running["program"]
            pools.append(pool)
            pool.submit_it = lambda f, *args: pool.submit(f, *args, weight=0.1)
            async with Switch() as sw:
                sw.fork_daemon(killer, env)
                for name in range(WORKERS):
                    sw.fork(worker, env, pool, name, deadline)
            running["program"] = "closing", next(numbers)
            names = [int(domain.name.rpartition("-")[2]) for domain in pool.stats().domains]
            counts["domains"] = max(names, default=0)
            for _ in range(3):  # what is no longer used is released as the others' collectors come to it
                await pool.submit(__import__, "gc", weight=1.0)
        references = env.domain_mgr.references
        for _ in range(100):
            if not references.exports:
                break
            import gc

            gc.collect()
            await asyncio.sleep(0.01)
        counts["leaked"] += len(references.exports) + len(references._holds)
        if references.exports or references._holds:
            problems.append(f"exports {len(references.exports)}, holds {len(references._holds)}")
    say_counts()


domains.run(main, link=LINK, dump_on_signal=signal.SIGUSR1)
