"""The joblib backend: `joblib.parallel_config("domains")`."""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import domains
from domains.ipc.arena import process_arena

joblib = pytest.importorskip("joblib", reason="needs the extra joblib")
from domains.joblib_backend import register  # noqa: E402  # it needs joblib

register()


def pid_of(_: object) -> int:
    return os.getpid()


def fail_at(number: int, bad: int, seen: Path) -> int:
    if number == bad:
        raise LookupError(f"bad {number}")
    if number > bad:
        (seen / str(number)).touch()
        time.sleep(60)
    return number


def squares_in_parallel(n: int) -> list[int]:
    return list(joblib.Parallel(n_jobs=2)(joblib.delayed(pow)(i, 2) for i in range(n)))


def threads_allowed(_: object) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def parallel(f: Any, items: Any, **options: Any) -> Any:
    return joblib.Parallel(**options)(joblib.delayed(f)(item) for item in items)


def test_batches_run_in_domains_in_order() -> None:
    with joblib.parallel_config("domains", n_jobs=2):
        assert parallel(abs, range(-500, 0)) == list(range(500, 0, -1))
        assert os.getpid() not in parallel(pid_of, range(10))


def test_a_ctrl_c_as_the_number_of_domains_changes_leaves_the_backend_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with joblib.parallel_config("domains", n_jobs=2):
        assert parallel(abs, [-1, -2]) == [1, 2]
        with monkeypatch.context() as patch:
            patch.setattr("domains.joblib_backend.PoolExecutor", interrupted)
            with pytest.raises(KeyboardInterrupt):
                parallel(abs, [-1, -2], n_jobs=3)
        assert parallel(abs, [-1, -2]) == [1, 2]


def test_its_domains_serve_every_call_of_the_block() -> None:
    with joblib.parallel_config("domains", n_jobs=2):
        first, second = (set(parallel(pid_of, range(50), batch_size=1)) for _ in range(2))
    assert len(first | second) <= 2


def test_lambdas_and_results_as_a_generator() -> None:
    with joblib.parallel_config("domains", n_jobs=2):
        results = parallel(lambda x: x + 1, range(20), return_as="generator")
        assert list(results) == list(range(1, 21))


def test_a_failure_is_raised_as_itself_and_cancels_the_rest(tmp_path: Path) -> None:
    with joblib.parallel_config("domains", n_jobs=2):
        with pytest.raises(LookupError, match="bad 1"):
            joblib.Parallel(batch_size=1)(joblib.delayed(fail_at)(number, 1, tmp_path) for number in range(4))
        assert parallel(abs, [-1]) == [1], "the backend goes on"


def test_a_time_limit_cancels_what_runs() -> None:
    with joblib.parallel_config("domains", n_jobs=2):
        with pytest.raises(multiprocessing.TimeoutError):  # which is what joblib raises
            parallel(time.sleep, [60, 60], timeout=0.1)
        assert parallel(abs, [-1, -2]) == [1, 2]


def test_a_death_is_told() -> None:
    with joblib.parallel_config("domains", n_jobs=2):
        with pytest.raises(domains.DomainDied):
            parallel(os._exit, [3, 3])
        assert parallel(abs, [-1, -2]) == [1, 2]


def test_calls_inside_a_job_use_threads_there() -> None:
    with joblib.parallel_config("domains", n_jobs=2):
        assert parallel(squares_in_parallel, [3, 4]) == [[0, 1, 4], [0, 1, 4, 9]]


def test_numeric_libraries_are_told_how_many_threads_they_have() -> None:
    with joblib.parallel_config("domains", n_jobs=2, inner_max_num_threads=3):
        assert set(parallel(threads_allowed, range(4))) == {"3"}


