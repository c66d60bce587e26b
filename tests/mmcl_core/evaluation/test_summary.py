"""What is measured of a trained method, against drawing lots, counting and looking."""

import pytest
import torch
from torch import Tensor

from mmcl_core.data import ShapesCaptions
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.errors import DataError
from mmcl_core.evaluation import summary
from mmcl_core.methods import FDT


def test_chance_of_recall_is_that_of_random_embeddings() -> None:
    data = ShapesCaptions(60, seed=9, size=24, detail=1, objects=(1, 1))
    found = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)

        class Random(torch.nn.Module):
            def embed(self, batch: dict[str, Tensor], drawn=generator) -> Tensor:
                return torch.randn(len(next(iter(batch.values()))), 16, generator=drawn)

        found.append(summary.recall(Random(), data, ks=(1, 5, 100)))
    assert found[0].keys() == {
        f"{name}@{k}" for name in ("image_to_caption", "caption_to_image", "chance") for k in (1, 5)
    }
    assert len({f["chance@1"] for f in found}) == 1
    for k in (1, 5):
        for way in ("image_to_caption", "caption_to_image"):
            mean = sum(f[f"{way}@{k}"] for f in found) / len(found)
            assert mean == pytest.approx(found[0][f"chance@{k}"], abs=0.03)
    alike = torch.cdist(*[data.sentences[:, 0].float()] * 2) == 0
    assert alike.sum() > 2 * 60  # so that it matters
    assert found[0]["chance@1"] == pytest.approx(float(alike.float().mean()))


def test_codebook_is_counted_over_all_samples() -> None:
    data = ShapesCaptions(50, seed=9, size=24)
    torch.manual_seed(0)
    method = FDT(
        ImageEncoder(size=24),
        CaptionEncoder(len(data.tokenizer)),
        codebook_size=16,
        grounding_temperature=50.0,
    )
    found = summary.codebook(method, data)
    with torch.no_grad():
        weights = method.eval().ground(data.batch(range(50)), "caption").weights
    assert found["caption_used"] == (weights > 1e-9).any(0).sum()
    assert found["caption_active"] == pytest.approx(float((weights > 0).sum(1).float().mean()))


def test_classes_need_one_object() -> None:
    scenes = ShapesCaptions(20, seed=9, size=24, objects=(1, 1))
    labels = summary.shape_and_colour(scenes)
    assert labels.max() < summary.CLASSES == 36
    shape, colour = scenes.attributes["shape"][:, 0], scenes.attributes["colour"][:, 0]
    assert torch.equal(labels // 6, shape)
    assert torch.equal(labels % 6, colour)
    with pytest.raises(DataError, match="one object each, got up to 3"):
        summary.shape_and_colour(ShapesCaptions(20, seed=9, size=24))
