"""Cancelling reaches a job wherever it is: queued, waiting, or deep in plain Python code."""
# ruff: noqa: ASYNC110, ASYNC240 - jobs tell the tests by files where they are

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

import domains
from domains import ExecutorPool, Stream, Switch
from domains.cancelling import Cancelling
from domains.references.shared_stream import SharedStream


def run(main, link="socketpair"):
    return domains.run(main, link=link)


class Stop(Exception):
    pass


async def begun(path):
    """Wait until a job has said, by making this file, that it runs."""
    while not Path(path).exists():
        await asyncio.sleep(0.001)


async def mark_and_wait(begin, end):
    Path(begin).touch()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        Path(end).write_text("Cancelled")
        raise


def test_a_forked_job_is_cancelled_when_its_switch_is(link, tmp_path):
    begin, end = tmp_path / "begin", tmp_path / "end"

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            async with Switch() as sw:
                promise = pool.submit_fork(sw, mark_and_wait, begin, end, weight=0.1)
                await begun(begin)
                sw.cancel()
            assert promise.is_resolved
            return await pool.submit(len, "abc", weight=1.0)

    assert run(main, link) == 3
    assert end.read_text() == "Cancelled"


def test_a_forked_job_is_cancelled_when_its_switch_fails(link, tmp_path):
    begin, end = tmp_path / "begin", tmp_path / "end"

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(Stop):
                async with Switch() as sw:
                    promise = pool.submit_fork(sw, mark_and_wait, begin, end, weight=0.1)
                    await begun(begin)
                    raise Stop
            with pytest.raises(domains.Cancelled) as caught:
                await promise
            return type(caught.value.reason)

    assert run(main, link) is Stop
    assert end.read_text() == "Cancelled"


def spin(begin, end=None):
    try:
        Path(begin).touch()
        while True:
            pass
    except asyncio.CancelledError as error:
        if end is not None:
            Path(end).write_text(type(error).__name__)
        raise


async def fail_when_begun(path):
    await begun(path)
    raise Stop


def test_cancelling_a_submit_interrupts_plain_python_code(link, tmp_path):
    begin, end = tmp_path / "begin", tmp_path / "end"

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            before = await pool.submit(os.getpid, weight=1.0)
            with pytest.raises(Stop):
                async with Switch() as sw:
                    sw.fork(fail_when_begun, begin)
                    await pool.submit(spin, begin, end, weight=1.0)
            return before, await pool.submit(os.getpid, weight=1.0)

    before, after = run(main, link)
    assert before == after  # the same domain goes on
    assert end.read_text() == "Cancelled"


def test_a_timeout_interrupts_plain_python_code(link, tmp_path):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            before = await pool.submit(os.getpid, weight=1.0)
            with pytest.raises(TimeoutError):
                await pool.submit(spin, tmp_path / "begin", weight=1.0, timeout=0.05)
            return before == await pool.submit(os.getpid, weight=1.0)

    assert run(main, link)


@pytest.mark.parametrize("call", ["sleep", "read"])
def test_a_blocking_call_is_interrupted(call, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    f, argument = {"sleep": (time.sleep, 3600), "read": (_read_fifo_for_ever, tmp_path / "fifo")}[call]

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            before = await pool.submit(os.getpid, weight=1.0)
            with pytest.raises(TimeoutError):
                await pool.submit(f, argument, weight=1.0, timeout=0.05)
            return before == await pool.submit(os.getpid, weight=1.0)

    assert run(main)


def _read_fifo_for_ever(path):
    with open(path, "rb") as file:
        file.read()


class WaitForEver:
    def __await__(self):
        return asyncio.Event().wait().__await__()


def ask_and_return_what_waits(stream):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG])  # as if the signal came when this has ended
    len(stream)
    return WaitForEver()


def test_a_plain_job_that_is_cancelled_as_it_asks_another_domain_does_not_go_on_as_a_fiber(link, monkeypatch):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, grace=0.2) as pool:
            before = await pool.submit(os.getpid, weight=1.0)
            async with Switch() as sw:

                def cancel(stream):
                    sw.cancel()
                    return 0

                promise = pool.submit_fork(sw, ask_and_return_what_waits, Stream(1), weight=0.5)
                monkeypatch.setattr(SharedStream, "__len__", cancel)  # before the domain has its answer
            with pytest.raises(domains.Cancelled):
                await promise
            return before, await pool.submit(os.getpid, weight=1.0)

    before, after = run(main, link)
    assert before == after


def test_the_jobs_in_a_group_of_a_map_are_interrupted(link, tmp_path):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            before = await pool.submit(os.getpid, weight=1.0)
            with pytest.raises(TimeoutError):
                with domains.timeout(0.1):
                    async for _ in pool.map(spin, [tmp_path / "begin"], weight=1.0):
                        pass
            return before == await pool.submit(os.getpid, weight=1.0)

    assert run(main, link)


