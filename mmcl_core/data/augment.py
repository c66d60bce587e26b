"""Second views of a batch: paraphrases, word dropout, the MoCo-v2 recipe for pictures; and labels.

Each function here returns a callable that takes a batch and returns a new one; the batch it is
given stays as it is. All random numbers come from PyTorch's global generator on the CPU, whatever
the device, so that `fit` can save and restore it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmcl_core.data.tokenizer import END, PAD, START, UNK
from mmcl_core.errors import DataError, MissingModalityError, MMCLError, ShapeError

Augment = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def compose(*augments: Augment) -> Augment:
    """Applies augmentations one after another, the first one first."""

    def apply(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        batch = dict(batch)
        for augment in augments:
            batch = augment(batch)
        return batch

    return apply


def paraphrase(sentences: Tensor, *, view: bool = False) -> Augment:
    """Replaces "caption" by a random sentence of the same sample.

    A paraphrase is a second view of a caption: other words for the same scene. Captions are trimmed
    to the longest in the batch.

    Args:
        sentences: int64 `[N, S, L]`, padded with 0, as data sets hold them; `batch["index"]` says
            which row belongs to a sample.
        view: also add "caption_view", another sentence of the same sample. With S = 1 it is the
            same one.

    Raises:
        ShapeError: `sentences` has other axes.
        MissingModalityError: a batch comes without "caption" or "index".
        DataError: an index is outside `sentences`.
    """
    if sentences.ndim != 3 or 0 in sentences.shape:
        raise ShapeError(f"sentences: expected shape [N, S, L], got {list(sentences.shape)}")
    count, choices, _ = sentences.shape

    def apply(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        _require(batch, "paraphrase", "caption", "index")
        index = _index(batch, count, "sentences").to(sentences.device)
        chosen = torch.randint(choices, (len(index),))
        new = {"caption": chosen}
        if view:
            # A step of 1 to S - 1 on the circle of sentences never comes back to the same one.
            step = torch.randint(1, choices, (len(index),)) if choices > 1 else 0
            new["caption_view"] = (chosen + step) % choices
        device = batch["caption"].device
        return {
            **batch,
            **{
                key: _trim(sentences[index, which.to(index.device)]).to(device)
                for key, which in new.items()
            },
        }

    return apply


def with_labels(labels: Tensor) -> Augment:
    """Adds "label", the class of each sample, for methods that train on classes.

    Args:
        labels: int64 `[N]`; `batch["index"]` says which one belongs to a sample.

    Raises:
        ShapeError: `labels` has another shape or type, or is empty.
        MissingModalityError: a batch comes without "index".
        DataError: an index is outside `labels`.
    """
    if labels.ndim != 1 or labels.dtype != torch.int64 or not len(labels):
        raise ShapeError(f"labels: expected int64 [N], got {labels.dtype} {list(labels.shape)}")

    def apply(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        _require(batch, "with_labels", "index")
        index = _index(batch, len(labels), "labels")
        return {**batch, "label": labels[index.to(labels.device)].to(index.device)}

    return apply


def word_dropout(p: float = 0.1, *, unk: int = UNK, view: bool = False) -> Augment:
    """Replaces each word by ``<unk>`` with probability `p`; at least one word of a caption stays.

    ``<pad>``, ``<start>`` and ``<end>`` (ids 0, 1, 2) are never replaced.

    Args:
        p: probability in [0, 1].
        unk: the id of ``<unk>``.
        view: False: replace words in "caption". True: leave "caption" as it is and write
            "caption_view", from the "caption_view" that is there, or else from "caption".

    Raises:
        MMCLError: `p` is outside [0, 1].
        MissingModalityError: a batch comes without "caption".
    """
    if not 0 <= p <= 1:
        raise MMCLError(f"p: expected a probability in [0, 1], got {p}")

    def apply(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        _require(batch, "word_dropout", "caption")
        ids = batch.get("caption_view", batch["caption"]) if view else batch["caption"]
        word = (ids != PAD) & (ids != START) & (ids != END) & (ids != unk)
        # Words with a noise below p go. The word with the largest noise is the last to go, so to
        # keep it always changes nothing unless all would go.
        noise = torch.rand(ids.shape).to(ids.device)
        drop = word & (noise < p)
        last = noise.masked_fill(~word, -1).argmax(dim=1, keepdim=True)
        drop.scatter_(1, last, False)
        return {**batch, "caption_view" if view else "caption": ids.masked_fill(drop, unk)}

    return apply


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
    """The picture augmentation of MoCo-v2, on whole batches, with kornia.

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
        MMCLError: `size` or `views` cannot be used.
        MissingModalityError: a batch comes without "image".
        ShapeError: "image" is not float `[B, 3, H, W]`, or the batch is empty.
    """
    # Here, so that the library can be imported without it.
    import kornia.augmentation as K

    if size < 1:
        raise MMCLError(f"size: expected at least 1 pixel, got {size}")
    if not views or not set(views) <= {"image", "image_view"}:
        raise MMCLError(f"views: expected 'image', 'image_view' or both, got {tuple(views)}")
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
    def apply(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        _require(batch, "moco_v2", "image")
        image = batch["image"]
        if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
            raise ShapeError(
                f"image: expected float [B, 3, H, W] in [0, 1], got {image.dtype} "
                f"{list(image.shape)}"
            )
        # Interpolation and blur may leave [0, 1] by a rounding error.
        return {**batch, **{key: recipe(image).clamp_(0, 1) for key in views}}

    return apply


def _index(batch: dict[str, Tensor], count: int, what: str) -> Tensor:
    """The "index" of a batch, each from 0 to `count` - 1."""
    index = batch["index"]
    if int(index.min()) < 0 or int(index.max()) >= count:
        raise DataError(
            f"index: expected 0 to {count - 1}, got {int(index.min())} to {int(index.max())}; "
            f"hand over the {what} of the same data set as the batch"
        )
    return index


def _trim(ids: Tensor) -> Tensor:
    """Cuts the columns that are padding in every caption of `[B, L]`."""
    return ids[:, : int((ids != PAD).sum(dim=1).max())]


def _require(batch: dict[str, Tensor], name: str, *keys: str) -> None:
    missing = [key for key in keys if key not in batch]
    if missing:
        raise MissingModalityError(
            f"{name} needs {list(keys)} in a batch, got {sorted(batch)}: {missing} missing"
        )
    if len(batch[keys[0]]) == 0:
        raise ShapeError(f"{keys[0]}: expected at least one sample, got an empty batch")
