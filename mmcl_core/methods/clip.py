"""CLIP: two encoders, one projection each, and a symmetric contrastive loss.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

import math

import torch
from torch import Tensor, nn

from mmcl_core.batches import Batch, at_hand, require
from mmcl_core.data.groups import caption_groups, codes_of
from mmcl_core.distributed import gather, own_rows
from mmcl_core.encoders import ProjectionHead, by_modality, width_of
from mmcl_core.errors import MMCLError, check_count, check_temperature
from mmcl_core.losses import clip_loss
from mmcl_core.losses.clip import ChunkSize, check_chunk_size
from mmcl_core.methods.method import Method, unit

MAX_LOGIT_SCALE = 100.0


class CLIP(Method):
    """Pictures and captions in one space.

    Args:
        image_encoder: returns `Encoded` for `batch["image"]`; has a `width`.
        caption_encoder: returns `Encoded` for `batch["caption"]`; has a `width`.
        dim: width D of the common space.
        temperature: the loss divides cosines by it, and it is at least 1/100. Where it is learned,
            its start.
        learn_temperature: whether it is learned. It never falls below 1/100.
        chunk_size: of the tiles of the loss, which bound its memory (see `clip_loss`).
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
        chunk_size: ChunkSize = "auto",
    ) -> None:
        super().__init__()
        dim = check_count("dim", dim)
        if check_temperature(temperature) < 1 / MAX_LOGIT_SCALE:
            raise MMCLError(
                f"temperature must be at least 1/{MAX_LOGIT_SCALE:g}; got {temperature}"
            )
        self.encoders = by_modality({"image": image_encoder, "caption": caption_encoder})
        self.heads = nn.ModuleDict(
            {name: ProjectionHead(width_of(e), dim) for name, e in self.encoders.items()}
        )
        # The logarithm is learned, so that steps are relative and the scale stays positive.
        self.log_scale = nn.Parameter(
            torch.tensor(-math.log(temperature)), requires_grad=learn_temperature
        )
        self.learn_temperature = bool(learn_temperature)
        self.chunk_size = check_chunk_size(chunk_size)

    @property
    def logit_scale(self) -> Tensor:
        """1 / temperature, a scalar; the exponential of what is learned."""
        return self.log_scale.exp()

    @property
    def temperature(self) -> float:
        """What the loss divides cosines by, now."""
        return math.exp(-self.log_scale.item())

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The symmetric cross-entropy over the batch; samples with the same caption are positives
        of each other. With several processes, each asks for its own samples among those of all.

        Args:
            batch: `image` float [B, 3, H, W] and `caption` int64 [B, L].

        Raises:
            MissingModalityError: one of the two is not there.
        """
        require(batch, f"{type(self).__name__} trains on", *self.modalities)
        image, caption = (self._embed_one(batch, m) for m in self.modalities)  # [B, D] each
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
        return vectors[0] if len(vectors) == 1 else unit(vectors[0] + vectors[1])

    def embed_tokens(self, batch: Batch, modality: str) -> tuple[Tensor, Tensor]:
        """Each patch, or each word, in the common space by the head that the pooled vector takes.

        CLIP is never trained for this: only pooled vectors are compared in its loss.

        Returns:
            Unit vectors [B, N, D] and the mask bool [B, N], True = a real token.

        Raises:
            MissingModalityError: it is neither image nor caption, or not in the batch.
        """
        encoded = self._encode(batch, modality)
        return unit(self.heads[modality](encoded.tokens)), encoded.mask

    def after_step(self) -> None:
        """Keep the logit scale at or below 100 (section 2.5 of the paper)."""
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))

    def _embed_one(self, batch: Batch, modality: str) -> Tensor:
        return unit(self.heads[modality](self._encode(batch, modality).pooled))
