"""MVAE and MMVAE: their Gaussians against closed forms and sampling, their bounds against loops."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from mmcl_book.methods import MMVAE, MVAE
from mmcl_book.methods.vae import (
    Gaussian,
    PictureDecoder,
    kl_to_prior,
    picture_log_likelihood,
    product_of_experts,
    words_log_likelihood,
    words_there,
)
from mmcl_core.data import ShapesCaptions
from mmcl_core.encoders import CaptionEncoder, ImageEncoder, TagEncoder
from mmcl_core.errors import MissingModalityError, MMCLError, ShapeError
from mmcl_core.training import fit

KINDS = [MVAE, MMVAE]


def gaussian(seed: int, size: int = 5, width: int = 3) -> Gaussian:
    g = torch.Generator().manual_seed(seed)
    return Gaussian(*torch.randn(2, size, width, generator=g, dtype=torch.float64))


def small(kind: type, seed: int = 0, **kwargs: Any) -> Any:
    torch.manual_seed(seed)
    encoders = ImageEncoder(size=16, width=32), CaptionEncoder(12, width=32, max_length=8)
    return kind(*encoders, **{"dim": 6} | kwargs).double().eval()


def scenes(size: int = 4) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    captions = torch.randint(1, 12, (size, 6), generator=g)
    captions[0, 3:] = 0
    return {
        "image": torch.rand(size, 3, 16, 16, generator=g, dtype=torch.float64),
        "caption": captions,
    }


# --- Gaussians ------------------------------------------------------------------------------------


def test_two_experts_and_the_prior_are_multiplied_as_densities() -> None:
    """The product of the densities, on a grid, normalised by a sum."""
    one, two = (
        Gaussian(torch.tensor([[0.7]]), torch.tensor([[-1.0]])),
        Gaussian(torch.tensor([[-2.0]]), torch.tensor([[0.5]])),
    )
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = Normal(0.0, 1.0).log_prob(z)
    for mean, log_variance in (one, two):
        density = density + Normal(mean.double(), (log_variance.double() / 2).exp()).log_prob(z)
    weight = (density - density.max()).exp().flatten()
    weight = weight / weight.sum()
    mean = (weight * z).sum()
    variance = (weight * (z - mean).square()).sum()
    found = product_of_experts([one, two])
    assert float(found.mean) == pytest.approx(float(mean), abs=1e-6)
    assert float(found.log_variance) == pytest.approx(math.log(float(variance)), abs=1e-5)


def test_one_expert_is_drawn_towards_the_prior() -> None:
    """By hand: of variance 3, T = 1/3; with the prior, T = 4/3 and the mean a fourth of it."""
    found = product_of_experts([Gaussian(torch.tensor([[8.0]]), torch.tensor([[math.log(3.0)]]))])
    assert float(found.mean) == pytest.approx(2.0)
    assert float(found.log_variance.exp()) == pytest.approx(0.75)


def test_the_order_of_experts_does_not_matter_and_none_is_an_error() -> None:
    a, b, c = map(gaussian, range(3))
    for one, two in zip(product_of_experts([a, b, c]), product_of_experts([c, a, b]), strict=True):
        torch.testing.assert_close(one, two)
    with pytest.raises(MMCLError, match="at least one"):
        product_of_experts([])


def test_divergence_is_that_of_torch_and_of_sampling() -> None:
    of = gaussian(1)
    normal = Normal(of.mean, (of.log_variance / 2).exp())
    prior = Normal(torch.zeros_like(of.mean), torch.ones_like(of.mean))
    found = kl_to_prior(of)
    torch.testing.assert_close(found, kl_divergence(normal, prior).sum(1))
    g = torch.Generator().manual_seed(0)
    z = torch.stack([of.draw(g) for _ in range(20_000)])
    sampled = (normal.log_prob(z) - prior.log_prob(z)).sum(2).mean(0)
    torch.testing.assert_close(sampled, found, rtol=0.05, atol=0.05)


def test_divergence_of_the_prior_is_zero() -> None:
    assert kl_to_prior(Gaussian(torch.zeros(2, 3), torch.zeros(2, 3))).tolist() == [0, 0]


def test_draws_have_the_moments_and_pass_the_gradient() -> None:
    mean = torch.tensor([[1.0, -2.0]], requires_grad=True)
    log_variance = torch.tensor([[0.0, 1.0]], requires_grad=True)
    g = torch.Generator().manual_seed(0)
    z = torch.cat([Gaussian(mean, log_variance).draw(g) for _ in range(4000)])
    torch.testing.assert_close(z.mean(0), mean[0], atol=0.1, rtol=0)
    torch.testing.assert_close(z.var(0), log_variance[0].exp(), atol=0.2, rtol=0)
    z.sum().backward()
    assert mean.grad is not None
    assert mean.grad.tolist() == [[4000.0, 4000.0]]


# --- likelihoods ----------------------------------------------------------------------------------


def test_likelihoods_are_those_of_torch() -> None:
    batch = scenes()
    decoded = torch.rand_like(batch["image"])
    expected = Normal(decoded, 0.3).log_prob(batch["image"]).sum((1, 2, 3))
    torch.testing.assert_close(picture_log_likelihood(decoded, batch["image"], 0.3), expected)
    there = words_there(batch["caption"], 12).double()
    logits = torch.randn_like(there)
    expected = Bernoulli(logits=logits).log_prob(there).sum(1)
    torch.testing.assert_close(words_log_likelihood(logits, there), expected)


def test_words_there_are_those_of_the_caption_without_specials() -> None:
    captions = torch.tensor([[1, 5, 5, 7, 2, 0], [1, 4, 3, 2, 0, 0]])
    rows = words_there(captions, 9)
    for caption, row in zip(captions.tolist(), rows.tolist(), strict=True):
        assert {i + 4 for i, value in enumerate(row) if value} == {w for w in caption if w >= 4}
        assert set(row) <= {0.0, 1.0}


@pytest.mark.parametrize("size", [16, 32, 48])
def test_decoded_pictures_have_the_size_asked_for(size: int) -> None:
    pictures = PictureDecoder(5, size=size)(torch.randn(2, 5))
    assert pictures.shape == (2, 3, size, size)
    assert 0 < float(pictures.min()) < float(pictures.max()) < 1


# --- the bounds -----------------------------------------------------------------------------------


def elbo(method: Any, of: Gaussian, batch: dict[str, Tensor], names: tuple[str, ...]) -> Tensor:
    """With one draw of torch's generator, by torch.distributions."""
    z = of.draw()
    total = -kl_divergence(
        Normal(of.mean, (of.log_variance / 2).exp()), Normal(torch.zeros(()).double(), 1.0)
    ).sum(1)
    if "image" in names:
        picture = Normal(method.decoders["image"](z), method.pixel_std)
        total = total + picture.log_prob(batch["image"]).sum((1, 2, 3))
    if "caption" in names:
        words = Bernoulli(logits=method.decoders["caption"](z))
        there = torch.zeros(len(z), 8).double()
        for i, caption in enumerate(batch["caption"].tolist()):
            there[i, [w - 4 for w in caption if w >= 4]] = 1
        total = total + method.caption_weight * words.log_prob(there).sum(1)
    return total.mean()


