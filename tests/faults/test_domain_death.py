"""A domain that dies fails only what ran in it, at once, with how it died; the pool goes on with another."""

import asyncio
import ctypes
import os
import select
import signal
import threading
import time

import psutil
import pytest

import domains
from domains import DomainDied, ExecutorPool, Switch, fiber


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


def _segfault():
    import faulthandler

    faulthandler._sigsegv()


def _exit():
    os._exit(3)


def _exit_with_success():
    os._exit(0)


def _abort():
    os.abort()


def _overflow_the_stack():
    import faulthandler

    faulthandler._stack_overflow()


def _fail_in_c():
    ctypes.CDLL(None).abort()


def _fatal_error():
    ctypes.pythonapi.Py_FatalError(b"said by the test")


# what happens in the job, its exit status, its signal, what the fatal traceback says
DEATHS = {
    "SIGKILL": (_kill, None, signal.SIGKILL, None),
    "SIGSEGV": (_segfault, None, signal.SIGSEGV, "_segfault"),
    "os._exit": (_exit, 3, None, None),
    "os._exit(0)": (_exit_with_success, 0, None, None),
    "os.abort": (_abort, None, signal.SIGABRT, "_abort"),
    "stack overflow": (_overflow_the_stack, None, signal.SIGSEGV, "_overflow_the_stack"),
    "abort in C": (_fail_in_c, None, signal.SIGABRT, "_fail_in_c"),
    "fatal error": (_fatal_error, None, signal.SIGABRT, None),  # says so on stderr
}


@pytest.fixture(params=list(DEATHS))
def death(request):
    return DEATHS[request.param]


def check_told(error, death, job):
    _, exitcode, number, crash = death
    assert error.exitcode == exitcode
    assert error.signal == number
    if crash is None:
        assert error.fatal_traceback is None
    else:
        assert crash in error.fatal_traceback
    assert error.domain in str(error)
    assert job in str(error)


async def _echo(value):
    await fiber.yield_now()
    return value


async def _wait_forever():
    await fiber.await_cancel()


def test_a_death_fails_what_ran_in_that_domain_and_the_pool_goes_on(link, death):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool, Switch() as sw:
            died = pool.submit_fork(sw, death[0], weight=1.0)
            others = [pool.submit_fork(sw, _echo, number, weight=0.5) for number in range(20)]
            with pytest.raises(DomainDied) as caught:
                await died
            assert [await other for other in others] == list(range(20))
            assert len(pool.stats().domains) == 2
            both = [pool.submit_fork(sw, os.getpid, weight=1.0) for _ in range(2)]
            assert all([await pid > 0 for pid in both])
        return caught.value

    check_told(domains.run(main, link=link), death, death[0].__name__)


def test_a_death_fails_every_call_of_that_domain_and_no_other(link, death):
    async def main(env):
        async with env.domain_mgr.spawn("doomed") as doomed, env.domain_mgr.spawn() as other, Switch() as sw:
            waiting = sw.fork_promise(doomed.call, _wait_forever)
            untouched = sw.fork_promise(other.call, _echo, 5)
            assert await doomed.call(_echo, 1) == 1
            with pytest.raises(DomainDied) as caught:
                await doomed.call(death[0])
            with pytest.raises(DomainDied, match="_wait_forever"):
                await waiting
            assert not doomed.alive
            with pytest.raises(DomainDied, match="doomed"):
                await doomed.call(_echo, 2)
            assert await untouched == 5
            assert await other.call(_echo, 6) == 6
        assert caught.value.domain == "doomed"
        return caught.value

    check_told(domains.run(main, link=link), death, death[0].__name__)


def test_a_death_fails_the_run(link, death):
    async def main(env):
        with pytest.raises(DomainDied) as caught:
            await env.domain_mgr.run(death[0])
        assert await env.domain_mgr.run(_echo, "next") == "next"
        return caught.value

    check_told(domains.run(main, link=link), death, death[0].__name__)


