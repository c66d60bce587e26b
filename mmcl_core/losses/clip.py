"""Two encoders, one batch: InfoNCE, and the losses of CLIP and SigLIP."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmcl_core.errors import MMCLError, check_count
from mmcl_core.losses.checks import (
    at_least_float32,
    check_embeddings,
    check_groups,
    check_rows,
    scalar,
    without_autocast,
)

ChunkSize = int | Literal["auto"] | None
# Of "auto": what a tile may take, and up to how many samples there are none.
TILE_BYTES, WHOLE = 64 * 2**20, 512


def check_chunk_size(chunk_size: ChunkSize) -> ChunkSize:
    """ "auto", None, or a whole number of at least 1, as an int; raises MMCLError else."""
    if chunk_size is None or chunk_size == "auto":
        return chunk_size
    try:
        return check_count("chunk_size", chunk_size)
    except MMCLError as error:
        raise MMCLError(f'{error}. "auto" and None are allowed, too') from None


def info_nce(
    queries: Tensor, keys: Tensor, temperature: float | Tensor, *, rows: slice | None = None
) -> Tensor:
    """InfoNCE in one direction: each query has to find its own key among all keys of the batch.

    `mean_i -log( e^{q_i.k_i / T} / sum_j e^{q_i.k_j / T} )` (van den Oord et al., 2018, Eq. 4).

    Args:
        queries: `[B, D]`, B at least 2.
        keys: `[B, D]`; key i is the positive of query i, the other B - 1 are its negatives.
        temperature: T > 0, a number or a tensor of shape `[]`, which may require a gradient.
        rows: average over these queries alone, as in `clip_loss`; None is all.

    Returns:
        The mean over the queries, in nats, at least 0; log(B) when all similarities are equal.

    Raises:
        ShapeError: shapes, types or devices do not fit, B < 2, or rows are not in the batch.
        MMCLError: NaN, infinity or zero vectors among the embeddings; temperature not in (0, inf).
    """
    largest = check_embeddings(queries=queries, keys=keys)
    start, stop = check_rows(rows, queries)
    with without_autocast(queries):
        q, k = at_least_float32(queries), at_least_float32(keys)  # [B, D]
        q = q / scalar("temperature", temperature, q, positive=True, largest=largest, divides=True)
        logits = q[start:stop] @ k.T  # [rows, B]
        return F.cross_entropy(logits, torch.arange(start, stop, device=q.device))


def clip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    *,
    chunk_size: ChunkSize = "auto",
    groups: Tensor | None = None,
    rows: slice | None = None,
) -> Tensor:
    """The loss of CLIP: image finds text, text finds image, mean of the two cross-entropies.

    Radford et al., ICML 2021, Figure 3. With `logits = logit_scale * image @ text.T`, it is
    `(cross_entropy(logits, diagonal) + cross_entropy(logits.T, diagonal)) / 2`.

    Identical captions. When two samples of a batch have the same caption, calling one a negative
    of the other punishes the truth. `groups` says which samples share their caption. They are
    then positives of each other: the loss of row i is `logsumexp_j(logits[i, j])` minus the
    *mean* of the logits in its group (as in the supervised contrastive loss, Khosla et al.,
    NeurIPS 2020, Eq. 2), and the same for columns. Its lowest value for a group of n is log(n).

    Large batches. `chunk_size` bounds the memory and changes no value beyond rounding: two tiles
    of `[chunk_size, B]` are all that exists of the logits at any time, and the backward pass
    computes them again."auto" takes the largest tile that fits into 64 MiB (`TILE_BYTES`): one for
    all up to B = 4,096 in float32, 2,048 rows at 8,192. Up to B = 512 it is None, the plain form,
    where tiles would gain nothing. Tiles have no second derivative (`create_graph=True` raises an
    MMCLError); None has one at any size.

    Several processes. Each gathers all embeddings and passes its own samples as `rows`: then only
    these look for their partners, among all. `(cross_entropy(logits[rows], diagonal) +
    cross_entropy(logits.T[rows], diagonal)) / 2` is two matrices of `[b, B]`, or with a
    `chunk_size` tiles of `[chunk_size, B]`. The mean over the processes is the loss of the batch.

    Precision. A float32 inner product near 1 is rounded to about 6e-8, so a logit at scale 1000
    (temperature 1e-3) to about 6e-5. Losses and gradients stay finite there, and carry that
    rounding, a relative error of up to about 1e-4.

    Args:
        image: `[B, D]`, B at least 2.
        text: `[B, D]`; row i describes image i.
        logit_scale: 1 / temperature, > 0, already exponentiated: a number, or a tensor of shape
            `[]`, through which the gradient flows.
        chunk_size: "auto", or rows of a tile, at least 1; None holds all `[B, B]` logits.
        groups: int64 `[B]`, any numbers; samples with the same number have identical captions.
        rows: average over these samples alone, see above; None is all.

    Returns:
        The loss in nats, at least 0; log(B) when all similarities are equal.

    Raises:
        ShapeError: shapes, types or devices do not fit, B < 2, or rows are not in the batch.
        MMCLError: NaN, infinity or zero vectors among the embeddings; logit_scale not in (0, inf);
            chunk_size not a whole number of at least 1.
    """
    largest = check_embeddings(image=image, text=text)
    check_groups(groups, image)
    start, stop = check_rows(rows, image)
    chunk_size = check_chunk_size(chunk_size)
    with without_autocast(image):
        x, y = at_least_float32(image), at_least_float32(text)  # [B, D]
        scale = scalar("logit_scale", logit_scale, x, positive=True, largest=largest)
        if chunk_size == "auto":
            fits = max(TILE_BYTES // (len(x) * x.element_size()), 1)
            chunk_size = None if len(x) <= WHOLE else fits
        if rows is not None:
            return _local_clip_loss(x, y, scale, chunk_size or len(x), groups, start, stop)
        if chunk_size is None:
            logits = (scale * x) @ y.T  # [B, B]
            positive = logits.diagonal().clone()  # [B]
            negatives = logits.fill_diagonal_(-torch.inf)
            # With n the log-sum-exp over the negatives and p the positive, a cross-entropy is
            # log(e^p + e^n) - p = -log sigmoid(p - n). One matrix serves rows and columns.
            by_row = F.logsigmoid(positive - negatives.logsumexp(1))  # [B]
            by_column = F.logsigmoid(positive - negatives.logsumexp(0))  # [B]
            loss = -(by_row + by_column).mean() / 2
        else:
            loss = _TiledCLIP.apply(x, y, scale, chunk_size)
        if groups is not None:
            # Groups change the positives alone: the logit of the pair becomes the mean logit of
            # the group, scale * x_i . mean(y over the group). So one correction of [B, D] does,
            # and since it sums to the same over rows and over columns, it does for both.
            loss = loss + scale * (x * (y - _group_means(y, groups))).sum(1).mean()
        return loss


def siglip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    *,
    groups: Tensor | None = None,
) -> Tensor:
    """The loss of SigLIP: every pair of the batch is a yes-or-no question of its own.

    `-sum_ij logsigmoid(z_ij * (logit_scale * x_i.y_j + logit_bias)) / B`, with z = +1 where image
    and text belong together and -1 elsewhere (Zhai et al., ICCV 2023, Algorithm 1). The paper
    starts at a scale of 10 and a bias of -10.

    Args:
        image: `[B, D]`, B at least 2.
        text: `[B, D]`; row i describes image i.
        logit_scale: > 0, already exponentiated: a number or a tensor of shape `[]`.
        logit_bias: finite: a number or a tensor of shape `[]`.
        groups: int64 `[B]`; samples with the same number have identical captions, and belong
            together as well.

    Returns:
        The loss in nats, summed over pairs and divided by B; at least 0.

    Raises:
        ShapeError: shapes, types or devices do not fit, or B < 2.
        MMCLError: NaN, infinity or zero vectors among the embeddings; logit_scale not in (0, inf);
            logit_bias not finite.
    """
    largest = check_embeddings(image=image, text=text)
    check_groups(groups, image)
    with without_autocast(image):
        x, y = at_least_float32(image), at_least_float32(text)  # [B, D]
        scale = scalar("logit_scale", logit_scale, x, positive=True, largest=largest)
        bias = scalar("logit_bias", logit_bias, x)
        logits = (scale * x) @ y.T + bias  # [B, B]
        if groups is None:
            together = torch.eye(len(x), dtype=torch.bool, device=x.device)
        else:
            together = groups[:, None] == groups
        return -F.logsigmoid(torch.where(together, logits, -logits)).sum() / len(x)


def _local_clip_loss(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    chunk_size: int,
    groups: Tensor | None,
    start: int,
    stop: int,
) -> Tensor:
    """CLIP's loss of the anchors `start` to `stop` - 1, from tiles of `[chunk_size, B]`."""
    total = scale.new_zeros(())
    for first in range(start, stop, chunk_size):
        last = min(first + chunk_size, stop)
        for anchors, others in ((x, y), (y, x)):
            arguments = (anchors[first:last], others, scale, first)
            if last - first == stop - start:  # a single tile: hold it
                margins = _margins(*arguments)
            else:
                margins = checkpoint(
                    _margins, *arguments, use_reentrant=False, preserve_rng_state=False
                )
            total = total - F.logsigmoid(margins).sum()
    if groups is not None:
        # As in `clip_loss`; over a part of the batch, rows and columns differ.
        rows = slice(start, stop)
        image = (x[rows] * (y - _group_means(y, groups))[rows]).sum()
        text = (y[rows] * (x - _group_means(x, groups))[rows]).sum()
        total = total + scale * (image + text)
    return total / (2 * (stop - start))


