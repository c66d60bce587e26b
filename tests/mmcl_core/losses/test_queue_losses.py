"""The losses against a queue: naive loops, closed forms, float64, and bad input."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from mmcl_core.errors import MMCLError, ShapeError
from mmcl_core.losses import info_nce, queue_hinge, queue_info_nce
from tests import reference
from tests.compare import assert_same, pairs, scalar, unit, value_and_gradients

Batch = tuple[Tensor, Tensor, Tensor, Tensor | None]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Queries [B, D], own keys [B, D], a queue [K, D], and perhaps marks [B, K]."""
    size, length, width = draw(st.integers(1, 6)), draw(st.integers(1, 8)), draw(st.integers(1, 6))
    seed = draw(st.integers(0, 10_000))
    marks = None
    if draw(st.booleans()):
        flags = st.lists(st.booleans(), min_size=size * length, max_size=size * length)
        marks = torch.tensor(draw(flags)).view(size, length)
    q, k = unit(size, width, seed), unit(size, width, seed + 1)
    return q, k, unit(length, width, seed + 2), marks


def as_lists(marks: Tensor | None) -> list[list[bool]] | None:
    return None if marks is None else marks.tolist()


def cross_entropy(q: Tensor, k: Tensor, queue: Tensor, t: Tensor, marks: Tensor) -> Tensor:
    """As code for MoCo has it: own key and queue side by side, and the target shared evenly."""
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / t
    target = F.pad(marks, (1, 0), value=True).to(q)
    return F.cross_entropy(logits, target / target.sum(1, keepdim=True))


# --- against the loops ----------------------------------------------------------------------------


@given(batches(), st.floats(0.01, 10.0))
@settings(max_examples=50, deadline=None)
def test_queue_info_nce_is_the_formula(batch: Batch, temperature: float) -> None:
    q, k, queue, marks = batch
    expected = reference.queue_info_nce(q, k, queue, temperature, as_lists(marks))
    got = queue_info_nce(q, k, queue, temperature, queue_positives=marks)
    assert got.shape == ()
    assert float(got) == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert float(got) >= -1e-12


@given(batches(), st.floats(0.0, 3.0))
@settings(max_examples=50, deadline=None)
def test_queue_hinge_is_the_formula(batch: Batch, margin: float) -> None:
    q, k, queue, marks = batch
    expected = reference.queue_hinge(q, k, queue, margin, as_lists(marks))
    got = queue_hinge(q, k, queue, margin, queue_positives=marks)
    assert got.shape == ()
    assert float(got) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@given(batches(), st.floats(0.05, 5.0))
@settings(max_examples=30, deadline=None)
def test_value_and_gradients_are_those_of_a_cross_entropy(batch: Batch, temperature: float) -> None:
    q, k, queue, marks = batch
    inputs = (q, k, queue, scalar(temperature))
    got = value_and_gradients(lambda *t: queue_info_nce(*t, queue_positives=marks), *inputs)
    targets = torch.zeros(len(q), len(queue), dtype=torch.bool) if marks is None else marks
    expected = value_and_gradients(lambda *t: cross_entropy(*t, targets), *inputs)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


# --- closed forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 3, 100])
@pytest.mark.parametrize("share", [None, 0.0, 0.5, 1.0])
def test_orthogonal_keys_give_the_loss_of_guessing(length: int, share: float | None) -> None:
    """Query orthogonal to all keys: log(K + 1), whichever of them are positives."""
    q = torch.eye(6, dtype=torch.float64)[:2]
    k, queue = torch.eye(6, dtype=torch.float64)[2:4], torch.zeros(length, 6, dtype=torch.float64)
    queue[:, 4:] = unit(length, 2, 0)
    marks = None if share is None else torch.rand(2, length) < share
    got = queue_info_nce(q, k, queue, 0.07, queue_positives=marks)
    assert float(got) == pytest.approx(math.log(length + 1), rel=1e-12)


