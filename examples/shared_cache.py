"""A cache that all domains share: whoever asks first for a key fetches its value, and all others wait for that.

    python examples/shared_cache.py [--domains N] [--keys N] [--readers N]

The cache's home knows one promise for each key. Who asks for a key gets its promise; the first one gets its resolver
as well, and so the task to keep it. So each key is fetched once, in the domain that needed it first, and several keys
at the same time in several domains. The cache is passed to jobs as an argument: all of it is one stream, by reference.

Nobody waits for a value that does not come. A fetch that fails fails for all who wait, and is tried again by the next
who asks. When the domain that fetches dies its promise fails with it (and so it does where the fetch itself met the
death of another domain), when the fetch is cancelled it says so, and in both cases one of those who waited fetches
instead. A key that is none fails for the one who asked.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import domains

K = TypeVar("K")
V = TypeVar("V")


class _GivenUp(Exception):
    """The fetch was cancelled; somebody else may have to do it."""


Entry = tuple[domains.Promise[V], domains.Resolver[V] | None]
"""What one who asks is told: where the value will be and, if it is for him to fetch it, how to say it."""


class SharedCache(Generic[K, V]):
    """`await cache.get(key, fetch)` in any domain that it was passed to. Made by `open_cache`."""

    def __init__(self, requests: domains.Stream[tuple[K, domains.Resolver[Entry[V]]]]) -> None:
        self._requests = requests

    async def get(self, key: K, fetch: Callable[[K], Awaitable[V] | V]) -> V:
        """The value of `key`, by `fetch(key)`, plain or `async`, if nobody has it yet.

        Raises what fetch raises, here or in the domain that was first; Closed after the end of the cache's switch;
        DomainDied if its home has died; TypeError for a key that cannot be hashed. Cancelling one who waits leaves the
        fetch alone.
        """
        hash(key)
        while True:
            promise, task = await self._ask(key)
            if task is not None:
                return await _fetch(key, fetch, task)
            try:
                return await promise
            except (_GivenUp, domains.DomainDied):
                continue  # if it was the home that died, asking again says so

    async def _ask(self, key: K) -> Entry[V]:
        answer: domains.Promise[Entry[V]]
        answer, resolver = domains.Promise.create(f"who fetches {key!r}")
        await self._requests.add((key, resolver))
        cancelled: asyncio.CancelledError | None = None
        while True:
            try:
                with domains.protect():  # it may be a task: not to hear of it would leave all others waiting
                    promise, task = await answer
                break
            except asyncio.CancelledError as error:  # a bare `task.cancel()`, from which nothing protects
                cancelled = error
        if cancelled is not None:
            if task is not None:
                task.fail(_GivenUp())
            raise cancelled
        return promise, task


async def _fetch(key: K, fetch: Callable[[K], Awaitable[V] | V], task: domains.Resolver[V]) -> V:
    try:
        value = fetch(key)
        if isinstance(value, Awaitable):
            value = await value
        task.resolve(value)
    except Exception as error:
        task.fail(error)
        raise
    except BaseException:
        task.fail(_GivenUp())
        raise
    return value


def open_cache(switch: domains.Switch) -> SharedCache[K, V]:
    """A cache whose home is this domain, for as long as this switch."""
    # Capacity 0: an add is done when it was taken, so that no request is left without an answer at the end.
    requests: domains.Stream[tuple[K, domains.Resolver[Entry[V]]]] = domains.Stream(0, label="cache")
    switch.fork_daemon(_serve, requests)
    switch.on_release(requests.close)
    return SharedCache(requests)


async def _serve(requests: domains.Stream[tuple[K, domains.Resolver[Entry[V]]]]) -> None:
    values: dict[K, domains.Promise[V]] = {}
    async for key, answer in requests:
        try:
            value = values.get(key)
            task = None
            if value is None or isinstance(value.peek(), domains.Raised):
                value, task = domains.Promise.create(f"value of {key!r}")
                values[key] = value
        except Exception as error:  # by the key's own methods
            answer.fail(error)
        else:
            answer.resolve((value, task))


def slow_square(number: int) -> tuple[int, str]:
    """Stands for a download or a long computation; says in which domain it was done."""
    time.sleep(0.01)
    return number * number, domains.current().name


async def read_all(cache: SharedCache[int, tuple[int, str]], keys: int, first: int) -> dict[int, tuple[int, str]]:
    """One reader, in one domain: wants every value, two at a time, from its own first key on."""
    order = [(first + key) % keys for key in range(keys)]
    values = await domains.fiber.map(lambda key: cache.get(key, slow_square), order, max_fibers=2)
    return dict(zip(order, values, strict=True))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A cache that all domains share, and that fetches each key once.")
    parser.add_argument("--domains", type=int, default=domains.recommended_domain_count(), metavar="N")
    parser.add_argument("--keys", type=int, default=50, metavar="N")
    parser.add_argument("--readers", type=int, default=8, metavar="N")
    options = parser.parse_args()
    if min(options.domains, options.keys, options.readers) < 1:
        parser.error("--domains, --keys and --readers must be at least 1")
    return options


async def main(env: domains.Environment, options: argparse.Namespace) -> int:
    started = env.clock.now()
    async with (
        domains.Switch("cache") as switch,
        domains.ExecutorPool(env.domain_mgr, domain_count=options.domains) as pool,
    ):
        cache: SharedCache[int, tuple[int, str]] = open_cache(switch)
        firsts = [reader * options.keys // options.readers for reader in range(options.readers)]
        jobs = [pool.submit_fork(switch, read_all, cache, options.keys, first, weight=0.5) for first in firsts]
        results = [await job for job in jobs]
    by_domain = Counter(name for _, name in results[0].values())
    print(f"{options.readers} readers got {options.keys} values each, fetched once")
    for name, count in sorted(by_domain.items()):
        print(f"{name} fetched {count}")
    print(f"{env.clock.now() - started:.2f} s")
    return 0 if all(result == results[0] for result in results) else 1


if __name__ == "__main__":
    sys.exit(domains.run(functools.partial(main, options=parse_arguments())))
