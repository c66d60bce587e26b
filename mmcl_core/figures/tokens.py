"""Tokens that pictures and words share: who calls one, and where those of one scene are."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mmcl_core.errors import ShapeError
from mmcl_core.figures.pictures import _muted
from mmcl_core.figures.style import (
    BLUE,
    GREEN,
    Array,
    _array,
    _folded,
    _headline,
    _rgb,
    house_style,
)

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
    cells = _array(cells)
    if len(pictures) > COLUMNS * rows or cells.shape != (len(pictures),):
        raise ShapeError(
            f"expected at most {COLUMNS * rows} pictures and a cell for each; got {len(pictures)} "
            f"and cells {list(cells.shape)}"
        )
    figure = plt.figure(figsize=size)
    left, right = figure.subfigures(1, 2, width_ratios=(1.1, 1))
    for i, axis in enumerate(left.subplots(rows, COLUMNS).flat):
        axis.axis("off")
        if i < len(pictures):
            axis.imshow(_rgb(pictures[i]))
            _outline(axis, int(cells[i]), grid, pictures.shape[-1])
    top, bottom = right.subplots(2, 1, height_ratios=(max(6, len(words)), len(values)))
    named = list(words.items()) + [(" " * (i + 1), 0.0) for i in range(6 - len(words))]
    _shares(top, dict(named), BLUE, "words that call it (share of calls)")
    _shares(bottom, values, GREEN, "under the patches that call it (share)")
    _headline(figure, title)
    return figure


@house_style
def tokens_of_scene(
    picture: Tensor,
    maps: Tensor,
    words: Sequence[str],
    by_word: Array,
    names: Sequence[str],
    *,
    title: str,
    length: int = 0,
    size: tuple[float, float] = (8.4, 4.6),
) -> Figure:
    """A picture under a map for each of its tokens, and below them the words, one row a token.

    A frame of a widget. Maps and words have a colour scale each, from 0.

    Args:
        picture: [3, H, W], uint8 or float in [0, 1].
        maps: [K, h, w], what each patch gives each token; at least 0.
        words: L words of the sentence.
        by_word: [K, L], what each word gives each token; at least 0.
        names: of the K tokens.
        title: the finding.
        length: room for so many words; 0 is as many as there are.
        size: inches.

    Raises:
        ShapeError: not as many names, maps and rows, or columns and words.
    """
    given = _array(by_word)
    if given.shape != (len(names), len(words)) or len(maps) != len(names):
        raise ShapeError(
            f"expected {len(names)} maps and by_word [{len(names)}, {len(words)}]; got {len(maps)} "
            f"and {list(given.shape)}"
        )
    figure = plt.figure(figsize=size)
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.25))
    axes = above.subplots(1, len(names) + 1)
    frame = (-0.5, picture.shape[2] - 0.5, picture.shape[1] - 0.5, -0.5)
    for axis in axes:
        axis.axis("off")
    axes[0].imshow(_rgb(picture))
    axes[0].set_title("picture", fontsize=9)
    high = max(float(maps.max()), 1e-6)
    for axis, name, values in zip(axes[1:], names, _array(maps), strict=True):
        axis.imshow(_muted(picture))
        axis.imshow(values, vmin=0, vmax=high, cmap="inferno", alpha=0.6, extent=frame)
        axis.set_title(_folded(name, axis.bbox.width / figure.dpi, 9), fontsize=9)
    axis = below.subplots()
    room = np.full((len(names), max(length, len(words))), np.nan)
    room[:, : len(words)] = given
    axis.imshow(room, vmin=0, vmax=max(float(given.max()), 1e-6), cmap="inferno", aspect="auto")
    axis.set_xticks(range(len(words)), words, rotation=45, ha="right", fontsize=9)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.grid(visible=False)
    for side in axis.spines.values():
        side.set_visible(False)
    axis.tick_params(length=0)
    _headline(figure, title)
    return figure


def _outline(axis: Axes, cell: int, grid: int, side: int) -> None:
    """A frame around one patch."""
    row, column = divmod(cell, grid)
    step = side / grid
    axis.add_patch(
        Rectangle(
            (column * step - 0.5, row * step - 0.5), step, step, fill=False, edgecolor="white",
            linewidth=1.6, clip_on=False,
            path_effects=[patheffects.withStroke(linewidth=3.2, foreground="black")],
        )
    )  # fmt: skip


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
