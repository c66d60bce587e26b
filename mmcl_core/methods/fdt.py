"""FDT: patches and words speak through one dictionary of finite discrete tokens.

Chen et al., "Revisiting Multimodal Representation in Contrastive Learning: From Patch and Token
Embeddings to Finite Discrete Tokens", CVPR 2023. The loss is CLIP's; what differs is how a sample
becomes a vector: its tokens are mapped to a mixture of codebook entries (`FDTGrounding`). That
grounding is used at test time, too.
"""

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmcl_core.batches import Batch, at_hand
from mmcl_core.encoders import width_of
from mmcl_core.errors import MMCLError, check_count, check_number, check_temperature
from mmcl_core.grounding import (
    FDTGrounding,
    Grounded,
    Normalizer,
    Padding,
    Pooling,
    Usage,
    codebook_usage,
)
from mmcl_core.methods.clip import CLIP
from mmcl_core.methods.method import unit

__all__ = [
    "FDT",
    "Cooling",
    "FDTGrounding",
    "Grounded",
    "TokenAttention",
    "Usage",
    "codebook_usage",
]


class TokenAttention(NamedTuple):
    """Which patch, or word, calls which entry of the codebook."""

    scores: Tensor  # [B, N, C], before pooling; larger is nearer
    weights: Tensor  # [B, C], after it
    mask: Tensor  # bool [B, N], True = a real token


@dataclass(frozen=True)
class Cooling:
    """A grounding temperature that falls geometrically from `start` to `end`, and then stays.

    Cold from the beginning, all samples soon share one entry of the codebook, and nothing is
    learned; warm to the end, the weights are not sparse.

    Args:
        start: temperature of the first step, above 0.
        end: temperature after the cooling, above 0.
        steps: steps of the whole training, at least 1.
        share: part of them in which it falls, in (0, 1].
    """

    start: float
    end: float
    steps: int
    share: float = 0.8

    def __post_init__(self) -> None:
        check_temperature(self.start, "start")
        check_temperature(self.end, "end")
        check_count("steps", self.steps)
        check_number("share", self.share, "(0, 1]")

    def at(self, step: int) -> float:
        """The temperature of a step, 0 to `steps` (after the last); raises MMCLError outside."""
        if not 0 <= step <= self.steps:
            raise MMCLError(
                f"the temperature schedule has {self.steps} steps, and this is step {step}: make "
                "it as long as the training (epochs * steps per epoch)"
            )
        way = min(step / (self.share * self.steps), 1.0)
        return self.start * (self.end / self.start) ** way


