"""Points of an embedding space: on the unit circle, or on a map in two dimensions."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmcl_core.errors import ShapeError
from mmcl_core.figures.style import (
    GREY,
    LOOKS,
    MARKERS,
    PALETTE,
    Array,
    _array,
    _each_its_own,
    _headline,
    _known,
    _legend_below,
    house_style,
)


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
    _legend_below(figure, *axes.flat[0].get_legend_handles_labels())
    _headline(figure, title)
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
    looks = _each_its_own(
        dict.fromkeys(group for groups in panels.values() for group in groups), LOOKS
    )
    if size is None:
        size = (4.6, 5.0) if len(panels) == 1 else (7.5, 7.5 / len(panels) + 1.0)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False)
    for axis, (name, groups) in zip(axes[0], panels.items(), strict=True):
        _draw_map(axis, groups, looks, lines, limits)
        axis.set(title=name, xlabel=xlabel, ylabel=ylabel if axis is axes[0][0] else "")
    if len(looks) > 1:
        _legend_below(figure, _marks(looks), list(looks))
    _headline(figure, title)
    return figure


def _draw_map(
    axis: Axes,
    groups: Mapping[str, Array],
    looks: Mapping[str, tuple[str, str]],
    lines: tuple[str, str] | None,
    limits: tuple[float, float] | None,
) -> None:
    """Points of each group on `axis`, square, perhaps joined by lines."""
    at = {group: _array(values) for group, values in groups.items()}
    for group, values in at.items():
        if values.ndim != 2 or values.shape[1] != 2:
            raise ShapeError(f"{group}: expected points [N, 2], got {list(values.shape)}")
    if lines is not None:
        _known("lines", lines, groups)
        _join(axis, *(at[group] for group in lines))
    for group, values in at.items():
        colour, marker = looks[group]
        axis.scatter(
            values[:, 0], values[:, 1], s=18, color=colour, marker=marker, linewidths=0, alpha=0.85
        )
    axis.set_box_aspect(1)
    axis.set_aspect("equal", adjustable="datalim")
    if limits is not None:
        axis.set(xlim=limits, ylim=limits)


def _marks(looks: Mapping[str, tuple[str, str]]) -> list[Line2D]:
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
