"""Frozen features: an encoder that somebody else has trained, asked once for each picture.

Its answers are kept on disk, and a method trains on them in place of the pictures.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from mmcl_core.data.captions import CaptionFolder
from mmcl_core.encoders import Block, Encoded
from mmcl_core.errors import DataError, MMCLError, ShapeError
from mmcl_core.files import put_in_place, write_whole

# Float32 products of one picture alone and of the same one in a batch differ by less.
_SAME = 1e-3


def cached_features(
    data: CaptionFolder,
    encode: Callable[[Tensor], Tensor],
    folder: str | os.PathLike[str],
    *,
    name: str,
    batch_size: int = 64,
    progress: bool = True,
) -> np.ndarray:
    """What an encoder says of each picture, computed once and kept on disk.

    The file is named after `name`, and after the pictures: their names, lengths and times of
    change, their order, and the size to which they are decoded. So other pictures, or another size,
    make another file. Nothing can see whether the encoder has changed under the same name, but the
    first and the last picture are always computed anew, and compared.

    The rows are written batch by batch to a file that gets its name when all are there. A call that
    was stopped is taken up after the last whole batch by the next one.

    Args:
        data: the pictures.
        encode: takes pictures, float32 `[B, 3, size, size]` in [0, 1], and returns `[B, D]`, or
            tokens `[B, N, D]`. What it wants besides, such as a mean taken off, is its own affair.
            If it is a module, it runs where its weights are, in eval mode; never with gradients.
        folder: where the files of features are; made where it is not there.
        name: of the encoder and its weights, for the file: letters, digits, "." "-" "_".
        batch_size: pictures encoded at once.
        progress: show a bar.

    Returns:
        float32 `[len(data), D]` or `[len(data), N, D]`, read from disk when asked for
        (`numpy.memmap`), read-only.

    Raises:
        ShapeError: `encode` returns something else, or values that are not finite.
        DataError: a picture cannot be read; or the file has other features than `encode` gives.
        MMCLError: a name or size that cannot be used.
    """
    if not re.fullmatch(r"[\w.-]+", name) or batch_size < 1:
        raise MMCLError(
            "expected a name of letters, digits and .-_ and a batch_size of at least 1; got "
            f"{name!r} and {batch_size}"
        )
    with _frozen(encode) as apply:
        ends = sorted({0, len(data) - 1})
        asked = apply(data.__getitems__(ends)["image"])
        shape = (len(data), *asked.shape[1:])
        path = Path(folder) / f"{name}-{_key(data)}.npy"
        if not path.exists():
            _write(path, shape, data, apply, batch_size, progress)
    features = np.load(path, mmap_mode="r")
    if features.shape != shape or not np.allclose(features[ends], asked, _SAME, _SAME):
        raise DataError(
            f"{path}: expected what the encoder {name!r} gives for these pictures, got other "
            f"features ({list(features.shape)}). Has the encoder changed? Give it another name, or "
            "remove the file"
        )
    return features


def _key(data: CaptionFolder) -> str:
    """A short sum of what the pictures are."""
    digest = hashlib.sha256(f"{data.size}".encode())
    for path in data.paths:
        about = path.stat()
        digest.update(f"\0{path.name}\0{about.st_size}\0{about.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


@contextmanager
def _frozen(encode: Callable[[Tensor], Tensor]) -> Iterator[Callable[[Tensor], np.ndarray]]:
    """`encode` without gradients and in eval mode, its answers checked: float32 arrays."""
    modules = list(encode.modules()) if isinstance(encode, nn.Module) else []
    modes = [module.training for module in modules]
    weight = next(encode.parameters(), None) if isinstance(encode, nn.Module) else None

    def apply(pictures: Tensor) -> np.ndarray:
        with torch.no_grad():
            found = encode(pictures if weight is None else pictures.to(weight.device))
        if (
            not isinstance(found, Tensor)
            or found.ndim not in (2, 3)
            or len(found) != len(pictures)
            or not found.is_floating_point()
        ):
            told = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ShapeError(
                f"encode: expected floats [{len(pictures)}, D] or [{len(pictures)}, N, D] for "
                f"{len(pictures)} pictures, got {told}"
            )
        if not found.isfinite().all():
            raise ShapeError("encode: expected finite features, got NaN or infinity")
        return found.detach().float().cpu().numpy()

    for module in modules:
        module.training = False
    try:
        yield apply
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _write(
    path: Path,
    shape: tuple[int, ...],
    data: CaptionFolder,
    apply: Callable[[Tensor], np.ndarray],
    batch_size: int,
    progress: bool,
) -> None:
    """Computes all rows, from where an earlier call was stopped, and gives the file its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part, note = path.with_suffix(".part"), path.with_suffix(".part.json")
    done = _done(part, note, shape)
    if done:
        rows = np.lib.format.open_memmap(part, mode="r+")
    else:
        rows = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
    with tqdm(
        total=shape[0], initial=done, disable=not progress, unit="picture", desc=path.stem
    ) as bar:
        for start in range(done, shape[0], batch_size):
            index = range(start, min(start + batch_size, shape[0]))
            found = apply(data.__getitems__(index)["image"])
            if found.shape[1:] != shape[1:]:
                raise ShapeError(
                    f"encode: expected {list(shape[1:])} for each picture, as for the first, got "
                    f"{list(found.shape[1:])}"
                )
            rows[start : index.stop] = found
            rows.flush()  # the rows first, and then the note that they are there
            write_whole(note, json.dumps({"shape": shape, "done": index.stop}))
            bar.update(len(index))
    del rows
    put_in_place(part, path)
    note.unlink()


