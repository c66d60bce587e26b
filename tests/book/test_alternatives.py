"""Alternatives: what the page builds, and what its checks say."""

import math

import pytest
import torch

from mmcl_book.methods import MMVAE, codes, vae
from mmcl_core.data import ShapesCaptions
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from tests.book.chapter import definitions


@pytest.mark.parametrize("count", [0, 1, 3])
def test_products_of_the_page_are_the_library_s(count: int) -> None:
    page, g = definitions("synthesis/alternatives"), torch.Generator().manual_seed(count)
    means = torch.randn(count, 1, generator=g, dtype=torch.float64)
    variances = torch.rand(count, 1, generator=g, dtype=torch.float64) + 0.1
    mean, variance = page["product_by_hand"](means.flatten().tolist(), variances.flatten().tolist())
    if not count:
        assert (mean, variance) == (0, 1)
        return
    found = vae.product_of_experts(
        [vae.Gaussian(m[None], v.log()[None]) for m, v in zip(means, variances, strict=True)]
    )
    assert float(found.mean) == pytest.approx(mean)
    assert float(found.log_variance.exp()) == pytest.approx(variance)


def test_divergences_of_the_page_are_the_library_s() -> None:
    page = definitions("synthesis/alternatives")
    for mean, variance in ((0.0, 1.0), (1.5, 0.3), (-2.0, 2.0)):
        of = vae.Gaussian(torch.tensor([[mean]]), torch.tensor([[variance]]).log())
        expected = float(vae.kl_to_prior(of))
        assert page["kl_by_hand"](mean, variance) == pytest.approx(expected, abs=1e-5)
        assert page["kl_by_drawing"](mean, variance) == pytest.approx(expected, abs=0.02)


def test_tiny_mmvae_is_mmvae() -> None:
    data = ShapesCaptions(8, seed=2, size=24, detail=2)
    torch.manual_seed(0)
    encoders = ImageEncoder(size=24, width=32), CaptionEncoder(len(data.tokenizer), width=32)
    library, batch = MMVAE(*encoders, dim=5), data.batch(range(8))
    likelihoods = {
        "image": lambda drawn, x: vae.picture_log_likelihood(drawn, x, library.pixel_std),
        "caption": lambda logits, x: vae.words_log_likelihood(
            logits, vae.words_there(x, library.vocabulary)
        ),
    }
    tiny = definitions("synthesis/alternatives")["TinyMMVAE"](
        library.encoders,
        library.posteriors,
        library.decoders,
        likelihoods,
        {"image": 1.0, "caption": library.caption_weight},
    )
    torch.manual_seed(1)
    mine = tiny.loss(batch)
    torch.manual_seed(1)
    torch.testing.assert_close(mine, library.loss(batch)["total"])


def test_codes_of_the_page_are_the_library_s() -> None:
    page, g = definitions("synthesis/alternatives"), torch.Generator().manual_seed(0)
    tokens, codebook = torch.randn(1, 9, 4, generator=g), torch.randn(6, 4, generator=g)
    found = codes.quantise(tokens, codebook, torch.ones(1, 9, dtype=torch.bool))
    assert page["nearest_by_loop"](tokens[0], codebook) == found.codes[0].tolist()
    one, other = torch.rand(2, 5, 6, generator=g).softmax(dim=2)
    assert page["matching_by_loop"](one, other) == pytest.approx(
        float(codes.code_matching_loss(one, other)), abs=1e-5
    )


def test_checks_of_alternatives_say_what_is_wrong() -> None:
    page = definitions("synthesis/alternatives")
    say, price, count = (page[f"check_{name}"] for name in ("say", "price", "perplexity"))
    assert say(lambda: {"knows nothing": "hers", "is certain": "hers"}).startswith("knows nothing:")
    assert "now it is 5.00" in say(lambda: {"knows nothing": "nothing", "is certain": "nothing"})
    assert "expected" in say(lambda: {"knows nothing": "all", "is certain": "hers"})
    assert price(lambda nats: 2.0) == "for 0.5 nats you say 2.000; it costs 2.000"
    assert price(lambda nats: nats).startswith("for 0.5 nats")
    assert price(lambda nats: (2 * nats) ** 0.5) == "right"
    assert "it is 4.000" in count(lambda shares: math.log(len(shares)))
    assert "it is 2.828" in count(len)
