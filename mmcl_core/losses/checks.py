"""What the losses share: precision, and clear errors on input that they cannot use."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mmcl_core.errors import MMCLError, ShapeError


def at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def without_autocast(values: Tensor) -> torch.autocast:
    return torch.autocast(values.device.type, enabled=False)


def scalar(name: str, value: float | Tensor, like: Tensor, *, positive: bool) -> Tensor:
    """A temperature, scale or bias as a checked tensor of shape `[]`, of the type of `like`."""
    if isinstance(value, Tensor):
        if value.ndim != 0:
            raise ShapeError(
                f"{name} must be a number or a tensor of shape [], got {list(value.shape)}."
            )
        number = float(value.detach())
        value = value.to(like)
    else:
        number = value
        # full, not tensor: it does not make a GPU wait for a copy
        value = torch.full((), value, dtype=like.dtype, device=like.device)
    if not math.isfinite(number) or (positive and number <= 0):
        kind = "positive and finite" if positive else "finite"
        raise MMCLError(f"{name} must be {kind}, got {number}.")
    return value


def check_groups(groups: Tensor | None, embeddings: Tensor) -> None:
    if groups is None:
        return
    if groups.shape != embeddings.shape[:1] or groups.dtype != torch.int64:
        raise ShapeError(
            f"groups must be int64 of shape [{len(embeddings)}], one number for each sample, "
            f"got {groups.dtype} of shape {list(groups.shape)}."
        )
    if groups.device != embeddings.device:
        raise ShapeError(
            f"groups must be on the device of the embeddings, {embeddings.device}, "
            f"got {groups.device}."
        )


def check_rows(rows: slice | None, embeddings: Tensor) -> tuple[int, int]:
    """The first of the rows, and the one after the last; all for None.

    Raises:
        ShapeError: not a slice of neighbouring rows of `embeddings`, or an empty one.
    """
    size = len(embeddings)
    match rows:
        case None:
            return 0, size
        case slice(start=int(start), stop=int(stop), step=None | 1) if 0 <= start < stop <= size:
            return start, stop
    raise ShapeError(
        f"rows must be a slice(start, stop) with 0 <= start < stop <= {size}, the number of "
        f"samples, got {rows}. Are the embeddings those of all processes?"
    )


def check_embeddings(**embeddings: Tensor) -> None:
    """`check_named`, of embeddings that need each other as negatives: B at least 2."""
    check_named(embeddings, smallest=2)


def check_named(embeddings: Mapping[str, Tensor], *, smallest: int) -> None:
    """Raise unless all are `[B, D]` of one shape, type and device, and every row is usable.

    B is at least `smallest`. The names are those of the messages.

    Costs one pass over `[B, D]` and, on a GPU, one wait for the result.
    """
    (first_name, first), *_ = embeddings.items()
    for name, values in embeddings.items():
        if values.ndim != 2:
            raise ShapeError(f"{name} must have shape [B, D], got {list(values.shape)}.")
        if not values.is_floating_point():
            raise ShapeError(f"{name} must hold floating-point numbers, got {values.dtype}.")
        if values.shape != first.shape:
            raise ShapeError(
                f"{first_name} and {name} must have one shape [B, D], row i of one belonging to "
                f"row i of the other, got {list(first.shape)} and {list(values.shape)}."
            )
        if values.device != first.device:
            raise ShapeError(
                f"{first_name} and {name} must be on one device, "
                f"got {first.device} and {values.device}."
            )
        if values.dtype != first.dtype:
            raise ShapeError(
                f"{first_name} and {name} must have one type, "
                f"got {first.dtype} and {values.dtype}. Convert one of them."
            )
    if first.numel() == 0:
        raise ShapeError(
            f"{' and '.join(embeddings)} are empty, of shape {list(first.shape)}: "
            f"expected at least {smallest} samples of at least 1 number."
        )
    if len(first) < smallest:
        raise ShapeError(
            "A batch of 1 has no negatives: expected at least 2 samples. "
            "Make the batch larger, or drop the last, incomplete one (drop_last=True)."
        )
    # The largest magnitude of a row is NaN or infinite when one of its elements is, and 0 for a
    # zero vector alone; unlike a sum of squares, it cannot overflow.
    largest = torch.stack([v.detach().abs().amax(1) for v in embeddings.values()])
    if bool(((largest > 0) & (largest < torch.inf)).all()):
        return
    for name, row in zip(embeddings, largest, strict=True):
        raise_for_rows(name, ~row.isfinite(), "hold NaN or infinity", "Has training diverged?")
        raise_for_rows(name, row == 0, "are zero vectors", "They have no direction to compare.")


def raise_for_rows(name: str, bad: Tensor, what: str, hint: str) -> None:
    if bad.any():
        first = int(bad.nonzero()[0])
        raise MMCLError(
            f"{name}: {int(bad.sum())} of {len(bad)} rows {what}, the first is row {first}. {hint}"
        )
