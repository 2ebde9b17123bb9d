"""Jobs that are run again, jobs that kill their domains, and domains that cannot start."""
# ruff: noqa: ASYNC110 - jobs tell the tests by files where they are

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

import domains
from domains import DomainDied, DomainUnavailable, ExecutorPool, Switch
from domains.pool.restarts import Restarts
from domains.retry import Retry


def run(main, link="socketpair"):
    return domains.run(main, link=link)


def note_attempt(path):
    with open(path, "a") as file:
        file.write("x")
    return len(Path(path).read_text())


def kill_until(path, attempt):
    n = note_attempt(path)
    if n < attempt:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def fail_until(path, attempt, kind):
    n = note_attempt(path)
    if n < attempt:
        raise kind(f"attempt {n}")
    return n


def test_a_job_is_run_again_when_its_domain_dies(link, tmp_path):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            return await pool.submit(kill_until, tmp_path / "n", 3, weight=1.0, retries=2, backoff=0.001)

    assert run(main, link) == 3


def test_a_job_without_retries_is_run_once(tmp_path):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(DomainDied, match="kill_until"):
                await pool.submit(kill_until, tmp_path / "n", 3, weight=1.0)

    run(main)
    assert (tmp_path / "n").read_text() == "x"


def test_a_failure_is_not_retried_unless_asked(tmp_path):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(ValueError, match="attempt 1"):
                await pool.submit(fail_until, tmp_path / "n", 3, ValueError, weight=1.0, retries=5)
            return await pool.submit(
                fail_until, tmp_path / "n", 3, ValueError, weight=1.0, retries=5, retry_on=ValueError, backoff=0.001
            )

    assert run(main) == 3


def test_a_death_is_not_retried_where_only_another_failure_is(tmp_path):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(DomainDied):
                await pool.submit(kill_until, tmp_path / "n", 3, weight=1.0, retries=5, retry_on=OSError)

    run(main)
    assert (tmp_path / "n").read_text() == "x"


def test_the_last_failure_is_raised_when_the_retries_are_used_up(link, tmp_path):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(OSError, match="attempt 3"):
                await pool.submit(
                    fail_until, tmp_path / "n", 9, OSError, weight=1.0, retries=2, retry_on=(OSError,), backoff=0.0
                )

    run(main, link)


def test_a_poison_pill_is_stopped_and_named_and_the_pool_goes_on(tmp_path):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool, Switch() as sw:

            async def pill():
                with pytest.raises(DomainDied, match=r"'kill_until' had ended at its attempt 4"):
                    await pool.submit(kill_until, tmp_path / "n", 99, weight=1.0, retries=3, backoff=0.001)

            sw.fork(pill)
            # weight 0.0 aside, nothing runs beside a job of weight 1.0, so these are never hit; over ZeroMQ a result
            # that its thread has not written yet would be lost with the domain
            results = [pool.submit_fork(sw, abs, -n, weight=1.0) for n in range(200)]
            return [await promise for promise in results]

    assert run(main) == list(range(200))
    assert (tmp_path / "n").read_text() == "xxxx"


async def submit_killer(pool, path):
    return await pool.submit(kill_until, path, 3, weight=1.0, retries=2, backoff=0.001)


async def submit_failer(pool, path):
    return await pool.submit(
        fail_until, path, 3, KeyError, weight=1.0, retries=2, retry_on=(KeyError, OSError), backoff=0.001
    )


@pytest.mark.parametrize("job", [submit_killer, submit_failer])
def test_a_nested_job_is_run_again(link, job, tmp_path):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            return await env.domain_mgr.run(job, pool, tmp_path / "n")

    assert run(main, link) == 3


def test_a_job_cancelled_between_two_attempts_is_not_run_again(tmp_path):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:

            async def submit():
                await pool.submit(
                    fail_until, tmp_path / "n", 9, OSError, weight=1.0, retries=2, retry_on=OSError, backoff=3600
                )

            async with Switch() as sw:
                sw.fork(submit)
                await domains.fiber.yield_now()
                while pool.stats().running or not (tmp_path / "n").exists():
                    await asyncio.sleep(0.001)
                assert pool.stats().queued == 1
                sw.cancel()
            return pool.stats().queued

    assert run(main) == 0
    assert (tmp_path / "n").read_text() == "x"


def test_leaving_a_pool_waits_for_jobs_that_rest_between_attempts(tmp_path):
    async def main(env):
        async with Switch() as sw:
            async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
                promise = sw.fork_promise(
                    lambda: pool.submit(kill_until, tmp_path / "n", 2, weight=1.0, retries=1, backoff=0.05)
                )
                await domains.fiber.yield_now()
            return promise.is_resolved and await promise

    assert run(main) == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"retries": -1}, ValueError),
        ({"retries": 1.5}, TypeError),
        ({"retries": 1, "backoff": -1}, ValueError),
        ({"retries": 1, "retry_on": "ValueError"}, TypeError),
    ],
)
def test_retries_are_checked_at_the_call(arguments, error):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(error):
                await pool.submit(abs, 1, weight=1.0, **arguments)

    run(main)


