"""The shape of the space: the gap between modalities, cone, alignment, uniformity."""

import math

import torch
from torch import Tensor

from mmcl_core.errors import MMCLError, ShapeError
from mmcl_core.evaluation.checks import BLOCK, as_pairs, as_unit, check_same_width, described


def modality_gap(x: Tensor, y: Tensor) -> float:
    """`||mean(x) - mean(y)||`, in [0, 2]: the distance of the centres of two modalities.

    Liang et al., "Mind the Gap", NeurIPS 2022.

    Args:
        x: [N, D].
        y: [M, D].
    """
    x, y = as_unit(x, "x").double(), as_unit(y, "y").double()
    check_same_width(x, y)
    return (x.mean(0) - y.mean(0)).norm().item()


def cone(x: Tensor) -> float:
    """Mean cosine of different samples of one modality; 0 when they point everywhere alike.

    The mean over all pairs i != j, exact, from the sum s of the vectors: `(s.s - N) / (N(N - 1))`.
    Liang et al., NeurIPS 2022 (the cone effect).

    Args:
        x: [N, D], N at least 2.
    """
    x = as_pairs(x)
    s, n = x.sum(0), len(x)
    return ((s @ s - x.square().sum()) / (n * (n - 1))).item()


def shift_gap(x: Tensor, y: Tensor, d: float) -> tuple[Tensor, Tensor]:
    """Moves two modalities along the line between their centres: d = 0 moves nothing.

    `x - d/2 * gap` and `y + d/2 * gap` with `gap = mean(x) - mean(y)`, brought back to unit norm;
    d = 1 makes the centres meet (before that), d < 0 widens the gap. Liang et al., NeurIPS 2022.

    Args:
        x: [N, D].
        y: [M, D].
        d: share of the gap to close.

    Returns:
        The shifted x [N, D] and y [M, D].
    """
    x, y = as_unit(x, "x"), as_unit(y, "y")
    check_same_width(x, y)
    if not math.isfinite(d):
        raise MMCLError(f"d must be finite; got {d}")
    half = d / 2 * (x.mean(0) - y.mean(0))
    return (
        as_unit(x - half, "the shifted x", smallest=1e-6),
        as_unit(y + half, "the shifted y", smallest=1e-6),
    )


def alignment(x: Tensor, y: Tensor) -> float:
    """Mean `||x_i - y_i||^2` over pairs, in [0, 4]; 0 when each pair is one point.

    Wang & Isola, ICML 2020.

    Args:
        x: [N, D].
        y: [N, D], row i the partner of row i of x.
    """
    x, y = as_unit(x, "x").double(), as_unit(y, "y").double()
    if x.shape != y.shape:
        raise ShapeError(f"expected pairs, [N, D] twice; got {described(x)} and {described(y)}")
    return (x - y).square().sum(1).mean().item()


def uniformity(x: Tensor, t: float = 2.0) -> float:
    """`log mean exp(-t ||x_i - x_j||^2)` over all pairs i != j; lower is more uniform.

    At most 0 (all one point); at least `-4t`, the value of two opposite points. Wang & Isola,
    ICML 2020.

    Args:
        x: [N, D], N at least 2.
        t: above 0.
    """
    x = as_pairs(x)
    if not 0 < t < math.inf:
        raise MMCLError(f"t must be above 0 and finite; got {t}")
    n = len(x)
    size = max(1, BLOCK // n)
    blocks = []
    for i in range(0, n, size):  # pairs i < j: they have the mean of all
        distances = 2 - 2 * (x[i : i + size] @ x[i:].T)
        exponents = -t * distances
        rows = torch.arange(len(exponents), device=x.device)
        columns = torch.arange(n - i, device=x.device)
        exponents.masked_fill_(columns <= rows[:, None], -math.inf)
        blocks.append(exponents.flatten().logsumexp(0))
    total = torch.stack(blocks).logsumexp(0).item()
    return total - math.log(n * (n - 1) / 2)
