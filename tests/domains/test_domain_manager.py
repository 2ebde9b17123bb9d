"""Domains of one's own: `run`, `spawn` and `call`, what a domain is born with, and how it ends in order."""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import pytest

import domains
from domains import Cancelled, Closed, ExecutorPool, Promise, Switch, fiber


async def _echo(value):
    await fiber.yield_now()
    return value


def _fail(text):
    raise ValueError(text)


def test_run_returns_the_result_of_a_plain_and_of_an_async_function(link):  # S61
    async def main(env):
        plain = await env.domain_mgr.run(os.getpid)
        assert plain != os.getpid()
        assert await env.domain_mgr.run(_echo, "async") == "async"

    domains.run(main, link=link)


def test_run_raises_what_the_function_raises_with_the_remote_traceback(link):  # S61
    async def main(env):
        with pytest.raises(ValueError, match="this text") as caught:
            await env.domain_mgr.run(_fail, "this text")
        return caught.value

    error = domains.run(main, link=link)
    assert any("in _fail" in note for note in error.__notes__)


def test_other_fibers_go_on_while_a_domain_runs(link):  # S61
    def read(path):
        return Path(path).read_text()

    async def main(env, tmp):
        path = str(tmp / "fifo")
        os.mkfifo(path)
        async with Switch() as sw:
            # Ends only once this domain's other fiber has written.
            reading = sw.fork_promise(env.domain_mgr.run, read, path)
            await domains.run_in_thread(Path(path).write_text, "written")
            assert await reading == "written"

    with tempfile.TemporaryDirectory() as tmp:
        domains.run(lambda env: main(env, Path(tmp)), link=link)


def test_cancelling_a_run_cancels_the_function_there_and_waits_for_its_end(link):  # S61
    async def job(start, end):
        try:
            start.resolve(os.getpid())
            await fiber.await_cancel()
        finally:
            with domains.protect():
                for _ in range(10):
                    await fiber.yield_now()
            end.resolve("unwound")

    async def main(env):
        started, start = Promise.create()
        ended, end = Promise.create()
        async with Switch() as sw:
            sw.fork(env.domain_mgr.run, job, start, end)
            pid = await started
            sw.cancel()
        assert ended.peek().value == "unwound"
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    domains.run(main, link=link)


def test_run_in_a_cancelled_context_starts_no_domain(link):  # S61 S8
    async def main(env):
        async with Switch() as sw:
            sw.cancel()
            with pytest.raises(Cancelled):
                await env.domain_mgr.run(os.getpid)
            with pytest.raises(Cancelled):
                async with env.domain_mgr.spawn():
                    pass
            with pytest.raises(Cancelled):
                async with ExecutorPool(env.domain_mgr):
                    pass
        assert not env.domain_mgr._open
        assert env.domain_mgr._provider._connection is None or not env.domain_mgr._provider._connection._processes

    domains.run(main, link=link)


def test_a_call_in_a_cancelled_context_sends_nothing(link):  # S8
    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            async with Switch() as sw:
                sw.cancel()
                with pytest.raises(Cancelled):
                    await domain.call(os.getpid)
            assert await domain.call(os.getpid) == domain.pid

    domains.run(main, link=link)


def test_a_spawned_domain_has_a_name_a_number_and_a_process(link):
    async def main(env):
        async with env.domain_mgr.spawn("worker") as domain, env.domain_mgr.spawn() as other:
            assert (domain.name, domain.id, domain.alive) == ("worker", 1, True)
            assert (other.name, other.id) == ("domain-2", 2)
            assert await domain.call(os.getpid) == domain.pid
            assert "worker" in repr(domain)
        assert not domain.alive

    domains.run(main, link=link)


def test_current_names_the_domain_that_a_job_runs_in(link):  # S70
    async def main(env):
        assert domains.current() == (0, "main", os.getpid())
        async with env.domain_mgr.spawn("worker") as domain:
            assert await domain.call(domains.current) == (1, "worker", domain.pid)
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
            infos = [info async for info in pool.map(lambda _: domains.current(), range(50), weight=1.0, chunk=1)]
        assert {info.id for info in infos} <= {2, 3}  # never the main domain
        assert all(info.name == f"domain-{info.id}" for info in infos)

    domains.run(main, link=link)


