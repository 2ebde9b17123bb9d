"""The parties that are measured, behind one face: start with two workers, run jobs, end.

A peer that is not installed is left out. Each runs the same functions, from `benchmarks.jobs`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import multiprocessing
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import domains

WORKERS = 2


class Contender:
    """One party. What it cannot do it does not override, and is left out of that question."""

    name = ""
    module: str | None = None

    @classmethod
    def is_installed(cls) -> bool:
        return cls.module is None or importlib.util.find_spec(cls.module) is not None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    async def one(self, f: Callable[..., Any], *args: Any) -> Any:
        """Run one plain job and return its result."""
        raise NotImplementedError

    async def many(self, f: Callable[..., Any], count: int) -> None:
        """Submit so many jobs one by one, and await every result."""
        raise NotImplementedError

    async def many_async(self, f: Callable[..., Any], count: int, weight: float) -> None:
        """The same with an async function."""
        raise NotImplementedError

    async def map(self, f: Callable[[Any], Any], xs: Iterable[Any], count: int) -> None:
        """Consume the results of mapping f over xs."""
        raise NotImplementedError

    async def each(self, f: Callable[[Any], Any], xs: list[Any]) -> list[Any]:
        """Run f once for each of xs, as jobs of their own, and return the results."""
        raise NotImplementedError

    def start(self, f: Callable[..., Any], *args: Any) -> Any:
        """Submit one plain job without waiting; returns what to wait for it by."""
        raise NotImplementedError

    async def end(self, started: list[Any]) -> None:
        """Wait for what was started."""
        for future in started:
            future.result()

    def workers(self) -> list[int]:
        """The process numbers of its workers."""
        raise NotImplementedError


class Ours(Contender):
    name = "domains"

    def __init__(self, env: domains.Environment) -> None:
        self._env = env

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with domains.ExecutorPool(self._env.domain_mgr, domain_count=WORKERS) as self._pool:
            async with domains.Switch() as self._switch:
                yield

    def start(self, f: Callable[..., Any], *args: Any) -> Any:
        return self._pool.submit_fork(self._switch, f, *args, weight=1.0)

    async def end(self, started: list[Any]) -> None:
        for promise in started:
            await promise

    async def one(self, f: Callable[..., Any], *args: Any) -> Any:
        return await self._pool.submit(f, *args, weight=1.0)

    async def many(self, f: Callable[..., Any], count: int) -> None:
        await self.many_async(f, count, 1.0)

    async def many_async(self, f: Callable[..., Any], count: int, weight: float) -> None:
        submit = self._pool.submit_fork
        async with domains.Switch() as switch:
            promises = [submit(switch, f, weight=weight) for _ in range(count)]
            for promise in promises:
                await promise

    async def map(self, f: Callable[[Any], Any], xs: Iterable[Any], count: int) -> None:
        await self._pool.map(f, xs, weight=1.0)

    async def each(self, f: Callable[[Any], Any], xs: list[Any]) -> list[Any]:
        async with domains.Switch() as switch:
            promises = [self._pool.submit_fork(switch, f, x, weight=1.0) for x in xs]
            return [await promise for promise in promises]
        raise AssertionError

    def workers(self) -> list[int]:
        return [domain.pid for domain in self._pool.stats().domains if domain.pid is not None]


class OursInFibers(Ours):
    """Each job awaited by a fiber of its own, as code does that has something to do with each result."""

    name = "domains, a fiber per job"

    async def many_async(self, f: Callable[..., Any], count: int, weight: float) -> None:
        async def submit() -> None:
            await self._pool.submit(f, weight=weight)

        async with domains.Switch() as switch:
            for _ in range(count):
                switch.fork(submit)

    def start(self, f: Callable[..., Any], *args: Any) -> Any:
        raise NotImplementedError

    async def map(self, f: Callable[[Any], Any], xs: Iterable[Any], count: int) -> None:
        raise NotImplementedError

    async def each(self, f: Callable[[Any], Any], xs: list[Any]) -> list[Any]:
        raise NotImplementedError


class _Futures(Contender):
    """Anything with the face of concurrent.futures."""

    def make(self) -> Any:
        raise NotImplementedError

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self._executor = self.make()
        try:
            yield
        finally:
            self._executor.shutdown()

    def start(self, f: Callable[..., Any], *args: Any) -> Any:
        return self._executor.submit(f, *args)

    async def one(self, f: Callable[..., Any], *args: Any) -> Any:
        return self._executor.submit(f, *args).result()

    async def many(self, f: Callable[..., Any], count: int) -> None:
        futures = [self._executor.submit(f) for _ in range(count)]
        for future in futures:
            future.result()

    async def each(self, f: Callable[[Any], Any], xs: list[Any]) -> list[Any]:
        return [future.result() for future in [self._executor.submit(f, x) for x in xs]]


class OursAsExecutor(_Futures):
    """Our pool behind the face of concurrent.futures, in a thread of its own."""

    name = "domains.PoolExecutor"

    def make(self) -> Any:
        return domains.PoolExecutor(WORKERS)


class StandardExecutor(_Futures):
    name = "ProcessPoolExecutor"

    def make(self) -> Any:
        return ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("forkserver"))

    async def map(self, f: Callable[[Any], Any], xs: Iterable[Any], count: int) -> None:
        for _ in self._executor.map(f, xs, chunksize=max(1, count // (WORKERS * 32))):
            pass

    def workers(self) -> list[int]:
        return list(self._executor._processes)


class Loky(_Futures):
    name = "loky"
    module = "loky"

    def make(self) -> Any:
        import loky

        return loky.ProcessPoolExecutor(WORKERS)

    def workers(self) -> list[int]:
        return list(self._executor._processes)


class StandardPool(Contender):
    name = "multiprocessing.Pool"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        with multiprocessing.get_context("forkserver").Pool(WORKERS) as self._pool:
            yield

    async def one(self, f: Callable[..., Any], *args: Any) -> Any:
        return self._pool.apply_async(f, args).get()

    async def many(self, f: Callable[..., Any], count: int) -> None:
        results = [self._pool.apply_async(f) for _ in range(count)]
        for result in results:
            result.get()

    def start(self, f: Callable[..., Any], *args: Any) -> Any:
        return self._pool.apply_async(f, args)

    async def end(self, started: list[Any]) -> None:
        for result in started:
            result.get()

    async def map(self, f: Callable[[Any], Any], xs: Iterable[Any], count: int) -> None:
        self._pool.map(f, xs, chunksize=max(1, count // (WORKERS * 4)))  # of those tried, the best for no-ops

    async def each(self, f: Callable[[Any], Any], xs: list[Any]) -> list[Any]:
        return self._pool.map(f, xs, chunksize=1)

    def workers(self) -> list[int]:
        return [process.pid for process in self._pool._pool]  # type: ignore[attr-defined]


class AioMultiprocess(Contender):
    name = "aiomultiprocess"
    module = "aiomultiprocess"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        import aiomultiprocess

        aiomultiprocess.set_start_method("forkserver")
        async with aiomultiprocess.Pool(WORKERS, childconcurrency=2000) as self._pool:
            yield

    async def one(self, f: Callable[..., Any], *args: Any) -> Any:
        raise NotImplementedError

    async def many_async(self, f: Callable[..., Any], count: int, weight: float) -> None:
        await asyncio.gather(*[self._pool.apply(f) for _ in range(count)])

    def workers(self) -> list[int]:
        return [process.pid for process in self._pool.processes]


class Ray(Contender):
    """Tasks, as its tutorials write them: a task of one core each, as many at a time as there are workers."""

    name = "Ray"
    module = "ray"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        import ray

        ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        self._ray = ray
        self._remote: dict[Callable[..., Any], Any] = {}
        try:
            yield
        finally:
            ray.shutdown()

    def _start(self, f: Callable[..., Any], *args: Any) -> Any:
        remote = self._remote.get(f)
        if remote is None:
            remote = self._remote[f] = self._ray.remote(f)
        return remote.remote(*args)

    async def one(self, f: Callable[..., Any], *args: Any) -> Any:
        return self._ray.get(self._start(f, *args))

    async def many(self, f: Callable[..., Any], count: int) -> None:
        self._ray.get([self._start(f) for _ in range(count)])

    async def each(self, f: Callable[[Any], Any], xs: list[Any]) -> list[Any]:
        return list(self._ray.get([self._start(f, x) for x in xs]))


def contenders(env: domains.Environment) -> list[Contender]:
    """Ours, and the peers that are installed."""
    peers = [OursAsExecutor, StandardExecutor, StandardPool, Loky, AioMultiprocess, Ray]
    return [Ours(env), OursInFibers(env), *(peer() for peer in peers if peer.is_installed())]


def missing() -> list[str]:
    return [str(peer.module) for peer in (Loky, AioMultiprocess, Ray) if not peer.is_installed()]
