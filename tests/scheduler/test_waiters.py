"""The queue under every primitive: first come, first served, whoever has left meanwhile (S32)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from domains.scheduler.waiters import WaitQueue


class Waiter:
    """Waits until it is told, or has gone."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name = name
        self.told = told
        self.waits = True

    def resume(self, value: int) -> bool:
        waits, self.waits = self.waits, False
        if waits:
            self.told.append(f"{self.name} resumed with {value}")
        return waits

    def throw(self, error: BaseException) -> bool:
        waits, self.waits = self.waits, False
        if waits:
            self.told.append(f"{self.name} failed with {error}")
        return waits


def queue_of(names: str, told: list[str]) -> tuple[WaitQueue[int], list[Waiter]]:
    queue: WaitQueue[int] = WaitQueue()
    waiters = [Waiter(name, told) for name in names]
    for waiter in waiters:
        queue.join(waiter, waiter.name)
    return queue, waiters


def test_the_first_who_still_waits_is_woken() -> None:
    told: list[str] = []
    queue, waiters = queue_of("abc", told)
    waiters[0].waits = False
    assert queue.wake_first(1)
    assert told == ["b resumed with 1"]
    assert queue.wake_first(2)
    assert not queue.wake_first(3)
    assert told == ["b resumed with 1", "c resumed with 2"]
    assert not queue


def test_whoever_withdraws_is_not_woken() -> None:
    told: list[str] = []
    queue, waiters = queue_of("abc", told)
    queue.withdraw(waiters[1])
    queue.withdraw(waiters[1])
    assert list(queue) == [waiters[0], waiters[2]]
    assert len(queue) == 2
    assert queue.wake_all(1) == 2
    assert told == ["a resumed with 1", "c resumed with 1"]


def test_each_is_failed_with_an_exception_of_its_own() -> None:
    told: list[str] = []
    queue, waiters = queue_of("abc", told)
    waiters[2].waits = False
    errors = iter([ValueError("1"), ValueError("2"), ValueError("3")])
    assert queue.throw_all(lambda: next(errors)) == 2
    assert told == ["a failed with 1", "b failed with 2"]


def test_those_who_come_while_all_are_woken_wait_on() -> None:
    told: list[str] = []
    queue, _ = queue_of("a", told)
    late = Waiter("late", told)

    class Joins(Waiter):
        def resume(self, value: int) -> bool:
            queue.join(late)
            return super().resume(value)

    queue.join(Joins("b", told))
    assert queue.wake_all(1) == 2
    assert list(queue) == [late]


def test_the_first_is_taken_out_with_its_item() -> None:
    queue, waiters = queue_of("ab", [])
    assert queue.pop_first() == (waiters[0], "a")
    assert queue.pop_first() == (waiters[1], "b")
    assert queue.pop_first() is None


def test_a_queue_that_is_emptied_from_within_the_waking_tells_nobody_twice() -> None:
    told: list[str] = []
    queue: WaitQueue[int] = WaitQueue()

    class Gone(Waiter):
        def resume(self, value: int) -> bool:
            queue.wake_all(2)  # as a signal handler may, at any time
            return False

    queue.join(Gone("gone", told))
    queue.join(Waiter("a", told))
    assert not queue.wake_first(1)
    assert told == ["a resumed with 2"]


def test_a_waiter_may_be_put_first() -> None:
    told: list[str] = []
    queue, waiters = queue_of("abc", told)
    queue.put_first(waiters[2])
    queue.put_first(Waiter("not here", told))
    assert list(queue) == [waiters[2], waiters[0], waiters[1]]


def test_a_queue_that_is_emptied_between_the_look_and_the_step_wakes_nobody() -> None:
    class Emptied(OrderedDict[Any, Any]):
        def __len__(self) -> int:
            return 1  # as it was when it was asked

    queue: WaitQueue[int] = WaitQueue()
    queue._entries = Emptied()
    assert not queue.wake_first(1)
    assert queue.wake_all(1) == 0
    assert queue.throw_all(ValueError) == 0
    assert queue.pop_first() is None


def test_several_threads_wake_each_waiter_once() -> None:
    for _ in range(20):
        told: list[str] = []
        queue, _ = queue_of("x" * 500, told)
        start = threading.Barrier(4)
        woken: list[int] = []

        def wake(all_: bool, queue: WaitQueue[int], start: threading.Barrier, woken: list[int]) -> None:
            start.wait()
            if all_:
                woken.append(queue.wake_all(1))
            else:
                while queue.wake_first(1):
                    woken.append(1)

        threads = [threading.Thread(target=wake, args=(number > 1, queue, start, woken)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(woken) == len(told) == 500
        assert not queue
