"""InfoNCE against a queue of earlier keys, as in MoCo."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl_core.errors import MMCLError, ShapeError
from mmcl_core.losses.checks import (
    at_least_float32,
    check_logits,
    check_named,
    scalar,
    without_autocast,
)


def queue_info_nce(
    queries: Tensor,
    positives: Tensor,
    queue: Tensor,
    temperature: float | Tensor,
    *,
    queue_positives: Tensor | None = None,
) -> Tensor:
    """Each query finds its own key among that key and a queue of keys of other samples.

    `mean_i -log( e^{q_i.k_i / T} / (e^{q_i.k_i / T} + sum_{n in queue} e^{q_i.n / T}) )` (He et
    al., "Momentum Contrast", CVPR 2020, Eq. 1). The batch itself holds no negatives.

    Further positives. With `queue_positives`, P_i is the own key and the marked keys of the queue,
    and the loss of a query is the mean over them, `-1/|P_i| sum_{p in P_i} log( e^{q_i.k_p / T} /
    sum over the own key and the whole queue )`: the tag-supervised term of MCT (Yuan et al.,
    CVPR 2021; the form is a reconstruction), in the manner of Khosla et al., NeurIPS 2020, Eq. 2.

    Args:
        queries: `[B, D]`, B at least 1.
        positives: `[B, D]`; row i is the key of query i.
        queue: `[K, D]`, K at least 1.
        temperature: T > 0, a number or a tensor of shape `[]`, which may require a gradient.
        queue_positives: bool `[B, K]`, True where a key of the queue is a positive of the query.

    Returns:
        The mean over the batch, in nats, at least 0; `log(K + 1)` when all similarities are equal.

    Raises:
        ShapeError: shapes, types or devices do not fit.
        MMCLError: NaN, infinity or zero vectors among the embeddings; temperature not in (0, inf).
    """
    largest = _check(queries, positives, queue, queue_positives)
    with without_autocast(queries):
        q, own = at_least_float32(queries), at_least_float32(positives)  # [B, D]
        q = q / scalar("temperature", temperature, q, positive=True, largest=largest, divides=True)
        positive = (q * own).sum(1)
        logits = q @ queue.to(q).T  # [B, K]
        # log(e^p + sum e^n) - p, where a p far above all n leaves a small number exact. Not
        # softplus: above 20 that is the identity, which float64 can tell.
        loss = -F.logsigmoid(positive - logits.logsumexp(1))
        if queue_positives is not None:
            # The mean logit of the positives takes the place of the own key's.
            others = logits.masked_fill(~queue_positives, 0).sum(1)
            mean = (positive + others) / (1 + queue_positives.sum(1))
            loss = loss + (positive - mean)
        return loss.mean()


def queue_hinge(
    queries: Tensor,
    positives: Tensor,
    queue: Tensor,
    margin: float,
    *,
    queue_positives: Tensor | None = None,
) -> Tensor:
    """Each query should be nearer to its own key than to those of the queue, by a margin.

    `mean_i mean_{n in queue} max(0, margin - q_i.k_i + q_i.n)`, the ranking loss of image-caption
    matching (Faghri et al., "VSE++", BMVC 2018, Eq. 5, a mean in place of its sum).

    Args:
        queries: `[B, D]`, B at least 1.
        positives: `[B, D]`; row i is the key of query i.
        queue: `[K, D]`, K at least 1.
        margin: at least 0 and finite, in units of cosine.
        queue_positives: bool `[B, K]`, keys of the queue that are no negatives of a query.

    Returns:
        The mean over queries and negatives, at least 0.

    Raises:
        ShapeError: shapes, types or devices do not fit.
        MMCLError: NaN, infinity or zero vectors among the embeddings; a margin below 0.
    """
    largest = _check(queries, positives, queue, queue_positives)
    if not margin >= 0:
        raise MMCLError(f"margin must be at least 0 and finite, got {margin}.")
    with without_autocast(queries):
        q, own = at_least_float32(queries), at_least_float32(positives)  # [B, D]
        check_logits(largest, q)
        least = scalar("margin", margin, q)
        check_logits(1.0, q[:, :1], margin, " at this margin")
        excess = (least - (q * own).sum(1, keepdim=True) + q @ queue.to(q).T).clamp(min=0)
        if queue_positives is not None:
            excess = excess.masked_fill(queue_positives, 0)
            negatives = (~queue_positives).sum(1).clamp(min=1)
            return (excess.sum(1) / negatives).mean()
        return excess.mean()


def _check(
    queries: Tensor, positives: Tensor, queue: Tensor, queue_positives: Tensor | None
) -> float:
    """Raises on what cannot be used; returns the largest magnitude of the embeddings."""
    largest = check_named({"queries": queries, "positives": positives}, smallest=1)
    fits = queue.ndim == 2 and queue.shape[1] == queries.shape[1]
    if not fits or queue.device != queries.device:
        raise ShapeError(
            f"the queue must be [K, {queries.shape[1]}] on {queries.device}, like the queries; "
            f"got {list(queue.shape)} on {queue.device}."
        )
    largest = max(largest, check_named({"queue": queue}, smallest=1))
    if queue_positives is None:
        return largest
    if queue_positives.shape != (len(queries), len(queue)) or queue_positives.dtype != torch.bool:
        raise ShapeError(
            f"queue_positives must be bool of shape [{len(queries)}, {len(queue)}], queries by "
            f"keys in the queue, got {queue_positives.dtype} of shape "
            f"{list(queue_positives.shape)}."
        )
    if queue_positives.device != queries.device:
        raise ShapeError(
            f"queue_positives must be on the device of the queries, {queries.device}, "
            f"got {queue_positives.device}."
        )
    return largest
