"""Pictures, each with its caption, with a map over it, or with its row of a matrix."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mmcl_book.figures.heatmaps import draw_matrix
from mmcl_book.figures.style import Array, as_array, as_rgb, fold_text, house_style
from mmcl_core.errors import ShapeError


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
    figure, axes = _grid(len(pictures), captions, title, columns, width, lines)
    for axis, picture in zip(axes, pictures, strict=True):
        axis.imshow(as_rgb(picture))
    return figure


@house_style
def overlays(
    pictures: Tensor,
    maps: Tensor,
    captions: Sequence[str] = (),
    *,
    title: str,
    columns: int = 4,
    outlines: Tensor | None = None,
    label: str = "",
    width: float = 7.5,
) -> Figure:
    """Pictures in a grid, over each a map of values for its regions, one colour scale for all.

    A region has one colour up to its border: nothing is drawn between values. The picture is muted,
    so that its own colours are not taken for the map's.

    Args:
        pictures: [N, 3, H, W], uint8 or float in [0, 1].
        maps: [N, h, w], such as one value for each patch.
        captions: N texts, or none.
        title: the finding.
        columns: pictures in a row.
        outlines: bool [N, H, W], regions to draw the outline of; one may be empty.
        label: what the colours are, with unit.
        width: inches.

    Raises:
        ShapeError: numbers or shapes that do not fit, or values that are not finite.
    """
    n, _, tall, wide = pictures.shape
    _check("maps [N, h, w]", maps, 3, n)
    if captions and len(captions) != n:
        raise ShapeError(f"expected a caption for each of {n} pictures, got {len(captions)}")
    if outlines is not None:
        _check(f"outlines [N, {tall}, {wide}]", outlines, 3, n, tall, wide)
    side = 0.75  # inches for the colour bar
    figure, axes = _grid(n, captions, title, columns, width - side, room=side)
    values = as_array(maps)
    for i, (axis, picture) in enumerate(zip(axes, pictures, strict=True)):
        axis.imshow(muted(picture))
        frame = (-0.5, wide - 0.5, tall - 0.5, -0.5)
        axis.imshow(
            values[i], vmin=values.min(), vmax=values.max(),
            cmap="inferno", alpha=0.55, extent=frame,
        )  # fmt: skip
        if outlines is not None and outlines[i].any():
            edge = [patheffects.withStroke(linewidth=3, foreground="black", alpha=0.7)]
            inside = np.pad(as_array(outlines[i]).astype(float), 1)  # closed at the border, too
            x, y = np.arange(-1, wide + 1), np.arange(-1, tall + 1)
            lines = axis.contour(x, y, inside, [0.5], colors="white", linewidths=1.3)
            lines.set(path_effects=edge, clip_on=False)
        axis.set(xlim=frame[:2], ylim=frame[2:])
    boxes = [axis.get_position() for axis in axes]
    low, high = min(box.y0 for box in boxes), max(box.y1 for box in boxes)
    bar = figure.add_axes(
        (1 - (side - 0.06) / width, low, 0.13 / width, high - low), facecolor="0.75"
    )
    figure.colorbar(axes[0].images[1], cax=bar, label=label)
    return figure


def muted(picture: Tensor) -> np.ndarray:
    """A picture [H, W, 3] with half of its colour, and no darker than 0.3."""
    rgb = as_rgb(picture)
    rgb = rgb / 255 if rgb.dtype == np.uint8 else rgb
    grey = rgb @ np.array([0.299, 0.587, 0.114])
    return 0.3 + 0.35 * (rgb + grey[..., None])


def _check(what: str, values: Tensor, ndim: int, *sizes: int) -> None:
    """Finite values [*sizes, ...]."""
    if values.ndim != ndim or values.shape[: len(sizes)] != sizes:
        raise ShapeError(f"expected {what} with N = {sizes[0]}, got {list(values.shape)}")
    if not values.isfinite().all():
        raise ShapeError(f"expected {what} with finite values, got NaN or infinity")


def _grid(
    n: int,
    captions: Sequence[str],
    title: str,
    columns: int,
    width: float,
    lines: int = 0,
    room: float = 0,
) -> tuple[Figure, list[Axes]]:
    """A figure with n empty square places in rows, each with its caption below.

    Args:
        n: places.
        captions: n texts, or none.
        title: the finding, or none.
        columns: places in a row.
        width: of all columns, in inches.
        lines: room for so many lines of caption; 0 takes what the longest needs.
        room: inches left free on the right.
    """
    cell = width / columns
    folded = [textwrap.fill(text, int(cell * 16)) for text in captions]
    lines = lines or max((text.count("\n") + 1 for text in folded), default=0)
    title = fold_text(title, width + room - 0.12)
    rows, head = -(-n // columns), (0.2 + 0.2 * (title.count("\n") + 1)) * bool(title)
    tall = cell + 0.15 * lines + 0.06
    height, width = rows * tall + head, width + room
    figure = plt.figure(figsize=(width, height), layout="none")
    axes = []
    for i in range(n):
        row, column = divmod(i, columns)
        left, bottom = (column + 0.04) * cell, height - head - row * tall - 0.94 * cell
        axis = figure.add_axes(
            (left / width, bottom / height, 0.92 * cell / width, 0.92 * cell / height)
        )
        axis.axis("off")
        if folded:
            axis.text(
                0.5, -0.03, folded[i], transform=axis.transAxes, ha="center", va="top", size=8
            )
        axes.append(axis)
    if title:
        figure.text(0.06 / width, 1 - 0.08 / height, title, ha="left", va="top", size=11)
    return figure, axes


@house_style
def pairs(pictures: Tensor, similarity: Array, *, title: str, width: float = 6.4) -> Figure:
    """A matrix of similarities of pictures to captions, each row behind its picture.

    Args:
        pictures: [N, 3, H, W], uint8 or float in [0, 1].
        similarity: [N, M], rows are pictures, columns are captions; cosines.
        title: the finding.
        width: inches.
    """
    rows, columns = as_array(similarity).shape
    title = fold_text(title, width - 0.04)
    side, head, foot = 0.46, 0.36 + 0.18 * title.count("\n"), 0.28
    height = rows * side + head + foot
    figure = plt.figure(figsize=(width, height), layout="none")
    for i, picture in enumerate(pictures):
        bottom = (foot + (rows - 1 - i + 0.04) * side) / height
        box = (0.02 / width, bottom, 0.92 * side / width, 0.92 * side / height)
        axis = figure.add_axes(box)
        axis.imshow(as_rgb(picture))
        axis.axis("off")
    left = (side + 0.04) / width
    axis = figure.add_axes((left, foot / height, 0.99 - left, rows * side / height))
    draw_matrix(axis, similarity, limits=(-1, 1), cmap="RdBu_r", numbers=".2f")
    axis.set_xticks(range(columns), [f"caption {i + 1}" for i in range(columns)], fontsize=8)
    axis.set_yticks([])
    axis.tick_params(length=0)
    figure.text(0.02 / width, 1 - 0.07 / height, title, ha="left", va="top", size=11)
    return figure
