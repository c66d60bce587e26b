"""The loss of GMC: golden values, loops, its parts, and numbers where the naive form has none."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from mmcl_core.errors import MMCLError, ShapeError
from mmcl_core.losses import gmc_loss
from mmcl_core.losses.gmc import _MILD, VARIANTS
from tests import reference
from tests.compare import assert_same, scalar, unit, value_and_gradients

every_variant = pytest.mark.parametrize("variant", VARIANTS)


def samples(
    size: int, width: int, modalities: int, *, seed: int = 0, noise: float = 1.0
) -> list[Tensor]:
    """The joint embeddings first, then the modalities, which lie near; nearer with less noise."""
    joint = unit(size, width, seed)
    near = [joint + noise * unit(size, width, seed + 1 + m) for m in range(modalities)]
    return [joint, *(F.normalize(m, dim=1) for m in near)]


def of(temperature: Any, **kwargs: Any) -> Callable[..., Tensor]:
    """The loss as a function of joint, then modalities."""
    return lambda joint, *parts: gmc_loss(parts, joint, temperature, **kwargs)


sizes, widths, counts = st.integers(2, 7), st.integers(2, 5), st.integers(1, 4)
seeds, temperatures = st.integers(0, 10_000), st.floats(0.01, 10.0)
variants = st.sampled_from(VARIANTS)


# --- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "variant", "expected"),
    [
        (0.1, "ntxent", 16.15899244621),
        (0.1, "joint_negatives", 8.83171899378),
        (0.3, "ntxent", 6.58076337286),
        (0.3, "joint_negatives", 3.52614380188),
    ],
)
def test_the_golden_values(temperature: float, variant: str, expected: float) -> None:
    k = torch.arange(1, 33, dtype=torch.float64)
    *parts, joint = (
        F.normalize(((0.7 + 0.3 * i) * k + i).sin().view(4, 8), dim=1) for i in range(3)
    )
    got = gmc_loss(parts, joint, temperature, variant=variant)
    assert float(got) == pytest.approx(expected, rel=1e-10, abs=1e-9)


@given(sizes, widths, counts, seeds, temperatures, variants)
@settings(max_examples=60, deadline=None)
def test_it_is_the_formula(
    size: int, width: int, count: int, seed: int, temperature: float, variant: str
) -> None:
    joint, *parts = samples(size, width, count, seed=seed)
    expected = reference.gmc_loss(parts, joint, temperature, variant)
    got = gmc_loss(parts, joint, temperature, variant=variant)
    assert float(got) == pytest.approx(expected, rel=1e-10, abs=1e-10)


@given(sizes, widths, counts, seeds, temperatures, variants, st.data())
@settings(max_examples=40, deadline=None)
def test_a_part_of_the_rows_is_the_formula_of_these_anchors(
    size: int, width: int, count: int, seed: int, temperature: float, variant: str, data
) -> None:
    joint, *parts = samples(size, width, count, seed=seed)
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    expected = reference.gmc_loss(parts, joint, temperature, variant, range(start, stop))
    got = gmc_loss(parts, joint, temperature, variant=variant, rows=slice(start, stop))
    assert float(got) == pytest.approx(expected, rel=1e-10, abs=1e-10)


@given(sizes, widths, counts, seeds, st.floats(0.05, 10.0))
@settings(max_examples=30, deadline=None)
def test_ntxent_is_both_of_its_published_forms_with_every_gradient(
    size: int, width: int, count: int, seed: int, temperature: float
) -> None:
    """The authors' plain exponentials, and SimCLR's cross-entropies, where both have numbers."""
    inputs = [scalar(temperature), *samples(size, width, count, seed=seed)]
    got = value_and_gradients(lambda t, joint, *parts: gmc_loss(parts, joint, t), *inputs)
    for form in (reference.gmc_exp, reference.gmc_ntxent):
        expected = value_and_gradients(lambda t, j, *p, form=form: form(p, j, t), *inputs)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@every_variant
def test_equal_embeddings(variant: str) -> None:
    """Nothing to tell the samples apart by: the logarithm of what stands below, which is alike."""
    x = unit(1, 4, seed=0).expand(6, 4)
    below = {"ntxent": 11, "paper": 15, "joint_negatives": 5}[variant]
    value, *gradients = value_and_gradients(of(0.1, variant=variant), x, x, x)
    torch.testing.assert_close(value, 2 * scalar(below).log(), rtol=1e-12, atol=0)
    # All that a gradient can do is change the norms, all alike.
    for g in gradients:
        torch.testing.assert_close(g, g[:1].expand(6, 4), rtol=0, atol=1e-12)


def test_orthogonal_samples() -> None:
    """Positives at similarity 1, all others at 0."""
    x = torch.eye(5, dtype=torch.float64)
    e = scalar(7.0).exp()
    for variant, below in (
        ("ntxent", e + 8),
        ("paper", scalar(12)),
        ("joint_negatives", scalar(4)),
    ):
        got = gmc_loss([x, x, x], x, 1 / 7, variant=variant)
        torch.testing.assert_close(got, 3 * (below.log() - 7), rtol=1e-12, atol=0)


# --- how it is called ------------------------------------------------------------------------


@every_variant
def test_modalities_by_name_or_in_any_order(variant: str) -> None:
    joint, a, b, c = samples(6, 4, 3)
    expected = gmc_loss([a, b, c], joint, 0.2, variant=variant)
    by_name = {"image": a, "caption": b, "tags": c}
    assert torch.equal(gmc_loss(by_name, joint, 0.2, variant=variant), expected)
    for modalities in ((a, b, c), (c, a, b)):
        got = gmc_loss(modalities, joint, 0.2, variant=variant)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    one_by_one = sum(gmc_loss([m], joint, 0.2, variant=variant) for m in (a, b, c))
    torch.testing.assert_close(one_by_one, expected, rtol=1e-12, atol=0)


@given(sizes, widths, counts, seeds, temperatures, variants, st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_order_of_samples_does_not_matter(
    size: int, width: int, count: int, seed: int, temperature: float, variant: str, random
) -> None:
    inputs = samples(size, width, count, seed=seed)
    order = list(range(size))
    random.shuffle(order)
    function = of(temperature, variant=variant)
    value, *gradients = value_and_gradients(function, *inputs)
    moved, *moved_gradients = value_and_gradients(function, *(x[order] for x in inputs))
    torch.testing.assert_close(moved, value, rtol=1e-9, atol=1e-9)
    for a, b in zip(moved_gradients, gradients, strict=True):
        torch.testing.assert_close(a, b[order], rtol=1e-9, atol=1e-9)


@given(st.integers(1, 4), st.integers(1, 3), counts, seeds, temperatures, variants)
@settings(max_examples=40, deadline=None)
def test_the_mean_over_the_parts_is_the_whole_with_every_gradient(
    parts: int, share: int, count: int, seed: int, temperature: float, variant: str
) -> None:
    parts = max(parts, 2) if share == 1 else parts
    inputs = [scalar(temperature), *samples(parts * share, 4, count, seed=seed)]
    slices = [slice(share * i, share * (i + 1)) for i in range(parts)]

    def whole(t: Tensor, joint: Tensor, *modalities: Tensor) -> Tensor:
        return gmc_loss(modalities, joint, t, variant=variant)

    def joined(t: Tensor, joint: Tensor, *modalities: Tensor) -> Tensor:
        return sum(gmc_loss(modalities, joint, t, variant=variant, rows=r) for r in slices) / parts

    expected = value_and_gradients(whole, *inputs)
    for a, b in zip(value_and_gradients(joined, *inputs), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)])
@every_variant
def test_frozen_inputs(variant: str, needed: tuple[int, ...]) -> None:
    inputs = samples(5, 4, 2)
    expected = value_and_gradients(of(0.2, variant=variant), *inputs)[1:]
    leaves = [t.clone().requires_grad_(bool(n)) for t, n in zip(inputs, needed, strict=True)]
    of(0.2, variant=variant)(*leaves).backward()
    for leaf, gradient, need in zip(leaves, expected, needed, strict=True):
        assert (leaf.grad is not None) == bool(need)
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad, gradient, rtol=1e-9, atol=1e-12)


def test_strided_embeddings() -> None:
    inputs = samples(6, 5, 2)
    expected = value_and_gradients(of(0.2), *inputs)
    wide = torch.stack([x.T.contiguous().T for x in inputs], dim=1)
    leaves = [x.detach().requires_grad_() for x in wide.unbind(1)]
    assert not any(leaf.is_contiguous() for leaf in leaves)
    value = of(0.2)(*leaves)
    assert_same([value.detach(), *torch.autograd.grad(value, leaves)], expected, 1e-12)


# --- gradients -------------------------------------------------------------------------------


@every_variant
@pytest.mark.parametrize("rows", [None, slice(1, 4)])
@pytest.mark.parametrize("temperature", [0.5, 0.02], ids=["mild", "not_mild"])
def test_gradients(variant: str, rows: slice | None, temperature: float) -> None:
    inputs = [x.requires_grad_() for x in samples(5, 3, 2)]
    # The temperature as a multiple, so that a step of finite differences stays small beside it.
    factor = scalar(1.0).requires_grad_()

    def loss(factor: Tensor, joint: Tensor, *parts: Tensor) -> Tensor:
        return gmc_loss(parts, joint, temperature * factor, variant=variant, rows=rows)

    assert gradcheck(loss, (factor, *inputs))


@pytest.mark.parametrize("variant", ["ntxent", "paper"])
def test_it_has_no_second_derivative_and_says_so(variant: str) -> None:
    joint, *parts = samples(5, 3, 2)
    joint.requires_grad_()
    with pytest.raises(MMCLError, match=r"gmc_loss has no second derivative.*create_graph=True"):
        torch.autograd.grad(gmc_loss(parts, joint, 0.2, variant=variant), joint, create_graph=True)


@pytest.mark.parametrize(
    ("variant", "rows"),
    [("ntxent", slice(0, 2)), ("paper", slice(0, 2)), ("joint_negatives", None)],
)
def test_where_it_has_a_second_derivative(variant: str, rows: slice | None) -> None:
    inputs = [x.requires_grad_() for x in samples(3, 2, 2)]
    assert gradgradcheck(of(0.5, variant=variant, rows=rows), inputs)


def test_two_backward_passes_give_the_same() -> None:
    leaves = [x.requires_grad_() for x in samples(5, 3, 2)]
    loss = of(0.2)(*leaves)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --- extremes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "dtype", "tolerance"),
    [(0.011, torch.float32, 1e-4), (0.09, torch.float16, 1e-3)],
)
@every_variant
def test_numbers_where_plain_exponentials_have_none(
    variant: str, temperature: float, dtype: torch.dtype, tolerance: float
) -> None:
    """The authors' form is NaN there; this one is that of float64 *on the same embeddings*.

    The tolerance is that of the problem: a logit of 91 is rounded to 4e-6 in float32, and a
    gradient that comes back in float16 has three digits.
    """
    inputs = [x.to(dtype) for x in samples(40, 4, 3, noise=0.02)]
    naive, *naive_gradients = value_and_gradients(
        lambda joint, *parts: reference.gmc_exp(parts, joint, temperature), *inputs
    )
    assert naive.isnan()
    assert all(g.isnan().any() for g in naive_gradients)
    function = of(temperature, variant=variant)
    got = value_and_gradients(function, *inputs)
    exact = value_and_gradients(function, *(x.double() for x in inputs))
    assert got[0].dtype == torch.float32
    assert_same(got, exact, tolerance)
    if variant == "ntxent":
        exact = value_and_gradients(
            lambda joint, *parts: reference.gmc_ntxent(parts, joint, temperature),
            *(x.double() for x in inputs),
        )
        assert_same(got, exact, tolerance)


@every_variant
@pytest.mark.parametrize("temperature", [1e-4, 1e4])
def test_any_temperature_in_float32(variant: str, temperature: float) -> None:
    inputs = [x.float() for x in samples(30, 16, 2)]
    value, *gradients = value_and_gradients(of(temperature, variant=variant), *inputs)
    assert all(g.isfinite().all() for g in gradients)
    expected = of(temperature, variant=variant)(*(x.double() for x in inputs))
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


@every_variant
@pytest.mark.parametrize("norm", [1e-3, 1.0, 1.9, 2.1, 30.0])
def test_any_norm_on_both_sides_of_the_plain_exponentials(variant: str, norm: float) -> None:
    """Not unit-norm: no bound on the logits is assumed anywhere."""
    joint, *parts = (norm * x for x in samples(7, 4, 2))
    assert (norm**2 / 0.1 <= _MILD) == (norm < 2)
    expected = reference.gmc_loss(parts, joint, 0.1, variant)
    got = gmc_loss(parts, joint, 0.1, variant=variant)
    assert float(got) == pytest.approx(expected, rel=1e-10, abs=1e-10)


@every_variant
def test_very_different_norms_in_float32(variant: str) -> None:
    """Sums whose terms differ by e^900, beside sums whose terms are all alike."""
    norms = torch.logspace(-3, 1.5, 30, dtype=torch.float64)[:, None]
    inputs = [(norms * x).float() for x in samples(30, 16, 2)]
    got = value_and_gradients(of(1.0, variant=variant), *inputs)
    exact = value_and_gradients(of(1.0, variant=variant), *(x.double() for x in inputs))
    assert_same(got, exact, 1e-4)


@pytest.mark.parametrize("variant", ["ntxent", "paper"])
def test_float32_of_the_plain_exponentials_at_their_limit(variant: str) -> None:
    """Squared norms just below the bound: nothing overflows, and nothing is lost."""
    x = samples(64, 8, 2)
    x[1][0] = -x[0][0]  # a positive at e^-40, among negatives of e^40
    inputs = [(0.9999 * _MILD**0.5 * v).float() for v in x]
    got = value_and_gradients(of(1.0, variant=variant), *inputs)
    exact = value_and_gradients(of(1.0, variant=variant), *(v.double() for v in inputs))
    assert_same(got, exact, 1e-4)


@pytest.mark.parametrize("rows", [None, slice(1, 5)])
@pytest.mark.parametrize("scale", [20.0, 60.0])
def test_tiny_losses_are_kept(rows: slice | None, scale: float) -> None:
    """At the end of training, 1 - p is 1e-10 and float32 rounds p to 1; nothing is lost here."""
    x = torch.eye(8)
    loss = lambda joint, m: gmc_loss([m], joint, 1 / scale, rows=rows)  # noqa: E731
    value, grad_joint, _ = value_and_gradients(loss, x, x)
    tiny = scalar(-scale).exp()
    assert float(value) == pytest.approx(float((14 * tiny).log1p()), rel=1e-4)
    # Joint i and j: anchor i with joint j, anchor j with joint i, anchor i with m_j, m_i with j.
    count = 8 if rows is None else 4
    assert float(grad_joint[2, 3]) == pytest.approx(4 * scale * float(tiny) / (2 * count), rel=1e-4)


# --- types, autocast, devices ----------------------------------------------------------------


@every_variant
@pytest.mark.parametrize("rows", [None, slice(3, 20)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(
    variant: str, rows: slice | None, dtype: torch.dtype
) -> None:
    inputs = [x.to(dtype) for x in samples(24, 16, 2)]
    function = of(0.05, variant=variant, rows=rows)
    value, *gradients = value_and_gradients(function, *inputs)
    expected = value_and_gradients(function, *(x.float() for x in inputs))
    assert value.dtype == torch.float32
    assert torch.equal(value, expected[0])
    for got, exact in zip(gradients, expected[1:], strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, exact.to(dtype))


@every_variant
@pytest.mark.parametrize("rows", [None, slice(3, 20)])
def test_autocast_changes_no_bit_of_the_value(variant: str, rows: slice | None) -> None:
    inputs = [x.float() for x in samples(24, 16, 2)]
    function = of(0.05, variant=variant, rows=rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = function(*inputs)
    assert torch.equal(inside, function(*inputs))


@pytest.mark.parametrize("variant", ["ntxent", "paper"])
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_blocks_are_recomputed_in_float32_even_when_backward_runs_inside_autocast(
    variant: str, temperature: float
) -> None:
    inputs = [x.float() for x in samples(24, 16, 2)]
    expected = value_and_gradients(of(temperature, variant=variant), *inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value_and_gradients(of(temperature, variant=variant), *inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@every_variant
def test_temperature_as_number_or_as_tensor_of_another_type(variant: str) -> None:
    joint, *parts = samples(6, 4, 2)
    temperature = scalar(0.25, torch.float32).requires_grad_()
    as_tensor = gmc_loss(parts, joint, temperature, variant=variant)
    assert torch.equal(as_tensor, gmc_loss(parts, joint, 0.25, variant=variant))
    as_tensor.backward()
    assert temperature.grad is not None
    assert temperature.grad.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_variant
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_cuda_gives_the_value_and_gradients_of_the_cpu(variant: str, temperature: float) -> None:
    inputs = samples(50, 16, 3)
    expected = value_and_gradients(of(temperature, variant=variant), *inputs)
    got = value_and_gradients(of(temperature, variant=variant), *(x.cuda() for x in inputs))
    assert_same([t.cpu() for t in got], expected, 1e-9)


# --- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["ntxent", "paper"])
def test_one_block_at_a_time(variant: str) -> None:
    """No allocation beyond the two [B, B] of the backward pass, however many modalities."""
    size = 256
    inputs = [x.float().requires_grad_() for x in samples(size, 8, 5)]
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        of(0.1, variant=variant)(*inputs).backward()
    large = [e.cpu_memory_usage for e in profile.events() if e.cpu_memory_usage >= size**2 * 4]
    assert max(large) <= 2 * size**2 * 4 * 1.01


# --- bad input -------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
GOOD = unit(6, 4, 1, torch.float32)


def with_rows(value: float, *rows: int) -> Tensor:
    x = unit(6, 4, 0, torch.float32)
    x[list(rows)] = value
    return x


@every_variant
@pytest.mark.parametrize(
    ("x", "joint", "error", "message"),
    [
        (GOOD[0], GOOD, ShapeError, r"'b'\] must have shape \[B, D\], got \[4\]"),
        (GOOD, GOOD[0], ShapeError, r"joint must have shape \[B, D\], got \[4\]"),
        (GOOD[:5], GOOD, ShapeError, r"joint and .*'b'\] .*one shape.*got \[6, 4\] and \[5, 4\]"),
        (GOOD[:, :3], GOOD, ShapeError, r"one shape \[B, D\].*got \[6, 4\] and \[6, 3\]"),
        (GOOD.to("meta"), GOOD, ShapeError, "on one device, got cpu and meta"),
        (GOOD.double(), GOOD, ShapeError, "one type, got torch.float32 and torch.float64"),
        (GOOD.long(), GOOD, ShapeError, "floating-point numbers, got torch.int64"),
        (with_rows(NAN, 3), GOOD, MMCLError, r"'b'\]: 1 of 6 rows hold NaN or inf.* is row 3"),
        (with_rows(0, 1, 5), GOOD, MMCLError, r"'b'\]: 2 of 6 rows are zero vectors.* is row 1"),
        (GOOD, with_rows(INF, 4), MMCLError, "joint: 1 of 6 rows hold NaN or inf.* is row 4"),
    ],
)
def test_bad_embeddings(
    variant: str, x: Tensor, joint: Tensor, error: type[MMCLError], message: str
) -> None:
    with pytest.raises(error, match=message):
        gmc_loss({"a": GOOD, "b": x}, joint, 0.1, variant=variant)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (GOOD[:0], r"joint and modalities\[0\] are empty, of shape \[0, 4\]"),
        (GOOD[:, :0], r"are empty, of shape \[6, 0\]"),
        (GOOD[:1], "batch of 1 has no negatives.*at least 2"),
    ],
)
def test_no_samples_or_one(x: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        gmc_loss([x], x, 0.1)


@pytest.mark.parametrize("modalities", [[], {}])
def test_no_modality(modalities) -> None:
    with pytest.raises(ShapeError, match="at least one modality, got none"):
        gmc_loss(modalities, GOOD, 0.1)


def test_an_unknown_variant() -> None:
    with pytest.raises(MMCLError, match="one of ntxent, paper, joint_negatives; got 'simclr'"):
        gmc_loss([GOOD], GOOD, 0.1, variant="simclr")


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, INF])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_bad_temperature(as_tensor: bool, value: float) -> None:
    message = f"temperature must be positive and finite, got {value}"
    with pytest.raises(MMCLError, match=re.escape(message)):
        gmc_loss([GOOD], GOOD, torch.tensor(value) if as_tensor else value)
    with pytest.raises(ShapeError, match=r"temperature must be a number or .*, got \[1\]"):
        gmc_loss([GOOD], GOOD, torch.tensor([value]))


@pytest.mark.parametrize(
    "rows", [slice(0, 7), slice(3, 3), slice(-2, 6), slice(None, 3), slice(0, 6, 2), 3]
)
@every_variant
def test_bad_rows(variant: str, rows: slice) -> None:
    message = f"0 <= start < stop <= 6, the number of samples, got {rows}"
    with pytest.raises(ShapeError, match=re.escape(message)):
        gmc_loss([GOOD], GOOD, 0.1, variant=variant, rows=rows)
