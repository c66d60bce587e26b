"""CLIP as a method: its loss, its embeddings, its temperature, and that it learns."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmcl_core.data import ShapesCaptions
from mmcl_core.data.augment import paraphrase
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.errors import MissingModalityError, MMCLError
from mmcl_core.evaluation import embed_all, recall_at_k
from mmcl_core.methods import CLIP
from mmcl_core.training import fit


@pytest.fixture(scope="module")
def lab() -> ShapesCaptions:
    return ShapesCaptions(256)


def small(lab: ShapesCaptions, **kwargs) -> CLIP:
    torch.manual_seed(0)
    return CLIP(
        ImageEncoder(width=32), CaptionEncoder(len(lab.tokenizer), width=32), dim=16, **kwargs
    )


def test_loss_is_the_symmetric_cross_entropy(lab: ShapesCaptions) -> None:
    model, batch = small(lab).double(), lab.batch(range(12))
    batch["image"] = batch["image"].double()
    x, y = model.embed({"image": batch["image"]}), model.embed({"caption": batch["caption"]})
    logits, diagonal = x @ y.T / 0.07, torch.arange(12)
    expected = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
    torch.testing.assert_close(model.loss(batch)["total"], expected, rtol=1e-6, atol=1e-6)


def test_identical_captions_are_positives(lab: ShapesCaptions) -> None:
    """Pictures with one caption: nothing can win a tie, and nothing must be asked to."""
    told = lab.with_detail(1)
    model = small(lab)
    batch = told.batch(range(40))
    batch["caption"] = batch["caption"][:1].expand(40, -1)
    # All captions are one group: each softmax row has only positives, the target is uniform, and
    # all columns of the logits are equal: the row part is log B exactly.
    x, y = model.embed({"image": batch["image"]}), model.embed({"caption": batch["caption"]})
    logits = model.logit_scale * x @ y.T
    columns = (logits.logsumexp(dim=0) - logits.mean(dim=0)).mean()
    expected = (math.log(40) + columns) / 2
    torch.testing.assert_close(model.loss(batch)["total"], expected, rtol=1e-5, atol=1e-5)


def test_tiles_change_nothing(lab: ShapesCaptions) -> None:
    batch = lab.batch(range(50))
    losses, gradients = [], []
    for chunk_size in (None, 16):
        model = small(lab, chunk_size=chunk_size)
        loss = model.loss(batch)["total"]
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_embeds_whatever_is_there(lab: ShapesCaptions) -> None:
    model, batch = small(lab), lab.batch(range(5))
    image = model.embed({"image": batch["image"]})
    caption = model.embed({"caption": batch["caption"], "tags": batch["tags"]})
    both = model.embed(batch)
    for vectors in (image, caption, both):
        assert vectors.shape == (5, 16)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(both, F.normalize(image + caption, dim=1))


def test_missing_modalities_are_named(lab: ShapesCaptions) -> None:
    model, batch = small(lab), lab.batch(range(3))
    with pytest.raises(MissingModalityError, match=r"caption not in the batch.*\['image'\]"):
        model.loss({"image": batch["image"]})
    with pytest.raises(MissingModalityError, match=r"holds \['tags'\]"):
        model.embed({"tags": batch["tags"]})


def test_logit_scale_starts_at_its_inverse_temperature_and_stops_at_100(
    lab: ShapesCaptions,
) -> None:
    model = small(lab, temperature=0.02)
    assert float(model.logit_scale.detach()) == pytest.approx(50)
    with torch.no_grad():
        model.log_scale.fill_(10.0)
    model.after_step()
    assert float(model.logit_scale.detach()) == pytest.approx(100)
    frozen = small(lab, learn_temperature=False)
    assert "log_scale" not in {n for n, p in frozen.named_parameters() if p.requires_grad}
    with pytest.raises(MMCLError, match=r"at least 1/100; got 0\.001"):
        small(lab, temperature=0.001)
    with pytest.raises(MMCLError, match="got nan"):
        small(lab, temperature=float("nan"))
    with pytest.raises(MMCLError, match="Linear has no `width`"):
        CLIP(nn.Linear(2, 2), nn.Linear(2, 2))


# --- tokens ---------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_encoder_through_the_head(lab: ShapesCaptions) -> None:
    model, batch = small(lab).double(), lab.batch(range(4))
    batch["image"] = batch["image"].double()
    for name, count in (("image", 36), ("caption", batch["caption"].shape[1])):
        found, mask = model.embed_tokens({name: batch[name]}, name)
        assert found.shape == (4, count, 16)
        tokens = model.encoders[name](batch[name]).tokens.tolist()
        weight = model.heads[name][0].weight.tolist()
        for b, t in itertools.product(range(4), range(count)):
            by_hand = [math.fsum(map(math.prod, zip(w, tokens[b][t], strict=True))) for w in weight]
            length = math.sqrt(math.fsum(v * v for v in by_hand))
            assert found[b, t].tolist() == pytest.approx([v / length for v in by_hand], abs=1e-9)
        real = torch.ones(4, 36) > 0 if name == "image" else batch["caption"] > 0
        assert torch.equal(mask, real)
    assert not mask.all()


def test_a_single_token_is_all_that_is_pooled(lab: ShapesCaptions) -> None:
    """One word, padded or not, and a picture of one patch: embedded as their only token is."""
    torch.manual_seed(0)
    model = CLIP(ImageEncoder(size=8, width=32), CaptionEncoder(50, width=32), dim=16)
    for name, values in (
        ("image", torch.rand(3, 3, 8, 8)),
        ("caption", torch.tensor([[5], [9], [4]])),
        ("caption", torch.tensor([[5, 0, 0], [9, 0, 0], [4, 0, 0]])),
    ):
        tokens, mask = model.embed_tokens({name: values}, name)
        assert mask.sum(1).tolist() == [1, 1, 1]
        torch.testing.assert_close(tokens[:, 0], model.embed({name: values}))


def test_pooled_captions_are_the_mean_of_their_real_words(lab: ShapesCaptions) -> None:
    """The head is linear: it does not matter whether words are averaged before or after it."""
    model, batch = small(lab), lab.batch(range(6))
    _, mask = model.embed_tokens(batch, "caption")
    words = model.heads["caption"](model.encoders["caption"](batch["caption"]).tokens)
    means = torch.stack([words[b, mask[b]].mean(0) for b in range(6)])
    pooled = model.embed({"caption": batch["caption"]})
    torch.testing.assert_close(F.normalize(means, dim=1), pooled)


def test_tokens_of_what_is_not_there(lab: ShapesCaptions) -> None:
    model, batch = small(lab), lab.batch(range(3))
    with pytest.raises(MissingModalityError, match=r"encodes caption.*holds \['image'\]"):
        model.embed_tokens({"image": batch["image"]}, "caption")


@pytest.mark.parametrize("modality", ["tags", "sound"])
def test_tokens_of_what_clip_does_not_embed(lab: ShapesCaptions, modality: str) -> None:
    with pytest.raises(MMCLError, match=modality):
        small(lab).embed_tokens(lab.batch(range(3)), modality)


@pytest.mark.slow
def test_it_learns_and_the_same_seed_gives_the_same_weights(lab: ShapesCaptions) -> None:
    weights = []
    for _ in range(2):
        model = small(lab)
        fit(
            model, lab, epochs=8, batch_size=32, lr=3e-3, progress=False,
            augment=paraphrase(lab),
        )  # fmt: skip
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)
    image, caption = (embed_all(model, lab, (name,)) for name in ("image", "caption"))
    chance = 10 / len(lab)
    assert recall_at_k(image, caption, 10) > 5 * chance
