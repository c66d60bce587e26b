"""What the benchmarks share: times in turn within one process, and peak memory in a fresh one.

Times are taken with one thread and with two. Where another program holds a core, two threads wait
for each other, and small tiles most of all: then one thread tells more.

All forms run in turn, round after round, and each round gives one ratio: a busy machine slows all
of them alike. The median of the ratios counts. Memory is the peak that the operating system saw.
"""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

Form = Callable[..., Tensor]

reads_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def seconds(form: Form, leaves: Sequence[Tensor], grad: Tensor | None = None) -> float:
    """Of one forward and backward pass; `grad` is that of the output, None for a scalar."""
    for leaf in leaves:
        leaf.grad = None
    start = time.perf_counter()
    form(*leaves).backward(grad)
    return time.perf_counter() - start


def compare(
    forms: Mapping[str, Form], leaves: Sequence[Tensor], rounds: int, grad: Tensor | None = None
) -> dict[int, dict[str, float]]:
    """Threads -> form -> median over rounds of time(the first form) / time(form); printed, too."""
    before, found = torch.get_num_threads(), {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        print(f"  with {threads} thread{'s' * (threads > 1)}:")
        found[threads] = _compare(forms, leaves, rounds, grad)
    torch.set_num_threads(before)
    return found


def _compare(
    forms: Mapping[str, Form], leaves: Sequence[Tensor], rounds: int, grad: Tensor | None
) -> dict[str, float]:
    first, *_ = forms
    times: dict[str, list[float]] = {name: [] for name in forms}
    for form in forms.values():
        seconds(form, leaves, grad)  # warm up
    for _ in range(rounds):
        for name, form in forms.items():
            times[name].append(seconds(form, leaves, grad))
    ratios = {}
    for name in forms:
        every = [a / b for a, b in zip(times[first], times[name], strict=True)]
        ratios[name] = statistics.median(every)
        print(
            f"    {name:>12}: median {1e3 * statistics.median(times[name]):8.2f} ms, "
            f"least {1e3 * min(times[name]):8.2f} ms, {ratios[name]:5.2f}x as fast "
            f"({min(every):.2f} to {max(every):.2f})"
        )
    return ratios


def extra_mebibytes(form: Form, leaves: Sequence[Tensor], grad: Tensor | None = None) -> float:
    """Peak of one forward and backward pass, beyond what the process held before."""
    before = mebibytes("VmRSS")
    seconds(form, leaves, grad)
    return mebibytes("VmHWM") - before


def mebibytes(field: str) -> float:
    """Of this process: VmRSS, what it holds now, or VmHWM, the most that it ever held."""
    # Not getrusage: its peak is inherited from the process that started this one.
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def in_fresh_process(function: Callable[..., float], *arguments: Any) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def setting(text: str) -> None:
    print(f"\n{text}:")
