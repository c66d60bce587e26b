"""Second views of a batch: paraphrases, word dropout, crops, the MoCo-v2 recipe; and labels.

Each function here returns a callable that takes a batch and returns a new one; the batch it is
given stays as it is. All random numbers come from PyTorch's global generator on the CPU, whatever
the device, so that `fit` can save and restore it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Subset

from mmcl_core.batches import Batch, index, require, trimmed
from mmcl_core.data.groups import caption_codes, codes_of
from mmcl_core.data.pictures import over, premultiplied
from mmcl_core.errors import DataError, MMCLError, ShapeError, check_count, check_number

Augment = Callable[[Batch], Batch]

_OTHER = "{}; hand over the data set that the batch is of, or the whole that it is a part of"


def compose(*augments: Augment) -> Augment:
    """Applies augmentations one after another, the first one first."""

    def apply(batch: Batch) -> Batch:
        batch = dict(batch)
        for augment in augments:
            batch = augment(batch)
        return batch

    return apply


def paraphrase(data: Any, *, view: bool = False) -> Augment:
    """Replaces "caption" by a random sentence of the same sample.

    A paraphrase is a second view of a caption: other words for the same scene. Captions are trimmed
    to the longest in the batch. Where a batch has "text", the code of its captions (`groups`), that
    goes along. In `compose`, it comes before what changes captions.

    Args:
        data: where the sentences are: a data set with `sentences` int64 `[N, S, L]`, padded with 0,
            such as `ShapesCaptions` and `CaptionFolder`. Batches are of this data set or of parts
            of it, by `subset` or `random_split`; their "index" tells the sample.
        view: also add "caption_view", another sentence of the same sample. With S = 1 it is the
            same one.

    Raises:
        ShapeError: the sentences have other axes.
        MissingModalityError: a batch comes without "caption" or "index".
        DataError: the data has no sentences; or a batch is of other data: it has an index that is
            not there, or a caption that is none of the sentences of its sample.
    """
    while isinstance(data, Subset):
        data = data.dataset
    sentences = getattr(data, "sentences", None)
    if not isinstance(sentences, Tensor):
        raise DataError(f"expected a data set with sentences, got {type(data).__name__}")
    if sentences.ndim != 3 or 0 in sentences.shape:
        raise ShapeError(f"sentences: expected shape [N, S, L], got {list(sentences.shape)}")
    find, choices = finder(data), sentences.shape[1]
    ids = caption_codes(sentences.flatten(0, 1)).view(-1, choices)
    texts = getattr(data, "texts", ids)

    def apply(batch: Batch) -> Batch:
        require(batch, "paraphrase needs", "caption", "index")
        found = find(batch)
        codes = texts if "text" in batch else ids
        if not (codes_of(batch).cpu()[:, None] == codes[found]).any(1).all():
            raise DataError(_OTHER.format("a caption is none of the sentences of its sample"))
        chosen = torch.randint(choices, (len(found),))
        new = {"": chosen}
        if view:
            # A step of 1 to S - 1 on the circle of sentences never comes back to the same one.
            step = torch.randint(1, choices, (len(found),)) if choices > 1 else 0
            new["_view"] = (chosen + step) % choices
        batch, device = dict(batch), batch["caption"].device
        for name, which in new.items():
            batch[f"caption{name}"] = trimmed(sentences[found, which]).to(device)
            if "text" in batch:
                batch[f"text{name}"] = codes[found, which].to(device)
        return batch

    return apply


def with_labels(data: Any, labels: Tensor) -> Augment:
    """Adds "label", the class of each sample, for methods that train on classes.

    Args:
        data: the data set that the labels are of. Batches are of it or of parts of it, as in
            `paraphrase`.
        labels: int64 `[N]`, one for each sample of `data`, in its order.

    Raises:
        ShapeError: `labels` has another shape or type, or is empty.
        MissingModalityError: a batch comes without "index".
        DataError: a batch is of other data, as in `paraphrase`.
    """
    if labels.ndim != 1 or labels.dtype != torch.int64 or not len(labels):
        raise ShapeError(f"labels: expected int64 [N], got {labels.dtype} {list(labels.shape)}")
    find, count = finder(data), len(_numbers(data))
    if count != len(labels):
        raise ShapeError(f"labels: expected one for each of the {count} samples, got {len(labels)}")

    def apply(batch: Batch) -> Batch:
        require(batch, "with_labels needs", "index")
        label = labels[find(batch).to(labels.device)]
        return {**batch, "label": label.to(batch["index"].device)}

    return apply


def crop(
    scale: tuple[float, float] = (0.6, 1.0), *, views: Sequence[str] = ("image_view",)
) -> Augment:
    """A random square of each picture, brought back to the size of the whole.

    The colours stay, since captions speak of them; and it needs no other library. Each sample and
    each view is drawn by itself from `batch["image"]`.

    Args:
        scale: least and greatest part of the area that a crop keeps, in (0, 1].
        views: the keys to write. "image" is then replaced by a crop of it.

    Raises:
        MMCLError: `scale` or `views` cannot be used.
        MissingModalityError: a batch comes without "image".
        ShapeError: "image" is not float `[B, 3, H, W]`, or the batch is empty.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise MMCLError(f"scale: expected 0 < least <= greatest <= 1, got {scale}")
    _check_views(views)

    def one(image: Tensor) -> Tensor:
        side = torch.empty(len(image)).uniform_(*scale).sqrt()  # of 1
        corner = 2 * torch.rand(len(image), 2) - 1  # of the way to each border
        matrix = torch.zeros(len(image), 2, 3)
        matrix[:, 0, 0] = matrix[:, 1, 1] = side
        matrix[:, :, 2] = corner * (1 - side)[:, None]
        grid = F.affine_grid(matrix.to(image), list(image.shape), align_corners=False)
        return F.grid_sample(image, grid, padding_mode="border", align_corners=False)

    def apply(batch: Batch) -> Batch:
        image = _pictures(batch, "crop")
        return {**batch, **{name: one(image) for name in views}}

    return apply


