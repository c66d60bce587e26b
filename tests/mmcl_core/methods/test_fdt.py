"""FDT: its grounding against golden values and the naive [B, N, C] form, and the method."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from mmcl_core import grounding
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.augment import paraphrase
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.errors import MissingModalityError, MMCLError, ShapeError
from mmcl_core.evaluation import embed_all, recall_at_k
from mmcl_core.grounding import ground
from mmcl_core.methods import FDT
from mmcl_core.methods.fdt import Cooling, FDTGrounding, codebook_usage
from mmcl_core.sparsemax import sparsemax
from mmcl_core.training import fit
from tests import reference

POOLINGS, NORMALIZERS = ("max", "mean", "sum"), ("sparsemax", "softmax", "sigmoid")
PADDINGS = ("exclude", "zero")


def sines(*shape: int, step: float, shift: float = 0.0) -> Tensor:
    """sin(step * k + shift), k = 1, 2, ..., row by row."""
    k = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return (step * k + shift).sin().view(shape)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Within `tolerance` of the largest element expected, or of 1, if that is larger."""
    assert got.shape == expected.shape
    got, expected = got.detach(), expected.detach()
    assert float((got - expected).abs().max()) <= tolerance * max(float(expected.abs().max()), 1.0)


def layer(seed: int = 0, width: int = 5, dim: int = 4, **kwargs: Any) -> FDTGrounding:
    torch.manual_seed(seed)
    return FDTGrounding(width, dim, **{"grounding_temperature": 0.2} | kwargs).double()


def naive(module: FDTGrounding, features: Tensor, codebook: Tensor, mask: Tensor | None = None):
    if mask is None:
        mask = torch.ones(features.shape[:2], dtype=torch.bool)
    return reference.fdt_grounding(
        features, codebook, mask, query=module.query, temperature=module.grounding_temperature,
        pooling=module.pooling, normalizer=module.normalizer, padding=module.padding,
    )  # fmt: skip


def everything(
    function, module: FDTGrounding, features: Tensor, codebook: Tensor, mask: Tensor | None
) -> dict[str, Tensor]:
    """What comes out, and the gradients of all that goes in; the two outputs weigh alike."""
    leaves = {"features": features, "codebook": codebook}
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}
    feature, weights = function(leaves["features"], leaves["codebook"], mask)
    leaves |= {f"query {name}": p for name, p in module.query.named_parameters()}
    total = (feature * normal(*feature.shape, seed=8)).sum()
    total = total + (weights * normal(*weights.shape, seed=9)).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()))
    found = {"feature": feature.detach(), "weights": weights.detach()}
    return found | dict(zip(leaves, gradients, strict=True))


def assert_as_naive(
    module: FDTGrounding, features: Tensor, codebook: Tensor, mask: Tensor | None = None
) -> None:
    got = everything(module, module, features, codebook, mask)
    expected = everything(lambda *inputs: naive(module, *inputs), module, features, codebook, mask)
    for name, value in expected.items():
        close(got[name], value)


# --- golden values ---------------------------------------------------------------------------


def test_the_golden_values() -> None:
    """Two digits of the second row differ from the design's note: no mixture gives its values."""
    module = FDTGrounding(4, 6, grounding_temperature=0.25).double()
    with torch.no_grad():
        for i, p in enumerate(module.query.parameters()):
            p.copy_(sines(*p.shape, step=0.9 + 0.1 * i, shift=i))
    feature, weights = module(sines(2, 3, 4, step=0.77), sines(10, 6, step=0.53))
    expected = [
        [0.7010571601, 0.9639298507, 0.9623138212, 0.6966524873, 0.2398395622, -0.2827819471],
        [0.7003135523, 0.9636189371, 0.9625209121, 0.6973207598, 0.2407856519, -0.2818176339],
    ]
    close(feature, torch.tensor(expected, dtype=torch.float64))
    close(feature, weights @ sines(10, 6, step=0.53), 1e-15)


