"""Naive forms, written straight from the formulas: what the library is compared with.

Functions that return a float are Python loops over the elements, in float64, for a handful of
samples. Those that return tensors are what a reader of the paper would write in PyTorch, and
autograd differentiates them; the benchmarks measure against these.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(p * q for p, q in zip(a, b, strict=True))


def _log_sum_exp(values: Sequence[float]) -> float:
    largest = max(values)
    return largest + math.log(math.fsum(math.exp(v - largest) for v in values))


def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> float:
    """mean_i -log( e^{q_i.k_i / T} / sum_j e^{q_i.k_j / T} )"""
    q, k = queries.double().tolist(), keys.double().tolist()
    losses = []
    for i in range(len(q)):
        logits = [_dot(q[i], k[j]) / temperature for j in range(len(k))]
        losses.append(_log_sum_exp(logits) - logits[i])
    return math.fsum(losses) / len(losses)


def clip_loss(
    image: Tensor, text: Tensor, logit_scale: float, groups: Sequence[int] | None = None
) -> float:
    """Mean over rows and columns of logsumexp(logits) - mean(logits of the same caption)."""
    x, y = image.double().tolist(), text.double().tolist()
    size = len(x)
    groups = range(size) if groups is None else groups
    losses = []
    for i in range(size):
        same = [j for j in range(size) if groups[j] == groups[i]]
        row = [logit_scale * _dot(x[i], y[j]) for j in range(size)]
        column = [logit_scale * _dot(x[j], y[i]) for j in range(size)]
        for logits in (row, column):
            losses.append(_log_sum_exp(logits) - math.fsum(logits[j] for j in same) / len(same))
    return math.fsum(losses) / len(losses)


def siglip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: float,
    logit_bias: float,
    groups: Sequence[int] | None = None,
) -> float:
    """-sum_ij log sigmoid(z_ij * (s * x_i.y_j + b)) / B, z = 1 for the same caption, else -1."""
    x, y = image.double().tolist(), text.double().tolist()
    size = len(x)
    groups = range(size) if groups is None else groups
    total = 0.0
    for i in range(size):
        for j in range(size):
            z = 1 if groups[i] == groups[j] else -1
            # -log sigmoid(u) = log(1 + e^-u)
            total += _log_sum_exp([0.0, -z * (logit_scale * _dot(x[i], y[j]) + logit_bias)])
    return total / size


def clip_two_logits(image: Tensor, text: Tensor, logit_scale: float | Tensor) -> Tensor:
    """CLIP's loss as its paper writes it: two [B, B] logits matrices, and autograd."""
    target = torch.arange(len(image), device=image.device)
    logits_per_image = logit_scale * image @ text.T
    logits_per_text = logit_scale * text @ image.T
    loss_image = F.cross_entropy(logits_per_image, target)
    loss_text = F.cross_entropy(logits_per_text, target)
    return (loss_image + loss_text) / 2


def gmc_loss(
    modalities: Sequence[Tensor],
    joint: Tensor,
    temperature: float,
    variant: str,
    anchors: Sequence[int] | None = None,
) -> float:
    """Sum over modalities of the mean over anchors of -log( e^{s(joint_i, m_i)} / below ).

    Below the line stand, for "ntxent", all other 2B - 1 vectors of joint and m, and each of joint_i
    and m_i is an anchor; for "paper" and "joint_negatives", the sums over j != i of `gmc_loss`.
    """
    z = joint.double().tolist()
    total = 0.0
    for modality in modalities:
        m = modality.double().tolist()
        losses = []
        for i in range(len(z)) if anchors is None else anchors:
            others = [j for j in range(len(z)) if j != i]
            positive = _dot(z[i], m[i]) / temperature
            if variant == "ntxent":
                for anchor, own, other in ((z[i], z, m), (m[i], m, z)):
                    vectors = [own[j] for j in others] + other
                    logits = [_dot(anchor, v) / temperature for v in vectors]
                    losses.append(_log_sum_exp(logits) - positive)
                continue
            logits = [_dot(z[i], z[j]) / temperature for j in others]
            if variant == "paper":
                logits += [_dot(m[i], z[j]) / temperature for j in others]
                logits += [_dot(m[i], m[j]) / temperature for j in others]
            losses.append(_log_sum_exp(logits) - positive)
        total += math.fsum(losses) / len(losses)
    return total


