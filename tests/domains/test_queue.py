"""The queue of a pool, held against a list that is sorted anew each time."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from domains.job import JobState
from domains.pool.queue import JobQueue

_sequence = itertools.count()


def job(priority: int = 0) -> Any:
    """What a queue knows of a job."""
    return SimpleNamespace(priority=priority, state=JobState.QUEUED, sequence=next(_sequence))


def filled(*priorities: int) -> tuple[JobQueue, list[Any]]:
    queue = JobQueue()
    jobs = [job(priority) for priority in priorities]
    for each in jobs:
        queue.push(each)
    return queue, jobs


def test_jobs_come_in_the_order_of_submission_within_their_priority():
    queue, (a, b, c, d) = filled(0, 5, 0, 5)
    assert queue.clear() == [b, d, a, c]
    assert queue.waiting == 0


def test_the_job_that_was_seen_last_stays():
    queue, (_, b, c) = filled(0, 0, 0)
    for each in queue.in_turn():
        if each is b:
            break
    assert queue.waiting == 2
    assert queue.clear() == [b, c]


def test_a_more_urgent_job_that_is_pushed_meanwhile_comes_next():
    queue, (a, b) = filled(0, 0)
    turns = queue.in_turn()
    assert next(turns) is a
    urgent = job(9)
    queue.push(urgent)
    assert list(turns) == [urgent, b]


def test_what_a_finalizer_pushes_while_cancelled_jobs_are_swept_out_keeps_its_place():
    pushed = job()
    coming = [pushed]

    class Last:
        priority = 0
        sequence = -1

        @property
        def state(self) -> JobState:
            if queue.waiting == 2 and coming:
                queue.push(coming.pop())  # as a finalizer may, in the midst of anything
            return JobState.QUEUED

    queue, (first, *cancelled) = filled(*[0] * 65)
    last: Any = Last()
    queue.push(last)
    for each in cancelled:
        each.state = JobState.ENDED
        queue.cancelled()
    assert queue.waiting == 3
    assert queue.clear() == [first, last, pushed]


def test_cancelled_jobs_are_passed_over():
    queue, (a, b, c) = filled(0, 0, 0)
    for each in a, c:
        each.state = JobState.ENDED
        queue.cancelled()
    assert queue.waiting == 1
    assert queue.clear() == [b]


Step = st.one_of(
    st.tuples(st.just("push"), st.integers(-2, 2)),
    st.tuples(st.just("take"), st.integers(0, 5)),
    st.tuples(st.just("cancel"), st.integers(0, 100)),
    st.tuples(st.just("put back"), st.integers(0, 100)),
)


@settings(deadline=None)
@given(st.lists(Step, max_size=80))
def test_the_queue_is_a_sorted_list_of_the_jobs_that_wait(steps):
    queue = JobQueue()
    waiting: list[Any] = []
    taken: list[Any] = []
    for what, number in steps:
        if what == "push":
            each = job(number)
            queue.push(each)
            waiting.append(each)
        elif what == "take":
            expected = sorted(waiting, key=lambda job: (-job.priority, job.sequence))[:number]
            turns = queue.in_turn()
            assert [each for each, _ in zip(turns, range(number), strict=False)] == expected
            turns.close()  # the one beyond was seen, and stays
            waiting = [each for each in waiting if each not in expected]
            taken += expected
        elif what == "cancel" and waiting:
            each = waiting.pop(number % len(waiting))
            each.state = JobState.ENDED
            queue.cancelled()
        elif what == "put back" and taken:
            back = taken[number % len(taken) :]
            del taken[number % len(taken) :]
            queue.put_back(back)
            waiting += back
        assert queue.waiting == len(waiting)
    assert queue.clear() == sorted(waiting, key=lambda job: (-job.priority, job.sequence))
