"""Frozen features: an encoder that somebody else has trained, asked once for each picture.

Its answers are kept on disk, and a method trains on them in place of the pictures.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mmcl_core.batches import Batch, BatchDataset, Indices
from mmcl_core.data.captions import CaptionFolder
from mmcl_core.encoders import Block, Encoded
from mmcl_core.errors import DataError, MMCLError, ShapeError, check_count
from mmcl_core.files import put_in_place, write_whole
from mmcl_core.modules import evaluating, taking

# Float32 features of a picture alone, and of it in a batch, differ by less of the largest.
_SAME = 1e-4


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

    The file is named after `name`; after the pictures: their names, lengths and times of change,
    their order, and the size to which they are decoded; and after the weights of the encoder. So
    other pictures, another size or other weights make another file. Weights are those of `encode`
    where it is a module or a method of one, and of modules that a function uses by name. What else
    has changed in a function cannot be seen from outside: so the first and the last picture are
    always computed anew, and compared.

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
    batch_size = check_count("batch_size", batch_size)
    if not re.fullmatch(r"[\w.-]+", name):
        raise MMCLError(f"expected a name of letters, digits and .-_; got {name!r}")
    with _frozen(encode) as apply:
        ends = sorted({0, len(data) - 1})
        asked = apply(data.batch(ends)["image"])
        shape = (len(data), *asked.shape[1:])
        path = Path(folder) / f"{name}-{_key(data, encode)}.npy"
        if not path.exists():
            _write(path, shape, data, apply, batch_size, progress)
    features = np.load(path, mmap_mode="r")
    if features.shape != shape or abs(features[ends] - asked).max() > _SAME * abs(asked).max():
        raise DataError(
            f"{path}: expected what the encoder {name!r} gives for these pictures, got other "
            f"features ({list(features.shape)}). Has the encoder changed? Give it another name, or "
            "remove the file"
        )
    return features


def _key(data: CaptionFolder, encode: Any) -> str:
    """A short sum of what the pictures and the weights of the encoder are."""
    digest = hashlib.sha256(f"{data.size}".encode())
    for path in data.paths:
        about = path.stat()
        digest.update(f"\0{path.name}\0{about.st_size}\0{about.st_mtime_ns}".encode())
    for module in _modules(encode, set()):
        for name, value in chain(module.named_parameters(), module.named_buffers()):
            digest.update(f"\0{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _modules(part: Any, known: set[int]) -> list[nn.Module]:
    """The modules that a callable is known to ask; `known` are parts that were looked at."""
    if id(part) in known:
        return []
    known.add(id(part))
    if isinstance(part, nn.Module):
        return [part]
    parts: list[Any] = []
    if isinstance(part, functools.partial):
        parts = [part.func, *part.args, *part.keywords.values()]
    elif inspect.ismethod(part):
        parts = [part.__func__, part.__self__]
    elif inspect.isfunction(part):
        used = inspect.getclosurevars(part)
        parts = [*used.nonlocals.values(), *used.globals.values()]
    else:
        held = getattr(part, "__dict__", {}).values()
        parts = [value for value in held if isinstance(value, nn.Module)]
    return [module for each in parts for module in _modules(each, known)]


@contextmanager
def _frozen(encode: Callable[[Tensor], Tensor]) -> Iterator[Callable[[Tensor], np.ndarray]]:
    """`encode` without gradients and in eval mode, its answers checked: float32 arrays."""
    modules = [encode] if isinstance(encode, nn.Module) else []
    take = taking(*modules) if modules else dict

    def apply(pictures: Tensor) -> np.ndarray:
        found = encode(take({"image": pictures})["image"])
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

    with evaluating(*modules):
        yield apply


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
            found = apply(data.batch(index)["image"])
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


class FeatureCaptions(BatchDataset):
    """A `CaptionFolder` whose "image" is a feature: what methods train on in place of pictures.

    Attributes:
        data: the `CaptionFolder`; its captions, sentences, texts, paths and rows are here, too.
        features: as given, float `[N, D]` or `[N, P, D]`. They stay where they are, on disk or not;
            a batch reads its rows, and `subset` remembers which rows are its own. What travels to
            another process is the path of a file that lies on disk (`numpy.memmap`), and else the
            own rows alone.

    Args:
        data: pictures and captions.
        features: of these pictures, in their order, as `cached_features` gives them.

    Raises:
        ShapeError: the features are not one row for each picture.
    """

    _each = ("_own",)

    def __init__(self, data: CaptionFolder, features: np.ndarray) -> None:
        if features.ndim not in (2, 3) or len(features) != len(data):
            raise ShapeError(
                f"features: expected [{len(data)}, D] or [{len(data)}, N, D], one row for each "
                f"picture, got {list(features.shape)}"
            )
        self.features, self._own = features, np.arange(len(data))
        self._take(data)

    def _take(self, data: CaptionFolder) -> None:
        self.data, self.rows = data, data.rows
        self.sentences, self.texts = data.sentences, data.texts
        self.tokenizer, self.paths = data.tokenizer, data.paths

    def captions(self, i: int) -> list[str]:
        """All captions of picture `i`."""
        return self.data.captions(i)

    def _read(self, rows: Tensor) -> Batch:
        """Features, float32 `[B, D]` or `[B, N, D]`; captions and texts as in the folder."""
        own = self._own[rows.numpy()]
        return {
            "image": torch.from_numpy(np.array(self.features[own], dtype=np.float32)),
            "caption": self.sentences[rows, 0],
            "text": self.texts[rows, 0],
        }

    def subset(self, indices: Indices) -> FeatureCaptions:
        part = super().subset(indices)
        part._take(self.data.subset(indices))
        return part

    def __getstate__(self) -> dict[str, Any]:
        place = _place_on_disk(self.features)
        if place is not None:
            return self.__dict__ | {"features": place}
        return self.__dict__ | {"features": self.features[self._own], "_own": np.arange(len(self))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.features, _OnDisk):
            self.features = self.features.open()


class _OnDisk(NamedTuple):
    """Where an array lies in a file."""

    path: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def open(self) -> np.ndarray:
        content = np.memmap(self.path, mode="r")
        return np.ndarray(self.shape, self.dtype, content, self.offset, self.strides)


def _place_on_disk(values: np.ndarray) -> _OnDisk | None:
    """Of an array that is a view of a `numpy.memmap`, its place; None of any other."""
    root: Any = values
    while isinstance(getattr(root, "base", None), np.ndarray):
        root = root.base
    if not isinstance(root, np.memmap) or root.filename is None or root.mode == "c":
        return None  # the last: what was written into it is in no file
    address = (each.__array_interface__["data"][0] for each in (values, root))
    offset = root.offset + next(address) - next(address)
    return _OnDisk(str(root.filename), values.dtype, offset, values.shape, values.strides)


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
        self.features, self.width = check_count("features", features), check_count("width", width)
        check_count("depth", depth, 0)
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
