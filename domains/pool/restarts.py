"""How soon a domain that has died is replaced: at once, unless many have died lately."""

from __future__ import annotations

import time
from collections import deque

_WINDOW_SECONDS = 10.0
_FIRST_SECONDS = 0.05
_LONGEST_SECONDS = 5.0


class Restarts:
    """Remembers the deaths of the last seconds. So many of them are `free`; each one more doubles the delay."""

    def __init__(self, free: int) -> None:
        self._free = free
        self._deaths: deque[float] = deque(maxlen=free + 16)

    def record_death(self) -> None:
        self._deaths.append(time.monotonic())

    def delay(self) -> float:
        """How many seconds to wait before the next start."""
        horizon = time.monotonic() - _WINDOW_SECONDS
        while self._deaths and self._deaths[0] < horizon:
            self._deaths.popleft()
        surplus = len(self._deaths) - self._free
        if surplus <= 0:
            return 0.0
        import random  # slow to import, and domains seldom die

        return min(_FIRST_SECONDS * 2.0 ** (surplus - 1) * random.uniform(0.5, 1.5), _LONGEST_SECONDS)
