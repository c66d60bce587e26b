"""Sparsemax: like softmax, but most weights are exactly zero.

Martins & Astudillo, "From Softmax to Sparsemax", ICML 2016. The weights are the point of the
simplex nearest to the scores: `w = max(z - tau, 0)`, with the one threshold tau for which they sum
to 1 (their Eq. 2 and 3).

It is ours: entmax, which the tests compare with, sorts all scores, and is slower on a codebook.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmcl_core.errors import MMCLError, ShapeError

# Columns that one block maximum stands for, and the part of the blocks with a candidate up to which
# it pays to collect the candidates in a matrix of their own.
_BLOCK = 32
_FEW = 0.9

# The gradient where the other tensor is above 0, and 0 elsewhere: that of relu. On a CPU it takes a
# tenth of the time of `torch.where`.
_where_positive = partial(torch.ops.aten.threshold_backward, threshold=0)


def sparsemax(scores: Tensor, dim: int = -1) -> Tensor:
    """The Euclidean projection of scores onto the simplex.

    Scores that are close to each other share the weight, and the others have none: a score has a
    weight only if it is above `tau`, which is never below the largest score minus 1. Adding one
    number to all scores changes nothing.

    The gradient is `g - mean(g on the support)` on the support (the weights above 0), and zero
    elsewhere (Proposition 2 of the paper). It can be differentiated again.

    Exact, without sorting. The threshold of *some* of the scores is never above that of all. So
    the maxima of small blocks give a lower bound; of the scores above it, few as a rule, Newton's
    method finds the threshold itself, in finitely many steps (Michelot, 1986).

    Args:
        scores: any shape. -inf is allowed and has no weight. float16 and bfloat16 are computed,
            and returned, in float32 (in bfloat16, 16,384 weights sum to anything from 0.9 to 1.1).
        dim: the axis along which weights sum to 1.

    Returns:
        Weights in [0, 1], of the shape of `scores`.

    Raises:
        ShapeError: not floating-point, no such axis, or nothing along it.
        MMCLError: NaN or +inf among the scores, or nothing but -inf along the axis.
    """
    if not scores.is_floating_point():
        raise ShapeError(f"scores must hold floating-point numbers, got {scores.dtype}.")
    if not -scores.ndim <= dim < scores.ndim or scores.shape[dim] == 0:
        raise ShapeError(
            f"expected scores with at least one number along axis {dim}, "
            f"got the shape {list(scores.shape)}."
        )
    with torch.autocast(scores.device.type, enabled=False):
        if scores.dtype in (torch.float16, torch.bfloat16):
            scores = scores.float()
        last = scores.movedim(dim, -1)
        weights = _Sparsemax.apply(last.reshape(-1, last.shape[-1]))
    return weights.view(last.shape).movedim(-1, dim)


class _Sparsemax(torch.autograd.Function):
    """Rows `[R, C]`. What the backward pass needs is the support alone, which is small."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        rows, columns = scores.shape
        if rows == 0:
            weights, ctx.dense = scores.clone(), True
            ctx.save_for_backward(weights)
            return weights
        whole = columns - columns % _BLOCK
        # Strided blocks, so that the maximum runs over whole lines of memory.
        blocks = scores[:, :whole].view(rows, _BLOCK, whole // _BLOCK)
        maxima = torch.cat([blocks.amax(1), scores[:, whole:]], dim=1)
        top = maxima.amax(1, keepdim=True)
        _check(top)
        tau, _ = _threshold(maxima - top, torch.full_like(top, -1.0))
        least = top + tau
        ctx.dense = float((maxima >= least).to(scores).mean(1).max()) > _FEW
        if ctx.dense:
            shifted = scores - top
            tau, rest = _threshold(shifted, tau)
            weights = shifted.sub_(tau).sub_(rest).clamp_(min=0)
            ctx.save_for_backward(weights)
            return weights
        row, column = (scores >= least).nonzero(as_tuple=True)
        count = row.bincount(minlength=rows)
        most = int(count.max())
        # The candidates of each row, side by side and filled up with -inf.
        place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        few = scores.new_full((rows, most), -torch.inf)
        few[row, place] = scores[row, column] - top[row, 0]
        tau, rest = _threshold(few, tau)
        weight = few[row, place] - tau[row, 0] - rest[row, 0]
        support = weight > 0
        row, column = row[support], column[support]
        ctx.save_for_backward(row, column, row.bincount(minlength=rows))
        weights = torch.zeros_like(scores)
        weights[row, column] = weight[support]
        return weights

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        if ctx.dense:
            weights = ctx.saved_tensors[0].detach()
            size = weights.sign().sum(1, keepdim=True)
            mean = _where_positive(grad, weights).sum(1, keepdim=True) / size
            return _where_positive(grad - mean, weights)
        row, column, size = ctx.saved_tensors
        value = grad[row, column]
        mean = value.new_zeros(len(size)).index_add(0, row, value) / size
        return torch.zeros_like(grad).index_put((row, column), value - mean[row])


def _threshold(scores: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """Newton's method from below: the threshold of each row.

    `sum(max(z - tau, 0)) - 1` falls and is convex in tau, so that each step stays below the root
    and the support only shrinks; when it no longer does, tau is exact.

    Args:
        scores: `[R, C]`, the largest of each row 0 or above `tau`.
        tau: `[R, 1]`, not above the threshold.

    Returns:
        The threshold as a sum of two numbers, `[R, 1]` each. The second is below the last digit of
        the first, but 16,384 weights of 1e-4 would sum to 1.0005 without it.
    """
    size, excess = None, torch.empty_like(scores)
    while True:
        torch.sub(scores, tau, out=excess).clamp_(min=0)
        surplus = excess.sum(1, keepdim=True) - 1
        # As floats, exact up to 2^24: a tenth of the time of counting.
        smaller = excess.sign_().sum(1, keepdim=True)
        if size is not None and torch.equal(smaller, size):
            return tau, surplus / size
        # Never down, whatever the rounding: so that the support can only shrink, and the loop ends.
        tau, size = tau + surplus.clamp_(min=0) / smaller, smaller


def _check(top: Tensor) -> None:
    bad = ~top.isfinite()[:, 0]
    if bad.any():
        first = int(bad.nonzero()[0])
        value = float(top[first])
        what = "nothing but -inf" if value == -torch.inf else "NaN" if value != value else "+inf"
        raise MMCLError(
            f"sparsemax: expected finite scores, or some -inf among them; {int(bad.sum())} of "
            f"{len(bad)} rows hold others, the first is row {first} with {what}."
        )
