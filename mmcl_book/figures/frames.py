"""Frames of widgets: a map in two dimensions beside what belongs to it."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from mmcl_book.figures.spaces import draw_map, legend_marks
from mmcl_book.figures.style import (
    GREEN,
    LOOKS,
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
