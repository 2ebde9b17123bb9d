"""The executor pool end to end, over both kinds of link."""

import asyncio
import collections
import contextvars
import functools
import importlib
import math
import os
import sys
import threading
import types

import pytest

import domains
from domains import ExecutorPool, Switch, fiber
from domains.ipc import vigil
from domains.ipc.link import Link
from domains.pool import dispatch


def run(main, link):
    return domains.run(main, link=link)


def square(x):
    return x * x


async def square_async(x):
    await asyncio.sleep(0)
    return x * x


def raise_value_error(text):
    raise ValueError(text)


def test_a_plain_function_returns_its_result(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            return await pool.submit(square, 7, weight=1.0)

    assert run(main, link) == 49


def test_an_async_function_returns_its_result(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            return await pool.submit(square_async, 7, weight=0.1)

    assert run(main, link) == 49


def test_a_job_that_is_forked_on_a_cancelled_switch_does_not_run(tmp_path):  # S18
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.submit(square, 1, weight=1.0)  # from now on the domain would get it at once
            async with Switch() as switch:
                switch.cancel()
                promise = pool.submit_fork(switch, os.mkdir, tmp_path / "made", weight=1.0)
                with pytest.raises(ValueError):
                    pool.submit_fork(switch, os.mkdir, tmp_path / "made", weight=2.0)
            with pytest.raises(domains.Cancelled):
                await promise

    domains.run(main)
    assert not (tmp_path / "made").exists()


def test_a_job_goes_to_an_idle_domain_at_once_and_others_wait_for_the_turn(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as switch:
            await pool.submit(square, 1, weight=1.0)
            promises = [pool.submit_fork(switch, square, x, weight=1.0) for x in range(3)]
            stats = pool.stats()
            assert (stats.running, stats.queued) == (1, 2)
            return [await promise for promise in promises]

    assert run(main, link) == [0, 1, 4]


@pytest.fixture
def expected(monkeypatch):
    """The links on which an answer was expected soon, each as often as it was."""
    expected = []
    expect_soon = Link.expect_soon

    def recorded(link):
        expected.append(link)
        expect_soon(link)

    monkeypatch.setattr(Link, "expect_soon", recorded)
    return expected


@pytest.mark.parametrize("cores", [1, 2])
def test_a_loop_may_stay_awake_for_the_only_job_unless_it_would_take_its_core(link, cores, expected, monkeypatch):
    monkeypatch.setattr(dispatch, "recommended_domain_count", lambda: cores)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool, Switch() as switch:
            for _ in range(2):
                await pool.submit(square, 1, weight=1.0)
            for number in range(20):  # of these, the first goes to a domain that has nothing to do
                assert await pool.submit(square, number, weight=1.0) == number * number
            before = len(expected)
            for promise in [pool.submit_fork(switch, square, number, weight=1.0) for number in range(20)]:
                await promise
            return before, len(expected)

    before, after = run(main, link)
    assert (before >= 20, after - before) == ((True, 1) if cores > 1 else (False, 0))


def test_what_is_awaited_awake_and_dies_or_is_cancelled_ends_as_ever(link, expected, monkeypatch):
    monkeypatch.setattr(vigil, "SOON_SECONDS", math.inf)  # however slow this machine is, and whatever is faster
    monkeypatch.setattr(vigil, "_GAIN", math.inf)
    monkeypatch.setattr(vigil, "_PATIENCE", math.inf)
    monkeypatch.setattr(dispatch, "recommended_domain_count", lambda: 2)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            for _ in range(2):
                for number in range(40):
                    assert await pool.submit(square, number, weight=1.0) == number * number
                async with Switch() as switch:
                    waiting = pool.submit_fork(switch, asyncio.sleep, 1000, weight=1.0)
                    assert expected[-1]._vigil.is_turning
                    await fiber.yield_now()
                    switch.cancel()
                with pytest.raises(domains.Cancelled):
                    await waiting
                with pytest.raises(domains.DomainDied):
                    await pool.submit(os._exit, 3, weight=1.0)

    run(main, link)


def test_many_submissions_in_one_turn_begin_before_it_is_over(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool, Switch() as switch:
            await pool.submit(square, 1, weight=1.0)
            promises = [pool.submit_fork(switch, square_async, x, weight=0.001) for x in range(700)]
            assert pool.stats().running >= 500
            return [await promise for promise in promises]

    assert run(main, link) == [x * x for x in range(700)]


def test_lambdas_closures_partials_and_methods_are_jobs(link):
    offset = 5

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            return [
                await pool.submit(lambda x: x + offset, 1, weight=1.0),
                await pool.submit(functools.partial(square, 3), weight=1.0),
                await pool.submit("abc".upper, weight=1.0),
                await pool.submit(len, [1, 2], weight=1.0),
            ]

    assert run(main, link) == [6, 9, "ABC", 2]


def test_a_closure_is_sent_as_it_is_at_the_submit(link):
    values = [1]

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            first = await pool.submit(lambda: sum(values), weight=1.0)
            values.append(10)
            return first, await pool.submit(lambda: sum(values), weight=1.0)

    assert run(main, link) == (1, 11)


class Counter:
    def __init__(self):
        self.count = 0

    def increment(self, by=1):
        self.count += by
        return self.count

    def lock(self):
        return threading.Lock()


class AnythingCalled:
    """As proxies and builders of queries are: whatever is asked of it is there."""

    def __getattr__(self, name):
        if name.startswith("__") and name != "__globals__":
            raise AttributeError(name)
        return AnythingCalled()

    def __call__(self):
        return "called"


def append(seen, x):
    seen.append(x)
    return seen


def test_each_job_has_a_copy_of_the_object_whose_method_it_calls():
    async def main(env):
        counter, items = Counter(), collections.deque([1, 2])
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            for _ in range(2):
                assert await pool.submit(counter.increment, weight=1.0) == 1
                assert await pool.submit(items.popleft, weight=1.0) == 1
                assert await pool.submit(functools.partial(append, []), 5, weight=1.0) == [5]
                assert await pool.submit(AnythingCalled(), weight=1.0) == "called"
                assert await pool.map(counter.increment, [1, 2, 1], weight=1.0, chunk=1) == [1, 2, 1]
                executor = pool.as_executor()
                assert await asyncio.wrap_future(executor.submit(items.popleft)) == 1
                assert await asyncio.wrap_future(executor.submit(counter.increment, by=2)) == 2

    run(main, "socketpair")


def test_a_result_that_cannot_travel_is_told_with_the_name_of_the_method(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(domains.NotPicklable, match=r"the result of job 'Counter.lock'"):
                await pool.submit(Counter().lock, weight=1.0)

    run(main, link)


def test_arguments_are_those_of_the_submit(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as sw:
            argument = [1, 2]
            promise = pool.submit_fork(sw, sum, argument, weight=1.0)
            argument.clear()
            return await promise

    assert run(main, link) == 3


def test_jobs_of_equal_priority_start_in_the_order_of_their_submission(link):  # S65
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as sw:
            promises = [pool.submit_fork(sw, _next_number, weight=1.0) for _ in range(500)]
            return [await promise for promise in promises]

    assert run(main, link) == list(range(500))


_count = -1


def _next_number():
    global _count
    _count += 1
    return _count


def test_a_domain_runs_jobs_while_their_weights_add_up_to_less_than_one(link):  # S64
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as sw:
            promises = [pool.submit_fork(sw, _most_at_once, weight=0.3) for _ in range(40)]
            return max([await promise for promise in promises])

    assert run(main, link) == 4  # 0.3 + 0.3 + 0.3 is below 1.0, so the fourth starts, and no fifth


def test_ten_jobs_of_a_tenth_are_exactly_one(link):  # S64
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as sw:
            promises = [pool.submit_fork(sw, _most_at_once, weight=0.1) for _ in range(60)]
            return max([await promise for promise in promises])

    assert run(main, link) == 10


_running = 0
_most = 0


async def _most_at_once():
    global _running, _most
    _running += 1
    _most = max(_most, _running)
    for _ in range(20):
        await asyncio.sleep(0)
    _running -= 1
    return _most


def test_jobs_of_weight_zero_start_beside_a_full_domain(link):  # S64
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as sw:
            full = pool.submit_fork(sw, _wait_for_release, weight=1.0)
            await pool.submit(_release, weight=0.0)
            return await full

    assert run(main, link) == "released"


_event: asyncio.Event | None = None


async def _wait_for_release():
    global _event
    _event = _event or asyncio.Event()
    await _event.wait()
    return "released"


async def _release():
    global _event
    _event = _event or asyncio.Event()
    _event.set()


def test_an_idle_domain_takes_what_was_sent_ahead_to_a_busy_one(link, tmp_path):  # S65
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool, Switch() as sw:
            for _ in range(200):  # teaches the pool that jobs are short, so that it sends ahead
                await pool.submit(square, 1, weight=1.0)
            blocked = pool.submit_fork(sw, _read_fifo, fifo, weight=1.0)
            others = [pool.submit_fork(sw, square, n, weight=1.0) for n in range(50)]
            results = [await promise for promise in others]
            await domains.run_in_thread(_write_fifo, fifo)
            return results, await blocked

    assert run(main, link) == ([n * n for n in range(50)], "now")


def test_a_function_is_kept_while_a_job_that_has_not_begun_needs_it(link, monkeypatch):
    monkeypatch.setattr("domains.functions._MOST_KNOWN", 2)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as sw:
            for _ in range(200):  # teaches the pool that jobs are short, so that it sends ahead
                await pool.submit(square, 1, weight=1.0)
            blocked = pool.submit_fork(sw, _wait_for_release, weight=1.0)
            ahead = pool.submit_fork(sw, square, 3, weight=1.0)
            while pool.stats().running < 2:
                await domains.fiber.yield_now()
            others = [lambda n=n: n for n in range(9)]
            for f in (*others, *others):
                await pool.submit(f, weight=0.0)
            await pool.submit(_release, weight=0.0)
            return await blocked, await ahead

    assert run(main, link) == ("released", 9)


def _write_fifo(path):
    with open(path, "w") as file:
        file.write("now")


def _read_fifo(path):
    with open(path) as file:
        return file.read()


def _touch_and_read_fifo(begun, fifo):
    begun.touch()
    return _read_fifo(fifo)


@pytest.mark.parametrize("weight", [1.0, 0.3, 0.1])
def test_a_higher_priority_starts_first(link, weight, tmp_path):
    begun, fifo = tmp_path / "begun", str(tmp_path / "fifo")
    os.mkfifo(fifo)

    async def main(env):
        order = []

        async def submit(pool, name, priority):
            await pool.submit(square, 1, weight=weight, priority=priority)
            order.append(name)

        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as sw:
            blocked = pool.submit_fork(sw, _touch_and_read_fifo, begun, fifo, weight=weight)
            while not begun.exists():
                await domains.fiber.yield_now()
            for number in range(5):
                sw.fork(submit, pool, f"low {number}", 0)
            await domains.fiber.yield_now()
            sw.fork(submit, pool, "high", 5)
            for _ in range(3):  # until it was sent, and what was sent before it has been taken back
                await domains.fiber.yield_now()
            await domains.run_in_thread(_write_fifo, fifo)
            await blocked
        return order

    assert run(main, link) == ["high", *(f"low {number}" for number in range(5))]


def test_many_jobs_over_several_domains_all_end(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=3) as pool, Switch() as sw:
            promises = [pool.submit_fork(sw, square, n, weight=1.0) for n in range(5000)]
            return [await promise for promise in promises]

    assert run(main, link) == [n * n for n in range(5000)]


def test_a_job_says_in_which_domain_it_runs(link):  # S70
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            inside = await pool.submit(domains.current, weight=1.0)
            return domains.current(), inside, pool.stats().domains[0]

    here, inside, stats = run(main, link)
    assert here == (0, "main", os.getpid())
    assert inside.id != 0
    assert (inside.name, inside.pid) == (stats.name, stats.pid)


def test_a_plain_job_runs_in_the_main_thread_and_may_run_a_loop_of_its_own(link):
    def job():
        async def inner():
            await asyncio.sleep(0)
            return threading.current_thread() is threading.main_thread()

        return asyncio.run(inner())

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            return [await pool.submit(job, weight=1.0) for _ in range(2)]

    assert run(main, link) == [True, True]


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")


def test_a_job_sees_the_submitters_context_variables(link):  # S12
    local = contextvars.ContextVar("local")
    unpicklable = contextvars.ContextVar("unpicklable")

    async def read():
        return variable.get(), local.get(None), unpicklable.get("absent")

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            before = await pool.submit(read, weight=0.1)
            variable.set("set")
            local.set(42)
            unpicklable.set(threading.Lock())
            after = await pool.submit(read, weight=0.1)
            return before, after

    assert run(main, link) == (("default", None, "absent"), ("set", 42, "absent"))


def test_a_context_variable_that_is_not_known_over_there_is_left_out(monkeypatch):  # S12
    plugin = types.ModuleType("plugin_that_was_loaded_by_its_path")
    plugin.variable = contextvars.ContextVar("variable of the plugin")
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            plugin.variable.set("set")
            variable.set("set too")
            return await pool.submit(variable.get, weight=1.0)

    assert run(main, "socketpair") == "set too"


def test_a_context_variable_in_whose_place_is_something_else_over_there_is_left_out(monkeypatch, tmp_path):  # S12
    (tmp_path / "module_to_set_up.py").write_text("current = None\ndef read(): return current\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("module_to_set_up")
    module.current = contextvars.ContextVar("current")

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            module.current.set("set")
            return await pool.submit(module.read, weight=1.0)

    assert run(main, "socketpair") is None


def test_a_context_variable_travels_whatever_its_module_is_called_and_in_a_class_too(monkeypatch, tmp_path):  # S12
    (tmp_path / "decimal_settings.py").write_text(
        "from contextvars import ContextVar\n"
        "variable = ContextVar('variable')\n"
        "class Settings:\n"
        "    current = ContextVar('current')\n"
        "def read(): return variable.get(), Settings.current.get()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = importlib.import_module("decimal_settings")

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            settings.variable.set("set")
            settings.Settings.current.set("set too")
            return await pool.submit(settings.read, weight=1.0)

    assert run(main, "socketpair") == ("set", "set too")


def test_context_variables_of_two_processes_that_had_the_same_number_are_two():
    def make():
        os.getpid = lambda: 7
        return contextvars.ContextVar("made over there")

    async def main(env):
        made = []
        for _ in range(2):
            async with env.domain_mgr.spawn() as domain:
                made.append(await domain.call(make))
        return made[0] is made[1]

    assert not run(main, "socketpair")


def test_a_context_variable_set_in_a_plain_job_does_not_reach_the_next(link):
    def change():
        variable.set("changed")

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.submit(change, weight=1.0)
            return await pool.submit(variable.get, weight=1.0)

    assert run(main, link) == "default"


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("chunk", ["auto", 1, 7])
@pytest.mark.parametrize("f", [square, square_async])
def test_map_gives_every_result_once(link, ordered, chunk, f):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
            return [r async for r in pool.map(f, range(300), weight=0.5, ordered=ordered, chunk=chunk)]

    results = run(main, link)
    expected = [n * n for n in range(300)]
    assert (results if ordered else sorted(results)) == expected


def test_map_reads_only_as_far_as_its_buffer(link):
    read = []

    def source():
        for number in range(1000):
            read.append(number)
            yield number

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
            results = pool.map(square, source(), weight=1.0, buffer=10)
            first = await anext(results)
            furthest = len(read)
            await results.aclose()
            return first, furthest

    first, furthest = run(main, link)
    assert first == 0
    assert furthest <= 10


def test_map_over_an_async_iterable(link):
    async def source():
        for number in range(50):
            await asyncio.sleep(0)
            yield number

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
            return [r async for r in pool.map(square, source(), weight=1.0)]

    assert run(main, link) == [n * n for n in range(50)]


def test_the_first_failure_of_a_map_is_raised(link):
    def fail_at_five(n):
        if n == 5:
            raise ValueError("five")
        return n

    async def main(env):
        got = []
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
            with pytest.raises(ValueError, match="five"):
                async for r in pool.map(fail_at_five, range(100), weight=1.0, chunk=1):
                    got.append(r)
            return got, await pool.submit(square, 2, weight=1.0)

    assert run(main, link) == ([0, 1, 2, 3, 4], 4)


def test_closing_the_pool_waits_for_the_jobs_that_were_submitted(link):  # S67
    async def main(env):
        async with Switch() as sw:
            async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
                promises = [pool.submit_fork(sw, square, n, weight=1.0) for n in range(20)]
            return [promise.peek() is not None for promise in promises]

    assert run(main, link) == [True] * 20


def test_what_is_submitted_as_the_last_job_ends_is_waited_for_too(link):  # S67
    async def main(env):
        async with Switch() as sw:
            async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
                first = pool.submit_fork(sw, square, 2, weight=0.5)

                async def submit_more():
                    await first
                    promises = [pool.submit_fork(sw, square, n, weight=1.0) for n in range(4)]  # some stay here
                    return [await promise for promise in promises]

                more = sw.fork_promise(submit_more)
                await fiber.yield_now()  # that fiber waits for the job before the pool's end does
            return await more

    assert run(main, link) == [0, 1, 4, 9]


def test_leaving_the_pool_by_an_exception_cancels_its_jobs(link):  # S67
    class Stop(Exception):
        pass

    async def main(env):
        async with Switch() as sw:
            with pytest.raises(Stop):
                async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
                    promise = pool.submit_fork(sw, _wait_for_ever, weight=1.0)
                    queued = pool.submit_fork(sw, _wait_for_ever, weight=1.0)
                    await domains.fiber.yield_now()
                    raise Stop
            for each in promise, queued:
                with pytest.raises(domains.Cancelled):
                    await each

    run(main, link)


async def _wait_for_ever():
    await asyncio.Event().wait()


def test_cancelling_a_submit_cancels_an_async_job_where_it_runs(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            scope = domains.move_on_after(math.inf)
            with scope:
                async with Switch() as sw:
                    sw.fork(functools.partial(pool.submit, weight=0.5), _note_cancellation)
                    while not await pool.submit(_has_started, weight=0.0):
                        pass
                    scope.cancel()
            assert scope.cancelled
            return await pool.submit(_noted, weight=0.1)

    assert run(main, link) == "CancelledError"


_started = False
_note = ""


async def _note_cancellation():
    global _note, _started
    _started = True
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        _note = "CancelledError"
        raise


def _has_started():
    return _started


def _noted():
    return _note


def test_a_job_cancelled_while_it_waits_never_starts(link, tmp_path):
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    mark = tmp_path / "mark"

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as sw:
            blocked = pool.submit_fork(sw, _read_fifo, fifo, weight=1.0)
            for _ in range(3):
                with domains.move_on_after(0.01) as scope:
                    await pool.submit(mark.touch, weight=1.0)
                assert scope.cancelled
            await domains.run_in_thread(_write_fifo, fifo)
            return await blocked

    assert run(main, link) == "now"
    assert not mark.exists()


def test_a_timeout_cancels_the_job(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(TimeoutError, match=r"^job '_wait_for_ever' took longer than 0.01 s$"):
                await pool.submit(_wait_for_ever, weight=0.5, timeout=0.01)
            return pool.stats().running

    assert run(main, link) == 0


def test_stats_count_what_waits_and_what_runs(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with domains.move_on_after(0.05):
                async with Switch() as sw:
                    for _ in range(3):
                        sw.fork(functools.partial(pool.submit, weight=1.0), _wait_for_ever)
                    await domains.fiber.yield_now()
                    await domains.fiber.yield_now()
                    stats = pool.stats()
                    assert stats.queued + stats.running == 3
                    assert stats.weight >= 1.0
            return pool.stats()

    stats = run(main, link)
    assert (stats.queued, stats.running, stats.weight) == (0, 0, 0.0)


def test_a_result_of_sixteen_megabytes_comes_back(link):
    numpy = pytest.importorskip("numpy")

    async def main(env):
        array = numpy.arange(2_000_000, dtype=numpy.float64)
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            doubled = await pool.submit(lambda a: a * 2, array, weight=1.0)
        return bool((doubled == array * 2).all())

    assert run(main, link)
