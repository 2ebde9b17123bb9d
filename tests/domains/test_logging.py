"""What a user sees of the domains: log records, printed lines, tracebacks, progress."""

import asyncio
import atexit
import io
import logging
import subprocess
import sys
import threading
import time
import traceback
from functools import partial

import pytest

import domains
from domains import ExecutorPool, Promise, Stream, Switch

log = logging.getLogger("tests.domains.logging")


def run(main, link="socketpair"):
    return domains.run(main, link=link)


def warn(n):
    log.warning("job %d", n, extra={"number": n})


async def warn_async(n):
    await asyncio.sleep(0)
    log.warning("job %d", n)


@pytest.mark.parametrize("f", [warn, warn_async])
def test_log_records_of_a_domain_arrive_with_its_name(link, f, caplog):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.submit(f, 7, weight=0.5)
            return pool.stats().domains[0]

    domain = run(main, link)
    (record,) = [record for record in caplog.records if record.name == log.name]
    assert record.getMessage() == "job 7"
    assert (record.domain, record.processName, record.process) == (domain.name, domain.name, domain.pid)
    assert (record.levelname, record.filename) == ("WARNING", "test_logging.py")
    if f is warn:
        assert record.number == 7


class _Name(str):
    pass


class _Level(int):
    pass


def _log_oddly():
    no_text = "no text: \udcff"
    try:
        raise ValueError(no_text)
    except ValueError:
        log.exception(no_text)
    logging.getLogger(f"{log.name}.{no_text}").warning("the logger's name")
    thread = threading.Thread(target=log.warning, args=("the thread's name",), name=no_text)
    thread.start()
    thread.join()
    logging.getLogger(_Name(log.name)).log(_Level(30), "kinds of their own")
    log.handle(logging.LogRecord(log.name, 30, {"no": object()}, 1, "fields of any kind", (), None))
    log.warning("extra", extra={"odd": no_text, "domain": 5})
    return "done"


def test_a_record_arrives_whatever_is_in_it(link, caplog):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            assert await pool.submit(_log_oddly, weight=1.0) == "done"
            assert await pool.submit(abs, -1, weight=1.0) == 1

    run(main, link)
    records = {record.getMessage(): record for record in caplog.records if record.name.startswith(log.name)}
    assert len(records) == 6
    assert r"ValueError: no text: \udcff" in records[r"no text: \udcff"].exc_text
    assert records["the logger's name"].name == rf"{log.name}.no text: \udcff"
    assert records["the thread's name"].threadName == r"no text: \udcff"
    assert records["kinds of their own"].levelno == 30
    assert records["fields of any kind"].pathname.startswith("{'no': <object")
    assert (records["extra"].odd, records["extra"].domain) == ("no text: \udcff", "5")


def test_a_domain_starts_whatever_its_parents_loggers_are_called(link, monkeypatch):
    logger = logging.getLogger(f"{log.name}.no text: \udcff")
    monkeypatch.setattr(logger, "level", _Level(10))

    async def main(env):
        return await env.domain_mgr.run(abs, -1)

    assert run(main, link) == 1


class _Disturbed(logging.Logger):
    """Whoever asks for its level is overtaken by another thread that makes a logger."""

    @property
    def level(self):
        thread = threading.Thread(target=logging.getLogger, args=(f"{log.name}.made meanwhile",))
        thread.start()
        thread.join()
        return 0

    @level.setter
    def level(self, _):
        pass


def test_a_domain_starts_while_a_thread_makes_a_logger(monkeypatch):
    loggers = logging.root.manager.loggerDict
    monkeypatch.setattr(logging.root.manager, "loggerDict", {**loggers, "disturbed": _Disturbed("disturbed")})

    async def main(env):
        return await env.domain_mgr.run(abs, -1)

    assert run(main) == 1


def test_a_filter_that_fails_costs_its_record_alone(link, monkeypatch, capsys):
    def fail(record):
        raise ValueError("no opinion")

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.submit(warn, 7, weight=0.5)
            return await pool.submit(abs, -1, weight=1.0)

    monkeypatch.setattr(log, "filters", [fail])
    assert run(main, link) == 1
    assert "ValueError: no opinion" in capsys.readouterr().err


def test_a_record_arrives_while_its_job_still_runs(link, tmp_path, caplog):
    finish = tmp_path / "finish"

    def job():
        log.warning("begun")
        while not finish.exists():
            time.sleep(0.001)

    class Finish(logging.Handler):
        def emit(self, record):
            finish.touch()

    handler = Finish()
    log.addHandler(handler)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.submit(job, weight=1.0)

    try:
        run(main, link)
    finally:
        log.removeHandler(handler)
    assert "begun" in caplog.text


def test_a_domain_logs_at_the_levels_of_its_parent(link, caplog):
    def job():
        log.debug("debug")
        log.info("info")
        logging.getLogger("tests.domains.other").info("other")

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.submit(job, weight=1.0)

    with caplog.at_level(logging.INFO, log.name):
        run(main, link)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("tests.domains")] == ["info"]


