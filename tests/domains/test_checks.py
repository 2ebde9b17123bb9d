"""Which weights and durations are taken: every real number in their range, of whatever kind, and nothing else."""

import math
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import numpy
import pytest

from domains.pool.checks import checked_seconds, checked_weight

_HUGE = 10**5000  # too large for a float, and for Python to write it down

_NO_NUMBERS = [
    True,
    numpy.True_,
    "0.5",
    b"1",
    None,
    1j,
    numpy.str_("0.5"),
    numpy.complex128(1),
    numpy.timedelta64(1, "s"),
    numpy.timedelta64(1, "ns"),
    numpy.array(0.5),
]


@pytest.mark.parametrize(
    "half", [0.5, Fraction(1, 2), Decimal("0.5"), numpy.float64(0.5), numpy.float32(0.5), numpy.longdouble(0.5)]
)
def test_real_numbers_of_any_kind_are_weights_and_durations(half):
    assert checked_weight(half) == 500_000
    seconds = checked_seconds("timeout", half)
    assert (type(seconds), seconds) == (float, 0.5)


@pytest.mark.parametrize("kind", [int, float, Fraction, Decimal, numpy.int64, numpy.uint8, numpy.float16])
def test_nought_and_one_are_weights_of_any_kind(kind):
    assert [checked_weight(kind(number)) for number in (0, 1)] == [0, 1_000_000]
    assert checked_seconds("timeout", kind(1)) == 1.0


@pytest.mark.parametrize("weight", [1e-12, 5e-324, Fraction(1, _HUGE)], ids=type)
def test_a_weight_above_nought_counts_however_small(weight):
    assert checked_weight(weight) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", _NO_NUMBERS, ids=lambda value: f"{type(value).__name__}-{value!r}")
def test_what_is_no_real_number_is_a_type_error(value):
    with pytest.raises(TypeError, match=rf"^weight must be .* not {type(value).__name__} "):
        checked_weight(value)
    with pytest.raises(TypeError, match=rf"^timeout must be .* not {type(value).__name__} "):
        checked_seconds("timeout", value)


@pytest.mark.parametrize("number", [10**400, _HUGE, -_HUGE, Fraction(_HUGE), Decimal("1e400"), math.inf], ids=type)
def test_a_huge_weight_is_a_value_error(number):
    with pytest.raises(ValueError, match=r"^weight must be from 0.0 to 1.0, but is -?inf$"):
        checked_weight(number)


@pytest.mark.parametrize("number", [10**400, _HUGE, Fraction(_HUGE), Decimal("1e400"), math.inf], ids=type)
def test_a_huge_duration_never_ends(number):
    assert checked_seconds("timeout", number) == math.inf


@pytest.mark.parametrize("number", [-_HUGE, -1, -0.5, numpy.int8(-1)], ids=type)
def test_a_duration_below_zero_is_a_value_error(number):
    with pytest.raises(ValueError, match=r"^timeout must be at least 0 seconds, but is -"):
        checked_seconds("timeout", number)


@pytest.mark.parametrize("number", [math.nan, Decimal("nan"), Decimal("snan"), numpy.float32("nan")])
def test_nan_is_a_value_error(number):
    with pytest.raises(ValueError, match=r"^weight must be from 0.0 to 1.0, but is nan$"):
        checked_weight(number)
    with pytest.raises(ValueError, match=r"^timeout must be at least 0 seconds, but is nan$"):
        checked_seconds("timeout", number)


def test_a_check_does_not_import_numpy():
    code = """
import sys
from fractions import Fraction
from domains.pool.checks import checked_weight
assert checked_weight(Fraction(1, 2)) == 500_000
assert "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