def test_the_golden_values_with_padding_of_zero() -> None:
    module = FDTGrounding(4, 4, padding="zero").double()
    module.query = nn.Identity()
    mask = torch.tensor([[True, True, True], [True, False, False]])
    _, weights = module(sines(2, 3, 4, step=0.77), sines(6, 4, step=0.53), mask)
    expected = [0.1663010612, 0.1665268609, 0.1671600620, 0.1663010612, 0.1666140841, 0.1670968707]
    close(weights[1], torch.tensor(expected, dtype=torch.float64))


# --- against the naive form ------------------------------------------------------------------


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    """Any tokens padded, not the last ones alone; of each sample, one at least is real."""
    samples, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    rows = st.lists(st.booleans(), min_size=tokens, max_size=tokens).filter(any)
    return torch.tensor(draw(st.lists(rows, min_size=samples, max_size=samples)))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("padding", PADDINGS)
@given(masks(), st.integers(1, 40), st.sampled_from([0.05, 0.5, 10.0, 1000.0]), st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_it_is_the_naive_form_with_every_gradient(
    pooling: str,
    normalizer: str,
    padding: str,
    mask: Tensor,
    entries: int,
    temperature: float,
    seed: int,
) -> None:
    module = layer(
        seed, pooling=pooling, normalizer=normalizer, padding=padding,
        grounding_temperature=temperature,
    )  # fmt: skip
    assert_as_naive(module, normal(*mask.shape, 5, seed=seed), normal(entries, 4, seed=1), mask)


@pytest.mark.parametrize("entries", [1, 1000, 1024, 1025, 2500])
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("temperature", [0.2, 1000.0])
def test_codebooks_of_less_and_of_more_than_a_chunk(
    entries: int, tokens: int, temperature: float
) -> None:
    assert grounding._CHUNK == 1024
    module = layer(grounding_temperature=temperature)
    assert_as_naive(module, normal(2, tokens, 5), normal(entries, 4, seed=1))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_tokens_in_any_layout_of_memory(pooling: str) -> None:
    codebook = normal(9, 4, seed=1)
    plain = normal(3, 6, 4)
    for queries in (
        normal(6, 3, 4).transpose(0, 1),
        normal(3, 4, 6).transpose(1, 2),
        normal(3, 12, 4)[:, ::2],
        plain[:, :1].expand(3, 6, 4),
    ):
        got = everything_of_ground(queries, codebook, pooling)
        expected = everything_of_ground(queries.contiguous(), codebook, pooling)
        for a, b in zip(got, expected, strict=True):
            close(a, b, 1e-12)
    codebook = normal(4, 9, seed=1).T
    for a, b in zip(
        everything_of_ground(plain, codebook, pooling),
        everything_of_ground(plain, codebook.contiguous(), pooling),
        strict=True,
    ):
        close(a, b, 1e-12)


def everything_of_ground(queries: Tensor, codebook: Tensor, pooling) -> tuple[Tensor, ...]:
    queries, codebook = queries.detach().requires_grad_(), codebook.detach().requires_grad_()
    feature, weights = ground(queries, codebook, sparsemax, pooling=pooling)
    gradients = torch.autograd.grad(feature.square().sum(), (queries, codebook))
    return feature.detach(), weights.detach(), *gradients


def test_the_gradient_is_that_of_finite_differences() -> None:
    module = layer()

    def function(features: Tensor, codebook: Tensor, *parameters: Tensor):
        names = [name for name, _ in module.named_parameters()]
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(module, state, (features, codebook))

    inputs = [normal(2, 3, 5), normal(6, 4, seed=1), *module.parameters()]
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    assert gradcheck(function, inputs)


@pytest.mark.parametrize("needed", [(1, 0), (0, 1)])
def test_one_side_frozen(needed: tuple[int, int]) -> None:
    queries, codebook = normal(3, 4, 5), normal(8, 5, seed=1)
    both = everything_of_ground(queries, codebook, "max")[2:]
    leaves = [t.requires_grad_(bool(n)) for t, n in zip((queries, codebook), needed, strict=True)]
    ground(*leaves, sparsemax)[0].square().sum().backward()
    for leaf, gradient, need in zip(leaves, both, needed, strict=True):
        assert (leaf.grad is not None) == bool(need)
        if leaf.grad is not None:
            close(leaf.grad, gradient, 1e-12)


# --- padding and order -----------------------------------------------------------------------

MASK = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("padding", PADDINGS)
def test_what_stands_in_the_padding_changes_nothing(pooling: str, padding: str) -> None:
    module, codebook = layer(pooling=pooling, padding=padding), normal(9, 4, seed=1)
    features = normal(3, 5, 5)
    other = torch.where(MASK[:, :, None], features, 100 * normal(3, 5, 5, seed=2))
    got = everything(module, module, other, codebook, MASK)
    expected = everything(module, module, features, codebook, MASK)
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
    assert not expected["features"][~MASK].any()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_that_is_excluded_is_padding_that_is_cut_off(pooling: str) -> None:
    module, codebook, features = layer(pooling=pooling), normal(9, 4, seed=1), normal(3, 5, 5)
    together = module(features, codebook, MASK)
    for i, real in enumerate(MASK):
        alone = module(features[i : i + 1, real], codebook)
        close(together.weights[i], alone.weights[0], 1e-12)
        close(together.feature[i], alone.feature[0], 1e-12)


def test_padding_of_zero_is_what_sets_a_floor() -> None:
    """Under max, no entry of a padded sample scores below 0; that is the authors' code."""
    module, codebook = layer(padding="zero"), normal(9, 4, seed=1)
    features = normal(3, 5, 5)
    scores = module.scores(features, codebook)
    pooled = torch.stack([s[real].amax(0) for s, real in zip(scores, MASK, strict=True)])
    floor = torch.where(MASK.all(1), -torch.inf, 0.0).double()[:, None]
    close(module(features, codebook, MASK).weights, sparsemax(pooled.maximum(floor)), 1e-12)
    assert (pooled[:2] < 0).any()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("padding", PADDINGS)
def test_the_order_of_tokens_and_of_samples_does_not_matter(pooling: str, padding: str) -> None:
    module, codebook = layer(pooling=pooling, padding=padding), normal(9, 4, seed=1)
    features, tokens, samples = normal(3, 5, 5), [3, 0, 4, 2, 1], [2, 0, 1]
    expected = everything(module, module, features, codebook, MASK)
    moved = features[samples][:, tokens], MASK[samples][:, tokens]
    feature, weights = module(moved[0], codebook, moved[1])
    close(feature, expected["feature"][samples], 1e-12)
    close(weights, expected["weights"][samples], 1e-12)


def test_a_mask_of_real_tokens_alone_is_none() -> None:
    for pooling in POOLINGS:
        module, codebook = layer(pooling=pooling), normal(9, 4, seed=1)
        a = module(normal(3, 5, 5), codebook, torch.ones(3, 5, dtype=torch.bool))
        assert torch.equal(a.feature, module(normal(3, 5, 5), codebook).feature)


# --- several backward passes -----------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
def test_two_backward_passes_give_the_same(pooling: str) -> None:
    queries, codebook = normal(3, 4, 5).requires_grad_(), normal(8, 5, seed=1).requires_grad_()
    loss = ground(queries, codebook, sparsemax, pooling=pooling)[0].square().sum()
    first = torch.autograd.grad(loss, (queries, codebook), retain_graph=True)
    second = torch.autograd.grad(loss, (queries, codebook))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, (queries, codebook))


