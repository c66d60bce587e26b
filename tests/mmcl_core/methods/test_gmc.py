"""GMC as a method: what it embeds from which modalities, its networks, its loss, that it learns."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_core.data import ShapesCaptions
from mmcl_core.data.augment import paraphrase
from mmcl_core.encoders import CaptionEncoder, Encoded, ImageEncoder, TagEncoder
from mmcl_core.errors import MissingModalityError, MMCLError, ShapeError
from mmcl_core.evaluation import embed_all
from mmcl_core.losses import gmc_loss
from mmcl_core.methods import GMC
from mmcl_core.training import fit
from tests import reference

WIDTHS = {"image": 4, "caption": 5, "tags": 3}
NAMES = tuple(WIDTHS)
PARTS = [s for n in (1, 2) for s in itertools.combinations(NAMES, n)]


class Map(nn.Module):
    """An encoder as small as can be: one linear map of 6 numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.map = width, nn.Linear(6, width)

    def forward(self, x: Tensor) -> Encoded:
        pooled = self.map(x).tanh()
        return Encoded(pooled, pooled[:, None], torch.ones(len(x), 1, dtype=torch.bool))


def encoders() -> dict[str, nn.Module]:
    return {name: Map(width) for name, width in WIDTHS.items()}


def small(seed: int = 0, **kwargs: Any) -> GMC:
    torch.manual_seed(seed)
    return GMC(encoders(), **{"common": 7, "dim": 8, "hidden": 9} | kwargs).double()


