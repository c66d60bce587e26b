"""A batch is a dict of tensors by name; a missing modality is a missing key.

All keys that this library makes or reads. B is the number of samples; a second view of a modality
is another picture, or another text, of the same sample.

=====================================  ==========================================================
``"image"``, ``"image_view"``          float `[B, 3, H, W]` in [0, 1]; or features of pictures,
                                       float `[B, D]` or `[B, N, D]` (`FeatureCaptions`)
``"caption"``, ``"caption_view"``      int64 `[B, L]`, ids of words; 0 is padding, at the end
``"caption_ko"``                       int64 `[B, L]`, the same in Korean (`Emoji`)
``"text"``, ``"text_view"``            int64 `[B]`, a code of the whole text that "caption" and
                                       "caption_view" stand for, where their ids do not tell it:
                                       words may be unknown, or cut off (`groups.text_codes`)
``"tags"``                             float `[B, T]`, multi-hot
``"label"``                            int64 `[B]`, a class (`augment.with_labels`)
``"index"``                            int64 `[B]`, the number of each sample in the data set that
                                       was made or read; `subset` and `random_split` keep it
=====================================  ==========================================================

`GMC` and `LateFusion` take modalities of any other name besides, as their encoders want them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, SupportsIndex, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, default_collate

from mmcl_core.errors import DataError, MissingModalityError, MMCLError, RowError, ShapeError

Batch = dict[str, Tensor]
# Which samples: a slice, whole numbers (negative ones count from the end), or a boolean mask.
Indices = slice | Sequence[int] | Sequence[bool] | Iterable[int] | np.ndarray | Tensor

_Data = TypeVar("_Data", bound="BatchDataset")


class BatchSource(Protocol):
    """Data that gives whole batches: what `fit` and `embed_all` ask."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Batch: ...


# What `fit` and `embed_all` take; see `Batched`.
Data = BatchSource | Dataset[Any]


# --- which samples --------------------------------------------------------------------------------


def index(indices: Indices, n: int) -> Tensor:
    """The samples that are meant, out of `n`: int64 `[K]`, each from 0 to n - 1, K at least 1.

    Args:
        indices: a slice; whole numbers, of which negative ones count from the end; or a boolean
            mask of length n. Numbers and masks may be a list, a range, an array or a tensor.
        n: the number of samples.

    Raises:
        RowError: a number is outside -n to n - 1.
        ShapeError: nothing is chosen; a mask of another length; or more than one axis.
        DataError: neither whole numbers nor a mask: floats, texts, numbers mixed with truth values.
    """
    if isinstance(indices, slice):
        chosen = torch.arange(*indices.indices(n))
    else:
        chosen = _numbers(indices)
        if chosen.ndim != 1:
            raise ShapeError(
                f"indices: expected [K], such as [3] for one sample; got {list(chosen.shape)}"
            )
        if chosen.dtype == torch.bool:
            if len(chosen) != n:
                raise ShapeError(
                    f"indices: expected a mask with one entry for each of the {n} samples, got "
                    f"{len(chosen)} entries"
                )
            chosen = chosen.nonzero().flatten()
    if not len(chosen):
        raise ShapeError(f"indices: expected at least one of the {n} samples, got none")
    if int(chosen.min()) < -n or int(chosen.max()) >= n:
        wrong = chosen[(chosen < -n) | (chosen >= n)]
        raise RowError(f"indices: expected {-n} to {n - 1}, got {int(wrong[0])}")
    return torch.where(chosen < 0, chosen + n, chosen)


def row_of(i: SupportsIndex, n: int) -> int:
    """One sample out of `n`, from 0 to n - 1. A negative number counts from the end.

    Raises:
        RowError: it is outside -n to n - 1.
        DataError: it is no whole number.
    """
    try:
        if isinstance(i, bool | np.bool_) or (isinstance(i, Tensor) and i.dtype == torch.bool):
            raise TypeError
        number = operator.index(i)
    except TypeError:
        raise DataError(
            f"expected the number of one sample, got {i!r}; batch(indices) and subset(indices) "
            "take several, and masks"
        ) from None
    if not -n <= number < n:
        raise RowError(f"expected the number of a sample, {-n} to {n - 1}; got {number}")
    return number % n


def _numbers(indices: Any) -> Tensor:
    """Indices of any kind but a slice as a tensor of whole numbers or truth values."""
    try:
        if isinstance(indices, Tensor):
            chosen = indices.detach().cpu()
        else:
            if not isinstance(indices, np.ndarray | int | float | str):
                indices = list(indices)
                truth = sum(np.asarray(i).dtype == bool for i in indices)
                if 0 < truth < len(indices):
                    raise TypeError("numbers and truth values")
            # A copy, since PyTorch takes no array that is read-only or runs backwards.
            chosen = torch.from_numpy(np.array(indices, order="C", ndmin=0))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"indices: expected whole numbers or a mask, got {type(indices).__name__} ({error})"
        ) from None
    if chosen.numel() and (chosen.is_floating_point() or chosen.is_complex()):
        raise DataError(f"indices: expected whole numbers or a mask, got {chosen.dtype}")
    return chosen if chosen.dtype == torch.bool else chosen.to(torch.int64)


# --- data sets ------------------------------------------------------------------------------------


