"""Tokens that pictures and words share: who calls one, and where those of one scene are."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mmcl_book.figures.style import (
    BLUE,
    GREEN,
    Array,
    as_array,
    as_rgb,
    fold_text,
    house_style,
)
from mmcl_core.errors import ShapeError

COLUMNS = 4  # of pictures


@house_style
def token_card(
    pictures: Tensor,
    cells: Array,
    words: Mapping[str, float],
    values: Mapping[str, float],
    *,
    grid: int,
    title: str,
    rows: int = 3,
    size: tuple[float, float] = (8.4, 3.9),
) -> Figure:
    """Who calls a token: pictures with the calling patch outlined, words, and what they agree in.

    A frame of a widget: everything has its place, however many pictures or words there are.

    Args:
        pictures: [N, 3, H, W], N at most 4 * rows; uint8 or float in [0, 1].
        cells: int [N], the calling patch of each, row by row from the top left.
        words: word -> share of the calls by words, at most 6.
        values: such as "colour: red" -> share of the calls by patches, one for each attribute.
        grid: patches on a side of the picture.
        title: what the token is.
        rows: of pictures.
        size: inches.

    Raises:
        ShapeError: more pictures than there is room for, or not as many cells.
    """
    cells = as_array(cells)
    if len(pictures) > COLUMNS * rows or cells.shape != (len(pictures),):
        raise ShapeError(
            f"expected at most {COLUMNS * rows} pictures and a cell for each; got {len(pictures)} "
            f"and cells {list(cells.shape)}"
        )
    figure = plt.figure(figsize=size, layout="none")
    axis = figure.add_axes((0.01, 0.02, 0.44, 0.88))
    axis.axis("off")
    for i, picture in enumerate(pictures):  # all on one axis, which is drawn in a fraction of time
        down, right = divmod(i, COLUMNS)
        _place(axis, as_rgb(picture), 1.06 * right, 1.06 * down)
        row, column = divmod(int(cells[i]), grid)
        _outline(axis, 1.06 * right + column / grid, 1.06 * down + row / grid, 1 / grid)
    axis.set(xlim=(-0.02, 1.06 * COLUMNS), ylim=(1.06 * rows, -0.02), aspect="equal", anchor="NW")
    named = list(words.items()) + [(" " * (i + 1), 0.0) for i in range(6 - len(words))]
    top, bottom = (figure.add_axes((0.66, y, 0.32, h)) for y, h in ((0.52, 0.36), (0.06, 0.33)))
    _shares(top, dict(named), BLUE, "words that call it (share of calls)")
    _shares(bottom, values, GREEN, "under the patches that call it (share)")
    _title(figure, title)
    return figure


def _place(axis: Axes, image: np.ndarray, x: float, y: float, **how: Any) -> None:
    """An image of side 1, its upper left corner at (x, y)."""
    axis.imshow(image, extent=(x, x + 1, y + 1, y), **how)


def _outline(axis: Axes, x: float, y: float, side: float) -> None:
    """A frame around one patch."""
    axis.add_patch(
        Rectangle(
            (x, y), side, side, fill=False, edgecolor="white", linewidth=1.5, clip_on=False,
            path_effects=[patheffects.withStroke(linewidth=3, foreground="black")],
        )
    )  # fmt: skip


def _title(figure: Figure, title: str) -> None:
    width, height = figure.get_size_inches()
    text = fold_text(title, width - 0.1)
    figure.text(0.05 / width, 1 - 0.06 / height, text, ha="left", va="top", fontsize=11)


def _shares(axis: Axes, shares: Mapping[str, float], colour: str, title: str) -> None:
    """Horizontal bars from 0 to 1, each with its value."""
    drawn = axis.barh(range(len(shares)), list(shares.values()), height=0.7, color=colour)
    labels = [f"{share:.2f}" if share else "" for share in shares.values()]
    axis.bar_label(drawn, labels, padding=2, fontsize=8)
    axis.set_yticks(range(len(shares)), list(shares), fontsize=9)
    axis.set(xlim=(0, 1.12), xticks=(0, 0.5, 1))
    axis.set_title(title, fontsize=9)
    axis.tick_params(axis="x", labelsize=8)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
