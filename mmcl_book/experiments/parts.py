"""Scenes in three, four or five parts; labels for few of them; what is told from each choice.

The parts are modalities: a picture, a caption of the shape, tags of the colour; then a caption of
the size and a thumbnail, which is grey and blurred.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_book.experiments import missing, small
from mmcl_book.experiments.missing import Present as Present
from mmcl_book.experiments.missing import choices as choices
from mmcl_core.batches import Batch, trimmed
from mmcl_core.encoders import Encoded, TagEncoder
from mmcl_core.evaluation.probes import fit_probe

PARTS: Present = (*missing.MODALITIES, "size", "thumbnail")
SIDE = 8  # of a thumbnail


class Scenes:
    """The scenes of `missing.scenes`, with the first of `PARTS`.

    Args:
        n: number of scenes.
        seed: of what is drawn.
        parts: how many, 3 to 5. The fourth, "size", is int64 [B, L], a sentence that names the
            size; the fifth, "thumbnail", float [B, 1, 8, 8] in [0, 1].
    """

    def __init__(self, n: int, seed: int, parts: int = 3) -> None:
        self.drawn = missing.scenes(n, seed)
        self.parts = PARTS[:parts]
        of_size = self.drawn.with_detail(3).without("shape").without("colour").without("texture")
        self.sizes = of_size.sentences[:, 0]

    def __len__(self) -> int:
        """The number of scenes."""
        return len(self.drawn)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The parts of these scenes, and "index"."""
        rows = list(indices)
        batch = self.drawn.batch(rows)
        if "size" in self.parts:
            batch["size"] = trimmed(self.sizes[rows])
        if "thumbnail" in self.parts:
            grey = batch["image"].mean(dim=1, keepdim=True)
            batch["thumbnail"] = F.adaptive_avg_pool2d(grey, SIDE)
        return batch


class ThumbnailEncoder(nn.Module):
    """A network of two layers over all pixels of a thumbnail, as one token.

    Args:
        width: width F.
    """

    def __init__(self, *, width: int = small.WIDTH) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(SIDE**2, 2 * width), nn.GELU(), nn.Linear(2 * width, width),
            nn.LayerNorm(width),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Encoded:
        """Thumbnails float [B, 1, 8, 8] -> `Encoded` with N = 1."""
        pooled = self.layers(images)
        return Encoded(pooled, pooled[:, None], images.new_ones(len(images), 1, dtype=torch.bool))


def encoders(data: Scenes) -> dict[str, nn.Module]:
    """A new encoder for each part of the scenes."""
    new = {
        "image": small.image_encoder,
        "caption": lambda: small.caption_encoder(data.drawn),
        "tags": lambda: TagEncoder(data.drawn.tags.shape[1], width=small.WIDTH),
        "size": lambda: small.caption_encoder(data.drawn),
        "thumbnail": ThumbnailEncoder,
    }
    return {m: new[m]() for m in data.parts}


def few(y: Tensor, labels: int, seed: int) -> Tensor:
    """Which samples have a label: as many of each class, drawn at random; int64 [classes * labels].

    Args:
        y: the classes, int64 [N].
        labels: how many of each class.
        seed: of the draw.
    """
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[y[order] == c][:labels] for c in y.unique()])


def probed(
    x: Tensor, y: Tensor, asked: Mapping[Present, Tensor], labels: Tensor
) -> dict[Present, float]:
    """How often a linear probe that has learned from `x` is right about other features.

    Args:
        x: features to learn from, [N, D].
        y: their classes, int64 [N].
        asked: features of the same test samples, [M, D] each, by name.
        labels: the classes of these, int64 [M].
    """
    predict, _ = fit_probe(x, y, 1.0, 1000)
    return {name: share(predict(of), labels) for name, of in asked.items()}


def share(predicted: Tensor, labels: Tensor) -> float:
    """How often two agree, in [0, 1]."""
    return float((predicted == labels).double().mean())


def name(present: Present) -> str:
    """As measures are called: "image + tags"."""
    return " + ".join(present)
