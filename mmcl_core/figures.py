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
    """Bars side by side in each group; baselines are dashed. Few bars have their values on top.

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
        if len(series) * len(groups) <= 14:  # more would overlap
            axis.bar_label(drawn, fmt="%.2f", fontsize=8, padding=1.5)
    for (name, level), dashes in zip((baselines or {}).items(), ("--", ":", "-."), strict=False):
        axis.axhline(level, color="#222222", linestyle=dashes, linewidth=1.4, label=name)
    for name, levels in (steps or {}).items():
        edges = (at - 0.46, at + 0.46)
        axis.hlines(_array(levels), *edges, color="#222222", linestyles="dashed", label=name)
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


@house_style
def similarity_and_map(
    similarity: Array,
    points: Mapping[str, Tensor],
    groups: Tensor,
    *,
    group_names: Sequence[str],
    limits: float,
    title: str = "",
) -> Figure:
    """A matrix of cosines beside a map in two dimensions: colours are groups, markers are sides.

    Args:
        similarity: [R, C].
        points: side (such as "pictures") -> [N, 2].
        groups: int64 [N], the group of each point.
        group_names: name of each group.
        limits: the map reaches from -limits to limits on both axes, in every frame.
        title: the finding.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.7), width_ratios=(1, 1.15))
    _draw_matrix(left, similarity, limits=(-1, 1), cmap="RdBu_r")
    left.set(title="similarity (cosine)", xlabel="caption", ylabel="picture")
    figure.colorbar(left.images[0], ax=left, shrink=0.8)
    number = _array(groups)
    for (side, at), marker in zip(points.items(), ("o", "x"), strict=False):
        for group, name in enumerate(group_names):
            here = _array(at)[number == group]
            right.scatter(
                here[:, 0], here[:, 1], s=16, marker=marker, color=PALETTE[group],
                linewidths=1, label=name if marker == "o" else None,
            )  # fmt: skip
        right.scatter([], [], s=16, marker=marker, color="#222222", linewidths=1, label=side)
    right.set(xlim=(-limits, limits), ylim=(-limits, limits), aspect="equal")
    right.set(title="map of one-object scenes", xlabel="first direction", ylabel="second direction")
    right.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


@house_style
def histograms(
    series: Mapping[str, Array],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    bins: int = 40,
    size: tuple[float, float] = (7, 3.0),
) -> Figure:
    """Histograms on one axis with common bins, half transparent, outlined.

    Args:
        series: name -> [N].
        title: the finding.
        xlabel: with unit; likewise `ylabel`.
        bins: number of bins over the range of all series.
        size: inches.
    """
    figure, axis = plt.subplots(figsize=size)
    values = [_array(each) for each in series.values()]
    lowest, highest = min(v.min() for v in values), max(v.max() for v in values)
    edges = np.linspace(lowest, highest, bins + 1).tolist()
    for name, each, colour in zip(series, values, PALETTE, strict=False):
        axis.hist(each, edges, color=colour, alpha=0.35)
        axis.hist(each, edges, color=colour, histtype="step", linewidth=1.6, label=name)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axis.legend()
    return figure


@house_style
def circles(
    panels: Mapping[str, Mapping[str, Array]],
    *,
    title: str = "",
    arrows: Mapping[str, Array] | None = None,
    partners: tuple[str, str] | None = None,
    columns: int = 2,
    panel: float = 2.9,
) -> Figure:
    """Groups of points on the unit circle, one circle for each panel.

    Later groups are drawn smaller, so that two points at one place are both seen.

    Args:
        panels: panel title -> name of a group -> points [N, 2]. All panels have the same groups.
        title: the finding.
        arrows: name of a group -> [N, 2], what pulls or pushes each of its points, in every panel.
        partners: two groups whose rows are joined by a line, row i with row i.
        columns: panels in a row.
        panel: width of a panel in inches.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    size = (panel * columns, (panel + 0.25) * rows + 0.35 + 0.3 * bool(title))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    turn = np.linspace(0, 2 * np.pi, 200)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, groups) in zip(axes.flat, panels.items(), strict=False):
        axis.plot(np.cos(turn), np.sin(turn), color="#bbbbbb", linewidth=1)
        if partners is not None:
            for start, end in zip(*(_array(groups[who]) for who in partners), strict=True):
                axis.plot(*zip(start, end, strict=True), color=GREY, linewidth=0.7, alpha=0.6)
        for i, (who, points) in enumerate(groups.items()):
            x, y = _array(points).T
            axis.scatter(
                x, y, s=80 / (1 + 1.5 * i), color=PALETTE[i], marker=MARKERS[i], label=who, zorder=3
            )
            if arrows is not None and who in arrows:
                u, v = _array(arrows[who]).T
                axis.quiver(
                    x, y, u, v, color=PALETTE[i], width=0.011, zorder=4,
                    angles="xy", scale_units="xy", scale=1,
                )  # fmt: skip
        axis.set(title=name, aspect="equal", xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
    marks, names = axes.flat[0].get_legend_handles_labels()
    figure.legend(marks, names, loc="outside lower center", ncols=len(names))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


@house_style
def curve_panels(
    x: Array,
    panels: Mapping[str, Mapping[str, Array]],
    *,
    title: str,
    xlabel: str,
    baselines: Mapping[str, float] | None = None,
    xscale: str = "linear",
    size: tuple[float, float] = (7, 3.3),
) -> Figure:
    """Lines over a common x, a panel for each measure; the same series in every panel.

    Args:
        x: [N].
        panels: the measure, with unit -> name of a series -> [N].
        title: the finding.
        xlabel: with unit.
        baselines: the measure -> level, for what the result is to be compared with.
        xscale: "linear" or "log".
        size: inches.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False)
    points = _array(x)
    every = max(1, len(points) // 8)
    for axis, (measure, series) in zip(axes[0], panels.items(), strict=True):
        for (name, values), marker in zip(series.items(), MARKERS, strict=False):
            axis.plot(
                points, _array(values), label=name, marker=marker, markevery=every, markersize=4.5
            )
        if baselines is not None and measure in baselines:
            axis.axhline(baselines[measure], color=GREY, linestyle="--", linewidth=1.4)
        axis.set(title=measure, xlabel=xlabel, xscale=xscale)
    lines, names = axes[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=len(names))
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure
