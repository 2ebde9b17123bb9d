"""How programs and domains end: exit status, exit handlers, and signals that come when nothing answers any more."""

import signal
import textwrap

import pytest

from .program import Program, reports

AT_EXIT = """
import atexit

async def enlist(text):
    atexit.register(say, text)

async def wait_for_the_end():
    await fiber.await_cancel()
"""


def ends(link, tmp_path, main):
    """What a program says, and the status that it ends with; nothing of it may be left."""
    with Program(AT_EXIT + main + "\ndomains.run(main, link=LINK)\n", tmp_path, link) as program:
        said = program.hear_rest()
        status = program.wait()
        program.check_nothing_is_left()
        return said, status, program.errors


# Exit status


@pytest.mark.parametrize(
    ("what", "status"),
    [("pass", 0), ("raise OSError('it failed')", 1), ("sys.exit(3)", 3), ("sys.exit('why')", 1), ("os._exit(4)", 4)],
)
def test_a_program_ends_with_the_status_that_its_main_function_chose(link, tmp_path, what, status):
    main = f"""
async def main(env):
    async with env.domain_mgr.spawn() as domain:
        await domain.call(os.getpid)
        {what}
"""
    assert ends(link, tmp_path, main)[1] == status


def test_a_death_that_was_dealt_with_does_not_show_in_the_status(link, tmp_path):
    main = """
def die():
    os.kill(os.getpid(), signal.SIGKILL)

async def main(env):
    try:
        await env.domain_mgr.run(die)
    except DomainDied:
        say("died")
"""
    assert ends(link, tmp_path, main) == (['"died"'], 0, "")


# Exit handlers of domains


def test_exit_handlers_run_when_a_domain_has_finished_or_was_cancelled(link, tmp_path):
    main = """
async def main(env):
    await env.domain_mgr.run(enlist, "finished")
    with domains.move_on_after(10) as scope:
        async with env.domain_mgr.spawn() as domain:
            await domain.call(enlist, "cancelled")
            scope.cancel()
            await domain.call(wait_for_the_end)
    say("end")
"""
    assert ends(link, tmp_path, main) == (['"finished"', '"cancelled"', '"end"'], 0, "")


def test_exit_handlers_run_when_somebody_terminates_the_domain(link, tmp_path):
    main = """
async def main(env):
    async with env.domain_mgr.spawn() as domain:
        await domain.call(enlist, "terminated")
        os.kill(domain.pid, signal.SIGTERM)
        try:
            await domain.call(wait_for_the_end)
        except DomainDied as death:
            say(death.exitcode)
"""
    assert ends(link, tmp_path, main) == (['"terminated"', "143"], 0, "")


def test_exit_handlers_run_when_the_parent_was_killed(link, tmp_path):
    main = """
async def main(env):
    async with env.domain_mgr.spawn() as domain:
        await domain.call(enlist, "orphan")
        os.kill(os.getpid(), signal.SIGKILL)
"""
    assert ends(link, tmp_path, main)[:2] == (['"orphan"'], -signal.SIGKILL)


def test_exit_handlers_do_not_run_when_a_domain_is_killed_and_those_of_others_do(link, tmp_path):
    main = """
async def main(env):
    async with env.domain_mgr.spawn() as domain, env.domain_mgr.spawn() as other:
        await domain.call(enlist, "killed")
        await other.call(enlist, "other")
        os.kill(domain.pid, signal.SIGKILL)
"""
    assert ends(link, tmp_path, main) == (['"other"'], 0, "")


def test_an_exit_handler_that_fails_is_reported_and_changes_nothing(link, tmp_path):
    main = """
async def fail_at_exit():
    atexit.register(fail)

def fail():
    raise LookupError("at exit")

async def main(env):
    async with env.domain_mgr.spawn() as domain:
        await domain.call(enlist, "still")
        await domain.call(fail_at_exit)
    say("end")
"""
    said, status, errors = ends(link, tmp_path, main)
    assert (said, status) == (['"still"', '"end"'], 0)
    assert errors.count("LookupError: at exit") == 1


# A program that is told to end and waits for what never comes

NEVER = {
    "a call, under protect": """
with domains.protect():
    await domain.call(wait)
""",
    "a promise, under protect": """
promise, resolver = Promise.create()
sw.fork(domain.call, wait)
with domains.protect():
    await promise
""",
    "a promise of the domain's, under protect": """
promise = await domain.call(make)
sw.fork(domain.call, wait)
with domains.protect():
    await promise
""",
    "a job that protects itself": """
await domain.call(protected)
""",
    "a computation, under protect": """
with domains.protect():
    await domain.call(compute)
""",
}

TOLD = """
async def wait():
    say("now")
    await fiber.await_cancel()

async def protected():
    with domains.protect():
        say("now")
        await asyncio.sleep(3600)

def compute():
    say("now")
    spin()

async def make():
    promise, domains.domain_state.resolver = Promise.create()
    return promise

async def say_when_told():
    try:
        await fiber.await_cancel()
    finally:
        say("told")

async def main(env):
    try:
        async with env.domain_mgr.spawn() as domain, Switch() as sw:
            sw.fork(say_when_told)
            NEVER
    finally:
        say("finally")

domains.run(main, link=LINK)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("what", list(NEVER))
def test_a_second_signal_ends_a_program_that_waits_for(link, tmp_path, what, number):
    source = TOLD.replace("NEVER", textwrap.indent(NEVER[what], " " * 12).strip())
    with Program(source, tmp_path, link) as program:
        assert program.hear() == "now"
        program.send_signal(number)
        assert program.hear() == "told"
        program.send_signal(number)
        assert program.hear() == "finally"
        status = program.wait()
        if number == signal.SIGTERM:
            assert status == 143
            assert reports(program.errors) == 0, program.errors
        else:
            assert status == -signal.SIGINT
            assert reports(program.errors) == 1, program.errors
            assert program.errors.rstrip().endswith("KeyboardInterrupt")
        program.check_nothing_is_left()
