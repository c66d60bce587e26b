"""The errors that `mmcl_core` raises on bad input, and the checks of numbers that all share.

Every message says what was expected, what came, and, where it helps, what to do. All of them are
`ValueError`s, so that code which knows nothing of this library can still catch them.
"""

import math
from numbers import Integral, Real
from typing import Any


class MMCLError(ValueError):
    """Base of the family: an argument has a value that cannot be used."""


class ShapeError(MMCLError):
    """A tensor has the wrong shape, type or device, or a batch is too small."""


class MissingModalityError(MMCLError):
    """A method was handed a batch without a modality that it needs."""


class DataError(MMCLError):
    """A file, a row or a caption cannot be used."""


class RowError(DataError, IndexError):
    """There is no such row: a number is outside a data set."""


class CheckpointError(MMCLError):
    """A checkpoint cannot be read, or belongs to another method."""


def check_count(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`, as an int; NumPy's are welcome, True and 3.0 are not.

    Args:
        name: of the argument, for the message.
        value: what came.
        least: the smallest that is allowed.
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least:
        return int(value)
    raise MMCLError(f"{name} must be a whole number, at least {least}; got {value!r}")


def check_number(name: str, value: Any, interval: str) -> float:
    """A number in an interval, as a float; NumPy's are welcome, True is not.

    Args:
        name: of the argument, for the message.
        value: what came.
        interval: as it is written: "[0, 1)" holds 0 and not 1; "(-inf, inf)" is what is finite.
    """
    low, high = map(float, interval[1:-1].split(","))
    if isinstance(value, Real) and not isinstance(value, bool):
        x = float(value)
        above = low <= x if interval[0] == "[" else low < x
        if above and (x <= high if interval[-1] == "]" else x < high):
            return x
    raise MMCLError(f"{name} must be a number in {interval}; got {value!r}")


def check_temperature(value: Any, name: str = "temperature") -> float:
    """A number that scores can be divided by without an overflow: finite, at least 1e-30."""
    if isinstance(value, Real) and not isinstance(value, bool) and 1e-30 <= float(value) < math.inf:
        return float(value)
    raise MMCLError(f"{name} must be above 0 and finite (at least 1e-30); got {value!r}")
