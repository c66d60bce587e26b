"""For each method, what it is trained with: encoders, views, epochs, batch and learning rate.

The settings were chosen on the laboratory: trained on `ShapesCaptions(5000, seed=0)`, compared on
scenes of seed 555. What is reported is measured on scenes of other seeds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from mmcl_core.data.augment import Augment, compose, crop, paraphrase, with_labels
from mmcl_core.encoders import CaptionEncoder, ImageEncoder, TagEncoder
from mmcl_core.methods import CLIP, FDT, GMC, MCT, LateFusion, MoCo
from mmcl_core.methods.fdt import Cooling


class Recipe(NamedTuple):
    """What `fit` is called with."""

    method: nn.Module
    augment: Augment
    epochs: int
    batch_size: int = 128
    lr: float = 2e-3


def clip(data: Any, *, epochs: int = 8, batch_size: int = 128) -> Recipe:
    """Pictures and captions; a new sentence for each scene in each epoch."""
    return Recipe(CLIP(*_pair(data)), paraphrase(data), epochs, batch_size)


def moco(data: Any, *, epochs: int = 8, batch_size: int = 64) -> Recipe:
    """Pictures alone."""
    return Recipe(MoCo(_image(data), queue=16 * batch_size), crop(), epochs, batch_size)


def mct(data: Any, *, epochs: int = 8, batch_size: int = 64) -> Recipe:
    """All five terms (four where the data has no tags); small batches, since a queue allows them.

    The terms within a modality have a small weight: with more, recall fell in our trials.
    """
    method = MCT(
        *_pair(data),
        tags=_tag_count(data),
        weights={"image": 0.2, "caption": 0.1} | ({"tags": 0.1} if _tag_count(data) else {}),
        queue=8 * batch_size,
        inter_temperature=0.05,
    )
    augment = compose(paraphrase(data, view=True), crop())
    return Recipe(method, augment, epochs, batch_size)


def fdt(data: Any, *, epochs: int = 12, batch_size: int = 128) -> Recipe:
    """512 entries in the codebook, cooled from 300 to 15; two layers over the words."""
    steps = epochs * (len(data) // batch_size)
    cooling = Cooling(300.0, 15.0, max(steps, 1))
    method = FDT(_image(data), _caption(data, depth=2), grounding_temperature=cooling)
    return Recipe(method, paraphrase(data), epochs, batch_size)


def gmc(data: Any, *, epochs: int = 8, batch_size: int = 128) -> Recipe:
    """Pictures, captions, and tags where the data has them."""
    return Recipe(GMC(_all(data), dim=64), paraphrase(data), epochs, batch_size)


def fusion(
    data: Any,
    *,
    labels: Tensor,
    classes: int | None = None,
    epochs: int = 8,
    batch_size: int = 128,
) -> Recipe:
    """A classifier on all modalities, without dropout; `labels` int64 [N] for the samples.

    `classes` is their number; None takes as many as the labels show.
    """
    method = LateFusion(_all(data), int(labels.max()) + 1 if classes is None else classes)
    augment = compose(paraphrase(data), with_labels(data, labels))
    return Recipe(method, augment, epochs, batch_size)


# By the names that `python -m mmcl_core` takes. Fusion needs labels and stands apart.
RECIPES: dict[str, Callable[..., Recipe]] = {
    "clip": clip,
    "moco": moco,
    "mct": mct,
    "fdt": fdt,
    "gmc": gmc,
}


def _image(data: Any) -> ImageEncoder:
    return ImageEncoder(size=data.size)


def _caption(data: Any, depth: int = 1) -> CaptionEncoder:
    longest = max(64, data.sentences.shape[2])
    return CaptionEncoder(len(data.tokenizer), depth=depth, max_length=longest)


def _pair(data: Any) -> tuple[ImageEncoder, CaptionEncoder]:
    return _image(data), _caption(data)


def _all(data: Any) -> dict[str, nn.Module]:
    encoders: dict[str, nn.Module] = {"image": _image(data), "caption": _caption(data)}
    if _tag_count(data):
        encoders["tags"] = TagEncoder(_tag_count(data))
    return encoders


def _tag_count(data: Any) -> int:
    tags = getattr(data, "tags", None)
    return 0 if tags is None else tags.shape[1]