class FDT(CLIP):
    """CLIP whose pictures and captions are mixtures of one codebook.

    Args:
        image_encoder: returns `Encoded`; its `tokens` are used. Has a `width`.
        caption_encoder: the same, for captions.
        codebook_size: number C of codebook entries. Published: 16,384.
        dim: width D of the codebook and of the embeddings. Published: 512.
        grounding_temperature: of the scores of the entries: a number, or a `Cooling`. Published:
            1000.
        normalizer, pooling, padding: see `FDTGrounding`.
        temperature: of the contrastive loss; where it is learned, its start.
        learn_temperature: whether it is learned.
    """

    # Typed here, since a ModuleDict forgets what it holds.
    heads: Any
    encoders: Any
    step: Tensor

    def __init__(
        self,
        image_encoder: nn.Module,
        caption_encoder: nn.Module,
        *,
        codebook_size: int = 512,
        dim: int = 128,
        grounding_temperature: float | Cooling = 1000.0,
        normalizer: Normalizer = "sparsemax",
        pooling: Pooling = "max",
        padding: Padding = "exclude",
        temperature: float = 0.07,
        learn_temperature: bool = True,
    ) -> None:
        super().__init__(
            image_encoder,
            caption_encoder,
            dim=dim,
            temperature=temperature,
            learn_temperature=learn_temperature,
        )
        codebook_size = check_count("codebook_size", codebook_size, least=2)
        now = grounding_temperature
        self.cooling = now if isinstance(now, Cooling) else None
        # A grounding takes the place of CLIP's projection.
        self.heads = nn.ModuleDict(
            {
                name: FDTGrounding(
                    width_of(encoder), dim, normalizer=normalizer, pooling=pooling,
                    padding=padding,
                    grounding_temperature=now.start if isinstance(now, Cooling) else now,
                )
                for name, encoder in self.encoders.items()
            }
        )  # fmt: skip
        if self.cooling:
            for head in self.heads.values():
                head.not_compared = ("grounding_temperature",)  # by a checkpoint: the schedule is
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))
        self.register_buffer("step", torch.tensor(0))
        self._seen: dict[str, Tensor] | None = None  # weights, within `loss`
        self._usage: dict[str, Usage] = {}  # of the step that `after_step` will end
        self._warned = False

    @property
    def grounding_temperature(self) -> float:
        """What scores are divided by, now."""
        if self.cooling:
            return self.cooling.at(int(self.step))
        return self.heads["image"].grounding_temperature

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """CLIP's loss of the grounded features; and what to watch, without a gradient.

        `active_image` and `active_caption` are the mean numbers of codebook entries with a weight,
        `grounding_temperature` is as it says.

        Args:
            batch: `image` float [B, 3, H, W] and `caption` int64 [B, L].

        Raises:
            MissingModalityError: one of the two is not there.
            MMCLError: the temperature schedule is past its end.
        """
        self._seen = {}
        try:
            parts = super().loss(batch)
            return parts | self._watched(self._seen, parts["total"])
        finally:
            self._seen = None

    def _watched(self, weights: dict[str, Tensor], total: Tensor) -> dict[str, Tensor]:
        """What is watched beside the loss, from the weights [B, C] of each modality."""
        if self.training and self.cooling and int(self.step) == self.cooling.steps:
            self.cooling.at(self.cooling.steps + 1)  # raises
        usage = {name: codebook_usage(of) for name, of in weights.items()}
        if self.training:
            self._usage = usage if len(weights["image"]) > 2 else {}
        watched = {f"active_{name}": of.active for name, of in usage.items()}
        watched["grounding_temperature"] = self.grounding_temperature
        return {name: total.new_tensor(value) for name, value in watched.items()}

    def after_step(self) -> None:
        """Keeps the logit scale at or below 100, cools, and warns once if all samples are one."""
        super().after_step()
        self.step += 1
        for name, usage in self._usage.items():
            if usage.perplexity < 2 and not self._warned:
                self._warned = True
                warnings.warn(
                    f"FDT: the {name}s of a whole batch share {usage.used} of the "
                    f"{len(self.codebook)} entries (perplexity {usage.perplexity:.2f}), so nothing "
                    f"tells them apart. At a grounding_temperature of "
                    f"{self.grounding_temperature:g} the codebook has collapsed: begin warmer and "
                    "cool down (see Cooling)",
                    stacklevel=2,
                )
        self._usage = {}

    def ground(self, batch: Batch, modality: str) -> Grounded:
        """The mixture of one modality of a batch: feature [B, D] and weights [B, C].

        Raises:
            MissingModalityError: it is neither image nor caption, or not in the batch.
        """
        encoded = self._encode(batch, modality)
        return self._head(modality)(encoded.tokens, self.codebook, encoded.mask)

    def token_attention(self, batch: Batch) -> dict[str, TokenAttention]:
        """For each modality at hand, which patch or word calls which codebook entry.

        Raises:
            MissingModalityError: neither picture nor caption is there.
        """
        found = {}
        for name in at_hand(batch, "FDT grounds", self.modalities):
            head, encoded = self._head(name), self._encode(batch, name)
            weights = head(encoded.tokens, self.codebook, encoded.mask).weights
            scores = head.scores(encoded.tokens, self.codebook)
            found[name] = TokenAttention(scores, weights, encoded.mask)
        return found

    def _head(self, modality: str) -> FDTGrounding:
        """The grounding of a modality, at the temperature of now."""
        head = self.heads[modality]
        head.grounding_temperature = self.grounding_temperature
        return head

    def _embed_one(self, batch: Batch, modality: str) -> Tensor:
        feature, weights = self.ground(batch, modality)
        if self._seen is not None:
            self._seen[modality] = weights.detach()
        return unit(feature)
