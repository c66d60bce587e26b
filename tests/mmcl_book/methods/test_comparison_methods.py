"""SigLIP, MoCo with CLIP, and FDT under GMC: against their formulas written out in loops."""

import copy
import math

import pytest
import torch
from torch import Tensor

from mmcl_book.methods import FDTGMC, MoCoCLIP
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.errors import MissingModalityError, MMCLError
from mmcl_core.methods import CLIP, FDT, MoCo, SigLIP
from mmcl_core.methods.fdt import Cooling
from mmcl_core.sparsemax import sparsemax

KINDS = (SigLIP, MoCoCLIP, FDTGMC)


def build(kind: type[CLIP], seed: int = 0, **settings) -> CLIP:
    torch.manual_seed(seed)
    encoders = ImageEncoder(size=16, width=32), CaptionEncoder(9, width=32, max_length=8)
    if kind is MoCoCLIP:
        settings = {"queue": 12, "momentum": 0.5} | settings
    if issubclass(kind, FDT):
        settings = {"codebook_size": 24, "grounding_temperature": 3.0} | settings
    return kind(*encoders, dim=8, **settings).double()


def scenes(size: int = 6) -> dict[str, Tensor]:
    """The captions of the last and of the first are the same text."""
    g = torch.Generator().manual_seed(1)
    caption = torch.randint(1, 9, (size, 5), generator=g)
    caption[::2, 3:] = 0
    caption[-1] = caption[0]
    pictures = torch.rand(2, size, 3, 16, 16, generator=g, dtype=torch.float64)
    return {"image": pictures[0], "image_view": pictures[1], "caption": caption}


