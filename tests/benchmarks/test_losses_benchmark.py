"""CLIP's loss, forward and backward, against the form with two logits matrices: time and memory.

Not part of the default test run. Times are printed, never asserted: small tiles suffer most where
other programs hold the cores. See `measure` for how both are taken.

    python -m pytest tests/benchmarks/test_losses_benchmark.py -s
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl_core.losses import clip_loss
from tests.benchmarks.measure import (
    Form,
    compare,
    extra_mebibytes,
    in_fresh_process,
    reads_proc,
    seconds,
    setting,
)
from tests.reference import clip_two_logits

SIZE, WIDTH = 8192, 256
FORMS: dict[str, Form] = {
    "two logits": clip_two_logits,
    "auto": clip_loss,
    "plain": partial(clip_loss, chunk_size=None),
    "chunk 128": partial(clip_loss, chunk_size=128),
    "chunk 256": partial(clip_loss, chunk_size=256),
    "chunk 1024": partial(clip_loss, chunk_size=1024),
}
SUGGESTED = "auto"


def inputs(size: int, width: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs as they are in the middle of training: similar, but not the most similar of all."""
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(size, width, generator=generator), dim=1)
    noise = F.normalize(torch.randn(size, width, generator=generator), dim=1)
    text = F.normalize(image + 3 * noise, dim=1)
    return image.requires_grad_(), text.requires_grad_(), torch.tensor(scale, requires_grad=True)


def extra(form: str) -> float:
    seconds(FORMS[form], inputs(512, WIDTH, 20.0))  # libraries and threads, not the loss
    return extra_mebibytes(FORMS[form], inputs(SIZE, WIDTH, 20.0))


@pytest.mark.parametrize("scale", [14.3, 100.0])
def test_speed_of_clip_loss_in_tiles(scale: float) -> None:
    setting(f"B={SIZE}, D={WIDTH}, scale {scale}")
    for threads, ratios in compare(FORMS, inputs(SIZE, WIDTH, scale), rounds=5).items():
        print(f"  {SUGGESTED}, {threads}: {ratios[SUGGESTED]:.2f}x; the target is 1.5x")


def test_speed_of_plain_clip_loss_on_small_batches() -> None:
    """Where a laptop trains: here the checks of the input, 0.2 ms, are part of the price."""
    for size in (128, 512, 1024, 2048):
        setting(f"B={size}, D=128")
        compare(FORMS, inputs(size, 128, 14.3), rounds=40)


@reads_proc
def test_clip_loss_in_tiles_takes_less_memory() -> None:
    setting(f"B={SIZE}, D={WIDTH}; one [B, B] matrix has {SIZE**2 * 4 / 2**20:.0f} MiB")
    peak = {form: in_fresh_process(extra, form) for form in FORMS}
    for form in FORMS:
        print(f"  {form:>10}: {peak[form]:6.0f} MiB, 1/{peak['two logits'] / peak[form]:.1f}")
    assert peak[SUGGESTED] <= peak["two logits"] / 4
    assert peak["chunk 256"] <= peak["two logits"] / 8
