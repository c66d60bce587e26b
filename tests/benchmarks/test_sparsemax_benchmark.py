"""Sparsemax, forward and backward, against a full sort and against entmax: time.

Not part of the default test run; needs entmax. Times are printed, never asserted. See `measure`.

    python -m pytest tests/benchmarks/test_sparsemax_benchmark.py -s
"""

from functools import partial

import pytest
import torch

from mmcl_core.sparsemax import sparsemax
from tests import reference
from tests.benchmarks.measure import Form, compare, setting

entmax = pytest.importorskip("entmax", reason="the peer that sparsemax is compared with")

ROWS, COLUMNS = 256, 16_384
FORMS: dict[str, Form] = {
    "full sort": reference.sparsemax,
    "entmax": entmax.sparsemax,
    "entmax k=128": partial(entmax.sparsemax, k=128),
    "ours": sparsemax,
}


@pytest.mark.parametrize("scale", [1.0, 0.01, 0.001])
def test_speed_of_sparsemax(scale: float) -> None:
    """Of few weights, of hundreds, and of thousands, as in FDT at its published temperature."""
    generator = torch.Generator().manual_seed(0)
    scores, grad = torch.randn(2, ROWS, COLUMNS, generator=generator)
    scores = (scale * scores).requires_grad_()
    support = float((sparsemax(scores) > 0).sum(1).float().mean())
    setting(f"[{ROWS}, {COLUMNS}] float32, scale {scale}, {support:.0f} weights above 0")
    for threads, ratios in compare(FORMS, [scores], rounds=7, grad=grad).items():
        for name, target in (("full sort", 8), ("entmax", 3), ("entmax k=128", 1)):
            ratio = ratios["ours"] / ratios[name]
            print(f"  ours, {threads}: {ratio:.1f}x {name}; the target is {target}x")
