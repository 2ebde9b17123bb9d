"""A program and its domains where uvloop is not installed: on asyncio's own loop they do the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import asyncio, os, signal, sys, time
import pytest
import domains
from domains import Cancelled, DomainDied, ExecutorPool, Stream, Switch, fiber

def loop_type():
    loop = asyncio.get_running_loop()
    return f"{type(loop).__module__}.{type(loop).__qualname__}"

async def loop_type_there():
    await asyncio.sleep(0)
    return loop_type()

async def count_into(stream):
    for n in range(1000):
        await stream.add(n)
    stream.close()

async def tell_and_wait(stream):
    await stream.add("begun")
    await fiber.await_cancel()

def kill_oneself():
    os.kill(os.getpid(), signal.SIGKILL)

async def main(env):
    types = [loop_type()]
    async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
        types.append(await pool.submit(loop_type_there, weight=0.5))
        pid = await pool.submit(os.getpid, weight=1.0)
        assert await pool.map(abs, range(-1000, 0), weight=1.0) == list(range(1000, 0, -1))

        stream = Stream(10)
        async with Switch() as sw:
            pool.submit_fork(sw, count_into, stream, weight=0.5)
            assert [n async for n in stream] == list(range(1000))

        stream = Stream(0)
        async with Switch() as sw:
            waiting = pool.submit_fork(sw, tell_and_wait, stream, weight=0.5)
            assert await stream.take() == "begun"
            sw.cancel()
        with pytest.raises(Cancelled):
            await waiting
        with pytest.raises(TimeoutError):
            await pool.submit(time.sleep, 3600, weight=1.0, timeout=0.1)
        assert await pool.submit(os.getpid, weight=1.0) == pid

        with pytest.raises(DomainDied):
            await pool.submit(kill_oneself, weight=1.0)
        assert await pool.submit(os.getpid, weight=1.0) != pid
    print(*types)

domains.run(main, link=sys.argv[1])
"""


def test_a_pool_works_on_the_loop_of_asyncio(link: str, tmp_path: Path) -> None:
    (tmp_path / "uvloop.py").write_text("raise ImportError('there is no uvloop here')\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, link],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["asyncio.unix_events._UnixSelectorEventLoop"] * 2