def _margins(anchors: Tensor, others: Tensor, scale: Tensor, first: int) -> Tensor:
    """The positive logit of each anchor, minus the log-sum-exp over its negatives.

    Anchors `[n, D]`, others `[B, D]`; the positive of anchor i is `others[first + i]`. -> `[n]`.
    """
    logits = (scale * anchors) @ others.T  # [n, B]
    positive = logits.diagonal(first).clone()
    logits.diagonal(first).fill_(-torch.inf)
    return positive - logits.logsumexp(1)


class _TiledCLIP(torch.autograd.Function):
    """CLIP's loss from tiles of `[chunk, B]` logits; the same number as the plain form.

    With n_i the log-sum-exp over the negatives of row i and p_i its positive logit, the
    cross-entropy of the row is `log(e^{p_i} + e^{n_i}) - p_i = -log sigmoid(p_i - n_i)`. Written
    like this, as in the plain form, nothing is lost when the loss of a row is tiny, as it is at
    the end of training.

    n_i is held as a pair: the largest negative, and the sum of exp(logit - largest). Rows are
    complete within a tile. Columns grow from tile to tile: when a larger logit appears, the sum
    so far is rescaled to it. No exponent of a negative is ever above 0: nothing can overflow.

    Four matrix products in all (logits, logits again, two gradients), where the form with two
    logits matrices needs six.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, chunk_size: int) -> Tensor:
        size = len(x)
        chunk_size = min(chunk_size, size)
        scaled = x * scale
        tile, work = scaled.new_empty(2, chunk_size, size)
        positive, row_max, row_sum = scaled.new_empty(3, size)
        # Not -inf: in the first tile, a column may consist of its own positive alone.
        col_max = scaled.new_full((size,), torch.finfo(x.dtype).min)
        col_sum = scaled.new_zeros(size)
        for start in range(0, size, chunk_size):
            rows = slice(start, min(start + chunk_size, size))
            logits, exps = tile[: rows.stop - start], work[: rows.stop - start]
            # Autocast leaves products with out= and in place alone, in the backward pass, too.
            torch.mm(scaled[rows], y.T, out=logits)
            positive[rows] = logits.diagonal(start)
            logits.diagonal(start).fill_(-torch.inf)  # what remains are the negatives

            row_max[rows] = logits.amax(1)
            torch.sub(logits, row_max[rows, None], out=exps).exp_()
            row_sum[rows] = exps.sum(1)

            larger = torch.maximum(col_max, logits.amax(0))
            torch.sub(logits, larger, out=exps).exp_()
            col_sum.mul_((col_max - larger).exp_()).add_(exps.sum(0))
            col_max = larger

        row_margin = (positive - row_max) - row_sum.log()  # p_i - n_i
        col_margin = (positive - col_max) - col_sum.log()
        # The derivative of log sigmoid: the share that the negatives have in the softmax.
        row_share, col_share = (-row_margin).sigmoid(), (-col_margin).sigmoid()
        ctx.save_for_backward(
            *(x, y, scale, row_share + col_share),
            *(row_max, row_share / row_sum, col_max, col_share / col_sum),
        )
        ctx.chunk_size = chunk_size
        return -(F.logsigmoid(row_margin) + F.logsigmoid(col_margin)).mean() / 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            # Not `once_differentiable`: with it, a gradient penalty on the embeddings would come
            # out as a constant, and nobody would be told.
            raise MMCLError(
                "clip_loss in tiles has no second derivative: backward() was called with "
                "create_graph=True. Use chunk_size=None for that."
            )
        x, y, scale, share, row_max, row_weight, col_max, col_weight = ctx.saved_tensors
        needs_x, needs_y, needs_scale, _ = ctx.needs_input_grad
        size, chunk_size = len(x), ctx.chunk_size
        scaled = x * scale
        tile, work = scaled.new_empty(2, chunk_size, size)
        grad_x, grad_y = torch.empty_like(scaled), torch.zeros_like(scaled)
        for start in range(0, size, chunk_size):
            rows = slice(start, min(start + chunk_size, size))
            logits, weights = tile[: rows.stop - start], work[: rows.stop - start]
            torch.mm(scaled[rows], y.T, out=logits)
            # The gradient by the logits: softmax of the row plus softmax of the column ...
            torch.sub(logits, row_max[rows, None], out=weights).exp_()
            weights.mul_(row_weight[rows, None])
            weights.addcmul_(logits.sub_(col_max).exp_(), col_weight)
            # ... and on the diagonal, minus what all negatives have together (this overwrites
            # the exponential of a positive, which may have overflowed).
            weights.diagonal(start).copy_(-share[rows])
            if needs_x or needs_scale:
                torch.mm(weights, y, out=grad_x[rows])
            if needs_y:
                grad_y.addmm_(weights.T, x[rows])
        factor = grad / (2 * size)
        # sum_ij weights_ij * x_i.y_j, without another pass over the tiles
        grad_scale = (x * grad_x).sum() * factor if needs_scale else None
        factor = factor * scale
        return (
            grad_x.mul_(factor) if needs_x else None,
            grad_y.mul_(factor) if needs_y else None,
            grad_scale,
            None,
        )


def _group_means(values: Tensor, groups: Tensor) -> Tensor:
    """For each row of values `[B, D]`, the mean over the rows of its group. Returns `[B, D]`."""
    _, group, counts = groups.unique(return_inverse=True, return_counts=True)
    sums = values.new_zeros(len(counts), values.shape[1]).index_add(0, group, values)
    return (sums / counts[:, None])[group]