def test_the_wait_before_a_retry_doubles_give_or_take_half():
    retry = Retry(3, DomainDied, 1.0)
    delays = [retry.next_delay() for _ in range(3)]
    assert all(0.5 * 2**n <= delay <= 1.5 * 2**n for n, delay in enumerate(delays))
    assert not retry.allows(DomainDied)


def test_the_wait_before_a_retry_is_bounded_however_many_came_before():
    for backoff, longest in ((0.0, 0.0), (1.0, 30.0)):
        retry = Retry(1100, DomainDied, backoff)
        assert [retry.next_delay() for _ in range(1100)][-1] == longest


def test_the_rate_of_restarts_is_limited():
    restarts = Restarts(free=3)
    delays = []
    for _ in range(20):
        restarts.record_death()
        delays.append(restarts.delay())
    assert delays[:3] == [0.0] * 3
    assert 0 < delays[3] < 0.1
    assert max(delays) == 5.0


def exit_at_once():
    os._exit(7)


def test_a_pool_whose_domains_cannot_start_fails_its_jobs_with_the_reason(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2, initializer=exit_at_once) as pool:
            with pytest.raises(DomainUnavailable, match=r"in a row ended before they could serve.*status 7"):
                await pool.submit(abs, 1, weight=1.0)
            with pytest.raises(DomainUnavailable):
                await pool.submit(abs, 1, weight=1.0)

    run(main, link)


def test_domains_that_start_with_their_launcher_and_die_with_it_are_one_bad_start(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=4, initializer=time.sleep, initargs=(0.2,)) as pool:
            while any(domain.pid is None for domain in pool.stats().domains):
                await domains.fiber.yield_now()
            os.kill(env.domain_mgr._provider._connection.process.pid, signal.SIGKILL)
            assert await pool.submit(abs, -1, weight=1.0) == 1

    run(main, link)


def die_for_a_while():
    if 2 <= domains.current().id <= 6:
        os._exit(7)


def current_after_a_while(_):
    time.sleep(0.01)
    return domains.current()


def test_domains_that_cannot_start_for_a_while_are_started_in_the_end_if_another_serves(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2, initializer=die_for_a_while) as pool:
            ids = set()
            while ids != {1, 7}:
                ids = {info.id async for info in pool.map(current_after_a_while, range(2), weight=1.0, chunk=1)}

    run(main, link)


def die_by_a_kill_for_a_while():
    if domains.current().id <= 5:
        os.kill(os.getpid(), signal.SIGKILL)


def test_domains_that_are_killed_as_they_start_do_not_break_the_pool_at_once(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, initializer=die_by_a_kill_for_a_while) as pool:
            assert (await pool.submit(domains.current, weight=1.0)).id == 6

    run(main, link)


def fail_to_initialize():
    raise ValueError("no licence")


def test_a_failing_initializer_is_named_as_the_reason(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1, initializer=fail_to_initialize) as pool:
            with pytest.raises(DomainUnavailable, match=r"fail_to_initialize.*no licence") as caught:
                await pool.ready()
            assert isinstance(caught.value.__cause__, ValueError)
            (traceback,) = caught.value.__cause__.__notes__
            assert "in fail_to_initialize" in traceback
            assert "initializing.py" not in traceback
            with pytest.raises(DomainUnavailable):
                await pool.submit(abs, 1, weight=1.0)

    run(main, link)


def fail_to_initialize_but_the_first():
    if domains.current().id != 1:
        raise ValueError("no licence")


def test_a_failing_initializer_is_not_called_ever_faster_while_another_domain_serves(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2, initializer=fail_to_initialize_but_the_first) as pool:
            members = pool._dispatch._members
            with pytest.raises(DomainUnavailable, match=r"fail_to_initialize_but_the_first.*no licence"):
                await pool.ready()
            while not members._planned:
                assert max(member.handle.id for member in members) < 10
                await asyncio.sleep(0.001)
            return (await pool.submit(domains.current, weight=1.0)).id

    assert run(main, link) == 1


def test_a_pool_survives_domains_that_die_again_and_again(tmp_path):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
            for _ in range(6):
                with pytest.raises(DomainDied):
                    await pool.submit(os._exit, 3, weight=1.0)
            started = time.monotonic()
            assert await pool.submit(abs, -1, weight=1.0) == 1
            return time.monotonic() - started

    run(main)
