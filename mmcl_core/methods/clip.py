"""CLIP: two encoders, one projection each, and a symmetric contrastive loss.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_core.batches import Batch, at_hand, require
from mmcl_core.data.groups import caption_groups, codes_of
from mmcl_core.distributed import gather, own_rows
from mmcl_core.encoders import ProjectionHead, width_of
from mmcl_core.errors import MMCLError
from mmcl_core.losses import clip_loss

MAX_LOGIT_SCALE = 100.0


class CLIP(nn.Module):
    """Pictures and captions in one space.

    Args:
        image_encoder: returns `Encoded` for `batch["image"]`; has a `width`.
        caption_encoder: returns `Encoded` for `batch["caption"]`; has a `width`.
        dim: width D of the common space.
        temperature: the loss divides cosines by it; `1 / temperature` is the logit scale.
        learn_temperature: whether the logit scale is learned. It never passes 100.
        chunk_size: compute the loss in tiles of that size, to bound memory (see `clip_loss`).
    """

    modalities = ("image", "caption")
    not_compared = ("chunk_size",)  # by a checkpoint: the loss is the same

    def __init__(
        self,
        image_encoder: nn.Module,
        caption_encoder: nn.Module,
        *,
        dim: int = 128,
        temperature: float = 0.07,
        learn_temperature: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if not temperature >= 1 / MAX_LOGIT_SCALE:
            raise MMCLError(
                f"temperature must be at least 1/{MAX_LOGIT_SCALE:g}; got {temperature}"
            )
        self.encoders = nn.ModuleDict({"image": image_encoder, "caption": caption_encoder})
        self.heads = nn.ModuleDict(
            {name: ProjectionHead(width_of(e), dim) for name, e in self.encoders.items()}
        )
        # The logarithm is learned, so that steps are relative and the scale stays positive.
        self.log_scale = nn.Parameter(
            torch.tensor(-math.log(temperature)), requires_grad=learn_temperature
        )
        self.chunk_size = chunk_size

    @property
    def logit_scale(self) -> Tensor:
        """1 / temperature, a scalar; the exponential of what is learned."""
        return self.log_scale.exp()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The symmetric cross-entropy over the batch; samples with the same caption are positives
        of each other. With several processes, each asks for its own samples among those of all.

        Args:
            batch: `image` float [B, 3, H, W] and `caption` int64 [B, L].

        Raises:
            MissingModalityError: one of the two is not there.
        """
        require(batch, "CLIP trains on", *self.modalities)
        image, caption = (self._embed_one(batch, m) for m in self.modalities)
        total = clip_loss(
            gather(image),
            gather(caption),
            self.logit_scale,
            chunk_size=self.chunk_size,
            groups=caption_groups(gather(codes_of(batch))),
            rows=own_rows(len(image)),
        )
        return {"total": total}

    def embed(self, batch: Batch) -> Tensor:
        """One unit vector for each sample, [B, D], from the modalities that the batch holds.

        With both, the normalised mean of their two vectors.

        Raises:
            MissingModalityError: neither picture nor caption is there.
        """
        present = at_hand(batch, f"{type(self).__name__} embeds", self.modalities)
        vectors = [self._embed_one(batch, m) for m in present]
        return vectors[0] if len(vectors) == 1 else F.normalize(vectors[0] + vectors[1], dim=-1)

    def embed_tokens(self, batch: Batch, modality: str) -> tuple[Tensor, Tensor]:
        """Each patch, or each word, in the common space by the head that the pooled vector takes.

        CLIP is never trained for this: only pooled vectors are compared in its loss.

        Returns:
            Unit vectors [B, N, D] and the mask bool [B, N], True = a real token.

        Raises:
            MissingModalityError: the modality is not in the batch.
            MMCLError: it is neither `image` nor `caption`.
        """
        if modality not in self.modalities:
            raise MMCLError(f"modality must be one of {self.modalities}; got {modality!r}")
        require(batch, f"{type(self).__name__} embeds tokens of", modality)
        encoded = self.encoders[modality](batch[modality])
        return F.normalize(self.heads[modality](encoded.tokens), dim=-1), encoded.mask

    def after_step(self) -> None:
        """Keep the logit scale at or below 100 (section 2.5 of the paper)."""
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))

    def _embed_one(self, batch: Batch, modality: str) -> Tensor:
        pooled = self.encoders[modality](batch[modality]).pooled
        return F.normalize(self.heads[modality](pooled), dim=-1)