def _read_nothing_until_death_of(pid):
    while psutil.pid_exists(pid):
        time.sleep(0.01)


def test_what_a_domain_said_before_it_died_is_heard(link):
    """A result that was sent counts, though its domain was dead before it was read."""

    async def answer(resolver):
        resolver.resolve(os.getpid())
        await fiber.yield_now()
        return "returned"

    async def die():
        await asyncio.sleep(0.05)  # no event tells that ZeroMQ's thread has written what it was given
        os._exit(3)

    async def main(env):
        promise, resolver = domains.Promise.create()
        async with env.domain_mgr.spawn() as domain, Switch() as sw:
            returned = sw.fork_promise(domain.call, answer, resolver)
            pid = await promise
            died = sw.fork_promise(domain.call, die)
            for _ in range(10):  # until it is sent
                await fiber.yield_now()
            _read_nothing_until_death_of(pid)
            with pytest.raises(DomainDied):
                await died
            assert await returned == "returned"

    domains.run(main, link=link)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_domain_that_somebody_terminates_is_one_that_died(link, number):
    """Its jobs are not cancelled, for nobody who submitted them did that: they fail with DomainDied."""

    async def main(env):
        started, start = domains.Promise.create()

        async def wait(start):
            start.resolve(os.getpid())
            await fiber.await_cancel()

        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as sw:
            waiting = pool.submit_fork(sw, wait, start, weight=0.1)
            elsewhere = pool.submit_fork(sw, asyncio.sleep, 1000, weight=0.1)
            os.kill(await started, number)
            with pytest.raises(DomainDied):
                await waiting
            with pytest.raises(DomainDied):
                await elsewhere
            assert await pool.submit(_echo, 1, weight=1.0) == 1

    domains.run(main, link=link)


