"""CLIP's loss, forward and backward, against the form with two logits matrices: time and memory.

Not part of the default test run. All forms run in turn, within one process, round after round, and
each round gives one ratio: a busy machine slows all of them alike. The median of the ratios counts.
Times are printed, never asserted: small tiles suffer most where other programs hold the cores.
Memory is the peak that the operating system saw, each form in a fresh process of its own.

    python -m pytest tests/benchmarks/test_losses_benchmark.py -s
"""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl_core.losses import clip_loss
from tests.reference import clip_two_logits

SIZE, WIDTH = 8192, 256
FORMS: dict[str, Callable[..., Tensor]] = {
    "two logits": clip_two_logits,
    "plain": clip_loss,
    "chunk 128": partial(clip_loss, chunk_size=128),
    "chunk 256": partial(clip_loss, chunk_size=256),
    "chunk 1024": partial(clip_loss, chunk_size=1024),
}
SUGGESTED = "chunk 256"


def inputs(size: int, width: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs as they are in the middle of training: similar, but not the most similar of all."""
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(size, width, generator=generator), dim=1)
    noise = F.normalize(torch.randn(size, width, generator=generator), dim=1)
    text = F.normalize(image + 3 * noise, dim=1)
    return image.requires_grad_(), text.requires_grad_(), torch.tensor(scale, requires_grad=True)


def seconds(form: str, leaves: tuple[Tensor, Tensor, Tensor]) -> float:
    for leaf in leaves:
        leaf.grad = None
    start = time.perf_counter()
    FORMS[form](*leaves).backward()
    return time.perf_counter() - start


def compare(size: int, width: int, scale: float, rounds: int) -> dict[str, float]:
    """Median over rounds of time(two logits) / time(form). Prints seconds, too."""
    leaves = inputs(size, width, scale)
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    for form in FORMS:
        seconds(form, leaves)  # warm up
    for _ in range(rounds):
        for form in FORMS:
            times[form].append(seconds(form, leaves))
    ratios = {}
    for form in FORMS:
        pairs = zip(times["two logits"], times[form], strict=True)
        every = [a / b for a, b in pairs]
        ratios[form] = statistics.median(every)
        print(
            f"  {form:>10}: median {1e3 * statistics.median(times[form]):8.2f} ms, "
            f"least {1e3 * min(times[form]):8.2f} ms, {ratios[form]:5.2f}x as fast "
            f"({min(every):.2f} to {max(every):.2f})"
        )
    return ratios


def mebibytes(field: str) -> float:
    """Of this process: VmRSS, what it holds now, or VmHWM, the most that it ever held."""
    # Not getrusage: its peak is inherited from the process that started this one.
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def extra_mebibytes(form: str) -> float:
    """Peak memory of one forward and backward pass, beyond what the process held before."""
    seconds(form, inputs(512, WIDTH, 20.0))  # libraries and threads, not the loss
    leaves = inputs(SIZE, WIDTH, 20.0)
    before = mebibytes("VmRSS")
    seconds(form, leaves)
    return mebibytes("VmHWM") - before


@pytest.mark.parametrize("scale", [14.3, 100.0])
def test_speed_of_clip_loss_in_tiles(scale: float) -> None:
    print(f"\nB={SIZE}, D={WIDTH}, scale {scale}, {torch.get_num_threads()} threads:")
    ratio = compare(SIZE, WIDTH, scale, rounds=5)[SUGGESTED]
    print(f"  {SUGGESTED}: {ratio:.2f}x; the target is 1.5x, on a quiet machine")


def test_speed_of_plain_clip_loss_on_small_batches() -> None:
    """Where a laptop trains: here the checks of the input, 0.2 ms, are part of the price."""
    for size in (128, 512, 1024):
        print(f"\nB={size}, D=128:")
        compare(size, 128, 14.3, rounds=40)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_clip_loss_in_tiles_takes_less_memory() -> None:
    print(f"\nB={SIZE}, D={WIDTH}; one [B, B] matrix has {SIZE**2 * 4 / 2**20:.0f} MiB:")
    extra = {}
    for form in FORMS:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            extra[form] = pool.submit(extra_mebibytes, form).result()
        print(f"  {form:>10}: {extra[form]:6.0f} MiB, 1/{extra['two logits'] / extra[form]:.1f}")
    assert extra[SUGGESTED] <= extra["two logits"] / 8
