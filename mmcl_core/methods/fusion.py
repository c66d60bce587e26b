"""Late fusion by concatenation: a classifier on each modality, and one on all of them.

Wang, Tran & Feiszli, "What Makes Training Multi-modal Classification Networks Hard?", CVPR 2020.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_core.batches import Batch, at_hand
from mmcl_core.distributed import average
from mmcl_core.encoders import by_modality, width_of
from mmcl_core.errors import (
    DataError,
    MissingModalityError,
    MMCLError,
    ShapeError,
    check_count,
    check_number,
)
from mmcl_core.losses.checks import at_least_float32
from mmcl_core.methods.method import Method, unit

RATE = 0.1  # share of a new batch in the running mean of the features, as in batch normalisation
RESERVED = {"fusion", "total", "label", "index"}


class LateFusion(Method):
    """A classifier on any number of modalities that serves any part of them.

    Training needs all modalities and `label`. The total is the sum of the losses of the heads
    times `weights`; at first the weight of the fusion is 1 and those of the others are 0, which is
    plain late fusion. Equal weights are `set_weights(dict.fromkeys(method.heads, 1.0))`.

    Args:
        encoders: name of a modality to what returns `Encoded` for `batch[name]`; has a `width`.
        classes: number of classes C, at least 2.
        dim: width D of the hidden layer of the fusion head, which is the representation.
        dropout: probability in [0, 1] that the fusion head does not see a modality of a sample in
            training; drawn for each by itself, but at least one stays. The heads of the modalities
            see all samples.
        impute: what stands for the feature of a modality that is dropped or absent: "zero", or
            "mean", the running mean over the training batches (zero before the first).
    """

    weights: Tensor
    fill: Tensor
    batches: Tensor
    measured: Tensor

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        classes: int,
        *,
        dim: int = 128,
        dropout: float = 0.0,
        impute: Literal["zero", "mean"] = "zero",
    ) -> None:
        super().__init__()
        if not encoders or RESERVED & set(encoders):
            raise MMCLError(
                f"expected an encoder for each modality, none named {sorted(RESERVED)}; "
                f"got {list(encoders)}"
            )
        dim = check_count("dim", dim)
        if impute not in ("zero", "mean"):
            raise MMCLError(f"impute must be 'zero' or 'mean'; got {impute!r}")
        self.modalities = tuple(encoders)
        self.widths = [width_of(encoder) for encoder in encoders.values()]
        self.classes = classes = check_count("classes", classes, least=2)
        self.dropout, self.impute = check_number("dropout", dropout, "[0, 1]"), impute
        self.encoders = by_modality(encoders)
        self.fused = nn.Sequential(nn.Linear(sum(self.widths), dim), nn.GELU())
        self.heads = nn.ModuleDict(
            {m: nn.Linear(w, classes) for m, w in zip(encoders, self.widths, strict=True)}
        )
        self.heads["fusion"] = nn.Linear(dim, classes)
        count = len(self.heads)
        self.register_buffer("weights", F.one_hot(torch.tensor(count - 1), count).float())
        # What stands for absent features, one after another as they are concatenated.
        self.register_buffer("fill", torch.zeros(sum(self.widths)))
        self.register_buffer("batches", torch.tensor(0))
        # The last measurement of `GradientBlending`: here, so that it is in the checkpoint.
        self.register_buffer("measured", torch.full((count, 2), math.nan))
        self._mean: Tensor | None = None

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Sets what the loss of each head is multiplied by. With 0 it is not in the total.

        Args:
            weights: one for each modality and one for "fusion"; at least 0, not all 0. They are
                used as they are: a sum of 1 is usual, and is not enforced.

        Raises:
            MMCLError: other names or values; the weights are then as before.
        """
        if set(weights) != set(self.heads):
            raise MMCLError(f"expected weights for {list(self.heads)}; got {list(weights)}")
        new = torch.tensor([float(weights[name]) for name in self.heads])
        if not (new.isfinite().all() and (new >= 0).all() and new.any()):
            raise MMCLError(
                f"weights must be finite, at least 0 and not all 0; got {dict(weights)}"
            )
        self.weights.copy_(new)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The cross-entropy of each head, under its name, and their weighted sum, "total".

        Args:
            batch: all modalities, and `label` int64 [B] from 0 to C - 1.

        Raises:
            MissingModalityError: a modality or `label` is not there.
            ShapeError: labels of another shape or type.
            DataError: labels outside 0 to C - 1.
        """
        if absent := [m for m in (*self.modalities, "label") if m not in batch]:
            raise MissingModalityError(
                f"LateFusion trains on {', '.join(self.modalities)} and label; "
                f"{' and '.join(absent)} not in the batch, which holds {sorted(batch)}"
                + ("; add it with augment=with_labels(data, labels)" if "label" in absent else "")
            )
        features = self._features(batch)
        label = _checked(batch["label"], len(batch[self.modalities[0]]), self.classes)
        keep = self._kept(len(label)) if self.training and self.dropout else None
        losses = {
            name: F.cross_entropy(at_least_float32(logits), label)
            for name, logits in self._all_logits(features, keep).items()
        }
        if self.training:
            means = (at_least_float32(x.detach()).mean(dim=0) for x in features.values())
            self._mean = torch.cat(list(means)).to(self.fill)
        # A part of weight 0 is left out: its head gets no gradient instead of a zero one.
        parts = zip(losses.values(), self.weights.tolist(), strict=True)
        total = torch.stack([weight * part for part, weight in parts if weight]).sum()
        return {"total": total, **losses}

    def after_step(self) -> None:
        """Moves the running mean of the features by a tenth of the way to that of the last batch.

        The first ten batches count equally.
        """
        if self.impute == "mean" and self._mean is not None:
            self.batches += 1
            rate = (1 / self.batches).clamp(min=RATE)
            self.fill += rate * (average(self._mean) - self.fill)
        self._mean = None

    def embed(self, batch: Batch) -> Tensor:
        """The normalised hidden layer of the fusion head, [B, D], from the modalities at hand.

        Raises:
            MissingModalityError: no modality is there.
        """
        return unit(self.fused(self._joined(self._features(batch))))

    def logits(self, batch: Batch) -> Tensor:
        """Those of the fusion head, [B, C], from the modalities at hand; the others are imputed.

        Raises:
            MissingModalityError: no modality is there.
        """
        return self.branch_logits(batch)["fusion"]

    def branch_logits(self, batch: Batch) -> dict[str, Tensor]:
        """Those of the head of each modality at hand and of "fusion", each [B, C].

        Raises:
            MissingModalityError: no modality is there.
        """
        return self._all_logits(self._features(batch))

    def _all_logits(self, features: Batch, keep: Tensor | None = None) -> dict[str, Tensor]:
        logits = {m: self.heads[m](x) for m, x in features.items()}
        return {**logits, "fusion": self.heads["fusion"](self.fused(self._joined(features, keep)))}

    def _features(self, batch: Batch) -> Batch:
        """The pooled features [B, F] of the modalities at hand."""
        present = at_hand(batch, "LateFusion takes", self.modalities)
        return {m: self._encode(batch, m).pooled for m in present}

    def _joined(self, features: Batch, keep: Tensor | None = None) -> Tensor:
        """All features side by side, imputed where a modality is absent or `keep` is False."""
        size = len(next(iter(features.values())))
        fills, parts = self.fill.split(self.widths), []
        for i, (m, fill) in enumerate(zip(self.modalities, fills, strict=True)):
            x = features.get(m, fill.expand(size, -1))
            parts.append(x if keep is None else torch.where(keep[:, i, None], x, fill))
        return torch.cat(parts, dim=1)

    def _kept(self, size: int) -> Tensor:
        """Which modalities a sample keeps, bool [B, M]."""
        noise = torch.rand(size, len(self.modalities), device=self.fill.device)
        # The one with the largest noise is the last to go, so to keep it always changes nothing
        # unless all would go.
        return (noise >= self.dropout).scatter_(1, noise.argmax(dim=1, keepdim=True), True)


def _checked(label: Tensor, size: int, classes: int) -> Tensor:
    if label.shape != (size,) or label.dtype != torch.int64 or not size:
        raise ShapeError(
            f"expected label as int64 [{size}], a class for each sample, and at least one; got "
            f"{str(label.dtype).removeprefix('torch.')} {list(label.shape)}"
        )
    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"expected labels from 0 to {classes - 1}, got {low} to {high}; was the model made "
            "for fewer classes?"
        )
    return label