def gmc_exp(modalities: Sequence[Tensor], joint: Tensor, temperature: float | Tensor) -> Tensor:
    """GMC's "ntxent" in plain exponentials: [2B, 2B] for each modality, without its diagonal."""
    total = joint.new_zeros(())
    for m in modalities:
        x = torch.cat([joint, m])
        exps = (x @ x.T / temperature).exp()
        others = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        below = exps.masked_select(others).view(len(x), -1).sum(1)
        above = ((joint * m).sum(1) / temperature).exp().repeat(2)
        total = total - (above / below).log().mean()
    return total


def gmc_ntxent(modalities: Sequence[Tensor], joint: Tensor, temperature: float | Tensor) -> Tensor:
    """The same as SimCLR's NT-Xent between the joint and each modality: cross-entropies."""
    size = len(joint)
    target = (torch.arange(2 * size, device=joint.device) + size) % (2 * size)
    total = joint.new_zeros(())
    for m in modalities:
        x = torch.cat([joint, m])
        logits = (x @ x.T / temperature).fill_diagonal_(-torch.inf)
        total = total + F.cross_entropy(logits, target)
    return total


def sparsemax(scores: Tensor) -> Tensor:
    """Along the last axis, from a full sort: Algorithm 1 of Martins & Astudillo."""
    ordered = scores.sort(-1, descending=True).values
    sums = ordered.cumsum(-1)
    rank = torch.arange(1, scores.shape[-1] + 1, dtype=scores.dtype, device=scores.device)
    size = (1 + rank * ordered > sums).sum(-1, keepdim=True)
    tau = (sums.gather(-1, size - 1) - 1) / size
    return (scores - tau).relu()


def fdt_grounding(
    features: Tensor,
    codebook: Tensor,
    mask: Tensor | None,
    *,
    query: Callable[[Tensor], Tensor],
    temperature: float,
    pooling: str,
    normalizer: str,
    padding: str,
) -> tuple[Tensor, Tensor]:
    """The formulas of FDT with all scores [B, N, C] at once: mixture [B, D], weights [B, C]."""
    scores = query(features) @ codebook.T / math.sqrt(codebook.shape[1]) / temperature
    count = torch.full((), scores.shape[1])
    if mask is not None:
        padded = -torch.inf if (pooling, padding) == ("max", "exclude") else 0.0
        scores = scores.masked_fill(~mask[:, :, None], padded)
        count = mask.sum(1, keepdim=True) if padding == "exclude" else count
    if pooling == "max":
        pooled = scores.max(1).values
    else:
        pooled = scores.sum(1) / (count if pooling == "mean" else 1)
    if normalizer == "sparsemax":
        weights = sparsemax(pooled)
    elif normalizer == "softmax":
        weights = pooled.softmax(-1)
    else:
        weights = pooled.sigmoid() / pooled.sigmoid().sum(-1, keepdim=True)
    return weights @ codebook, weights


def queue_info_nce(
    queries: Tensor,
    positives: Tensor,
    queue: Tensor,
    temperature: float,
    queue_positives: Sequence[Sequence[bool]] | None = None,
) -> float:
    """mean_i mean_{p in P_i} -log( e^{q_i.p / T} / (e^{q_i.k_i / T} + sum_{n in queue} ...) ).

    P_i is the own key k_i, and the keys of the queue that row i of `queue_positives` marks.
    """
    q, k, n = queries.double().tolist(), positives.double().tolist(), queue.double().tolist()
    losses = []
    for i in range(len(q)):
        logits = [_dot(q[i], key) / temperature for key in [k[i], *n]]
        marked = [] if queue_positives is None else queue_positives[i]
        chosen = [logits[0]] + [logits[1 + j] for j, mark in enumerate(marked) if mark]
        losses.append(_log_sum_exp(logits) - math.fsum(chosen) / len(chosen))
    return math.fsum(losses) / len(losses)


def queue_hinge(
    queries: Tensor,
    positives: Tensor,
    queue: Tensor,
    margin: float,
    queue_positives: Sequence[Sequence[bool]] | None = None,
) -> float:
    """mean_i mean_{n in queue, not marked} max(0, margin - q_i.k_i + q_i.n); 0 without any n."""
    q, k, n = queries.double().tolist(), positives.double().tolist(), queue.double().tolist()
    losses = []
    for i in range(len(q)):
        own, excess = _dot(q[i], k[i]), []
        for j in range(len(n)):
            if queue_positives is None or not queue_positives[i][j]:
                excess.append(max(0.0, margin - own + _dot(q[i], n[j])))
        losses.append(math.fsum(excess) / max(len(excess), 1))
    return math.fsum(losses) / len(losses)
