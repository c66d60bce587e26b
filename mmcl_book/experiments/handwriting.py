"""Handwritten digits in three parts: what a method tells from some of them.

A part of the experiment "gmc", and its check on real scans. The parts are the upper and the lower
half of a scan, and the word for the digit. The word says everything, and is learned at once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from mmcl_book.experiments import small
from mmcl_book.experiments.parts import Trained, choices, measure, told, watching
from mmcl_core.data import Digits
from mmcl_core.data.augment import with_labels
from mmcl_core.encoders import CaptionEncoder, Encoded
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import missing_modality
from mmcl_core.methods import GMC, LateFusion

KINDS = ("GMC", "fusion", "modality dropout")
EPOCHS, CLASSES = 20, 10
DROPOUT = 0.3  # as in the experiment "missing"


class InkEncoder(nn.Module):
    """A network of two layers over all pixels of a part of a scan, as one token.

    Args:
        pixels: number of pixels.
        width: width F.
    """

    def __init__(self, pixels: int, *, width: int = small.WIDTH) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, 2 * width), nn.GELU(), nn.Linear(2 * width, width),
            nn.LayerNorm(width),
        )  # fmt: skip

    def forward(self, ink: Tensor) -> Encoded:
        """Ink float [B, 1, H, W] -> `Encoded` with N = 1."""
        pooled = self.layers(ink)
        return Encoded(pooled, pooled[:, None], ink.new_ones(len(ink), 1, dtype=torch.bool))


def encoders(data: Digits, present: Sequence[str]) -> dict[str, nn.Module]:
    """A new encoder for each of the parts `present`."""
    return {
        m: CaptionEncoder(len(data.tokenizer), width=small.WIDTH, max_length=3)
        if m == "word"
        else InkEncoder(data[0][m].numel())
        for m in present
    }


def train(
    seed: int, kind: str = "GMC", *, split: Literal["validation", "test"] = "test"
) -> Trained:
    """Trains a method on digits in three parts, and embeds the test scans after each epoch.

    Args:
        seed: of first weights and order; the scans are always the same.
        kind: "GMC", "fusion" or "modality dropout".
        split: of `Digits`, to test on.
    """
    if kind not in KINDS:
        raise MMCLError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    data, test = Digits("train"), Digits(split)
    torch.manual_seed(seed)
    trunks = encoders(data, data.modalities)
    dropout = DROPOUT if kind == "modality dropout" else 0.0
    method = GMC(trunks, dim=64) if kind == "GMC" else _fusion(trunks, dropout)
    trained = Trained(method, data, data.labels, test, test.labels, data.modalities, [])
    _fit(method, data, seed, [watching(trained)])
    return trained


def model_for_each(seed: int) -> dict[str, float]:
    """A fusion for each choice of parts, trained and tested on this choice only.

    Returns:
        "accuracy, top", ..., "accuracy, top + bottom + word", and "chance".
    """
    data, test = Digits("train"), Digits("test")
    measured = {"chance": float(test.labels.bincount().max()) / len(test)}
    for present in choices(data.modalities):
        torch.manual_seed(seed)
        method = _fusion(encoders(data, present))
        _fit(method, data, seed)
        found = missing_modality(
            method, test, torch.arange(CLASSES), test, test.labels, present, classifier="own"
        )
        measured[f"accuracy, {' + '.join(present)}"] = found.accuracy[present]
    return measured


def run(seed: int, kind: str) -> dict[str, float]:
    """Trains and measures one of `KINDS` (`measure`), or "a model for each"."""
    if kind == "a model for each":
        return model_for_each(seed)
    trained = train(seed, kind)
    return measure(trained, told(trained))


def _fusion(trunks: Mapping[str, nn.Module], dropout: float = 0.0) -> LateFusion:
    return LateFusion(trunks, CLASSES, dim=small.WIDTH, dropout=dropout)


def _fit(
    method: nn.Module, data: Digits, seed: int, callbacks: Sequence[Callable[..., object]] = ()
) -> None:
    small.train(
        method, cast(Any, data), seed, epochs=EPOCHS, augment=with_labels(data, data.labels),
        callbacks=callbacks,
    )  # fmt: skip
