"""Scaling: what the page builds, and what its checks say."""

import pytest
import torch

from mmcl_core import losses
from tests.book.chapter import definitions, unit


def test_scaling_peak_is_the_largest_running_sum() -> None:
    page = definitions("synthesis/scaling")
    assert page["peak_loop"]([3, 4, -5, 2, 3, -7]) == (7, 1)
    assert page["peak_loop"]([-1, 2]) == (1, 1)
    assert page["peak_loop"]([]) == (0, 0)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_scaling_gradient_of_processes(processes: int) -> None:
    """That of the whole loss; cut, without what other processes' captions say of a picture."""
    gradient = definitions("synthesis/scaling")["gradient_of_processes"]
    x, y = unit(2, 8, 5, seed=0)
    leaf = x.clone().requires_grad_()
    (right,) = torch.autograd.grad(losses.clip_loss(leaf, y, 10.0), leaf)
    torch.testing.assert_close(gradient(x, y, processes), right)
    torch.testing.assert_close(gradient(x, y, processes, twice=True), right / processes)
    by_column = (10 * x @ y.T).softmax(0)
    other = torch.arange(8)[:, None] // (8 // processes) != torch.arange(8) // (8 // processes)
    lost = 10 / 16 * (by_column * other) @ y
    torch.testing.assert_close(gradient(x, y, processes, cut=True), right - lost)


def test_scaling_exercises_name_what_fails() -> None:
    page = definitions("synthesis/scaling")
    check = page["check_batch"]
    assert check(page["largest_batch"]) == "not answered yet"
    assert check(page["fits"]) == "right"
    assert "does not fit" in check(lambda room, D: page["fits"](room, D) + 1)
    assert "one more" in check(lambda room, D: page["fits"](room, D) - 1)
    assert "whole number" in check(lambda room, D: 1.5)
    check, right = page["check_incomplete"], page["lost"]
    assert check(page["incomplete"]) == "not answered yet"
    assert check(right) == "right"
    assert "its own row" in check(lambda B, n: torch.ones(B, B, dtype=torch.bool))
    assert "own process" in check(lambda B, n: (torch.arange(B) == n)[:, None].expand(B, B))
    assert "not heard" in check(lambda B, n: torch.zeros(B, B, dtype=torch.bool))
    assert "expected [4, 4]" in check(lambda B, n: right(B, n)[0])
    check = page["check_received"]
    assert check(page["received_by_each"]) == "not answered yet"
    assert check(page["ring"]) == "right"
    assert "nothing to receive" in check(lambda size, W: size)
    assert "one way" in check(lambda size, W: (W - 1) * size / W)
    assert "never more" in check(lambda size, W: 3 * size * (W > 1))
    assert "expected" in check(lambda size, W: size * (W > 1) * 0.9)
