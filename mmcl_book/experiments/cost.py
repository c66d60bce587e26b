"""What a training step costs, in seconds and in memory."""

import contextlib
import statistics
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from torch import nn
from torch.profiler import ProfilerActivity, profile

from mmcl_core.batches import Batch
from mmcl_core.errors import MMCLError, check_count
from mmcl_core.modules import random_state_kept, training


class StepCost(NamedTuple):
    """Of one step: loss, gradients, `after_step`; without the optimiser, which is alike for all."""

    seconds: float  # the median over the rounds
    mebibytes: float  # the most that the step holds at once, beyond what was there before
    parameters: int  # that are trained


def step_costs(
    methods: Mapping[str, tuple[nn.Module, Batch]], *, rounds: int = 7
) -> dict[str, StepCost]:
    """Measures the training steps of several methods side by side, on the CPU.

    All take their steps in turn, round after round, so that a busy machine slows all alike: compare
    the seconds of one call, and only these. The memory is that of PyTorch's tensors, and the same
    on every run. Weights are not changed by an optimiser; queues and schedules move on; modes and
    random states are as before.

    Args:
        methods: name -> a method and a batch that its `loss` takes.
        rounds: steps of each that are timed, at least 1, after two that are not.

    Raises:
        MMCLError: fewer than one round, or no method.
    """
    rounds = check_count("rounds", rounds)
    if not methods:
        raise MMCLError("expected at least one method; got none")
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    memory: dict[str, float] = {}
    with random_state_kept(), contextlib.ExitStack() as modes:
        for name, (method, batch) in methods.items():
            modes.enter_context(training(method))
            _step(method, batch)  # makes what is made once
            memory[name] = _peak(method, batch)
        for _ in range(rounds):
            for name, (method, batch) in methods.items():
                method.zero_grad(set_to_none=True)
                start = time.perf_counter()
                _step(method, batch)
                seconds[name].append(time.perf_counter() - start)
    costs = {}
    for name, (method, _) in methods.items():
        method.zero_grad(set_to_none=True)
        trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
        costs[name] = StepCost(statistics.median(seconds[name]), memory[name], trained)
    return costs


def _step(method: nn.Module, batch: Batch) -> None:
    method.zero_grad(set_to_none=True)
    cast(Any, method).loss(batch)["total"].backward()
    if hasattr(method, "after_step"):
        cast(Any, method).after_step()


def _peak(method: nn.Module, batch: Batch) -> float:
    """The most memory that tensors take during a step, above that before it, in MiB."""
    method.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _step(method, batch)
    events = cast(Any, profiler).profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = most = 0
    for _, size in sorted(changes, key=lambda change: change[0]):  # of several threads
        held += size
        most = max(most, held)
    return most / 2**20
