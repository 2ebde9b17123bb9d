"""Numbers that users hand over, checked at the edge: weights, which are integers inside, durations, counts, retries."""

from __future__ import annotations

import math
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

from domains.protocol import FULL_WEIGHT
from domains.retry import Retry
from domains.scheduler.reals import as_float

MOST_DOMAINS = 1 << 22
"""Each is a process, and no Linux numbers more of them."""

_LARGEST = (1 << 63) - 1
"""What travels to another domain does so as an integer of 64 bits."""


def checked_weight(weight: object) -> int:
    """A user's weight in millionths. Raises TypeError for what is no real number, ValueError outside 0.0 to 1.0.

    A weight above zero never rounds to zero, so that it always counts.
    """
    number: float
    if (type(weight) is float or type(weight) is int) and 0.0 <= weight <= 1.0:
        number = weight
    else:
        number = _as_float("weight", "a number from 0.0 to 1.0", weight)
        if not 0.0 <= number <= 1.0:  # NaN fails this as well
            raise ValueError(f"weight must be from 0.0 to 1.0, but is {number}")
    return round(number * FULL_WEIGHT) or 1 if weight else 0


def checked_seconds(name: str, seconds: object) -> float:
    """A user's duration. Raises TypeError for what is no real number, ValueError for NaN and below zero."""
    number = seconds if type(seconds) is float else _as_float(name, "a number of seconds", seconds)
    if not number >= 0:
        raise ValueError(f"{name} must be at least 0 seconds, but is {number}")
    return number


def _as_float(name: str, allowed: str, number: object) -> float:
    """A real number of any kind, infinite if it is too large for a float. Raises TypeError for all else."""
    if isinstance(number, Integral):
        is_real = hasattr(number, "__index__") and not isinstance(number, bool)  # NumPy's durations have none
    else:
        is_real = isinstance(number, Real | Decimal)
    if not is_real:
        raise TypeError(f"{name} must be {allowed}, not {type(number).__name__} {number!r}")
    return as_float(number)


def checked_heartbeat(seconds: object) -> float | None:
    """A user's time between signs of life, None for no such signs. Raises TypeError or ValueError."""
    if seconds is None:
        return None
    number = _as_float("heartbeat_seconds", "None or a number of seconds", seconds)
    if not 0 < number < math.inf:
        raise ValueError(f"heartbeat_seconds must be None or a finite number above 0, but is {number}")
    return number


def checked_count(name: str, count: object, least: int, most: int = _LARGEST) -> int:
    """A user's whole number. Raises TypeError for what is none, ValueError below the least and above the most."""
    if type(count) is not int:
        raise TypeError(f"{name} must be an int, not {type(count).__name__} {count!r}")
    if count < least:
        raise ValueError(f"{name} must be at least {least}, but is {count}")
    if count > most:
        raise ValueError(f"{name} must be at most {most}, but is {count}")
    return count


def checked_priority(priority: object) -> int:
    """Which of two waiting jobs starts first: the higher one. Raises TypeError for what is no int, and ValueError."""
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise TypeError(f"priority must be an int, not {type(priority).__name__} {priority!r}")
    if not -_LARGEST - 1 <= priority <= _LARGEST:
        raise ValueError(f"priority must be from -2**63 to 2**63 - 1, but is {priority}")
    return int(priority)


def checked_retry(retries: object, on: Any, backoff: object) -> Retry | None:
    """What a user asked for; None for no retries at all. Raises TypeError or ValueError."""
    left = checked_count("retries", retries, 0)
    kinds = on if isinstance(on, tuple) else (on,)
    if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        raise TypeError(f"retry_on must be an exception class or a tuple of them, not {on!r}")
    return Retry(left, on, checked_seconds("backoff", backoff)) if left else None
