"""What the measures ask of embeddings and labels before they compute anything."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl_core.errors import MMCLError, ShapeError

# The most elements of a [chunk, M] block of scores: 16 MB in float32.
BLOCK = 2**22


def described(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} on {x.device}"


def as_matrix(x: Tensor, name: str) -> Tensor:
    """x as float [N, D] without history; at least float32."""
    if not isinstance(x, Tensor) or x.ndim != 2 or 0 in x.shape or not x.is_floating_point():
        found = described(x) if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError(f"{name}: expected floats [N, D], not empty; got {found}")
    x = x.detach()
    if x.dtype != torch.float64:
        x = x.float()
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).any(1).sum())
        raise ShapeError(f"{name}: expected finite values; {bad} of {len(x)} rows have NaN or inf")
    return x


def as_unit(x: Tensor, name: str, *, smallest: float = 1e-12) -> Tensor:
    """x with rows of unit norm; a row shorter than `smallest` counts as zero."""
    x = as_matrix(x, name)
    zero = x.norm(dim=1) < smallest
    if zero.any():
        raise ShapeError(
            f"{name}: expected vectors with a direction; {int(zero.sum())} of {len(x)} rows are "
            f"zero, the first is row {int(zero.nonzero()[0])}"
        )
    return F.normalize(x, dim=1)


def as_pairs(x: Tensor) -> Tensor:
    x = as_unit(x, "x").double()
    if len(x) < 2:
        raise ShapeError("expected at least two samples, to have a pair of them; got one")
    return x


def check_same_width(x: Tensor, y: Tensor) -> None:
    if x.shape[1] != y.shape[1] or x.device != y.device:
        raise ShapeError(
            f"expected x and y of one width and device; got {described(x)} and {described(y)}"
        )


def as_labels(y: Tensor, x: Tensor, name: str) -> Tensor:
    """Labels as int64 on the CPU, checked."""
    if not isinstance(y, Tensor):
        raise ShapeError(f"{name}: expected a tensor; got {type(y).__name__}")
    whole = y.long()
    if (
        y.ndim not in (1, 2)
        or len(y) != len(x)
        or y.numel() == 0
        or bool((whole != y).any())
        or bool((whole < 0).any())
        or (y.ndim == 2 and bool((whole > 1).any()))
    ):
        raise ShapeError(
            f"{name}: expected classes 0, 1, ... [{len(x)}], or columns of 0 and 1 [{len(x)}, T]; "
            f"got {described(y)}"
        )
    return whole.cpu()


def check_classes(y: Tensor, truth: Tensor) -> None:
    """At least two classes to train on, and no others in the test, in each column."""
    columns = y.ndim == 2
    for t, (known, asked) in enumerate(
        zip(y.T if columns else [y], truth.T if columns else [truth], strict=True)
    ):
        where = f" in column {t}" if columns else ""
        if len(known.unique()) < 2:
            raise MMCLError(
                f"expected at least two classes to train on{where}; got {known.unique().tolist()}"
            )
        if new := sorted(set(asked.tolist()) - set(known.tolist())):
            raise MMCLError(f"expected test labels that training has{where}; got also {new}")
