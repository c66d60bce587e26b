"""SigLIP: CLIP with a yes-or-no question for every pair, instead of one choice in each row.

Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023.
"""

import torch
from torch import Tensor, nn

from mmcl_core.batches import Batch, require
from mmcl_core.data.groups import caption_groups, codes_of
from mmcl_core.distributed import gather
from mmcl_core.errors import check_number
from mmcl_core.losses import siglip_loss
from mmcl_core.methods.clip import CLIP


class SigLIP(CLIP):
    """CLIP whose loss asks of each pair of the batch whether picture and caption belong together.

    The sum over the pairs needs no normaliser that sees a whole row, so a machine could take the
    pairs block by block. Here each process computes the loss of all pairs of all processes.

    Args:
        image_encoder: see `CLIP`; likewise `caption_encoder` and `dim`.
        caption_encoder: see `CLIP`.
        dim: width D of the common space.
        temperature: cosines are divided by it; published is the start 0.1, a scale of 10. It never
            falls below 1/100: that limit is CLIP's, not the paper's.
        learn_temperature: whether it is learned.
        bias: is added to them; learned, from -10 as published. Most pairs do not belong together,
            and with this bias the first answers say so.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        caption_encoder: nn.Module,
        *,
        dim: int = 128,
        temperature: float = 0.1,
        learn_temperature: bool = True,
        bias: float = -10.0,
    ) -> None:
        super().__init__(
            image_encoder,
            caption_encoder,
            dim=dim,
            temperature=temperature,
            learn_temperature=learn_temperature,
        )
        self.bias = nn.Parameter(torch.tensor(check_number("bias", bias, "(-inf, inf)")))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The sum over all pairs, divided by the batch; equal captions belong together.

        Args:
            batch: `image` float [B, 3, H, W] and `caption` int64 [B, L].

        Raises:
            MissingModalityError: one of the two is not there.
        """
        require(batch, "SigLIP trains on", *self.modalities)
        image, caption = (gather(self._embed_one(batch, m)) for m in self.modalities)
        groups = caption_groups(gather(codes_of(batch)))
        return {"total": siglip_loss(image, caption, self.logit_scale, self.bias, groups=groups)}
