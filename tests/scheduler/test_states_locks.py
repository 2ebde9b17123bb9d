"""Mutex, semaphore, condition, pool and lazy under random operations, cancellations and time-outs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains import Condition, Lazy, Mutex, Poisoned, Pool, Semaphore, fiber
from domains.scheduler.clock import sleep

from .interleaving import Interleaving, play, programs, thorough


class Broken(Exception):
    """Raised inside a critical section."""


async def turns(count: int) -> None:
    for _ in range(count):
        await fiber.yield_now()


@thorough
@given(programs("lock", "ro", "lock", "try", "rw protected", "rw"))
def test_a_mutex_has_one_holder_at_a_time_and_ends_free_or_poisoned(
    steps: list[tuple[Any, ...]],
) -> None:  # S44 S46 S49
    mutex = Mutex()
    inside: list[int] = []
    waiting: list[int] = []
    poisoned = False

    def begin(interleaving: Interleaving, step: tuple[Any, ...]) -> None:
        kind, seconds, count = step

        async def section(number: int, poisons: bool) -> None:
            nonlocal poisoned
            assert not inside
            assert not poisoned
            inside.append(number)
            try:
                await turns(count)
            except BaseException:
                poisoned = poisoned or poisons
                raise
            finally:
                inside.remove(number)

        async def run(number: int) -> None:
            if kind == "rw":
                async with mutex.rw():
                    await section(number, True)
            elif kind == "rw protected":
                async with mutex.rw(protect=True):
                    await section(number, True)
            elif kind == "ro":
                async with mutex.ro():
                    await section(number, False)
            elif kind == "try":
                if mutex.try_lock():
                    try:
                        await section(number, False)
                    finally:
                        mutex.unlock()
            else:
                waiting.append(number)
                await mutex.lock()
                try:
                    await section(number, False)
                finally:
                    mutex.unlock()

        interleaving.begin(kind, run, seconds)

    async def finish(interleaving: Interleaving) -> None:
        await sleep(100)
        assert all(operation.state != "running" for operation in interleaving.begun)
        assert not inside
        assert mutex.is_poisoned is poisoned
        assert not mutex.is_locked
        assert not mutex._waiters
        for operation in interleaving.begun:
            assert operation.state != "failed" or (poisoned and isinstance(operation.error, Poisoned))
        if not poisoned:
            assert mutex.try_lock()
            mutex.unlock()
        locked = [operation.number for operation in interleaving.done("lock")]
        if not any(step[0] == "pause" for step in steps):
            assert locked == [number for number in waiting if number in locked]

    play(steps, begin, finish)


@thorough
@given(st.integers(0, 3), programs("acquire", "acquire", "release"))
def test_permits_are_neither_lost_nor_made(permits: int, steps: list[tuple[Any, ...]]) -> None:  # S49 S50
    semaphore = Semaphore(permits, bounded=False)
    released = 0

    def begin(interleaving: Interleaving, step: tuple[Any, ...]) -> None:
        nonlocal released
        kind, seconds, _ = step
        if kind == "release":
            released += 1
            semaphore.release()
        else:
            interleaving.begin("acquire", lambda _: semaphore.acquire(), seconds)

    async def finish(interleaving: Interleaving) -> None:
        await sleep(10)
        acquired = interleaving.done("acquire")
        running = [operation for operation in interleaving.begun if operation.state == "running"]
        assert semaphore.value + len(acquired) == permits + released
        assert not (running and semaphore.value)
        # Whoever waits still came after everybody who was served.
        assert all(one.number > other.number for one in running for other in acquired)
        interleaving.cancel_all()
        await sleep(1)
        assert semaphore.value + len(interleaving.done("acquire")) == permits + released

    play(steps, begin, finish)


@thorough
@given(programs("wait", "wait", "wait_no_mutex", "loop", "broadcast", "section"))
def test_whoever_waits_on_a_condition_holds_the_mutex_afterwards(steps: list[tuple[Any, ...]]) -> None:  # S51 S52 S53
    mutex = Mutex()
    condition = Condition()
    broadcasts = 0
    inside: list[int] = []

    def begin(interleaving: Interleaving, step: tuple[Any, ...]) -> None:
        nonlocal broadcasts
        kind, seconds, count = step

        async def wait(number: int) -> None:
            async with mutex.ro():
                try:
                    await condition.wait(mutex)
                finally:
                    assert mutex._is_mine()
                    assert not inside
                    inside.append(number)
                    try:
                        await turns(count)
                    finally:
                        inside.remove(number)

        async def section(number: int) -> None:
            async with mutex.ro():
                assert not inside
                inside.append(number)
                try:
                    await turns(count)
                finally:
                    inside.remove(number)

        async def loop(_: int) -> int:
            begun = broadcasts
            return await condition.loop_no_mutex(lambda: broadcasts if broadcasts > begun else None)

        if kind == "broadcast":
            broadcasts += 1
            condition.broadcast()
        elif kind == "wait":
            interleaving.begin(kind, wait, seconds)
        elif kind == "section":
            interleaving.begin(kind, section, seconds)
        elif kind == "loop":
            interleaving.begin(kind, loop, seconds)
        else:
            interleaving.begin(kind, lambda _: condition.wait_no_mutex(), seconds)

    async def finish(interleaving: Interleaving) -> None:
        nonlocal broadcasts
        for _ in range(3):
            await sleep(10)
            broadcasts += 1
            condition.broadcast()
        await sleep(10)
        assert all(operation.state in ("done", "cancelled") for operation in interleaving.begun), interleaving.begun
        assert not mutex.is_locked
        assert not mutex.is_poisoned
        assert not len(condition._waiters)

    play(steps, begin, finish)


@thorough
@given(st.integers(1, 2), programs("use", "use", "use broken", "use surplus"), st.lists(st.booleans(), max_size=20))
def test_a_pool_keeps_its_size_and_every_resource_one_user(
    size: int, steps: list[tuple[Any, ...]], fates: list[bool]
) -> None:  # S54 S55
    alive: set[object] = set()
    used: set[object] = set()
    surplus = 0
    fate = iter(fates)

    async def create() -> object:
        assert len(alive) < size + surplus
        await fiber.yield_now()
        if next(fate, False):
            raise Broken("creation")
        resource = object()
        alive.add(resource)
        return resource

    async def validate(resource: object) -> bool:
        assert resource not in used
        await fiber.yield_now()
        return not next(fate, False)

    async def dispose(resource: object) -> None:
        alive.remove(resource)
        await fiber.yield_now()
        if next(fate, False):
            raise Broken("disposal")

    pool = Pool(size, create, validate, dispose)

    def begin(interleaving: Interleaving, step: tuple[Any, ...]) -> None:
        kind, seconds, count = step

        async def use(_: int) -> None:
            nonlocal surplus
            never_wait = kind == "use surplus"
            surplus += never_wait
            try:
                async with pool.use(never_wait=never_wait) as resource:
                    assert resource in alive
                    assert resource not in used
                    used.add(resource)
                    try:
                        await turns(count)
                        if kind == "use broken":
                            raise Broken("use")
                    finally:
                        used.remove(resource)
            finally:
                surplus -= never_wait

        interleaving.begin(kind, use, seconds)

    async def finish(interleaving: Interleaving) -> None:
        await sleep(100)
        assert all(operation.state != "running" for operation in interleaving.begun)
        assert all(isinstance(operation.error, Broken | None) for operation in interleaving.begun)
        assert len(alive) <= size
        assert not len(pool._waiters)
        assert pool._unmade + len(pool._idle) == size
        assert len(alive) == len(pool._idle)

    play(steps, begin, finish)


@pytest.mark.parametrize("policy", ["protect", "restart", "record"])
@thorough
@given(programs("force"), st.integers(0, 4), st.booleans())
def test_a_lazy_runs_once_unless_it_is_given_up(
    policy: Any, steps: list[tuple[Any, ...]], length: int, fails: bool
) -> None:  # S56
    runs = 0
    finished = 0

    async def compute() -> int:
        nonlocal runs, finished
        runs += 1
        assert runs == finished + 1, "one run at a time"
        try:
            await turns(length)
            if fails:
                raise Broken
            return runs
        finally:
            finished += 1

    lazy = Lazy(compute, policy)

    def begin(interleaving: Interleaving, step: tuple[Any, ...]) -> None:
        interleaving.begin("force", lambda _: lazy.force(), step[1])

    async def finish(interleaving: Interleaving) -> None:
        await sleep(100)
        done = interleaving.done("force")
        assert all(operation.state != "running" for operation in interleaving.begun)
        assert len({operation.value for operation in done}) <= 1
        failed = [operation for operation in interleaving.begun if operation.state == "failed"]
        assert all(isinstance(operation.error, Broken) for operation in failed)
        assert len({id(operation.error) for operation in failed}) <= 1
        assert not (done and failed)
        foreign = any(step[0] == "cancel" and step[2] for step in steps)
        if policy == "record" or (policy == "protect" and not foreign):
            assert runs <= 1

    play(steps, begin, finish, spreads=policy == "record")
