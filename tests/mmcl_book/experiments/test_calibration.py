"""Calibration against a loop over samples and bins, and classifiers whose error is known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmcl_book.experiments.calibration import calibration
from mmcl_core.errors import MMCLError, ShapeError

sizes = settings(max_examples=60, deadline=None, derandomize=True)
SURE = 1000.0  # nats; in float64 the softmax of (1000, 0) is exactly (1, 0)


def naive(logits: Tensor, labels: Tensor, bins: int) -> tuple[float, float, float]:
    """Accuracy, confidence and error; bin b holds what is above b / bins, up to (b + 1) / bins."""
    inside: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        largest = max(row)
        sure = 1 / math.fsum(math.exp(v - largest) for v in row)
        at = next(b for b in range(bins) if sure <= (b + 1) / bins)
        inside[at].append((sure, row.index(largest) == label))
    everything = [sample for samples in inside for sample in samples]
    error = 0.0
    for samples in inside:
        if samples:
            accuracy = sum(right for _, right in samples) / len(samples)
            confidence = math.fsum(sure for sure, _ in samples) / len(samples)
            error += len(samples) / len(everything) * abs(accuracy - confidence)
    n = len(everything)
    return sum(right for _, right in everything) / n, sum(s for s, _ in everything) / n, error


@sizes
@given(
    st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 6), st.integers(1, 20),
    st.floats(0.1, 10),
)  # fmt: skip
def test_calibration_is_the_loop_over_bins(seed, n, classes, bins, scale):
    g = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=g)
    labels = torch.randint(classes, (n,), generator=g)
    found = calibration(logits, labels, bins=bins)
    accuracy, confidence, error = naive(logits, labels, bins)
    assert found.accuracy == accuracy
    assert found.confidence == pytest.approx(confidence, abs=1e-12)
    assert found.error == pytest.approx(error, abs=1e-12)
    # |the mean| is at most the mean of |...|; one bin has both the same.
    assert found.error >= abs(accuracy - confidence) - 1e-12
    assert calibration(logits, labels, bins=1).error == pytest.approx(abs(accuracy - confidence))
    order = torch.randperm(n, generator=g)
    again = calibration(logits[order] + 7.5, labels[order], bins=bins)
    assert again.error == pytest.approx(error, abs=1e-6)


def test_there_are_fifteen_bins_unless_told_otherwise():
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(200, 3, generator=g)
    labels = logits.softmax(1).multinomial(1, generator=g)[:, 0]
    errors = {bins: naive(logits, labels, bins)[2] for bins in (10, 14, 15, 16, 20)}
    assert calibration(logits, labels).error == pytest.approx(errors[15])
    assert len({round(error, 6) for error in errors.values()}) == 5


# (right, all): most are right, so that what they are sure of is what is predicted.
most = st.tuples(st.integers(1, 20), st.integers(0, 19)).map(lambda t: (sum(t), sum(t) + t[1]))


@sizes
@given(st.lists(most), st.integers(1, 30))
def test_who_is_as_sure_as_right_has_no_error(groups, bins):
    """Of n samples that are sure by a / n, a are right."""
    logits, labels = [[SURE, 0.0]], [0]
    for right, n in groups:
        wrong = math.log(n - right) if right < n else -SURE
        logits += n * [[math.log(right), wrong]]
        labels += right * [0] + (n - right) * [1]
    found = calibration(torch.tensor(logits, dtype=torch.float64), torch.tensor(labels), bins=bins)
    assert found.error == pytest.approx(0, abs=1e-12)
    assert found.confidence == pytest.approx(found.accuracy)


@pytest.mark.parametrize("right", [0, 3, 10])
@pytest.mark.parametrize("bins", [1, 2, 15])
def test_who_is_always_sure_errs_by_the_share_of_wrong_answers(right, bins):
    """A confidence of exactly 1 lies in the last bin, not beyond it."""
    logits = torch.tensor([[0.0, SURE, 0.0]]).expand(10, 3)
    labels = torch.tensor(right * [1] + (10 - right) * [2])
    found = calibration(logits, labels, bins=bins)
    assert (found.accuracy, found.confidence) == (right / 10, 1.0)
    assert found.error == pytest.approx(1 - right / 10)


@pytest.mark.parametrize("equal", [2, 3, 4, 5])
def test_a_bin_holds_its_upper_edge(equal):
    """Sure by 1 / equal and wrong, on the edge of the first two bins; above it, one is right."""
    edge = [0.0] * equal + [-SURE] * (6 - equal)
    above = [math.log(2 * equal - 1)] + [0.0] * (equal - 1) + [-SURE] * (6 - equal)
    logits = torch.tensor([edge, above], dtype=torch.float64)
    sure = (2 * equal - 1) / (3 * equal - 2)
    assert 1 / equal < sure <= 1
    found = calibration(logits, torch.tensor([5, 0]), bins=equal)
    # Together in one bin, their differences would cancel.
    assert found.error == pytest.approx((1 / equal + (1 - sure)) / 2)


X, Y = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("logits", "labels", "bins", "error", "message"),
    [
        (X, Y + 1, 15, ShapeError, r"labels \[4\] from 0 to 2; got \[4\] up to 3"),
        (X, Y - 1, 15, ShapeError, "labels: expected classes 0, 1"),
        (X, Y + 0.5, 15, ShapeError, "labels: expected classes"),
        (X, Y[:3], 15, ShapeError, r"labels: .*\[4\].*\[3\]"),
        (X, Y[:, None] % 2, 15, ShapeError, r"got \[4, 1\]"),
        (X, Y.tolist(), 15, ShapeError, "labels: expected a tensor; got list"),
        (X[0], Y, 15, ShapeError, r"logits: expected floats \[N, D\]"),
        (X.long(), Y, 15, ShapeError, "logits: expected floats"),
        (X[:0], Y[:0], 15, ShapeError, "logits: .*not empty"),
        (X / 0, Y, 15, ShapeError, "logits: expected finite"),
        (X, Y, 0, MMCLError, "bins must be a whole number, at least 1; got 0"),
    ],
)
def test_calibration_refuses(logits, labels, bins, error, message):
    with pytest.raises(error, match=message):
        calibration(logits, labels, bins=bins)
