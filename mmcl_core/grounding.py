"""Tokens to codebook entries and back, without ever holding a score for each pair.

The scores of B samples of N tokens against C codebook entries are `[B, N, C]`: 100 MB in float32
for 32 pictures of 49 patches and 16,384 entries, and autograd holds them several times. Two facts
make them superfluous. Mean and sum over the tokens can be taken before the product. And of a
maximum, the gradient reaches one token for each entry; behind a sparsemax, only for the few entries
that have a weight.

`FDTGrounding` is the layer (Chen et al., CVPR 2023), `ground` the computation behind it.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_core.errors import MMCLError, ShapeError, check_count, check_temperature
from mmcl_core.losses.checks import in_float32
from mmcl_core.sparsemax import sparsemax

Normalizer = Literal["sparsemax", "softmax", "sigmoid"]
Pooling = Literal["max", "mean", "sum"]
Padding = Literal["exclude", "zero"]

# Codebook entries scored at a time: the block of scores then stays in the processor's cache.
_CHUNK = 1024


class Grounded(NamedTuple):
    """What a grounding returns: `feature = weights @ codebook`."""

    feature: Tensor  # [B, D], not normalised
    weights: Tensor  # [B, C], at least 0, summing to 1


class FDTGrounding(nn.Module):
    """Maps the tokens of one modality to a mixture of codebook entries.

    `q = query(features)`, `s = q @ codebook.T / sqrt(D) / T`, `p = pool over tokens (s)`,
    `w = normalizer(p)`, `f = w @ codebook` (section 3.1 of the paper and the authors' code). The
    codebook is key and value, without a map or a norm.

    Padding. In the authors' code a padded token has the score 0, so that under max pooling no entry
    of a padded caption scores below 0, and under mean pooling padding counts. That is "zero";
    "exclude" leaves padding out.

    Args:
        width: width F of the tokens.
        dim: width D of the codebook.
        grounding_temperature: T > 0; it decides how many entries have a weight. Published: 1000.
        normalizer: "sigmoid" is divided by its sum over the entries.
        pooling: of the scores, over the tokens.
        padding: what a padded token does, see above.
    """

    def __init__(
        self,
        width: int,
        dim: int,
        *,
        grounding_temperature: float = 1000.0,
        normalizer: Normalizer = "sparsemax",
        pooling: Pooling = "max",
        padding: Padding = "exclude",
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("normalizer", normalizer, ("sparsemax", "softmax", "sigmoid")),
            ("pooling", pooling, ("max", "mean", "sum")),
            ("padding", padding, ("exclude", "zero")),
        ):
            if value not in known:
                raise MMCLError(f"{name} must be one of {', '.join(known)}; got {value!r}")
        self.grounding_temperature = check_temperature(
            grounding_temperature, "grounding_temperature"
        )
        self.width, self.dim = width, dim = check_count("width", width), check_count("dim", dim)
        self.normalizer, self.pooling, self.padding = normalizer, pooling, padding
        self.query = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, dim),
            nn.GELU(),
            nn.LayerNorm(dim),
            nn.Linear(dim, dim),
        )

    def forward(self, features: Tensor, codebook: Tensor, mask: Tensor | None = None) -> Grounded:
        """Tokens `[B, N, F]`, codebook `[C, D]`, mask bool `[B, N]` (True = real) -> `Grounded`.

        Computed in float32 at least, inside autocast, too; there, all but the query map.

        Raises:
            ShapeError: shapes do not fit, or a sample has no real token.
            MMCLError: a score is not finite.
        """
        self._check(features, codebook, self.width)
        return self.mix(self.query(features), codebook, mask)

    @in_float32
    def mix(self, queries: Tensor, codebook: Tensor, mask: Tensor | None = None) -> Grounded:
        """`forward` from the queries on: `[B, N, D]`, of tokens of one modality or of several."""
        self._check(queries, codebook, self.dim)
        if mask is not None:
            _check_mask(mask, queries)
            if not mask.all():
                queries = self._without_padding(queries, mask)
        codebook = codebook.to(queries)
        scale = math.sqrt(self.dim) * self.grounding_temperature  # commutes with the pooling
        return Grounded(
            *ground(queries, codebook, lambda p: self._weights(p / scale), pooling=self.pooling)
        )

    def scores(self, features: Tensor, codebook: Tensor) -> Tensor:
        """Of every token with every entry, before pooling: `[B, N, C]`. Takes memory."""
        self._check(features, codebook, self.width)
        return self._scores(self.query(features), codebook)

    @in_float32
    def _scores(self, queries: Tensor, codebook: Tensor) -> Tensor:
        return queries @ codebook.T / (math.sqrt(self.dim) * self.grounding_temperature)

    def _check(self, tokens: Tensor, codebook: Tensor, width: int) -> None:
        if 0 in (*tokens.shape, *codebook.shape) or (
            (tokens.ndim, *tokens.shape[2:], *codebook.shape[1:]) != (3, width, self.dim)
        ):
            raise ShapeError(
                f"expected tokens [B, N, {width}] and a codebook [C, {self.dim}], B, N and C at "
                f"least 1; got {list(tokens.shape)} and {list(codebook.shape)}"
            )

    def _without_padding(self, queries: Tensor, mask: Tensor) -> Tensor:
        real = mask[:, :, None]  # [B, N, 1]
        if self.padding == "exclude" and self.pooling == "max":
            # A real token of the sample once more: it cannot change the maximum.
            first = mask.int().argmax(1)[:, None, None].expand(-1, 1, queries.shape[2])
            return torch.where(real, queries, queries.gather(1, first))
        if self.padding == "exclude" and self.pooling == "mean":
            return queries * (real / mask.to(queries).mean(1)[:, None, None])
        return queries * real  # a zero query has the score 0

    def _weights(self, scores: Tensor) -> Tensor:
        """Pooled scores `[B, C]` to weights `[B, C]`."""
        if self.normalizer == "sparsemax":
            return sparsemax(scores)
        if not scores.isfinite().all():
            raise MMCLError("expected finite scores of the codebook; got NaN or infinity")
        if self.normalizer == "softmax":
            return scores.softmax(-1)
        weights = scores.sigmoid()
        return weights / weights.sum(-1, keepdim=True)


def ground(
    queries: Tensor,
    codebook: Tensor,
    normalise: Callable[[Tensor], Tensor],
    *,
    pooling: Pooling = "max",
) -> tuple[Tensor, Tensor]:
    """Mixes codebook entries, by how well the tokens of a sample match them.

    `p = pool over n (q_n . c)`, `w = normalise(p)`, `f = w @ codebook`. There is no second
    derivative through "max" (`create_graph=True` raises an MMCLError).

    Args:
        queries: `[B, N, D]`, every token real (see `FDTGrounding` for padding), N at least 1.
        codebook: `[C, D]`, key and value at once.
        normalise: pooled scores `[B, C]` to weights `[B, C]`; differentiable.
        pooling: over the tokens.

    Returns:
        The mixture f `[B, D]` and the weights w `[B, C]`.
    """
    if pooling == "max":
        return _GroundByMax.apply(queries, codebook, normalise)
    pooled = queries.mean(1) if pooling == "mean" else queries.sum(1)  # [B, D]
    weights = normalise(pooled @ codebook.T)  # [B, C]
    return weights @ codebook, weights


class _GroundByMax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, codebook: Tensor, normalise: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        scores, token = _max_scores(queries, codebook)  # [B, C] each
        with torch.enable_grad():
            scores.requires_grad_()
            weights = normalise(scores)
        ctx.scores, ctx.weights = scores, weights  # not outputs: the small graph between them
        ctx.save_for_backward(queries, codebook, token)
        return weights.detach() @ codebook, weights.detach()

    @staticmethod
    def backward(ctx: Any, grad_mixture: Tensor, grad_weights: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise MMCLError(
                "max pooling over tokens has no second derivative: backward() was called with "
                "create_graph=True. Pooling by mean or sum has one."
            )
        queries, codebook, token = ctx.saved_tensors
        b, n, d = queries.shape
        # In place: autocast leaves that alone, where the backward pass runs inside it.
        grad_weights = grad_weights.clone().addmm_(grad_mixture, codebook.T)
        # By the pooled scores, [B, C].
        (grad,) = torch.autograd.grad(ctx.weights, ctx.scores, grad_weights, retain_graph=True)
        # An entry gives its gradient to the one token that scored highest, and gets from it. Entry
        # by entry, which spares a sort.
        entry, sample = grad.T.nonzero(as_tuple=True)  # [K] each, as all that follows
        value = grad[sample, entry]
        from_token = sample * n + token[sample, entry]
        flat = queries.reshape(b * n, d)
        grad_codebook = _weighted_sums(flat, from_token, value, entry, len(codebook))
        # And an entry gets from the mixtures. In place: one gradient of [C, D], not two.
        grad_codebook.addmm_(ctx.weights.detach().T, grad_mixture)
        order = from_token.argsort()
        entry, value, from_token = entry[order], value[order], from_token[order]
        grad_queries = _weighted_sums(codebook, entry, value, from_token, b * n)
        return grad_queries.view(b, n, d), grad_codebook, None


def _max_scores(queries: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The highest score of each entry among the tokens, and that token: `[B, C]` twice."""
    b, n, d = queries.shape
    flat = queries.reshape(b * n, d)
    scores = queries.new_empty(b, len(codebook))
    token = torch.empty(b, len(codebook), dtype=torch.int32, device=queries.device)
    room = queries.new_empty(b * n * min(_CHUNK, len(codebook)))
    for entries, best, which in zip(
        codebook.split(_CHUNK), scores.split(_CHUNK, 1), token.split(_CHUNK, 1), strict=True
    ):
        block = room[: b * n * len(entries)].view(b * n, -1)
        torch.mm(flat, entries.T, out=block)
        # As a picture of N x 1 pixels with the entries as channels: on a CPU, pooling finds the
        # maximum and its place eight times as fast as `max(1)` does.
        picture = block.view(b, n, 1, -1).permute(0, 3, 1, 2)
        values, places = F.max_pool2d(picture, (n, 1), return_indices=True)
        best.copy_(values[:, :, 0, 0])
        which.copy_(places[:, :, 0, 0])
    return scores, token


def _weighted_sums(table: Tensor, row: Tensor, weight: Tensor, bag: Tensor, bags: int) -> Tensor:
    """`out[bag_k] += weight_k * table[row_k]` for all k, gathering nothing: `[bags, D]`.

    The bags must be in order.
    """
    starts = torch.searchsorted(bag, torch.arange(bags, device=bag.device))
    # Detached, it keeps no notes for a second derivative.
    return F.embedding_bag(row, table.detach(), starts, mode="sum", per_sample_weights=weight)


class Usage(NamedTuple):
    """How a codebook is used."""

    active: float  # mean number of entries with a weight, of a sample
    used: int  # entries with a weight in any sample
    perplexity: float  # exp of the entropy of the mean weights, 1 to C; C when all are used alike


def codebook_usage(weights: Tensor) -> Usage:
    """Counts codebook entries: `weights` [S, C] of S samples, as a grounding returns them."""
    on = weights > 0
    mean = weights.mean(0)
    entropy = -torch.xlogy(mean, mean).sum()
    return Usage(float(on.sum(1).float().mean()), int(on.any(0).sum()), float(entropy.exp()))


def _check_mask(mask: Tensor, features: Tensor) -> None:
    if mask.shape != features.shape[:2] or mask.dtype != torch.bool:
        raise ShapeError(
            f"expected a mask bool {list(features.shape[:2])}, True for a real token; got "
            f"{mask.dtype} {list(mask.shape)}"
        )
    if not (some := mask.any(1)).all():
        raise ShapeError(
            f"expected a real token in every sample; {int((~some).sum())} of {len(mask)} have "
            f"none, the first is sample {int((~some).nonzero()[0])}"
        )
