"""Under-alignment: what a picture's embedding keeps of attributes that captions do not name.

One CLIP for each level of caption detail, and one for each attribute that full captions leave out.
Linear probes read every attribute from the pictures, before and after the projection into the
common space. Beside them stand an untrained encoder, and one that was trained on the attributes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mmcl_book.experiments import small
from mmcl_core.batches import Batch
from mmcl_core.data.augment import finder
from mmcl_core.data.drawing import ATTRIBUTES, VALUES
from mmcl_core.data.shapes import NAMED_AT_DETAIL
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import embed_all, summary
from mmcl_core.methods import CLIP

CONDITIONS: dict[str, dict[str, Any]] = {
    **{f"detail {detail}": {"detail": detail} for detail in NAMED_AT_DETAIL},
    **{f"without {name}": {"without": name} for name in ATTRIBUTES},
    "untrained": {"training": "none"},
    "supervised": {"training": "labels"},
}
PROBED = (2000, 1000)  # one-object scenes that a probe learns from, and is tested on


class Supervised(nn.Module):
    """The same picture encoder, with a linear classifier for each attribute: what could be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"image": small.image_encoder()})
        self.heads = nn.ModuleDict(
            {name: nn.Linear(small.WIDTH, len(values)) for name, values in VALUES.items()}
        )

    def loss(self, batch: Batch) -> Batch:
        """The sum of the cross-entropies; `batch` has an int64 [B] for each attribute."""
        pooled = self.encoders["image"](batch["image"]).pooled
        losses = [F.cross_entropy(head(pooled), batch[name]) for name, head in self.heads.items()]
        return {"total": torch.stack(losses).sum()}


def train(
    seed: int, *, detail: int = 4, without: str | None = None, training: str = "captions"
) -> nn.Module:
    """A CLIP trained on captions, or not trained; or `Supervised`, trained on labels.

    Args:
        seed: of scenes, first weights and order.
        detail: how much the captions say.
        without: an attribute that they leave out.
        training: "captions", "labels" or "none".
    """
    if training not in ("captions", "labels", "none"):
        raise MMCLError(f"training must be 'captions', 'labels' or 'none'; got {training!r}")
    if training == "labels":
        return _supervised(seed)
    data = small.scenes(small.PAIRS, seed, detail=detail)
    data = data if without is None else data.without(without)
    method = small.new_clip(data, seed)
    if training == "captions":
        small.train(method, data, seed)
    return method


def measure(method: nn.Module) -> dict[str, float]:
    """Accuracy of a probe for each attribute: "colour before" the projection, "colour after" it.

    "colour chance" is that of always naming the commonest value. `Supervised` has no projection.
    """
    one = (1, 1)
    known = small.scenes(PROBED[0], small.PROBE_SEEDS[0], objects=one)
    asked = small.scenes(PROBED[1], small.PROBE_SEEDS[1], objects=one)
    before = summary.probes(method, known, asked)
    chance = {f"{name} chance": before[f"{name}_chance"] for name in ATTRIBUTES}
    measured = {f"{name} before": before[name] for name in ATTRIBUTES} | chance
    if isinstance(method, CLIP):
        x, test_x = (embed_all(method, data, ("image",)) for data in (known, asked))
        after = summary.probe_attributes(x, known, test_x, asked)
        measured |= {f"{name} after": after[name] for name in ATTRIBUTES}
    return measured


def run(
    seed: int, *, detail: int = 4, without: str | None = None, training: str = "captions"
) -> dict[str, float]:
    """Trains and measures; see `train` and `measure`."""
    return measure(train(seed, detail=detail, without=without, training=training))


def _supervised(seed: int) -> Supervised:
    data = small.scenes(small.PAIRS, seed, objects=(1, 1))
    labels = summary.of_the_object(data)
    torch.manual_seed(seed)
    method, find = Supervised(), finder(data)

    def with_attributes(batch: Batch) -> Batch:
        return batch | {name: values[find(batch)] for name, values in labels.items()}

    small.train(method, data, seed, augment=with_attributes)
    return method