def test_an_interrupted_job_may_clean_up_and_is_interrupted_once(tmp_path):
    begin, marks = tmp_path / "begin", tmp_path / "marks"

    def job():
        try:
            begin.touch()
            time.sleep(3600)
        except asyncio.CancelledError:
            time.sleep(0.3)  # longer than it takes until the signal comes again
            marks.write_text("cleaned up")
            raise

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, grace=0.8) as pool:
            with pytest.raises(Stop):
                async with Switch() as sw:
                    sw.fork(fail_when_begun, begin)
                    await pool.submit(job, weight=1.0)

    run(main)
    assert marks.read_text() == "cleaned up"


def test_a_job_with_a_loop_of_its_own_unwinds_as_that_loop_does(tmp_path):
    mark = tmp_path / "mark"

    def job():
        async def inner():
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0)
                mark.write_text("unwound")

        asyncio.run(inner())

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            before = await pool.submit(os.getpid, weight=1.0)
            with pytest.raises(TimeoutError):
                await pool.submit(job, weight=1.0, timeout=0.1)
            return before == await pool.submit(os.getpid, weight=1.0)

    assert run(main)
    assert mark.read_text() == "unwound"


def deaf(begin):
    while True:
        try:
            Path(begin).touch()
            while True:
                pass
        except BaseException:
            pass


def blocked_in_c(begin):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG])
    Path(begin).touch()
    time.sleep(3600)


async def async_and_deaf(begin):
    Path(begin).touch()
    while True:
        pass


@pytest.mark.parametrize("job", [deaf, blocked_in_c, async_and_deaf])
def test_a_job_that_cannot_be_interrupted_loses_its_domain(link, job, tmp_path):
    begin = tmp_path / "begin"

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, grace=0.2) as pool:
            before = await pool.submit(os.getpid, weight=1.0)
            with pytest.raises(Stop):
                async with Switch() as sw:
                    promise = pool.submit_fork(sw, job, begin, weight=0.5)
                    sw.fork(fail_when_begun, begin)
            with pytest.raises(domains.Cancelled) as caught:
                await promise
            assert type(caught.value.reason) is Stop
            return before, await pool.submit(os.getpid, weight=1.0)

    before, after = run(main, link)
    assert before != after


async def wait_for(path, begin):
    if not os.path.exists(begin):
        Path(begin).touch()
    await begun(path)
    return "done"


@pytest.mark.parametrize("retries", [0, 1])
def test_other_jobs_of_a_replaced_domain_are_rerun_if_they_may_be(link, retries, tmp_path):
    begin, other, finish = tmp_path / "begin", tmp_path / "other", tmp_path / "finish"

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, grace=0.2) as pool:
            async with Switch() as outer:

                async def submit():
                    return await pool.submit(wait_for, finish, other, weight=0.1, retries=retries)

                promise = outer.fork_promise(submit)
                await begun(other)
                with pytest.raises(Stop):
                    async with Switch() as sw:
                        pool.submit_fork(sw, deaf, begin, weight=0.1)
                        sw.fork(fail_when_begun, begin)
                finish.touch()
                if retries:
                    assert await promise == "done"
                else:
                    with pytest.raises(domains.DomainDied, match=r"deaf.* was cancelled and did not end.*wait_for"):
                        await promise

    run(main, link)


def long(begin, finish):
    begin.touch()
    while not finish.exists():
        time.sleep(0.001)
    return "done"


def test_a_job_that_waits_behind_a_long_one_is_cancelled_without_harm_to_it(link, tmp_path):
    begin, finish = tmp_path / "begin", tmp_path / "finish"

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, grace=0.1) as pool, Switch() as sw:
            promise = pool.submit_fork(sw, long, begin, finish, weight=0.3)
            await begun(begin)
            for weight in (0.3, 1.0):
                with pytest.raises(TimeoutError):
                    await pool.submit(spin, tmp_path / "never", weight=weight, timeout=0.01)

            async def light():  # only the domain can answer for a job that needs no claim
                with pytest.raises(TimeoutError):
                    await pool.submit(spin, tmp_path / "never", weight=0.0, timeout=0.01)

            sw.fork(light)
            await asyncio.sleep(0.3)  # three times the grace
            finish.touch()
            return await promise

    assert run(main, link) == "done"
    assert not (tmp_path / "never").exists()


class SlowToOpen:
    """Pickled there is no more of it than these two; to open it takes until the second file is there."""

    def __init__(self, opening, opened):
        self.files = opening, opened

    def __reduce__(self):
        return _open_slowly, self.files


def _open_slowly(opening, opened):
    opening.touch()
    while not opened.exists():
        time.sleep(0.001)