def test_a_record_with_an_exception_brings_its_traceback(link, caplog):
    def job():
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError:
            log.exception("failed", extra={"lock": threading.Lock()})

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.submit(job, weight=1.0)

    run(main, link)
    (record,) = [record for record in caplog.records if record.name == log.name]
    assert "ZeroDivisionError" in record.exc_text
    assert "lock" in record.lock  # what cannot travel is described


def test_records_of_a_thread_of_a_domain_arrive(link, caplog):
    def job():
        thread = threading.Thread(target=log.warning, args=("from a thread",), name="helper")
        thread.start()
        thread.join()

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.submit(job, weight=1.0)
            await pool.submit(abs, 1, weight=1.0)

    run(main, link)
    assert [record.threadName for record in caplog.records if record.name == log.name] == ["helper"]


class Meanwhile:
    """Does something while it is pickled, and cannot be."""

    def __init__(self, act):
        self.act = act

    def __reduce__(self):
        self.act()
        raise TypeError("stays here")


class Then(Meanwhile):
    """Does something while it is pickled."""

    def __reduce__(self):
        self.act()
        return str, ("made",)


def make_streams_while_a_thread_logs():
    begun, go_on = threading.Event(), threading.Event()

    def pause():
        begun.set()
        go_on.wait()

    thread = threading.Thread(target=log.warning, args=("from a thread",), kwargs={"extra": {"n": Meanwhile(pause)}})

    def begin():
        thread.start()
        begun.wait()

    def end():
        go_on.set()
        thread.join()

    return Stream(1), Then(begin), Stream(1), Then(end)


def test_a_record_that_a_thread_makes_leaves_alone_what_is_pickled_meanwhile(caplog):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            first, _, second, _ = await pool.submit(make_streams_while_a_thread_logs, weight=1.0)
            return len(first), len(second)

    assert run(main) == (0, 0)


class _AsksTheLoop:
    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.begun = threading.Event()

    def __repr__(self):
        self.begun.set()
        return asyncio.run_coroutine_threadsafe(asyncio.sleep(0, "its answer"), self.loop).result(10)


async def _log_what_asks_the_loop():
    asking = _AsksTheLoop()
    thread = threading.Thread(target=lambda: (log.warning("first"), log.warning("%r", asking)))
    thread.start()
    asking.begun.wait()  # so that the loop is still to send the first
    await domains.run_in_thread(thread.join)


def test_what_a_thread_logs_may_ask_the_loop(caplog):
    run(lambda env: env.domain_mgr.run(_log_what_asks_the_loop))
    assert [record.getMessage() for record in caplog.records if record.name == log.name] == ["first", "its answer"]


_MANY = 1500


def _log_much_in_a_thread():
    thread = threading.Thread(target=lambda: [log.warning("x" * 4096) for _ in range(_MANY)])
    thread.start()
    thread.join()


def test_of_what_threads_log_while_a_plain_job_runs_only_so_much_is_kept(link, caplog):
    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            await domain.call(_log_much_in_a_thread)
            await domain.call(log.warning, "after this")

    run(main, link)
    *kept, last = [record.getMessage() for record in caplog.records if record.name == log.name]
    assert 0 < len(kept) <= 1024
    assert last == (
        f"after this (before this, {_MANY - len(kept)} records were dropped: more than the parent could read)"
    )


def _log_a_promise():
    log.warning("a promise", extra={"answer": Promise.create("the answer")[0]})


def test_a_reference_in_a_record_is_described(caplog):
    run(lambda env: env.domain_mgr.run(_log_a_promise))
    (record,) = [record for record in caplog.records if record.name == log.name]
    assert record.answer.startswith("<promise 'the answer'")


def _log_under_no_name():
    logging.root.handle(logging.makeLogRecord({"name": 7, "msg": "by whom?", "levelno": 40}))
    return "done"


def test_a_records_name_may_be_no_string(link, caplog):
    assert run(lambda env: env.domain_mgr.run(_log_under_no_name), link) == "done"
    assert "by whom?" in caplog.messages


def test_what_is_logged_as_a_domain_exits_is_seen(link, capfd):
    run(lambda env: env.domain_mgr.run(atexit.register, log.error, "could not save"), link)
    assert "could not save" in capfd.readouterr().err


def run_nested():
    async def main(env):
        await env.domain_mgr.run(warn, 1)

    domains.run(main)


def test_records_of_a_domain_of_a_domain_keep_their_name(link, caplog):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.submit(run_nested, weight=1.0)
            return pool.stats().domains[0].name

    name = run(main, link)
    (record,) = [record for record in caplog.records if record.name == log.name]
    assert record.domain == f"{name}.1"


