"""What float32 made is not compared by float64's tolerance (B1): such a test fails everywhere."""

import math

import numpy as np
import pytest
import torch

from tests.float32 import close32, made_in_float32

ONE = float(torch.tensor(1.86))  # float32's
NEXT = float(np.nextafter(np.float32(1.86), np.float32(2)))  # and the one after


@pytest.mark.parametrize("value", [1 / 3, 0.1, 1.86, 1e-30, -7.1, math.pi])
def test_float32s_numbers_are_told_from_float64s(value: float) -> None:
    assert made_in_float32(float(np.float32(value)))
    assert not made_in_float32(value)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 0.75, 2048.0, 98324.0, 1e-3, math.inf, math.nan])
def test_round_numbers_come_from_anywhere(value: float) -> None:
    assert not made_in_float32(value)


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (ONE, NEXT),
        ([1.0, ONE], [1.0, NEXT]),
        ({"loss": [ONE]}, {"loss": [NEXT]}),
        (ONE, ONE + 1e-9),  # of float64: one side is enough
        (torch.tensor([1.86]).tolist(), [NEXT]),
    ],
)
def test_assert_close_of_python_s_floats_is_refused(got, expected) -> None:
    """These pass by PyTorch's own judgement if the processor is lucky, by 1e-7 of 1.2e-7."""
    with pytest.raises(AssertionError, match=r"float32 made one of.*close32"):
        torch.testing.assert_close(got, expected)
    with pytest.raises(AssertionError, match="float32 made one"):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-7)


@pytest.mark.parametrize("form", [lambda x: x, lambda x: [x], lambda x: {"a": x}, np.array])
def test_approx_with_too_little_is_refused(form) -> None:
    with pytest.raises(AssertionError, match="float32 made one"):
        assert form(ONE) == pytest.approx(form(NEXT), rel=1e-7)
    with pytest.raises(AssertionError, match="float32 made one"):
        assert form(ONE) == pytest.approx(form(1.86), rel=1e-9, abs=1e-8)
    assert form(ONE) == pytest.approx(form(NEXT))


def test_what_is_float64s_or_a_copy_is_compared_as_closely_as_one_likes() -> None:
    torch.testing.assert_close(1 / 3, 1 / 3 + 1e-9)
    torch.testing.assert_close([ONE, 0.5], [ONE, 0.5])
    torch.testing.assert_close(torch.tensor(ONE), torch.tensor(NEXT))  # tensors have float32's own
    assert pytest.approx(1 / 3 + 1e-14, rel=1e-12) == 1 / 3
    assert pytest.approx(ONE, rel=1e-12) == ONE


def test_what_is_different_still_fails() -> None:
    close32([ONE, 1.0], [NEXT, 1.0])
    with pytest.raises(AssertionError, match="not close"):
        close32([ONE, 1.0], [1.87, 1.0])
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close([1 / 3], [0.34])
    with pytest.raises(AssertionError, match="length"):
        torch.testing.assert_close([ONE], [ONE, ONE])
    assert pytest.approx(1.87) != ONE
