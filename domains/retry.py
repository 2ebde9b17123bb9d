"""How often, after what and how soon a job is run again."""

from __future__ import annotations

_LONGEST_SECONDS = 30.0

_MOST_DOUBLINGS = 1000
"""A float has no room for many more."""

RetryOn = type[BaseException] | tuple[type[BaseException], ...]


def doubled(seconds: float, times: int) -> float:
    """So many seconds, doubled so many times, or at least for longer than anybody waits."""
    return seconds * 2.0 ** min(times, _MOST_DOUBLINGS)


class Retry:
    """The retries that one job has left. `on` are the failures after which it is run again."""

    __slots__ = ("attempt", "backoff", "left", "on")

    def __init__(self, left: int, on: RetryOn, backoff: float) -> None:
        self.left = left
        self.on = on
        self.backoff = backoff
        self.attempt = 1

    def allows(self, failure: BaseException | type[BaseException]) -> bool:
        """Whether the job may be run again after this."""
        kind = failure if isinstance(failure, type) else type(failure)
        return self.left > 0 and issubclass(kind, self.on)

    def next_delay(self) -> float:
        """Use up one retry, and say how many seconds to wait before it: twice as long each time, give or take half."""
        import random  # slow to import, and most jobs never fail

        self.left -= 1
        delay = doubled(self.backoff, self.attempt - 1) * random.uniform(0.5, 1.5)
        self.attempt += 1
        return min(delay, _LONGEST_SECONDS)
