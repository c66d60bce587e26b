"""The pointing game: whether the strongest place of a map lies on the right object."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmcl_core.errors import ShapeError


@dataclass(frozen=True, eq=False)
class Pointing:
    """What came out of the game.

    Attributes:
        accuracy: share of the maps whose strongest cell touches the mask.
        chance: the same of cells that are drawn at random.
        hits: float [N], 1 for a hit; of several strongest cells, the share that hits.
    """

    accuracy: float
    chance: float
    hits: Tensor = field(repr=False)


def pointing_game(maps: Tensor, masks: Tensor) -> Pointing:
    """Scores maps against true masks by their strongest cell.

    A map cannot point more finely than its own cells, so a cell hits when any of its pixels lies
    in the mask; chance is the mean share of such cells. After the pointing game of Zhang et al.,
    "Top-down Neural Attention by Excitation Backprop", ECCV 2016, whose tolerance is 15 pixels.

    Args:
        maps: float [N, h, w].
        masks: bool [N, H, W], H and W multiples of h and w; each with a pixel in it.

    Raises:
        ShapeError: shapes that do not fit, values that are not finite, or an empty mask.
    """
    if maps.ndim != 3 or not maps.is_floating_point() or 0 in maps.shape:
        raise ShapeError(f"maps: expected floats [N, h, w]; got {maps.dtype} {list(maps.shape)}")
    n, h, w = maps.shape
    if (
        masks.ndim != 3
        or masks.dtype != torch.bool
        or len(masks) != n
        or masks.shape[1] % h
        or masks.shape[2] % w
    ):
        raise ShapeError(
            f"masks: expected bool [{n}, H, W] with H and W multiples of {h} and {w}; got "
            f"{masks.dtype} {list(masks.shape)}"
        )
    if not torch.isfinite(maps).all():
        raise ShapeError("maps: expected finite values")
    if not masks.flatten(1).any(dim=1).all():
        empty = int((~masks.flatten(1).any(dim=1)).nonzero()[0])
        raise ShapeError(f"masks: expected a pixel in each; mask {empty} is empty")
    cells = masks.reshape(n, h, masks.shape[1] // h, w, masks.shape[2] // w).any(dim=4).any(dim=2)
    strongest = maps == maps.amax(dim=(1, 2), keepdim=True)
    hits = (strongest & cells).flatten(1).sum(1).double() / strongest.flatten(1).sum(1)
    return Pointing(hits.mean().item(), cells.double().mean().item(), hits)
