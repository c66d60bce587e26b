"""Frozen features: what an encoder says of pictures, kept on disk; methods train on them."""

from __future__ import annotations

import functools
import glob
import hashlib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mmcl_core.batches import Batch, require
from mmcl_core.data.captions import CaptionFolder
from mmcl_core.data.pictures import in_threads
from mmcl_core.encoders import Block, Encoded
from mmcl_core.errors import DataError, MMCLError, ShapeError, check_count, check_number
from mmcl_core.files import put_in_place
from mmcl_core.modules import evaluating, taking

# Features of a picture alone, and of it in a batch, differ by less of the largest; so do those that
# are rounded to float16, with what convolutions on a GPU (in TF32) add.
_SAME = {"float16": 4e-3, "float32": 1e-4}


def cached_features(
    data: CaptionFolder, encode: Callable[[Tensor], Tensor], folder: str | os.PathLike[str], *,
    name: str, batch_size: int = 64, dtype: Literal["float16", "float32"] = "float16",
    progress: bool = True,
) -> np.ndarray:  # fmt: skip
    """What an encoder says of each picture, computed once and kept on disk.

    A picture is known by the content of its file: a subset, or another order, is not encoded again.
    Other weights, or another size, make other files. What else has changed in a function cannot be
    seen from outside: so the first and the last picture are always computed anew, and compared. A
    call that was stopped is taken up after the last whole batch by the next one.

    Args:
        data: the pictures.
        encode: takes pictures, float32 `[B, 3, size, size]` in [0, 1], and returns `[B, D]`, or
            tokens `[B, N, D]`. What it wants besides, such as a mean taken off, is its own affair.
            If it is a module, it runs where its weights are, in eval mode; never with gradients.
        folder: where the files of features are; made where it is not there.
        name: of the encoder and its weights, for the files: letters, digits, "." "-" "_".
        batch_size: pictures encoded at once.
        dtype: of the files. Values too large or too small for float16 are an error.
        progress: show a bar.

    Returns:
        `[len(data), D]` or `[len(data), N, D]`, read-only; from disk, when asked for, where the
        pictures lie in one file in this order (`numpy.memmap`), and else in memory.

    Raises:
        ShapeError: `encode` returns something else, or values that are not finite or do not fit.
        DataError: a picture cannot be read; or a file has other features than `encode` gives.
    """
    batch_size = check_count("batch_size", batch_size)
    if not re.fullmatch(r"[\w.-]+", name):
        raise MMCLError(f"expected a name of letters, digits and .-_; got {name!r}")
    if dtype not in _SAME:
        raise MMCLError(f"dtype must be 'float16' or 'float32'; got {dtype!r}")
    parts: list[np.ndarray] = []
    found: dict[bytes, tuple[int, int]] = {}  # what a picture is known by: its file, its row
    with frozen(encode) as apply:
        ends = sorted({0, len(data) - 1})
        asked = apply(data.batch(ends)["image"])
        shape = asked.shape[1:]
        kind = np.dtype([("row", dtype, shape), ("mark", "S16")])  # a row cut short has no mark
        stem = Path(folder) / f"{name}-{data.size}-{dtype}-{_sum(_weights(encode))}"
        changed = (
            f"expected what the encoder {name!r} gives, {list(shape)} for each of these pictures; "
            "got other features. Has the encoder changed? Give it another name, or remove the file"
        )

        def read(path: Path) -> None:
            try:
                part = np.load(path, mmap_mode="r")
                if part.dtype != kind:
                    raise ValueError(part.dtype)
            except ValueError as error:  # or it was cut short
                raise DataError(f"{path}: {changed}") from error
            found.update((mark, (len(parts), i)) for i, mark in enumerate(part["mark"].tolist()))
            parts.append(part["row"])

        for path in sorted(stem.parent.glob(f"{glob.escape(stem.name)}-*.npy")):
            read(path)
        marks = in_threads(lambda path: _sum([path.read_bytes()]).encode(), data.paths)
        if new := {mark: i for i, mark in enumerate(marks) if mark not in found}:
            path = stem.parent / f"{stem.name}-{_sum(new)}.npy"
            _write(path, new, kind, data, apply, batch_size, progress)
            read(path)
    files, rows = np.array([found[mark] for mark in marks]).T
    if (files == files[0]).all() and (np.diff(rows) == 1).all():
        features = parts[files[0]][rows[0] : rows[-1] + 1]
    else:
        features = np.empty((len(marks), *shape), dtype)
        for i, part in enumerate(parts):
            features[files == i] = part[rows[files == i]]
        features.flags.writeable = False
    if not _same(features[ends], asked):
        raise DataError(f"{stem}-*.npy: {changed}")
    return features


