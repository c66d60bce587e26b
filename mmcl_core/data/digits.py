"""Handwritten digits, cut into modalities: real scans where the laboratory draws its scenes.

The 1,797 scans of scikit-learn (`sklearn.datasets.load_digits`): the test part of "Optical
Recognition of Handwritten Digits" (Alpaydin and Kaynak, UCI Machine Learning Repository, 1998),
digits of 13 people. They are installed with scikit-learn: nothing is fetched.

Who wrote which digit is not known, so the same hands are in every split: to tell the test digits is
easier than to tell those of a stranger.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmcl_core.batches import Batch, BatchDataset, row_of
from mmcl_core.data.tokenizer import WordTokenizer
from mmcl_core.errors import MMCLError, check_count

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HALVES = {"rows": ("top", "bottom"), "columns": ("left", "right")}
DARKEST = 16  # ink of a pixel goes from 0 to 16
# Share of the scans of each digit; the rest is for training.
SHARES = {"test": 0.25, "validation": 0.15}


class Digits(BatchDataset):
    """Scans of one handwritten digit each: two halves, and the word for the digit.

    Modalities, by the keys of a batch:

    - "top" and "bottom" float `[B, 1, 4, 8]`, or "left" and "right" `[B, 1, 8, 4]`: ink in [0, 1];
    - "word" int64 `[B, 3]`: start, "zero" to "nine", end.

    Args:
        split: "train", "validation", "test", or "all" of them. Each digit has the same share of
            every split, as near as whole scans allow; the scans of a split keep their order.
        cut: "rows" into top and bottom, or "columns" into left and right.
        seed: of the split, 0 or more.

    Attributes:
        images: float32 `[N, 1, 8, 8]`, the whole scans, in [0, 1].
        labels: int64 `[N]`, the digits.
        words: int64 `[N, 3]`, of `tokenizer`.
        modalities: names of the three modalities.
        rows: int64 `[N]`, the "index" of each scan: its place in scikit-learn's order, whichever
            the split.

    Raises:
        MMCLError: an argument is out of its range.
    """

    _each = ("images", "labels", "words")

    def __init__(
        self,
        split: Literal["train", "validation", "test", "all"] = "train",
        *,
        cut: Literal["rows", "columns"] = "rows",
        seed: int = 0,
    ) -> None:
        if split not in ("train", "all", *SHARES):
            raise MMCLError(f"split must be 'train', 'validation', 'test' or 'all'; got {split!r}")
        if cut not in HALVES:
            raise MMCLError(f"cut must be 'rows' or 'columns'; got {cut!r}")
        seed = check_count("seed", seed, 0)
        # Here, so that the library can be imported without it.
        from sklearn.datasets import load_digits

        scans = load_digits()
        labels = torch.from_numpy(scans.target.astype(np.int64))
        self.rows = _rows(labels, split, seed)
        self.cut, self.modalities = cut, (*HALVES[cut], "word")
        self.images = torch.from_numpy(scans.images).float()[self.rows, None] / DARKEST
        self.labels = labels[self.rows]
        self.tokenizer = WordTokenizer(WORDS)
        self.words = self.tokenizer.encode_batch(WORDS)[self.labels]

    def _read(self, rows: Tensor) -> Batch:
        """Both halves, and "word"."""
        one, other = self.images[rows].chunk(2, dim=2 if self.cut == "rows" else 3)
        halves = dict(zip(HALVES[self.cut], (one, other), strict=True))
        return {**halves, "word": self.words[rows]}

    def text(self, i: int) -> str:
        """The word of scan `i`."""
        return WORDS[int(self.labels[row_of(i, len(self))])]


def _rows(labels: Tensor, split: str, seed: int) -> Tensor:
    """Places of the scans of a split, in rising order: int64 [N]."""
    generator = torch.Generator().manual_seed(seed)
    # The order of a digit's scans; a part of each is taken for each split.
    part = torch.empty(len(labels))
    for digit in range(len(WORDS)):
        of = (labels == digit).nonzero().flatten()
        order = torch.randperm(len(of), generator=generator)
        part[of[order]] = (torch.arange(len(of)) + 0.5) / len(of)  # in (0, 1), evenly
    bounds = {"test": (0.0, SHARES["test"]), "train": (sum(SHARES.values()), 1.0)}
    bounds |= {"validation": (SHARES["test"], sum(SHARES.values())), "all": (0.0, 1.0)}
    low, high = bounds[split]
    return ((part >= low) & (part < high)).nonzero().flatten()
