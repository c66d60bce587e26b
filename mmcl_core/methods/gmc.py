"""GMC: pull each modality to the complete observation, so that a part can stand for the whole.

Poklukar, Vasco et al., "Geometric Multimodal Contrastive Representation Learning", ICML 2022.

Its limits: training needs complete samples, and the joint network is fixed to its set of
modalities. "Any number of modalities" is true of the loss, not of a trained model.
"""

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from mmcl_core.batches import Batch, at_hand, require
from mmcl_core.distributed import gather, own_rows
from mmcl_core.encoders import ProjectionHead, by_modality, encode, width_of
from mmcl_core.errors import MMCLError, check_count, check_temperature
from mmcl_core.losses import gmc_loss
from mmcl_core.losses.gmc import Variant, check_variant
from mmcl_core.methods.method import Method, unit


class GMC(Method):
    """A base network for each modality, one for all of them, and one head that they share.

    Base networks map to a common width: h_m = linear_m(encoder_m(x_m)), and h_joint = linear of all
    joint encoders' outputs side by side. The shared head g maps each to the sphere,
    `z = g(h) / ||g(h)||` (section 3 of the paper). At test time a complete sample is z_joint; any
    part of it is the mean of its z_m.

    Args:
        encoders: name of a modality to what returns `Encoded` for `batch[name]`; has a `width`. At
            least two; none named "joint".
        joint_encoders: the trunks of the joint network, by the same names. None copies `encoders`
            as they are now; as in the authors' code, the two are trained apart from then on.
        common: width of h.
        dim: width D of z. Published: 64.
        hidden: width of the hidden layer of the shared head.
        temperature: T > 0. Published: 0.1 for digits, 0.3 for sentiment.
        variant: of the loss, see `gmc_loss`; "ntxent" is the authors' code.
        average: of several z_m: "sphere" brings their mean back to unit norm; "plain" does not, as
            in the authors' code, and its vectors are shorter than 1.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        *,
        joint_encoders: Mapping[str, nn.Module] | None = None,
        common: int = 128,
        dim: int = 128,
        hidden: int = 128,
        temperature: float = 0.1,
        variant: Variant = "ntxent",
        average: Literal["sphere", "plain"] = "sphere",
    ) -> None:
        super().__init__()
        if len(encoders) < 2 or "joint" in encoders:
            raise MMCLError(
                "expected encoders of at least two modalities, none of them named 'joint'; got "
                f"{list(encoders)}"
            )
        if joint_encoders is None:
            joint_encoders = copy.deepcopy(dict(encoders))
        if set(joint_encoders) != set(encoders):
            raise MMCLError(
                f"expected joint_encoders for {list(encoders)}; got {list(joint_encoders)}"
            )
        if average not in ("sphere", "plain"):
            raise MMCLError(f"average must be 'sphere' or 'plain'; got {average!r}")
        self.modalities = tuple(encoders)
        self.temperature, self.variant = check_temperature(temperature), check_variant(variant)
        self.average = average
        common, dim = check_count("common", common), check_count("dim", dim)
        self.encoders = by_modality(encoders)
        self.joint_encoders = by_modality({m: joint_encoders[m] for m in encoders})
        self.bases = nn.ModuleDict(
            {m: nn.Linear(width_of(encoder), common) for m, encoder in encoders.items()}
        )
        self.bases["joint"] = nn.Linear(sum(map(width_of, joint_encoders.values())), common)
        self.head = ProjectionHead(common, dim, hidden=hidden)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Each modality against the complete observation (`gmc_loss`).

        Args:
            batch: all modalities.

        Raises:
            MissingModalityError: one of them is not there.
        """
        require(batch, "GMC trains on", *self.modalities)
        joint = self.embed_joint(batch)
        total = gmc_loss(
            {m: gather(self.embed_modality(batch, m)) for m in self.modalities},
            gather(joint),
            self.temperature,
            variant=self.variant,
            rows=own_rows(len(joint)),
        )
        return {"total": total}

    def embed(self, batch: Batch) -> Tensor:
        """[B, D]: z_joint of a complete batch, else the mean of the z_m of the modalities at hand.

        Of unit norm, but for the mean of several with `average="plain"`.

        Raises:
            MissingModalityError: no modality is there.
        """
        present = at_hand(batch, "This GMC embeds", self.modalities)
        if len(present) == len(self.modalities):
            return self.embed_joint(batch)
        mean = torch.stack([self.embed_modality(batch, m) for m in present]).mean(0)
        return unit(mean) if self.average == "sphere" else mean

    def embed_joint(self, batch: Batch) -> Tensor:
        """z_joint of complete samples, [B, D], of unit norm.

        Raises:
            MissingModalityError: a modality is not there.
        """
        require(batch, "A joint embedding needs", *self.modalities)
        pooled = [encode(self.joint_encoders[m], batch[m]).pooled for m in self.modalities]
        return self._head("joint", torch.cat(pooled, dim=-1))

    def embed_modality(self, batch: Batch, modality: str) -> Tensor:
        """z_m of one modality, [B, D], of unit norm.

        Raises:
            MissingModalityError: it is not one of this model's, or not in the batch.
        """
        return self._head(modality, self._encode(batch, modality).pooled)

    def _head(self, base: str, pooled: Tensor) -> Tensor:
        return unit(self.head(self.bases[base](pooled)))
