"""Every plot of the book: one house style, safe for colour-blind readers, on a light panel.

A function here takes numbers that were computed elsewhere and returns a matplotlib `Figure`, as
the last line of a cell or as a frame of `mmcl_core.widgets.scrub`. It computes nothing itself.
Titles are findings, and the caller writes them: only the caller knows what was found.
"""

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mmcl_core.errors import ShapeError

# Okabe and Ito's palette: told apart with every common form of colour blindness.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, GREY = "#CC79A7", "#56B4E9", "#F0E442", "#666666"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

# `Any`, as matplotlib types every single key.
STYLE: Any = {
    "figure.facecolor": "white",
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelcolor": "#222222",
    "axes.edgecolor": "#666666",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=PALETTE),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "image.cmap": "viridis",
    "image.interpolation": "nearest",
}

P = ParamSpec("P")
Array = Tensor | np.ndarray | Sequence[Any]


def house_style(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run `draw` in the book's style and take the figure from pyplot, so that it shows once."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            # Text is laid out in the style it was made in, not in that of a later moment.
            figure.draw_without_rendering()
        plt.close(figure)
        return figure

    return styled


def _array(values: Array) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _rgb(picture: Tensor) -> np.ndarray:
    """[3, H, W], uint8 or float in [0, 1], as matplotlib wants it: [H, W, 3]."""
    if picture.ndim != 3 or len(picture) != 3:
        raise ShapeError(f"expected a picture [3, H, W], got {list(picture.shape)}")
    return _array(picture).transpose(1, 2, 0)


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
    rows, head = -(-len(pictures) // columns), 0.4 * bool(title)
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
def curves(
    x: Array,
    series: Mapping[str, Array],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    baselines: Mapping[str, float] | None = None,
    xscale: str = "linear",
    yscale: str = "linear",
    ylim: tuple[float, float] | None = None,
    size: tuple[float, float] = (7, 3.4),
) -> Figure:
    """Lines over a common x, each with its own colour and marker; baselines are dashed.

    Args:
        x: [N].
        series: name -> [N].
        title: the finding.
        xlabel: with unit.
        ylabel: with unit.
        baselines: name -> level, for what the result is to be compared with.
        xscale: "linear" or "log"; likewise `yscale`.
        ylim: lowest and highest y.
        size: inches.
    """
    figure, axis = plt.subplots(figsize=size)
    points = _array(x)
    every = max(1, len(points) // 12)
    for (name, values), marker in zip(series.items(), MARKERS, strict=False):
        axis.plot(
            points, _array(values), label=name, marker=marker, markevery=every, markersize=4.5
        )
    for (name, level), dashes in zip((baselines or {}).items(), ("--", ":", "-."), strict=False):
        axis.axhline(level, color=GREY, linestyle=dashes, linewidth=1.4, label=name)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
    if ylim is not None:
        axis.set_ylim(*ylim)
    if len(series) + len(baselines or {}) > 1:
        axis.legend()
    return figure


@house_style
def bars(
    groups: Sequence[str],
    series: Mapping[str, Array],
    *,
    title: str,
    ylabel: str,
    xlabel: str = "",
    baselines: Mapping[str, float] | None = None,
    steps: Mapping[str, Array] | None = None,
    ylim: tuple[float, float] | None = None,
    size: tuple[float, float] = (7, 3.2),
) -> Figure:
    """Bars side by side in each group, their values written on top; baselines are dashed.

    Args:
        groups: G names along x.
        series: name -> [G] heights.
        title: the finding.
        ylabel: with unit; likewise `xlabel`.
        baselines: name -> level, the same for all groups.
        steps: name -> [G] levels, one for each group.
        ylim: lowest and highest y.
        size: inches.
    """
    figure, axis = plt.subplots(figsize=size)
    at, width = np.arange(len(groups)), 0.8 / len(series)
    for i, (name, values) in enumerate(series.items()):
        heights = _array(values)
        place = at + (i - (len(series) - 1) / 2) * width
        drawn = axis.bar(place, heights, 0.94 * width, label=name)
        axis.bar_label(drawn, fmt="%.2f", fontsize=8, padding=1.5)
    for (name, level), dashes in zip((baselines or {}).items(), ("--", ":", "-."), strict=False):
        axis.axhline(level, color="#222222", linestyle=dashes, linewidth=1.4, label=name)
    for (name, levels), dashes in zip((steps or {}).items(), ("--", ":", "-."), strict=False):
        edges = (at - 0.46, at + 0.46)
        axis.hlines(_array(levels), *edges, color="#222222", linestyles=dashes, label=name)
    axis.set(title=title, ylabel=ylabel, xlabel=xlabel)
    axis.set_xticks(at, groups)
    axis.grid(visible=False, axis="x")
    if ylim is not None:
        axis.set_ylim(*ylim)
    if len(series) + len(baselines or {}) + len(steps or {}) > 1:
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _draw_matrix(
    axis: Axes,
    matrix: Array,
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    limits: tuple[float, float] | None = None,
    cmap: str = "viridis",
    numbers: str = "",
) -> None:
    """A heat map on `axis`; `numbers` is a format such as ".2f", empty for none."""
    values = _array(matrix)
    low, high = limits if limits is not None else (float(values.min()), float(values.max()))
    shown = axis.imshow(values, vmin=low, vmax=high, cmap=cmap, aspect="auto")
    axis.grid(visible=False)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    if numbers:
        for (i, j), value in np.ndenumerate(values):
            r, g, b, _ = shown.cmap(shown.norm(value))
            dark = 0.299 * r + 0.587 * g + 0.114 * b < 0.5
            ink = "white" if dark else "black"
            axis.text(j, i, format(value, numbers), ha="center", va="center", color=ink, fontsize=9)


@house_style
def matrices(
    panels: Mapping[str, Array],
    *,
    title: str = "",
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    xlabel: str = "",
    ylabel: str = "",
    limits: Sequence[tuple[float, float] | None] = (),
    cmaps: Sequence[str] = (),
    numbers: str = "",
    size: tuple[float, float] = (7.5, 3.0),
) -> Figure:
    """Heat maps side by side, each with its own colour bar.

    Args:
        panels: panel title -> [R, C].
        title: the finding.
        rows: R names, `columns`: C names; or none.
        xlabel: what the columns are; `ylabel`: what the rows are.
        limits: (low, high) of each panel's colours; frames of a widget need them fixed.
        cmaps: a colour map for each panel.
        numbers: a format such as ".2f" to write each value into its cell.
        size: inches.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False)
    for i, (axis, (name, values)) in enumerate(zip(axes[0], panels.items(), strict=True)):
        bounds = limits[i] if limits else None
        colours = cmaps[i] if cmaps else "viridis"
        _draw_matrix(
            axis, values, rows=rows if i == 0 else (), columns=columns,
            limits=bounds, cmap=colours, numbers=numbers,
        )  # fmt: skip
        axis.set(title=name, xlabel=xlabel, ylabel=ylabel if i == 0 else "")
        if not numbers:
            figure.colorbar(axis.images[0], ax=axis, shrink=0.85)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure
