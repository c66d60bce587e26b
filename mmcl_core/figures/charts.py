"""Curves, bars and histograms."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from mmcl_core.figures.style import GREY, MARKERS, PALETTE, Array, _array, house_style


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