def describe_array(array: Any, number: int) -> tuple[float, bool, bool]:
    return float(array[number, 0]), array.flags.c_contiguous, array.flags.writeable


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_array_is_copied_once_for_all_batches(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(1_000_000.0).reshape((1000, 1000)).copy(order=order)
    arena = process_arena()
    copied = []
    keep = arena.keep
    monkeypatch.setattr(arena, "keep", lambda pieces: copied.append(pieces) or keep(pieces))
    with joblib.parallel_config("domains", n_jobs=2):
        for call in (1, 2):
            array[:, 0] = call
            parallel = joblib.Parallel(batch_size=1)
            assert (
                parallel(joblib.delayed(describe_array)(array, n) for n in range(20))
                == [(call, order == "C", False)] * 20
            )
            assert len(copied) == call
            assert array.flags.writeable


def put(array: Any, number: int) -> str:
    array[number] = number
    return type(array).__name__


def test_a_mapped_file_is_written_by_the_domains(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    for shape, count in (((10,), 10), ((100_000, 10), 50)):
        out = numpy.memmap(tmp_path / "out", float, "w+", shape=shape)
        with joblib.parallel_config("domains", n_jobs=2):
            kinds = joblib.Parallel()(joblib.delayed(put)(out, n) for n in range(count))
        assert set(kinds) == {"memmap"}
        assert [float(numpy.max(out[n])) for n in range(count)] == list(range(count))


def fill(part: Any, value: float) -> tuple[Any, ...]:
    before = part.tolist()
    part[...] = value
    return type(part).__name__, before, part.flags.c_contiguous


def test_parts_of_a_mapped_file_are_written_by_the_domains(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    out = numpy.memmap(tmp_path / "out", numpy.dtype([("name", "S3"), ("x", float)]), "w+", 16, (6, 8), "F")
    out["x"] = numpy.arange(48).reshape(6, 8)
    views = [
        lambda whole: whole["x"][0],
        lambda whole: whole["x"][1][::-2],
        lambda whole: whole["x"].T[3:5, 4:1:-1],
        lambda whole: numpy.asarray(whole[5:]["x"])[:, :0],
        lambda whole: numpy.asarray(whole)["x"][5:],
        lambda whole: numpy.lib.stride_tricks.as_strided(whole["x"][4], (2,), (0,)),
    ]
    expected = out.copy()
    with joblib.parallel_config("domains", n_jobs=2):
        told = joblib.Parallel()(joblib.delayed(fill)(view(out), -n) for n, view in enumerate(views, 1))
    for n, view in enumerate(views, 1):
        kind, before, is_contiguous = told[n - 1]
        assert kind == ("memmap" if view(out).size else "ndarray")
        assert (before, is_contiguous) == (view(expected).tolist(), view(out).flags.c_contiguous)
        view(expected)[...] = -n
    assert out.tolist() == expected.tolist()


def test_a_part_of_a_mapped_file_that_may_not_be_written_arrives_so(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    numpy.arange(10.0).tofile(tmp_path / "file")
    for mode in "r", "r+":
        part = numpy.memmap(tmp_path / "file", float, mode)[3:5]
        part.flags.writeable = False
        with joblib.parallel_config("domains", n_jobs=2), pytest.raises(ValueError, match="read-only"):
            parallel(functools.partial(fill, value=1.0), [part] * 3)


def test_a_mapped_file_that_was_changed_in_memory_only_travels_as_it_is_there(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    numpy.zeros(10).tofile(tmp_path / "file")
    private = numpy.memmap(tmp_path / "file", float, "c")
    private[:] = 7
    with joblib.parallel_config("domains", n_jobs=2):
        assert parallel(numpy.sum, [private] * 3) == [70] * 3


def test_an_array_that_is_no_plain_memory_travels_all_the_same() -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.ones((2000, 1000))[::2, ::2]
    with joblib.parallel_config("domains", n_jobs=2):
        assert sum(parallel(numpy.sum, [array] * 4)) == 4 * array.size
        objects = numpy.array([None] * 200_000, dtype=object)
        assert parallel(len, [objects] * 4) == [200_000] * 4


def test_one_job_at_a_time_needs_no_domain() -> None:
    with joblib.parallel_config("domains", n_jobs=1):
        assert set(parallel(pid_of, range(4))) == {os.getpid()}


def test_jobs_are_counted_as_joblib_counts() -> None:
    with joblib.parallel_config("domains"):
        count = domains.recommended_domain_count()
        assert [joblib.effective_n_jobs(n) for n in (-1, 3, None, -1000)] == [count, 3, 1, 1]
        with pytest.raises(ValueError, match="n_jobs"):
            parallel(abs, [-1], n_jobs=0)


def test_nothing_runs_on_when_the_block_is_left() -> None:
    threads = threading.active_count()
    with joblib.parallel_config("domains", n_jobs=2):
        parallel(abs, [-1, -2])
        assert threading.active_count() == threads + 1
    for thread in threading.enumerate():
        if thread.name.startswith("domains-pool-executor"):
            thread.join(10)
    assert threading.active_count() == threads
