"""The smaller examples: what they are for holds, whoever dies or is cancelled, and they run as programs."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import domains

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """The module that the test is parametrised with, importable in its domains too."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    spec = importlib.util.spec_from_file_location(request.param, EXAMPLES / f"{request.param}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, request.param, module)
    spec.loader.exec_module(module)
    return module


philosophers = pytest.mark.parametrize("example", ["philosophers"], indirect=True)
shared_cache = pytest.mark.parametrize("example", ["shared_cache"], indirect=True)


@philosophers
@pytest.mark.parametrize("seats", [2, 5])
def test_all_philosophers_eat_and_never_beside_each_other(link: str, example: ModuleType, seats: int) -> None:
    async def main(env: domains.Environment) -> Any:
        return await example.dine(env, seats, 10)

    dinner = domains.run(main, link=link)  # type: ignore[arg-type]
    assert [dinner.meals(seat) for seat in range(seats)] == [10] * seats
    assert example.neighbours_who_ate_together(dinner, seats) == []


@philosophers
def test_a_philosopher_who_dies_leaves_his_forks_to_the_others(link: str, example: ModuleType) -> None:
    async def main(env: domains.Environment) -> Any:
        return await example.dine(env, 3, 5, dies=1)

    dinner = domains.run(main, link=link)  # type: ignore[arg-type]
    assert dinner.dead == [1]
    assert [dinner.meals(seat) for seat in range(3)] == [5, 0, 5]


@philosophers
def test_neighbours_who_eat_together_would_be_noticed(example: ModuleType) -> None:
    dinner = example.Dinner([(0, "eats"), (1, "eats"), (1, "thinks"), (0, "thinks")], [])
    assert example.neighbours_who_ate_together(dinner, 3) == [(1, 0)]


@shared_cache
def test_each_key_is_fetched_once_for_all_domains(link: str, example: ModuleType) -> None:
    async def main(env: domains.Environment) -> list[str]:
        told: domains.Stream[str] = domains.Stream(100)
        async with domains.Switch() as switch, domains.ExecutorPool(env.domain_mgr, domain_count=2) as pool:
            cache = example.open_cache(switch)

            async def fetch(key: int) -> int:
                await told.add(f"key {key}")
                return key * key

            async def read(_: int) -> list[int]:
                return [await cache.get(key, fetch) for key in range(10)]

            assert await pool.map(read, range(6), weight=0.3, chunk=1) == [[key * key for key in range(10)]] * 6
            return [told.take_nonblocking() or "" for _ in range(len(told))]

    assert sorted(domains.run(main, link=link)) == [f"key {key}" for key in range(10)]  # type: ignore[arg-type]


@shared_cache
def test_a_fetch_that_fails_fails_for_all_who_wait_and_is_tried_again(example: ModuleType) -> None:
    async def main() -> None:
        async with domains.Switch() as switch:
            cache = example.open_cache(switch)
            go, started = domains.Promise.create()

            async def fail(key: str) -> str:
                await go
                raise OSError(key)

            first = switch.fork_promise(cache.get, "a", fail)
            second = switch.fork_promise(cache.get, "a", fail)
            for _ in range(10):
                await domains.fiber.yield_now()
            started.resolve(None)
            for each in (first, second):
                with pytest.raises(OSError, match="a"):
                    await each
            assert await cache.get("a", str.upper) == "A"

    domains.testing.run(main)


@shared_cache
def test_when_the_one_who_fetches_is_cancelled_another_one_fetches(example: ModuleType) -> None:
    async def main() -> None:
        async with domains.Switch() as switch:
            cache = example.open_cache(switch)

            async def never(key: str) -> str:
                return await domains.fiber.await_cancel()

            async def give_up() -> None:
                with domains.move_on_after(1):
                    await cache.get("a", never)

            switch.fork(give_up)
            await domains.fiber.yield_now()
            assert await cache.get("a", str.upper) == "A"

    domains.testing.run(main)


class BadKey:
    """Is hashed where it is made, and cannot be compared with others at the cache's home."""

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise ValueError("this key is like no other")


@shared_cache
def test_a_key_that_is_none_fails_for_the_one_who_asks_alone(example: ModuleType) -> None:
    async def main() -> None:
        async with domains.Switch() as switch:
            cache = example.open_cache(switch)
            with pytest.raises(TypeError, match="unhashable"):
                await cache.get([], str)
            assert await cache.get(1, str) == "1"
            with pytest.raises(ValueError, match="like no other"):
                await cache.get(BadKey(), str)
            assert await cache.get(2, str) == "2"

    domains.testing.run(main)


@shared_cache
def test_a_task_that_is_cancelled_as_it_is_to_fetch_leaves_that_to_another(example: ModuleType) -> None:
    async def main() -> None:
        async with domains.Switch() as switch:
            cache = example.open_cache(switch)
            for turns in range(12):  # from before it has asked until after it was answered
                task = asyncio.ensure_future(cache.get(turns, lambda key: domains.fiber.await_cancel()))
                for _ in range(turns):
                    await domains.fiber.yield_now()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await cache.get(turns, str) == str(turns)

    domains.testing.run(main)


@shared_cache
def test_when_the_domain_that_fetches_dies_another_one_fetches(link: str, example: ModuleType) -> None:
    async def main(env: domains.Environment) -> str:
        async with domains.Switch() as switch:
            cache = example.open_cache(switch)
            promise, fetching = domains.Promise.create()

            async def die(key: str) -> str:
                fetching.resolve(None)
                return await domains.fiber.await_cancel()

            async with env.domain_mgr.spawn() as domain:
                there = switch.fork_promise(domain.call, cache.get, "a", die)
                await promise
                waiting = switch.fork_promise(cache.get, "a", str.upper)
                assert domain.pid is not None
                os.kill(domain.pid, signal.SIGKILL)
                with pytest.raises(domains.DomainDied):
                    await there
                return str(await waiting)

    assert domains.run(main, link=link) == "A"  # type: ignore[arg-type]


@shared_cache
def test_the_end_of_the_switch_closes_the_cache(example: ModuleType) -> None:
    async def main() -> None:
        async with domains.Switch() as switch:
            cache = example.open_cache(switch)
        with pytest.raises(domains.Closed):
            await cache.get("a", str.upper)

    domains.testing.run(main)


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_philosophers_run_as_a_program() -> None:
    done = run("philosophers.py", "--seats", "3", "--meals", "4", "--dies", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:4] == [
        "philosopher 0 ate 4 meals",
        "philosopher 1 ate 4 meals",
        "philosopher 2 ate 0 meals, and died",
        "0 times two neighbours ate at once",
    ]


def test_the_shared_cache_runs_as_a_program() -> None:
    done = run("shared_cache.py", "--domains", "2", "--keys", "6", "--readers", "3")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "3 readers got 6 values each, fetched once"
    assert sum(int(line.split()[-1]) for line in lines[1:-1]) == 6


@pytest.mark.parametrize(
    "arguments",
    [
        ["philosophers.py", "--seats", "1"],
        ["philosophers.py", "--dies", "7"],
        ["philosophers.py", "--meals", "0"],
        ["shared_cache.py", "--keys", "0"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_explained(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "error" in done.stderr
    assert "Traceback" not in done.stderr
