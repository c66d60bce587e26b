"""A card of scores: how far each method gets in each problem, from guessing to the best."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from mmcl_book.figures.style import house_style


@house_style
def scorecard(
    rows: Sequence[str],
    columns: Mapping[str, Sequence[float | None]],
    *,
    places: Mapping[str, Sequence[float | None]],
    title: str,
    size: tuple[float, float] = (8.4, 3.8),
) -> Figure:
    """Numbers in cells, the darker the better; a cell without a number is hatched.

    Args:
        rows: R names, such as those of methods.
        columns: name of a column -> R numbers to write.
        places: name of a column -> R places to colour, from 0, as guessing, to 1, the best.
        title: the finding.
        size: inches.
    """
    figure, axis = plt.subplots(figsize=size)
    colours = plt.get_cmap("Blues")
    for x, (name, values) in enumerate(columns.items()):
        for y, (value, place) in enumerate(zip(values, places[name], strict=True)):
            if value is None or place is None:
                axis.add_patch(
                    plt.Rectangle((x, y), 1, 1, facecolor="white", edgecolor="#d8d8d8", hatch="///")
                )
                continue
            at = float(np.clip(place, 0, 1))
            fill = colours(0.05 + 0.8 * at)
            axis.add_patch(plt.Rectangle((x, y), 1, 1, facecolor=fill, edgecolor="white"))
            ink = "white" if at > 0.6 else "#222222"
            axis.text(
                x + 0.5, y + 0.5, f"{value:.2f}", ha="center", va="center", color=ink,
                fontsize=10,
            )  # fmt: skip
    axis.set(xlim=(0, len(columns)), ylim=(len(rows), 0), title=title)
    axis.set_xticks([i + 0.5 for i in range(len(columns))], list(columns), fontsize=9)
    axis.set_yticks([i + 0.5 for i in range(len(rows))], rows)
    axis.tick_params(length=0)
    axis.grid(visible=False)
    for side in axis.spines.values():
        side.set_visible(False)
    ends = plt.cm.ScalarMappable(cmap=colours)
    ends.set_clim(-0.05 / 0.8, 1 + 0.15 / 0.8)
    bar = figure.colorbar(ends, ax=axis, shrink=0.8, pad=0.02, boundaries=np.linspace(0, 1, 101))
    bar.set_ticks([0, 1], labels=["as guessing", "the best"])
    bar.outline.set_visible(False)
    return figure
