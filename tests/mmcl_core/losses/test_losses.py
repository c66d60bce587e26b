"""The losses against naive forms, closed forms, float64, and bad input."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from mmcl_core.errors import MMCLError, ShapeError
from mmcl_core.losses import (
    clip,
    clip_loss,
    gmc_loss,
    info_nce,
    queue_hinge,
    queue_info_nce,
    siglip_loss,
)
from tests import reference
from tests.compare import assert_same, pairs, scalar, unit, value_and_gradients

sizes = st.integers(2, 9)
widths = st.integers(1, 6)
seeds = st.integers(0, 10_000)
scales = st.floats(0.1, 100.0)
chunks = st.none() | st.integers(1, 12)


@st.composite
def batches_with_groups(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    size, width, seed = draw(sizes), draw(widths), draw(seeds)
    groups = draw(st.lists(st.integers(-2, 3), min_size=size, max_size=size))
    return unit(size, width, seed), unit(size, width, seed + 1), torch.tensor(groups)


# --- against the loops -----------------------------------------------------------------------


@given(sizes, widths, seeds, st.floats(0.01, 10.0))
@settings(max_examples=25, deadline=None)
def test_info_nce_is_the_formula(size: int, width: int, seed: int, temperature: float) -> None:
    q, k = unit(size, width, seed), unit(size, width, seed + 1)
    expected = reference.info_nce(q, k, temperature)
    assert float(info_nce(q, k, temperature)) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@given(sizes, widths, seeds, scales, chunks)
@settings(max_examples=40, deadline=None)
def test_clip_loss_is_the_formula(
    size: int, width: int, seed: int, scale: float, chunk_size: int | None
) -> None:
    x, y = unit(size, width, seed), unit(size, width, seed + 1)
    expected = reference.clip_loss(x, y, scale)
    got = clip_loss(x, y, scale, chunk_size=chunk_size)
    assert float(got) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@given(batches_with_groups(), scales, chunks)
@settings(max_examples=40, deadline=None)
def test_clip_loss_with_identical_captions_is_the_formula(
    batch: tuple[Tensor, Tensor, Tensor], scale: float, chunk_size: int | None
) -> None:
    x, y, groups = batch
    expected = reference.clip_loss(x, y, scale, groups.tolist())
    got = clip_loss(x, y, scale, chunk_size=chunk_size, groups=groups)
    assert float(got) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@given(batches_with_groups(), scales, st.floats(-20.0, 20.0), st.booleans())
@settings(max_examples=30, deadline=None)
def test_siglip_loss_is_the_formula(
    batch: tuple[Tensor, Tensor, Tensor], scale: float, bias: float, grouped: bool
) -> None:
    x, y, groups = batch
    expected = reference.siglip_loss(x, y, scale, bias, groups.tolist() if grouped else None)
    got = siglip_loss(x, y, scale, bias, groups=groups if grouped else None)
    assert float(got) == pytest.approx(expected, rel=1e-10, abs=1e-12)


# --- closed forms ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 5, 16])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_orthogonal_pairs(size: int, chunk_size: int | None) -> None:
    """Positives at similarity 1, negatives at 0: log(1 + (B - 1) e^-s)."""
    x = torch.eye(size, dtype=torch.float64)
    expected = math.log1p((size - 1) * math.exp(-7.0))
    assert float(clip_loss(x, x, 7.0, chunk_size=chunk_size)) == pytest.approx(expected, rel=1e-12)
    assert float(info_nce(x, x, 1 / 7.0)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [2, 5, 16])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_equal_embeddings(size: int, chunk_size: int | None) -> None:
    """Nothing to tell the samples apart by: the loss of guessing, log B, and no gradient."""
    x = unit(1, 4, seed=0).expand(size, 4)
    groups = torch.zeros(size, dtype=torch.int64)
    for kwargs in ({}, {"groups": groups}):
        value, *gradients = value_and_gradients(
            lambda x, y, kwargs=kwargs: clip_loss(x, y, 9.0, chunk_size=chunk_size, **kwargs), x, x
        )
        assert float(value) == pytest.approx(math.log(size), rel=1e-12)
        assert all(float(g.abs().max()) < 1e-12 for g in gradients)
    assert float(info_nce(x, x, 0.1)) == pytest.approx(math.log(size), rel=1e-12)


def test_pairs_of_identical_captions_reach_log_2() -> None:
    """Two samples a caption, captions orthogonal: log(2 + (B - 2) e^-s), not a wrong negative."""
    x = torch.eye(3, dtype=torch.float64).repeat(2, 1)
    got = clip_loss(x, x, 5.0, groups=torch.tensor([4, 7, 9, 4, 7, 9]))
    assert float(got) == pytest.approx(math.log(2 + 4 * math.exp(-5.0)), rel=1e-12)


def test_siglip_of_orthogonal_pairs() -> None:
    """log(1 + e^-(s+b)) for the pair, (B - 1) log(1 + e^b) for its negatives."""
    x = torch.eye(6, dtype=torch.float64)
    expected = math.log1p(math.exp(-(10 - 4))) + 5 * math.log1p(math.exp(-4))
    assert float(siglip_loss(x, x, 10.0, -4.0)) == pytest.approx(expected, rel=1e-12)


def test_groups_of_one_change_nothing() -> None:
    x, y = unit(6, 4, 0), unit(6, 4, 1)
    alone = torch.tensor([50, 3, 7, -1, 12, 0])
    assert float(clip_loss(x, y, 9.0, groups=alone)) == pytest.approx(
        float(clip_loss(x, y, 9.0)), rel=1e-12
    )
    assert torch.equal(siglip_loss(x, y, 9.0, -3.0, groups=alone), siglip_loss(x, y, 9.0, -3.0))


# --- the tiles change no value ---------------------------------------------------------------


@given(batches_with_groups(), scales, st.integers(1, 12), st.booleans())
@settings(max_examples=30, deadline=None)
def test_tiles_give_the_plain_value_and_gradients(
    batch: tuple[Tensor, Tensor, Tensor], scale: float, chunk_size: int, grouped: bool
) -> None:
    x, y, groups = batch
    kwargs = {"groups": groups} if grouped else {}
    inputs = (x, y, scalar(scale))
    plain = value_and_gradients(lambda *t: clip_loss(*t, **kwargs), *inputs)
    tiled = value_and_gradients(lambda *t: clip_loss(*t, chunk_size=chunk_size, **kwargs), *inputs)
    for a, b in zip(tiled, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0], ids=lambda n: f"noise{n:g}")
@pytest.mark.parametrize("chunk_size", [64, 100, 1000])
def test_tiles_give_the_plain_float32_value_and_gradients_to_1e_6(
    noise: float, chunk_size: int
) -> None:
    x, y = pairs(300, 32, seed=2, noise=noise, dtype=torch.float32)
    inputs = (x, y, scalar(14.3, torch.float32))
    tiled = value_and_gradients(lambda *t: clip_loss(*t, chunk_size=chunk_size), *inputs)
    for form in (clip_loss, reference.clip_two_logits):
        for a, b in zip(tiled, value_and_gradients(form, *inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


# --- a part of the rows: what each of several processes computes -----------------------------


@given(
    st.integers(1, 4), st.integers(1, 4), widths, seeds, scales, chunks, st.booleans(), st.data()
)
@settings(max_examples=40, deadline=None)
def test_the_mean_over_the_parts_is_the_whole_with_every_gradient(
    parts: int,
    share: int,
    width: int,
    seed: int,
    scale: float,
    chunk_size: int | None,
    grouped: bool,
    data: st.DataObject,
) -> None:
    parts = max(parts, 2) if share == 1 else parts
    size = parts * share
    inputs = (unit(size, width, seed), unit(size, width, seed + 1), scalar(scale))
    groups = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    kwargs = {"groups": torch.tensor(groups)} if grouped else {}
    slices = [slice(share * i, share * (i + 1)) for i in range(parts)]

    whole = value_and_gradients(lambda *t: clip_loss(*t, **kwargs), *inputs)
    joined = value_and_gradients(
        lambda *t: (
            sum(clip_loss(*t, chunk_size=chunk_size, rows=r, **kwargs) for r in slices) / parts
        ),
        *inputs,
    )
    for a, b in zip(joined, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)

    whole = value_and_gradients(info_nce, *inputs)
    joined = value_and_gradients(
        lambda *t: sum(info_nce(*t, rows=r) for r in slices) / parts, *inputs
    )
    for a, b in zip(joined, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 0, 1, 5, 0, 0, 2]])
def test_a_part_is_two_cross_entropies(groups: list[int], chunk_size: int | None) -> None:
    x, y, rows, numbers = unit(9, 4, 0), unit(9, 4, 1), slice(3, 8), torch.tensor(groups)
    logits, target = 7.0 * x @ y.T, (numbers[:, None] == numbers).double()
    target = (target / target.sum(1))[rows]
    expected = (F.cross_entropy(logits[rows], target) + F.cross_entropy(logits.T[rows], target)) / 2
    got = clip_loss(x, y, 7.0, chunk_size=chunk_size, rows=rows, groups=numbers)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_part_at_the_extreme(chunk_size: int | None) -> None:
    """As for the whole: tiny losses are kept, and nothing overflows."""
    x, rows = torch.eye(8), slice(2, 6)
    value, grad_x, _ = value_and_gradients(
        lambda x, y: clip_loss(x, y, 25.0, chunk_size=chunk_size, rows=rows), x, x
    )
    assert float(value) == pytest.approx(math.log1p(7 * math.exp(-25)), rel=1e-5)
    assert float(grad_x[2, 1]) == pytest.approx(25 * math.exp(-25) / 8, rel=1e-5)
    hopeless = clip_loss(x, torch.roll(x, 1, dims=0) - x, 1000.0, chunk_size=chunk_size, rows=rows)
    assert float(hopeless) == 2000.0


@pytest.mark.parametrize(
    "rows", [slice(0, 7), slice(3, 3), slice(-2, 6), slice(None, 3), slice(0, 6, 2), 3]
)
@pytest.mark.parametrize("loss", [clip_loss, info_nce])
def test_bad_rows(loss, rows: slice) -> None:
    message = f"0 <= start < stop <= 6, the number of samples, got {rows}"
    with pytest.raises(ShapeError, match=re.escape(message)):
        loss(GOOD, GOOD, 10.0, rows=rows)


@pytest.mark.parametrize("norm", [1e-3, 1.0, 30.0])
def test_any_norm(norm: float) -> None:
    """Not unit-norm: no bound on the logits is assumed anywhere."""
    x, y = norm * unit(7, 4, 0), norm * unit(7, 4, 1)
    expected = reference.clip_loss(x, y, 20.0)
    for chunk_size in (None, 2):
        got = clip_loss(x, y, 20.0, chunk_size=chunk_size)
        assert float(got) == pytest.approx(expected, rel=1e-10)


def test_strided_embeddings() -> None:
    x, y = unit(7, 5, 0).T.contiguous().T, unit(14, 5, 1)[::2]
    inputs = [x.contiguous(), y.contiguous()]
    expected = value_and_gradients(lambda a, b: clip_loss(a, b, 9.0), *inputs)
    a, b = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = clip_loss(a, b, 9.0, chunk_size=3)
    assert_same([value.detach(), *torch.autograd.grad(value, [a, b])], expected, 1e-12)


@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)])
def test_tiles_with_frozen_inputs(needed: tuple[int, int, int]) -> None:
    """One encoder frozen, or the scale: the other gradients are still right."""
    inputs = [unit(7, 5, 0), unit(7, 5, 1), scalar(9.0)]
    expected = value_and_gradients(clip_loss, *inputs)[1:]
    leaves = [t.clone().requires_grad_(bool(n)) for t, n in zip(inputs, needed, strict=True)]
    clip_loss(*leaves, chunk_size=3).backward()
    for leaf, gradient, need in zip(leaves, expected, needed, strict=True):
        if need:
            torch.testing.assert_close(leaf.grad, gradient)
        else:
            assert leaf.grad is None


def test_tiles_have_no_second_derivative_and_say_so() -> None:
    x, y = unit(5, 4, 0).requires_grad_(), unit(5, 4, 1)
    with pytest.raises(MMCLError, match=r"no second derivative.*chunk_size=None"):
        torch.autograd.grad(clip_loss(x, y, 9.0, chunk_size=2), x, create_graph=True)
    assert gradgradcheck(lambda x: clip_loss(x, y, 9.0), x)


# --- gradients -------------------------------------------------------------------------------

GROUPS = torch.tensor([0, 1, 0, 2, 1])


@pytest.mark.parametrize(
    "loss",
    [
        info_nce,
        clip_loss,
        lambda x, y, s: clip_loss(x, y, s, groups=GROUPS),
        lambda x, y, s: clip_loss(x, y, s, chunk_size=1),
        lambda x, y, s: clip_loss(x, y, s, chunk_size=2),
        lambda x, y, s: clip_loss(x, y, s, chunk_size=5, groups=GROUPS),
        lambda x, y, s: 3 * siglip_loss(x, y, s, s - 4.0),
        lambda x, y, s: siglip_loss(x, y, s, -2.0, groups=GROUPS),
    ],
    ids=["info", "clip", "groups", "tile1", "tile2", "tile5_groups", "siglip", "siglip_groups"],
)
def test_gradients(loss) -> None:
    x, y = unit(5, 3, 0).requires_grad_(), unit(5, 3, 1).requires_grad_()
    assert gradcheck(loss, (x, y, scalar(2.5).requires_grad_()))


# --- symmetries ------------------------------------------------------------------------------


@given(batches_with_groups(), scales, chunks, st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_order_of_modalities_and_of_samples_does_not_matter(
    batch: tuple[Tensor, Tensor, Tensor], scale: float, chunk_size: int | None, random
) -> None:
    x, y, g = batch
    order = list(range(len(x)))
    random.shuffle(order)
    value = float(clip_loss(x, y, scale, chunk_size=chunk_size, groups=g))
    swapped = clip_loss(y, x, scale, chunk_size=chunk_size, groups=g)
    shuffled = clip_loss(x[order], y[order], scale, chunk_size=chunk_size, groups=g[order])
    assert float(swapped) == pytest.approx(value, rel=1e-9, abs=1e-11)
    assert float(shuffled) == pytest.approx(value, rel=1e-9, abs=1e-11)
    half = (info_nce(x, y, 1 / scale) + info_nce(y, x, 1 / scale)) / 2
    assert float(half) == pytest.approx(float(clip_loss(x, y, scale)), rel=1e-9, abs=1e-11)


# --- extremes --------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [1.5, 2.0, 3.0, 30.0], ids=lambda n: f"noise{n:g}")
@pytest.mark.parametrize("chunk_size", [None, 50])
def test_temperature_of_a_thousandth_in_float32(noise: float, chunk_size: int | None) -> None:
    """Finite, and within 1e-4 of float64 *on the same float32 embeddings*.

    The tolerance is that of the problem, not slack: a logit of 1000 is rounded to 6e-5 in float32,
    and a probability carries the absolute error of its logit as a relative one.
    """
    x, y = pairs(200, 64, seed=4, noise=noise, dtype=torch.float32)
    inputs = (x, y, scalar(1000.0, torch.float32))
    got = value_and_gradients(lambda *t: clip_loss(*t, chunk_size=chunk_size), *inputs)
    exact = value_and_gradients(reference.clip_two_logits, *(t.double() for t in inputs))
    assert float(exact[0]) > 1e-3  # otherwise there is nothing to compare
    assert_same(got, exact, 1e-4)

    got = value_and_gradients(lambda q, k: info_nce(q, k, 1e-3), x, y)
    exact = value_and_gradients(lambda q, k: info_nce(q, k, 1e-3), x.double(), y.double())
    assert_same(got, exact, 1e-4)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_hopeless_and_perfect_pairs_at_the_extreme(chunk_size: int | None) -> None:
    """Every positive 2000 below a negative, then 1000 above: exact numbers, no overflow."""
    x = torch.eye(6)
    y = torch.roll(x, 1, dims=0) - x
    value, *gradients = value_and_gradients(
        lambda x, y: clip_loss(x, y, 1000.0, chunk_size=chunk_size), x, y
    )
    assert float(value) == 2000.0
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients)
    value, *gradients = value_and_gradients(
        lambda x, y: clip_loss(x, y, 1000.0, chunk_size=chunk_size), x, x
    )
    assert float(value) == 0.0
    assert all(torch.equal(g, torch.zeros_like(x)) for g in gradients)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_tiny_losses_are_kept(chunk_size: int | None) -> None:
    """At the end of training, 1 - p is 1e-10 and float32 rounds p to 1; nothing is lost here."""
    x = torch.eye(8)
    value, grad_x, _ = value_and_gradients(
        lambda x, y: clip_loss(x, y, 25.0, chunk_size=chunk_size), x, x
    )
    assert float(value) == pytest.approx(math.log1p(7 * math.exp(-25)), rel=1e-5)
    # Softmax of the row and of the column, both e^-25 off the diagonal, over 2 B, times the scale.
    assert float(grad_x[0, 1]) == pytest.approx(25 * 2 * math.exp(-25) / 16, rel=1e-5)


def test_siglip_at_the_extreme_in_float32() -> None:
    x, y = pairs(100, 32, seed=4, noise=1.0, dtype=torch.float32)
    inputs = (x, y, scalar(1000.0, torch.float32), scalar(-500.0, torch.float32))
    got = value_and_gradients(siglip_loss, *inputs)
    exact = value_and_gradients(siglip_loss, *(t.double() for t in inputs))
    assert_same(got, exact, 1e-4)


# --- types, autocast, devices ----------------------------------------------------------------

LOSSES = [
    pytest.param(lambda x, y: info_nce(x, y, 0.05), id="info_nce"),
    pytest.param(lambda x, y: clip_loss(x, y, 20.0, groups=torch.arange(40) // 2), id="clip"),
    pytest.param(lambda x, y: clip_loss(x, y, 20.0, chunk_size=16), id="clip_tiles"),
    pytest.param(lambda x, y: clip_loss(x, y, 20.0, rows=slice(5, 30)), id="clip_rows"),
    pytest.param(
        lambda x, y: clip_loss(x, y, 20.0, chunk_size=16, rows=slice(5, 30)), id="clip_rows_tiles"
    ),
    pytest.param(lambda x, y: siglip_loss(x, y, 20.0, -10.0), id="siglip"),
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype: torch.dtype) -> None:
    x, y = unit(40, 16, 0, dtype), unit(40, 16, 1, dtype)
    value, *gradients = value_and_gradients(loss, x, y)
    expected = value_and_gradients(loss, x.float(), y.float())
    assert value.dtype == torch.float32
    assert torch.equal(value, expected[0])
    for got, exact in zip(gradients, expected[1:], strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, exact.to(dtype))


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_changes_no_bit_of_the_value(loss) -> None:
    x, y = unit(40, 16, 0, torch.float32), unit(40, 16, 1, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(x, y)
    assert torch.equal(inside, loss(x, y))


def test_tiles_are_recomputed_in_float32_even_when_backward_runs_inside_autocast() -> None:
    x, y = unit(40, 16, 0, torch.float32), unit(40, 16, 1, torch.float32)
    expected = value_and_gradients(lambda x, y: clip_loss(x, y, 20.0, chunk_size=16), x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value_and_gradients(lambda x, y: clip_loss(x, y, 20.0, chunk_size=16), x, y)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_scale_as_number_or_as_tensor_of_another_type(chunk_size: int | None) -> None:
    x, y = unit(5, 4, 0), unit(5, 4, 1)
    as_number = clip_loss(x, y, 16.0, chunk_size=chunk_size)
    scale = scalar(16.0, torch.float32).requires_grad_()
    as_tensor = clip_loss(x, y, scale, chunk_size=chunk_size)
    assert torch.equal(as_number, as_tensor)
    as_tensor.backward()
    assert scale.grad is not None
    assert scale.grad.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("chunk_size", [None, 64])
def test_cuda_gives_the_value_and_gradients_of_the_cpu(chunk_size: int | None) -> None:
    inputs = (*pairs(200, 64, seed=4, noise=1.0), scalar(20.0))
    groups = torch.arange(200) // 2
    expected = value_and_gradients(
        lambda *t: clip_loss(*t, chunk_size=chunk_size, groups=groups), *inputs
    )
    got = value_and_gradients(
        lambda *t: clip_loss(*t, chunk_size=chunk_size, groups=groups.cuda()),
        *(t.cuda() for t in inputs),
    )
    assert_same([t.cpu() for t in got], expected, 1e-9)


# --- bad input -------------------------------------------------------------------------------

ALL = {
    "info_nce": lambda x, y: info_nce(x, y, 0.1),
    "clip_loss": lambda x, y: clip_loss(x, y, 10.0),
    "clip_loss_tiles": lambda x, y: clip_loss(x, y, 10.0, chunk_size=2),
    "siglip_loss": lambda x, y: siglip_loss(x, y, 10.0, -10.0),
}


def with_rows(value: float, *rows: int) -> Tensor:
    x = unit(6, 4, 0, torch.float32)
    x[list(rows)] = value
    return x


def with_element(value: float, row: int) -> Tensor:
    x = unit(6, 4, 0, torch.float32)
    x[row, 2] = value
    return x


GOOD = unit(6, 4, 1, torch.float32)
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (GOOD[0], GOOD, ShapeError, r"must have shape \[B, D\], got \[4\]"),
        (GOOD, GOOD[None], ShapeError, r"must have shape \[B, D\], got \[1, 6, 4\]"),
        (GOOD, GOOD[:5], ShapeError, r"one shape \[B, D\].*got \[6, 4\] and \[5, 4\]"),
        (GOOD, GOOD[:, :3], ShapeError, r"one shape \[B, D\].*got \[6, 4\] and \[6, 3\]"),
        (GOOD, GOOD.to("meta"), ShapeError, "on one device, got cpu and meta"),
        (GOOD, GOOD.double(), ShapeError, "one type, got torch.float32 and torch.float64"),
        (GOOD.long(), GOOD.long(), ShapeError, "floating-point numbers, got torch.int64"),
        (GOOD[:0], GOOD[:0], ShapeError, r"empty, of shape \[0, 4\]"),
        (GOOD[:, :0], GOOD[:, :0], ShapeError, r"empty, of shape \[6, 0\]"),
        (GOOD[:1], GOOD[:1], ShapeError, "batch of 1 has no negatives.*at least 2"),
        (with_element(NAN, 3), GOOD, MMCLError, "1 of 6 rows hold NaN or inf.* is row 3"),
        (with_element(-INF, 2), GOOD, MMCLError, "1 of 6 rows hold NaN or inf.* is row 2"),
        (GOOD, with_rows(NAN, 4, 5), MMCLError, "2 of 6 rows hold NaN or inf.* is row 4"),
        (GOOD, with_rows(0.0, 1, 5), MMCLError, "2 of 6 rows are zero vectors.* is row 1"),
        (with_rows(0.0, 0), GOOD, MMCLError, "1 of 6 rows are zero vectors.* is row 0"),
        (with_rows(NAN, 0).half(), GOOD.half(), MMCLError, "1 of 6 rows hold NaN"),
    ],
)
def test_bad_embeddings(
    name: str, x: Tensor, y: Tensor, error: type[MMCLError], message: str
) -> None:
    with pytest.raises(error, match=message):
        ALL[name](x, y)


def test_the_message_names_the_argument() -> None:
    for loss, first, second in [(info_nce, "queries", "keys"), (clip_loss, "image", "text")]:
        with pytest.raises(MMCLError, match=f"^{first}: 1 of 6"):
            loss(with_rows(NAN, 1), GOOD, 10.0)
        with pytest.raises(MMCLError, match=f"^{second}: 1 of 6"):
            loss(GOOD, with_rows(NAN, 1), 10.0)


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, INF])
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize(
    ("argument", "loss"),
    [
        ("temperature", lambda v: info_nce(GOOD, GOOD, v)),
        ("logit_scale", lambda v: clip_loss(GOOD, GOOD, v)),
        ("logit_scale", lambda v: clip_loss(GOOD, GOOD, v, chunk_size=4)),
        ("logit_scale", lambda v: siglip_loss(GOOD, GOOD, v, -10.0)),
    ],
)
def test_bad_temperature_or_scale(argument: str, loss, as_tensor: bool, value: float) -> None:
    message = f"{argument} must be positive and finite, got {value}"
    with pytest.raises(MMCLError, match=re.escape(message)):
        loss(torch.tensor(value) if as_tensor else value)


def test_scale_of_one_element_is_not_a_scalar() -> None:
    with pytest.raises(ShapeError, match=r"logit_scale must be a number or .*, got \[1\]"):
        clip_loss(GOOD, GOOD, torch.tensor([10.0]))


@pytest.mark.parametrize("value", [NAN, INF])
def test_bad_bias(value: float) -> None:
    with pytest.raises(MMCLError, match=f"logit_bias must be finite, got {value}"):
        siglip_loss(GOOD, GOOD, 10.0, value)


@pytest.mark.parametrize("value", [0, -3, 2.5, True, "all"])
def test_bad_chunk_size(value: float) -> None:
    with pytest.raises(MMCLError, match=f"chunk_size must be .* at least 1; got {value!r}.*auto"):
        clip_loss(GOOD, GOOD, 10.0, chunk_size=value)  # type: ignore[arg-type]


# Each loss as a function of embeddings and a temperature.
TEMPERED = {
    "info_nce": info_nce,
    "clip_loss": lambda x, y, t: clip_loss(x, y, 1 / t if t else INF),
    "clip_loss in tiles": lambda x, y, t: clip_loss(x, y, 1 / t if t else INF, chunk_size=4),
    "clip_loss of a part": lambda x, y, t: clip_loss(x, y, 1 / t if t else INF, rows=slice(1, 4)),
    "siglip_loss": lambda x, y, t: siglip_loss(x, y, 1 / t if t else INF, -10.0),
    "queue_info_nce": lambda x, y, t: queue_info_nce(x, y, y.detach().roll(1, 0), t),
    "queue_hinge": lambda x, y, t: queue_hinge(x, y, y.detach().roll(1, 0), t),
    **{
        f"gmc_loss {variant}": lambda x, y, t, v=variant: gmc_loss([x], y, t, variant=v)
        for variant in ("ntxent", "paper", "joint_negatives")
    },
}


@pytest.mark.parametrize("loss", TEMPERED.values(), ids=TEMPERED.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_loss_is_finite_or_an_error_at_any_temperature(loss, dtype: torch.dtype) -> None:
    """Not NaN: temperatures that the type flushes to 0, and logits that overflow, in every loss."""
    errors = 0
    for exponent in (-323, -310, -46, -45, -40, -38, -30, -20, 0, 30, 38, 39, 300):
        for norm in (1.0, 1e-3, 1e4):
            x, y = (norm * unit(6, 4, seed, torch.float64).to(dtype) for seed in (0, 1))
            leaves = [x.requires_grad_(), y.requires_grad_()]
            try:
                value = loss(*leaves, 10.0**exponent)
            except MMCLError:
                errors += 1
                continue
            assert value.isfinite(), (exponent, norm)
            if dtype == torch.float16:  # which a gradient of 1e20 leaves
                continue
            for found in torch.autograd.grad(value, leaves, allow_unused=True):
                assert found is None or found.isfinite().all(), (exponent, norm)
    assert errors or dtype == torch.float64


def test_a_denormal_temperature() -> None:
    message = "temperature must be positive and finite in float32, got 1e-45"
    with pytest.raises(MMCLError, match=message):
        info_nce(GOOD, GOOD, 1e-45)
    with pytest.raises(MMCLError, match=r"reach [0-9]e\+33 at this logit_scale, too much"):
        clip_loss(GOOD, GOOD, 1e33)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (torch.arange(5), r"int64 of shape \[6\].*shape \[5\]"),
        (torch.zeros(6, 1, dtype=torch.int64), r"int64 of shape \[6\].*shape \[6, 1\]"),
        (torch.zeros(6), r"int64 of shape \[6\].*got torch.float32"),
        (torch.zeros(6, dtype=torch.int64, device="meta"), "device of the embeddings, cpu"),
    ],
)
@pytest.mark.parametrize(
    "loss",
    [
        lambda g: clip_loss(GOOD, GOOD, 10.0, groups=g),
        lambda g: siglip_loss(GOOD, GOOD, 10.0, -10.0, groups=g),
    ],
    ids=["clip", "siglip"],
)
def test_bad_groups(loss, groups: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        loss(groups)


# --- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [None, slice(256, 768)])
def test_tiles_never_hold_all_logits(rows: slice | None) -> None:
    """No single allocation comes near [B, B], forward or backward."""
    size, chunk_size = 1024, 32
    x, y = unit(size, 8, 0, torch.float32), unit(size, 8, 1, torch.float32)
    x.requires_grad_()
    y.requires_grad_()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        clip_loss(x, y, 20.0, chunk_size=chunk_size, rows=rows).backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest <= 2 * chunk_size * size * 4 * 1.1  # two tiles of float32


class Products(TorchDispatchMode):
    """The shapes of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        if function.__name__.startswith("mm."):
            self.shapes.add(tuple(out.shape))
        return out


