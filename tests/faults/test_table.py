"""Every operation under every fault: each awaited thing ends, with its result or with the death; then all goes on.

The rows and columns are those of the table in docs/reliability.md, which a test below compares.
"""

import os
import re
import resource
import signal
from pathlib import Path

import pytest

import domains
from domains import (
    Condition,
    DomainDied,
    DomainUnavailable,
    ExecutorPool,
    Lazy,
    Mutex,
    Promise,
    Semaphore,
    Stream,
    Switch,
    domain_state,
    fiber,
    move_on_after,
)
from domains.ipc.frames import frame_header
from domains.ipc.socketpair import SocketPairLink

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


def submit_elsewhere(env, pool, domain, sw, start):
    return sw.fork_promise(domain.call, _submit, pool, start)


async def _submit(pool, start):
    await pool.submit(_wait, start, weight=1.0)


def run_below(env, pool, domain, sw, start):
    return sw.fork_promise(domain.call, _run_below, env.domain_mgr, start)


async def _run_below(domain_mgr, start):
    await domain_mgr.run(_wait_below, start, os.getpid())


async def _wait_below(start, above):
    start.resolve(above)
    await fiber.await_cancel()


def use(make, operation):
    """An operation on an object whose home is the domain that meets the fault."""

    def begin(env, pool, domain, sw, start):
        async def operate():
            target = await domain.call(make)
            start.resolve(domain.pid)
            await getattr(target, operation)()

        return sw.fork_promise(operate)

    return begin


async def _make_stream():
    domain_state.kept = Stream(1)
    return domain_state.kept


class _Adds:
    def __init__(self, stream):
        self._stream = stream

    async def add(self):
        await self._stream.add("one too many")


async def _make_full_stream():
    domain_state.kept = Stream(0)
    return _Adds(domain_state.kept)


async def _make_locked_mutex():
    domain_state.kept = Mutex()
    await domain_state.kept.lock()
    return domain_state.kept


async def _make_semaphore():
    domain_state.kept = Semaphore(0)
    return domain_state.kept


async def _make_condition():
    domain_state.kept = Condition()
    return domain_state.kept


async def _make_lazy():
    domain_state.kept = Lazy(fiber.await_cancel, cancel="restart")  # else nobody could end what never ends
    return domain_state.kept


OPERATIONS = {
    "submit, async job": submit_async,
    "submit, plain job": submit_plain,
    "map": map_over,
    "run": run,
    "call": call,
    "submit from another domain": submit_elsewhere,
    "run in a domain of its own": run_below,
    "await promise": await_promise,
    "take from a stream": use(_make_stream, "take"),
    "add to a stream": use(_make_full_stream, "add"),
    "lock a mutex": use(_make_locked_mutex, "lock"),
    "acquire a semaphore": use(_make_semaphore, "acquire"),
    "wait for a condition": use(_make_condition, "wait_no_mutex"),
    "force a lazy value": use(_make_lazy, "force"),
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


def _send_cut_frame(env, pid):
    envelope = b"more than comes"
    for handle in env.domain_mgr._open:
        if handle.pid == pid:
            cut = frame_header(envelope, []) + envelope[:-5]
            if isinstance(handle.link, SocketPairLink):
                handle.link._socket.send(cut)
                handle.link._write(b"\x90", [])  # a whole one behind it
            else:
                handle.link._socket.send(cut)


def _exhaust_descriptors(env, pid):
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))


DEADLY = {
    "SIGKILL": _kill(signal.SIGKILL),
    "SIGSEGV": _kill(signal.SIGSEGV),
    "SIGTERM": _kill(signal.SIGTERM),
    "SIGINT": _kill(signal.SIGINT),
    "stopped, then killed": _stop_and_kill,
    "launcher killed": _kill_launcher,
    "link cut": _cut_link,
    "garbage on the link": _send_garbage,
    "a frame cut short": _send_cut_frame,
}
_UNNOTICED = ("SIGTERM", "SIGINT", "garbage on the link", "a frame cut short")
NOTICED_AT_THE_END = {("submit, plain job", fault) for fault in _UNNOTICED}
"""A plain job keeps its domain from noticing, until it has ended or is cancelled."""

HARMLESS = {"stopped and continued": _stop_and_continue, "no more descriptors": _exhaust_descriptors}


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
        # Once more if it begins in the very domain that is about to notice the fault.
        assert await pool.submit(_echo, 1, weight=1.0, retries=1) == 1
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


def cell(operation, fault):
    """How the docs show what becomes of an operation."""
    if fault in HARMLESS:
        return "→"
    return "at its end" if (operation, fault) in NOTICED_AT_THE_END else "†"


def the_table():
    """The table as the docs must show it."""
    faults = [*DEADLY, *HARMLESS]
    rows = [["operation", *faults], ["---"] * (1 + len(faults))]
    rows += [[operation, *(cell(operation, fault) for fault in faults)] for operation in OPERATIONS]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


RELIABILITY = Path(__file__).parents[2].joinpath("docs", "reliability.md")


def test_the_table_in_the_docs_is_this_one():
    assert the_table() in RELIABILITY.read_text(), f"it must show\n{the_table()}"


def test_the_docs_name_a_test_for_every_promise_and_every_test_exists():
    text = RELIABILITY.read_text()
    promised = [row for row in text.splitlines() if re.match(r"\| \d", row)]
    assert [int(row.split("|")[1]) for row in promised] == list(range(1, 10))
    assert all("`test_" in row for row in promised)
    named = set(re.findall(r"`(test_\w+)`", text))
    written = set()
    for path in Path(__file__).parents[1].rglob("test_*.py"):
        written |= set(re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)) | {path.stem}
    assert named <= written, named - written
