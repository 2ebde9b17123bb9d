"""The jobs of the tests of weights. Here, as each domain imports this file: hypothesis takes a quarter of a second."""

import asyncio
import os
import signal
import time

_log: list[tuple[str, int]] = []


async def run_for_turns(number, turns, log):
    _log.append(("begin", number))
    try:
        for _ in range(turns):
            await asyncio.sleep(0)
    finally:
        _log.append(("end", number))


def run_plain(number, turns, log):
    _log.append(("begin", number))
    sum(range(turns * 100))
    _log.append(("end", number))


def take_log():
    global _log
    taken, _log = _log, []
    return taken


def be_busy(begin, fifo):
    begin.touch()
    with open(fifo) as file:
        file.read()


_met = 0
_all_are_here: asyncio.Event | None = None


async def meet(count):
    global _met, _all_are_here
    _all_are_here = _all_are_here or asyncio.Event()
    _met += 1
    if _met == count:
        _all_are_here.set()
    await _all_are_here.wait()


def place():
    _log.append(("begin", len(_log)))
    return len(_log)


def die():
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3600)
