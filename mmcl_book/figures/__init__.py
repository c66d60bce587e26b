"""Every plot of the book: one house style, safe for colour-blind readers, on a light panel.

A function here takes numbers that were computed elsewhere and returns a matplotlib `Figure`, as
the last line of a cell or as a frame of `mmcl_book.widgets.scrub`. It computes nothing itself.
Titles are findings, and the caller writes them: only the caller knows what was found.
"""

from mmcl_book.figures.charts import bars, curve_panels, curves, histograms, intervals
from mmcl_book.figures.diagrams import Arrow, Box, diagram
from mmcl_book.figures.frames import map_and_curves
from mmcl_book.figures.heatmaps import matrices
from mmcl_book.figures.pictures import overlays, pairs, scenes
from mmcl_book.figures.scores import scorecard
from mmcl_book.figures.spaces import circles, points, spheres
from mmcl_book.figures.style import (
    BLUE,
    GREEN,
    GREY,
    MARKERS,
    ORANGE,
    PALETTE,
    PURPLE,
    RED,
    SKY,
    STYLE,
    YELLOW,
    house_style,
)
from mmcl_book.figures.tokens import token_card

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "MARKERS",
    "ORANGE",
    "PALETTE",
    "PURPLE",
    "RED",
    "SKY",
    "STYLE",
    "YELLOW",
    "Arrow",
    "Box",
    "bars",
    "circles",
    "curve_panels",
    "curves",
    "diagram",
    "histograms",
    "house_style",
    "intervals",
    "map_and_curves",
    "matrices",
    "overlays",
    "pairs",
    "points",
    "scenes",
    "scorecard",
    "spheres",
    "token_card",
]
