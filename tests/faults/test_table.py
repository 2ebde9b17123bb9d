"""Every operation under every fault: each awaited thing ends, with its result or with the death; then all goes on.

The rows and columns are those of the table in docs/reliability.md, which a test below compares.
"""

import os
import re
import signal
from pathlib import Path

import pytest

import domains
from domains import DomainDied, DomainUnavailable, ExecutorPool, Promise, Switch, fiber, move_on_after

PATIENCE_SECONDS = 20.0


async def _wait(start, *_):
    start.resolve(os.getpid())
    await fiber.await_cancel()


def _spin(start, *_):
    start.resolve(os.getpid())
    while True:
        pass


async def _hold(start, resolver):
    start.resolve(os.getpid())
    await fiber.await_cancel()
    resolver.resolve(None)


async def _echo(value):
    return value


# Operations: begin, in a switch, something that ends only by the fault; return the promise and who runs it


def submit_async(env, pool, domain, sw, start):
    return pool.submit_fork(sw, _wait, start, weight=1.0)


def submit_plain(env, pool, domain, sw, start):
    return pool.submit_fork(sw, _spin, start, weight=1.0)


def map_over(env, pool, domain, sw, start):
    async def consume():
        async for _ in pool.map(_wait_for, [start], weight=1.0):
            pass

    return sw.fork_promise(consume)


async def _wait_for(start):
    await _wait(start)


def run(env, pool, domain, sw, start):
    return sw.fork_promise(env.domain_mgr.run, _wait, start)


def call(env, pool, domain, sw, start):
    return sw.fork_promise(domain.call, _wait, start)


def await_promise(env, pool, domain, sw, start):
    promise, resolver = Promise.create()
    sw.fork_promise(domain.call, _hold, start, resolver)
    return promise


OPERATIONS = {
    "submit, async job": submit_async,
    "submit, plain job": submit_plain,
    "map": map_over,
    "run": run,
    "call": call,
    "await promise": await_promise,
}


# Faults, each with whether the operation ends by it


def _kill(number):
    def fault(env, pid):
        os.kill(pid, number)

    return fault


def _kill_launcher(env, pid):
    os.kill(env.domain_mgr._provider._connection.process.pid, signal.SIGKILL)


def _stop_and_kill(env, pid):
    os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)


def _stop_and_continue(env, pid):
    os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGCONT)


def _cut_link(env, pid):
    for handle in env.domain_mgr._open:
        if handle.pid == pid:
            handle.link.abort(domains.ConnectionLost("cut by the test"))


def _send_garbage(env, pid):
    for handle in env.domain_mgr._open:
        if handle.pid == pid:
            handle.link._write(b"\xc1 no envelope of ours", [])


DEADLY = {
    "SIGKILL": _kill(signal.SIGKILL),
    "SIGSEGV": _kill(signal.SIGSEGV),
    "SIGTERM": _kill(signal.SIGTERM),
    "stopped, then killed": _stop_and_kill,
    "launcher killed": _kill_launcher,
    "link cut": _cut_link,
    "garbage on the link": _send_garbage,
}
NOTICED_AT_THE_END = {("submit, plain job", "SIGTERM"), ("submit, plain job", "garbage on the link")}
"""A plain job keeps its domain from noticing, until it has ended or is cancelled."""

HARMLESS = {"stopped and continued": _stop_and_continue}


async def _under_fault(env, operation, fault, meets_death):
    async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as outer:
        domain = await outer.enter(env.domain_mgr.spawn())
        started, start = Promise.create()
        async with Switch() as sw:
            outcome = OPERATIONS[operation](env, pool, domain, sw, start)
            pid = await started
            fault(env, pid)
            if meets_death:
                with move_on_after(PATIENCE_SECONDS) as overdue:
                    with pytest.raises((DomainDied, DomainUnavailable)):
                        await outcome
                assert not overdue.cancelled, "it hangs"
            else:
                for _ in range(20):
                    await fiber.yield_now()
                assert not outcome.is_resolved
            sw.cancel()
        assert await pool.submit(_echo, 1, weight=1.0) == 1
        assert await env.domain_mgr.run(_echo, 2) == 2
    assert not env.domain_mgr._open


@pytest.mark.parametrize("fault", list(DEADLY))
@pytest.mark.parametrize("operation", list(OPERATIONS))
def test_ends_with_the_death_and_the_rest_goes_on(link, operation, fault):
    meets_death = (operation, fault) not in NOTICED_AT_THE_END
    domains.run(lambda env: _under_fault(env, operation, DEADLY[fault], meets_death), link=link)


@pytest.mark.parametrize("fault", list(HARMLESS))
@pytest.mark.parametrize("operation", list(OPERATIONS))
def test_goes_on_after(link, operation, fault):
    domains.run(lambda env: _under_fault(env, operation, HARMLESS[fault], False), link=link)


def test_the_table_in_the_docs_is_this_one():
    text = Path(__file__).parents[2].joinpath("docs", "reliability.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    (header,) = [row for row in rows if row[0] == "operation"]
    assert header[1:] == [*DEADLY, *HARMLESS]
    assert [row[0] for row in rows if len(row) == len(header) and row[0] in OPERATIONS] == list(OPERATIONS)
    named = set(re.findall(r"`(test_\w+)`", text))
    written = set()
    for path in Path(__file__).parents[1].rglob("test_*.py"):
        written |= set(re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)) | {path.stem}
    assert named <= written, named - written
