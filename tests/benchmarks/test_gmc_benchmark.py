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
    ratios = compare(FORMS, [x.requires_grad_() for x in embeddings], rounds=11)
    print(f"  ours: {ratios['ours']:.1f}x; the targets on a quiet machine are")
    for name, target in (("exponentials", 8), ("NT-Xent", 3)):
        print(f"    {target}x {name}, and it is {ratios['ours'] / ratios[name]:.1f}x")
