"""What others offer for the same, measured the same way; and the bare link under ours."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

from domains.errors import ConnectionLost
from domains.ipc.socketpair import SocketPairLink, open_pair
from domains.scheduler.run import new_event_loop


def _answer_events(question: Any, answer: Any, count: int) -> None:
    for _ in range(count):
        question.wait()
        question.clear()
        answer.set()


def event_round_trips(count: int) -> float:
    """Setting an event of a manager's that is awaited elsewhere, until one that is set there: the median, in µs."""
    with multiprocessing.Manager() as manager:
        question, answer = manager.Event(), manager.Event()
        process = multiprocessing.Process(target=_answer_events, args=(question, answer, count))
        process.start()
        times = []
        for _ in range(count):
            started = time.perf_counter()
            question.set()
            answer.wait()
            times.append(time.perf_counter() - started)
            answer.clear()
        process.join()
    return statistics.median(times) * 1e6


def _lock_often(lock: Any, count: int, result: Any) -> None:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        lock.acquire()
        lock.release()
        times.append(time.perf_counter() - started)
    result.put(statistics.median(times) * 1e6)


def proxy_locks(count: int) -> float:
    """Locking and unlocking a manager's lock, in a process that is not the manager's: the median, in µs."""
    with multiprocessing.Manager() as manager:
        result: Any = multiprocessing.SimpleQueue()
        lock = manager.Lock()  # the manager forgets what nobody here holds
        process = multiprocessing.Process(target=_lock_often, args=(lock, count, result))
        process.start()
        median: float = result.get()
        process.join()
    return median


def _produce(queue: Any, count: int) -> None:
    for number in range(count):
        queue.put(number)


def queue_rate(count: int) -> float:
    """Items per second through a `multiprocessing.Queue`, from the first on."""
    queue: Any = multiprocessing.Queue(1000)
    process = multiprocessing.Process(target=_produce, args=(queue, count))
    process.start()
    queue.get()
    started = time.perf_counter()
    for _ in range(count - 1):
        queue.get()
    rate = count / (time.perf_counter() - started)
    process.join()
    return rate


class _Codec:
    def encode(self, messages: list[Any], /) -> bytes:
        return pickle.dumps(messages)

    def decode(self, envelope: bytes | memoryview, /) -> list[Any]:
        messages: list[Any] = pickle.loads(envelope)
        return messages


class _Echo:
    """Sends back what comes."""

    def __init__(self, link: SocketPairLink, gone: asyncio.Event) -> None:
        self._link = link
        self._gone = gone

    def on_messages(self, messages: list[Any], buffers: list[memoryview], /) -> None:
        for message in messages:
            self._link.send(message)

    def on_gone(self, reason: ConnectionLost | None, /) -> None:
        self._gone.set()


class _Asker:
    """Sends a number each time that one comes, and takes the times."""

    def __init__(self, link: SocketPairLink, count: int, done: asyncio.Event) -> None:
        self._link = link
        self._left = count
        self._done = done
        self.times: list[float] = []

    def ask(self) -> None:
        self._started = time.perf_counter()
        self._link.send(self._left)

    def on_messages(self, messages: list[Any], buffers: list[memoryview], /) -> None:
        self.times.append(time.perf_counter() - self._started)
        self._left -= 1
        if self._left:
            self.ask()
        else:
            self._done.set()

    def on_gone(self, reason: ConnectionLost | None, /) -> None:
        self._done.set()


async def _echo(descriptor: int) -> None:
    gone = asyncio.Event()
    link = SocketPairLink(_Codec(), socket.socket(fileno=descriptor), "the asker")
    link.start(_Echo(link, gone))
    await gone.wait()


def link_round_trips(count: int) -> float:
    """A message over a link between two processes, and one back: the median, in µs. Blocks the caller's loop."""
    here, there = open_pair()
    program = [sys.executable, "-m", "benchmarks.references.peers", str(there.fileno())]
    times: list[float] = []

    async def ask() -> None:
        done = asyncio.Event()
        link = SocketPairLink(_Codec(), here, "the echo")
        asker = _Asker(link, count, done)
        link.start(asker)
        asker.ask()
        await done.wait()
        times.extend(asker.times)
        done.clear()
        link.close()
        await done.wait()

    with subprocess.Popen(program, pass_fds=[there.fileno()], env=os.environ) as process:
        there.close()
        running = asyncio._get_running_loop()
        asyncio._set_running_loop(None)  # a loop of its own, in the middle of the other's turn
        try:
            loop = new_event_loop()
            loop.run_until_complete(ask())
            loop.close()
        finally:
            asyncio._set_running_loop(running)
        process.wait()
    return statistics.median(times) * 1e6


if __name__ == "__main__":
    event_loop = new_event_loop()
    event_loop.run_until_complete(_echo(int(sys.argv[1])))
    event_loop.close()
