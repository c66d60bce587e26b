"""Linear probes: what a linear classifier reads from frozen features."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmcl_core.errors import ShapeError, check_count, check_number
from mmcl_core.evaluation.checks import as_labels, as_matrix, check_classes


@dataclass(frozen=True, eq=False)
class Probe:
    """What a linear classifier reads from frozen features.

    Attributes:
        accuracy: share of the test labels that it tells; with several columns, their mean.
        chance: accuracy of always naming the commonest test label; likewise.
        predictions: of the test samples, int64 [N] or [N, T].
        converged: whether the solver ended by itself, and not at `max_iter`.
    """

    accuracy: float
    chance: float
    predictions: Tensor = field(repr=False)
    converged: bool


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    C: float = 1.0,
    max_iter: int = 1000,
) -> Probe:
    """Fits a logistic regression on frozen features and tests it.

    Features are brought to mean 0 and variance 1 on the training set; a constant one is left at 0.
    The solver is scikit-learn's L-BFGS in float64: deterministic.

    Args:
        train_x: float [N, D].
        train_y: int64 [N], a class for each sample; or [N, T] of 0 and 1, and then each column has
            a probe of its own.
        test_x: float [M, D].
        test_y: int64 [M] or [M, T].
        C: inverse strength of the L2 penalty, above 0.
        max_iter: the most iterations of the solver.

    Raises:
        ShapeError: shapes that do not fit, empty, or not finite.
        MMCLError: fewer than two classes to train on, test labels that training lacks, or C not
            above 0.
    """
    x, test = (
        as_matrix(train_x, "train_x").double().cpu(),
        as_matrix(test_x, "test_x").double().cpu(),
    )
    y, truth = as_labels(train_y, x, "train_y"), as_labels(test_y, test, "test_y")
    if x.shape[1] != test.shape[1] or y.shape[1:] != truth.shape[1:]:
        raise ShapeError(
            "expected features and labels of one width in training and test; got "
            f"{list(x.shape)}, {list(y.shape)} and {list(test.shape)}, {list(truth.shape)}"
        )
    check_classes(y, truth)
    predict, converged = fit_probe(x, y, C, max_iter)
    predictions = predict(test)
    accuracy = (predictions == truth).double().mean().item()
    return Probe(accuracy, chance_of(truth), predictions, converged)


def fit_probe(
    x: Tensor, y: Tensor, C: float, max_iter: int
) -> tuple[Callable[[Tensor], Tensor], bool]:
    """A logistic regression for each column of labels.

    Args:
        x: [N, D].
        y: int64 [N] or [N, T].

    Returns:
        What predicts the labels of other features, [M, D] -> int64 [M] or [M, T]; and whether the
        solver converged.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    C, max_iter = check_number("C", C, "(0, inf)"), check_count("max_iter", max_iter)
    x = x.double().cpu()
    mean, std = x.mean(0), x.std(0, correction=0)
    # A constant column differs from its mean by rounding only: do not blow that up.
    scale = torch.where(std > 1e-12 * (1 + mean.abs()), 1 / std, 0.0)

    def standardised(features: Tensor) -> Any:
        return ((features.double().cpu() - mean) * scale).numpy()

    # One thread: for matrices this small, waiting for each other costs threads more (up to a
    # hundredfold on a busy machine) than they gain.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by `converged`
        known = standardised(x)
        models = [
            LogisticRegression(C=C, max_iter=max_iter).fit(known, column.numpy())
            for column in (y.T if y.ndim == 2 else [y])
        ]

    def predict(features: Tensor) -> Tensor:
        asked = standardised(features)
        with threadpool_limits(1):
            columns = [torch.from_numpy(model.predict(asked)) for model in models]
        return torch.stack(columns, dim=1) if y.ndim == 2 else columns[0]

    return predict, all(bool(model.n_iter_.max() < max_iter) for model in models)


def chance_of(truth: Tensor) -> float:
    """Accuracy of always naming the commonest label, mean over columns."""
    columns = truth.reshape(len(truth), -1).T
    return sum(column.bincount().max().item() / len(truth) for column in columns) / len(columns)