def test_calls_of_one_domain_run_beside_each_other(link):
    async def give_and_take(mine, theirs):
        mine.resolve(os.getpid())
        return await theirs

    async def main(env):
        first, resolve_first = Promise.create()
        second, resolve_second = Promise.create()
        async with env.domain_mgr.spawn() as domain, Switch() as sw:
            one = sw.fork_promise(domain.call, give_and_take, resolve_first, second)
            two = sw.fork_promise(domain.call, give_and_take, resolve_second, first)
            assert await one == await two == domain.pid

    domains.run(main, link=link)


def test_cancelling_a_call_leaves_the_domain_and_its_other_calls_alone(link):
    async def wait(start):
        start.resolve(None)
        await fiber.await_cancel()

    async def main(env):
        async with env.domain_mgr.spawn() as domain, Switch() as outer:
            promise, resolver = Promise.create()
            other = outer.fork_promise(domain.call, _await, promise)
            async with Switch() as sw:
                started, start = Promise.create()
                sw.fork(domain.call, wait, start)
                await started
                sw.cancel()
            resolver.resolve("still here")
            assert await other == "still here"

    domains.run(main, link=link)


async def _await(promise):
    return await promise


def test_leaving_a_spawn_waits_for_its_calls(link):
    async def main(env):
        promise, resolver = Promise.create()
        async with Switch() as sw:
            async with env.domain_mgr.spawn() as domain:
                call = sw.fork_promise(domain.call, _await, promise)
                await domain.call(os.getpid)
                sw.fork(resolver.resolve, "late")
            assert call.peek().value == "late"

    domains.run(main, link=link)


def test_leaving_a_spawn_by_an_exception_cancels_its_calls(link):
    async def main(env):
        ended, end = Promise.create()
        async with Switch() as sw:
            with pytest.raises(KeyError):
                async with env.domain_mgr.spawn() as domain:
                    started, start = Promise.create()
                    call = sw.fork_promise(domain.call, _unwind, start, end)
                    await started
                    raise KeyError("mine")
            assert ended.peek().value == "unwound"
            with pytest.raises(Cancelled):
                await call

    domains.run(main, link=link)


class _Stop(Exception):
    pass


@pytest.mark.parametrize("in_the_block", [True, False])
def test_others_whose_calls_end_with_a_domain_are_told_what_began_that(link, in_the_block):  # S28
    async def main(env):
        started, start = Promise.create()
        _, end = Promise.create()
        opened, open_it = Promise.create()

        async def use():
            async with env.domain_mgr.spawn() as domain:
                open_it.resolve(domain)
                if in_the_block:
                    await fiber.await_cancel()
                await started

        async with Switch() as others:
            with pytest.raises(_Stop):
                async with Switch() as sw:
                    sw.fork(use)
                    call = others.fork_promise((await opened).call, _unwind, start, end)
                    await started
                    await fiber.yield_now()
                    raise _Stop
            with pytest.raises(Cancelled) as caught:
                await call
        assert type(caught.value.reason) is _Stop

    domains.run(main, link=link)


async def _unwind(start, end):
    try:
        start.resolve(None)
        await fiber.await_cancel()
    finally:
        end.resolve("unwound")


def test_a_call_after_the_end_of_the_block_raises_closed(link):
    async def main(env):
        async with env.domain_mgr.spawn("over") as domain:
            pass
        with pytest.raises(Closed, match="over"):
            await domain.call(os.getpid)

    domains.run(main, link=link)


def test_a_call_of_a_domain_that_has_died_raises_how(link):
    async def main(env):
        async with env.domain_mgr.spawn("over") as domain:
            with pytest.raises(domains.DomainDied):
                await domain.call(os._exit, 7)
            with pytest.raises(domains.DomainDied, match="'over' exited with status 7"):
                await domain.call(os.getpid)

    domains.run(main, link=link)


def test_a_manager_that_outlives_its_program_starts_nothing():
    kept = []

    async def main(env):
        kept.append(env.domain_mgr)

    domains.run(main)

    async def later():
        with pytest.raises(Closed):
            await kept[0].run(os.getpid)

    asyncio.run(later())


