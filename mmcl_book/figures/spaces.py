"""Points of an embedding space: on the unit circle, the unit sphere, or a map of two dimensions."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmcl_book.figures.style import (
    GREY,
    LOOKS,
    MARKERS,
    PALETTE,
    Array,
    as_array,
    check_known,
    colours_of,
    each_its_own,
    headline,
    house_style,
    legend_below,
)
from mmcl_core.errors import ShapeError


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
            for start, end in zip(*(as_array(groups[who]) for who in partners), strict=True):
                axis.plot(*zip(start, end, strict=True), color=GREY, linewidth=0.7, alpha=0.6)
        for i, (who, points) in enumerate(groups.items()):
            x, y = as_array(points).T
            axis.scatter(
                x, y, s=80 / (1 + 1.5 * i), color=PALETTE[i], marker=MARKERS[i], label=who, zorder=3
            )
            if arrows is not None and who in arrows:
                u, v = as_array(arrows[who]).T
                axis.quiver(
                    x, y, u, v, color=PALETTE[i], width=0.011, zorder=4,
                    angles="xy", scale_units="xy", scale=1,
                )  # fmt: skip
        axis.set(title=name, aspect="equal", xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
    legend_below(figure, *axes.flat[0].get_legend_handles_labels())
    headline(figure, title)
    return figure


@house_style
def points(
    panels: Mapping[str, Mapping[str, Array]],
    *,
    title: str,
    xlabel: str = "first direction",
    ylabel: str = "second direction",
    lines: tuple[str, str] | None = None,
    limits: tuple[float, float] | None = None,
    size: tuple[float, float] | None = None,
) -> Figure:
    """Maps in two dimensions side by side, colour and marker by group, the same in every panel.

    Args:
        panels: panel title -> name of a group -> points [N, 2].
        title: the finding.
        xlabel: the first dimension; likewise `ylabel`.
        lines: two groups whose rows are joined by a thin line, row i with row i, in every panel.
        limits: lowest and highest value of both axes; frames of a widget need them fixed. None is
            what the points of each panel need.
        size: inches; None is as high as square panels need.

    Raises:
        ShapeError: points that are not [N, 2], or groups to join of different sizes.
        MMCLError: `lines` names a group that a panel lacks, or there are too many groups.
    """
    looks = each_its_own(
        dict.fromkeys(group for groups in panels.values() for group in groups), LOOKS
    )
    if size is None:
        size = (4.6, 5.0) if len(panels) == 1 else (7.5, 7.5 / len(panels) + 1.0)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False)
    for axis, (name, groups) in zip(axes[0], panels.items(), strict=True):
        draw_map(axis, groups, looks, lines, limits)
        axis.set(title=name, xlabel=xlabel, ylabel=ylabel if axis is axes[0][0] else "")
    if len(looks) > 1:
        legend_below(figure, legend_marks(looks), list(looks))
    headline(figure, title)
    return figure


def draw_map(
    axis: Axes,
    groups: Mapping[str, Array],
    looks: Mapping[str, tuple[str, str]],
    lines: tuple[str, str] | None,
    limits: tuple[float, float] | None,
) -> None:
    """Points of each group on `axis`, square, perhaps joined by lines."""
    at = {group: as_array(values) for group, values in groups.items()}
    for group, values in at.items():
        if values.ndim != 2 or values.shape[1] != 2:
            raise ShapeError(f"{group}: expected points [N, 2], got {list(values.shape)}")
    if lines is not None:
        check_known("lines", lines, groups)
        _join(axis, *(at[group] for group in lines))
    for group, values in at.items():
        colour, marker = looks[group]
        axis.scatter(
            values[:, 0], values[:, 1], s=18, color=colour, marker=marker, linewidths=0, alpha=0.85
        )
    axis.set_box_aspect(1)
    axis.set_aspect("equal", adjustable="datalim")
    axis.locator_params(nbins=5)  # more would touch each other in a small panel
    if limits is not None:
        axis.set(xlim=limits, ylim=limits)


def legend_marks(looks: Mapping[str, tuple[str, str]]) -> list[Line2D]:
    """What stands for each group in a legend."""
    return [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=5)
        for colour, marker in looks.values()
    ]


def _join(axis: Axes, start: np.ndarray, end: np.ndarray) -> None:
    """Thin lines from each row of `start` [N, 2] to that of `end`."""
    if start.shape != end.shape:
        raise ShapeError(
            f"expected as many points at both ends of the lines, got {len(start)} and {len(end)}"
        )
    ends = list(np.stack([start, end], axis=1))
    axis.add_collection(LineCollection(ends, colors=GREY, linewidths=0.6, alpha=0.5, zorder=0.9))


@house_style
def spheres(
    panels: Mapping[str, Mapping[str, Array]],
    groups: Array,
    *,
    group_names: Sequence[str],
    title: str,
    lines: tuple[str, str] | None = None,
    view: tuple[float, float] = (20.0, 30.0),
    columns: int = 3,
    panel: float = 2.5,
) -> Figure:
    """Points on the unit sphere, seen from far away: colours are groups, markers are sides.

    What lies on the back of the sphere is fainter.

    Args:
        panels: panel title -> side (such as "complete") -> unit vectors [N, 3]. All panels have the
            same sides.
        groups: int64 [N], the group of each row.
        group_names: name of each group; groups named after colours are drawn in these.
        title: the finding.
        lines: two sides whose rows are joined, row i with row i.
        view: where the reader stands, as degrees of latitude and of longitude.
        columns: panels in a row.
        panel: width of a panel in inches.

    Raises:
        ShapeError: points that are not [N, 3] with N groups.
        MMCLError: `lines` names a side that a panel lacks, or there are too many sides or groups.
    """
    colours = colours_of(group_names)
    sides = each_its_own(next(iter(panels.values())), MARKERS)
    number, turn = as_array(groups), _turned(*view)
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    size = (panel * columns, (panel + 0.2) * rows + 0.45 + 0.3 * bool(title))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, points) in zip(axes.flat, panels.items(), strict=False):
        at = {side: _seen(side, values, len(number), turn) for side, values in points.items()}
        _draw_globe(axis, turn)
        if lines is not None:
            check_known("lines", lines, points)
            _join(axis, *(at[side][:, :2] for side in lines))
        for side, xyz in at.items():
            shades = np.array([to_rgba(colours[int(group)]) for group in number])
            front = xyz[:, 2] >= 0
            shades[~front, 3] = 0.25
            for part, order in ((~front, 2), (front, 3)):
                axis.scatter(
                    *xyz[part, :2].T, s=22, c=shades[part], marker=sides[side], linewidths=0,
                    zorder=order,
                )  # fmt: skip
        axis.set(title=name, aspect="equal", xlim=(-1.08, 1.08), ylim=(-1.08, 1.08))
    marks = [Line2D([], [], color=c, marker="o", linestyle="", markersize=5) for c in colours]
    marks += [
        Line2D([], [], color="#222222", marker=marker, linestyle="", markersize=5)
        for marker in sides.values()
    ]
    legend_below(figure, marks, [*group_names, *sides])
    headline(figure, title)
    return figure


def _turned(latitude: float, longitude: float) -> np.ndarray:
    """What brings a point to where the reader sees it, [3, 3]: to the right, up, to the reader."""
    a, b = np.radians([latitude, longitude])
    return np.array(
        [
            [-np.sin(b), np.cos(b), 0.0],
            [-np.sin(a) * np.cos(b), -np.sin(a) * np.sin(b), np.cos(a)],
            [np.cos(a) * np.cos(b), np.cos(a) * np.sin(b), np.sin(a)],
        ]
    )


def _seen(side: str, points: Array, n: int, turn: np.ndarray) -> np.ndarray:
    values = as_array(points)
    if values.shape != (n, 3):
        raise ShapeError(f"{side}: expected points [{n}, 3], got {list(values.shape)}")
    return values @ turn.T


def _draw_globe(axis: Axes, turn: np.ndarray) -> None:
    """The edge, six meridians and five parallels; those on the back are fainter."""
    t = np.linspace(0, 2 * np.pi, 181)
    axis.fill(np.cos(t), np.sin(t), color="#f6f6f6", zorder=0)
    axis.plot(np.cos(t), np.sin(t), color="#bbbbbb", linewidth=1, zorder=0.5)
    half = np.linspace(-np.pi / 2, np.pi / 2, 61)
    ways = [
        np.stack([np.cos(half) * np.cos(b), np.cos(half) * np.sin(b), np.sin(half)], axis=1)
        for b in np.radians(range(0, 360, 60))
    ]
    ways += [
        np.stack([np.cos(a) * np.cos(t), np.cos(a) * np.sin(t), np.full_like(t, np.sin(a))], axis=1)
        for a in np.radians(range(-60, 90, 30))
    ]
    for way in ways:
        x, y, z = (way @ turn.T).T
        for part, colour in ((z < 0, "#ececec"), (z >= 0, "#d4d4d4")):
            axis.plot(
                np.where(part, x, np.nan), np.where(part, y, np.nan), color=colour, linewidth=0.7,
                zorder=0.6,
            )  # fmt: skip
