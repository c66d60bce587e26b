"""Missing modalities: what the page builds, and what its checks say."""

import pytest
import torch

from mmcl_book.methods import blending
from mmcl_core import evaluation
from mmcl_core.data import ShapesCaptions
from mmcl_core.methods import LateFusion
from tests.book.chapter import definitions, two_encoders
from tests.float32 import close32


def test_tiny_fusion_is_late_fusion() -> None:
    page = definitions("problems/missing")
    data = ShapesCaptions(8, seed=0, size=32, objects=(1, 1))
    encoders = two_encoders(data)
    library = LateFusion(encoders, classes=36, dim=16)
    mine = page["TinyFusion"](encoders, 36, 16)
    mine.fused.load_state_dict(library.fused.state_dict())
    mine.head.load_state_dict(library.heads["fusion"].state_dict())
    batch = data.batch(range(8))
    for present in (("image",), ("caption",), ("image", "caption")):
        part = {m: batch[m] for m in present}
        torch.testing.assert_close(mine.logits(part), library.logits(part))


def test_accuracy_of_subsets_is_missing_modality() -> None:
    page = definitions("problems/missing")
    data = ShapesCaptions(40, seed=0, size=32, objects=(1, 1))
    encoders = two_encoders(data)
    method = LateFusion(encoders, classes=6, dim=16).eval()
    labels, names = data.attributes["shape"][:, 0], ("image", "caption")
    found = evaluation.missing_modality(
        method, data, torch.arange(6), data, labels, names, classifier="own"
    )
    batch = data.batch(range(40))
    assert page["accuracy_of_subsets"](method.logits, batch, labels, names) == pytest.approx(
        found.accuracy
    )


def test_loop_and_line_drop_what_the_library_drops() -> None:
    page = definitions("problems/missing")
    data = ShapesCaptions(8, seed=0, size=32, objects=(1, 1))
    library = LateFusion(two_encoders(data), classes=36, dim=16)
    for p in (0.0, 0.3, 0.5, 1.0):
        library.dropout = p
        torch.manual_seed(0)
        kept = library._kept(500)
        torch.manual_seed(0)
        noise = torch.rand(500, 2)
        assert torch.equal(page["keep"](noise, p), kept)
        assert torch.equal(page["keep_loop"](noise, p), kept)
    assert page["keep"](noise, 1.0).sum(1).eq(1).all()


def test_tiny_fusion_learns_as_late_fusion() -> None:
    page = definitions("problems/missing")
    data = ShapesCaptions(8, seed=0, size=32, objects=(1, 1))
    library = LateFusion(two_encoders(data), classes=36, dim=16)
    mine = page["TinyFusion"](dict(library.encoders.items()), 36, 16)
    mine.fused.load_state_dict(library.fused.state_dict())
    mine.head.load_state_dict(library.heads["fusion"].state_dict())
    batch = data.batch(range(8)) | {"label": torch.arange(8)}
    close32(mine.loss(batch)["total"], library.loss(batch)["total"])


def test_blending_by_hand_is_the_library_s() -> None:
    by_hand = definitions("problems/missing")["blending_by_hand"]
    losses = {"image": ((3.0, 3.1), (1.0, 1.6)), "tags": ((2.0, 2.0), (1.9, 2.3)),
              "fusion": ((3.0, 3.0), (0.5, 0.5))}  # fmt: skip
    earlier = {head: pair[0] for head, pair in losses.items()}
    later = {head: pair[1] for head, pair in losses.items()}
    assert by_hand(losses) == pytest.approx(blending.blending_weights(earlier, later))


def test_could_be_told_is_a_count_of_the_commonest() -> None:
    could_be_told = definitions("problems/missing")["could_be_told"]
    said = torch.tensor([0, 0, 0, 1, 1, 2])
    labels = torch.tensor([4, 4, 3, 0, 1, 4])
    assert could_be_told(said, labels) == pytest.approx((2 + 1 + 1) / 6)


def test_whose_check_tells_mistakes_apart() -> None:
    check = definitions("problems/missing")["check_whose"]

    def right(gone, complete, without, labels):
        return (torch.where(gone, without, complete) == labels).double().mean()

    assert check(lambda *of: ...) == "not answered yet"
    assert check(right) == "right"
    assert "expected 1.00" in check(lambda gone, one, two, y: right(~gone, one, two, y))
    assert "expected 0.00" in check(lambda gone, one, two, y: (one == y).double().mean())
    line = check(lambda gone, one, two, y: 1 - gone.double().mean())
    assert line == "a scene that is gone counts by what is told without"