@pytest.mark.parametrize("rows", [None, slice(8, 24)])
@pytest.mark.parametrize("bytes", [640, 32 * 32 * 4, 1])
def test_auto_takes_the_largest_tile_that_fits(monkeypatch, rows, bytes: int) -> None:
    """A row is 32 float32: 640 bytes are five rows, and the smallest tile is one."""
    monkeypatch.setattr(clip, "TILE_BYTES", bytes)
    monkeypatch.setattr(clip, "WHOLE", 31)
    x, y = (unit(32, 3, seed, torch.float32) for seed in (0, 1))
    with Products() as products:
        auto = clip_loss(x, y, 20.0, rows=rows)
    fits = max(bytes // (32 * 4), 1)
    tiles = {shape[0] for shape in products.shapes}
    assert max(tiles) == min(fits, 32 if rows is None else 16)
    torch.testing.assert_close(auto, clip_loss(x, y, 20.0, rows=rows, chunk_size=None))


def test_auto_of_a_small_batch_is_the_plain_form() -> None:
    x, y = (unit(clip.WHOLE, 3, seed).requires_grad_() for seed in (0, 1))
    auto, plain = clip_loss(x, y, 20.0), clip_loss(x, y, 20.0, chunk_size=None)
    assert torch.equal(auto, plain)
    torch.autograd.grad(auto, x, create_graph=True)
    x, y = (unit(clip.WHOLE + 1, 3, seed).requires_grad_() for seed in (0, 1))
    with pytest.raises(MMCLError, match=r"no second derivative.*chunk_size=None"):
        torch.autograd.grad(clip_loss(x, y, 20.0), x, create_graph=True)


def test_a_tile_of_auto_takes_64_mebibytes() -> None:
    assert 4096 * 4096 * torch.float32.itemsize == clip.TILE_BYTES


def test_a_chunk_size_from_numpy() -> None:
    x, y = (unit(9, 3, seed) for seed in (0, 1))
    got = clip_loss(x, y, 20.0, chunk_size=np.int64(4))
    assert torch.equal(got, clip_loss(x, y, 20.0, chunk_size=4))