def test_a_job_whose_turn_comes_when_its_grace_is_long_over_takes_nobody_with_it(tmp_path, monkeypatch):  # S66
    begin, finish, opening, opened = (tmp_path / name for name in ("begin", "finish", "opening", "opened"))
    look = Cancelling.look
    monkeypatch.setattr(Cancelling, "look", lambda cancelling: None)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as sw:
            promise = pool.submit_fork(sw, long, begin, finish, weight=0.3)
            await begun(begin)
            (member,) = pool._dispatch._members

            async def go_on():
                (request,) = member.handle.cancelling.requests.values()
                request.since -= 3600
                finish.touch()
                await begun(opening)  # the other's result has not left yet
                look(member.handle.cancelling)
                opened.touch()
                assert not member.handle.was_killed

            async with Switch() as cancelled:
                pool.submit_fork(cancelled, len, SlowToOpen(opening, opened), weight=0.0)
                await asyncio.sleep(0)  # it is sent
                cancelled.cancel()
                sw.fork(go_on)
            return await promise

    assert run(main) == "done"


async def compute(begin, finish):
    Path(begin).touch()
    while not os.path.exists(finish):
        time.sleep(0.001)  # noqa: ASYNC251 - it is to keep the others from their turns
    return "done"


def test_jobs_that_are_cancelled_as_a_fiber_computes_do_no_harm_to_it(tmp_path, monkeypatch):  # S66
    waits, computes, finish = tmp_path / "waits", tmp_path / "computes", tmp_path / "finish"
    looks = Stream(100)
    look = Cancelling.look

    def look_and_tell(cancelling):
        looks.add_nonblocking(None)
        look(cancelling)

    monkeypatch.setattr(Cancelling, "look", look_and_tell)

    async def finish_when_looked_at():
        for _ in range(8):  # four to the grace
            await looks.take()
        finish.touch()

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, grace=0.1) as pool, Switch() as sw:
            async with Switch() as cancelled:
                pool.submit_fork(cancelled, mark_and_wait, waits, tmp_path / "end", weight=0.1)
                await begun(waits)
                promise = pool.submit_fork(sw, compute, computes, finish, weight=0.1)
                await begun(computes)
                pool.submit_fork(cancelled, mark_and_wait, tmp_path / "never", tmp_path / "end", weight=0.0)
                pool.submit_fork(cancelled, spin, tmp_path / "never", weight=0.0)
                await asyncio.sleep(0)  # they are sent
                cancelled.cancel()
                sw.fork(finish_when_looked_at)
            return await promise

    assert run(main) == "done"
    assert not (tmp_path / "never").exists()


def test_a_domain_that_is_kept_from_its_core_is_not_blamed_for_its_silence(tmp_path, monkeypatch):  # S66
    waits, computes, finish = tmp_path / "waits", tmp_path / "computes", tmp_path / "finish"
    look = Cancelling.look
    monkeypatch.setattr(Cancelling, "look", lambda cancelling: None)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as sw:
            (member,) = pool._dispatch._members

            async def look_and_finish():
                (request,) = member.handle.cancelling.requests.values()
                request.since -= 3600
                for _ in range(3):  # at once: the domain has no time to answer in between
                    look(member.handle.cancelling)
                assert not member.handle.was_killed
                finish.touch()

            async with Switch() as cancelled:
                pool.submit_fork(cancelled, mark_and_wait, waits, tmp_path / "end", weight=0.1)
                await begun(waits)
                promise = pool.submit_fork(sw, compute, computes, finish, weight=0.1)
                await begun(computes)
                cancelled.cancel()
                sw.fork(look_and_finish)
            return await promise

    assert run(main) == "done"


async def leave_a_task(begin, computes):
    async def outlive():
        await begun(begin)
        computes.touch()
        spin(computes)

    left.append(asyncio.ensure_future(outlive()))


left = []


def test_a_job_that_is_cancelled_as_a_task_of_one_that_has_ended_computes_ends(tmp_path):
    waits, begin, computes = tmp_path / "waits", tmp_path / "begin", tmp_path / "computes"

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, grace=0.1) as pool:
            await pool.submit(leave_a_task, begin, computes, weight=0.1)
            async with Switch() as cancelled:
                pool.submit_fork(cancelled, mark_and_wait, waits, tmp_path / "end", weight=0.1)
                await begun(waits)
                begin.touch()
                await begun(computes)
                cancelled.cancel()
        return "ended"

    assert run(main) == "ended"


def test_a_request_that_comes_late_does_not_hit_the_next_job(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            pid = await pool.submit(os.getpid, weight=1.0)
            results = []
            for n in range(300):  # the limit expires before, while and after the job runs
                with domains.move_on_after(n * 2e-6):
                    await pool.submit(sum, range(500), weight=1.0)
                results.append(await pool.submit(len, "abc", weight=1.0))
            assert results == [3] * 300
            return pid == await pool.submit(os.getpid, weight=1.0)

    assert run(main, link)


def test_a_plain_function_is_interrupted_where_a_domain_was_called_with_it(link, tmp_path):
    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            with pytest.raises(TimeoutError), domains.timeout(0.2):
                await domain.call(spin, tmp_path / "begin")
            return await domain.call(len, "abc")

    assert run(main, link) == 3
