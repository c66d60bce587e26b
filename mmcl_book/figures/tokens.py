"""Tokens that pictures and words share: who calls one, and where those of one scene are."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mmcl_book.figures.pictures import muted
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
    given = as_array(by_word)
    if given.shape != (len(names), len(words)) or len(maps) != len(names):
        raise ShapeError(
            f"expected {len(names)} maps and by_word [{len(names)}, {len(words)}]; got {len(maps)} "
            f"and {list(given.shape)}"
        )
    figure = plt.figure(figsize=size, layout="none")
    axis = figure.add_axes((0.01, 0.54, 0.98, 0.36))
    axis.axis("off")
    high = max(float(maps.max()), 1e-6)
    _place(axis, as_rgb(picture), 0, 0.12)
    for i, values in enumerate(as_array(maps), start=1):
        _place(axis, muted(picture), 1.08 * i, 0.12)
        seen = np.ma.masked_equal(values, 0)  # where nothing is given, the picture shows
        _place(axis, seen, 1.08 * i, 0.12, vmin=0, vmax=high, cmap="inferno", alpha=0.75)
    for i, name in enumerate(["picture", *names]):
        axis.text(1.08 * i + 0.5, 0.08, name, ha="center", va="bottom", fontsize=9)
    axis.set(xlim=(0, 1.08 * (len(names) + 1)), ylim=(1.14, -0.05), aspect="equal", anchor="NW")
    axis = figure.add_axes((0.16, 0.17, 0.83, 0.33))
    room = np.full((len(names), max(length, len(words))), np.nan)
    room[:, : len(words)] = given
    axis.imshow(room, vmin=0, vmax=max(float(given.max()), 1e-6), cmap="inferno", aspect="auto")
    axis.set_xticks(range(len(words)), words, rotation=45, ha="right", fontsize=9)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.grid(visible=False)
    for side in axis.spines.values():
        side.set_visible(False)
    axis.tick_params(length=0)
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
