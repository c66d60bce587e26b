"""Pictures, each with its caption or with its row of a matrix."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from mmcl_core.figures.heatmaps import _draw_matrix
from mmcl_core.figures.style import Array, _array, _rgb, house_style


@house_style
def scenes(
    pictures: Tensor | Sequence[Tensor],
    captions: Sequence[str] = (),
    *,
    title: str = "",
    columns: int = 6,
    width: float = 7.5,
    lines: int = 0,
) -> Figure:
    """Pictures in a grid, each with its caption below.

    Args:
        pictures: [N, 3, H, W], uint8 or float in [0, 1].
        captions: N texts, or none.
        title: the finding.
        columns: pictures in a row.
        width: inches.
        lines: room for so many lines of caption; 0 takes what the longest needs. Frames of a
            widget need equal room.
    """
    cell = width / columns
    folded = [textwrap.fill(text, int(cell * 16)) for text in captions]
    lines = lines or max((text.count("\n") + 1 for text in folded), default=0)
    title = textwrap.fill(title, int(width * 13))
    rows, head = -(-len(pictures) // columns), (0.2 + 0.2 * (title.count("\n") + 1)) * bool(title)
    tall = cell + 0.15 * lines + 0.06
    height = rows * tall + head
    figure = plt.figure(figsize=(width, height), layout="none")
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        left, bottom = (column + 0.04) * cell, height - head - row * tall - 0.94 * cell
        axis = figure.add_axes(
            (left / width, bottom / height, 0.92 * cell / width, 0.92 * cell / height)
        )
        axis.imshow(_rgb(picture))
        axis.axis("off")
        if folded:
            axis.text(
                0.5, -0.03, folded[i], transform=axis.transAxes, ha="center", va="top", size=8
            )
    if title:
        figure.text(0.06 / width, 1 - 0.08 / height, title, ha="left", va="top", size=11)
    return figure


@house_style
def pairs(pictures: Tensor, similarity: Array, *, title: str, width: float = 6.4) -> Figure:
    """A matrix of similarities of pictures to captions, each row behind its picture.

    Args:
        pictures: [N, 3, H, W], uint8 or float in [0, 1].
        similarity: [N, M], rows are pictures, columns are captions; cosines.
        title: the finding.
        width: inches.
    """
    rows, columns = _array(similarity).shape
    side, head, foot = 0.46, 0.36, 0.28
    height = rows * side + head + foot
    figure = plt.figure(figsize=(width, height), layout="none")
    for i, picture in enumerate(pictures):
        bottom = (foot + (rows - 1 - i + 0.04) * side) / height
        box = (0.02 / width, bottom, 0.92 * side / width, 0.92 * side / height)
        axis = figure.add_axes(box)
        axis.imshow(_rgb(picture))
        axis.axis("off")
    left = (side + 0.04) / width
    axis = figure.add_axes((left, foot / height, 0.99 - left, rows * side / height))
    _draw_matrix(axis, similarity, limits=(-1, 1), cmap="RdBu_r", numbers=".2f")
    axis.set_xticks(range(columns), [f"caption {i + 1}" for i in range(columns)], fontsize=8)
    axis.set_yticks([])
    axis.tick_params(length=0)
    figure.text(0.02 / width, 1 - 0.07 / height, title, ha="left", va="top", size=11)
    return figure
