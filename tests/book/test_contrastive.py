"""The contrastive loss: what the page builds, and what its checks say."""

import pytest
import torch

from mmcl_core import evaluation, losses
from tests.book.chapter import definitions, unit, value_and_gradients


@pytest.mark.parametrize(("batch", "width"), [(2, 2), (7, 3), (32, 64)])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
@pytest.mark.parametrize(
    "name", ["info_nce_loop", "info_nce_vectorised", "info_nce_stable", "info_nce"]
)
def test_contrastive_info_nce(name: str, temperature: float, batch: int, width: int) -> None:
    form = definitions("foundations/contrastive")[name]
    queries, keys = unit(2, batch, width, seed=batch)
    torch.testing.assert_close(
        value_and_gradients(lambda q, k: form(q, k, temperature), queries, keys),
        value_and_gradients(lambda q, k: losses.info_nce(q, k, temperature), queries, keys),
    )


def test_contrastive_forms_at_a_low_temperature() -> None:
    """In float32 the naive form breaks, as the page shows; the other two stay with the library."""
    page = definitions("foundations/contrastive")
    queries, keys = unit(2, 16, 8, seed=0).float()
    expected = losses.info_nce(queries, keys, 1e-3)
    assert not page["info_nce_vectorised"](queries, keys, 1e-3).isfinite()
    for name in ("info_nce_stable", "info_nce"):
        torch.testing.assert_close(page[name](queries, keys, 1e-3), expected)


def test_contrastive_halves_of_the_loss() -> None:
    page = definitions("foundations/contrastive")
    image, text = unit(2, 9, 4, seed=1)
    halves = page["pull"](image, text) + page["push"](image, text)
    torch.testing.assert_close(halves, losses.clip_loss(image, text, 1 / page["TAU"]))


def test_contrastive_alignment_and_uniformity() -> None:
    page = definitions("foundations/contrastive")
    x, y = unit(2, 20, 5, seed=2)
    assert page["alignment"](x, y).item() == pytest.approx(evaluation.alignment(x, y))
    assert page["uniformity"](x).item() == pytest.approx(evaluation.uniformity(x))
