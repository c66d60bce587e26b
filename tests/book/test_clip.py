"""CLIP: what the page builds, and what its checks say."""

import pytest
import torch

from mmcl_core import losses
from mmcl_core.data import ShapesCaptions
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.methods import CLIP
from tests.book.chapter import definitions, unit, value_and_gradients


@pytest.mark.parametrize("groups", [None, torch.tensor([0, 1, 0, 2, 2, 2, 3])])
def test_clip_loss_of_the_page(groups: torch.Tensor | None) -> None:
    page = definitions("foundations/clip")
    image, text = unit(2, 7, 5, seed=0)
    library = value_and_gradients(
        lambda x, y: losses.clip_loss(x, y, 12.0, groups=groups), image, text
    )
    vectorised = value_and_gradients(
        lambda x, y: page["clip_loss_vectorised"](x, y, 12.0, groups), image, text
    )
    torch.testing.assert_close(vectorised, library)
    if groups is None:
        loop = value_and_gradients(lambda x, y: page["clip_loss_loop"](x, y, 12.0), image, text)
        torch.testing.assert_close(loop, library)


def test_tiny_clip_is_the_library_clip() -> None:
    lab = ShapesCaptions(24, detail=1)  # detail 1: some captions are identical
    torch.manual_seed(0)
    library = CLIP(ImageEncoder(width=32), CaptionEncoder(len(lab.tokenizer), width=32), dim=16)
    tiny = definitions("foundations/clip")["TinyCLIP"](
        library.encoders["image"], library.encoders["caption"], dim=16
    )
    tiny.image_head.load_state_dict({"weight": library.heads["image"][0].weight})
    tiny.caption_head.load_state_dict({"weight": library.heads["caption"][0].weight})
    batch = lab.batch(range(24))
    torch.testing.assert_close(tiny.loss(batch), library.loss(batch))
