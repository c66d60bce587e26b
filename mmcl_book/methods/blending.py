"""Gradient-Blending: weights for the heads of a `LateFusion`, from how each of them overfits.

Wang, Tran & Feiszli, "What Makes Training Multi-modal Classification Networks Hard?", CVPR 2020.
Overfitting is O = L_val - L_train. Between two checkpoints a head generalises by G, the drop of
L_val, and overfits by the change of O. Heads do so at different rates; the blend with the best
ratio gives head k a weight proportional to dG_k / dO_k^2.

- **Offline**: train once with equal weights and take `blending_weights` of the first and the last
  measurement (`GradientBlending(..., every=epochs)` measures both); then train anew with these.
- **Online**: `fit(..., callbacks=[GradientBlending(train, validation, every=5)])` estimates them
  anew after each super-epoch of five epochs.

Both are cheaper than the paper, which trains each head alone to estimate its weight. For that:
one model a head, with a weight of 1 for it and of 0 for the others; measure with `head_losses`
before and after, and keep of each model the losses of its own head.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from mmcl_core.batches import Batch
from mmcl_core.errors import MMCLError, ShapeError, check_count, check_number
from mmcl_core.methods.fusion import LateFusion
from mmcl_core.modules import evaluating, taking

Losses = Mapping[str, tuple[float, float]]  # head -> (training loss, validation loss)

FLOOR = 0.01  # nats; a measured loss is rarely known better than that


def overfitting_to_generalisation(earlier: Losses, later: Losses) -> dict[str, float]:
    """`|dO / dG|` of each head between two checkpoints (section 3 of the paper); lower is better.

    It is infinite where the validation loss is as before. It has no sign: where the validation
    loss rose, a low ratio is nothing good.

    Args:
        earlier: the losses at the first checkpoint.
        later: those at the second.

    Raises:
        MMCLError: other heads in one than in the other, none, or a loss that is not finite.
    """
    return {
        name: abs(overfitting / drop) if drop else math.inf
        for name, (overfitting, drop) in _changes(earlier, later).items()
    }


def blending_weights(earlier: Losses, later: Losses, *, floor: float = FLOOR) -> dict[str, float]:
    """Weights with sum 1, proportional to dG_k / dO_k^2 (Proposition 1 of the paper).

    A head whose validation loss did not fall gets 0. A `|dO|` below `floor` counts as `floor`: a
    head that happens to overfit by nothing would else take all the weight.

    Args:
        earlier: the losses at the first checkpoint.
        later: those at the second.
        floor: in the unit of the losses, above 0.

    Raises:
        MMCLError: as `overfitting_to_generalisation`; or no validation loss fell. Equal weights
            would then train on what only overfits, so that is left to the caller.
    """
    floor = check_number("floor", floor, "(0, inf)")
    raw = {
        name: max(drop, 0.0) / max(abs(overfitting), floor) ** 2
        for name, (overfitting, drop) in _changes(earlier, later).items()
    }
    total = sum(raw.values())
    if total == 0:
        told = ", ".join(f"{name} {earlier[name][1]:g} to {later[name][1]:g}" for name in raw)
        raise MMCLError(
            f"expected a head whose validation loss fell; got {told}. Compare earlier checkpoints, "
            "or keep the weights that you have"
        )
    return {name: value / total for name, value in raw.items()}


def head_losses(
    method: LateFusion,
    train: Batch,
    validation: Batch,
    *,
    batch_size: int = 256,
) -> dict[str, tuple[float, float]]:
    """Mean loss of each head on training and validation samples, in eval mode, without gradients.

    Args:
        method: modes and random states are afterwards as before.
        train: one batch of any size, with `label`. A few hundred fixed samples do.
        validation: likewise, of samples that it is not trained on.
        batch_size: samples in one pass.

    Returns:
        head -> (training loss, validation loss).

    Raises:
        MMCLError: a batch is empty, or `method.loss` refuses it.
    """
    batch_size = check_count("batch_size", batch_size)
    with evaluating(method):
        on_train, on_validation = (
            _mean_losses(method, each, batch_size) for each in (train, validation)
        )
    return {name: (on_train[name], on_validation[name]) for name in on_train}


@dataclass(frozen=True)
class Measurement:
    """What `GradientBlending` saw after `epoch` epochs.

    Attributes:
        epoch: whole epochs done.
        losses: head -> (training loss, validation loss).
        weights: head -> its weight from here on.
        blended: whether these weights come from this measurement. They do not at the first one,
            and not where no validation loss fell: then those before stay.
    """

    epoch: int
    losses: dict[str, tuple[float, float]]
    weights: dict[str, float]
    blended: bool


class _Progress(Protocol):  # what is read of `training.Progress`
    @property
    def method(self) -> nn.Module: ...

    @property
    def epoch(self) -> int: ...


class GradientBlending:
    """A callback for `fit` that sets the weights of a `LateFusion` after each super-epoch.

    It measures each head at epoch 0 and after every `every` epochs, and blends by the change since
    the measurement before. The last one is kept in the method, and so in its checkpoints: a
    training that is resumed gets the same weights as one that never stopped, while `history` holds
    only what this object measured. A head whose weight became 0 learns no more, and comes back
    only if what its encoder learns from the fusion makes its validation loss fall.

    Args:
        train: see `head_losses`.
        validation: likewise. Choose weights on other samples than those of the final test.
        every: epochs in a super-epoch, at least 1.
        floor: see `blending_weights`.
        batch_size: samples in one pass.

    Attributes:
        history: a `Measurement` for each time, the first one first.

    Raises:
        MMCLError: when called: the method is no `LateFusion`, or a head begins with the weight 0.
    """

    def __init__(
        self,
        train: Batch,
        validation: Batch,
        *,
        every: int,
        floor: float = FLOOR,
        batch_size: int = 256,
    ) -> None:
        self.train, self.validation = train, validation
        self.every = check_count("every", every)
        self.floor = check_number("floor", floor, "(0, inf)")
        self.batch_size = check_count("batch_size", batch_size)
        self.history: list[Measurement] = []

    def __call__(self, progress: _Progress) -> None:
        method = progress.method
        if not isinstance(method, LateFusion):
            raise MMCLError(f"GradientBlending needs a LateFusion; got {type(method).__name__}")
        if progress.epoch % self.every:
            return
        heads, old = list(method.heads), method.weights.tolist()
        if progress.epoch == 0 and not all(old):
            raise MMCLError(
                "expected a weight above 0 for each head to begin with, or it does not learn; got "
                f"{dict(zip(heads, old, strict=True))}. Call set_weights(dict.fromkeys("
                "method.heads, 1.0)) first"
            )
        found = head_losses(method, self.train, self.validation, batch_size=self.batch_size)
        # What an earlier training left behind says nothing about this one.
        known = progress.epoch > 0 and bool(method.measured.isfinite().all())
        before = _last(method)
        method.measured.copy_(torch.tensor([found[name] for name in heads]))
        now = _last(method)  # not `found`: rounded as `before` is, so that no change is none
        blended = known and any(now[name][1] < before[name][1] for name in heads)
        if blended:
            method.set_weights(blending_weights(before, now, floor=self.floor))
        weights = dict(zip(heads, method.weights.tolist(), strict=True))
        self.history.append(Measurement(progress.epoch, now, weights, blended))


def _last(method: LateFusion) -> dict[str, tuple[float, float]]:
    """The last measurement, as the method keeps it."""
    rows = zip(method.heads, method.measured.tolist(), strict=True)
    return {name: (row[0], row[1]) for name, row in rows}


def _changes(earlier: Losses, later: Losses) -> dict[str, tuple[float, float]]:
    """head -> (dO, dG)."""
    if not earlier or set(earlier) != set(later):
        raise MMCLError(
            f"expected losses of the same heads twice; got {list(earlier)} and {list(later)}"
        )
    changes = {}
    for name in earlier:
        (train, validation), (train_later, validation_later) = earlier[name], later[name]
        drop = validation - validation_later
        overfitting = (validation_later - train_later) - (validation - train)
        if not math.isfinite(drop + overfitting):
            raise MMCLError(
                f"expected finite losses of {name}; got {earlier[name]} and {later[name]}"
            )
        changes[name] = overfitting, drop
    return changes


def _mean_losses(method: LateFusion, batch: Batch, batch_size: int) -> dict[str, float]:
    size = max((len(value) for value in batch.values()), default=0)
    if size < 1:
        raise ShapeError("expected at least one sample; got 0")
    sums, take = dict.fromkeys(method.heads, 0.0), taking(method)
    for i in range(0, size, batch_size):
        parts = method.loss(take({name: x[i : i + batch_size] for name, x in batch.items()}))
        for name in sums:
            sums[name] += parts[name].item() * min(batch_size, size - i)
    return {name: value / size for name, value in sums.items()}