def test_own_key_found_among_orthogonal_ones() -> None:
    """log(1 + K e^{-1/T}); with the whole queue as positives, log(e^{1/T} + K) - 1/(T (K + 1))."""
    eye = torch.eye(7, dtype=torch.float64)
    q, queue = eye[:2], eye[2:]
    assert float(queue_info_nce(q, q, queue, 0.25)) == pytest.approx(
        math.log1p(5 * math.exp(-4)), rel=1e-12
    )
    everything = torch.ones(2, 5, dtype=torch.bool)
    got = queue_info_nce(q, q, queue, 0.25, queue_positives=everything)
    assert float(got) == pytest.approx(math.log(math.exp(4) + 5) - 4 / 6, rel=1e-12)


def test_a_second_own_key_in_the_queue_is_no_negative() -> None:
    """q = k = the marked key, K - 1 others orthogonal: log(2 + (K - 1) e^{-1/T})."""
    eye = torch.eye(6, dtype=torch.float64)
    marks = torch.tensor([[True, False, False, False]])
    got = queue_info_nce(eye[:1], eye[:1], eye[[0, 1, 2, 3]], 0.2, queue_positives=marks)
    assert float(got) == pytest.approx(math.log(2 + 3 * math.exp(-5)), rel=1e-12)


def test_one_query_with_the_others_as_queue_is_in_batch_info_nce() -> None:
    q, k = unit(5, 4, 0), unit(5, 4, 1)
    others = [[j for j in range(5) if j != i] for i in range(5)]
    each = [queue_info_nce(q[i : i + 1], k[i : i + 1], k[others[i]], 0.1) for i in range(5)]
    torch.testing.assert_close(torch.stack(each).mean(), info_nce(q, k, 0.1))


def test_marking_nothing_changes_nothing() -> None:
    q, k, queue = unit(4, 3, 0), unit(4, 3, 1), unit(6, 3, 2)
    nothing = torch.zeros(4, 6, dtype=torch.bool)
    for loss in (queue_info_nce, queue_hinge):
        plain, marked = loss(q, k, queue, 0.3), loss(q, k, queue, 0.3, queue_positives=nothing)
        torch.testing.assert_close(marked, plain, rtol=1e-14, atol=0)


def test_hinge_of_orthogonal_keys() -> None:
    """Own key at 1 and others at 0: nothing within a margin of 1, and the rest of it beyond."""
    eye = torch.eye(7, dtype=torch.float64)
    q, queue = eye[:2], eye[2:]
    assert float(queue_hinge(q, q, queue, 1.0)) == 0
    assert float(queue_hinge(q, q, queue, 1.25)) == 0.25
    assert float(queue_hinge(q, queue[:2], queue, 0.2)) == pytest.approx(0.2, rel=1e-12)
    everything = torch.ones(2, 5, dtype=torch.bool)
    leaf = q.clone().requires_grad_()
    none_left = queue_hinge(leaf, q, queue, 1.25, queue_positives=everything)
    none_left.backward()
    assert float(none_left.detach()) == 0
    assert torch.equal(leaf.grad, torch.zeros_like(q))


def test_hinge_divides_by_the_negatives_of_each_query() -> None:
    """Two queries with 1 and 4 negatives, all of them over by 0.5: each counts alike."""
    eye = torch.eye(8, dtype=torch.float64)
    marks = torch.tensor([[False, True, True, True], [False, False, False, False]])
    got = queue_hinge(eye[:2], eye[:2], eye[4:], 1.5, queue_positives=marks)
    assert float(got) == pytest.approx(0.5, rel=1e-12)


# --- gradients ------------------------------------------------------------------------------------

MARKS = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)


@pytest.mark.parametrize("marks", [None, MARKS], ids=["plain", "positives"])
def test_gradients_of_queue_info_nce(marks: Tensor | None) -> None:
    inputs = [unit(3, 4, 0), unit(3, 4, 1), unit(5, 4, 2), scalar(0.4)]
    inputs = [t.requires_grad_() for t in inputs]
    loss = lambda *t: queue_info_nce(*t, queue_positives=marks)  # noqa: E731
    assert gradcheck(loss, inputs)
    assert gradgradcheck(loss, inputs)