def composite(
    data: Any,
    *,
    views: Sequence[str] = ("image",),
    shift: float = 0.08,
    scale: tuple[float, float] = (0.8, 1.1),
    angle: float = 15.0,
    gain: float = 0.15,
    ground: tuple[float, float] = (0.75, 1.0),
) -> Augment:
    """Clear pictures, moved a little, on a pale ground of random colour; each drawn by itself.

    Nothing is mirrored: names say "left" and "right".

    Args:
        data: has `images` uint8 `[N, 4, H, W]`, RGBA, as `Emoji`; else as in `paraphrase`.
        views: the keys to write, of the size of "image".
        shift: greatest shift along each axis, of the side, in [0, 1].
        scale: least and greatest scale, above 0.
        angle: greatest turn to either side, in degrees, in [0, 180].
        gain: greatest change of red, green and blue, each of its own value, in [0, 1].
        ground: least and greatest red, green and blue of the ground, in [0, 1].

    Raises:
        MMCLError, MissingModalityError, ShapeError: as of `crop`; a batch needs "index", too.
        DataError: the data has no such pictures; or a batch is of other data.
    """
    while isinstance(data, Subset):
        data = data.dataset
    images = getattr(data, "images", None)
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 4:
        raise DataError(f"expected a data set with RGBA pictures, got {type(data).__name__}")
    _check_views(views)
    if not (0 < scale[0] <= scale[1] and 0 <= ground[0] <= ground[1] <= 1):
        raise MMCLError(f"expected least <= greatest, got scale={scale} and ground={ground}")
    shift, gain = check_number("shift", shift, "[0, 1]"), check_number("gain", gain, "[0, 1]")
    find, angle = finder(data), check_number("angle", angle, "[0, 180]") * torch.pi / 180

    def one(pixels: Tensor, size: int) -> Tensor:
        def draw(least: float, greatest: float, *shape: int) -> Tensor:
            return torch.empty(len(pixels), *shape).uniform_(least, greatest)

        turn, side = draw(-angle, angle), draw(*scale, 1, 1)  # grids tell where a pixel comes from
        matrix = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], 1).view(-1, 2, 2)
        matrix = torch.cat([matrix / side, draw(-2 * shift, 2 * shift, 2, 1)], 2)
        grid = F.affine_grid(matrix, list(pixels.shape), align_corners=False)
        moved = F.grid_sample(pixels, grid, align_corners=False)
        moved[:, :3] *= 1 + draw(-gain, gain, 3, 1, 1)
        return over(moved, draw(*ground, 3, 1, 1), size)

    def apply(batch: Batch) -> Batch:
        image = _pictures(batch, "composite")
        require(batch, "composite needs", "image", "index")
        pixels = premultiplied(images[find(batch)])
        return {**batch, **{name: one(pixels, image.shape[-1]).to(image) for name in views}}

    return apply


