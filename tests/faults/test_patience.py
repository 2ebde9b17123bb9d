"""A program that hangs is told from one that the machine has no time for, and says where it hangs."""

import os
import signal

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
        assert patience.look([1, 2]) == []
        assert patience.look([2, 3]) == [2]


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