def scenes(size: int = 10, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    common = torch.randn(size, 6, generator=g, dtype=torch.float64)
    noise = torch.randn(3, size, 6, generator=g, dtype=torch.float64)
    batch = {name: common + n for name, n in zip(NAMES, noise, strict=True)}
    return batch | {"index": torch.arange(size)}


def some(batch: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: batch[name] for name in names}


def head(model: GMC, h: Tensor) -> Tensor:
    """The shared head by hand: Linear, ReLU, Linear, and unit norm."""
    first, _, last = model.head
    z = (h @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
    return z / z.square().sum(1, keepdim=True).sqrt()


def of_modality(model: GMC, batch: dict[str, Tensor], name: str) -> Tensor:
    base, encoder = model.bases[name], model.encoders[name].map
    pooled = (batch[name] @ encoder.weight.T + encoder.bias).tanh()
    return head(model, pooled @ base.weight.T + base.bias)


def of_all(model: GMC, batch: dict[str, Tensor]) -> Tensor:
    trunks = [model.joint_encoders[name].map for name in NAMES]
    pooled = [
        (batch[name] @ trunk.weight.T + trunk.bias).tanh()
        for name, trunk in zip(NAMES, trunks, strict=True)
    ]
    base = model.bases["joint"]
    return head(model, torch.cat(pooled, dim=1) @ base.weight.T + base.bias)


# --- what it embeds --------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["sphere", "plain"])
@pytest.mark.parametrize("names", PARTS, ids="+".join)
def test_a_part_is_the_mean_of_its_modalities(names: tuple[str, ...], average: str) -> None:
    model, batch = small(average=average), scenes()
    vectors = [of_modality(model, batch, name) for name in names]
    mean = sum(vectors) / len(vectors)
    if average == "sphere":
        mean = F.normalize(mean, dim=1)
    got = model.embed(some(batch, names) | {"index": batch["index"]})
    torch.testing.assert_close(got, mean, rtol=0, atol=1e-12)
    shorter = average == "plain" and len(names) > 1
    assert bool((got.norm(dim=1) < 0.9999).any()) == shorter
    for name, vector in zip(names, vectors, strict=True):
        torch.testing.assert_close(model.embed_modality(batch, name), vector, rtol=0, atol=1e-12)


@pytest.mark.parametrize("average", ["sphere", "plain"])
def test_the_whole_is_the_joint_network(average: str) -> None:
    model, batch = small(average=average), scenes()
    expected = of_all(model, batch)
    for got in (model.embed(batch), model.embed_joint(batch)):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    # In whatever order a batch names them: the joint network has its own.
    turned = some(batch, NAMES[::-1])
    assert torch.equal(model.embed(turned), model.embed(batch))
    # It is not what its parts would give.
    mean = sum(of_modality(model, batch, name) for name in NAMES)
    assert not torch.allclose(F.normalize(mean, dim=1), expected, atol=1e-2)


def test_samples_do_not_see_each_other() -> None:
    model, batch = small(), scenes()
    rows = [3, 0, 7]
    for names in [*PARTS, NAMES]:
        part = some(batch, names)
        few = {name: values[rows] for name, values in part.items()}
        torch.testing.assert_close(model.embed(few), model.embed(part)[rows], rtol=0, atol=1e-12)


def test_missing_and_unknown_modalities_are_named() -> None:
    model, batch = small(), scenes()
    part = some(batch, ("image", "tags"))
    with pytest.raises(MissingModalityError, match=r"GMC trains on .*caption not in the batch"):
        model.loss(part)
    with pytest.raises(
        MissingModalityError,
        match=r"A joint embedding needs image and caption and tags; caption not in the batch, "
        r"which holds \['image', 'tags'\]",
    ):
        model.embed_joint(part)
    with pytest.raises(MissingModalityError, match=r"image, caption, tags, or some.*\['index'\]"):
        model.embed({"index": batch["index"]})
    with pytest.raises(MissingModalityError, match="knows image, caption, tags; got 'sound'"):
        model.embed_modality(batch, "sound")
    with pytest.raises(MissingModalityError, match="knows image, caption, tags; got 'joint'"):
        model.embed_modality(batch, "joint")
    with pytest.raises(MissingModalityError, match="encodes caption; caption not in the batch"):
        model.embed_modality(part, "caption")


@pytest.mark.parametrize("names", [("image", "tags"), NAMES], ids="+".join)
def test_modalities_of_different_sizes(names: tuple[str, ...]) -> None:
    batch = some(scenes(), names)
    batch["tags"] = batch["tags"][:1]
    with pytest.raises(ShapeError, match=r"one number of samples.*'image': 10.*'tags': 1"):
        small().embed(batch)


# --- its networks ----------------------------------------------------------------------------


def numbers(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_trunks_of_the_joint_network_are_copies_and_the_head_is_one() -> None:
    model = small()
    for name, width in WIDTHS.items():
        own, copy = (
            dict(m[name].named_parameters()) for m in (model.encoders, model.joint_encoders)
        )
        assert all(torch.equal(own[n], copy[n]) for n in own)
        assert all(own[n] is not copy[n] for n in own)
        assert model.bases[name].weight.shape == (7, width)
    assert model.bases["joint"].weight.shape == (7, 12)
    trunks = sum(7 * width for width in WIDTHS.values())
    bases = sum(7 * (width + 1) for width in (*WIDTHS.values(), 12))
    assert numbers(model) == 2 * trunks + bases + 9 * (7 + 1) + 8 * (9 + 1)
    assert len({id(p) for p in model.parameters()}) == len(list(model.parameters()))


def test_each_network_learns_from_its_own_terms() -> None:
    model, batch = small(), scenes()
    model.loss(batch)["total"].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    model.zero_grad()
    model.embed_modality(batch, "caption").square().sum().backward()
    used = {name for name, p in model.named_parameters() if p.grad is not None}
    assert used == {
        *(f"encoders.caption.map.{n}" for n in ("weight", "bias")),
        *(f"bases.caption.{n}" for n in ("weight", "bias")),
        *(f"head.{i}.{n}" for i in (0, 2) for n in ("weight", "bias")),
    }
    model.zero_grad()
    model.embed_joint(batch).square().sum().backward()
    used = {name.split(".map")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert {name for name in used if "encoders" in name} == {f"joint_encoders.{m}" for m in NAMES}


def test_trunks_of_other_widths_may_be_given() -> None:
    others = {name: Map(2 * width) for name, width in reversed(WIDTHS.items())}
    model = small(joint_encoders=others)
    assert list(model.joint_encoders) == list(NAMES)
    assert all(model.joint_encoders[name] is others[name] for name in NAMES)
    assert model.bases["joint"].weight.shape == (7, 24)
    batch = scenes()
    torch.testing.assert_close(model.embed(batch), of_all(model, batch), rtol=0, atol=1e-12)


def test_the_state_is_all_there_is() -> None:
    model, other, batch = small(0), small(1), scenes()
    assert not torch.allclose(model.embed(batch), other.embed(batch), atol=1e-3)
    other.load_state_dict(model.state_dict())
    for names in [*PARTS, NAMES]:
        part = some(batch, names)
        assert torch.equal(model.embed(part), other.embed(part))
    assert torch.equal(model.loss(batch)["total"], other.loss(batch)["total"])


def test_bad_settings() -> None:
    with pytest.raises(MMCLError, match=r"at least two modalities, .*; got \['image'\]"):
        GMC({"image": Map(4)})
    with pytest.raises(MMCLError, match=r"none of them named 'joint'; got \['image', 'joint'\]"):
        GMC({"image": Map(4), "joint": Map(4)})
    with pytest.raises(MMCLError, match=r"joint_encoders for \['image', 'caption', 'tags'\]; got"):
        small(joint_encoders={"image": Map(4)})
    with pytest.raises(MMCLError, match="'sphere' or 'plain'; got 'mean'"):
        small(average="mean")
    with pytest.raises(MMCLError, match=r"variant must be one of .*; got 'simclr'"):
        small(variant="simclr")
    with pytest.raises(MMCLError, match=r"temperature must be above 0 and finite .*; got 0\.0"):
        small(temperature=0.0)
    with pytest.raises(MMCLError, match="Linear has no `width`"):
        GMC({"image": nn.Linear(2, 2), "caption": Map(4)})


# --- its loss --------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["ntxent", "paper", "joint_negatives"])
@pytest.mark.parametrize("temperature", [0.1, 0.3])
def test_its_loss_is_that_of_its_embeddings(variant: Any, temperature: float) -> None:
    model, batch = small(variant=variant, temperature=temperature), scenes()
    vectors = [of_modality(model, batch, name) for name in NAMES]
    joint = of_all(model, batch)
    parts = model.loss(batch)
    assert list(parts) == ["total"]
    expected = reference.gmc_loss(vectors, joint, temperature, variant)
    assert float(parts["total"].detach()) == pytest.approx(expected, rel=1e-9)
    same = gmc_loss(vectors, joint, temperature, variant=variant)
    for model_gradient, gradient in zip(
        torch.autograd.grad(parts["total"], list(model.parameters())),
        torch.autograd.grad(same, list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(model_gradient, gradient, rtol=1e-9, atol=1e-11)


def test_the_order_of_samples_does_not_matter() -> None:
    model, batch = small(), scenes()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    moved = {name: values[order] for name, values in batch.items()}
    torch.testing.assert_close(
        model.loss(moved)["total"], model.loss(batch)["total"], rtol=1e-12, atol=0
    )


def test_the_loss_of_one_sample() -> None:
    with pytest.raises(ShapeError, match="batch of 1 has no negatives"):
        small().loss(scenes(1))


# --- that it learns --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab() -> ShapesCaptions:
    return ShapesCaptions(256)


@pytest.mark.slow
def test_after_training_a_part_lies_near_its_whole(lab: ShapesCaptions) -> None:
    """Every part is nearer to the complete embedding of its own sample than to others'."""
    torch.manual_seed(0)
    model = GMC(
        {
            "image": ImageEncoder(width=32),
            "caption": CaptionEncoder(len(lab.tokenizer), width=32),
            "tags": TagEncoder(lab[0]["tags"].numel(), width=32),
        },
        common=32,
        dim=16,
        hidden=32,
    )
    fit(
        model, lab, epochs=8, batch_size=32, lr=3e-3, progress=False,
        augment=paraphrase(lab),
    )  # fmt: skip
    complete = embed_all(model, lab, NAMES)
    for names in PARTS:
        cosines = embed_all(model, lab, names) @ complete.T
        own = cosines.diagonal()
        others = (cosines.sum(1) - own) / (len(lab) - 1)
        assert float((own > others).float().mean()) > 0.85, names
        assert float((own - others).mean()) > 0.1, names
        hits = (cosines.topk(10).indices == torch.arange(len(lab))[:, None]).any(1)
        assert float(hits.float().mean()) > 2.5 * 10 / len(lab), names
