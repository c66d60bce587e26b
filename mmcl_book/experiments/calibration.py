"""Calibration: whether a classifier is as sure as it is right."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmcl_core.errors import ShapeError, check_count
from mmcl_core.evaluation.checks import as_labels, as_matrix


@dataclass(frozen=True)
class Calibration:
    """How sure a classifier is, beside how often it is right; all in [0, 1].

    Attributes:
        accuracy: share of right predictions.
        confidence: mean probability of the class that is predicted.
        error: the expected calibration error.
    """

    accuracy: float
    confidence: float
    error: float


def calibration(logits: Tensor, labels: Tensor, *, bins: int = 15) -> Calibration:
    """Confidence, accuracy and the expected calibration error, ECE.

    Predictions are put into bins of equal width by their confidence; the error is the mean over
    bins of `|accuracy - confidence|`, weighted by the number of samples (Guo et al., "On
    Calibration of Modern Neural Networks", ICML 2017, Eq. 3).

    Args:
        logits: float [N, C].
        labels: int64 [N] from 0 to C - 1.
        bins: number of bins, at least 1.

    Raises:
        ShapeError: shapes or values that do not fit.
        MMCLError: no bins.
    """
    x = as_matrix(logits, "logits").double().cpu()
    y = as_labels(labels, x, "labels")
    if y.ndim != 1 or y.max() >= x.shape[1]:
        raise ShapeError(
            f"expected labels [{len(x)}] from 0 to {x.shape[1] - 1}; got {list(y.shape)} up to "
            f"{int(y.max())}"
        )
    bins = check_count("bins", bins)
    sure, predicted = x.softmax(dim=1).max(dim=1)
    right = (predicted == y).double()
    # A bin holds its upper edge: a confidence of 1 is in the last one.
    at = ((sure * bins).ceil().long() - 1).clamp(0, bins - 1)
    difference = torch.zeros(bins, dtype=torch.float64).index_add_(0, at, right - sure)
    error = difference.abs().sum().item() / len(x)
    return Calibration(right.mean().item(), sure.mean().item(), error)
