"""GMC's loss, forward and backward, against plain exponentials and one NT-Xent a modality: time.

Not part of the default test run. Times are printed, never asserted. See `measure`.

    python -m pytest tests/benchmarks/test_gmc_benchmark.py -s
"""

import torch
import torch.nn.functional as F

from mmcl_core.losses import gmc_loss
from tests import reference
from tests.benchmarks.measure import Form, compare, setting

SIZE, MODALITIES, WIDTH, TEMPERATURE = 1024, 4, 64, 0.1
FORMS: dict[str, Form] = {
    "exponentials": lambda joint, *parts: reference.gmc_exp(parts, joint, TEMPERATURE),
    "NT-Xent": lambda joint, *parts: reference.gmc_ntxent(parts, joint, TEMPERATURE),
    "ours": lambda joint, *parts: gmc_loss(parts, joint, TEMPERATURE),
}


def test_speed_of_gmc_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    joint, *noise = torch.randn(1 + MODALITIES, SIZE, WIDTH, generator=generator).unbind()
    embeddings = [F.normalize(x, dim=1) for x in (joint, *(joint + n for n in noise))]
    setting(f"B={SIZE}, {MODALITIES} modalities, D={WIDTH}, T={TEMPERATURE}")
    found = compare(FORMS, [x.requires_grad_() for x in embeddings], rounds=11)
    for threads, ratios in found.items():
        for name, target in (("exponentials", 8), ("NT-Xent", 3)):
            ratio = ratios["ours"] / ratios[name]
            print(f"  ours, {threads}: {ratio:.1f}x {name}; the target is {target}x")
