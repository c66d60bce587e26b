"""No test compares what float32 made by float64's tolerance: other processors sum in another order.

A number of Python is a float64, whatever it was made from, so `torch.testing.assert_close` allows
it 1e-7: less than one step of float32 at 1.86. Such a test passes on one processor and fails on
the next. `guard`, which conftest.py calls, makes it fail everywhere.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch

STEP = 2.0**-23  # of float32, relative to a value
LEAST = 8 * STEP  # what must be allowed; pytest.approx allows 1e-6, a little more
SAME = 1e-12  # nearer than this, relative: both sides are float64, or copies of one value


def close32(got: Any, expected: Any) -> None:
    """Numbers, or lists of them, that float32 made agree by float32's tolerance."""
    got, expected = (torch.as_tensor(x, dtype=torch.float32) for x in (got, expected))
    _assert_close(got, expected)


def made_in_float32(value: float) -> bool:
    """Whether a number has float32's 24 binary digits and not float64's 53.

    One with 12 or fewer, as 0.75 or a count, may come from anywhere; of float64's other numbers one
    in 2**29 is taken for float32's.
    """
    if not math.isfinite(value) or value.is_integer():
        return False
    digits = math.frexp(value)[0]
    return (digits * 2**24).is_integer() and not (digits * 2**12).is_integer()


def check_allowed(got: float, expected: float, allowed: float) -> None:
    """Raise AssertionError if `allowed`, a difference, is too little for what float32 made."""
    size = max(abs(got), abs(expected))
    if not (made_in_float32(got) or made_in_float32(expected)) or abs(got - expected) < SAME * size:
        return
    if allowed < LEAST * size:
        raise AssertionError(
            f"{got!r} and {expected!r} are compared within {allowed:.2g}, but float32 made one of "
            f"them: its steps are {STEP * size:.2g} here, and another processor ends some away. "
            "Compare tensors, or use tests.float32.close32, or allow a relative 1e-6 or more."
        )


def _floats(got: Any, expected: Any) -> Iterator[tuple[float, float]]:
    """The pairs of Python floats in two structures of one form."""
    if isinstance(got, float) and isinstance(expected, float):
        yield got, expected
    elif isinstance(got, Mapping) and isinstance(expected, Mapping):
        for name in got.keys() & expected.keys():
            yield from _floats(got[name], expected[name])
    elif isinstance(got, Sequence) and isinstance(expected, Sequence) and not isinstance(got, str):
        for a, b in zip(got, expected, strict=False):  # of other lengths: assert_close says so
            yield from _floats(a, b)


_assert_close = torch.testing.assert_close


def _guarded_assert_close(actual: Any, expected: Any, **options: Any) -> None:
    relative, absolute = (options.get(name) for name in ("rtol", "atol"))
    for a, b in _floats(actual, expected):
        check_allowed(a, b, (1e-7 if absolute is None else absolute)
                      + (1e-7 if relative is None else relative) * abs(b))  # fmt: skip
    _assert_close(actual, expected, **options)


def guard() -> None:
    """Let `torch.testing.assert_close` and `pytest.approx` refuse such comparisons from now on."""
    torch.testing.assert_close = _guarded_assert_close
    scalar: Any = type(pytest.approx(1.0))  # lists and mappings compare by it, number by number
    compare = scalar.__eq__

    def guarded(self: Any, actual: Any) -> bool:
        if isinstance(actual, float) and isinstance(self.expected, float):
            check_allowed(actual, self.expected, self.tolerance)
        return compare(self, actual)

    scalar.__eq__ = guarded
