"""The house style: colours safe for colour-blind readers, on a light panel."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import matplotlib.pyplot as plt
import numpy as np
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
