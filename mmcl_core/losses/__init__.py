"""Contrastive losses, as pure functions of tensors.

Embeddings are `[B, D]`: B samples, one row each, row i of one tensor belonging to row i of the
other. They are meant to have unit norm, so that inner products are cosine similarities. Other
norms are allowed: the loss is then that of the plain inner products.

All losses compute in float32 when they are handed float16 or bfloat16, and in the type they are
handed otherwise; inside autocast, too. They return a tensor of shape `[]` of that type.

Bad input raises an error of the `MMCLError` family: wrong or different shapes, types or devices,
a batch without negatives (fewer than two samples), NaN, infinity or a zero vector among the
embeddings, a temperature or scale that is not positive and finite.
"""

from mmcl_core.losses.clip import clip_loss, info_nce, siglip_loss
from mmcl_core.losses.gmc import gmc_loss
from mmcl_core.losses.queue import queue_hinge, queue_info_nce

__all__ = ["clip_loss", "gmc_loss", "info_nce", "queue_hinge", "queue_info_nce", "siglip_loss"]
