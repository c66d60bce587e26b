"""What the losses share: precision, and clear errors on input that they cannot use."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from mmcl_core.errors import MMCLError, ShapeError

P = ParamSpec("P")
T = TypeVar("T")


def at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def without_autocast(values: Tensor) -> torch.autocast:
    return torch.autocast(values.device.type, enabled=False)


def in_float32(function: Callable[P, T]) -> Callable[P, T]:
    """Runs a function outside of autocast, on tensors of at least float32.

    What a loss sums, and what a method chooses by a comparison, is not to be rounded to the three
    digits of bfloat16. Positional arguments that are tensors are converted, the others left alone.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        first = next(x for x in args if isinstance(x, Tensor))
        with without_autocast(first):
            converted = (at_least_float32(x) if isinstance(x, Tensor) else x for x in args)
            return function(*converted, **kwargs)  # type: ignore[arg-type]

    return run


def scalar(
    name: str,
    value: float | Tensor,
    like: Tensor,
    *,
    positive: bool = False,
    largest: float | None = None,
    divides: bool = False,
) -> Tensor:
    """A temperature, scale or bias as a checked tensor of shape `[]`, of the type of `like`.

    Args:
        name: of the argument.
        value: a number or a tensor of shape `[]`.
        like: embeddings `[B, D]`, as they are compared.
        positive: whether it is above 0.
        largest: of a scale or temperature, the largest magnitude among the embeddings; logits
            are then checked as by `check_logits`.
        divides: whether inner products are divided by it.

    Raises:
        ShapeError: a tensor of another shape.
        MMCLError: it is not finite, or not above 0, or is too large or small for the type of
            `like`; or logits could overflow.
    """
    if isinstance(value, Tensor) and value.ndim != 0:
        raise ShapeError(
            f"{name} must be a number or a tensor of shape [], got {list(value.shape)}."
        )
    number = float(value.detach() if isinstance(value, Tensor) else value)
    # In the type it is used in: in float32, 1e-46 is 0 and 1e39 infinite.
    limits = torch.finfo(like.dtype)
    if not abs(number) <= limits.max or (positive and number < limits.tiny):
        kind = "positive and finite" if positive else "finite"
        held = not math.isfinite(number) or (positive and number <= 0)
        raise MMCLError(
            f"{name} must be {kind}{'' if held else f' in {dtype_name(like)}'}, got {number}."
        )
    if largest is not None:
        check_logits(largest, like, 1 / number if divides else number, f" at this {name}")
    if isinstance(value, Tensor):
        return value.to(like)
    # full, not tensor: it does not make a GPU wait for a copy
    return torch.full((), number, dtype=like.dtype, device=like.device)


def check_logits(largest: float, like: Tensor, scale: float = 1.0, where: str = "") -> None:
    """Raises MMCLError where inner products times `scale`, or sums of them, could overflow, and a
    loss or gradient be NaN.
    """
    bound = largest * largest * like.shape[1] * scale
    if not bound < torch.finfo(like.dtype).max / 2**24:  # so that a mean of as many is finite
        raise MMCLError(
            f"logits could reach {bound:.0e}{where}, too much for {dtype_name(like)}: divide by "
            "a higher temperature, and bring the embeddings to unit norm."
        )


def dtype_name(values: Tensor) -> str:
    """The type of a tensor, as "float32"."""
    return str(values.dtype).removeprefix("torch.")


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


def check_embeddings(**embeddings: Tensor) -> float:
    """`check_named`, of embeddings that need each other as negatives: B at least 2."""
    return check_named(embeddings, smallest=2)


def check_named(embeddings: Mapping[str, Tensor], *, smallest: int) -> float:
    """Raise unless all are `[B, D]` of one shape, type and device, and every row is usable.

    B is at least `smallest`. The names are those of the messages. Returns the largest magnitude.

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
    low, high = torch.stack(largest.aminmax()).tolist()
    if low > 0 and high < torch.inf:  # neither, if one of them is NaN
        return float(high)
    for name, row in zip(embeddings, largest, strict=True):
        raise_for_rows(name, ~row.isfinite(), "hold NaN or infinity", "Has training diverged?")
        raise_for_rows(name, row == 0, "are zero vectors", "They have no direction to compare.")
    return float(high)


def raise_for_rows(name: str, bad: Tensor, what: str, hint: str) -> None:
    if bad.any():
        first = int(bad.nonzero()[0])
        raise MMCLError(
            f"{name}: {int(bad.sum())} of {len(bad)} rows {what}, the first is row {first}. {hint}"
        )