def vectors(method: CLIP, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return method.embed({"image": batch["image"]}), method.embed({"caption": batch["caption"]})


# --- SigLIP ---------------------------------------------------------------------------------------


def test_siglip_asks_of_each_pair() -> None:
    method, batch = build(SigLIP, bias=-3.0, temperature=0.25), scenes()
    scale = float(method.logit_scale.detach())
    assert scale == pytest.approx(4)
    image, caption = vectors(method, batch)
    total = 0.0
    for i in range(6):
        for j in range(6):
            together = batch["caption"][i].tolist() == batch["caption"][j].tolist()
            logit = scale * float(image[i] @ caption[j]) - 3
            total += math.log1p(math.exp(-logit if together else logit))
    assert float(method.loss(batch)["total"].detach()) == pytest.approx(total / 6, rel=1e-9)


def test_siglip_learns_scale_and_bias_from_the_published_ones() -> None:
    method = build(SigLIP)
    assert method.logit_scale.item() == pytest.approx(10)
    assert method.bias.item() == -10
    method.loss(scenes())["total"].backward()
    assert method.bias.grad is not None
    assert method.log_scale.grad is not None
    assert method.bias.grad != 0
    with torch.no_grad():
        method.log_scale.fill_(9.0)
    method.after_step()
    assert method.logit_scale.item() == pytest.approx(100)


# --- MoCo with CLIP -------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_moco_with_clip_is_the_sum_of_both(weight: float) -> None:
    method, batch = build(MoCoCLIP, weight=weight), scenes()
    clip = build(CLIP)
    clip.load_state_dict({n: v for n, v in method.state_dict().items() if "moco" not in n})
    moco = MoCo(copy.deepcopy(method.encoders["image"]), dim=8, queue=12, momentum=0.5).double()
    moco.load_state_dict(method.moco.state_dict())
    turned = {"image": batch["image_view"], "image_view": batch["image"]}
    parts = method.loss(batch)
    assert torch.equal(parts["clip"], clip.loss(batch)["total"])
    assert torch.equal(parts["moco"], moco.loss(turned)["total"])
    torch.testing.assert_close(parts["total"], parts["clip"] + weight * parts["moco"])


def test_one_image_encoder_learns_from_both() -> None:
    method, batch = build(MoCoCLIP, weight=2.0), scenes()
    assert method.moco.query.encoder is method.encoders["image"]
    found = {}
    for name in ("clip", "moco", "total"):
        method.zero_grad()
        method.loss(batch)[name].backward()
        found[name] = method.encoders["image"].position.grad.clone()
    torch.testing.assert_close(found["total"], found["clip"] + 2 * found["moco"])
    trained = [id(p) for p in method.parameters()]
    assert len(trained) == len(set(trained))  # an optimiser would move it twice


def test_queue_and_slow_encoder_move_after_a_step() -> None:
    method, batch = build(MoCoCLIP), scenes()
    before = method.moco.queue.keys.clone()
    expected = method.moco.key(batch["image"])
    method.loss(batch)
    assert torch.equal(method.moco.queue.keys, before)
    method.after_step()
    assert torch.equal(method.moco.queue.keys[:6], expected)
    assert torch.equal(method.moco.queue.keys[6:], before[6:])
    method.warm_start([batch])
    assert int(method.moco.queue.pointer) == 0


def test_its_weight_is_finite() -> None:
    with pytest.raises(MMCLError, match=r"weight must be a number in \[0, inf\); got -1"):
        build(MoCoCLIP, weight=-1)


# --- FDT under GMC --------------------------------------------------------------------------------


@torch.no_grad()
def by_hand(method: FDTGMC, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Unit vectors of pictures, captions and both, from the scores of each real token."""
    found: dict[str, list[Tensor]] = {"image": [], "caption": [], "joint": []}
    tokens = {m: method.encoders[m](batch[m]) for m in method.modalities}
    for i in range(len(batch["image"])):
        scores = {
            m: method.heads[m].query(of.tokens[i][of.mask[i]]) @ method.codebook.T
            for m, of in tokens.items()
        }
        scores["joint"] = torch.cat(list(scores.values()))
        for name, of in scores.items():
            weights = sparsemax(of.amax(0) / (math.sqrt(8) * method.grounding_temperature))
            mixture = weights @ method.codebook
            found[name].append(mixture / mixture.norm())
    return {name: torch.stack(rows) for name, rows in found.items()}


def test_joint_is_grounded_from_patches_and_words_together() -> None:
    method, batch = build(FDTGMC), scenes()
    expected = by_hand(method, batch)
    image, caption = vectors(method, batch)
    torch.testing.assert_close(image, expected["image"])
    torch.testing.assert_close(caption, expected["caption"])
    both = {m: batch[m] for m in ("image", "caption")}
    torch.testing.assert_close(method.embed(both), expected["joint"])
    weights = method.ground_joint(both).weights
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))


def test_its_loss_pulls_each_to_the_joint() -> None:
    method, batch = build(FDTGMC, temperature=0.2), scenes()
    at = by_hand(method, batch)
    total = 0.0
    for m in ("image", "caption"):
        rows = torch.cat([at["joint"], at[m]])
        logits = (rows @ rows.T / 0.2).fill_diagonal_(-torch.inf)
        partner = torch.arange(12).roll(6)
        total += float(torch.nn.functional.cross_entropy(logits, partner))
    assert float(method.loss(batch)["total"].detach()) == pytest.approx(total, rel=1e-7)


def test_gradients_of_the_joint_loss_are_exact() -> None:
    method, batch = build(FDTGMC, codebook_size=6, grounding_temperature=1.0), scenes(3)
    method.loss(batch)["total"].backward()
    codebook = method.codebook
    assert codebook.grad is not None
    step = 1e-6
    for place in ((0, 0), (2, 5), (5, 7)):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                codebook[place] += sign * step
                ends.append(float(method.loss(batch)["total"]))
                codebook[place] -= sign * step
        numeric = (ends[0] - ends[1]) / (2 * step)
        assert float(codebook.grad[place]) == pytest.approx(numeric, rel=1e-4, abs=1e-7)


def test_it_cools_as_an_fdt_does_and_not_beyond() -> None:
    method, batch = build(FDTGMC, grounding_temperature=Cooling(30, 3, steps=1)), scenes()
    assert method.loss(batch)["grounding_temperature"] == 30
    method.after_step()
    assert method.grounding_temperature == 3
    with pytest.raises(MMCLError, match="the temperature schedule has 1 steps"):
        method.loss(batch)
    method.eval()
    assert method.loss(batch)["grounding_temperature"] == 3


# --- all three ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_modality_there_is_no_training(kind: type[CLIP]) -> None:
    batch = {"image": scenes()["image"]}
    with pytest.raises(MissingModalityError, match="caption"):
        build(kind).loss(batch)


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss(kind: type[CLIP]) -> None:
    method, batch = build(kind).float(), {n: _single(v) for n, v in scenes().items()}
    optimiser = torch.optim.AdamW(method.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = method.loss(batch)["total"]
        loss.backward()
        optimiser.step()
        method.after_step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def _single(values: Tensor) -> Tensor:
    return values.float() if values.is_floating_point() else values
