"""Pictures from files, as batches: any folder of them, and how one is decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import get_worker_info

from mmcl_core.batches import Batch, BatchDataset, Indices, index
from mmcl_core.errors import DataError, check_count

# Names that end so are taken for pictures.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class PictureFolder(BatchDataset):
    """The pictures of a folder and of all folders in it, without captions.

    They come in the order of their names. What begins with a dot is left out; links to folders are
    not followed. A picture is decoded when asked for, as `CaptionFolder` does it: so a method that
    was trained on the one can embed the other. A batch has "image" and "index".

    Attributes:
        names: of the pictures, as paths from `root` with "/" between the parts.
        rows: int64 `[N]`, the number of each picture among all of the folder.

    Args:
        root: the folder.
        size: side in pixels, at least 1.

    Raises:
        DataError: there is no such folder, or no picture in it.
    """

    _each = ("names",)

    def __init__(self, root: str | os.PathLike[str], *, size: int = 64) -> None:
        self.root, self.size = Path(root), check_count("size", size)
        if not self.root.is_dir():
            raise DataError(f"{root}: expected a folder of pictures, got no such folder")
        self.names = sorted(_names(self.root))
        if not self.names:
            raise DataError(
                f"{root}: expected pictures, names that end in one of {', '.join(SUFFIXES)}; got "
                "none of them, here or in the folders inside"
            )
        self.rows = torch.arange(len(self.names))

    def __repr__(self) -> str:
        return f"PictureFolder({len(self)} pictures, size={self.size})"

    def _read(self, rows: Tensor) -> Batch:
        """Pictures, float32 `[B, 3, size, size]` in [0, 1]; DataError if one is damaged."""
        batch, unreadable = self.read(rows)
        for i, error in unreadable.items():
            raise DataError(
                f"the picture {self.root / self.names[i]} cannot be read ({error}). Replace it, or "
                "take it out of the folder"
            ) from error
        return batch

    def read(self, indices: Indices) -> tuple[Batch, dict[int, Exception]]:
        """The batch of those pictures that can be read, perhaps of none; of the others, why not.

        The others go by their number here, as in `names`.
        """

        rows = index(indices, len(self)).tolist()
        read = in_threads(lambda i: tried(self.root / self.names[i], self.size), rows)
        found = list(zip(rows, read, strict=True))
        good = {i: pixels for i, pixels in found if not isinstance(pixels, Exception)}
        batch = {"image": as_images(list(good.values()), self.size), "index": self.rows[list(good)]}
        return batch, {i: error for i, error in found if isinstance(error, Exception)}


def _names(root: Path) -> Iterator[str]:
    for folder, inside, files in os.walk(root):
        inside[:] = [name for name in inside if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield (Path(folder) / name).relative_to(root).as_posix()


def decode(path: str | os.PathLike[str], size: int) -> np.ndarray:
    """The centred square of a picture as uint8 `[size, size, 3]`.

    Turned upright by its EXIF tag, converted to RGB, and resized (bicubic), as CLIP does it. A JPEG
    is decoded at a half, a quarter or an eighth where that leaves at least twice `size`. Raises
    errors of many kinds on a damaged file, and ValueError on more than 8 bits a channel.
    """
    with Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"expected 8 bits a channel, got the mode {image.mode}")
        # libjpeg can leave out fine detail while decoding, which is where the time goes.
        image.draft("RGB", (2 * size, 2 * size))
        picture = image.convert("RGB")
    ImageOps.exif_transpose(picture, in_place=True)
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=box))


def tried(path: str | os.PathLike[str], size: int) -> np.ndarray | Exception:
    """What `decode` gives, or why it gives nothing."""
    try:
        return decode(path, size)
    except Exception as error:  # damaged files make Pillow raise errors of many kinds
        return error


def as_images(pictures: Sequence[np.ndarray], size: int) -> Tensor:
    """Decoded pictures, uint8 `[size, size, 3]` each, as float32 `[B, 3, size, size]` in [0, 1]."""
    pixels = np.stack(pictures) if pictures else np.empty((0, size, size, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255)


def premultiplied(images: Tensor) -> Tensor:
    """RGBA, uint8 `[B, 4, H, W]`, as float32 in [0, 1], the colours multiplied by the alpha."""
    pixels = images.float().div_(255)
    pixels[:, :3] *= pixels[:, 3:]
    return pixels


def over(pixels: Tensor, ground: Tensor, size: int) -> Tensor:
    """`premultiplied` pixels over a ground `[..., 3, 1, 1]`: float `[B, 3, size, size]`."""
    image = pixels[:, :3] + (1 - pixels[:, 3:]) * ground
    if image.shape[-1] != size:
        image = F.interpolate(image, size=(size, size), mode="bilinear", antialias=True)
    return image.clamp_(0, 1)


def in_threads(work: Callable[[_In], _Out], items: Iterable[_In]) -> list[_Out]:
    """`[work(item) for item in items]`, on all cores that this process may use.

    For work that spends its time outside of Python, as Pillow does when it decodes. The first error
    in the order of the items is raised. One thread in a worker process of a `DataLoader`, since
    there are several of these.
    """
    items = list(items)
    threads = min(_cores(), len(items))
    if threads < 2:
        return [work(item) for item in items]
    # New threads each time cost less than one picture. Threads that stay would not live on in a
    # process that is forked from this one.
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))


def _cores() -> int:
    if get_worker_info() is not None:
        return 1
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    # torchrun tells how many processes share this machine.
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
