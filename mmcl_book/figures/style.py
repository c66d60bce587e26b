"""The house style: colours safe for colour-blind readers, on a light panel."""

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from torch import Tensor

from mmcl_core.errors import MMCLError, ShapeError

# Okabe and Ito's palette: told apart with every common form of colour blindness.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, GREY = "#CC79A7", "#56B4E9", "#F0E442", "#666666"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY)
# A group that is named after a colour is drawn in it.
NAMED = {
    "red": RED, "green": GREEN, "blue": BLUE, "yellow": "#C8B900", "orange": ORANGE,
    "purple": PURPLE,
}  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("--", ":", "-.")
# Colours and markers that stand for a series; from the eighth on, colours return with others.
LOOKS = tuple((PALETTE[i % 7], MARKERS[(i + i // 7) % 7]) for i in range(14))

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
    # A line that runs under a legend is seen to go on, and the words stay readable.
    "legend.frameon": True,
    "legend.framealpha": 0.8,
    "legend.edgecolor": "none",
    "legend.facecolor": "white",
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
            _fold_panel_titles(figure)
            # Once is enough: to lay it out again in each drawing takes a third of a frame's time.
            figure.set_layout_engine("none")
        plt.close(figure)
        return figure

    return styled


def _fold_panel_titles(figure: Figure) -> None:
    """Breaks titles that run into the next panel, or out of the figure."""
    titles = {
        axis: axis.get_title(loc="left")
        for axis in figure.axes
        if axis.get_subplotspec() is not None  # colour bars have none
    }
    for _ in range(4):  # more lines leave less height, and that can make panels narrower
        folded = {}
        for axis, title in titles.items():
            ends = [other.bbox.x0 for other in titles if other.bbox.x0 > axis.bbox.x1]
            room = min([*ends, figure.bbox.x1]) - axis.bbox.x0
            folded[axis] = fold_text(title, room / figure.dpi - 0.1)
        if all(axis.get_title(loc="left") == title for axis, title in folded.items()):
            return
        for axis, title in folded.items():
            axis.set_title(title)
        figure.draw_without_rendering()


def fold_text(text: str, room: float, size: float = 11) -> str:
    """`text` in lines at most `room` inches wide, at a font size in points. No word is broken."""
    lines = []
    for line in text.split("\n"):
        if text_width(line, size) <= room:
            lines.append(line)
            continue
        kept = ""
        for word in re.findall(r"(?:\$[^$]*\$|\S)+", line):  # a formula is one word
            longer = f"{kept} {word}" if kept else word
            if kept and text_width(longer, size) > room:
                lines.append(kept)
                kept = word
            else:
                kept = longer
        lines.append(kept)
    return "\n".join(lines)


def text_width(text: str, size: float) -> float:
    """Inches that a line of text takes."""
    font, is_math = FontProperties(size=size), bool(is_math_text(text))
    return text_to_path.get_text_width_height_descent(text, font, is_math)[0] / 72


def headline(figure: Figure, title: str) -> None:
    """The title of a figure with several panels."""
    if title:
        room = 0.98 * figure.get_figwidth()
        figure.suptitle(fold_text(title, room), x=0.01, ha="left", fontsize=11)


def legend_below(figure: Figure, marks: Sequence[Any], names: Sequence[str]) -> None:
    """One legend for all panels, in as few rows as there is room for."""
    for columns in range(len(names), 0, -1):
        legend = figure.legend(marks, names, loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def each_its_own(names: Iterable[str], looks: Sequence[Any]) -> dict[str, Any]:
    """A look for each name; none is drawn like another, and none is left out."""
    names = list(names)
    if len(names) > len(looks):
        raise MMCLError(
            f"expected at most {len(looks)} series, to be told apart; got {len(names)}: {names}"
        )
    return dict(zip(names, looks, strict=False))


def colours_of(groups: Sequence[str]) -> list[str]:
    """A colour for each group."""
    if set(groups) <= set(NAMED):
        return [NAMED[name] for name in groups]
    return list(each_its_own(groups, PALETTE).values())


def check_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise MMCLError(f"{what}: expected names from {list(known)}; got {unknown}")


def as_array(values: Array) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def as_rgb(picture: Tensor) -> np.ndarray:
    """[3, H, W], uint8 or float in [0, 1], as matplotlib wants it: [H, W, 3]."""
    if picture.ndim != 3 or len(picture) != 3:
        raise ShapeError(f"expected a picture [3, H, W], got {list(picture.shape)}")
    return as_array(picture).transpose(1, 2, 0)
