"""Which values need no pickle: messages hold them as they are, and they arrive as what they were."""

from __future__ import annotations

from typing import Any

__all__ = ["MOST_INT", "MOST_LETTERS", "SCALARS", "is_plain"]

SCALARS = frozenset({float, bool, type(None)})
MOST_INT = 1 << 62
MOST_LETTERS = 1 << 10
"""Longer strings may be long enough for shared memory."""


def is_plain(value: Any) -> bool:
    """Never true of bytes, which in their place mean a pickle."""
    kind = type(value)
    return (
        kind in SCALARS
        or (kind is int and -MOST_INT < value < MOST_INT)
        or (kind is str and len(value) < MOST_LETTERS and value.isascii())  # any other may be no valid text
    )
