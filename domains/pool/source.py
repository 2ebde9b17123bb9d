"""The input of a `map`, any iterable: what it has ready is taken from it, and nobody waits for the rest.

An async iterable is read by a task of its own, as far as was last asked for, so that results can be taken while the
next item is long in coming, or comes only because of them. Belongs to the loop's thread.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable
from itertools import islice
from typing import Any

from domains.scheduler.cancel import protect
from domains.scheduler.promise import Promise, Resolver

_CLOSED = -1


class News:
    """Tells the one who waits that something has changed since it last waited."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._told: Promise[None]
        self._resolver: Resolver[None]
        self._told, self._resolver = Promise.create(label)

    def tell(self) -> None:
        self._resolver.try_resolve(None)

    async def wait(self) -> None:
        await self._told
        self._told, self._resolver = Promise.create(self._label)


class Source(ABC):
    """Items, taken in groups."""

    @abstractmethod
    def take(self, least: int, most: int, ahead: int) -> list[Any]:
        """The next items that are there, at most so many, and none if there are too few but at the end.

        If none are taken, up to `ahead` of them may be read until the next time. Raises what the iterable has raised.
        """

    @property
    @abstractmethod
    def is_exhausted(self) -> bool:
        """Whether no more will come."""

    @abstractmethod
    async def close(self) -> None:
        """Read no further; waits, whatever comes, until nothing of it runs."""


def open_source(xs: Iterable[Any] | AsyncIterable[Any], tell: Callable[[], object]) -> Source:
    """The items of `xs`; `tell()` is called when the first has come, when as many as may be have, and at the end."""
    return _Awaited(xs, tell) if isinstance(xs, AsyncIterable) else _Ready(xs)


class _Ready(Source):
    """A plain iterable: all its items are there."""

    def __init__(self, xs: Iterable[Any]) -> None:
        self._items = iter(xs)
        self._exhausted = False

    def take(self, least: int, most: int, ahead: int) -> list[Any]:
        items = list(islice(self._items, most))
        self._exhausted = len(items) < most
        return items

    @property
    def is_exhausted(self) -> bool:
        return self._exhausted

    async def close(self) -> None:
        pass


class _Awaited(Source):
    """An async iterable, and the task that reads it."""

    def __init__(self, xs: AsyncIterable[Any], tell: Callable[[], object]) -> None:
        self._iterator = aiter(xs)
        self._tell = tell
        self._items: deque[Any] = deque()
        self._wanted = 0
        self._asked = News("a map's reader to be asked for more")
        self._failure: BaseException | None = None
        self._reader = asyncio.get_running_loop().create_task(self._read(), name="reader of a map")

    def take(self, least: int, most: int, ahead: int) -> list[Any]:
        items = self._items
        if len(items) < least and not self._reader.done():
            most = 0
        elif not items and self._failure is not None:
            raise self._failure
        group = [items.popleft() for _ in range(min(most, len(items)))]
        if not group:
            self._wanted = ahead
            self._asked.tell()
        return group

    @property
    def is_exhausted(self) -> bool:
        return self._reader.done() and not self._items and self._failure is None

    async def close(self) -> None:
        self._wanted = _CLOSED
        self._reader.cancel()
        with protect():
            while not self._reader.done():
                try:
                    await asyncio.wait((self._reader,))
                except asyncio.CancelledError:
                    continue

    async def _read(self) -> None:
        items = self._items
        try:
            while (wanted := self._wanted) != _CLOSED:
                if len(items) >= wanted:
                    await self._asked.wait()
                    continue
                while len(items) < wanted == self._wanted:
                    items.append(await anext(self._iterator))
                    if len(items) == 1:
                        self._tell()
                self._tell()
        except StopAsyncIteration:
            pass
        except BaseException as error:  # whoever takes the next item is to hear of it
            self._failure = error
        finally:
            asyncio.get_running_loop().call_soon(self._tell)  # when this task is done
