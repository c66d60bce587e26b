"""Which samples say the same: identical captions are one group."""

import torch
from torch import Tensor

from mmcl_core.errors import ShapeError


def caption_groups(captions: Tensor) -> Tensor:
    """Numbers the captions so that two have the same number exactly when they are the same text.

    Padding counts for nothing: wider captions (more zeros at the end) get the same numbers. To
    compare two sets of captions, pad them to one width, join them, and call this once: the
    numbers of two calls have nothing to do with each other.

    Args:
        captions: int64 [N, L], 0 = padding.

    Returns:
        int64 [N], numbers 0 to G - 1, where G is the number of different captions.

    Raises:
        ShapeError: not a tensor of integers with two axes.
    """
    if captions.ndim != 2 or captions.is_floating_point():
        raise ShapeError(
            f"expected captions as integers [N, L], got {captions.dtype} {list(captions.shape)}"
        )
    if captions.numel() == 0:  # no captions, or none with a word: torch.unique knows no such rows
        return torch.zeros(len(captions), dtype=torch.int64, device=captions.device)
    return torch.unique(captions, dim=0, return_inverse=True)[1]


def caption_codes(captions: Tensor) -> Tensor:
    """One number for each caption, the same for the same text, in any batch and at any width.

    A polynomial of the word numbers, modulo 2^64: two texts have one number by accident once in
    about 10^19 pairs.

    Args:
        captions: int64 [N, L], 0 = padding.

    Returns:
        int64 [N].

    Raises:
        ShapeError: not a tensor of integers with two axes.
    """
    if captions.ndim != 2 or captions.is_floating_point():
        raise ShapeError(
            f"expected captions as integers [N, L], got {captions.dtype} {list(captions.shape)}"
        )
    # Any odd number with many bits; int64 wraps around, which is the modulus.
    base = torch.full((captions.shape[1],), 6364136223846793005, device=captions.device)
    return (captions * base.cumprod(0)).sum(1)
