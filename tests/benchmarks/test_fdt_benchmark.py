"""FDT's grounding, forward and backward, against all scores [B, N, C] at once: time and memory.

Not part of the default test run. Times are printed, never asserted. See `measure`.

    python -m pytest tests/benchmarks/test_fdt_benchmark.py -s
"""

import statistics
import time

import pytest
import torch
from torch import Tensor, nn

from mmcl_core.grounding import FDTGrounding
from tests import reference
from tests.benchmarks.measure import (
    Form,
    compare,
    extra_mebibytes,
    in_fresh_process,
    reads_proc,
    seconds,
    setting,
)

SAMPLES, TOKENS, ENTRIES, WIDTH = 32, 49, 16_384, 512
TEXT = f"B={SAMPLES}, N={TOKENS}, C={ENTRIES}, D={WIDTH}"


def forms(temperature: float) -> dict[str, Form]:
    """Max and sparsemax, from queries; the map that makes them is the same in both."""
    module = FDTGrounding(WIDTH, WIDTH, grounding_temperature=temperature)
    module.query = nn.Identity()

    def naive(queries: Tensor, codebook: Tensor) -> Tensor:
        return reference.fdt_grounding(
            queries, codebook, None, query=module.query, temperature=temperature,
            pooling="max", normalizer="sparsemax", padding="exclude",
        )[0]  # fmt: skip

    return {"[B, N, C]": naive, "ours": lambda *inputs: module(*inputs).feature}


def inputs(entries: int) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(SAMPLES, TOKENS, WIDTH, generator=generator)
    codebook = torch.randn(entries, WIDTH, generator=generator)
    grad = torch.randn(SAMPLES, WIDTH, generator=generator)
    return [queries.requires_grad_(), codebook.requires_grad_()], grad


def extra(name: str, temperature: float) -> float:
    """Beyond the inputs and their gradients, which both forms return."""
    form = forms(temperature)[name]
    leaves, grad = inputs(512)
    seconds(form, leaves, grad)  # libraries and threads, not the grounding
    leaves, grad = inputs(ENTRIES)
    returned = sum(leaf.numel() * leaf.element_size() for leaf in leaves) / 2**20
    return extra_mebibytes(form, leaves, grad) - returned


@pytest.mark.parametrize("temperature", [1000.0, 100.0, 10.0])
def test_speed_of_the_grounding(temperature: float) -> None:
    leaves, grad = inputs(ENTRIES)
    setting(f"{TEXT}, T={temperature:g}")
    for threads, ratios in compare(forms(temperature), leaves, rounds=7, grad=grad).items():
        print(f"  ours, {threads}: {ratios['ours']:.1f}x; the target is 5x")
    flat, entries = leaves[0].detach().flatten(0, 1), leaves[1].detach()
    scores, times = flat @ entries.T, []
    for _ in range(7):
        start = time.perf_counter()
        torch.mm(flat, entries.T, out=scores)
        times.append(time.perf_counter() - start)
    print(f"  the product of all scores, a part of both: {1e3 * statistics.median(times):.2f} ms")


@reads_proc
def test_the_grounding_takes_less_memory() -> None:
    scores = SAMPLES * TOKENS * ENTRIES * 4 / 2**20
    for temperature in (1000.0, 10.0):
        setting(f"{TEXT}, T={temperature:g}; all scores have {scores:.0f} MiB")
        peak = {name: in_fresh_process(extra, name, temperature) for name in forms(1.0)}
        for name, value in peak.items():
            print(f"  {name:>10}: {value:6.1f} MiB, 1/{peak['[B, N, C]'] / value:.1f}")
        assert peak["ours"] <= peak["[B, N, C]"] / 10
