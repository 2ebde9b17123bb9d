"""`map` over a pool: reads its input only as far as results are taken, in groups whose size follows their cost.

At any time at most `buffer` items, or some groups a domain, are under way or wait to be taken. However the iteration
ends, nothing of it runs on: the groups under way are cancelled and waited for.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable
from functools import partial
from typing import Any, Literal, TypeVar

from domains.errors import Cancelled, NotPicklable
from domains.functions import Function, FunctionCatalogue, no_function
from domains.job import Job
from domains.pool.dispatch import Submissions
from domains.pool.group import run_group, run_group_async
from domains.pool.source import News, open_source
from domains.protocol import FULL_WEIGHT
from domains.references.registry import References

T = TypeVar("T")

_GROUPS_PER_DOMAIN = 4
_MOST_PLACES = 512
"""How many `async` jobs a map lets a domain run at a time, however little they weigh."""

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
    if not callable(f):
        raise no_function("a job", f)
    is_async = inspect.iscoroutinefunction(f) or inspect.iscoroutinefunction(type(f).__call__)
    function = catalogue.add(partial(run_group_async if is_async else run_group, f))
    group_size = _GroupSize(is_async, chunk, buffer, dispatch.size)
    return MapResults(_map(dispatch, function, references, xs, weight, ordered, buffer, group_size))


class MapResults(AsyncIterator[T]):
    """The results of a `map`: iterate over them with `async for`, or await them all as one list, once.

    To await what was iterated over, awaited or closed before raises RuntimeError.

    Where the iteration ends early, `await results.aclose()` cancels the rest and waits for its end; the event loop
    does that by itself, later, for results that were dropped.
    """

    def __init__(self, groups: AsyncGenerator[list[T], None]) -> None:
        self._groups = groups
        self._items = _flatten(groups)
        self._is_used = False

    def __aiter__(self) -> AsyncIterator[T]:
        self._is_used = True
        return self._items

    def __anext__(self) -> Awaitable[T]:
        self._is_used = True
        return self._items.__anext__()

    def __await__(self) -> Generator[Any, Any, list[T]]:
        return self._collect().__await__()

    async def _collect(self) -> list[T]:
        if self._is_used:
            raise RuntimeError("the results of this map were taken, in part or all, or given up: call map again")
        self._is_used = True
        results: list[T] = []
        async with contextlib.aclosing(self._groups):
            async for group in self._groups:
                results += group
        return results

    async def aclose(self) -> None:
        """Cancel what has not been taken, and wait until it has ended."""
        self._is_used = True
        await self._items.aclose()
        await self._groups.aclose()


async def _flatten(groups: AsyncGenerator[list[T], None]) -> AsyncGenerator[T, None]:
    async with contextlib.aclosing(groups):
        async for group in groups:
            for value in group:
                yield value


class _GroupSize:
    """How many items to send at a time: grows while groups are too quick, shrinks when they are slow."""

    def __init__(self, is_async: bool, chunk: int | Literal["auto"], buffer: int | None, domains: int) -> None:
        self._fixed = chunk != "auto" or is_async
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
    most_groups = dispatch.size * _groups_per_domain(function, weight)
    news = News("the next result of a map")
    source = open_source(xs, news.tell)
    sizes: dict[Job[Any], int] = {}  # of those under way or not taken yet
    next_ones: deque[Job[Any]] = deque()  # the same in the order in which they are taken, as far as that is known
    unfinished = 0
    read = 0
    taken = 0

    def ended(job: Job[Any]) -> None:
        nonlocal unfinished
        unfinished -= 1
        dispatch.count_items(0, sizes[job] - 1)
        if not ordered:
            next_ones.append(job)
        news.tell()

    try:
        while True:
            while not source.is_exhausted:
                room = group_size.items if buffer is None else min(group_size.items, buffer - taken)
                most = room if buffer is not None or len(sizes) < most_groups else 0
                # What waits for a busy domain can as well wait for more to go with it.
                group = source.take(1 if function.is_async or unfinished < 2 * dispatch.size else most, most, room)
                if not group:
                    break
                if (refusal := dispatch.refusal) is not None:
                    raise refusal
                job = _job_for(function, group, read, references, weight, dispatch)
                dispatch.push(job)
                dispatch.count_items(len(group) - 1, 0)
                sizes[job] = len(group)
                unfinished += 1
                taken += len(group)
                read += len(group)
                if ordered:
                    next_ones.append(job)
                if job.promise.is_resolved:  # as it was pushed, for no domain could be started
                    ended(job)
                else:
                    job.on_end = ended
            if next_ones and next_ones[0].promise.is_resolved:
                job = next_ones.popleft()
                values = await job.promise
                size = sizes.pop(job)
                group_size.learn(size, job.seconds)
                yield values
                taken -= size
            elif sizes or not source.is_exhausted:
                await news.wait()
            else:
                return
    finally:
        for job in sizes:
            job.cancel(Cancelled())
        await source.close()
        for job in sizes:
            await job.ended()


def _job_for(
    function: Function, group: list[Any], first: int, references: References, weight: int, dispatch: Submissions
) -> Job[Any]:
    """The job of a group, whose items begin with number `first` of the input. Raises NotPicklable, naming the item."""
    try:
        return Job(function, (group,), references, weight, dispatch)
    except NotPicklable as error:
        refusal = error
    for index, item in enumerate(group, first):
        payload = references.pickling.dumps(item, "the input of a map of %r: xs[%d]", function.name, index)
        references.discharge(payload.holds)
    raise refusal


def _groups_per_domain(function: Function, weight: int) -> int:
    """Enough to keep a domain busy: one of its places to run in, and one to wait in, for each that it has."""
    if not function.is_async:
        return _GROUPS_PER_DOMAIN
    places = _MOST_PLACES if weight == 0 else min(_MOST_PLACES, -(-FULL_WEIGHT // weight))
    return max(_GROUPS_PER_DOMAIN, 2 * places)
