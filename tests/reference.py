"""Naive forms, written straight from the formulas: what the library is compared with.

The losses are Python loops over the elements, in float64, for a handful of samples. The form with
two logits matrices is what a reader of the CLIP paper would write in PyTorch; the benchmarks
measure against it.
"""

import math
from collections.abc import Sequence

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
