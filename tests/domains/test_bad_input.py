"""What is wrong gives one clear error to the right caller, and the pool goes on working."""

import asyncio
import os
import signal
import sys
import threading

import pytest

import domains
import domains.testing
from domains import DomainDied, ExecutorPool, NotPicklable, Switch


def in_pool(main, link, count=1):
    """Run `main(pool)`, then check that the pool still works."""

    async def outer(env):
        async with ExecutorPool(env.domain_mgr, domain_count=count) as pool:
            result = await main(pool)
            assert await pool.submit(_answer, weight=1.0) == 42
            return result

    return domains.run(outer, link=link)


def _answer():
    return 42


@pytest.mark.parametrize("weight", [float("nan"), -0.1, 1.1, float("inf")])
def test_a_weight_outside_of_zero_to_one_is_a_value_error(link, weight):  # S64
    async def main(pool):
        with pytest.raises(ValueError, match="weight"):
            await pool.submit(_answer, weight=weight)
        assert pool.stats().queued == pool.stats().running == 0

    in_pool(main, link)


@pytest.mark.parametrize("weight", [True, "1.0", None, b"1"])
def test_a_weight_that_is_no_number_is_a_type_error(link, weight):  # S64
    async def main(pool):
        with pytest.raises(TypeError, match="weight"):
            await pool.submit(_answer, weight=weight)
        async with Switch() as sw:
            with pytest.raises(TypeError, match="weight"):
                pool.submit_fork(sw, _answer, weight=weight)

    in_pool(main, link)


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "soon"}, TypeError),
        ({"priority": "high"}, TypeError),
        ({"priority": None}, TypeError),
        ({"priority": 0.5}, TypeError),
        ({"priority": True}, TypeError),
        ({"priority": 1 << 63}, ValueError),
        ({"retries": 1 << 63}, ValueError),
    ],
)
def test_a_senseless_option_is_refused_before_anything_is_queued(link, option, error):
    async def main(pool):
        with pytest.raises(error, match=next(iter(option))):
            await pool.submit(_answer, weight=1.0, **option)
        assert pool.stats().queued == pool.stats().running == 0

    in_pool(main, link)


def test_weight_is_required(link):
    async def main(pool):
        with pytest.raises(TypeError):
            await pool.submit(_answer)

    in_pool(main, link)


async def _submit(pool, f):
    await pool.submit(f, weight=1.0)


async def _submit_fork(pool, f):
    async with Switch() as sw:
        await pool.submit_fork(sw, f, weight=1.0)


async def _map(pool, f):
    pool.map(f, [], weight=1.0)


async def _call(pool, f):
    async with pool._manager.spawn() as domain:
        await domain.call(f)


async def _run(pool, f):
    await pool._manager.run(f)


async def _initialize(pool, f):
    ExecutorPool(pool._manager, initializer=f)


async def _execute(pool, f):
    await asyncio.wrap_future(pool.as_executor().submit(f))


_WAYS = [_submit, _submit_fork, _map, _call, _run, _initialize, _execute]


async def _fetch():
    """Is called where it should be passed."""


@pytest.mark.parametrize("way", _WAYS)
def test_what_is_no_function_is_a_type_error(link, way):
    async def main(pool):
        with pytest.raises(TypeError, match=r"must be a function, not int 42$"):
            await way(pool, 42)

    in_pool(main, link)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("way", _WAYS)
def test_a_coroutine_for_a_function_is_a_type_error_that_says_so(link, way):
    async def main(pool):
        with pytest.raises(TypeError, match="must be a function, not a coroutine: pass _fetch itself"):
            await way(pool, _fetch())

    in_pool(main, link)


_RUNS = [domains.run, domains.testing.run]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("run", _RUNS)
def test_a_main_that_is_no_function_is_a_type_error(run):
    with pytest.raises(TypeError, match=r"^main must be a function, not NoneType None$"):
        run(None)
    with pytest.raises(TypeError, match=r"^main must be a function, not a coroutine: pass _fetch itself"):
        run(_fetch())


@pytest.mark.parametrize("run", _RUNS)
@pytest.mark.parametrize("main", [lambda: 3, lambda env: 3])
def test_a_main_that_is_not_async_is_a_type_error(run, main):
    with pytest.raises(TypeError, match=r"^main must be an async function, but .*<lambda> returned int$"):
        run(main)