def test_a_switch_is_used_in_its_own_domain_only(link):  # S24
    async def main(env):
        async with Switch() as sw:
            with pytest.raises(domains.NotPicklable, match=r"arguments.*\[0\] .*belongs to its domain"):
                await env.domain_mgr.run(_fork_in, sw)

    domains.run(main, link=link)


def _fork_in(switch):
    switch.fork(os.getpid)


def test_a_long_temporary_directory_is_no_obstacle(link, monkeypatch, tmp_path):
    """A socket's path must fit into a hundred characters or so."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))

    async def main(env):
        return await env.domain_mgr.run(_echo, "here")

    assert domains.run(main, link=link) == "here"
    assert not list(long.iterdir())
    assert not list(Path("/tmp").glob(f"domains-{os.getpid()}-*"))


@pytest.mark.parametrize("name", ["pipe", "", None, 3])
def test_a_kind_of_link_that_is_none_is_a_value_error(name):
    with pytest.raises(ValueError, match="link"):
        domains.run(_echo, link=name)


def test_what_a_domain_inherits_is_not_what_the_parent_has_open(link):
    """No file descriptor of the parent leaks, and what the domain has open does not grow with the domains before."""

    async def main(env):
        with tempfile.NamedTemporaryFile() as file:
            os.set_inheritable(file.fileno(), True)
            counts = []
            async with Switch() as sw:
                for _ in range(4):
                    domain = await sw.enter(env.domain_mgr.spawn())
                    names = await domain.call(_open_files)
                    assert file.name not in names
                    counts.append(len(names))
            assert len(set(counts)) == 1, counts

    domains.run(main, link=link)


def _open_files():
    names = []
    for name in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue  # the one that this listing itself had open
    return names


def _surroundings():
    return sys.argv, sys.path, os.getcwd()


@pytest.fixture
def odd_surroundings(monkeypatch, tmp_path):
    """File names need be no text, and what is in `sys` anything."""
    no_text = os.fsdecode(b"no text \xff")
    directory = tmp_path / no_text
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "argv", ["program", no_text, "\ud800", 5])
    monkeypatch.setattr(sys, "path", [Path("/nowhere"), b"/nowhere", None, no_text, *sys.path])
    return no_text, str(directory)


def test_a_domain_starts_wherever_its_parent_runs_and_knows_as_much(link, odd_surroundings):
    async def main(env):
        return await env.domain_mgr.run(_surroundings)

    no_text, directory = odd_surroundings
    argv, path, there = domains.run(main, link=link)
    assert argv == ["program", no_text, "\ud800", "5"]
    assert path[0] == no_text  # the first that Python heeds
    assert there == directory


@pytest.mark.parametrize("argv", ["none", "missing"])
def test_a_domain_starts_where_there_are_no_arguments(link, monkeypatch, argv):
    if argv == "none":
        monkeypatch.setattr(sys, "argv", None)
    else:
        monkeypatch.delattr(sys, "argv")

    async def main(env):
        return (await env.domain_mgr.run(_surroundings))[0]

    assert domains.run(main, link=link) == [""]


def test_a_domain_starts_where_the_directory_has_been_removed(link, monkeypatch, tmp_path):
    removed = tmp_path / "removed"
    removed.mkdir()
    monkeypatch.chdir(removed)
    removed.rmdir()

    async def main(env):
        return (await env.domain_mgr.run(_surroundings))[2]

    assert domains.run(main, link=link) == "/"


def _have_no_memory_for_the_next_fiber():
    from domains.scheduler import switch

    class NoMemory(switch.FiberTask):
        def __init__(self, *args, **kwargs):
            switch.FiberTask = NoMemory.__base__
            raise MemoryError

    switch.FiberTask = NoMemory


def test_a_job_whose_fiber_cannot_begin_fails_and_keeps_no_other_from_it(link):
    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            await domain.call(_have_no_memory_for_the_next_fiber)
            with pytest.raises(MemoryError):
                await domain.call(_echo, 1)
            assert await domain.call(os.getpid) == domain.pid
            assert await domain.call(_echo, 1) == 1

    domains.run(main, link=link)
