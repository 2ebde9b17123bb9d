"""`map` over a pool: reads its input only as far as results are taken, in groups whose size follows their cost.

At any time at most `buffer` items (or `_GROUPS_PER_DOMAIN` groups a domain) are under way or wait to be taken. However
the iteration ends, nothing of it runs on: the groups under way are cancelled and waited for.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable
from functools import partial
from itertools import islice
from typing import Any, Literal, TypeVar

from domains.errors import Cancelled
from domains.functions import Function, FunctionCatalogue
from domains.job import Job
from domains.pool.dispatch import Submissions
from domains.pool.group import run_group, run_group_async
from domains.references.registry import References
from domains.scheduler.stream import Stream

T = TypeVar("T")

_GROUPS_PER_DOMAIN = 4
_GROUP_SECONDS = 0.005
"""How long a group should take: long against the cost of sending it, short against a user's patience."""

_MOST_IN_GROUP = 8192
_GROWTH = 8


def map_over(
    dispatch: Submissions,
    catalogue: FunctionCatalogue,
    references: References,
    f: Callable[[Any], Any],
    xs: Iterable[Any] | AsyncIterable[Any],
    weight: int,
    ordered: bool,
    buffer: int | None,
    chunk: int | Literal["auto"],
) -> MapResults[Any]:
    """Check the arguments, at the call and not at the first result, and start nothing yet."""
    if chunk != "auto" and (type(chunk) is not int or chunk < 1):
        raise ValueError(f"chunk must be 'auto' or an int of at least 1, but is {chunk!r}")
    if buffer is not None and (type(buffer) is not int or buffer < 1):
        raise ValueError(f"buffer must be None or an int of at least 1, but is {buffer!r}")
    run = run_group_async if inspect.iscoroutinefunction(f) else run_group
    function = catalogue.add(partial(run, f))
    group_size = _GroupSize(f, chunk, buffer, dispatch.size)
    return MapResults(_map(dispatch, function, references, xs, weight, ordered, buffer, group_size))


class MapResults(AsyncIterator[T]):
    """The results of a `map`: iterate over them with `async for`, or await them all as one list. Used once.

    Where the iteration ends early, `await results.aclose()` cancels the rest and waits for its end; the event loop
    does that by itself, later, for results that were dropped.
    """

    def __init__(self, groups: AsyncGenerator[list[T], None]) -> None:
        self._groups = groups
        self._items = _flatten(groups)

    def __aiter__(self) -> AsyncIterator[T]:
        return self._items

    def __anext__(self) -> Awaitable[T]:
        return self._items.__anext__()

    def __await__(self) -> Generator[Any, Any, list[T]]:
        return self._collect().__await__()

    async def _collect(self) -> list[T]:
        results: list[T] = []
        async with contextlib.aclosing(self._groups):
            async for group in self._groups:
                results += group
        return results

    async def aclose(self) -> None:
        """Cancel what has not been taken, and wait until it has ended."""
        await self._items.aclose()
        await self._groups.aclose()


async def _flatten(groups: AsyncGenerator[list[T], None]) -> AsyncGenerator[T, None]:
    async with contextlib.aclosing(groups):
        async for group in groups:
            for value in group:
                yield value


class _GroupSize:
    """How many items to send at a time: grows while groups are too quick, shrinks when they are slow."""

    def __init__(self, f: Callable[[Any], Any], chunk: int | Literal["auto"], buffer: int | None, domains: int) -> None:
        self._fixed = chunk != "auto" or inspect.iscoroutinefunction(f)
        self.items = chunk if chunk != "auto" else 1
        self._most = _MOST_IN_GROUP if buffer is None else max(1, min(_MOST_IN_GROUP, buffer // (2 * domains)))

    def learn(self, items: int, seconds: float) -> None:
        if not self._fixed:
            fitting = int(items * _GROUP_SECONDS / max(seconds, 1e-6))
            self.items = max(1, min(fitting, self.items * _GROWTH, self._most))


async def _map(
    dispatch: Submissions,
    function: Function,
    references: References,
    xs: Iterable[Any] | AsyncIterable[Any],
    weight: int,
    ordered: bool,
    buffer: int | None,
    group_size: _GroupSize,
) -> AsyncGenerator[list[Any], None]:
    most = dispatch.size * _GROUPS_PER_DOMAIN if buffer is None else buffer
    read = _reader(xs)
    under_way: deque[tuple[Job[Any], int]] = deque()
    sizes: dict[Job[Any], int] = {}
    finished: Stream[Job[Any]] = Stream(2**62)
    exhausted = False
    taken = 0

    def ended(job: Job[Any]) -> None:
        if not ordered:
            finished.add_nonblocking(job)

    try:
        while True:
            while not exhausted and (len(sizes) < most if buffer is None else taken < buffer):
                room = group_size.items if buffer is None else min(group_size.items, buffer - taken)
                group = await read(room)
                exhausted = len(group) < room
                if group:
                    if dispatch.refusal is not None:
                        raise dispatch.refusal
                    job: Job[Any] = Job(function, (group,), references, weight, dispatch)
                    job.on_end = ended
                    dispatch.push(job)
                    dispatch.count_items(len(group) - 1, 0)
                    sizes[job] = len(group)
                    taken += len(group)
                    under_way.append((job, len(group)))
            if not sizes:
                return
            if ordered:
                job, _ = under_way.popleft()
            else:
                job = await finished.take()
            values = await job.promise
            size = sizes.pop(job)
            dispatch.count_items(0, size - 1)
            group_size.learn(size, job.seconds)
            yield values
            taken -= size
    finally:
        for job in sizes:
            job.cancel(Cancelled())
        for job in sizes:
            await job.ended()


def _reader(xs: Iterable[Any] | AsyncIterable[Any]) -> Callable[[int], Awaitable[list[Any]]]:
    """A function that reads the next so many items; fewer come only at the end."""
    if isinstance(xs, AsyncIterable):
        waiting = aiter(xs)

        async def read_waiting(count: int) -> list[Any]:
            items: list[Any] = []
            while len(items) < count:
                try:
                    items.append(await anext(waiting))
                except StopAsyncIteration:
                    break
            return items

        return read_waiting
    ready = iter(xs)

    async def read_ready(count: int) -> list[Any]:
        return list(islice(ready, count))

    return read_ready
