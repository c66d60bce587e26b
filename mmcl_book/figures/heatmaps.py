"""Matrices as colours."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmcl_book.figures.style import Array, as_array, headline, house_style


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
        draw_matrix(
            axis, values, rows=rows if i == 0 else (), columns=columns,
            limits=bounds, cmap=colours, numbers=numbers,
        )  # fmt: skip
        axis.set(title=name, xlabel=xlabel, ylabel=ylabel if i == 0 else "")
        if not numbers:
            figure.colorbar(axis.images[0], ax=axis, shrink=0.85)
    headline(figure, title)
    return figure


def draw_matrix(
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
    values = as_array(matrix)
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
