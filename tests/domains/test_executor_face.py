"""`domains.PoolExecutor` and `pool.as_executor()`, where CPython's own tests do not reach."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import domains
from domains.errors import Cancelled, DomainDied, DomainUnavailable, NotPicklable

PATIENCE = 20.0
"""Longer than anything here takes; a wait that lasts so long has failed."""

request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")


# What the jobs do


def pass_gate(gate: Path) -> str:
    """Say that the job has begun, and wait for what the test has to say."""
    with open(gate) as opened:
        return opened.read()


def run_until_cancelled(gate: Path, ended: Path) -> None:
    try:
        pass_gate(gate)
        while True:
            time.sleep(0.01)
    except BaseException as error:
        ended.write_text(type(error).__name__)
        raise


def touch(path: Path) -> None:
    path.touch()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def complain() -> None:
    raise LookupError("nothing here")  # the line that is looked for


def read_request() -> str:
    return request.get()


def describe(*args: object, **keywords: object) -> str:
    return f"{args} {keywords}"


def square(x: int) -> int:
    return x * x


async def square_slowly(x: int) -> int:
    await asyncio.sleep(0)
    return x * x


def add(x: int, y: int) -> int:
    return x + y


def make_unpicklable() -> object:
    return threading.Lock()


def set_up(path: Path) -> None:
    with open(path, "a") as opened:
        opened.write(f"{os.getpid()}\n")


def fail_to_set_up() -> None:
    raise LookupError("no set-up")


class Model:
    """A callable object, with data."""

    def __call__(self) -> None:
        pass


def count_models() -> int:
    return sum(type(thing).__name__ == "Model" for thing in gc.get_objects())


def sum_of_squares_in_a_pool(n: int) -> int:
    with domains.PoolExecutor(1) as executor:
        return sum(executor.map(square, range(n)))


# What the tests use


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def open_gate(gate: Path, word: str = "go") -> None:
    """Wait until the job stands before it, and let it pass."""
    with open(gate, "w") as opened:
        opened.write(word)


@pytest.fixture(scope="module")
def shared() -> Iterator[domains.PoolExecutor]:
    """For tests that leave it as it was."""
    with domains.PoolExecutor(2) as executor:
        assert executor.submit(square, 3).result(PATIENCE) == 9
        yield executor


@pytest.fixture
def one() -> Iterator[domains.PoolExecutor]:
    with domains.PoolExecutor(1) as executor:
        yield executor


def run_with_pool(body: Callable[[domains.ExecutorPool, Executor], object], domain_count: int = 1) -> None:
    """Call `body(pool, face)` in a thread, beside the loop of the pool."""

    async def main(env: domains.Environment) -> None:
        async with domains.ExecutorPool(env.domain_mgr, domain_count=domain_count) as pool:
            await domains.run_in_thread(body, pool, pool.as_executor())

    domains.run(main)


def run_program(source: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)


# Jobs and their outcomes


def test_a_job_gets_its_arguments_and_keywords(shared: Executor) -> None:
    assert shared.submit(describe, 1, fn=2, self=3).result(PATIENCE) == "(1,) {'fn': 2, 'self': 3}"


def test_an_async_function_is_awaited_in_its_domain(shared: Executor) -> None:
    assert shared.submit(square_slowly, 5).result(PATIENCE) == 25
    assert shared.submit(square_slowly, x=5).result(PATIENCE) == 25


def test_lambdas_and_partials_travel(shared: Executor) -> None:
    assert shared.submit(lambda x: x + 1, 1).result(PATIENCE) == 2
    assert shared.submit(partial(add, 1), y=2).result(PATIENCE) == 3


def test_a_failure_shows_the_remote_frames(shared: Executor) -> None:
    error = shared.submit(complain).exception(PATIENCE)
    assert isinstance(error, LookupError)
    assert "# the line that is looked for" in str(error.__cause__)


def test_a_job_sees_the_contextvars_of_its_submitter(shared: Executor) -> None:
    token = request.set("first")
    future = shared.submit(read_request)
    request.reset(token)
    assert future.result(PATIENCE) == "first"
    assert shared.submit(read_request).result(PATIENCE) == "none"


def test_a_job_does_not_see_the_contextvars_of_another_thread_that_submits() -> None:  # S12
    async def main(env: domains.Environment) -> tuple[str, str]:
        futures: list[Future[str]] = []

        def submit(face: Executor, value: str) -> None:
            if value:
                request.set(value)
            futures.append(face.submit(read_request))

        async with domains.ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.ready()
            face = pool.as_executor()
            for value in "first", "":  # the loop is busy meanwhile, and reads both when the first has woken it
                thread = threading.Thread(target=submit, args=(face, value))
                thread.start()
                thread.join()
            return await asyncio.wrap_future(futures[0]), await asyncio.wrap_future(futures[1])

    assert domains.run(main) == ("first", "none")


def test_what_cannot_be_pickled_fails_its_job_as_concurrent_futures_says(shared: Executor) -> None:
    for future in shared.submit(id, threading.Lock()), shared.submit(make_unpicklable):
        error = future.exception(PATIENCE)
        assert isinstance(error, NotPicklable)
        assert isinstance(error, pickle.PicklingError)


def test_callable_objects_are_not_kept_by_their_domain(one: Executor) -> None:
    wait([one.submit(Model()) for _ in range(5)] + [one.submit(partial(Model())) for _ in range(5)], PATIENCE)
    assert one.submit(count_models).result(PATIENCE) == 0


def test_many_threads_submit_at_once(shared: Executor) -> None:
    def submit_some(thread: int) -> list[int]:
        return [future.result(PATIENCE) for future in [shared.submit(square, thread + i) for i in range(300)]]

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(submit_some, range(8)))
    assert results == [[square(thread + i) for i in range(300)] for thread in range(8)]


def test_a_callback_may_submit(shared: Executor) -> None:
    outcome: Future[int] = Future()

    def submit_another(done: Future[int]) -> None:
        shared.submit(square, done.result()).add_done_callback(lambda second: outcome.set_result(second.result()))

    shared.submit(square, 3).add_done_callback(submit_another)
    assert outcome.result(PATIENCE) == 81


def test_a_callback_that_exits_ends_nothing(shared: Executor, gate: Path) -> None:
    future = shared.submit(pass_gate, gate)
    future.add_done_callback(lambda _: sys.exit("not here"))
    open_gate(gate)
    assert future.result(PATIENCE) == "go"
    assert shared.submit(square, 3).result(PATIENCE) == 9


def test_a_callback_that_waits_for_another_job_is_told_that_it_cannot(shared: Executor, gate: Path) -> None:
    outcome: Future[BaseException | None] = Future()

    def wait_for_another(_: Future[str]) -> None:
        try:
            shared.submit(square, 3).result()
        except RuntimeError as error:
            outcome.set_result(error)

    future = shared.submit(pass_gate, gate)
    future.add_done_callback(wait_for_another)
    open_gate(gate)
    assert "event loop" in str(outcome.result(PATIENCE))


# States and cancellation


def test_running_means_that_a_domain_has_begun_it(one: Executor, gate: Path) -> None:
    begun = one.submit(pass_gate, gate)
    ahead = one.submit(square, 3)
    with open(gate, "w"):
        assert begun.running()
        assert not ahead.running()
    wait([begun, ahead], PATIENCE)
    assert not begun.running()
    assert begun.done()


def test_a_cancelled_queued_job_never_starts(one: Executor, gate: Path, tmp_path: Path) -> None:
    begun = one.submit(pass_gate, gate)
    cancelled = [one.submit(touch, tmp_path / "touched") for _ in range(3)]
    with open(gate, "w"):
        assert all(future.cancel() for future in cancelled)
        assert all(future.cancel() for future in cancelled), "again"
        assert wait(cancelled, PATIENCE).not_done == set(), "though the domain is busy"
    assert begun.result(PATIENCE) == ""
    assert all(future.cancelled() and not future.running() for future in cancelled)
    with pytest.raises(CancelledError):
        cancelled[0].result()
    one.shutdown()
    assert not (tmp_path / "touched").exists()


def test_cancelling_reaches_a_running_job_and_wait_tells_when_it_has_ended(
    one: Executor, gate: Path, tmp_path: Path
) -> None:
    pid = one.submit(os.getpid).result(PATIENCE)
    future = one.submit(run_until_cancelled, gate, tmp_path / "ended")
    open_gate(gate)
    assert future.cancel()
    assert future.cancelled()
    assert wait([future], PATIENCE).done == {future}
    assert (tmp_path / "ended").read_text() == "Cancelled"
    assert list(as_completed([future], PATIENCE)) == [future]
    assert one.submit(os.getpid).result(PATIENCE) == pid, "its domain goes on"


def test_an_ended_job_cannot_be_cancelled(shared: Executor) -> None:
    future = shared.submit(square, 3)
    future.result(PATIENCE)
    assert not future.cancel()
    assert not future.cancelled()


def test_cancelling_races_with_the_end_and_exactly_one_wins(shared: Executor) -> None:
    for _ in range(300):
        future = shared.submit(square, 3)
        if future.cancel():
            with pytest.raises(CancelledError):
                future.result(PATIENCE)
        else:
            assert future.result(PATIENCE) == 9
        assert wait([future], PATIENCE).done == {future}


def test_callbacks_of_a_cancelled_job_are_called_once(one: Executor, gate: Path) -> None:
    begun = one.submit(pass_gate, gate)
    calls: list[bool] = []
    future = one.submit(square, 3)
    future.add_done_callback(lambda done: calls.append(done.cancelled()))
    with open(gate, "w"):
        future.cancel()
        wait([future], PATIENCE)
    begun.result(PATIENCE)
    assert calls == [True]


def test_a_callback_that_exits_when_its_job_is_cancelled_ends_nothing(gate: Path) -> None:
    executor = domains.PoolExecutor(1)
    begun = executor.submit(pass_gate, gate)
    others = [executor.submit(square, number) for number in range(5)]
    for future in others:
        future.add_done_callback(lambda _: sys.exit("not here"))
    executor.shutdown(wait=False, cancel_futures=True)
    open_gate(gate)
    assert begun.result(PATIENCE) == "go"
    assert wait(others, PATIENCE).not_done == set()
    executor.shutdown()


def test_shutdown_with_cancel_futures_lets_what_has_begun_end(gate: Path, tmp_path: Path) -> None:
    executor = domains.PoolExecutor(1)
    begun = executor.submit(pass_gate, gate)
    others = [executor.submit(touch, tmp_path / "touched") for _ in range(20)]
    with open(gate, "w") as opened:
        executor.shutdown(wait=False, cancel_futures=True)
        assert wait(others, PATIENCE).not_done == set()
        opened.write("late")
    executor.shutdown()
    assert begun.result(0) == "late"
    assert all(future.cancelled() for future in others)
    assert not (tmp_path / "touched").exists()


def test_leaving_the_block_by_ctrl_c_cancels_what_runs(gate: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        with domains.PoolExecutor(1) as executor:
            future = executor.submit(run_until_cancelled, gate, tmp_path / "ended")
            open_gate(gate)
            raise KeyboardInterrupt
    assert future.cancelled()
    assert (tmp_path / "ended").read_text() == "Cancelled"


def test_leaving_the_block_by_an_error_waits_for_what_runs(gate: Path) -> None:
    with pytest.raises(LookupError):
        with domains.PoolExecutor(1) as executor:
            future = executor.submit(pass_gate, gate)
            opener = threading.Thread(target=open_gate, args=(gate,))
            opener.start()
            raise LookupError
    opener.join()
    assert future.result(0) == "go"


# Deaths


def test_a_death_fails_its_own_job_and_the_executor_goes_on(one: Executor) -> None:
    error = one.submit(die).exception(PATIENCE)
    assert isinstance(error, DomainDied)
    assert isinstance(error, BrokenProcessPool)
    assert error.signal == signal.SIGKILL
    assert one.submit(square, 3).result(PATIENCE) == 9


def test_a_failing_initializer_breaks_the_executor() -> None:
    with domains.PoolExecutor(1, initializer=fail_to_set_up) as executor:
        error = executor.submit(square, 3).exception(PATIENCE)
        assert isinstance(error, BrokenExecutor)
        assert isinstance(error, DomainUnavailable)
        assert "no set-up" in str(error)
        with pytest.raises(BrokenProcessPool):
            executor.submit(square, 3)


def test_an_initializer_that_cannot_travel_fails_what_is_submitted() -> None:
    with domains.PoolExecutor(1, initializer=print, initargs=(threading.Lock(),)) as executor:
        error = executor.submit(square, 3).exception(PATIENCE)
    assert isinstance(error, BrokenExecutor)
    assert isinstance(error.__cause__, NotPicklable)


@pytest.mark.parametrize("seed", range(4))
def test_every_future_ends_once_whatever_threads_cancel_die_and_shut_down(seed: int) -> None:
    executor = domains.PoolExecutor(2)
    futures: list[Future[Any]] = []
    ends: Counter[Future[Any]] = Counter()

    def submit_some(thread: int) -> None:
        dice = random.Random(f"{seed}, {thread}")
        for number in range(150):
            job = dice.choice([(square, number), (square_slowly, number), (complain,), (time.sleep, 0.001)])
            if dice.random() < 0.01:
                job = (die,)
            try:
                future = executor.submit(*job)
            except RuntimeError:
                return  # it was shut down
            futures.append(future)
            future.add_done_callback(lambda done: ends.update([done]))
            if dice.random() < 0.3:
                dice.choice(futures).cancel()
            if dice.random() < 0.05:
                wait([future], PATIENCE)
            if dice.random() < 0.002:
                executor.shutdown(wait=False, cancel_futures=dice.random() < 0.5)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(submit_some, range(4)))
    assert wait(futures, PATIENCE).not_done == set()
    executor.shutdown()
    assert ends == Counter(futures)
    for future in futures:
        if not future.cancelled():
            error = future.exception(0)
            assert error is None or isinstance(error, LookupError | DomainDied)


# Options


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": -1}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": 10**20}, ValueError, "max_workers must be at most"),
        ({"max_workers": 1.5}, TypeError, "max_workers must be an int"),
        ({"max_workers": True}, TypeError, "max_workers must be an int"),
        ({"initializer": 3}, TypeError, "initializer must be a callable"),
        ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child must be >= 1"),
        ({"max_tasks_per_child": 1.5}, TypeError, "max_tasks_per_child must be an integer"),
        ({"weight": 1.5}, ValueError, "weight must be from 0.0 to 1.0"),
        ({"mp_context": multiprocessing.get_context("fork")}, ValueError, "do not inherit"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        domains.PoolExecutor(**options)


def test_each_domain_is_initialized_once(tmp_path: Path) -> None:
    with domains.PoolExecutor(2, initializer=set_up, initargs=(tmp_path / "pids",)) as executor:
        used = set(executor.map(lambda _: os.getpid(), range(50)))
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == len(set(pids)) == 2
    assert used <= set(map(int, pids))


def test_a_domain_is_replaced_after_its_tasks() -> None:
    with domains.PoolExecutor(1, max_tasks_per_child=3) as executor:
        pids = [executor.submit(os.getpid).result(PATIENCE) for _ in range(7)]
    assert [len(set(pids[start : start + 3])) for start in (0, 3, 6)] == [1, 1, 1]
    assert len(set(pids)) == 3


def test_light_async_jobs_share_a_domain(gate: Path, tmp_path: Path) -> None:
    turns = tmp_path / "turns"
    turns.mkdir()

    async def meet(number: int) -> int:
        (turns / str(number)).touch()
        while len(os.listdir(turns)) < 5:  # noqa: ASYNC110  # there are no events between processes
            await asyncio.sleep(0.001)
        return number

    with domains.PoolExecutor(1, weight=0.1) as executor:
        assert list(executor.map(meet, range(5), timeout=PATIENCE)) == [0, 1, 2, 3, 4]


# Map


def test_map_keeps_the_order_with_any_chunk_size(shared: Executor) -> None:
    for chunk in (1, 3, 100):
        assert list(shared.map(add, range(20), range(20), chunksize=chunk)) == list(range(0, 40, 2))
        assert list(shared.map(square_slowly, range(5), chunksize=chunk)) == [0, 1, 4, 9, 16]
        assert list(shared.map(lambda x: square_slowly(x), range(5), chunksize=chunk)) == [0, 1, 4, 9, 16]
    assert list(shared.map(square, [], chunksize=2)) == []


def test_map_that_is_left_early_cancels_the_rest(one: Executor, gate: Path, tmp_path: Path) -> None:
    def step(number: int) -> int:
        if number == 1:
            run_until_cancelled(gate, tmp_path / "ended")
        if number > 1:
            touch(tmp_path / "touched")
        return number

    results = one.map(step, range(10))
    assert next(results) == 0
    open_gate(gate)
    results.close()  # type: ignore[attr-defined]
    one.shutdown()
    assert (tmp_path / "ended").read_text() == "Cancelled"
    assert not (tmp_path / "touched").exists()


def test_map_raises_timeout_error_and_cancels(one: Executor, gate: Path, tmp_path: Path) -> None:
    results = one.map(run_until_cancelled, [gate], [tmp_path / "ended"], timeout=0)
    with pytest.raises(TimeoutError):
        next(results)


# Beginning and end


def test_nothing_is_started_before_the_first_submit() -> None:
    threads = threading.active_count()
    executor = domains.PoolExecutor(2)
    assert threading.active_count() == threads
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 3)


def test_shutdown_without_waiting_lets_everything_end(gate: Path) -> None:
    executor = domains.PoolExecutor(1)
    futures = [executor.submit(pass_gate, gate), executor.submit(square, 3)]
    executor.shutdown(wait=False)
    open_gate(gate)
    assert [future.result(PATIENCE) for future in futures] == ["go", 9]
    executor.shutdown()


def test_a_job_that_cannot_be_pickled_after_the_shutdown_hinders_nothing() -> None:
    executor = domains.PoolExecutor(2)
    assert executor.submit(square, 3).result(PATIENCE) == 9
    bad, good = executor.submit(id, threading.Lock()), executor.submit(square, 4)
    executor.shutdown(wait=False)
    with pytest.raises(pickle.PicklingError):
        bad.result(PATIENCE)
    assert good.result(PATIENCE) == 16
    executor.shutdown()


@pytest.mark.parametrize("cancel_futures", [False, True])
def test_shutdown_may_be_called_again(cancel_futures: bool) -> None:
    executor = domains.PoolExecutor(1)
    executor.shutdown(cancel_futures=cancel_futures)
    executor = domains.PoolExecutor(1)
    future = executor.submit(square, 3)
    executor.shutdown()
    executor.shutdown(cancel_futures=cancel_futures)
    assert future.result(PATIENCE) == 9


def test_a_block_that_ctrl_c_leaves_after_the_shutdown_ends_by_that() -> None:
    with pytest.raises(KeyboardInterrupt), domains.PoolExecutor(1) as executor:
        executor.submit(square, 3)
        executor.shutdown()
        raise KeyboardInterrupt


def test_an_executor_that_nobody_has_any_more_ends_by_itself(gate: Path) -> None:
    executor = domains.PoolExecutor(1)
    futures = [executor.submit(pass_gate, gate), executor.submit(square, 3)]
    gone = weakref.ref(executor)
    del executor
    assert gone() is None
    open_gate(gate)
    assert [future.result(PATIENCE) for future in futures] == ["go", 9]


def test_shutdown_in_a_callback_does_not_wait_for_itself() -> None:
    executor = domains.PoolExecutor(1)
    called = threading.Event()

    def shut_down(_: object) -> None:
        executor.shutdown()
        called.set()

    executor.submit(square, 3).add_done_callback(shut_down)
    assert called.wait(PATIENCE)
    executor.shutdown()


def test_a_program_that_forgets_to_shut_down_ends_when_its_jobs_have() -> None:
    done = run_program(
        "import domains, time\n"
        "def say(word): time.sleep(0.2); print(word, flush=True)\n"
        "executor = domains.PoolExecutor(1)\n"
        "executor.submit(say, 'one'); executor.submit(say, 'two')\n"
    )
    assert (done.stdout.split(), done.stderr, done.returncode) == (["one", "two"], "", 0)


@pytest.mark.parametrize(
    "block", ["with domains.PoolExecutor(1) as executor:", "if executor := domains.PoolExecutor(1):"]
)
def test_ctrl_c_ends_a_program_that_waits_for_a_job(block: str, tmp_path: Path, gate: Path) -> None:
    source = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have had it ignored
        "import domains, time\n"
        "def work():\n"
        f"    open({str(gate)!r}).read()\n"
        "    while True: time.sleep(0.01)\n"
        f"{block}\n"
        "    executor.submit(work).result()\n"
    )
    program = subprocess.Popen([sys.executable, "-c", source], stderr=subprocess.PIPE, text=True)
    open_gate(gate)
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=PATIENCE)
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    assert program.returncode == -signal.SIGINT


def test_a_forked_child_is_refused_and_disturbs_nothing(one: Executor) -> None:
    assert one.submit(square, 3).result(PATIENCE) == 9
    child = os.fork()
    if not child:
        try:
            one.submit(square, 3)
        except BrokenProcessPool:
            one.shutdown()
            os._exit(42)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert one.submit(square, 4).result(PATIENCE) == 16


def test_a_job_may_have_an_executor_of_its_own(shared: Executor) -> None:
    assert shared.submit(sum_of_squares_in_a_pool, 4).result(PATIENCE) == 14


# With asyncio


def test_asyncio_runs_in_it_and_cancels_in_it(one: Executor, gate: Path, tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(one, square, 3) == 9
        waiting = loop.run_in_executor(one, run_until_cancelled, gate, tmp_path / "ended")
        await asyncio.to_thread(open_gate, gate)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    one.shutdown()
    assert (tmp_path / "ended").read_text() == "Cancelled"


def test_a_pool_is_the_executor_of_its_own_loop() -> None:
    async def main(env: domains.Environment) -> None:
        async with domains.ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            loop = asyncio.get_running_loop()
            face = pool.as_executor()
            assert await asyncio.gather(*(loop.run_in_executor(face, square, i) for i in range(50))) == [
                i * i for i in range(50)
            ]

    domains.run(main)


def test_a_job_uses_the_face_of_its_own_pool_and_lends_its_weight() -> None:
    async def square_by_the_pool(pool: domains.ExecutorPool) -> list[int]:
        loop = asyncio.get_running_loop()
        face = pool.as_executor()
        here = await loop.run_in_executor(face, square, 3)
        there = await domains.run_in_thread(lambda: face.submit(square, 4).result(PATIENCE))
        return [here, there]

    async def main(env: domains.Environment) -> None:
        async with domains.ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            assert await pool.submit(square_by_the_pool, pool, weight=1.0) == [9, 16]

    domains.run(main)


def test_waiting_in_the_thread_of_the_pools_loop_is_refused() -> None:
    async def main(env: domains.Environment) -> None:
        async with domains.ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            face = pool.as_executor()
            future = face.submit(square, 3)
            for wait_here in future.result, future.exception, face.shutdown:
                with pytest.raises(RuntimeError, match="event loop"):
                    wait_here()
            with pytest.raises(TimeoutError):
                future.result(timeout=0)
            assert await asyncio.wrap_future(future) == 9
            assert future.result() == 9
            face.shutdown()

    domains.run(main)


# As the face of a pool


def test_the_face_of_a_pool_works_from_other_threads() -> None:
    def body(pool: domains.ExecutorPool, face: Executor) -> None:
        with face:
            assert face.submit(add, 1, y=2).result(PATIENCE) == 3
            assert list(face.map(square, range(5), chunksize=2)) == [0, 1, 4, 9, 16]
        with pytest.raises(RuntimeError, match="after shutdown"):
            face.submit(square, 3)

    run_with_pool(body)


def test_shutting_down_a_face_waits_for_its_jobs_and_leaves_the_pool_open(gate: Path) -> None:
    async def main(env: domains.Environment) -> None:
        async with domains.ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            face = pool.as_executor()
            future = face.submit(pass_gate, gate)
            async with domains.Switch() as switch:
                switch.fork(domains.run_in_thread, face.shutdown)
                switch.fork(domains.run_in_thread, open_gate, gate)
            assert future.result() == "go"
            assert await pool.submit(square, 3, weight=1.0) == 9
            assert await asyncio.wrap_future(pool.as_executor().submit(square, 4)) == 16

    domains.run(main)


def test_a_pool_waits_for_what_was_submitted_through_a_face() -> None:  # S67
    futures = []

    async def main(env: domains.Environment) -> None:
        async with domains.ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            futures.extend(pool.as_executor().submit(square, i) for i in range(20))

    domains.run(main)
    assert [future.result(0) for future in futures] == [i * i for i in range(20)]


def test_a_pool_that_is_abandoned_cancels_what_was_submitted_through_a_face(gate: Path, tmp_path: Path) -> None:  # S67
    futures = []

    async def main(env: domains.Environment) -> None:
        async with domains.ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            face = pool.as_executor()
            futures.append(face.submit(run_until_cancelled, gate, tmp_path / "ended"))
            futures.append(face.submit(square, 3))
            await domains.run_in_thread(open_gate, gate)
            raise LookupError

    with pytest.raises(LookupError):
        domains.run(main)
    assert all(future.cancelled() for future in futures)
    assert wait(futures, 0, ALL_COMPLETED).not_done == set()
    assert (tmp_path / "ended").read_text() == Cancelled.__name__


def test_who_posts_when_the_loop_has_had_its_last_turn_is_told_that_it_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faces: list[Any] = []
    told = threading.Event()
    set_event_loop = asyncio.set_event_loop

    def set_and_post(loop: asyncio.AbstractEventLoop | None) -> None:
        if loop is None and faces:  # just before the loop is closed
            faces[0]._inbox.tell_when_idle(told.set)  # what `shutdown` does in another thread
        set_event_loop(loop)

    async def main(env: domains.Environment) -> None:
        async with domains.ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            faces.append(pool.as_executor())

    monkeypatch.setattr(asyncio, "set_event_loop", set_and_post)
    domains.run(main)
    assert told.is_set()


def test_a_face_of_a_closed_pool_accepts_nothing() -> None:
    async def main(env: domains.Environment) -> Executor:
        async with domains.ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            face = pool.as_executor()
        with pytest.raises(RuntimeError, match="closed"):
            face.submit(square, 3)
        with pytest.raises(domains.Closed):
            pool.as_executor()
        return face

    face = domains.run(main)
    with pytest.raises(RuntimeError, match="closed"):
        face.submit(square, 3)
    face.shutdown()


def test_a_face_needs_a_weight_that_is_one() -> None:
    def body(pool: domains.ExecutorPool, face: Executor) -> None:
        with pytest.raises(ValueError, match="weight"):
            pool.as_executor(weight=2.0)

    run_with_pool(body)


def test_first_completed_comes_first(gate: Path) -> None:
    def body(pool: domains.ExecutorPool, face: Executor) -> None:
        late, early = face.submit(pass_gate, gate), face.submit(square, 3)
        assert wait([late, early], PATIENCE, FIRST_COMPLETED).done == {early}
        open_gate(gate)
        assert late.result(PATIENCE) == "go"

    run_with_pool(body, domain_count=2)