def _same(kept: np.ndarray, found: np.ndarray) -> bool:
    return bool(abs(kept - found).max() <= _SAME[kept.dtype.name] * abs(found).max())


def _sum(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def _weights(encode: Any) -> Iterator[bytes]:
    for module in _modules(encode, set()):
        for name, value in chain(module.named_parameters(), module.named_buffers()):
            yield f"\0{name}\0{value.dtype}\0{list(value.shape)}\0".encode()
            yield value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()


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
def frozen(encode: Callable[[Tensor], Tensor]) -> Iterator[Callable[[Tensor], np.ndarray]]:
    """`encode` without gradients and in eval mode, its answers checked: float32 arrays."""
    modules = [encode] if isinstance(encode, nn.Module) else []
    take = taking(*modules) if modules else dict

    def apply(pictures: Tensor) -> np.ndarray:
        found = encode(take({"image": pictures})["image"])
        floats = isinstance(found, Tensor) and found.is_floating_point()
        if not floats or found.ndim not in (2, 3) or len(found) != len(pictures):
            told = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            n = len(pictures)
            raise ShapeError(
                f"encode: expected floats [{n}, D] or [{n}, N, D] for {n} pictures, got {told}"
            )
        if not found.isfinite().all():
            raise ShapeError("encode: expected finite features, got NaN or infinity")
        return found.detach().float().cpu().numpy()

    with evaluating(*modules):
        yield apply


def _write(
    path: Path, new: dict[bytes, int], kind: np.dtype, data: CaptionFolder,
    apply: Callable[[Tensor], np.ndarray], batch_size: int, progress: bool,
) -> None:  # fmt: skip
    """Computes the rows of new pictures, by their marks, from where an earlier call was stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part, marks, own = path.with_suffix(".part"), np.array(list(new)), list(new.values())
    try:
        rows = np.lib.format.open_memmap(part, mode="r+")
        if rows.dtype != kind or rows.shape != marks.shape:
            raise ValueError
    except (OSError, ValueError):  # nothing there, or nothing that can be relied on
        rows = np.lib.format.open_memmap(part, mode="w+", dtype=kind, shape=marks.shape)
    done = int((rows["mark"] == marks).cumprod().sum())
    with tqdm(
        total=len(own), initial=done, disable=not progress, unit="picture", desc=path.stem
    ) as bar:
        for start in range(done, len(own), batch_size):
            here = slice(start, start + batch_size)
            found = apply(data.batch(own[here])["image"])
            if found.shape[1:] != kind["row"].shape:
                shape = f"{list(kind['row'].shape)} for each picture, as for the first"
                raise ShapeError(f"encode: expected {shape}, got {list(found.shape[1:])}")
            with np.errstate(over="ignore"):
                rows["row"][here] = found
            if not _same(rows["row"][here], found):
                large = f"features of up to {abs(found).max():.3g}"
                advice = "pass dtype='float32'"
                raise ShapeError(f"encode: {large} do not fit into float16; {advice}")
            rows.flush()  # the rows first, and then the marks: they say that the rows are there
            rows["mark"][here] = marks[here]
            rows.flush()
            bar.update(len(found))
    del rows
    put_in_place(part, path)


class FeatureCaptions(CaptionFolder):
    """A `CaptionFolder` whose "image" is a feature: what methods train on in place of pictures.

    Args:
        data: pictures and captions.
        features: of these pictures, in their order, float `[N, D]` or `[N, P, D]`, as
            `cached_features` gives them. They stay where they are, on disk or not. What travels to
            another process is the path of a file that lies on disk, and else the own rows alone.
        pool: for who makes an encoder for them, such as the command line (see `FeatureEncoder`).
        dropout: likewise, of their tokens and values (see `drop_features`). `width` is their D.

    Raises:
        ShapeError: the features are not one row for each picture.
    """

    _each = (*CaptionFolder._each, "_own")

    def __init__(
        self, data: CaptionFolder, features: np.ndarray, *,
        pool: Literal["max", "mean"] = "mean", dropout: float = 0.0,
    ) -> None:  # fmt: skip
        if features.ndim not in (2, 3) or len(features) != len(data):
            rows = f"[{len(data)}, D] or [{len(data)}, N, D], one row for each picture"
            raise ShapeError(f"features: expected {rows}, got {list(features.shape)}")
        self.__dict__.update(data.__dict__)
        self.features, self._own = features, np.arange(len(data))
        self.width, self.pool, self.dropout = features.shape[-1], pool, dropout

    def _images(self, rows: Tensor) -> Tensor:
        """Features, float32 `[B, D]` or `[B, N, D]`."""
        own = self._own[rows.numpy()]
        return torch.from_numpy(np.array(self.features[own], dtype=np.float32))

    def __getstate__(self) -> dict[str, Any]:
        root: Any = self.features
        while isinstance(getattr(root, "base", None), np.ndarray):
            root = root.base
        # In mode "c", what was written is in no file.
        if not isinstance(root, np.memmap) or root.filename is None or root.mode == "c":
            own = {"features": self.features[self._own], "_own": np.arange(len(self))}
            return self.__dict__ | own
        at, start = (x.__array_interface__["data"][0] for x in (self.features, root))
        form = (self.features.shape, self.features.dtype, self.features.strides)
        return self.__dict__ | {"features": (str(root.filename), root.offset + at - start, *form)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(state["features"], tuple):
            path, offset, shape, dtype, strides = state["features"]
            self.features = np.ndarray(shape, dtype, np.memmap(path, mode="r"), offset, strides)


class FeatureEncoder(nn.Module):
    """Frozen features to what every encoder returns: a linear map, then transformer blocks.

    A feature `[B, D]` is one token; tokens `[B, N, D]` may speak to each other in the blocks.

    Args:
        features: width D of the features.
        width: width F of tokens and pooled vector.
        depth: number of transformer blocks; 0 leaves the linear map alone.
        heads: attention heads in each block.
        pool: how the tokens become the pooled vector, "max" or "mean", as in `ImageEncoder`.
    """

    def __init__(
        self, features: int, *, width: int = 128, depth: int = 1, heads: int = 4,
        pool: Literal["max", "mean"] = "max",
    ) -> None:  # fmt: skip
        super().__init__()
        if pool not in ("max", "mean"):
            raise MMCLError(f"pool must be 'max' or 'mean'; got {pool!r}")
        self.pool = pool
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
                f"{list(features.shape)}; of another encoder than in the training?"
            )
        x = self.map(features if features.ndim == 3 else features[:, None])
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        pooled = x.amax(dim=1) if self.pool == "max" else x.mean(dim=1)
        return Encoded(pooled, x, x.new_ones(x.shape[:2], dtype=torch.bool))


def drop_features(
    *, tokens: float = 0.0, values: float = 0.0, views: Sequence[str] = ("image",)
) -> Callable[[Batch], Batch]:
    """Dropout of features, as an augmentation (`mmcl_core.data.augment`); a second view of them.

    Each sample and each view is drawn by itself from `batch["image"]`.

    Args:
        tokens: share of the tokens of `[B, N, D]` that are left out, in [0, 1); one stays.
        values: probability of each number to become 0, in [0, 1); the others grow by as much.
        views: the keys to write, "image", "image_view" or both.
    """
    for name, share in {"tokens": tokens, "values": values}.items():
        check_number(name, share, "[0, 1)")
    if not views or not set(views) <= {"image", "image_view"}:
        raise MMCLError(f"views: expected 'image', 'image_view' or both, got {tuple(views)}")

    def one(x: Tensor) -> Tensor:
        if x.ndim == 3 and tokens:
            kept = max(1, round((1 - tokens) * x.shape[1]))
            chosen = torch.rand(x.shape[:2]).argsort(1)[:, :kept].sort(1).values.to(x.device)
            x = x.gather(1, chosen[:, :, None].expand(-1, -1, x.shape[2]))
        return x * (torch.rand(x.shape) >= values).to(x) / (1 - values) if values else x

    def apply(batch: Batch) -> Batch:
        require(batch, "drop_features needs", "image")
        x = batch["image"]
        if x.ndim not in (2, 3) or not x.is_floating_point():
            raise ShapeError(f"image: expected features [B, (N,) D], got {x.dtype} {[*x.shape]}")
        return {**batch, **{name: one(x) for name in views}}

    return apply