@pytest.mark.parametrize("run", _RUNS)
def test_a_main_may_be_plain_and_return_what_can_be_awaited(run):
    assert run(lambda env: _take_async(env)) is not None


async def _take_async(argument):
    return argument


def test_a_function_that_cannot_travel_names_what_inside_it_cannot(link):
    lock = threading.Lock()

    def uses_a_lock():
        return lock

    async def main(pool):
        with pytest.raises(NotPicklable, match="lock"):
            await pool.submit(uses_a_lock, weight=1.0)

    in_pool(main, link)


def test_an_argument_that_cannot_travel_is_named_by_its_path(link):
    async def main(pool):
        with pytest.raises(NotPicklable) as caught:
            await pool.submit(_take, {"pictures": [1, threading.Lock()]}, weight=1.0)
        return str(caught.value)

    text = in_pool(main, link)
    assert "_take" in text
    assert "['pictures'][1]" in text
    assert "lock" in text


def _take(argument):
    return argument


def test_a_result_that_cannot_travel_fails_its_job_alone(link):  # S69
    async def main(pool):
        async with Switch() as sw:
            bad = pool.submit_fork(sw, _return_lock, weight=1.0)
            good = pool.submit_fork(sw, _answer, weight=1.0)
            with pytest.raises(NotPicklable) as caught:
                await bad
            assert await good == 42
        return str(caught.value)

    text = in_pool(main, link)
    assert "['inner']" in text
    assert "_return_lock" in text


def _return_lock():
    return {"inner": threading.Lock()}


class HasLock(Exception):
    def __init__(self):
        super().__init__("has a lock")
        self.lock = threading.Lock()


class Picky(Exception):
    def __init__(self, first, second):
        super().__init__("only one argument")


def _raise(kind, *arguments):
    raise kind(*arguments)


def test_an_exception_that_cannot_travel_is_described(link):
    async def main(pool):
        with pytest.raises(NotPicklable) as caught:
            await pool.submit(_raise, HasLock, weight=1.0)
        return caught.value

    error = in_pool(main, link)
    assert "HasLock" in str(error)
    assert "has a lock" in str(error)
    assert any("_raise" in note for note in error.__notes__)


def test_an_exception_whose_constructor_refuses_is_described(link):
    async def main(pool):
        with pytest.raises(NotPicklable) as caught:
            await pool.submit(_raise, Picky, 1, 2, weight=1.0)
        return caught.value

    error = in_pool(main, link)
    assert "Picky" in str(error)
    assert "only one argument" in str(error)
    assert any("_raise" in note for note in error.__notes__)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_sys_exit_in_a_job_is_the_jobs_failure(link, kind):  # S66
    async def main(pool):
        before = await pool.submit(os.getpid, weight=1.0)
        with pytest.raises(kind):
            await pool.submit(_raise, kind, weight=1.0)
        with pytest.raises(kind):
            await pool.submit(_raise_async, kind, weight=1.0)
        assert await pool.submit(os.getpid, weight=1.0) == before

    in_pool(main, link)


async def _raise_async(kind):
    raise kind


def test_os_exit_in_a_job_is_a_domain_that_died(link):
    async def main(pool):
        with pytest.raises(DomainDied) as caught:
            await pool.submit(os._exit, 3, weight=1.0)
        return caught.value

    error = in_pool(main, link)
    assert error.exitcode == 3
    assert error.signal is None
    assert "domain-1" in str(error)
    assert "_exit" in str(error)


def _kill_me():
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


def test_a_domain_killed_mid_job_fails_that_job_and_nothing_else(link):
    async def main(pool):
        async with Switch() as sw:
            killed = pool.submit_fork(sw, _kill_me, weight=1.0)
            others = [pool.submit_fork(sw, _take, n, weight=1.0) for n in range(100)]
            with pytest.raises(DomainDied) as caught:
                await killed
            assert [await promise for promise in others] == list(range(100))
        return caught.value

    assert in_pool(main, link, count=2).signal == signal.SIGKILL


def test_a_crash_of_the_interpreter_brings_its_traceback(link):
    def crash():
        import faulthandler

        faulthandler._sigsegv()

    async def main(pool):
        with pytest.raises(DomainDied) as caught:
            await pool.submit(crash, weight=1.0)
        return caught.value

    error = in_pool(main, link)
    assert error.signal == signal.SIGSEGV
    assert "crash" in error.fatal_traceback
    assert "Segmentation fault" in str(error)


