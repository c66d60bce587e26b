"""Heterogeneity: what the page builds, and what its checks say."""

import pytest
import torch

from mmcl_book.experiments import structure
from mmcl_core import evaluation
from mmcl_core.data import ShapesCaptions
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.methods import CLIP
from tests.book.chapter import definitions, unit


def test_gap_and_cone_by_hand() -> None:
    page = definitions("problems/heterogeneity")
    x, y = unit(7, 5, seed=0), unit(7, 5, seed=1)
    assert float(page["cone_loop"](x)) == pytest.approx(evaluation.cone(x), abs=1e-12)
    assert float(page["cone_vectorised"](x)) == pytest.approx(evaluation.cone(x), abs=1e-12)
    assert float(page["gap_vectorised"](x, y)) == pytest.approx(
        evaluation.modality_gap(x, y), abs=1e-12
    )


@pytest.mark.parametrize("d", [-2.0, 0.0, 0.5, 1.0])
def test_shift_by_hand(d: float) -> None:
    page = definitions("problems/heterogeneity")
    x, y = unit(6, 4, seed=2), unit(6, 4, seed=3)
    for mine, library in zip(
        page["shift_by_hand"](x, y, d), evaluation.shift_gap(x, y, d), strict=True
    ):
        torch.testing.assert_close(mine, library)


def test_word_similarity_loop_and_vectorised() -> None:
    page = definitions("problems/heterogeneity")
    patches, words = unit(3, 4, 5, seed=4), unit(2, 6, 5, seed=5)
    table = page["word_similarity"](patches, words)
    for b in range(3):
        for c in range(2):
            alone = page["word_similarity_loop"](patches[b], words[c])
            assert float(table[b, c]) == pytest.approx(float(alone))


def test_word_similarity_is_that_of_the_library() -> None:
    page = definitions("problems/heterogeneity")
    data = ShapesCaptions(5, seed=1, size=32, objects=(1, 1), sentences=1, synonyms=False)
    torch.manual_seed(0)
    method = CLIP(ImageEncoder(size=32, width=32), CaptionEncoder(len(data.tokenizer), width=32))
    batch = data.batch(range(5))
    patches, _ = method.embed_tokens(batch, "image")
    words, real = structure.words_of(method, batch)
    table = structure.token_similarity(method, batch, batch)
    for c in range(5):  # the page has captions of one length
        mine = page["word_similarity"](patches, words[c, real[c]][None])
        torch.testing.assert_close(mine[:, 0], table[:, c])
