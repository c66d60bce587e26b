"""GMC: what the page builds, and what its checks say."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmcl_core import losses
from mmcl_core.data import ShapesCaptions
from mmcl_core.methods import GMC
from tests.book.chapter import definitions, two_encoders, unit, value_and_gradients
from tests.float32 import close32


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("name", ["gmc_loop", "gmc_vectorised"])
def test_gmc_loss_of_the_page(name: str, temperature: float) -> None:
    form = definitions("methods/gmc")[name]
    joint, *modalities = unit(4, 6, 5, seed=0)
    torch.testing.assert_close(
        value_and_gradients(lambda j, *m: form(j, m, temperature), joint, *modalities),
        value_and_gradients(lambda j, *m: losses.gmc_loss(m, j, temperature), joint, *modalities),
    )


def test_the_page_is_exact_at_a_low_temperature() -> None:
    page = definitions("methods/gmc")
    joint, other = unit(2, 8, 16, seed=0).float()
    part = F.normalize(joint + 0.01 * other, dim=1)
    expected = losses.gmc_loss([part], joint, 0.011)
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
    close32(tiny.loss(batch)["total"], library.loss(batch)["total"])
    for present in (("image",), ("caption",), ("image", "caption")):
        part = {m: batch[m] for m in present}
        close32(tiny.embed(part), library.embed(part))


def test_three_layers_learn_what_a_line_cannot() -> None:
    page = definitions("methods/gmc")
    torch.manual_seed(5)
    x = torch.randn(400, 2)
    y = (x.prod(dim=1) > 0).long()
    found = page["three_layers"](x[:300], y[:300], x[300:], steps=600)
    assert float((found == y[300:]).float().mean()) > 0.85


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