@pytest.mark.parametrize("marks", [None, MARKS], ids=["plain", "positives"])
def test_gradients_of_queue_hinge(marks: Tensor | None) -> None:
    inputs = [unit(3, 4, 0), unit(3, 4, 1), unit(5, 4, 2)]
    inputs = [t.requires_grad_() for t in inputs]
    loss = lambda *t: queue_hinge(*t, 0.3, queue_positives=marks)  # noqa: E731
    gradients = torch.autograd.grad(loss(*inputs), inputs)
    assert all(g.abs().max() > 0.01 for g in gradients)  # or there is nothing to check
    assert gradcheck(loss, inputs)
    assert gradgradcheck(loss, inputs)


# --- symmetries -----------------------------------------------------------------------------------


@given(batches(), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_order_of_samples_and_of_the_queue_does_not_matter(batch: Batch, random) -> None:
    q, k, queue, marks = batch
    rows, columns = list(range(len(q))), list(range(len(queue)))
    random.shuffle(rows)
    random.shuffle(columns)
    moved = None if marks is None else marks[rows][:, columns]
    for loss in (queue_info_nce, queue_hinge):
        value = loss(q, k, queue, 0.3, queue_positives=marks)
        other = loss(q[rows], k[rows], queue[columns], 0.3, queue_positives=moved)
        torch.testing.assert_close(other, value, rtol=1e-10, atol=1e-12)


# --- extremes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [1.5, 3.0, 30.0], ids=lambda n: f"noise{n:g}")
@pytest.mark.parametrize("marked", [False, True])
def test_temperature_of_a_thousandth_in_float32(noise: float, marked: bool) -> None:
    """Finite, and within 1e-4 of float64 on the same embeddings; see the test of `clip_loss`."""
    q, k = pairs(50, 16, seed=4, noise=noise, dtype=torch.float32)
    queue = unit(300, 16, 9, torch.float32)
    generator = torch.Generator().manual_seed(0)
    marks = torch.rand(50, 300, generator=generator) < 0.1
    kwargs = {"queue_positives": marks} if marked else {}
    inputs = (q, k, queue, scalar(1e-3, torch.float32))
    got = value_and_gradients(lambda *t: queue_info_nce(*t, **kwargs), *inputs)
    exact = value_and_gradients(
        lambda *t: cross_entropy(*t, marks & marked), *(t.double() for t in inputs)
    )
    assert float(exact[0]) > 1e-3  # otherwise there is nothing to compare
    assert_same(got, exact, 1e-4)


def test_hopeless_and_perfect_keys_at_the_extreme() -> None:
    """The own key 2048 below a negative, then 1024 above all: exact numbers, no overflow."""
    q = torch.eye(4)
    value, *gradients = value_and_gradients(lambda *t: queue_info_nce(*t, 2**-10), q, -q, q)
    assert float(value) == 2048.0
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients)
    value, *gradients = value_and_gradients(lambda *t: queue_info_nce(*t, 2**-10), q, q, -q)
    assert float(value) == 0.0
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)
    every = torch.ones(4, 4, dtype=torch.bool)
    value, *gradients = value_and_gradients(
        lambda *t: queue_info_nce(*t, 2**-10, queue_positives=every), q, -q, q
    )  # of the five logits, one is 1024 and one is -1024
    assert float(value) == 1024.0
    assert all(g.isfinite().all() for g in gradients)


def test_tiny_losses_are_kept() -> None:
    """1 - p of 1e-10, where float32 rounds p to 1: value and gradient are still there."""
    eye = torch.eye(8)
    value, gradient, *_ = value_and_gradients(
        lambda *t: queue_info_nce(*t, 1 / 25), eye[:1], eye[:1], eye[1:]
    )
    assert float(value) == pytest.approx(math.log1p(7 * math.exp(-25)), rel=1e-5)
    assert float(gradient[0, 1]) == pytest.approx(25 * math.exp(-25), rel=1e-5)


@pytest.mark.parametrize("logit", [19.9, 20.1, 25.0])
def test_large_losses_are_exact_in_float64(logit: float) -> None:
    """log(1 + e^x) and its slope, also where e^-x is only in the last digits."""
    q, k = torch.eye(2, dtype=torch.float64)[:1], torch.eye(2, dtype=torch.float64)[1:]
    value, gradient, *_ = value_and_gradients(
        lambda *t: queue_info_nce(*t, 1 / logit), q, k, q.clone()
    )
    assert float(value) - logit == pytest.approx(math.log1p(math.exp(-logit)), abs=1e-14)
    assert float(gradient[0, 0]) == pytest.approx(logit / (1 + math.exp(-logit)), rel=1e-14)


# --- types, autocast, devices ---------------------------------------------------------------------

LOTS = torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) < 0.2
LOSSES = [
    pytest.param(lambda *t: queue_info_nce(*t, 0.05), id="info_nce"),
    pytest.param(lambda *t: queue_info_nce(*t, 0.05, queue_positives=LOTS), id="positives"),
    pytest.param(lambda *t: queue_hinge(*t, 0.2), id="hinge"),
    pytest.param(lambda *t: queue_hinge(*t, 0.2, queue_positives=LOTS), id="hinge_positives"),
]


def inputs(dtype: torch.dtype) -> list[Tensor]:
    return [unit(20, 16, 0, dtype), unit(20, 16, 1, dtype), unit(30, 16, 2, dtype)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype: torch.dtype) -> None:
    value, *gradients = value_and_gradients(loss, *inputs(dtype))
    expected = value_and_gradients(loss, *(t.float() for t in inputs(dtype)))
    assert value.dtype == torch.float32
    assert torch.equal(value, expected[0])
    for got, exact in zip(gradients, expected[1:], strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, exact.to(dtype))


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_changes_no_bit(loss) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(*inputs(torch.float32))
    assert torch.equal(inside, loss(*inputs(torch.float32)))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_queue_of_another_type_is_converted(loss) -> None:
    q, k, queue = inputs(torch.bfloat16)
    wide = loss(q.float(), k.float(), queue)
    assert wide.dtype == torch.float32
    assert torch.equal(wide, loss(q.float(), k.float(), queue.float()))
    assert torch.equal(loss(q, k, queue.float()), loss(q, k, queue))


def test_temperature_as_number_or_as_tensor_of_another_type() -> None:
    q, k, queue = inputs(torch.float64)
    temperature = scalar(0.25, torch.float32).requires_grad_()
    as_tensor = queue_info_nce(q, k, queue, temperature)
    assert torch.equal(queue_info_nce(q, k, queue, 0.25), as_tensor)
    as_tensor.backward()
    assert temperature.grad.dtype == torch.float32
    _, exact = value_and_gradients(lambda t: queue_info_nce(q, k, queue, t), scalar(0.25))
    assert float(temperature.grad) == pytest.approx(float(exact), rel=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("marks", [None, LOTS], ids=["plain", "positives"])
def test_cuda_gives_the_value_and_gradients_of_the_cpu(marks: Tensor | None) -> None:
    there = None if marks is None else marks.cuda()
    for loss in (queue_info_nce, queue_hinge):
        here = inputs(torch.float64)
        expected = value_and_gradients(lambda *t, f=loss: f(*t, 0.2, queue_positives=marks), *here)
        moved = [t.cuda() for t in here]
        got = value_and_gradients(lambda *t, f=loss: f(*t, 0.2, queue_positives=there), *moved)
        assert_same([t.cpu() for t in got], expected, 1e-9)


# --- bad input ------------------------------------------------------------------------------------

GOOD = unit(6, 4, 1, torch.float32)
QUEUE = unit(9, 4, 2, torch.float32)
NAN, INF = float("nan"), float("inf")


def spoilt(values: Tensor, value: float, row: int, column: slice | int = 2) -> Tensor:
    values = values.clone()
    values[row, column] = value
    return values


@pytest.mark.parametrize("loss", [queue_info_nce, queue_hinge])
@pytest.mark.parametrize(
    ("queries", "positives", "queue", "error", "message"),
    [
        (GOOD[0], GOOD, QUEUE, ShapeError, r"^queries must have shape \[B, D\], got \[4\]"),
        (GOOD, GOOD[None], QUEUE, ShapeError, r"^positives must have shape .* got \[1, 6, 4\]"),
        (GOOD, GOOD, QUEUE[0], ShapeError, r"must be \[K, 4\] on cpu.*got \[4\] on cpu"),
        (GOOD, GOOD[:5], QUEUE, ShapeError, r"^queries and positives .*\[6, 4\] and \[5, 4\]"),
        (GOOD, GOOD.double(), QUEUE, ShapeError, "one type, got torch.float32 and torch.float64"),
        (GOOD, GOOD.to("meta"), QUEUE, ShapeError, "on one device, got cpu and meta"),
        (GOOD.long(), GOOD.long(), QUEUE, ShapeError, "floating-point numbers, got torch.int64"),
        (GOOD, GOOD, QUEUE.long(), ShapeError, "^queue must hold floating-point numbers"),
        (GOOD[:0], GOOD[:0], QUEUE, ShapeError, r"empty, of shape \[0, 4\].*at least 1 samples"),
        (GOOD[:, :0], GOOD[:, :0], QUEUE, ShapeError, r"empty, of shape \[6, 0\]"),
        (GOOD, GOOD, QUEUE[:0], ShapeError, r"^queue are empty, of shape \[0, 4\]"),
        (GOOD, GOOD, QUEUE[:, :3], ShapeError, r"must be \[K, 4\] on cpu.*got \[9, 3\] on cpu"),
        (GOOD, GOOD, QUEUE.to("meta"), ShapeError, r"must be \[K, 4\] on cpu.* on meta"),
        (spoilt(GOOD, NAN, 3), GOOD, QUEUE, MMCLError, "^queries: 1 of 6 rows hold NaN.* row 3"),
        (GOOD, spoilt(GOOD, -INF, 2), QUEUE, MMCLError, "^positives: 1 of 6 .* is row 2"),
        (GOOD, GOOD, spoilt(QUEUE, NAN, 7), MMCLError, "^queue: 1 of 9 rows hold NaN.* row 7"),
        (
            spoilt(GOOD, 0.0, 1, slice(None)),
            GOOD,
            QUEUE,
            MMCLError,
            "^queries: 1 of 6 rows are zero vectors.* is row 1",
        ),
        (
            GOOD,
            GOOD,
            spoilt(QUEUE, 0.0, 0, slice(None)),
            MMCLError,
            "^queue: 1 of 9 rows are zero vectors.* is row 0",
        ),
    ],
)
def test_bad_embeddings(
    loss, queries: Tensor, positives: Tensor, queue: Tensor, error: type[MMCLError], message: str
) -> None:
    with pytest.raises(error, match=message):
        loss(queries, positives, queue, 0.1)


@pytest.mark.parametrize("loss", [queue_info_nce, queue_hinge])
@pytest.mark.parametrize(
    ("marks", "message"),
    [
        (torch.zeros(6, 8, dtype=torch.bool), r"bool of shape \[6, 9\].* shape \[6, 8\]"),
        (torch.zeros(9, dtype=torch.bool), r"bool of shape \[6, 9\].* shape \[9\]"),
        (torch.zeros(6, 9), r"bool of shape \[6, 9\].* got torch.float32"),
        (torch.zeros(6, 9, dtype=torch.bool, device="meta"), "device of the queries, cpu.* meta"),
    ],
)
def test_bad_marks(loss, marks: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        loss(GOOD, GOOD, QUEUE, 0.1, queue_positives=marks)


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, INF])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_bad_temperature(value: float, as_tensor: bool) -> None:
    message = re.escape(f"temperature must be positive and finite, got {value}")
    with pytest.raises(MMCLError, match=message):
        queue_info_nce(GOOD, GOOD, QUEUE, torch.tensor(value) if as_tensor else value)


def test_temperature_of_one_element_is_not_a_scalar() -> None:
    with pytest.raises(ShapeError, match=r"temperature must be a number or .*, got \[1\]"):
        queue_info_nce(GOOD, GOOD, QUEUE, torch.tensor([0.1]))


@pytest.mark.parametrize("value", [-0.1, NAN, INF])
def test_bad_margin(value: float) -> None:
    with pytest.raises(MMCLError, match=f"margin must be .*finite, got {value}"):
        queue_hinge(GOOD, GOOD, QUEUE, value)
