"""Encoders: shapes, masks, and what must not depend on what."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmcl_core.encoders import (
    CaptionEncoder,
    Encoded,
    ImageEncoder,
    ProjectionHead,
    TagEncoder,
    masked_mean,
)
from mmcl_core.errors import MMCLError, ShapeError
from mmcl_core.methods import CLIP


@settings(max_examples=10, deadline=None)
@given(
    size=st.sampled_from([24, 48, 64]),
    width=st.sampled_from([32, 64]),
    depth=st.integers(0, 2),
    b=st.integers(1, 4),
)
def test_image_encoder_shapes(size: int, width: int, depth: int, b: int) -> None:
    encoder = ImageEncoder(size=size, width=width, depth=depth)
    pooled, tokens, mask = encoder(torch.rand(b, 3, size, size))
    assert pooled.shape == (b, width)
    assert tokens.shape == (b, (size // 8) ** 2, width)
    assert mask.shape == tokens.shape[:2]
    assert mask.dtype == torch.bool
    assert mask.all()
    torch.testing.assert_close(pooled, tokens.amax(dim=1))


def test_pooling_of_pictures() -> None:
    """One set of weights, three ways to make one vector of the patches."""
    images, encoders = torch.rand(3, 3, 32, 32), {}
    for pool in ("max", "mean", "cls"):
        torch.manual_seed(0)
        encoders[pool] = ImageEncoder(size=32, width=32, pool=pool)
    most, mean, cls = (encoder(images) for encoder in encoders.values())
    torch.testing.assert_close(mean.tokens, most.tokens)
    torch.testing.assert_close(most.pooled, most.tokens.amax(1))
    torch.testing.assert_close(mean.pooled, most.tokens.mean(1))
    assert cls.tokens.shape == most.tokens.shape  # the patches alone, as FDT takes them
    assert cls.mask.shape == (3, 16)
    # The class token reads the patches: a change in any of them changes it, and its own weights do.
    patch = images.clone()
    patch[:, :, 24:, 24:] = 0
    assert ((encoders["cls"](patch).pooled - cls.pooled).norm(dim=1) > 1e-4).all()
    encoders["cls"].cls.data.mul_(-1)
    assert ((encoders["cls"](images).pooled - cls.pooled).norm(dim=1) > 1e-4).all()


def test_image_tokens_go_row_by_row_from_the_top_left() -> None:
    """With no blocks a token sees little more than its own patch: changing the patch in row 1,
    column 4 moves token 1 * 6 + 4 most."""
    torch.manual_seed(0)
    encoder = ImageEncoder(depth=0).double()
    before = torch.rand(1, 3, 48, 48, dtype=torch.float64)
    after = before.clone()
    after[:, :, 8:16, 32:40] = 1 - after[:, :, 8:16, 32:40]
    moved = (encoder(after).tokens - encoder(before).tokens).norm(dim=-1)[0]
    assert int(moved.argmax()) == 10


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    """Nothing in the encoders may mix samples: two processes must give what one gives."""
    torch.manual_seed(0)
    images = torch.rand(4, 3, 48, 48, dtype=torch.float64)
    encoder = ImageEncoder(depth=1).double().train()
    together = encoder(images).tokens
    torch.testing.assert_close(together[:2], encoder(images[:2]).tokens)
    captions = torch.tensor([[1, 5, 2, 0], [1, 6, 7, 2]])
    speaker = CaptionEncoder(10, width=32).double().train()
    torch.testing.assert_close(speaker(captions).pooled[:1], speaker(captions[:1]).pooled)


@settings(max_examples=15, deadline=None)
@given(length=st.integers(1, 12), padding=st.integers(0, 6), seed=st.integers(0, 100))
def test_padding_of_a_caption_changes_nothing(length: int, padding: int, seed: int) -> None:
    torch.manual_seed(seed)
    encoder = CaptionEncoder(30, width=32).double()
    caption = torch.randint(1, 30, (2, length))
    padded = torch.cat([caption, torch.zeros(2, padding, dtype=torch.int64)], dim=1)
    short, long = encoder(caption), encoder(padded)
    torch.testing.assert_close(long.pooled, short.pooled)
    torch.testing.assert_close(long.tokens[:, :length], short.tokens)
    assert long.mask.sum() == 2 * length


def test_word_order_counts() -> None:
    torch.manual_seed(0)
    encoder = CaptionEncoder(10, width=32)
    one, other = encoder(torch.tensor([[1, 4, 5, 2], [1, 5, 4, 2]])).pooled
    assert (one - other).abs().max() > 1e-3


def test_tag_encoder_pools_over_the_tags_at_hand() -> None:
    torch.manual_seed(0)
    encoder = TagEncoder(5, width=16)
    pooled, tokens, mask = encoder(torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]))
    assert pooled.shape == (2, 16)
    assert tokens.shape == (2, 5, 16)
    assert mask.tolist() == [[True, False, False, True, False], [False] * 5]
    assert pooled.isfinite().all(), "a scene without tags is allowed"
    with torch.no_grad():
        encoder.embedding[1] += 1  # a tag that neither sample has
    torch.testing.assert_close(encoder(mask.float()).pooled, pooled)


def test_masked_mean_against_a_loop() -> None:
    tokens, mask = torch.randn(3, 4, 2), torch.tensor([[1, 1, 0, 1], [0, 0, 0, 1], [0] * 4]).bool()
    expected = [
        t[m].mean(dim=0) if m.any() else torch.zeros(2) for t, m in zip(tokens, mask, strict=True)
    ]
    torch.testing.assert_close(masked_mean(tokens, mask), torch.stack(expected))


def test_every_parameter_is_trained() -> None:
    encoders = [
        (ImageEncoder(), torch.rand(2, 3, 48, 48)),
        (ImageEncoder(pool="mean"), torch.rand(2, 3, 48, 48)),
        (ImageEncoder(pool="cls"), torch.rand(2, 3, 48, 48)),
        (CaptionEncoder(9), torch.tensor([[1, 3, 4, 5, 6, 7, 8, 2]])),
        (TagEncoder(3), torch.ones(2, 3)),
        (ProjectionHead(8, 4, hidden=6), torch.randn(5, 8)),
    ]
    for encoder, x in encoders:
        out = encoder(x)
        pooled = out if isinstance(out, torch.Tensor) else out.pooled
        (pooled * torch.randn_like(pooled)).sum().backward()
        for name, parameter in encoder.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ImageEncoder(size=50), "multiple of 8; got 50"),
        (lambda: ImageEncoder(width=30), "multiple"),
        (lambda: ImageEncoder(pool="sum"), "'max', 'mean' or 'cls'; got 'sum'"),
        (lambda: ImageEncoder(pool="cls", depth=0), "needs a block"),
        (lambda: CaptionEncoder(9, width=30), "multiple"),
        (
            lambda: ImageEncoder()(torch.rand(2, 3, 32, 32)),
            r"\[B, 3, 48, 48\], got \[2, 3, 32, 32\]",
        ),
        (lambda: ImageEncoder()(torch.ones(2, 3, 48, 48, dtype=torch.uint8)), "got torch.uint8"),
        (lambda: CaptionEncoder(9)(torch.ones(1, 65, dtype=torch.int64)), "at most 64"),
        (lambda: CaptionEncoder(9)(torch.ones(1, 3)), "whole numbers"),
        (lambda: CaptionEncoder(9)(torch.tensor([[1, 9]])), "from 0 to 8, got 1 to 9"),
        (
            lambda: CaptionEncoder(9)(torch.tensor([[1, 2], [0, 0]])),
            "caption 1 .* nothing but padding",
        ),
        (lambda: TagEncoder(3)(torch.ones(2, 4)), r"tags \[B, 3\], got \[2, 4\]"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(MMCLError, match=message):
        call()
    assert issubclass(ShapeError, MMCLError)


def test_the_encoder_of_the_api_page_trains() -> None:
    page = (Path(__file__).parents[2] / "book/reference/api/encoders.md").read_text("utf-8")
    names = {"torch": torch, "nn": nn, "Encoded": Encoded}
    exec(page.split("```python\n")[1].split("```")[0], names)
    encoder = names["OneVector"](nn.Sequential(nn.Flatten(), nn.Linear(192, 7)), 7)
    method = CLIP(encoder, CaptionEncoder(9, width=8), dim=4)
    batch = {"image": torch.rand(3, 3, 8, 8), "caption": torch.arange(1, 7).view(3, 2)}
    method(batch)["total"].backward()
    assert encoder.network[1].weight.grad.abs().sum() > 0
