"""The programs that are timed: the same few lines, in the words of each library. Each takes how often to do it."""

from __future__ import annotations

import asyncio

import anyio
import trio

from domains.scheduler import Mutex, Semaphore, Stream, Switch
from domains.scheduler.fiber import yield_now

SWITCHING = 10
"""How many fibers take turns."""
JOINED = 100
"""How many fibers are started and joined at once."""


async def nothing() -> None:
    """What a fiber does that is there to be counted."""


# Taking turns: `count` times in each of ten fibers.


async def domains_turns(count: int) -> None:
    async def take_turns() -> None:
        for _ in range(count):
            await yield_now()

    async with Switch() as switch:
        for _ in range(SWITCHING):
            switch.fork(take_turns)


async def asyncio_turns(count: int) -> None:
    async def take_turns() -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for _ in range(SWITCHING):
            group.create_task(take_turns())


async def trio_turns(count: int) -> None:
    async def take_turns() -> None:
        for _ in range(count):
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(SWITCHING):
            nursery.start_soon(take_turns)


async def anyio_turns(count: int) -> None:
    async def take_turns() -> None:
        for _ in range(count):
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        for _ in range(SWITCHING):
            group.start_soon(take_turns)


# Starting a hundred fibers and waiting until they have ended.


async def domains_joins(count: int) -> None:
    for _ in range(count):
        async with Switch() as switch:
            for _ in range(JOINED):
                switch.fork(nothing)


async def asyncio_joins(count: int) -> None:
    for _ in range(count):
        async with asyncio.TaskGroup() as group:
            for _ in range(JOINED):
                group.create_task(nothing())


async def trio_joins(count: int) -> None:
    for _ in range(count):
        async with trio.open_nursery() as nursery:
            for _ in range(JOINED):
                nursery.start_soon(nothing)


async def anyio_joins(count: int) -> None:
    for _ in range(count):
        async with anyio.create_task_group() as group:
            for _ in range(JOINED):
                group.start_soon(nothing)


# One fiber hands items to another. A capacity of 1 makes nearly each item a switch; one of 100 rarely any.


async def domains_items(count: int, capacity: int) -> None:
    stream: Stream[int] = Stream(capacity)

    async def add() -> None:
        for item in range(count):
            await stream.add(item)

    async def take() -> None:
        for _ in range(count):
            await stream.take()

    async with Switch() as switch:
        switch.fork(add)
        switch.fork(take)


async def asyncio_items(count: int, capacity: int) -> None:
    queue: asyncio.Queue[int] = asyncio.Queue(capacity)

    async def put() -> None:
        for item in range(count):
            await queue.put(item)

    async def get() -> None:
        for _ in range(count):
            await queue.get()

    async with asyncio.TaskGroup() as group:
        group.create_task(put())
        group.create_task(get())


async def trio_items(count: int, capacity: int) -> None:
    sender, receiver = trio.open_memory_channel[int](capacity)

    async def send() -> None:
        for item in range(count):
            await sender.send(item)

    async def receive() -> None:
        for _ in range(count):
            await receiver.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(receive)


async def anyio_items(count: int, capacity: int) -> None:
    sender, receiver = anyio.create_memory_object_stream[int](capacity)

    async def send() -> None:
        for item in range(count):
            await sender.send(item)

    async def receive() -> None:
        for _ in range(count):
            await receiver.receive()

    async with sender, receiver, anyio.create_task_group() as group:
        group.start_soon(send)
        group.start_soon(receive)


# Locks that nobody else wants.


async def domains_mutex(count: int) -> None:
    mutex = Mutex()
    for _ in range(count):
        async with mutex.rw():
            pass


async def asyncio_mutex(count: int) -> None:
    lock = asyncio.Lock()
    for _ in range(count):
        async with lock:
            pass


async def trio_mutex(count: int) -> None:
    lock = trio.Lock()
    for _ in range(count):
        async with lock:
            pass


async def anyio_mutex(count: int) -> None:
    lock = anyio.Lock()
    for _ in range(count):
        async with lock:
            pass


async def domains_lock_unlock(count: int) -> None:
    mutex = Mutex()
    for _ in range(count):
        await mutex.lock()
        mutex.unlock()


async def asyncio_lock_unlock(count: int) -> None:
    lock = asyncio.Lock()
    for _ in range(count):
        await lock.acquire()
        lock.release()


async def trio_lock_unlock(count: int) -> None:
    lock = trio.Lock()
    for _ in range(count):
        await lock.acquire()
        lock.release()


async def anyio_lock_unlock(count: int) -> None:
    lock = anyio.Lock()
    for _ in range(count):
        await lock.acquire()
        lock.release()


async def domains_semaphore(count: int) -> None:
    semaphore = Semaphore(2)
    for _ in range(count):
        async with semaphore:
            pass


async def asyncio_semaphore(count: int) -> None:
    semaphore = asyncio.Semaphore(2)
    for _ in range(count):
        async with semaphore:
            pass


async def trio_semaphore(count: int) -> None:
    semaphore = trio.Semaphore(2)
    for _ in range(count):
        async with semaphore:
            pass


async def anyio_semaphore(count: int) -> None:
    semaphore = anyio.Semaphore(2)
    for _ in range(count):
        async with semaphore:
            pass
