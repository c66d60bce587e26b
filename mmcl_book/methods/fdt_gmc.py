"""FDT under GMC: the tokens of one codebook, and a joint observation that calls them, too.

No paper has this method. It joins the grounding of Chen et al. (CVPR 2023; `FDT`) with the
alignment of Poklukar, Vasco et al. (ICML 2022; `GMC`).
"""

import torch
from torch import Tensor

from mmcl_core.batches import Batch, require
from mmcl_core.distributed import gather, own_rows
from mmcl_core.grounding import Grounded
from mmcl_core.losses import gmc_loss
from mmcl_core.methods.fdt import FDT
from mmcl_core.methods.method import unit


class FDTGMC(FDT):
    """An FDT whose modalities are pulled to their joint observation, not to each other.

    The joint observation is grounded from the patches and the words together: an entry of the
    codebook scores as high as the best of them all. It needs no network of its own.

    The arguments are those of `FDT`; `temperature` is that of GMC's loss.
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
        parts, joint = self._ground_all(batch)
        total = gmc_loss(
            {name: gather(unit(of.feature)) for name, of in parts.items()},
            gather(unit(joint.feature)),
            1 / self.logit_scale,
            rows=own_rows(len(joint.feature)),
        )
        weights = {name: of.weights.detach() for name, of in parts.items()}
        return {"total": total} | self._watched(weights, total)

    def embed(self, batch: Batch) -> Tensor:
        """[B, D] of unit norm: the joint mixture of a complete sample, else that of its part.

        Raises:
            MissingModalityError: neither picture nor caption is there.
        """
        if not all(name in batch for name in self.modalities):
            return super().embed(batch)
        return unit(self.ground_joint(batch).feature)

    def ground_joint(self, batch: Batch) -> Grounded:
        """The mixture that patches and words call together: feature [B, D], weights [B, C].

        Raises:
            MissingModalityError: one of the two is not there.
        """
        require(batch, "A joint grounding needs", *self.modalities)
        return self._ground_all(batch)[1]

    def _ground_all(self, batch: Batch) -> tuple[dict[str, Grounded], Grounded]:
        """Each modality by itself, and both together; each encoder runs once."""
        queries, masks = {}, {}
        for name in self.modalities:
            encoded, head = self._encode(batch, name), self._head(name)
            queries[name], masks[name] = head.query(encoded.tokens), encoded.mask
        joint = head.mix(  # [B, patches + words, D]
            torch.cat(list(queries.values()), dim=1),
            self.codebook,
            torch.cat(list(masks.values()), dim=1),
        )
        return {m: head.mix(of, self.codebook, masks[m]) for m, of in queries.items()}, joint
