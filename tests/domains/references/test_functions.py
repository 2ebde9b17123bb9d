"""Functions that refer to objects of their home: closures, partials and methods that hold streams or mutexes."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from domains import Promise, Stream, Switch

from .remote import in_pool


async def add(stream: Stream[int], item: int) -> int:
    await stream.add(item)
    return item


class Counter:
    def __init__(self) -> None:
        self.stream: Stream[int] = Stream(100)

    async def add(self, item: int) -> int:
        return await add(self.stream, item)


@pytest.mark.parametrize("kind", ["closure", "partial", "method", "lambda"])
def test_a_function_may_refer_to_an_object_of_its_home(link: str, kind: str) -> None:
    async def main(pool: Any) -> None:
        counter = Counter()
        stream = counter.stream

        async def closure(item: int) -> int:
            return await add(stream, item)

        functions = {
            "closure": closure,
            "partial": functools.partial(add, stream),
            "method": counter.add,
            "lambda": lambda item: add(stream, item),
        }
        for item in range(3):
            assert await pool.submit(functions[kind], item, weight=0.1) == item
        assert [stream.take_nonblocking() for _ in range(3)] == [0, 1, 2]

    in_pool(main, link)


def test_a_map_by_such_a_function_reaches_the_object_from_every_domain(link: str) -> None:
    async def main(pool: Any) -> None:
        stream: Stream[int] = Stream(100)
        results = await pool.map(functools.partial(add, stream), range(50), weight=0.2, chunk=5)
        assert results == list(range(50))
        assert sorted(stream.take_nonblocking() or 0 for _ in range(50)) == results

    in_pool(main, link, 2)


def test_a_plain_function_may_hold_a_resolver(link: str) -> None:
    async def main(pool: Any) -> None:
        promise: Promise[int]
        promise, resolver = Promise.create()
        await pool.submit(lambda: resolver.resolve(5), weight=1.0)
        assert await promise == 5

    in_pool(main, link)


def test_such_a_function_may_be_called_in_a_spawned_domain_and_from_a_nested_job(link: str) -> None:
    async def main(pool: Any) -> None:
        stream: Stream[int] = Stream(10)

        async def submit_again(item: int) -> int:
            async def inner() -> int:
                return await add(stream, item)

            result: int = await pool.submit(inner, weight=0.1)
            return result

        async with pool._manager.spawn() as domain, Switch() as switch:
            there = switch.fork_promise(domain.call, submit_again, 1)
            assert await pool.submit(submit_again, 2, weight=0.1) == 2
            assert await there == 1
        assert sorted(stream.take_nonblocking() or 0 for _ in range(2)) == [1, 2]

    in_pool(main, link)


def test_such_functions_leave_nothing_in_the_tables(link: str) -> None:
    async def main(pool: Any) -> None:
        before = len(pool._catalogue._by_code)
        for item in range(10):
            stream: Stream[int] = Stream(1)
            await pool.submit(lambda stream=stream, item=item: add(stream, item), weight=0.1)
        assert len(pool._catalogue._by_code) <= before + 1

    in_pool(main, link)
