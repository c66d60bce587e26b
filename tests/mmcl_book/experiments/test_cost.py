"""The cost of a step: memory in closed form, time by a clock of ours, and nothing left behind."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from mmcl_book.experiments import cost as module
from mmcl_book.experiments import small
from mmcl_book.experiments.cost import step_costs
from mmcl_core.errors import MMCLError
from mmcl_core.methods import MoCo

MIB = 2**18  # floats


class Known(nn.Module):
    """Holds `copies` tensors of one MiB at once, and moves the clock on by `seconds`."""

    clock = 0.0

    def __init__(self, copies: int, seconds: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.ones(5), requires_grad=False)
        self.copies, self.seconds, self.steps = copies, seconds, 0

    def loss(self, batch):
        Known.clock += self.seconds
        held = [torch.ones(MIB) for _ in range(self.copies)]
        return {"total": self.weight * len(held)}

    def after_step(self) -> None:
        self.steps += 1


@pytest.mark.parametrize("copies", [0, 1, 5])
def test_memory_is_what_is_held_at_once(copies: int) -> None:
    cost = step_costs({"known": (Known(copies), {})}, rounds=1)["known"]
    assert cost.mebibytes == pytest.approx(copies, abs=0.01)
    assert cost.parameters == 1


def test_memory_of_the_backward_pass_counts() -> None:
    """x * x keeps x; its gradient is a second tensor beside it."""

    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(MIB))

        def loss(self, batch):
            return {"total": (self.weight * self.weight).sum()}

    assert 2 <= step_costs({"square": (Square(), {})}, rounds=1)["square"].mebibytes <= 4.01


def test_seconds_are_those_of_each_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "perf_counter", lambda: Known.clock)
    costs = step_costs({"slow": (Known(1, 8.0), {}), "fast": (Known(1, 0.5), {})}, rounds=3)
    assert (costs["slow"].seconds, costs["fast"].seconds) == (8.0, 0.5)


def test_weights_modes_gradients_and_random_state_stay() -> None:
    data = small.scenes(16, 0)
    batch = data.batch(range(8))
    method = MoCo(small.image_encoder(), queue=64).eval()
    before = {k: v.clone() for k, v in method.query.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    step_costs({"moco": (method, batch | {"image_view": batch["image"]})}, rounds=2)
    assert torch.equal(torch.rand(2), expected)
    assert not method.training
    assert all(p.grad is None for p in method.parameters())
    assert all(torch.equal(before[k], v) for k, v in method.query.state_dict().items())


def test_a_frozen_part_stays_in_eval_mode_and_all_modes_come_back() -> None:
    class Parts(Known):
        def __init__(self) -> None:
            super().__init__(1)
            self.encoder = nn.Linear(2, 2).requires_grad_(False).eval()
            self.drop, self.seen = nn.Dropout(), set()

        def loss(self, batch):
            self.seen.add((self.encoder.training, self.drop.training))
            torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
            return super().loss(batch)

    for whole in (False, True):
        method = Parts()
        if whole:
            method.eval()
        modes = [part.training for part in method.modules()]
        states = np.random.get_state()[2], random.getstate()  # noqa: NPY002
        step_costs({"parts": (method, {})}, rounds=np.int64(1))
        assert (np.random.get_state()[2], random.getstate()) == states  # noqa: NPY002
        assert method.seen == {(False, True)}
        assert [part.training for part in method.modules()] == modes


def test_every_step_ends_with_after_step() -> None:
    method = Known(1)
    step_costs({"known": (method, {})}, rounds=4)
    assert method.steps == 6  # two that are not timed


@pytest.mark.parametrize(("methods", "rounds"), [({}, 3), ({"known": (Known(1), {})}, 0)])
def test_nothing_to_measure(methods, rounds: int) -> None:
    with pytest.raises(MMCLError, match=r"at least (1|one method); got (0|none)"):
        step_costs(methods, rounds=rounds)
