"""What all methods share."""

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_core.batches import Batch, require
from mmcl_core.encoders import Encoded, encode
from mmcl_core.errors import MissingModalityError
from mmcl_core.losses.checks import at_least_float32, without_autocast


class Method(nn.Module):
    """A network with a loss. To call it is to compute the loss: `method(batch)`.

    So whatever acts when a module is called acts in training: hooks, `torch.compile(method)` and
    `method.compile()`, `DistributedDataParallel`, FSDP. A method of your own inherits from this
    class and has a `loss`; to be measured, it has `embed(batch) -> [B, D]`.
    """

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name; "total" is minimised, and the others are watched.

        Args:
            batch: name to `[B, ...]`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no loss(batch)")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`."""
        return self.loss(batch)

    def after_step(self) -> None:
        """Moves what moves without a gradient; `fit` calls it after each step."""

    def _check_known(self, modality: str) -> None:
        if modality not in (known := cast(Any, self).modalities):
            raise MissingModalityError(
                f"{type(self).__name__} knows {', '.join(known)}; got {modality!r}"
            )

    def _encode(self, batch: Batch, modality: str) -> Encoded:
        """What the encoder of one modality returns for a batch, checked."""
        self._check_known(modality)
        require(batch, f"{type(self).__name__} encodes", modality)
        return encode(cast(Any, self).encoders[modality], batch[modality])


def unit(vectors: Tensor) -> Tensor:
    """`[..., D]` brought to unit norm, in float32 at least: bfloat16 would miss 1 by 0.4 %."""
    with without_autocast(vectors):
        return F.normalize(at_least_float32(vectors), dim=-1)
