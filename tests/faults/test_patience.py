"""A program that hangs is told from one that the machine has no time for, and says where it hangs."""

import itertools
import os
import signal

from . import soak
from .patience import OwnTime, Patience, what_it_does
from .program import Program

BUSY = """
say("began")
deadline = time.monotonic() + float(sys.argv[2])
while time.monotonic() < deadline:
    pass
say("ended")
"""


def test_what_does_not_end_is_overdue_and_what_takes_its_place_is_not(tmp_path):
    with Program("say('began'); signal.pause()", tmp_path, "") as program:
        program.hear()
        patience = Patience(program, 0.0)
        assert patience.look(["old", 0]) == []
        for turn in itertools.count(1):
            if overdue := patience.look(["old", turn]):  # its own time may not have gone on until now
                break
        assert overdue == ["old"]


def test_a_program_that_waits_for_a_core_has_no_time_of_its_own(tmp_path):
    core = str(min(os.sched_getaffinity(0)))
    with Program(BUSY, tmp_path, "", "3600", prefix=("taskset", "-c", core)) as other:
        other.hear()
        with Program(BUSY, tmp_path, "", "1.0", prefix=("taskset", "-c", core)) as program:
            program.hear()
            clock = OwnTime(program)
            assert program.hear() == "ended"
            assert clock.look() < 0.9  # of a second, of which the other one has had its part


def test_a_program_that_hangs_says_where(link, tmp_path):
    source = """
    import faulthandler
    faulthandler.register(signal.SIGWINCH)

    def stuck_here():
        say("stuck")
        time.sleep(3600)

    async def waits_here(env):
        await env.domain_mgr.run(stuck_here)

    domains.run(waits_here, link=LINK, dump_on_signal=signal.SIGUSR1)
    """
    with Program(source, tmp_path, link) as program:
        program.hear()
        text = what_it_does(program, [signal.SIGWINCH, signal.SIGUSR1], [signal.SIGWINCH])
        assert "in stuck_here" in text
        assert "fiber 'main' waits" in text
        assert text.count("waits in") >= 3
        program.send_signal(signal.SIGKILL)


HANGS = """
import faulthandler
faulthandler.register(signal.SIGWINCH)

async def keep_talking():
    for number in range(10_000):
        running = {"0": ["lock", 7], "1": ["map", number]}
        say({"counts": {"done": 3}, "problems": [], "running": running, "pools": ["a pool"]})
        await asyncio.sleep(0.05)

async def main(env):
    async with Switch() as sw:
        sw.fork(keep_talking)
        await fiber.await_cancel()

domains.run(main, link=LINK, dump_on_signal=signal.SIGUSR1)
"""


def test_a_round_of_the_soak_test_finds_the_operation_that_hangs(monkeypatch, tmp_path):
    monkeypatch.setattr(soak, "LOAD", HANGS)
    monkeypatch.setattr(soak, "ENDS", ["order"])
    monkeypatch.setattr(soak, "HANG_SECONDS", 1.0)
    found = soak.Round(0, 1, 3600.0, tmp_path)
    assert found.counts["hung"] == 1
    assert found.counts["done"] == 3
    (problem,) = found.problems
    assert "('0', 'lock', 7)" in problem
    assert "a pool" in problem
    assert "fiber 'main' waits" in problem


def test_a_round_of_the_soak_test_finds_what_is_left_behind(monkeypatch, tmp_path):
    leaves = """
    import subprocess
    subprocess.Popen(["sleep", "3600"], stdout=subprocess.DEVNULL, start_new_session=True)
    """
    monkeypatch.setattr(soak, "LOAD", leaves)
    monkeypatch.setattr(soak, "ENDS", ["order"])
    found = soak.Round(0, 1, 3600.0, tmp_path)
    assert found.counts["leaked"] == 1
    assert "sleep" in found.problems[0]