def test_a_domain_that_dies_idle_is_replaced(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            first = await pool.submit(os.getpid, weight=1.0)
            (handle,) = env.domain_mgr._open
            os.kill(first, signal.SIGKILL)
            await handle.ended
            assert await pool.submit(os.getpid, weight=1.0) != first

    domains.run(main, link=link)


def test_a_death_in_the_middle_of_a_large_answer_fails_that_job(link):
    def die_while_it_is_read():
        threading.Timer(0, os._exit, [9]).start()
        return bytearray(1 << 28)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(DomainDied) as caught:
                for _ in range(100):  # until the death comes before the end of the answer
                    await pool.submit(die_while_it_is_read, weight=1.0)
            assert caught.value.exitcode == 9
            assert await pool.submit(_echo, 1, weight=1.0) == 1

    domains.run(main, link=link)


def test_a_death_while_cancelling_ends_the_cancelled_job_once(link):
    async def die_when_cancelled(start):
        try:
            start.resolve(None)
            await fiber.await_cancel()
        finally:
            os._exit(4)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            started, start = domains.Promise.create()
            async with Switch() as sw:
                sw.fork(_submit(pool, die_when_cancelled, start))
                await started
                sw.cancel()
            assert await pool.submit(_echo, 1, weight=1.0) == 1

    domains.run(main, link=link)


def _submit(pool, f, *args):
    async def submit():
        await pool.submit(f, *args, weight=1.0)

    return submit


def test_what_is_sent_to_a_domain_that_has_said_goodbye_is_not_begun(tmp_path):
    mark = tmp_path / "begun"

    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            os.kill(await domain.call(os.getpid), signal.SIGTERM)
            # Its goodbye has arrived, and is not read before the loop's next turn: this call is sent after it.
            select.select([domain._handle.link._socket], [], [])
            with pytest.raises(DomainDied):
                await domain.call(mark.touch)
            assert (await domain._handle.ended).exitcode == 128 + signal.SIGTERM
        assert not mark.exists()

    domains.run(main, link="socketpair")


def test_a_resolver_that_its_domain_never_opened_dies_with_it(link):  # S37
    async def main(env):
        promise, resolver = domains.Promise.create()
        async with env.domain_mgr.spawn() as domain, Switch() as sw:
            await domain.call(_echo, 1)
            dying = sw.fork_promise(domain.call, _kill)
            sent = sw.fork_promise(domain.call, _resolve, resolver)  # behind it, in the same frame
            with pytest.raises(DomainDied):
                await promise
            with pytest.raises(DomainDied):
                await sent
            with pytest.raises(DomainDied):
                await dying
        assert not env.domain_mgr.references.exports
        assert not env.domain_mgr.references._holds

    domains.run(main, link=link)


def _resolve(resolver):
    resolver.resolve(None)


def test_a_resolver_in_a_domain_that_is_terminated_dies_with_it(link):  # S37
    async def hold(resolver, start):
        start.resolve(os.getpid())
        await fiber.await_cancel()

    async def main(env):
        promise, resolver = domains.Promise.create()
        started, start = domains.Promise.create()
        async with env.domain_mgr.spawn() as domain, Switch() as sw:
            holding = sw.fork_promise(domain.call, hold, resolver, start)
            os.kill(await started, signal.SIGTERM)
            with pytest.raises(DomainDied):
                await promise
            with pytest.raises(DomainDied):
                await holding

    domains.run(main, link=link)


def _lose_the_parent(outcome):
    from domains.job_runner import _runners

    (runner,) = _runners
    runner._link.abort(None)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def _lose_the_parent_async(outcome):
    return _lose_the_parent(outcome)


@pytest.mark.parametrize("outcome", [None, 1, ValueError("x")], ids=repr)
@pytest.mark.parametrize("job", [_lose_the_parent, _lose_the_parent_async])
def test_a_job_that_ends_as_its_parent_is_gone_ends_quietly(link, job, outcome, capfd):
    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            with pytest.raises(DomainDied):
                await domain.call(job, outcome)

    domains.run(main, link=link)
    assert capfd.readouterr().err == ""


def test_a_fault_where_a_death_is_dealt_with_keeps_nobody_from_hearing_of_it(link):
    raised = []

    def fail(_):
        raise RuntimeError("a fault")

    async def main(env):
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context["exception"]))
        async with env.domain_mgr.spawn() as domain, env.domain_mgr.spawn() as other, Switch() as sw:
            domain._handle.when_ended(fail)
            domain._handle.conversation.when_gone(fail)
            waiting = sw.fork_promise(domain.call, fiber.await_cancel)
            launcher = env.domain_mgr._provider._connection.process.pid
            for each in domain, other:
                await each.call(os.getpid)
            os.kill(launcher, signal.SIGKILL)
            for promise in waiting, sw.fork_promise(other.call, fiber.await_cancel):
                with pytest.raises(DomainDied):
                    await promise

    domains.run(main, link=link)
    assert {str(error) for error in raised} == {"a fault"}


def test_a_batch_that_ends_the_link_half_way_fails_only_what_was_in_it(monkeypatch):
    from domains.ipc.carrier import ArenaCarrier

    outgoing = ArenaCarrier.outgoing
    failing = []

    def no_memory(self, buffers):
        if failing:
            raise failing.pop()
        return outgoing(self, buffers)

    monkeypatch.setattr(ArenaCarrier, "outgoing", no_memory)

    async def main(env):
        reports = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context["message"]))
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
            await pool.ready()
            failing.append(MemoryError())
            # Together they are more than one frame holds.
            jobs = [pool.submit(len, bytes(600_000), weight=0.2) for _ in range(10)]
            ends = await asyncio.gather(*jobs, return_exceptions=True)
            assert {600_000} <= {end for end in ends if not isinstance(end, DomainDied)}
            assert await pool.submit(abs, -1, weight=1.0) == 1
        assert len(reports) == 1
        assert "cannot be written (DefineFunction, StartJob)" in reports[0]

    domains.run(main)
