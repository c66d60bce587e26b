"""GMC: what the page builds, and what its checks say."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmcl_book.experiments import gmc
from mmcl_core import losses
from mmcl_core.data import ShapesCaptions
from mmcl_core.methods import GMC
from tests.book.chapter import definitions, two_encoders, unit, value_and_gradients


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("name", ["gmc_loop", "gmc_vectorised", "gmc_exponentials"])
def test_gmc_loss_of_the_page(name: str, temperature: float) -> None:
    form = definitions("methods/gmc")[name]
    joint, *modalities = unit(4, 6, 5, seed=0)
    torch.testing.assert_close(
        value_and_gradients(lambda j, *m: form(j, m, temperature), joint, *modalities),
        value_and_gradients(lambda j, *m: losses.gmc_loss(m, j, temperature), joint, *modalities),
    )


def test_gmc_forms_at_a_low_temperature() -> None:
    page = definitions("methods/gmc")
    joint, other = unit(2, 8, 16, seed=0).float()
    part = F.normalize(joint + 0.01 * other, dim=1)
    expected = losses.gmc_loss([part], joint, 0.011)
    assert not page["gmc_exponentials"](joint, [part], 0.011).isfinite()
    torch.testing.assert_close(
        page["gmc_vectorised"](joint, [part], 0.011), expected, atol=1e-9, rtol=0
    )


def test_tiny_gmc_is_the_library_s() -> None:
    page = definitions("methods/gmc")
    data = ShapesCaptions(9, seed=0, size=32, objects=(1, 1))
    library = GMC(two_encoders(data), common=24, dim=8, hidden=16)
    tiny = page["TinyGMC"](library.encoders, library.joint_encoders, 24, 8, 16)
    tiny.bases.load_state_dict(library.bases.state_dict())
    tiny.head.load_state_dict(library.head.state_dict())
    batch = data.batch(range(9))
    torch.testing.assert_close(tiny.loss(batch), library.loss(batch)["total"])
    for present in (("image",), ("caption",), ("image", "caption")):
        part = {m: batch[m] for m in present}
        torch.testing.assert_close(page["embed"](tiny, part), library.embed(part))


def test_masked_nt_xent_is_that_of_the_experiment() -> None:
    page = definitions("methods/gmc")
    joint, part = unit(2, 7, 4, seed=3)
    label = torch.tensor([0, 0, 1, 2, 3, 3, 3])
    said = label // 2
    whole, half = (x[:, None] == x for x in (label, said))
    same = torch.cat([torch.cat([whole, half], 1), torch.cat([half, half], 1)])
    torch.testing.assert_close(
        page["masked_nt_xent"](joint, part, same, 0.2),
        gmc.masked_ntxent(joint, part, label, said, 0.2),
    )
    nothing = torch.eye(14, dtype=torch.bool)
    torch.testing.assert_close(
        page["masked_nt_xent"](joint, part, nothing, 0.2), page["nt_xent"](joint, part, 0.2)
    )


def test_nearest_class_and_plane() -> None:
    page = definitions("methods/gmc")
    whole, labels = unit(12, 3, seed=0), torch.arange(12) % 3
    assert page["nearest_class"](whole, whole, labels) == 1
    nearest = [int((whole @ -row).argmax()) for row in whole]
    right = sum(labels[i] == labels[j] for i, j in enumerate(nearest)) / 12
    assert page["nearest_class"](-whole, whole, labels) == pytest.approx(float(right))
    middle, axes = page["plane"](whole)
    torch.testing.assert_close(axes.T @ axes, torch.eye(2, dtype=torch.float64))
    spread = ((whole - middle) @ axes).var(dim=0, correction=0)
    largest = torch.linalg.eigvalsh(whole.T.cov(correction=0)).flip(0)[:2]
    torch.testing.assert_close(spread, largest)


def test_gmc_exercises_name_what_fails() -> None:
    page = definitions("methods/gmc")
    check = page["check_mean"]
    assert check(page["mean_on_sphere"]) == "not answered yet"
    assert check(lambda z: F.normalize(z.sum(0), dim=-1)) == "right"
    assert "unit norm" in check(lambda z: z.mean(0))
    assert "shape" in check(lambda z: z)
    assert "order" in check(lambda z: z[0])
    assert "own vector" in check(lambda z: -F.normalize(z.sum(0), dim=-1))
    wrong = lambda z: F.normalize(z.sum(0) * (1 + (len(z) > 1) * z.sum(0).square()), dim=-1)  # noqa: E731
    assert "higher sum" in check(wrong)
    check = page["check_floor"]
    assert check(page["floor"]) == "not answered yet"
    assert check(math.log) == "right"
    assert "too high" in check(lambda k: math.log(2 * k - 1))
    assert "twins" in check(lambda k: 0.0)
    check = page["check_length"]
    assert check(page["mean_length"]) == "not answered yet"
    assert check(lambda M, c: ((1 + (M - 1) * c) / M) ** 0.5) == "right"
    assert "as long as they are" in check(lambda M, c: 1 / M)
    assert "square" in check(lambda M, c: (1 + (M - 1) * c) / M)
    assert "M = 3, c = 0.0" in check(lambda M, c: ((1 + c) / 2) ** 0.5)