def finder(data: Any) -> Callable[[Batch], Tensor]:
    """Where the samples of a batch stand in a data set, by their "index".

    Args:
        data: the data set that batches are of, or a part of it, by `subset` or `random_split`.

    Returns:
        A function: a batch with "index" -> int64 [B], on the CPU, each from 0 to `len(data)` - 1.
        It raises `DataError` for an index that the data has not.
    """
    numbers = _numbers(data)
    order = numbers.argsort(stable=True)
    rising = numbers[order]

    def find(batch: Batch) -> Tensor:
        index = batch["index"].cpu()
        at = torch.searchsorted(rising, index).clamp_(max=len(rising) - 1)
        if len(lost := index[rising[at] != index]):
            raise DataError(_OTHER.format(f"the data has no sample with the index {int(lost[0])}"))
        return order[at]

    return find


def moco_v2(
    size: int,
    *,
    flip: bool = False,
    views: Sequence[str] = ("image", "image_view"),
    scale: tuple[float, float] = (0.2, 1.0),
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
    jitter_p: float = 0.8,
    grayscale_p: float = 0.2,
    blur_sigma: tuple[float, float] = (0.1, 2.0),
    blur_p: float = 0.5,
) -> Augment:
    """The picture augmentation of MoCo-v2, on whole batches, with kornia (``mmcl_core[book]``).

    Random resized crop, colour jitter, grayscale, Gaussian blur (X. Chen et al., "Improved
    Baselines with Momentum Contrastive Learning", arXiv:2003.04297, 2020). Each sample and each
    view is drawn by itself from `batch["image"]`; values stay in [0, 1].

    The recipe was made for photographs of 224 px without captions. It can make a caption false: a
    crop may cut out an object, grayscale and jitter change the colours that it names. So give the
    matching with captions the plain picture (``views=("image_view",)``), or milder settings. The
    horizontal flip of the recipe is off, because it swaps "left" and "right".

    Args:
        size: side of the new pictures in pixels.
        flip: flip half of the pictures.
        views: the keys to write. "image" is then replaced by an augmented view.
        scale: least and greatest part of the area that a crop keeps.
        jitter: strength of brightness, contrast, saturation and hue. On a CPU hue takes about a
            third of the whole time; 0 leaves it out.
        jitter_p, grayscale_p, blur_p: probability of each step for a sample.
        blur_sigma: least and greatest standard deviation of the blur, in pixels.

    Raises:
        MMCLError: `size` or `views` cannot be used, or kornia is not installed.
        MissingModalityError: a batch comes without "image".
        ShapeError: "image" is not float `[B, 3, H, W]`, or the batch is empty.
    """
    size = check_count("size", size)
    _check_views(views)
    try:
        import kornia.augmentation as K
    except ImportError as error:
        raise MMCLError(
            "moco_v2 needs kornia: pip install 'mmcl_core[book]'. `crop` needs nothing besides"
        ) from error
    # Slicing is several times faster than kornia's default, a perspective warp, for the same crop.
    # The kernel reaches two standard deviations to each side, as far as it makes a difference.
    radius = min(max(1, round(2 * blur_sigma[1])), size - 1)
    recipe = torch.nn.Sequential(
        K.RandomResizedCrop((size, size), scale=scale, cropping_mode="slice"),
        K.ColorJitter(*jitter, p=jitter_p),
        K.RandomGrayscale(p=grayscale_p),
        K.RandomGaussianBlur((2 * radius + 1, 2 * radius + 1), blur_sigma, p=blur_p),
        *([K.RandomHorizontalFlip(p=0.5)] if flip else []),
    )

    @torch.no_grad()
    def apply(batch: Batch) -> Batch:
        image = _pictures(batch, "moco_v2")
        # Interpolation and blur may leave [0, 1] by a rounding error.
        return {**batch, **{key: recipe(image).clamp_(0, 1) for key in views}}

    return apply


def _numbers(data: Any) -> Tensor:
    """The "index" of each sample of a data set: int64 [N]."""
    if isinstance(data, Subset):
        return (whole := _numbers(data.dataset))[index(data.indices, len(whole))]
    return getattr(data, "rows", torch.arange(len(data)))


def _check_views(views: Sequence[str]) -> None:
    if not views or not set(views) <= {"image", "image_view"}:
        raise MMCLError(f"views: expected 'image', 'image_view' or both, got {tuple(views)}")


def _pictures(batch: Batch, who: str) -> Tensor:
    require(batch, f"{who} needs", "image")
    image = batch["image"]
    if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
        raise ShapeError(
            f"image: expected float [B, 3, H, W] in [0, 1], got {image.dtype} {list(image.shape)}"
        )
    return image
