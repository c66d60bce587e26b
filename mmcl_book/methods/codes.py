"""A shared codebook with hard codes: each patch and each word becomes its nearest entry.

After Liu et al., "Cross-Modal Discrete Representation Learning", ACL 2022: vector quantisation (van
den Oord et al., NeurIPS 2017) with one codebook for all modalities, and a *code matching* loss that
asks the two halves of a pair for similar distributions over the codes. There it is video, audio and
speech; here it is patches and words.

Ours: the symmetric form and the groups of `code_matching_loss`; that the embedding is made of codes
alone, where the paper adds them to a continuous summary; what becomes of codes that nobody uses.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_core.batches import Batch, require
from mmcl_core.data.groups import caption_groups, codes_of
from mmcl_core.distributed import gather, own_rows
from mmcl_core.encoders import masked_mean, width_of
from mmcl_core.errors import ShapeError, check_count, check_number
from mmcl_core.losses import clip_loss
from mmcl_core.losses.checks import at_least_float32, in_float32
from mmcl_core.methods.clip import CLIP
from mmcl_core.methods.method import unit

DEAD = 0.05  # codes with a smaller running count of tokens a step begin anew


class Quantised(NamedTuple):
    """What a codebook makes of tokens."""

    tokens: Tensor  # [B, N, D], the nearest code of each; gradients pass straight through
    codes: Tensor  # int64 [B, N], its number
    shares: Tensor  # [B, C], how the real tokens spread over the codes, softly; sums to 1
    commitment: Tensor  # [B], mean square distance of the real tokens to their codes


@in_float32  # in bfloat16, one patch in twenty would get another code
def quantise(tokens: Tensor, codebook: Tensor, mask: Tensor) -> Quantised:
    """Replaces each token by its nearest code.

    `shares` is the mean over the real tokens of `softmax(-distance to each code)`, in which the
    distance is Euclidean: the soft counterpart of the codes, through which code matching learns.

    Args:
        tokens: `[B, N, D]`.
        codebook: `[C, D]`.
        mask: bool `[B, N]`, True = a real token; at least one in each sample.

    Raises:
        ShapeError: shapes that do not fit.
    """
    if tokens.ndim != 3 or codebook.ndim != 2 or tokens.shape[2] != codebook.shape[1]:
        raise ShapeError(
            f"expected tokens [B, N, D] and a codebook [C, D]; got {list(tokens.shape)} and "
            f"{list(codebook.shape)}"
        )
    if mask.shape != tokens.shape[:2] or mask.dtype != torch.bool:
        raise ShapeError(
            f"expected a mask bool {list(tokens.shape[:2])}; got {mask.dtype} {list(mask.shape)}"
        )
    square = (  # of the distances, [B, N, C]
        tokens.square().sum(2, keepdim=True) - 2 * tokens @ codebook.T + codebook.square().sum(1)
    )
    codes = square.argmin(2)  # [B, N]
    nearest = codebook[codes]  # [B, N, D]
    # The root has no derivative at 0, where a token lies on a code.
    soft = (-square.clamp(min=1e-6).sqrt()).softmax(2)
    return Quantised(
        tokens + (nearest - tokens).detach(),
        codes,
        masked_mean(soft, mask),
        masked_mean((tokens - nearest.detach()).square().mean(2, keepdim=True), mask)[:, 0],
    )


@in_float32
def code_matching_loss(
    image: Tensor,
    caption: Tensor,
    *,
    groups: Tensor | None = None,
    rows: slice | None = None,
) -> Tensor:
    """Pairs should spread over the codes in the same way, and other pairs in other ways.

    The similarity of picture i and caption j is a negative symmetric cross-entropy,
    `S_ij = sum_c (P_i log Q_j + Q_j log P_i)` (Liu et al., section 2.3), and the loss the
    cross-entropy of a softmax over it, which picks the partner. Ours: the mean of both directions.

    Args:
        image: P, `[B, C]`, at least 0, rows sum to 1; B at least 2.
        caption: Q, `[B, C]`, likewise.
        groups: int64 `[B]`; samples of one number have the same caption: all are positives.
        rows: these samples ask, among all (see `clip_loss`); None is everyone.

    Returns:
        A scalar in nats.

    Raises:
        ShapeError: shapes that do not fit, or fewer than two samples.
    """
    if image.ndim != 2 or image.shape != caption.shape or len(image) < 2:
        raise ShapeError(
            "expected two distributions [B, C] with B at least 2; got "
            f"{list(image.shape)} and {list(caption.shape)}"
        )
    P, Q = image.clamp(min=1e-10), caption.clamp(min=1e-10)
    similarity = P @ Q.log().T + P.log() @ Q.T
    groups = torch.arange(len(image), device=image.device) if groups is None else groups
    same = (groups[:, None] == groups).to(similarity)
    target = same / same.sum(1, keepdim=True)
    rows = slice(None) if rows is None else rows
    losses = [
        -(target[rows] * of[rows].log_softmax(1)).sum(1).mean() for of in (similarity, similarity.T)
    ]
    return (losses[0] + losses[1]) / 2


class CodeCLIP(CLIP):
    """CLIP whose pictures and captions are means of entries of one codebook.

    A linear map and a norm bring each token to width D; its nearest code takes its place; the mean
    over the real tokens is the embedding. The loss is CLIP's, plus code matching, plus a
    commitment that holds tokens near their codes. The codes themselves are running means of the
    tokens that chose them, pictures and words together (van den Oord et al., appendix A.1). Codes
    that hardly any token chooses move to tokens of the batch, evenly spaced: many go where tokens
    are many.

    Args:
        image_encoder: returns `Encoded`; its `tokens` are used. Has a `width`.
        caption_encoder: the same, for captions.
        codebook_size: number C of codes.
        dim: width D of codes and embeddings.
        temperature: of the contrastive loss; where it is learned, its start.
        learn_temperature: whether it is learned.
        matching: weight of the code matching loss, at least 0.
        commitment: weight of the commitment, at least 0.
        decay: of the running means, in [0, 1).
        warmup: steps at the beginning in which tokens stay as they are, and the codes only follow
            them. Ours. Hard codes of untrained tokens tell the encoders little.
        summary: add a continuous summary, a linear map of the pooled vector, to the mean of the
            codes, as the paper does: then what is no code gets past the codebook.
    """

    # Typed here, since a ModuleDict forgets what it holds.
    heads: Any
    encoders: Any
    codebook: Tensor
    counts: Tensor
    sums: Tensor
    step: Tensor

    def __init__(
        self,
        image_encoder: nn.Module,
        caption_encoder: nn.Module,
        *,
        codebook_size: int = 256,
        dim: int = 128,
        temperature: float = 0.07,
        learn_temperature: bool = True,
        matching: float = 1.0,
        commitment: float = 0.25,
        decay: float = 0.95,
        warmup: int = 0,
        summary: bool = False,
    ) -> None:
        super().__init__(
            image_encoder,
            caption_encoder,
            dim=dim,
            temperature=temperature,
            learn_temperature=learn_temperature,
        )
        dim, codes = check_count("dim", dim), check_count("codebook_size", codebook_size, least=2)
        self.matching = check_number("matching", matching, "[0, inf)")
        self.commitment = check_number("commitment", commitment, "[0, inf)")
        self.decay = check_number("decay", decay, "[0, 1)")
        self.warmup = check_count("warmup", warmup, least=0)
        self.summaries = self.heads if summary else None
        self.heads = nn.ModuleDict(
            {
                m: nn.Sequential(
                    nn.Linear(width_of(e), dim), nn.LayerNorm(dim, elementwise_affine=False)
                )
                for m, e in self.encoders.items()
            }
        )
        self.register_buffer("codebook", torch.randn(codes, dim))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, dim))
        self.register_buffer("step", torch.tensor(0))
        self._chosen: list[tuple[Tensor, Tensor]] = []  # tokens [K, D] and codes [K] of a step

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """CLIP's loss of the embeddings, code matching, and commitment; and what to watch.

        Returns:
            "total", "contrastive", "matching", "commitment" (the last two without their weights),
            and "codes", the number of codes that the batch uses.

        Raises:
            MissingModalityError: one of the two is not there.
        """
        require(batch, "CodeCLIP trains on", *self.modalities)
        groups = caption_groups(gather(codes_of(batch)))
        rows = own_rows(len(batch["image"]))
        warm = self.training and int(self.step) < self.warmup
        embedded, found, chosen = [], [], []
        for m in self.modalities:
            tokens, mask, pooled = self._tokens(batch, m)
            of = quantise(tokens, self.codebook, mask)
            found.append(of)
            embedded.append(self._join(tokens if warm else of.tokens, mask, pooled, m))
            real = gather(mask, pad=True)
            chosen.append(
                (gather(tokens.detach(), pad=True)[real], gather(of.codes, pad=True)[real])
            )
        x, y = map(gather, embedded)
        contrastive = clip_loss(x, y, self.logit_scale, groups=groups, rows=rows)
        P, Q = (gather(of.shares) for of in found)
        matching = code_matching_loss(P, Q, groups=groups, rows=rows)
        held = torch.stack([of.commitment.mean() for of in found]).sum()
        if self.training:
            self._chosen = chosen
        return {
            "total": contrastive + self.matching * matching + self.commitment * held,
            "contrastive": contrastive.detach(),
            "matching": matching.detach(),
            "commitment": held.detach(),
            "codes": held.new_tensor(len(torch.cat([codes for _, codes in chosen]).unique())),
        }

    def after_step(self) -> None:
        """Keeps the logit scale at or below 100, and moves the codes to the tokens of the step."""
        super().after_step()
        self.step += 1
        if not self._chosen:
            return
        tokens, codes = map(torch.cat, zip(*self._chosen, strict=True))
        self._chosen = []
        self._move(tokens, codes)

    def ground(self, batch: Batch, modality: str) -> Quantised:
        """The codes of one modality of a batch.

        Raises:
            MissingModalityError: it is neither image nor caption, or not in the batch.
        """
        tokens, mask, _ = self._tokens(batch, modality)
        return quantise(tokens, self.codebook, mask)

    def histogram(self, batch: Batch, modality: str) -> Tensor:
        """[B, C]: the share of the real tokens of a sample that chose each code; sums to 1.

        Raises:
            MissingModalityError: as `ground`.
        """
        tokens, mask, _ = self._tokens(batch, modality)
        chosen = F.one_hot(quantise(tokens, self.codebook, mask).codes, len(self.codebook))
        return masked_mean(chosen.to(tokens), mask)

    def embed_tokens(self, batch: Batch, modality: str) -> tuple[Tensor, Tensor]:
        """The code of each patch, or each word, as a unit vector [B, N, D], and the mask [B, N].

        Raises:
            MissingModalityError: as `ground`.
        """
        tokens, mask, _ = self._tokens(batch, modality)
        return unit(quantise(tokens, self.codebook, mask).tokens), mask

    def _tokens(self, batch: Batch, modality: str) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, N, D] as they meet the codebook, their mask, and the pooled vector [B, F]."""
        encoded = self._encode(batch, modality)
        tokens = at_least_float32(self.heads[modality](encoded.tokens))
        return tokens, encoded.mask, encoded.pooled

    def _join(self, tokens: Tensor, mask: Tensor, pooled: Tensor, modality: str) -> Tensor:
        vector = masked_mean(tokens, mask)
        if self.summaries is not None:
            vector = vector + self.summaries[modality](pooled)
        return unit(vector)

    def _embed_one(self, batch: Batch, modality: str) -> Tensor:
        tokens, mask, pooled = self._tokens(batch, modality)
        return self._join(quantise(tokens, self.codebook, mask).tokens, mask, pooled, modality)

    @torch.no_grad()
    def _move(self, tokens: Tensor, codes: Tensor) -> None:
        """Running means of the tokens of each code; then the dead ones to where they are needed.

        Args:
            tokens: [K, D], those of all processes.
            codes: int64 [K], the nearest code of each.
        """
        count = codes.bincount(minlength=len(self.codebook)).to(self.counts)
        total = torch.zeros_like(self.sums).index_add_(0, codes, tokens.to(self.sums))
        self.counts.mul_(self.decay).add_(count, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(total, alpha=1 - self.decay)
        used = self.counts >= DEAD
        self.codebook[used] = self.sums[used] / self.counts[used, None]
        dead = (~used).nonzero().flatten()[: len(tokens)]
        if not len(dead):
            return
        # Evenly spaced through the batch: many go where tokens are many.
        some = torch.arange(len(dead), device=dead.device) * len(tokens) // len(dead)
        self.codebook[dead] = self.sums[dead] = tokens[some].to(self.codebook)
        self.counts[dead] = 1.0  # so that they have a while to be chosen
