"""Curves, bars, intervals and histograms."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from mmcl_book.figures.style import (
    DASHES,
    GREY,
    LOOKS,
    PALETTE,
    Array,
    as_array,
    check_known,
    each_its_own,
    fold_text,
    headline,
    house_style,
    legend_below,
)

INK = "#222222"
# A label over a dashed line stays readable.
ON_WHITE: Any = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.4}


@house_style
def curves(
    x: Array,
    series: Mapping[str, Array],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    baselines: Mapping[str, float] | None = None,
    bands: Mapping[str, tuple[Array, Array]] | None = None,
    xscale: str = "linear",
    yscale: str = "linear",
    ylim: tuple[float, float] | None = None,
    size: tuple[float, float] = (7, 3.4),
) -> Figure:
    """Lines over a common x, each with its own colour and marker; baselines are dashed.

    Args:
        x: [N].
        series: name -> [N]; NaN where nothing was measured.
        title: the finding.
        xlabel: with unit.
        ylabel: with unit.
        baselines: name -> level, for what the result is to be compared with.
        bands: name of a series -> its lower and its upper bound, [N] each.
        xscale: "linear" or "log"; likewise `yscale`.
        ylim: lowest and highest y.
        size: inches.
    """
    figure, axis = plt.subplots(figsize=size)
    _draw_lines(axis, x, series, bands or {}, each_its_own(series, LOOKS), marks=12)
    for name, dashes in each_its_own(baselines or {}, DASHES).items():
        axis.axhline(
            (baselines or {})[name], color=GREY, linestyle=dashes, linewidth=1.4, label=name
        )
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
    _plain_ticks(axis, x)
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
    bands: Mapping[str, Mapping[str, tuple[Array, Array]]] | None = None,
    xscale: str = "linear",
    size: tuple[float, float] = (7, 3.3),
) -> Figure:
    """Lines over a common x, a panel for each measure; a series looks the same in every panel.

    Args:
        x: [N].
        panels: the measure, with unit -> name of a series -> [N].
        title: the finding.
        xlabel: with unit.
        baselines: the measure -> level, for what the result is to be compared with.
        bands: the measure -> name of a series -> its lower and its upper bound, [N] each.
        xscale: "linear" or "log".
        size: inches.
    """
    bands = bands or {}
    check_known("bands", bands, panels)
    looks = each_its_own(dict.fromkeys(name for of in panels.values() for name in of), LOOKS)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False)
    marks: dict[str, Any] = {}
    for axis, (measure, series) in zip(axes[0], panels.items(), strict=True):
        _draw_lines(axis, x, series, bands.get(measure, {}), looks, marks=8)
        lines, names = axis.get_legend_handles_labels()
        marks |= dict(zip(names, lines, strict=True))
        if baselines is not None and measure in baselines:
            axis.axhline(baselines[measure], color=GREY, linestyle="--", linewidth=1.4)
        axis.set(title=measure, xlabel=xlabel, xscale=xscale)
        _plain_ticks(axis, x)
    legend_below(figure, list(marks.values()), list(marks))
    headline(figure, title)
    return figure


def _draw_lines(
    axis: Axes,
    x: Array,
    series: Mapping[str, Array],
    bands: Mapping[str, tuple[Array, Array]],
    looks: Mapping[str, tuple[str, str]],
    *,
    marks: int,
) -> None:
    """Lines with about so many marks each, over their bands; NaN is what was not measured."""
    check_known("bands", bands, series)
    for name in series:
        colour, marker = looks[name]
        values = as_array(series[name])
        there = ~np.isnan(values)
        at = as_array(x)[there]
        if name in bands:
            low, high = (as_array(of)[there] for of in bands[name])
            axis.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
        axis.plot(
            at, values[there], label=name, color=colour,
            marker=marker, markevery=max(1, len(at) // marks), markersize=4.5,
        )  # fmt: skip


def _plain_ticks(axis: Axes, x: Array) -> None:
    """No epoch 2.5, and 512 tokens rather than powers of ten: along a logarithmic x, ticks stand
    at the values that were measured.
    """
    at = as_array(x)
    if axis.get_xscale() == "linear":
        if np.array_equal(at, np.round(at)):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    elif len(at) <= 9 and (at > 0).all():
        axis.set_xticks(at, [f"{value:,.6g}" for value in at])
        axis.xaxis.set_minor_locator(NullLocator())
    if axis.get_yscale() == "log":
        low, high = axis.get_ylim()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        axis.yaxis.set_minor_formatter(NullFormatter())


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
    errors: Mapping[str, tuple[Array, Array]] | None = None,
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
        errors: name of a series -> its lower and its upper bound, [G] each, such as those of a
            95 % interval.
        ylim: lowest and highest y.
        size: inches.
    """
    errors = errors or {}
    check_known("errors", errors, series)
    figure, axis = plt.subplots(figsize=size)
    at, width = np.arange(len(groups)), 0.8 / len(series)
    for i, (name, values) in enumerate(series.items()):
        heights = as_array(values)
        place = at + (i - (len(series) - 1) / 2) * width
        drawn = axis.bar(place, heights, 0.94 * width, label=name)
        if name in errors:
            _draw_errors(axis, place, *map(as_array, errors[name]))
        if len(series) * len(groups) > 14:  # labels would overlap
            continue
        if name in errors:
            _label_beyond(axis, place, heights, *map(as_array, errors[name]))
        else:
            axis.bar_label(drawn, fmt="%.2f", fontsize=8, padding=1.5, bbox=ON_WHITE)
    for name, dashes in each_its_own(baselines or {}, DASHES).items():
        axis.axhline(
            (baselines or {})[name], color=INK, linestyle=dashes, linewidth=1.4, label=name
        )
    for name, levels in (steps or {}).items():
        edges = (at - 0.46, at + 0.46)
        axis.hlines(
            as_array(levels), *edges, color=INK, label=name,
            linestyles="dotted" if baselines else "dashed",
        )  # fmt: skip
    if errors:  # room for the labels beyond the bounds
        axis.margins(y=0.1)
        plt.rcParams["axes.titlepad"] = 14  # in the house style only, as all of this function
    axis.set(title=title, ylabel=ylabel, xlabel=xlabel)
    axis.set_xticks(at, groups)
    axis.grid(visible=False, axis="x")
    if ylim is not None:
        axis.set_ylim(*ylim)
    if len(series) + len(baselines or {}) + len(steps or {}) > 1:
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _draw_errors(axis: Axes, place: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Thin bars from low to high with caps; their light edge keeps them seen on a dark bar."""
    edge = [patheffects.withStroke(linewidth=2.6, foreground="white", alpha=0.7)]
    axis.vlines(place, low, high, color=INK, linewidth=1.1, path_effects=edge)
    for end in (low, high):
        axis.plot(place, end, "_", color=INK, markersize=5, path_effects=edge)


def _label_beyond(
    axis: Axes, place: np.ndarray, heights: np.ndarray, low: np.ndarray, high: np.ndarray
) -> None:
    """Writes each height above the bound that lies above its bar; below, for a bar below 0."""
    for x, height, bottom, top in zip(place, heights, low, high, strict=True):
        up = height >= 0
        axis.annotate(
            f"{height:.2f}", (x, max(height, top) if up else min(height, bottom)),
            xytext=(0, 2.5 if up else -2.5), textcoords="offset points",
            ha="center", va="bottom" if up else "top", fontsize=8, bbox=ON_WHITE,
        )  # fmt: skip


@house_style
def intervals(
    rows: Mapping[str, Mapping[str, tuple[float, float, float]]],
    *,
    title: str,
    xlabel: str,
    baselines: Mapping[str, float] | None = None,
    xlim: tuple[float, float] | None = None,
    size: tuple[float, float] | None = None,
) -> Figure:
    """Dots with whiskers, rows from top to bottom, in each row the same series or some of them.

    Args:
        rows: name of a row -> name of a series -> (mean, low, high), such as a 95 % interval.
        title: the finding.
        xlabel: with unit.
        baselines: name -> level, dashed over all rows.
        xlim: lowest and highest x.
        size: inches; None is as high as the rows need.
    """
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    baselines = baselines or {}
    if size is None:
        size = (7, 1.4 + len(rows) * max(0.34, 0.17 * len(series)))
    figure, axis = plt.subplots(figsize=size)
    step = 0.64 / max(len(series), 2)
    for i, (name, (colour, marker)) in enumerate(each_its_own(series, LOOKS).items()):
        here = [(at, row[name]) for at, row in enumerate(rows.values()) if name in row]
        place = [at + (i - (len(series) - 1) / 2) * step for at, _ in here]
        mean, low, high = zip(*(values for _, values in here), strict=True)
        axis.hlines(place, low, high, color=colour, linewidth=1.8)
        axis.plot(mean, place, marker, color=colour, markersize=5.5, label=name)
    for name, dashes in each_its_own(baselines, DASHES).items():
        axis.axvline(baselines[name], color=INK, linestyle=dashes, linewidth=1.2, label=name)
    for border in range(1, len(rows)):
        axis.axhline(border - 0.5, color="#d8d8d8", linewidth=0.8, zorder=0)
    axis.set(title=title, xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5))
    axis.set_yticks(range(len(rows)), [fold_text(name, 0.33 * size[0], 10) for name in rows])
    axis.tick_params(axis="y", length=0)
    axis.grid(visible=False, axis="y")
    if xlim is not None:
        axis.set_xlim(*xlim)
    if len(series) + len(baselines) > 1:
        legend_below(figure, *axis.get_legend_handles_labels())
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
    values = [as_array(each) for each in series.values()]
    lowest, highest = min(v.min() for v in values), max(v.max() for v in values)
    edges = np.linspace(lowest, highest, bins + 1).tolist()
    for name, each, colour in zip(series, values, PALETTE, strict=False):
        axis.hist(each, edges, color=colour, alpha=0.35)
        axis.hist(each, edges, color=colour, histtype="step", linewidth=1.6, label=name)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axis.legend()
    return figure
