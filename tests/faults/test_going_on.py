"""A program may survive the second Ctrl-C, which ends its run at once, and go on: nothing of the run is left in it."""

import asyncio
import contextlib
import signal
import textwrap

import pytest

from domains.ipc.arena import process_arena
from domains.testing import run as run_in_virtual_time

from .program import Program, reports

WHAT_IT_WAITS_FOR = {
    "a job that waits": """
        async def wait():
            say("now")
            await fiber.await_cancel()

        with domains.protect():
            await domain.call(wait)
        """,
    "a job that computes": """
        def compute():
            say("now")
            spin()

        with domains.protect():
            await domain.call(compute)
        """,
    "a message to a domain that reads nothing": """
        def compute():
            say("now")
            spin()

        other.fork(domain.call, compute)
        with domains.protect():
            await fiber.all([lambda: domain.call(len, bytes(1 << 20)) for _ in range(50)])
        """,
    "jobs of a pool": """
        async def wait(ready):
            await ready.add("ready")
            await fiber.await_cancel()

        ready = domains.Stream(0)
        with domains.protect():
            async with ExecutorPool(env.domain_mgr, domain_count=2) as pool, Switch() as jobs:
                for _ in range(2):
                    pool.submit_fork(jobs, wait, ready, weight=1.0)
                for _ in range(2):
                    await ready.take()
                say("now")
        """,
    "domains that talk to each other": """
        async def make():
            domains.domain_state.stream = domains.Stream(1)
            return domains.domain_state.stream

        async def talk(stream):
            await stream.add("something")
            say("now")
            while True:
                await stream.add(await stream.take())

        async with env.domain_mgr.spawn() as neighbour:
            stream = await neighbour.call(make)
            with domains.protect():
                await domain.call(talk, stream)
        """,
    "its domain to end, whose launcher is stopped": """
        launcher, = psutil.Process().children()
        with domains.protect():
            launcher.suspend()
            say("now")
            await env.domain_mgr.close()
        """,
}

GOES_ON = """
import gc, glob, psutil, tempfile

def there_is():
    while gc.collect():  # more than once: a coroutine that wants to wait as it is thrown away outlives the first
        pass
    descriptors = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return {
        *(f"{name} -> {os.readlink(name)}" for name in descriptors if os.path.lexists(name)),
        *(str(process) for process in psutil.Process().children(recursive=True)),
        *os.listdir(tempfile.gettempdir()),
        *glob.glob(f"/dev/shm/domains-{os.getpid()}-*"),
    }

async def say_when_told():
    try:
        await fiber.await_cancel()
    finally:
        say("told")

async def wait_for_ever(env):
    async with env.domain_mgr.spawn(heartbeat_seconds=60.0) as domain, Switch() as other:
        await domain.call(os.getpid)
        other.fork(say_when_told)
        WAIT

async def work(env):
    return await env.domain_mgr.run(pow, 7, 2)

say(domains.run(work, link=LINK))  # opens what a process opens once
before = there_is()
for _ in range(2):
    try:
        domains.run(wait_for_ever, link=LINK)
    except KeyboardInterrupt:
        say("interrupted")
    say(sorted(there_is() - before))
say(domains.run(work, link=LINK))
"""


@pytest.mark.parametrize("what", list(WHAT_IT_WAITS_FOR))
def test_a_program_that_survives_a_second_ctrl_c_goes_on_without_remains_though_it_waited_for(link, tmp_path, what):
    source = GOES_ON.replace("WAIT", textwrap.indent(textwrap.dedent(WHAT_IT_WAITS_FOR[what]), " " * 8).strip())
    with Program(source, tmp_path, link) as program:
        assert program.hear() == 49
        for _ in range(2):
            assert program.hear() == "now"
            program.send_signal(signal.SIGINT)
            assert program.hear() == "told"
            program.send_signal(signal.SIGINT)
            assert program.hear() == "interrupted"
            assert program.hear() == []
        assert program.hear() == 49
        assert program.wait() == 0, program.errors
        assert reports(program.errors) == 0, program.errors
        program.check_nothing_is_left()


def test_no_memory_is_kept_warm_for_a_run_in_virtual_time_that_a_second_ctrl_c_has_ended():
    async def main(env):
        process_arena().keep([bytes(1 << 20)])
        assert process_arena().statistics().segments == 1
        for _ in range(2):
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
        try:
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)  # it wants to wait even as it is thrown away

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored, where tests run unattended
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            run_in_virtual_time(main)
    finally:
        signal.signal(signal.SIGINT, before)
    assert process_arena().statistics().segments == 0
    del caught  # until now its traceback has kept the run's objects