def test_mvae_is_the_sum_of_three_bounds() -> None:
    method, batch = small(MVAE), scenes()
    torch.manual_seed(5)
    found = method.loss(batch)["total"]
    image, caption = (method.expert(batch, m) for m in ("image", "caption"))
    torch.manual_seed(5)
    expected = elbo(method, product_of_experts([image, caption]), batch, ("image", "caption"))
    expected = expected + elbo(method, product_of_experts([image]), batch, ("image",))
    expected = expected + elbo(method, product_of_experts([caption]), batch, ("caption",))
    torch.testing.assert_close(found, -expected)


def test_mmvae_is_the_mean_over_experts_that_each_tell_both() -> None:
    method, batch = small(MMVAE), scenes()
    torch.manual_seed(5)
    found = method.loss(batch)["total"]
    torch.manual_seed(5)
    both = [
        elbo(method, method.expert(batch, m), batch, ("image", "caption"))
        for m in ("image", "caption")
    ]
    torch.testing.assert_close(found, -(both[0] + both[1]) / 2)


def test_the_bound_of_mmvae_is_below_that_of_the_mixture_itself() -> None:
    """Mean divergence of the experts, against the divergence of their mixture by sampling."""
    one, two = gaussian(1, size=2), gaussian(2, size=2)
    normals = [Normal(of.mean, (of.log_variance / 2).exp()) for of in (one, two)]
    g = torch.Generator().manual_seed(0)
    total = torch.zeros(2, dtype=torch.float64)
    for of in (one, two):
        z = torch.stack([of.draw(g) for _ in range(20_000)])
        parts = torch.stack([n.log_prob(z).sum(2) for n in normals])
        mixture = parts.logsumexp(0) - math.log(2)
        total += (mixture - Normal(0.0, 1.0).log_prob(z).sum(2)).mean(0) / 2
    assert ((kl_to_prior(one) + kl_to_prior(two)) / 2 > total).all()


