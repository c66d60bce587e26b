"""The methods of the command line: all that it knows of each stands in its entry, and only here.

To add a method: write its recipe and its entry below, name it on the page of the reference, and
say in `tests/mmcl_core/cli/test_registry.py` what is measured of it.

The settings were chosen on the laboratory: trained on `ShapesCaptions(5000, seed=0)`, compared on
scenes of seed 555. What is reported is measured on scenes of other seeds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from mmcl_core.data.augment import Augment, compose, crop, paraphrase, with_labels
from mmcl_core.encoders import CaptionEncoder, ImageEncoder, TagEncoder
from mmcl_core.evaluation.summary import CLASSES, shape_and_colour
from mmcl_core.features import FeatureEncoder, drop_features
from mmcl_core.methods import CLIP, FDT, GMC, MCT, LateFusion, MoCo, SigLIP
from mmcl_core.methods.fdt import Cooling


class Recipe(NamedTuple):
    """What `fit` is called with."""

    method: nn.Module
    augment: Augment


class Entry(NamedTuple):
    """What the command line knows of a method.

    Attributes:
        recipe: makes a `Recipe` from data, the size of a batch, and the number of steps.
        about: what it is, for the help: a line.
        epochs: how many are trained, unless others are asked for; likewise `batch_size`, `lr`.
        scenes: what `evaluate` measures on scenes, names of `mmcl_core.cli.evaluate.MEASURES`.
        pictures: what it measures on the captioned pictures of a folder.
        wordless: why no words can be compared with its pictures; "" where they can.
        labels: it learns the shape and colour of the only object of each scene.
    """

    recipe: Callable[[Any, int, int], Recipe]
    about: str
    epochs: int = 8
    batch_size: int = 128
    lr: float = 2e-3
    scenes: tuple[str, ...] = ("recall", "probes")
    pictures: tuple[str, ...] = ("recall",)
    wordless: str = ""
    labels: bool = False


def clip(data: Any, batch_size: int, steps: int) -> Recipe:
    """Pictures and captions; a new sentence for each scene in each epoch."""
    return Recipe(CLIP(*_pair(data)), compose(paraphrase(data), *_looks(data)))


def siglip(data: Any, batch_size: int, steps: int) -> Recipe:
    """As `clip`; scale and bias begin as published."""
    return Recipe(SigLIP(*_pair(data)), compose(paraphrase(data), *_looks(data)))


def moco(data: Any, batch_size: int, steps: int) -> Recipe:
    """Pictures alone."""
    method = MoCo(_image(data), queue=16 * batch_size)
    return Recipe(method, compose(*_looks(data, crop())))


def mct(data: Any, batch_size: int, steps: int) -> Recipe:
    """All five terms (four where the data has no tags); small batches, since a queue allows them.

    The terms within a modality have a small weight: with more, recall fell in our trials.
    """
    weights = {"image": 0.2, "caption": 0.1} | ({"tags": 0.1} if _tag_count(data) else {})
    settings: dict[str, Any] = {"weights": weights, "inter_temperature": 0.05}
    method = MCT(*_pair(data), tags=_tag_count(data), queue=8 * batch_size, **settings)
    return Recipe(method, compose(paraphrase(data, view=True), *_looks(data, crop())))


def fdt(data: Any, batch_size: int, steps: int) -> Recipe:
    """512 entries in the codebook, cooled from 300 to 15; two layers over the words."""
    cooling = Cooling(300.0, 15.0, max(steps, 1))
    method = FDT(_image(data), _caption(data, depth=2), grounding_temperature=cooling)
    return Recipe(method, compose(paraphrase(data), *_looks(data)))


def gmc(data: Any, batch_size: int, steps: int) -> Recipe:
    """Pictures, captions, and tags where the data has them."""
    return Recipe(GMC(_all(data), dim=64), compose(paraphrase(data), *_looks(data)))


def fusion(data: Any, batch_size: int, steps: int) -> Recipe:
    """A classifier on all modalities, without dropout."""
    augment = compose(paraphrase(data), with_labels(data, shape_and_colour(data)))
    return Recipe(LateFusion(_all(data), CLASSES), augment)


METHODS = {
    "clip": Entry(clip, "pictures with captions"),
    "siglip": Entry(siglip, "pictures with captions, and each pair a question of yes or no"),
    "moco": Entry(
        moco, "pictures alone", batch_size=64, scenes=("probes",), pictures=(),
        wordless="was trained on pictures alone and knows no words",
    ),
    "mct": Entry(mct, "pictures with captions, and with tags where there are some", batch_size=64),
    "fdt": Entry(
        fdt, "pictures with captions, both told by one set of tokens", epochs=12,
        scenes=("recall", "codebook"), pictures=("recall", "codebook"),
    ),
    "gmc": Entry(
        gmc, "pictures with captions, and with tags where there are some", scenes=("accuracy",)
    ),
    "fusion": Entry(
        fusion, "a classifier of shape and colour, on all of these", scenes=("accuracy",),
        pictures=(), labels=True,
        wordless="is a classifier: nothing in its training brings words and pictures together",
    ),
}  # fmt: skip


def _image(data: Any) -> nn.Module:
    if hasattr(data, "features"):
        return FeatureEncoder(data.width, pool=data.pool)
    return ImageEncoder(size=data.size)


def _looks(data: Any, *views: Augment) -> list[Augment]:
    """How pictures get a second view, where one is asked for; of features, it is dropout."""
    if not hasattr(data, "features"):
        return [*views]
    names = ("image", "image_view") if views else ("image",)
    return [drop_features(tokens=data.dropout, values=data.dropout, views=names)]


def _caption(data: Any, depth: int = 1) -> CaptionEncoder:
    longest = max(64, data.sentences.shape[2])
    return CaptionEncoder(len(data.tokenizer), depth=depth, max_length=longest)


def _pair(data: Any) -> tuple[nn.Module, CaptionEncoder]:
    return _image(data), _caption(data)


def _all(data: Any) -> dict[str, nn.Module]:
    encoders: dict[str, nn.Module] = {"image": _image(data), "caption": _caption(data)}
    if _tag_count(data):
        encoders["tags"] = TagEncoder(_tag_count(data))
    return encoders


def _tag_count(data: Any) -> int:
    tags = getattr(data, "tags", None)
    return 0 if tags is None else tags.shape[1]
