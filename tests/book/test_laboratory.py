"""The laboratory: what the page builds, and what its checks say."""

import torch

from mmcl_core.data import ShapesCaptions
from mmcl_core.data.drawing import VALUES
from mmcl_core.data.shapes import NAMED_AT_DETAIL
from tests.book.chapter import definitions


def test_laboratory_meaning() -> None:
    page, lab = definitions("foundations/laboratory"), ShapesCaptions(300)
    kinds = {name: len(values) for name, values in VALUES.items()}
    for detail, names in NAMED_AT_DETAIL.items():
        library = lab.meaning(detail)
        torch.testing.assert_close(
            page["meaning_vectorised"](lab.attributes, names, kinds), library
        )
        by_loop = page["meaning_loop"](lab.attributes, names)
        assert page["same_groups"](by_loop, library.tolist())
    assert not page["same_groups"]([0, 0, 1], [0, 1, 1])


def test_laboratory_tags() -> None:
    page, lab = definitions("foundations/laboratory"), ShapesCaptions(100, tags=("texture",))
    for name in ("tags_loop", "tags_vectorised"):
        assert torch.equal(page[name](lab.attributes["texture"], 3), lab.tags)