class BatchDataset(Dataset[Batch]):
    """What the data sets of this library have in common: batches, single samples, parts.

    A subclass sets `rows`, reads samples in `_read`, and names in `_each` its attributes that have
    one entry for each sample: tensors, arrays, lists, or dicts of these.

    `DataLoader(data, batch_size=4)` works as it stands. `fit` and `embed_all` ask for whole batches
    instead, which are faster.

    Attributes:
        rows: int64 `[N]`, the "index" of each sample: its number in the data set that was made or
            read, which `subset` and `random_split` keep.
    """

    rows: Tensor
    _each: tuple[str, ...] = ()

    def _read(self, rows: Tensor) -> Batch:
        """These samples, numbered from 0, without "index"; captions at their full length."""
        raise NotImplementedError

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.rows)

    def batch(self, indices: Indices) -> Batch:
        """A whole batch, with "index" `[B]`; captions are cut to the longest in it.

        Args:
            indices: see `batches.index`, which also says what is raised.
        """
        rows = index(indices, len(self))
        batch = self._read(rows)
        for name in batch.keys() & {"caption", "caption_ko"}:
            batch[name] = trimmed(batch[name])
        return {**batch, "index": self.rows[rows]}

    def __getitem__(self, i: SupportsIndex) -> Batch:
        """One sample, without the axis of the batch. All captions have one length."""
        return self.__getitems__([row_of(i, len(self))])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        """Several samples: what a `DataLoader` asks for, to stack them."""
        rows = index(indices, len(self))
        batch = {**self._read(rows), "index": self.rows[rows]}
        return [{name: value[i] for name, value in batch.items()} for i in range(len(rows))]

    def subset(self: _Data, indices: Indices) -> _Data:
        """The samples that are meant (see `batches.index`), in that order, with their "index"."""
        rows = index(indices, len(self))
        part = object.__new__(type(self))  # not copy.copy, which is free to copy the content
        part.__dict__.update(self.__dict__)
        for name in ("rows", *self._each):
            setattr(part, name, _take(getattr(self, name), rows))
        return part


def _take(values: Any, rows: Tensor) -> Any:
    if isinstance(values, dict):
        return {name: _take(of, rows) for name, of in values.items()}
    if isinstance(values, np.ndarray):
        return values[rows.numpy()]
    return values[rows] if isinstance(values, Tensor) else [values[i] for i in rows.tolist()]


class Batched(Dataset[Any]):
    """Any data set by whole batches.

    - Data with `batch(indices)` are asked by it.
    - Of a `torch.utils.data.Subset`, such as `random_split` gives, the whole is asked.
    - Of any other data set with `__len__` and `__getitem__`, samples are stacked; they are dicts of
      tensors or numbers. Where they have no "index", their numbers are added.

    Raises:
        MMCLError: the data cannot be used so.
    """

    def __init__(self, data: Any) -> None:
        self.rows: Tensor | None = None
        while isinstance(data, Subset):
            own = index(data.indices, len(data.dataset))  # type: ignore[arg-type]
            self.rows = own if self.rows is None else own[self.rows]
            data = data.dataset
        self.data, self.whole = data, callable(getattr(data, "batch", None))
        if not hasattr(data, "__len__") or not (self.whole or hasattr(data, "__getitem__")):
            raise MMCLError(
                "data must have a length and batch(indices), or be a torch Dataset of dicts; got "
                f"{type(data).__name__}"
            )

    def __len__(self) -> int:
        return len(self.data) if self.rows is None else len(self.rows)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The samples of these numbers; what is made of them is for the caller to check."""
        rows = list(indices) if self.rows is None else self.rows[list(indices)].tolist()
        if self.whole:
            return self.data.batch(rows)
        samples = [self.data[i] for i in rows]
        if not all(isinstance(sample, dict) for sample in samples):
            raise MMCLError(
                "expected samples that are dicts, such as {'image': ..., 'caption': ...}; got "
                f"{type(samples[0]).__name__}"
            )
        try:
            return {"index": torch.tensor(rows), **default_collate(samples)}
        except (TypeError, RuntimeError, KeyError) as error:
            raise MMCLError(
                f"samples cannot be stacked into a batch ({error}). Give them one shape and the "
                "same keys, or the data set a method batch(indices)"
            ) from error

    # With `collate_fn` that changes nothing, a `DataLoader` hands on whole batches.
    __getitems__ = batch


def trimmed(captions: Tensor) -> Tensor:
    """Cuts the columns that are padding in every caption of `[B, L]`."""
    return captions[:, : int((captions != 0).any(0).sum())]


# --- what is in a batch ---------------------------------------------------------------------------


def require(batch: Mapping[str, Tensor], who: str, *names: str) -> None:
    """Checks that a batch holds all of these, and one number of samples, at least one.

    Args:
        batch: name to `[B, ...]`.
        who: how the message begins: "CLIP trains on".
        names: the keys that are needed.

    Raises:
        MissingModalityError: some are not there.
        ShapeError: they hold different numbers of samples, or none.
    """
    if absent := [name for name in names if name not in batch]:
        raise MissingModalityError(
            f"{who} {' and '.join(names)}; {' and '.join(absent)} not in the batch, which holds "
            f"{sorted(batch)}"
        )
    sizes = {name: len(batch[name]) for name in names}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ShapeError(f"expected one number of samples, at least one, in all; got {sizes}")


def at_hand(batch: Mapping[str, Tensor], who: str, names: Sequence[str]) -> list[str]:
    """Those of the names that a batch holds, at least one.

    Args:
        batch: name to `[B, ...]`.
        who: how the message begins: "CLIP embeds".
        names: the modalities that can be used.

    Raises:
        MissingModalityError: none of them is there.
        ShapeError: they hold different numbers of samples, or none.
    """
    present = [name for name in names if name in batch]
    if not present:
        raise MissingModalityError(
            f"{who} {', '.join(names)}, or some of them; the batch holds {sorted(batch)}"
        )
    require(batch, who, *present)
    return present
