"""Processes that jobs fork: each ends as a script would, and none goes on as a second copy of its domain."""

import multiprocessing
import os
import sys

import pytest

import domains
from domains import ExecutorPool


def _in_pool(*calls, link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            pid = await pool.submit(os.getpid, weight=1.0)
            results = [await pool.submit(*call, weight=1.0) for call in calls]
            assert await pool.submit(os.getpid, weight=1.0) == pid
            return results

    return domains.run(main, link=link)


def _fork(end):
    child = os.fork()
    if not child:
        return end()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


async def _fork_async(end):
    return _fork(end)


def _return():
    return "not an answer"


def _fail():
    raise LookupError("in a child")


def _exit():
    sys.exit(7)


def _exit_with_a_word():
    sys.exit("no more")


class _Unspeakable:
    def __str__(self):
        raise ValueError("no words for it")


def _exit_with_what_cannot_be_said():
    sys.exit(_Unspeakable())


def _lose_standard_error():
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 2)
    os.close(write)


def _fail_where_standard_error_is_broken():
    _lose_standard_error()
    raise LookupError("in a child")


def _exit_with_a_word_where_standard_error_is_broken():
    _lose_standard_error()
    sys.exit("no more")


@pytest.mark.parametrize("fork", [_fork, _fork_async])
@pytest.mark.parametrize(("end", "status"), [(_return, 0), (_fail, 1), (_exit, 7), (_exit_with_a_word, 1)])
def test_a_child_that_comes_back_from_its_job_exits_as_a_script_would(link, fork, end, status):
    assert _in_pool((fork, end), (fork, end), link=link) == [status, status]


@pytest.mark.parametrize("fork", [_fork, _fork_async])
@pytest.mark.parametrize(
    "end",
    [
        _exit_with_what_cannot_be_said,
        _fail_where_standard_error_is_broken,
        _exit_with_a_word_where_standard_error_is_broken,
    ],
)
def test_a_child_that_cannot_say_why_it_ends_exits_all_the_same(fork, end):
    assert _in_pool((fork, end), (fork, end), link="socketpair") == [1, 1]


@pytest.mark.parametrize("end", [_fail, _exit_with_a_word])
def test_a_child_without_a_standard_error_prints_to_nothing_else(end):
    def fork():
        read, write = os.pipe()

        def end_without_standard_error():
            os.dup2(write, 1)
            sys.stderr = None
            return end()

        status = _fork(end_without_standard_error)
        os.close(write)
        with os.fdopen(read) as said:
            return status, said.read()

    assert _in_pool((fork,), link="socketpair") == [(1, "")]


def test_a_child_that_comes_back_begins_none_of_the_jobs_that_wait(tmp_path):
    def note():
        with open(tmp_path / "notes", "a") as notes:
            notes.write(f"{os.getpid()}\n")

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, domains.Switch() as switch:
            for _ in range(20):
                pool.submit_fork(switch, _fork, _return, weight=1.0)
                pool.submit_fork(switch, note, weight=1.0)

    domains.run(main)
    notes = (tmp_path / "notes").read_text().split()
    assert (len(notes), len(set(notes))) == (20, 1)


def _absolute_in_processes(method, numbers):
    with multiprocessing.get_context(method).Pool(2) as pool:
        return pool.map(abs, numbers)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_job_may_use_multiprocessing(method):
    assert _in_pool(*[(_absolute_in_processes, method, [-1, 2])] * 3, link="socketpair") == [[1, 2]] * 3
