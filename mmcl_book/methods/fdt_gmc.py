"""FDT under GMC: the tokens of one codebook, and a joint observation that calls them, too.

No paper has this method. It joins the grounding of Chen et al. (CVPR 2023; `FDT`) with the
alignment of Poklukar, Vasco et al. (ICML 2022; `GMC`).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl_core.batches import Batch, require
from mmcl_core.distributed import gather, own_rows
from mmcl_core.grounding import Grounded, codebook_usage, ground
from mmcl_core.losses import gmc_loss
from mmcl_core.methods.fdt import FDT


class FDTGMC(FDT):
    """An FDT whose modalities are pulled to their joint observation, not to each other.

    The joint observation is grounded from the patches and the words together: an entry of the
    codebook scores as high as the best of them all. It needs no network of its own.

    The arguments are those of `FDT`; `loss_temperature` is that of GMC's loss, which is learned
    unless `learn_temperature` is False.
    """

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """GMC's loss of the grounded features; and what to watch, as in `FDT.loss`.

        Args:
            batch: `image` float [B, 3, H, W] and `caption` int64 [B, L].

        Raises:
            MissingModalityError: one of the two is not there.
            MMCLError: the temperature schedule is past its end.
        """
        require(batch, "FDTGMC trains on", *self.modalities)
        if self.training and self.cooling and int(self.step) == self.cooling.steps:
            self.cooling.at(self.cooling.steps + 1)  # raises
        parts, joint = self._ground_all(batch)
        total = gmc_loss(
            {name: gather(F.normalize(of.feature, dim=-1)) for name, of in parts.items()},
            gather(F.normalize(joint.feature, dim=-1)),
            1 / self.logit_scale,
            rows=own_rows(len(joint.feature)),
        )
        usage = {name: codebook_usage(of.weights.detach()) for name, of in parts.items()}
        if self.training:
            self._usage = usage if len(batch["image"]) > 2 else {}
        watched = {f"active_{name}": of.active for name, of in usage.items()}
        watched["temperature"] = self.temperature
        return {"total": total} | {name: total.new_tensor(v) for name, v in watched.items()}

    def embed(self, batch: Batch) -> Tensor:
        """[B, D] of unit norm: the joint mixture of a complete sample, else that of its part.

        Raises:
            MissingModalityError: neither picture nor caption is there.
        """
        if not all(name in batch for name in self.modalities):
            return super().embed(batch)
        return F.normalize(self.ground_joint(batch).feature, dim=-1)

    def ground_joint(self, batch: Batch) -> Grounded:
        """The mixture that patches and words call together: feature [B, D], weights [B, C].

        Raises:
            MissingModalityError: one of the two is not there.
        """
        require(batch, "A joint grounding needs", *self.modalities)
        return self._ground_all(batch)[1]

    def _ground_all(self, batch: Batch) -> tuple[dict[str, Grounded], Grounded]:
        """Each modality by itself, and both together; each encoder runs once."""
        queries = {}
        for name in self.modalities:
            head, encoded = self._encode(batch, name)
            queries[name] = head._without_padding(head.query(encoded.tokens), encoded.mask)
        joint = self._mix(torch.cat(list(queries.values()), dim=1))
        return {name: self._mix(of) for name, of in queries.items()}, joint

    def _mix(self, queries: Tensor) -> Grounded:
        """What `FDTGrounding` does after its query map: [B, N, D], of whichever modalities."""
        head, scale = self.heads["image"], math.sqrt(self.codebook.shape[1]) * self.temperature
        with torch.autocast(queries.device.type, enabled=False):
            queries = queries.to(self.codebook)
            return Grounded(
                *ground(
                    queries, self.codebook, lambda p: head._weights(p / scale), pooling=head.pooling
                )
            )
