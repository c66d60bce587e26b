"""Photographs: what the page builds, and what its checks say."""

import numpy as np
import torch
from PIL import Image, ImageOps

from mmcl_book.experiments import closed_forms
from tests.book.chapter import definitions


def test_a_lying_picture_is_turned_as_pillow_turns_it() -> None:
    page = definitions("synthesis/photographs")
    pixels = torch.randint(
        256, (5, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    turned = page["upright_loop"](pixels.tolist())
    assert turned == page["upright"](pixels).tolist()
    picture = Image.fromarray(pixels.numpy())
    picture.getexif()[0x0112] = 6
    assert torch.tensor(turned).equal(
        torch.tensor(np.array(ImageOps.exif_transpose(picture))).long()
    )


def test_tiny_ridge_is_that_of_the_record(monkeypatch) -> None:
    page = definitions("synthesis/photographs")
    rng = np.random.default_rng(0)
    words = np.array(["red", "blue", "ring", "star", "a", "small", "there", "is"])
    texts = [" ".join(rng.permutation(words)[:4]) for _ in range(60)]
    x = rng.standard_normal((60, 5)) * 3 + 1
    standard = (x - x.mean(0)) / (x.std(0) + 1e-6)
    monkeypatch.setattr(closed_forms, "numbers", lambda data: standard)
    closed_forms.reduced.cache_clear()
    record = closed_forms.ridge(_Texts(texts), dims=4, alpha=0.7)
    tiny = page["TinyRidge"](x, texts, 4, 0.7)
    np.testing.assert_allclose(tiny.image(x), record.image(standard), atol=1e-8)
    np.testing.assert_allclose(tiny.caption(texts[:7]), record.caption(texts[:7]), atol=1e-8)
    closed_forms.reduced.cache_clear()


class _Texts:
    """A caption for each picture, and nothing else."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def captions(self, i: int) -> list[str]:
        return [self.texts[i]]


def test_photographs_exercises_name_what_fails() -> None:
    page = definitions("synthesis/photographs")
    check = page["check_any"]
    assert check(page["recall_any"]) == "not answered yet"
    assert check(page["recall_of_any"]) == "right"
    assert "it is 0.667, not 0.333" in check(lambda c, o, k: torch.tensor(1 / 3))
    assert "a share of three pictures" in check(lambda c, o, k: 0.4321)

    def counts_captions(cosines, owner, k):
        own = owner[cosines.topk(k, dim=1).indices] == torch.arange(len(cosines))[:, None]
        return own.sum() / len(cosines)

    assert "it is 1.000" in check(counts_captions) or "found once" in check(counts_captions)
    check = page["check_lost"]
    assert check(page["lost"]) == "not answered yet"
    assert check(page["lost_share"]) == "right"
    assert "lies in 0 to 1" in check(lambda w, h: 1 - w / h)
    assert "share that stays" in check(lambda w, h: min(w, h) / max(w, h))
    assert "not the lost" in check(lambda w, h: 0.0)
    check, right = page["check_bytes"], page["bytes_of_features"]()
    assert check(page["feature_bytes"]) == "not answered yet"
    assert check(lambda: right) == "right"
    assert "2 bytes" in check(lambda: (right[0] * 2, right[1]))
    assert "tokens: pictures x" in check(lambda: (right[0], right[0]))