def test_a_job_may_be_tried_again_when_its_domain_died(link, tmp_path):
    mark = tmp_path / "mark"

    def die_once():
        if not mark.exists():
            mark.touch()
            os._exit(1)
        return "second time"

    async def main(pool):
        return await pool.submit(die_once, weight=1.0, retries=1)

    assert in_pool(main, link) == "second time"


def test_a_job_that_always_kills_its_domain_ends_after_its_retries(link):
    async def main(pool):
        with pytest.raises(DomainDied):
            await pool.submit(os._exit, 1, weight=1.0, retries=2)

    in_pool(main, link)


def test_a_submit_after_the_close_raises_closed(link):  # S67
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            pass
        with pytest.raises(domains.Closed):
            await pool.submit(_answer, weight=1.0)
        async with Switch() as sw:
            with pytest.raises(domains.Closed):
                pool.submit_fork(sw, _answer, weight=1.0)
        with pytest.raises(domains.Closed):
            pool.map(_answer, [1], weight=1.0)

    domains.run(main, link=link)


@pytest.mark.parametrize(("count", "kind"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)])
def test_a_pool_needs_at_least_one_domain(link, count, kind):
    async def main(env):
        with pytest.raises(kind, match="domain_count"):
            ExecutorPool(env.domain_mgr, domain_count=count)

    domains.run(main, link=link)


def test_an_exception_keeps_its_type_its_notes_its_cause_and_its_traceback(link):
    def deep():
        raise KeyError("inner")

    def job():
        try:
            deep()
        except KeyError as inner:
            error = ValueError("outer", 2)
            error.add_note("a note of mine")
            raise error from inner

    async def main(pool):
        with pytest.raises(ValueError) as caught:
            await pool.submit(job, weight=1.0)
        return caught.value

    error = in_pool(main, link)
    assert error.args == ("outer", 2)
    assert error.__notes__[0] == "a note of mine"
    assert "in deep" in error.__notes__[1]
    assert "in job" in error.__notes__[1]
    assert "domain-1" in error.__notes__[1]
    assert type(error.__cause__) is KeyError
    assert "in deep" in str(error.__cause__.__cause__)


def test_an_exception_without_a_cause_has_the_remote_traceback_as_its_cause(link):
    async def main(pool):
        with pytest.raises(ZeroDivisionError) as caught:
            await pool.submit(lambda: 1 / 0, weight=1.0)
        return caught.value

    error = in_pool(main, link)
    assert "ZeroDivisionError" in str(error.__cause__)


def test_a_class_that_only_the_parent_can_build_fails_at_the_submit_or_as_not_picklable(link):
    class Refuses:
        def __reduce__(self):
            raise RuntimeError("never")

    async def main(pool):
        with pytest.raises(NotPicklable, match="never"):
            await pool.submit(_take, Refuses(), weight=1.0)

    in_pool(main, link)


def test_an_argument_that_cannot_be_opened_there_fails_its_job_alone(link):
    class Trap:
        def __reduce__(self):
            return (_fail_in_another_process, (os.getpid(),))

    async def main(pool):
        with pytest.raises(NotPicklable, match="not here"):
            await pool.submit(_take, Trap(), weight=1.0)

    in_pool(main, link)


def _fail_in_another_process(pid):
    if os.getpid() != pid:
        raise RuntimeError("not here")


def test_a_recursion_without_end_fails_its_job_alone(link):
    def endless():
        return endless()

    async def main(pool):
        with pytest.raises(RecursionError):
            await pool.submit(endless, weight=1.0)

    in_pool(main, link)


def test_windows_is_refused_with_a_reason():
    import subprocess

    code = "import sys; sys.platform = 'win32'; import domains"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "POSIX" in done.stderr


class _RaisesAsItIsPickled:
    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        raise self.kind


class _RaisesAsItIsOpened:
    def __init__(self, kind):
        self.kind = kind

    def __setstate__(self, state):
        raise state["kind"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_whatever_is_raised_as_data_is_pickled_or_opened_fails_its_job_only(link, kind):  # S66 S69
    async def main(pool):
        pid = await pool.submit(os.getpid, weight=1.0)
        for call in ((_RaisesAsItIsPickled, kind), (repr, _RaisesAsItIsOpened(kind))):
            with pytest.raises((NotPicklable, kind)):
                await pool.submit(*call, weight=1.0)
        assert await pool.submit(os.getpid, weight=1.0) == pid

    in_pool(main, link)
