"""Frames of widgets: a map in two dimensions beside what belongs to it."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from mmcl_book.figures.heatmaps import draw_matrix
from mmcl_book.figures.spaces import draw_map, legend_marks
from mmcl_book.figures.style import (
    DASHES,
    GREEN,
    LOOKS,
    PALETTE,
    PURPLE,
    RED,
    Array,
    as_array,
    check_known,
    each_its_own,
    headline,
    house_style,
    legend_below,
)


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
    draw_matrix(left, similarity, limits=(-1, 1), cmap="RdBu_r")
    left.set(title="similarity (cosine)", xlabel="caption", ylabel="picture")
    figure.colorbar(left.images[0], ax=left, shrink=0.8)
    number = as_array(groups)
    for (side, at), marker in zip(points.items(), ("o", "x"), strict=False):
        for group, name in enumerate(group_names):
            here = as_array(at)[number == group]
            right.scatter(
                here[:, 0], here[:, 1], s=16, marker=marker, color=PALETTE[group],
                linewidths=1, label=name if marker == "o" else None,
            )  # fmt: skip
        right.scatter([], [], s=16, marker=marker, color="#222222", linewidths=1, label=side)
    right.set(xlim=(-limits, limits), ylim=(-limits, limits), aspect="equal")
    right.set(title="map of one-object scenes", xlabel="first direction", ylabel="second direction")
    right.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    headline(figure, title)
    return figure


@house_style
def map_and_curves(
    groups: Mapping[str, Array],
    x: Array,
    panels: Mapping[str, Mapping[str, Array]],
    *,
    at: float,
    title: str,
    xlabel: str,
    limits: tuple[float, float],
    lines: tuple[str, str] | None = None,
    ylims: Mapping[str, tuple[float, float]] | None = None,
    size: tuple[float, float] = (7.8, 4.0),
) -> Figure:
    """A map beside curves, one panel above the other; a vertical line says where on the curves.

    A frame of a widget: `at` and the points move, all else stands still.

    Args:
        groups: name of a group -> points [N, 2].
        x: [K], common to all curves.
        panels: the measure, with unit -> name of a series -> [K].
        at: the place on x that the map is of.
        title: the finding.
        xlabel: with unit.
        limits: lowest and highest value of both axes of the map.
        lines: two groups whose rows are joined, row i with row i.
        ylims: the measure -> lowest and highest y; curves that differ from frame to frame need it.
        size: inches.

    Raises:
        ShapeError, MMCLError: as `points`.
    """
    check_known("ylims", ylims or {}, panels)
    looks = each_its_own(groups, LOOKS)
    figure = plt.figure(figsize=size)
    grid = figure.add_gridspec(len(panels), 2, width_ratios=(1.15, 1))
    left = figure.add_subplot(grid[:, 0])
    draw_map(left, groups, looks, lines, limits)
    left.set(xlabel="first direction", ylabel="second direction")
    for row, (measure, series) in enumerate(panels.items()):
        axis = figure.add_subplot(grid[row, 1])
        for (name, values), colour in zip(series.items(), (GREEN, RED, PURPLE), strict=False):
            axis.plot(as_array(x), as_array(values), color=colour, label=name)
        axis.axvline(at, color="#222222", linewidth=1.2)
        axis.set(title=measure, xlabel=xlabel if row == len(panels) - 1 else "")
        if ylims is not None and measure in ylims:
            axis.set_ylim(*ylims[measure])
        if len(series) > 1:
            axis.legend(fontsize=8)
    legend_below(figure, legend_marks(looks), list(looks))
    headline(figure, title)
    return figure


@house_style
def map_and_bars(
    groups: Mapping[str, Array],
    values: Mapping[str, float],
    *,
    title: str,
    xlabel: str,
    limits: tuple[float, float],
    baselines: Mapping[str, float] | None = None,
    lines: tuple[str, str] | None = None,
    size: tuple[float, float] = (7.8, 4.0),
) -> Figure:
    """A map beside horizontal bars from 0 to 1, each with its value; baselines are dashed.

    A frame of a widget: points and bars move, all else stands still.

    Args:
        groups: name of a group -> points [N, 2].
        values: name of a bar -> share.
        title: the finding.
        xlabel: of the bars, with unit.
        limits: lowest and highest value of both axes of the map.
        baselines: name -> share.
        lines: two groups whose rows are joined, row i with row i.
        size: inches.

    Raises:
        ShapeError, MMCLError: as `points`.
    """
    looks = each_its_own(groups, LOOKS)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, width_ratios=(1.15, 1))
    draw_map(left, groups, looks, lines, limits)
    left.set(xlabel="first direction", ylabel="second direction")
    names = list(values)
    drawn = right.barh(names, list(values.values()), height=0.55, color=PALETTE[2 : 2 + len(names)])
    right.bar_label(drawn, fmt="%.2f", padding=3)
    for (name, level), dashes in zip((baselines or {}).items(), DASHES, strict=False):
        right.axvline(level, color="#222222", linestyle=dashes, linewidth=1.4, label=name)
    right.set(xlim=(0, 1.12), xlabel=xlabel)
    right.invert_yaxis()
    right.grid(visible=False, axis="y")
    if baselines:
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=8)
    legend_below(figure, legend_marks(looks), list(looks))
    headline(figure, title)
    return figure
