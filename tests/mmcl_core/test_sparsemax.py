"""Sparsemax against a full sort, closed forms, its gradient's formula, and bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from mmcl_core.errors import MMCLError, ShapeError
from mmcl_core.sparsemax import _Sparsemax, sparsemax
from tests import reference


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def naive(scores: Tensor) -> Tensor:
    """From the sort, in float64; the largest score made 0, so that no digit is lost in sums."""
    scores = scores.double()
    return reference.sparsemax(scores - scores.detach().amax(-1, keepdim=True))


def with_gradient(function, scores: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = scores.detach().clone().requires_grad_()
    weights = function(leaf)
    return weights.detach(), torch.autograd.grad(weights, leaf, grad.to(weights))[0]


def is_dense(scores: Tensor) -> bool:
    """Whether the scores go the way without candidates of their own."""
    return _Sparsemax.apply(scores.clone().requires_grad_()).grad_fn.dense


@st.composite
def rows_of_scores(draw: st.DrawFn, ties: bool = True) -> Tensor:
    rows, columns, seed = draw(st.integers(1, 4)), draw(st.integers(1, 300)), draw(st.integers(0))
    scale = 10.0 ** draw(st.floats(-4, 4))
    scores = normal(rows, columns, seed=seed % 2**32)
    kinds = ["plain", "one dominates", "some cannot"] + ["ties", "equal"] * ties
    match draw(st.sampled_from(kinds)):
        case "ties":
            scores = (2 * scores).round() / 2
        case "equal":
            scores = scores[:, :1].expand(rows, columns)
        case "one dominates":
            scores[:, draw(st.integers(0, columns - 1))] += 5
        case "some cannot":
            scores[:, 1::2] = -torch.inf
    return scale * scores


# --- against the sort ------------------------------------------------------------------------


@given(rows_of_scores())
@settings(max_examples=150, deadline=None)
def test_it_is_the_projection(scores: Tensor) -> None:
    weights = sparsemax(scores)
    torch.testing.assert_close(weights, naive(scores), rtol=0, atol=1e-11)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(len(scores)).double(), rtol=0, atol=1e-12)


@given(rows_of_scores(ties=False), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_its_gradient_is_that_of_the_sort_and_of_the_formula(scores: Tensor, seed: int) -> None:
    grad = normal(*scores.shape, seed=seed)
    weights, got = with_gradient(sparsemax, scores, grad)
    _, expected = with_gradient(naive, scores, grad)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)
    for row in range(len(scores)):
        support = weights[row] > 0
        formula = torch.zeros_like(grad[row])
        formula[support] = grad[row, support] - grad[row, support].mean()
        torch.testing.assert_close(got[row], formula, rtol=0, atol=1e-12)


@pytest.mark.parametrize("columns", [2000, 2016, 5003])
@pytest.mark.parametrize("scale", [1e-4, 0.01, 0.1, 1.0, 100.0, 1e4])
def test_many_columns(columns: int, scale: float) -> None:
    scores, grad = scale * normal(3, columns), normal(3, columns, seed=1)
    got, expected = with_gradient(sparsemax, scores, grad), with_gradient(naive, scores, grad)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_both_ways_are_tested_here() -> None:
    """Few candidates, and many; where one row has many, all go that way."""
    few, many = normal(1, 200), 1e-3 * normal(1, 200)
    assert not is_dense(few)
    assert is_dense(many)
    assert is_dense(torch.cat([few, many]))
    assert is_dense(1e-4 * normal(3, 2000))
    assert not is_dense(normal(3, 2000))
    for scores in (few, many, torch.cat([few, many])):
        torch.testing.assert_close(sparsemax(scores), naive(scores), rtol=0, atol=1e-12)


# --- closed forms ----------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [-7.0, -1.0, -0.3, 0.0, 0.25, 0.999, 1.0, 3.0])
@pytest.mark.parametrize("others", [0, 100])
def test_two_scores(gap: float, others: int) -> None:
    """(1 + gap) / 2 and (1 - gap) / 2, cut to [0, 1], whatever lies far below them."""
    scores = torch.full((2 + others,), -9.0, dtype=torch.float64)
    scores[-2:] = torch.tensor([gap + 0.7, 0.7], dtype=torch.float64)
    expected = torch.zeros_like(scores)
    expected[-2:] = torch.tensor([(1 + gap) / 2, (1 - gap) / 2], dtype=torch.float64).clamp(0, 1)
    torch.testing.assert_close(sparsemax(scores), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("columns", [1, 2, 31, 32, 33, 1000])
@pytest.mark.parametrize("value", [-1e4, 0.0, 0.1, 1e4])
def test_equal_scores(columns: int, value: float) -> None:
    weights, gradient = with_gradient(
        sparsemax, torch.full((2, columns), value).double(), normal(2, columns)
    )
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / columns), rtol=1e-12, atol=0)
    expected = normal(2, columns) - normal(2, columns).mean(1, keepdim=True)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_a_score_at_the_threshold_has_no_weight() -> None:
    scores = torch.tensor([1.0, 0.0, 0.0, -1.0], dtype=torch.float64)
    assert sparsemax(scores).tolist() == [1, 0, 0, 0]
    assert sparsemax(torch.cat([scores, -9 * torch.ones(60)])).tolist() == [1] + 63 * [0]


# --- invariances -----------------------------------------------------------------------------


@given(rows_of_scores(), st.floats(-1e3, 1e3), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_a_shift_changes_nothing_and_an_order_is_kept(scores: Tensor, shift: float, random) -> None:
    weights = sparsemax(scores)
    torch.testing.assert_close(sparsemax(scores + shift), weights, rtol=0, atol=1e-10)
    order = list(range(scores.shape[1]))
    random.shuffle(order)
    torch.testing.assert_close(sparsemax(scores[:, order]), weights[:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("shape", [(3, 4, 5), (70, 2, 40), (2, 70, 1)])
def test_any_axis(shape: tuple[int, int, int], dim: int) -> None:
    scores, grad = normal(*shape), normal(*shape, seed=1)

    def expected(scores: Tensor) -> Tensor:
        return naive(scores.movedim(dim, -1)).movedim(-1, dim)

    for a, b in zip(
        with_gradient(lambda s: sparsemax(s, dim), scores, grad),
        with_gradient(expected, scores, grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert sparsemax(scores, dim).shape == shape


def test_strides_do_not_matter() -> None:
    for scores in (
        normal(300, 4).T,
        normal(4, 600)[:, ::2],
        normal(300).expand(4, 300),
        normal(4, 1).expand(4, 300),
        normal(2, 300, 2).movedim(1, 2),
        1e-3 * normal(2, 300, 2).movedim(1, 2),
    ):
        torch.testing.assert_close(sparsemax(scores), naive(scores), rtol=0, atol=1e-12)


# --- gradients -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "dense"),
    [(0.1 * normal(3, 7), True), (normal(2, 64), False), (0.01 * normal(2, 40), True)],
)
def test_first_and_second_derivative(scores: Tensor, dense: bool) -> None:
    assert is_dense(scores) == dense
    scores = scores.clone().requires_grad_()
    assert gradcheck(sparsemax, scores)
    assert gradgradcheck(sparsemax, scores)
    # A second derivative that is not zero: the weights squared.
    assert gradgradcheck(lambda s: sparsemax(s).square(), scores)


@pytest.mark.parametrize("columns", [8, 200])
def test_what_comes_back_outside_of_the_support_does_not_matter(columns: int) -> None:
    """Not even infinity, which the entropy of the weights sends there."""
    scores = 2 * normal(3, columns)
    grad = normal(3, columns, seed=1)
    support = sparsemax(scores) > 0
    assert not support.all(1).any()
    _, expected = with_gradient(sparsemax, scores, grad)
    _, got = with_gradient(sparsemax, scores, grad.masked_fill(~support, torch.inf))
    assert torch.equal(got, expected)


# --- precision -------------------------------------------------------------------------------


def wide(kind: str) -> Tensor:
    """Rows of 16,384 columns that are hard in float32."""
    scores = normal(4, 16_384, dtype=torch.float32)
    match kind:
        case "few":
            return scores
        case "hundreds":
            return 0.01 * scores
        case "dense":
            return 4e-5 * scores
        case "far":
            return 1e4 + 0.01 * scores
        case "one of them takes half":  # the threshold has 24 bits, the weights are 3e-5
            scores = torch.full_like(scores, -0.49997)
            scores[:, 77] = 0
            return scores
        case "one of them takes a part":
            scores = 1e-6 * scores - 0.7
            scores[:, 77] = 0
            return scores
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    ["few", "hundreds", "dense", "far", "one of them takes half", "one of them takes a part"],
)
def test_float32_at_16384_columns(kind: str) -> None:
    scores = wide(kind)
    weights, expected = sparsemax(scores).double(), naive(scores)
    assert float((weights.sum(1) - 1).abs().max()) < 1e-6
    assert float((weights - expected).abs().max()) < 1e-7


@pytest.mark.parametrize("kind", ["few", "hundreds", "dense", "one of them takes half"])
def test_the_float32_gradient_has_no_part_along_a_shift(kind: str) -> None:
    scores, grad = wide(kind), normal(4, 16_384, seed=1, dtype=torch.float32)
    weights, gradient = with_gradient(sparsemax, scores, grad)
    assert not gradient[weights == 0].any()
    assert float(gradient.double().sum(1).abs().max()) < 1e-6 * float(gradient.abs().sum(1).max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_half_precision_is_computed_and_returned_in_float32(
    dtype: torch.dtype, scale: float
) -> None:
    scores = (scale * normal(4, 16_384)).to(dtype)
    grad = normal(4, 16_384, seed=1, dtype=torch.float32)
    weights, gradient = with_gradient(sparsemax, scores, grad)
    expected, expected_gradient = with_gradient(sparsemax, scores.float(), grad)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, expected)
    assert float((weights.double().sum(1) - 1).abs().max()) < 1e-6
    assert gradient.dtype == dtype
    assert torch.equal(gradient, expected_gradient.to(dtype))


def test_the_sort_in_bfloat16_loses_or_gains_weight() -> None:
    """Why it is computed in float32. All scores above 0, as after max pooling."""
    scores = (0.02 + 0.001 * normal(4, 16_384)).bfloat16()
    assert float((reference.sparsemax(scores).double().sum(1) - 1).abs().min()) > 0.04


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_no_bit(dtype: torch.dtype) -> None:
    scores, grad = normal(4, 500).to(dtype), normal(4, 500, seed=1, dtype=torch.float32)
    expected = with_gradient(sparsemax, scores, grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = with_gradient(sparsemax, scores, grad)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert got[0].dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_cuda_gives_what_the_cpu_gives(scale: float) -> None:
    scores, grad = scale * normal(5, 3000), normal(5, 3000, seed=1)
    expected = with_gradient(sparsemax, scores, grad)
    got = with_gradient(sparsemax, scores.cuda(), grad.cuda())
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-12)


# --- input that is empty, or cannot be used --------------------------------------------------


def test_no_rows() -> None:
    scores = torch.zeros(0, 5, requires_grad=True)
    weights = sparsemax(scores)
    assert weights.shape == (0, 5)
    weights.sum().backward()
    assert scores.grad is not None
    assert scores.grad.shape == (0, 5)
    assert sparsemax(torch.zeros(3, 0, 2), dim=0).shape == (3, 0, 2)


def test_minus_infinity_has_no_weight() -> None:
    scores = normal(3, 90)
    scores[:, ::3] = -torch.inf
    weights, gradient = with_gradient(sparsemax, scores, normal(3, 90, seed=1))
    finite = scores[0].isfinite()
    torch.testing.assert_close(weights[:, finite], naive(scores[:, finite]), rtol=0, atol=1e-12)
    assert not weights[:, ~finite].any()
    assert not gradient[:, ~finite].any()
    only = torch.full((2, 50), -torch.inf)
    only[:, 7] = -3
    assert sparsemax(only)[:, 7].tolist() == [1, 1]


@pytest.mark.parametrize("columns", [3, 100])
@pytest.mark.parametrize(
    ("value", "where", "what"),
    [
        (float("nan"), 1, "NaN"),
        (float("inf"), 1, "+inf"),
        (-float("inf"), slice(None), "nothing but -inf"),
    ],
)
def test_scores_that_have_no_projection(columns: int, value: float, where, what: str) -> None:
    scores = normal(6, columns)
    scores[2, where] = scores[4, where] = value
    with pytest.raises(MMCLError) as caught:
        sparsemax(scores)
    assert str(caught.value) == (
        "sparsemax: expected finite scores, or some -inf among them; 2 of 6 rows hold others, "
        f"the first is row 2 with {what}."
    )


@pytest.mark.parametrize(
    ("scores", "dim", "message"),
    [
        (torch.arange(4), -1, r"floating-point numbers, got torch\.int64"),
        (torch.zeros(3, 0), -1, r"at least one number along axis -1, got the shape \[3, 0\]"),
        (torch.zeros(3, 4), 2, r"along axis 2, got the shape \[3, 4\]"),
        (torch.zeros(3, 4), -3, r"along axis -3, got the shape \[3, 4\]"),
        (torch.tensor(1.0), -1, r"along axis -1, got the shape \[\]"),
    ],
)
def test_bad_shapes(scores: Tensor, dim: int, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        sparsemax(scores, dim)