# --- what is at hand ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_of_what_is_at_hand_have_length_one(kind: type) -> None:
    method, batch = small(kind), scenes()
    seen = []
    for names in (("image",), ("caption",), ("image", "caption")):
        x = method.embed({m: batch[m] for m in names})
        torch.testing.assert_close(x.norm(dim=1), torch.ones(4).double())
        seen.append(x)
    assert not torch.allclose(seen[0], seen[2])
    assert not torch.allclose(seen[1], seen[2])


def test_of_a_missing_modality_the_expert_is_left_out() -> None:
    batch = scenes()
    product, mixture = small(MVAE), small(MMVAE)
    image, caption = (product.expert(batch, m) for m in ("image", "caption"))
    assert torch.equal(product.posterior_mean({"image": batch["image"]}),
                       product_of_experts([image]).mean)  # fmt: skip
    assert torch.equal(product.posterior_mean(batch), product_of_experts([image, caption]).mean)
    means = [mixture.expert(batch, m).mean for m in ("image", "caption")]
    torch.testing.assert_close(mixture.posterior_mean(batch), (means[0] + means[1]) / 2)
    assert torch.equal(mixture.posterior_mean({"caption": batch["caption"]}), means[1])


@pytest.mark.parametrize("kind", KINDS)
def test_each_modality_is_told_from_either(kind: type) -> None:
    method, batch = small(kind), scenes()
    for name in ("image", "caption"):
        one = {name: batch[name]}
        picture, words = (method.reconstruct(one, m) for m in ("image", "caption"))
        assert picture.shape == (4, 3, 16, 16)
        assert words.shape == (4, 12)
        assert not words[:, :4].any()
        assert 0 < float(words[:, 4:].min()) < float(words.max()) < 1


@pytest.mark.parametrize("kind", KINDS)
def test_errors_say_what_is_missing(kind: type) -> None:
    method, batch = small(kind), scenes()
    with pytest.raises(MissingModalityError, match="caption not in the batch"):
        method.loss({"image": batch["image"]})
    with pytest.raises(MissingModalityError, match="tags"):
        method.embed({"tags": torch.ones(4, 5)})
    with pytest.raises(MissingModalityError, match="got 'tags'"):
        method.reconstruct(batch, "tags")
    with pytest.raises(ShapeError, match=r"\[B, 6\], got \[2, 5\]"):
        method.decode(torch.zeros(2, 5).double(), "image")
    for bad in ({"pixel_std": 0.0}, {"caption_weight": -1.0}):
        with pytest.raises(MMCLError, match=f"{next(iter(bad))} must be a number in"):
            small(kind, **bad)
    with pytest.raises(MMCLError, match="what to draw"):
        kind(ImageEncoder(size=16, width=32), TagEncoder(5, width=32))
    for bad in ({"size": 12}, {"width": 20}):
        with pytest.raises(MMCLError, match="multiple of 8"):
            PictureDecoder(4, **bad)


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss(kind: type) -> None:
    data = ShapesCaptions(48, size=24, detail=2, objects=(1, 1), sentences=1, seed=1)
    torch.manual_seed(0)
    encoders = ImageEncoder(size=24, width=32), CaptionEncoder(len(data.tokenizer), width=32)
    method = kind(*encoders, dim=8)
    batch = data.batch(range(48))
    before = method.loss(batch)
    fit(method, data, epochs=8, batch_size=24, lr=5e-3, progress=False)
    after = method.loss(batch)
    assert after["total"] < before["total"]
    for name in ("image", "caption"):
        assert after[name] > before[name]
