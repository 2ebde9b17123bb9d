"""The jobs that wait in the parent: first come, first served within a priority, higher priorities first.

Pushing and popping cost the same however many wait. A cancelled job is only marked, and passed over when its turn
comes; when more than half of what lies here is cancelled, it is swept out, so memory follows what really waits.
Finalizers may push in the midst of anything; whoever calls the rest sees to it that they do nothing else.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Any

from domains.job import Job, JobState

_SWEEP_AT_LEAST = 64
_QUEUED = JobState.QUEUED


class JobQueue:
    """A priority queue of jobs that keeps the order of submission."""

    def __init__(self) -> None:
        self._lanes: dict[int, deque[Job[Any]]] = {}
        self._priorities: list[int] = []  # ascending, each with a lane that is not empty
        self.waiting = 0
        """How many jobs wait, not counting cancelled ones."""
        self._cancelled = 0

    def push(self, job: Job[Any]) -> None:
        """Add a job behind all others of its priority."""
        lane = self._lanes.get(job.priority)
        if lane is None:
            lane = self._lane(job.priority)
        lane.append(job)
        self.waiting += 1

    def put_back(self, jobs: Iterable[Job[Any]]) -> None:
        """Return jobs that were popped before, each to its place before all that were submitted after it."""
        for job in sorted(jobs, key=attrgetter("sequence"), reverse=True):
            lane = self._lane(job.priority)
            if lane and lane[0].sequence < job.sequence:
                # A job put back earlier stands before it: find the place. Rare, and near the front.
                place = bisect.bisect_left(lane, job.sequence, key=attrgetter("sequence"))
                lane.insert(place, job)
            else:
                lane.appendleft(job)
            self.waiting += 1

    def in_turn(self) -> Iterator[Job[Any]]:
        """The jobs in their turn. One is taken out when the next is asked for: that which was seen last stays here.

        Nothing else may be done to the queue before that, but pushing.
        """
        while self._priorities:
            priority = self._priorities[-1]
            lane = self._lanes[priority]
            while lane:
                job = lane[0]
                if job.state is _QUEUED:
                    yield job
                    assert job is lane[0]
                    self.waiting -= 1
                else:
                    self._cancelled -= 1
                lane.popleft()
                if priority != self._priorities[-1]:
                    break  # something more urgent was pushed meanwhile
            self._remove_if_empty(priority, lane)

    def cancelled(self) -> None:
        """A job that lies here has just ended by being cancelled."""
        self.waiting -= 1
        self._cancelled += 1
        if self._cancelled >= _SWEEP_AT_LEAST and self._cancelled > self.waiting:
            self._sweep()

    def clear(self) -> list[Job[Any]]:
        """Take out every job that waits, in order."""
        return list(self.in_turn())

    def _lane(self, priority: int) -> deque[Job[Any]]:
        made: deque[Job[Any]] = deque()
        lane = self._lanes.setdefault(priority, made)  # a finalizer may have pushed one as this was made
        if lane is made:
            bisect.insort(self._priorities, priority)
        return lane

    def _remove_if_empty(self, priority: int, lane: deque[Job[Any]]) -> None:
        if not lane:
            del self._lanes[priority]
            self._priorities.remove(priority)

    def _sweep(self) -> None:
        for priority, lane in list(self._lanes.items()):
            there = [lane.popleft() for _ in range(len(lane))]  # what a finalizer pushes meanwhile stays behind them
            lane.extendleft(job for job in reversed(there) if job.state is _QUEUED)
            self._remove_if_empty(priority, lane)
        self._cancelled = 0