def _done(part: Path, note: Path, shape: tuple[int, ...]) -> int:
    """How many rows of a stopped call can be kept."""
    try:
        said = json.loads(note.read_text(encoding="utf-8"))
        rows = np.load(part, mmap_mode="r")
        return int(said["done"]) if (*rows.shape,) == shape == (*said["shape"],) else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # nothing there, or nothing that can be relied on


class FeatureCaptions(Dataset[dict[str, Tensor]]):
    """A `CaptionFolder` whose "image" is a feature: what methods train on in place of pictures.

    Attributes:
        data: the `CaptionFolder`; its captions, sentences and paths are here, too.
        features: as given, float `[N, D]` or `[N, P, D]`. They stay where they are, on disk or not;
            a batch reads its rows, and `subset` remembers which rows are its own.

    Args:
        data: pictures and captions.
        features: of these pictures, in their order, as `cached_features` gives them.

    Raises:
        ShapeError: the features are not one row for each picture.
    """

    def __init__(self, data: CaptionFolder, features: np.ndarray) -> None:
        if features.ndim not in (2, 3) or len(features) != len(data):
            raise ShapeError(
                f"features: expected [{len(data)}, D] or [{len(data)}, N, D], one row for each "
                f"picture, got {list(features.shape)}"
            )
        self.features, self._rows = features, np.arange(len(data))
        self._take(data)

    def _take(self, data: CaptionFolder) -> None:
        self.data = data
        self.sentences, self.tokenizer, self.paths = data.sentences, data.tokenizer, data.paths

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.data)

    def captions(self, i: int) -> list[str]:
        """All captions of picture `i`."""
        return self.data.captions(i)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """One sample, without the axis of the batch."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"expected an index below {len(self)}, got {i}")
        return {key: value[0] for key, value in self.__getitems__([i % len(self)]).items()}

    def __getitems__(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """A batch: "image" float32 `[B, D]` or `[B, N, D]`, "caption" and "index" as there."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        if index.ndim != 1 or len(index) == 0:
            raise ShapeError(f"indices: expected shape [B], B at least 1, got {list(index.shape)}")
        caption, rows = self.sentences[index, 0], self._rows[index.numpy()]
        return {
            "image": torch.from_numpy(np.array(self.features[rows], dtype=np.float32)),
            "caption": caption[:, : int((caption != 0).sum(1).max())],
            "index": index,
        }

    def subset(self, indices: Sequence[int] | Tensor) -> FeatureCaptions:
        """The pictures `indices` in that order, numbered anew from 0."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        part = copy.copy(self)
        part._rows = self._rows[index.numpy()]
        part._take(self.data.subset(index))
        return part


class FeatureEncoder(nn.Module):
    """Frozen features to what every encoder returns: a linear map, then transformer blocks.

    A feature `[B, D]` counts as one token; tokens `[B, N, D]` may speak to each other in the
    blocks. The pooled vector is the maximum over the tokens, as in `ImageEncoder`.

    Args:
        features: width D of the features.
        width: width F of tokens and pooled vector.
        depth: number of transformer blocks; 0 leaves the linear map alone.
        heads: attention heads in each block.
    """

    def __init__(self, features: int, *, width: int = 128, depth: int = 1, heads: int = 4) -> None:
        super().__init__()
        if features < 1 or width < 1 or depth < 0:
            raise MMCLError(
                "features and width: expected at least 1, depth at least 0; got "
                f"{features}, {width} and {depth}"
            )
        self.features, self.width = features, width
        # Others' features come at any scale.
        self.map = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Encoded:
        """Floats [B, D] or [B, N, D] -> `Encoded` with 1 or N tokens, all of them real."""
        if features.ndim not in (2, 3) or features.shape[-1] != self.features:
            raise ShapeError(
                f"expected features [B, {self.features}] or [B, N, {self.features}], got "
                f"{list(features.shape)}"
            )
        x = self.map(features if features.ndim == 3 else features[:, None])
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return Encoded(x.amax(dim=1), x, x.new_ones(x.shape[:2], dtype=torch.bool))
