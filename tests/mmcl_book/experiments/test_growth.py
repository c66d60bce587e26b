"""What a loss costs: the model against a profiler, at sizes that no chapter uses."""

import pytest
import torch
import torch.nn.functional as F

from mmcl_book.experiments import growth
from mmcl_book.experiments.growth import Size
from mmcl_core.errors import MMCLError
from mmcl_core.grounding import FDTGrounding
from mmcl_core.losses import clip_loss, gmc_loss
from tests import reference

# More pairs than numbers in an embedding, and fewer; one process and several; odd numbers.
SIZES = {
    "many pairs": Size(batch=200, dim=24, tile=50, queue=700, modalities=2),
    "wide embeddings": Size(batch=96, dim=512, tile=32, queue=200, modalities=3),
    "several processes": Size(batch=256, dim=16, tile=32, queue=512, processes=2),
    "many processes": Size(batch=256, dim=128, tile=4, queue=512, processes=32),
    "some of each": Size(batch=256, dim=32, tile=8, processes=8, modalities=3),
}
TOKENS = {
    "many patches": Size(batch=16, dim=64, patches=49, codebook=700),
    "many tokens": Size(batch=32, dim=24, patches=9, codebook=5000),
    "wide tokens": Size(batch=8, dim=512, patches=4, codebook=3000),
    "a part of a batch": Size(batch=64, dim=64, patches=9, codebook=2048, processes=4),
}
PAIRED = [name for name in growth.LOSSES if not name.startswith("FDT")]
GROUNDED = [name for name in growth.LOSSES if name.startswith("FDT")]


def assert_as_measured(losses: list[str], size: Size, *, within: float) -> None:
    for name, cost in growth.measured(losses, size).items():
        computed = sum(growth.memory(name, size).values()) / 2**20
        assert computed == pytest.approx(cost.mebibytes, rel=within), name


@pytest.mark.parametrize("name", SIZES)
def test_the_model_of_the_losses_is_what_a_profiler_finds(name: str) -> None:
    assert_as_measured(PAIRED, SIZES[name], within=0.1)


@pytest.mark.parametrize("name", TOKENS)
def test_the_model_of_the_grounding_is_what_a_profiler_finds(name: str) -> None:
    assert_as_measured(GROUNDED, TOKENS[name], within=0.1)


def test_one_process_is_exact() -> None:
    """No moment was left out: but for a few scalars the numbers are equal."""
    plain = [n for n in PAIRED if n != "CLIP in tiles"]
    assert_as_measured(plain, Size(batch=256, dim=48), within=2e-3)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=g, dtype=torch.float64), dim=-1)


def test_published_forms_have_the_values_of_the_library() -> None:
    x, y, z = (unit(6, 5, seed=i) for i in range(3))
    published = growth.clip_as_published(x, y, 7.0)
    assert float(published) == pytest.approx(float(clip_loss(x, y, 7.0)), abs=1e-12)
    assert float(published) == pytest.approx(reference.clip_loss(x, y, 7.0), abs=1e-12)
    of_gmc = growth.gmc_as_published([x, y], z, 0.3)
    assert float(of_gmc) == pytest.approx(float(gmc_loss([x, y], z, 0.3)), abs=1e-12)


def test_both_groundings_are_the_layer() -> None:
    queries, codebook = torch.randn(3, 4, 8), torch.randn(20, 8)
    layer = FDTGrounding(8, 8, grounding_temperature=0.5)
    layer.query = torch.nn.Identity()
    expected = layer(queries, codebook).feature
    for form in (growth.grounding, growth.grounding_as_published):
        torch.testing.assert_close(form(queries, codebook, 0.5), expected)


@pytest.mark.parametrize("name", ["CLIP", "CLIP in tiles", "GMC"])
def test_one_process_of_four_learns_from_its_own_samples(name: str) -> None:
    """Its embeddings are all that has a gradient, and each of them has one."""
    step = growth.step(name, Size(batch=32, dim=8, tile=4, processes=4))
    step.loss({})["total"].backward()
    assert len(list(step.parameters())) == (3 if name == "GMC" else 2)
    for values in step.parameters():
        assert values.shape == (8, 8)
        assert (values.grad.norm(dim=1) > 0).all()


def test_exchange_in_closed_form() -> None:
    alone, four = Size(batch=8, dim=2), Size(batch=8, dim=2, processes=4)
    assert set(growth.exchanged("CLIP", alone, 100).values()) == {0}
    found = growth.exchanged("CLIP", four, 100)
    assert found == {
        "embeddings": 2 * 8 * 2 * 4,
        "gradients of embeddings": 2 * 8 * 2 * 4,
        "gradients of parameters": 400,
    }
    assert growth.exchanged("GMC", four, 0)["embeddings"] == 3 * 8 * 2 * 4
    queue = growth.exchanged("InfoNCE, queue", four, 0)
    assert (queue["embeddings"], queue["gradients of embeddings"]) == (8 * 2 * 4, 0)
    assert growth.received(found, 4) == 0.75 * (128 + 2 * 528)
    assert growth.received(found, 1) == 0


def test_what_cannot_be_computed() -> None:
    with pytest.raises(MMCLError, match="a multiple of W"):
        Size(batch=10, processes=4)
    for call in (
        lambda: growth.memory("XNT", Size(batch=4)),
        lambda: growth.exchanged("XNT", Size(batch=4), 1),
        lambda: growth.step("XNT", Size(batch=4)),
    ):
        with pytest.raises(MMCLError, match="no loss 'XNT'"):
            call()
