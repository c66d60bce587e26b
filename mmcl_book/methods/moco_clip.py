"""MoCo with CLIP: one image encoder that learns from captions and from its own views.

The sum of two losses that this library has, as in Mu et al., "SLIP: Self-supervision meets
Language-Image Pre-training", ECCV 2022, with MoCo (He et al., CVPR 2020) in the place of SimCLR.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from mmcl_core.batches import Batch
from mmcl_core.errors import check_number, check_temperature
from mmcl_core.methods.clip import CLIP
from mmcl_core.methods.moco import MoCo


class MoCoCLIP(CLIP):
    """CLIP's loss, plus `weight` times MoCo's loss of the pictures.

    CLIP reads the picture itself, MoCo's query its second view; MoCo's key is of the picture
    itself. So the encoder runs twice in a step, and the momentum encoder once.

    Args:
        image_encoder: trained by both losses. Returns `Encoded`; has a `width`.
        caption_encoder: see `CLIP`.
        weight: of MoCo's loss, finite and at least 0.
        dim: width D of the space of CLIP, and of MoCo's own.
        temperature: of CLIP's loss; where it is learned, its start.
        learn_temperature: whether it is learned.
        queue: see `MoCo`; likewise `momentum` and `moco_temperature`.
        momentum: of the key encoder.
        moco_temperature: T > 0 of MoCo's loss.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        caption_encoder: nn.Module,
        *,
        weight: float = 1.0,
        dim: int = 128,
        temperature: float = 0.07,
        learn_temperature: bool = True,
        queue: int = 1024,
        momentum: float = 0.99,
        moco_temperature: float = 0.2,
    ) -> None:
        super().__init__(
            image_encoder,
            caption_encoder,
            dim=dim,
            temperature=temperature,
            learn_temperature=learn_temperature,
        )
        self.weight = check_number("weight", weight, "[0, inf)")
        check_temperature(moco_temperature, "moco_temperature")
        self.moco = MoCo(
            image_encoder, dim=dim, queue=queue, momentum=momentum, temperature=moco_temperature
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Both losses under their names, and their weighted sum, "total".

        Args:
            batch: `image`, its second view `image_view`, and `caption`.

        Raises:
            MissingModalityError: one of the three is not there.
            ShapeError: the length of the queue is no multiple of the batch.
        """
        clip, moco = super().loss(batch)["total"], self.moco.loss(_views(batch))["total"]
        return {"total": clip + self.weight * moco, "clip": clip, "moco": moco}

    def after_step(self) -> None:
        """What both do after a step: the limit of the scale; the queue and the slow encoder."""
        super().after_step()
        self.moco.after_step()

    def warm_start(self, batches: Iterable[Batch]) -> None:
        """Puts keys of real samples into the queue, before the first step (`MoCo.warm_start`).

        Args:
            batches: as for `loss`.
        """
        self.moco.warm_start(_views(batch) for batch in batches)


def _views(batch: Batch) -> Batch:
    """For MoCo: the query sees the second view, the key the picture itself."""
    swapped = {"image": "image_view", "image_view": "image"}
    return {name: batch[other] for name, other in swapped.items() if other in batch}