_PRINTING = """
import domains

def job(n):
    print(n, "x" * {length}, sep=":")

async def main(env):
    async with domains.ExecutorPool(env.domain_mgr, domain_count=3) as pool, domains.Switch() as sw:
        for n in range(60):
            pool.submit_fork(sw, job, n, weight=1.0)

domains.run(main)
"""


@pytest.mark.parametrize("length", [10, 3000, 100_000])
def test_printed_lines_are_whole(length):  # S63
    program = _PRINTING.format(length=length)
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    lines = output.stdout.splitlines()
    assert sorted(lines) == sorted(f"{n}:{'x' * length}" for n in range(60))
    assert output.stderr == ""


def outer(n):
    return inner(n)


def inner(n):
    raise ValueError(f"bad {n}")


async def outer_async(n):
    await asyncio.sleep(0)
    return inner(n)


@pytest.mark.parametrize("f", [outer, outer_async])
def test_a_traceback_shows_the_users_remote_frames_and_none_of_ours(f):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(ValueError, match="bad 3") as caught:
                await pool.submit(f, 3, weight=1.0)
            return caught.value.__notes__[0], "".join(traceback.format_exception(caught.value))

    note, shown = run(main)
    assert f"in {f.__name__}" in note
    assert "in inner" in note
    assert "job_runner" not in note
    assert "in inner" in shown


async def fail_twice(n):
    async with Switch() as sw:
        sw.fork(outer_async, n)
        sw.fork(outer_async, n)


def test_each_traceback_of_a_group_shows_the_users_remote_frames_only():
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(ExceptionGroup) as caught:
                await pool.submit(fail_twice, 3, weight=1.0)
            return caught.value.__notes__[0]

    note = run(main)
    assert note.count("in outer_async") == note.count("in inner") == 2
    assert "in _run" not in note
    assert "in fail_twice" in note


@pytest.mark.parametrize("f", [outer, outer_async])
def test_a_traceback_names_the_function_that_a_map_was_given(f):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(ValueError) as caught:
                await pool.map(f, [3], weight=1.0)
            face = pool.as_executor()
            failed = await asyncio.gather(
                *(asyncio.wrap_future(future) for future in (face.submit(f, n=3), face.submit(partial(f, 3)))),
                return_exceptions=True,
            )
            return [error.__notes__[0] for error in (caught.value, *failed)]

    for note in run(main):
        assert f"Traceback of job {f.__name__!r}" in note


def test_progress_is_told_while_jobs_end():
    told = []

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
            with pool.watch(told.append, interval=0.01):
                async with Switch() as sw:
                    for n in range(50):
                        pool.submit_fork(sw, abs, n, weight=1.0)
                assert [r async for r in pool.map(abs, range(100), weight=1.0, chunk=7)] == list(range(100))

    run(main)
    last = told[-1]
    assert (last.submitted, last.ended, last.failed) == (150, 150, 0)
    assert [progress.ended for progress in told] == sorted(progress.ended for progress in told)


def test_progress_counts_from_the_beginning_of_each_block():
    told = []

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            watch = pool.watch(told.append, interval=60.0)
            for _ in range(2):
                await pool.submit(abs, -1, weight=1.0)
                with watch:
                    await pool.submit(abs, -1, weight=1.0)
                    with pytest.raises(RuntimeError, match="under way already"):
                        watch.__enter__()

    run(main)
    assert told == [(1, 1, 0), (1, 1, 0)]


def test_failures_count_as_ended_and_failed():
    told = []

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pool.watch(told.append):
                with pytest.raises(ValueError):
                    await pool.submit(int, "x", weight=1.0)

    run(main)
    assert told[-1] == (1, 1, 1)


async def submit_failing(pool):
    with pytest.raises(ValueError):
        await pool.submit(int, "x", weight=0.5)


def test_failures_of_what_other_domains_submitted_count_as_well():
    told = []

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pool.watch(told.append):
                await pool.submit(submit_failing, pool, weight=0.5)

    run(main)
    assert told[-1] == (2, 2, 1)


def test_items_of_a_map_that_fails_or_is_left_have_all_ended():
    told = []

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pool.watch(told.append):
                with pytest.raises(ZeroDivisionError):
                    await pool.map(lambda n: 1 / (n - 9), range(100), weight=1.0, chunk=7)

    run(main)
    assert told[-1].ended == told[-1].submitted > 9
    assert told[-1].failed >= 1


def test_the_rich_progress_bar_shows_a_pools_progress():
    rich_console = pytest.importorskip("rich.console")
    from domains.pool.progress_bar import progress_bar

    out = io.StringIO()
    console = rich_console.Console(file=out, force_terminal=True, width=100)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with progress_bar(pool, "squares", total=40, console=console):
                async for _ in pool.map(abs, range(40), weight=1.0):
                    pass

    run(main)
    assert "squares" in out.getvalue()
    assert "40/40" in out.getvalue()
