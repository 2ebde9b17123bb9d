"""Real numbers of whatever kind users have them, such as a Decimal or one of NumPy's, as floats."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["as_float"]


def as_float(number: Any) -> float:
    """Infinite if it is too large for a float, NaN for a NaN that signals. Raises TypeError for what is no number."""
    try:
        return math.fsum((number,))  # `float` would take text as well
    except OverflowError:
        return math.inf if number > 0 else -math.inf
    except ValueError:  # a NaN that signals
        return math.nan