def test_max_has_no_second_derivative_and_says_so() -> None:
    queries, codebook = normal(2, 3, 4).requires_grad_(), normal(5, 4, seed=1)
    feature, _ = ground(queries, codebook, sparsemax)
    with pytest.raises(MMCLError, match=r"no second derivative.*create_graph=True.*mean or sum"):
        torch.autograd.grad(feature.sum(), queries, create_graph=True)


@pytest.mark.parametrize("pooling", ["mean", "sum"])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_mean_and_sum_have_a_second_derivative(pooling: str, normalizer: str) -> None:
    module = layer(pooling=pooling, normalizer=normalizer)
    inputs = normal(2, 3, 5).requires_grad_(), normal(6, 4, seed=1).requires_grad_()
    assert gradgradcheck(lambda *t: module(*t, MASK[[0, 2], :3]).feature, inputs)


def test_without_a_gradient_nothing_is_kept() -> None:
    module, features, codebook = layer(), normal(2, 3, 5), normal(6, 4, seed=1)
    expected = module(features, codebook)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            got = module(features, codebook)
        assert not got.feature.requires_grad
        assert torch.equal(got.feature, expected.feature)
        assert torch.equal(got.weights, expected.weights)


# --- precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("temperature", [0.2, 1000.0])
def test_float32(pooling: str, temperature: float) -> None:
    module = layer(width=32, dim=64, pooling=pooling, grounding_temperature=temperature)
    features, codebook = normal(4, 9, 32), normal(3000, 64, seed=1)
    expected = everything(module, module, features, codebook, None)
    got = everything(module.float(), module, features.float(), codebook.float(), None)
    for name, value in expected.items():
        close(got[name].double(), value, 1e-4)
    assert float((got["weights"].double().sum(1) - 1).abs().max()) < 1e-6


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_inside_autocast_only_the_query_map_is_in_half_precision(
    pooling: str, normalizer: str
) -> None:
    module = layer(width=16, dim=16, pooling=pooling, normalizer=normalizer).float()
    features, codebook = normal(4, 9, 16).float(), normal(50, 16, seed=1).float()
    mask = torch.ones(4, 9, dtype=torch.bool)
    mask[1, 4:] = False
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, queries = module(features, codebook, mask), module.query(features)
    assert queries.dtype == torch.bfloat16
    module.query = nn.Identity()
    expected = module(queries.float(), codebook, mask)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_autocast_changes_no_bit_of_the_grounding(pooling: str) -> None:
    module = layer(width=16, dim=16, pooling=pooling, grounding_temperature=5.0).float()
    module.query = nn.Identity()
    features, codebook = normal(4, 9, 16).float(), normal(50, 16, seed=1).float()

    def inside(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return module(*inputs)

    got = everything(inside, module, features, codebook, None)
    expected = everything(module, module, features, codebook, None)
    assert expected["features"].any()
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_the_gradient_of_max_is_in_float32_even_when_backward_runs_inside_autocast() -> None:
    module = layer(width=16, dim=16, grounding_temperature=5.0).float()
    module.query = nn.Identity()
    features, codebook = normal(4, 9, 16).float(), normal(50, 16, seed=1).float()
    expected = everything(module, module, features, codebook, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = everything(module, module, features, codebook, None)
    assert all(torch.equal(got[name], value) for name, value in expected.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_cuda_gives_what_the_cpu_gives(pooling: str, padding: str) -> None:
    module, codebook = layer(pooling=pooling, padding=padding), normal(2500, 4, seed=1)
    expected = everything(module, module, normal(3, 5, 5), codebook, MASK)
    module = module.cuda()

    def function(*inputs: Tensor) -> Iterator[Tensor]:
        return (t.cpu() for t in module(*(t.cuda() for t in inputs)))

    got = everything(function, module, normal(3, 5, 5), codebook, MASK)
    for name, value in expected.items():
        close(got[name].cpu(), value)


# --- bad input -------------------------------------------------------------------------------


def test_a_sample_of_padding_alone() -> None:
    mask = MASK.clone()
    mask[1:] = False
    message = "expected a real token in every sample; 2 of 3 have none, the first is sample 1"
    for padding in PADDINGS:
        with pytest.raises(ShapeError, match=message):
            layer(padding=padding)(normal(3, 5, 5), normal(9, 4), mask)


FEATURES, CODEBOOK = normal(3, 5, 5), normal(9, 4, seed=1)


@pytest.mark.parametrize(
    ("features", "codebook", "mask", "message"),
    [
        (FEATURES, CODEBOOK, MASK[:2], r"mask bool \[3, 5\].*got torch.bool \[2, 5\]"),
        (FEATURES, CODEBOOK, MASK[:, :4], r"mask bool \[3, 5\].*got torch.bool \[3, 4\]"),
        (FEATURES, CODEBOOK, MASK.int(), r"mask bool \[3, 5\].*got torch.int32 \[3, 5\]"),
        (FEATURES, normal(9, 6), None, r"codebook \[C, 4\].*got .*\[3, 5, 5\] and \[9, 6\]"),
        (FEATURES, normal(4), None, r"codebook \[C, 4\].*got .*\[3, 5, 5\] and \[4\]"),
        (FEATURES, normal(0, 4), None, r"C at least 1.*got .*\[3, 5, 5\] and \[0, 4\]"),
        (FEATURES[0], CODEBOOK, None, r"tokens \[B, N, 5\].*got .*\[5, 5\] and \[9, 4\]"),
        (normal(3, 5, 6), CODEBOOK, None, r"tokens \[B, N, 5\].*got .*\[3, 5, 6\] and \[9, 4\]"),
        (normal(3, 0, 5), CODEBOOK, None, r"N and C at least 1.*got .*\[3, 0, 5\] and \[9, 4\]"),
    ],
)
def test_bad_shapes(features: Tensor, codebook: Tensor, mask: Tensor | None, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        layer()(features, codebook, mask)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalizer": "entmax"}, "one of sparsemax, softmax, sigmoid; got 'entmax'"),
        ({"pooling": "min"}, "one of max, mean, sum; got 'min'"),
        ({"padding": None}, "one of exclude, zero; got None"),
        ({"grounding_temperature": 0.0}, r"above 0 and finite \(.*\); got 0.0"),
        ({"grounding_temperature": -1.0}, r"above 0 and finite \(.*\); got -1.0"),
        ({"grounding_temperature": math.inf}, r"above 0 and finite \(.*\); got inf"),
        ({"grounding_temperature": math.nan}, r"above 0 and finite \(.*\); got nan"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MMCLError, match=message):
        layer(**settings)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_diverged_encoder_is_reported(pooling: str) -> None:
    features = FEATURES.clone()
    features[1, 2, 3] = math.nan
    with pytest.raises(MMCLError, match="1 of 3 rows hold others, the first is row 1 with NaN"):
        layer(pooling=pooling)(features, CODEBOOK)


# --- how the codebook is used ----------------------------------------------------------------


def test_usage_by_hand() -> None:
    """Mean weights 1/2, 1/4, 1/4, 0: an entropy of 3/2 log 2."""
    usage = codebook_usage(torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.0, 0.5, 0.0]]))
    assert usage.active == 2
    assert usage.used == 3
    assert usage.perplexity == pytest.approx(2**1.5)


@pytest.mark.parametrize("entries", [1, 2, 7, 500])
def test_usage_of_one_entry_of_each_in_turn_and_of_all(entries: int) -> None:
    one = torch.zeros(6, entries)
    one[:, -1] = 1
    assert codebook_usage(one) == (1, 1, 1)
    for weights, active in (
        (torch.eye(entries), 1),
        (torch.full((3, entries), 1 / entries), entries),
    ):
        usage = codebook_usage(weights)
        assert (usage.active, usage.used) == (active, entries)
        assert usage.perplexity == pytest.approx(entries, rel=1e-5)


# --- the schedule ----------------------------------------------------------------------------


def test_cooling_is_geometric_and_then_stays() -> None:
    cooling = Cooling(300, 10, steps=100, share=0.8)
    assert cooling.at(0) == 300
    assert cooling.at(40) == pytest.approx(math.sqrt(300 * 10))
    ratios = [cooling.at(step + 1) / cooling.at(step) for step in range(80)]
    assert ratios == pytest.approx(80 * [(10 / 300) ** (1 / 80)])
    assert [cooling.at(step) for step in (80, 81, 99, 100)] == pytest.approx(4 * [10])
    assert Cooling(1, 8, steps=3, share=1.0).at(2) == pytest.approx(4)  # it may also warm


def test_cooling_raises_outside_of_its_steps() -> None:
    cooling = Cooling(300, 10, steps=100)
    for step in (-1, 101):
        with pytest.raises(MMCLError, match=f"has 100 steps, and this is step {step}: make it as"):
            cooling.at(step)
    for bad in ({"steps": 0}, {"share": 0.0}, {"share": 1.5}, {"share": math.nan}):
        with pytest.raises(MMCLError, match=r"steps must be .* at least 1|share must .* \(0, 1\]"):
            Cooling(**{"start": 300, "end": 10, "steps": 100} | bad)
    for bad in ({"start": 0.0}, {"end": -1.0}, {"end": math.inf}):
        with pytest.raises(MMCLError, match="above 0 and finite"):
            Cooling(**{"start": 300, "end": 10, "steps": 100} | bad)


# --- the method ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab() -> ShapesCaptions:
    return ShapesCaptions(256)


def small(lab: ShapesCaptions, seed: int = 0, **kwargs: Any) -> FDT:
    torch.manual_seed(seed)
    encoders = ImageEncoder(width=32), CaptionEncoder(len(lab.tokenizer), width=32)
    return FDT(*encoders, **{"codebook_size": 40, "dim": 16, "grounding_temperature": 2.0} | kwargs)


def weights_of(model: FDT, batch: dict[str, Tensor], name: str) -> Tensor:
    """By the naive form."""
    encoded, head = model.encoders[name](batch[name]), model.heads[name]
    return reference.fdt_grounding(
        encoded.tokens, model.codebook, encoded.mask, query=head.query,
        temperature=model.grounding_temperature, pooling="max", normalizer="sparsemax",
        padding="exclude",
    )[1]  # fmt: skip


def test_embeddings_are_normalised_mixtures_of_one_codebook(lab: ShapesCaptions) -> None:
    model, batch = small(lab), lab.batch(range(6))
    vectors = {}
    for name in ("image", "caption"):
        weights = weights_of(model, batch, name)
        vectors[name] = F.normalize(weights @ model.codebook, dim=1)
        got = model.embed({name: batch[name]})
        torch.testing.assert_close(got, vectors[name], rtol=0, atol=1e-5)
        torch.testing.assert_close(model.ground(batch, name).weights, weights, rtol=0, atol=1e-5)
    both = F.normalize(vectors["image"] + vectors["caption"], dim=1)
    torch.testing.assert_close(model.embed(batch), both, rtol=0, atol=1e-5)


def test_its_loss_is_clips_with_what_to_watch_beside_it(lab: ShapesCaptions) -> None:
    model, batch = small(lab, temperature=0.05), lab.batch(range(6))
    x, y = (model.embed({name: batch[name]}) for name in ("image", "caption"))
    logits, diagonal = x @ y.T / 0.05, torch.arange(6)
    expected = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
    for mode in (True, False):
        parts = model.train(mode).loss(batch)
        assert list(parts) == ["total", "active_image", "active_caption", "grounding_temperature"]
        torch.testing.assert_close(parts["total"], expected, rtol=1e-4, atol=1e-4)
        for name in ("image", "caption"):
            active = (weights_of(model, batch, name) > 0).sum() / 6
            assert float(parts[f"active_{name}"]) == pytest.approx(float(active))
            assert not parts[f"active_{name}"].requires_grad
        assert float(parts["grounding_temperature"]) == 2.0


def test_what_is_watched_is_the_batch_at_hand(lab: ShapesCaptions) -> None:
    """Also where it is not the one of the last step."""
    model = small(lab)
    for mode, rows in ((True, range(6)), (False, range(6, 20)), (True, range(20, 23))):
        batch = lab.batch(rows)
        parts = model.train(mode).loss(batch)
        active = (weights_of(model, batch, "image") > 0).sum(1).double().mean()
        assert float(parts["active_image"]) == pytest.approx(float(active))


@pytest.mark.parametrize("mode", [True, False])
def test_the_order_of_samples_does_not_matter(lab: ShapesCaptions, mode: bool) -> None:
    model, batch = small(lab).train(mode), lab.batch(range(7))
    order = [4, 2, 0, 6, 1, 5, 3]
    moved = {name: values[order] for name, values in batch.items()}
    torch.testing.assert_close(model.embed(moved), model.embed(batch)[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        model.loss(moved)["total"], model.loss(batch)["total"], rtol=1e-5, atol=1e-5
    )


def test_token_attention_is_what_the_weights_are_made_of(lab: ShapesCaptions) -> None:
    model, batch = small(lab), lab.batch(range(6))
    attention = model.token_attention(batch)
    assert list(attention) == ["image", "caption"]
    for name, tokens in (("image", 36), ("caption", batch["caption"].shape[1])):
        scores, weights, mask = attention[name]
        assert scores.shape == (6, tokens, 40)
        assert weights.shape == (6, 40)
        pooled = scores.masked_fill(~mask[:, :, None], -torch.inf).amax(1)
        torch.testing.assert_close(sparsemax(pooled), weights, rtol=0, atol=1e-5)
        torch.testing.assert_close(weights, model.ground(batch, name).weights)
    assert torch.equal(attention["caption"].mask, batch["caption"] != 0)
    assert not attention["caption"].mask.all()
    assert list(model.token_attention({"caption": batch["caption"]})) == ["caption"]


def test_missing_modalities_are_named(lab: ShapesCaptions) -> None:
    model, batch = small(lab), lab.batch(range(3))
    image, tags = {"image": batch["image"]}, {"tags": batch["tags"]}
    with pytest.raises(MissingModalityError, match=r"caption not in the batch.*\['image'\]"):
        model.loss(image)
    with pytest.raises(MissingModalityError, match=r"holds \['tags'\]"):
        model.embed(tags)
    with pytest.raises(MissingModalityError, match=r"caption not in the batch.*\['image'\]"):
        model.ground(image, "caption")
    with pytest.raises(MissingModalityError, match=r"image, caption; got 'tags'"):
        model.ground(tags, "tags")
    with pytest.raises(MissingModalityError, match=r"holds \['tags'\]"):
        model.token_attention(tags)


def test_bad_settings_of_the_method(lab: ShapesCaptions) -> None:
    with pytest.raises(MMCLError, match=r"codebook_size must be .* at least 2; got 1"):
        small(lab, codebook_size=1)
    with pytest.raises(MMCLError, match=r"grounding_temperature must be above 0 .*; got -3"):
        small(lab, grounding_temperature=-3)
    with pytest.raises(MMCLError, match="one of max, mean, sum"):
        small(lab, pooling="top")
    with pytest.raises(MMCLError, match="Linear has no `width`"):
        FDT(nn.Linear(2, 2), nn.Linear(2, 2))


def test_the_settings_reach_both_groundings(lab: ShapesCaptions) -> None:
    settings = {"normalizer": "softmax", "pooling": "mean", "padding": "zero"}
    model = small(lab, grounding_temperature=7.0, **settings)
    for head in model.heads.values():
        found = (head.normalizer, head.pooling, head.padding, head.grounding_temperature)
        assert found == ("softmax", "mean", "zero", 7.0)
    assert float(model.logit_scale.detach()) == pytest.approx(1 / 0.07)
    assert model.codebook.shape == (40, 16)
    queries = [p for head in model.heads.values() for p in head.parameters()]
    assert len({id(p) for p in queries}) == 16  # none shared: only the codebook is


# --- the schedule, in the method -------------------------------------------------------------


def test_each_step_has_its_temperature(lab: ShapesCaptions) -> None:
    cooling = Cooling(8.0, 2.0, steps=4)
    model, batch = small(lab, grounding_temperature=cooling), lab.batch(range(6))
    for step in range(4):
        assert model.grounding_temperature == cooling.at(step)
        assert float(model.loss(batch)["grounding_temperature"]) == pytest.approx(cooling.at(step))
        model.embed(batch)
        assert {head.grounding_temperature for head in model.heads.values()} == {cooling.at(step)}
        model.after_step()
    assert model.grounding_temperature == pytest.approx(2.0)  # in use, after the training
    model.eval()
    assert float(model.loss(batch)["grounding_temperature"]) == pytest.approx(2.0)
    model.embed(batch)


def test_a_step_past_the_end_of_the_schedule_raises_and_changes_nothing(
    lab: ShapesCaptions,
) -> None:
    model = small(lab, grounding_temperature=Cooling(8.0, 2.0, steps=2))
    batch = lab.batch(range(6))
    for _ in range(2):
        model.loss(batch)
        model.after_step()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(MMCLError, match="schedule has 2 steps, and this is step 3: make it as"):
        model.loss(batch)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after["step"] == 2
    assert all(p.grad is None for p in model.parameters())


def test_a_checkpoint_from_beyond_the_schedule_is_refused_in_use(lab: ShapesCaptions) -> None:
    long, short = (small(lab, grounding_temperature=Cooling(8.0, 2.0, steps=n)) for n in (9, 2))
    long.step += 5
    short.load_state_dict(long.state_dict())
    for mode in (True, False):
        with pytest.raises(MMCLError, match="schedule has 2 steps, and this is step 5"):
            short.train(mode).loss(lab.batch(range(3)))


def test_the_step_is_part_of_the_state(lab: ShapesCaptions) -> None:
    cooling = Cooling(8.0, 2.0, steps=4)
    model, other = (small(lab, seed, grounding_temperature=cooling) for seed in (0, 1))
    batch = lab.batch(range(6))
    for _ in range(3):
        model.loss(batch)
        model.after_step()
    assert model.state_dict()["step"] == 3
    other.load_state_dict(model.state_dict())
    assert other.grounding_temperature == cooling.at(3)
    assert torch.equal(other.embed(batch), model.embed(batch))


class Stop(Exception):
    pass


def test_a_resumed_training_cools_on(lab: ShapesCaptions, tmp_path: Path) -> None:
    few = lab.subset(range(24))

    def model(seed: int) -> FDT:
        return small(lab, seed, grounding_temperature=Cooling(20.0, 2.0, steps=6))

    kwargs: dict[str, Any] = {
        "epochs": 2, "batch_size": 8, "progress": False, "checkpoint": tmp_path / "fdt.pt",
    }  # fmt: skip
    calls: list[int] = []

    def stopping(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        calls.append(0)
        if len(calls) == 5:
            raise Stop
        return batch

    whole, resumed = model(0), model(1)
    expected = fit(whole, few, **kwargs | {"checkpoint": None}).steps
    with pytest.raises(Stop):
        fit(model(0), few, augment=stopping, **kwargs, checkpoint_every=2)
    got = fit(resumed, few, resume=True, **kwargs).steps
    assert got["grounding_temperature"] == expected["grounding_temperature"]
    cooled = [Cooling(20, 2, steps=6).at(i) for i in range(6)]
    assert got["grounding_temperature"] == pytest.approx(cooled)
    assert got["total"] == expected["total"]
    state = resumed.state_dict()
    assert all(torch.equal(state[name], v) for name, v in whole.state_dict().items())
    assert state["step"] == 6


# --- the warning -----------------------------------------------------------------------------


def test_a_collapse_is_reported_once(lab: ShapesCaptions) -> None:
    model, batch = small(lab, grounding_temperature=0.01), lab.batch(range(8))
    with torch.no_grad():  # one entry that every token prefers
        for head in model.heads.values():
            head.query[-1].weight.zero_()
            head.query[-1].bias.copy_(model.codebook[7])
    model.loss(batch)
    message = r"images of a whole batch share 1 of the 40 entries \(perplexity 1.00\).*of 0.01"
    with pytest.warns(UserWarning, match=message) as caught:
        model.after_step()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.loss(batch)
        model.after_step()


def test_nothing_is_reported_without_a_collapse(lab: ShapesCaptions) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for temperature in (0.01, 1000.0):  # sparse is not collapsed
            model = small(lab, grounding_temperature=temperature)
            parts = model.loss(lab.batch(range(40)))
            assert (float(parts["active_caption"]) < 1.1) == (temperature == 0.01)
            model.after_step()
        # Two samples that share a token say nothing, and no samples even less.
        model = small(lab, grounding_temperature=0.01)
        model.after_step()
        batch = lab.batch([3, 3])
        model.loss(batch)
        model.after_step()
        # And in evaluation nothing is watched: identical pictures are the user's business.
        model.eval().embed(lab.batch(8 * [3]))
        model.train().after_step()


# --- that it learns --------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_while_it_cools(lab: ShapesCaptions) -> None:
    model = small(lab, codebook_size=64, grounding_temperature=Cooling(100.0, 10.0, steps=20 * 8))
    history = fit(
        model, lab, epochs=20, batch_size=32, lr=3e-3, progress=False,
        augment=paraphrase(lab),
    )  # fmt: skip
    image, caption = (embed_all(model, lab, (name,)) for name in ("image", "caption"))
    chance = 10 / len(lab)
    assert recall_at_k(image, caption, 10) > 5 * chance
    active = history.steps["active_image"]
    assert active[-1] < 0.75 * active[0]
