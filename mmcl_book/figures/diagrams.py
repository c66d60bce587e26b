"""Diagrams of methods: boxes, and arrows with the shapes of what flows along them.

They are drawn on no background, in the colour of the text around them, so that they are read on a
light page and on a dark one.
"""

import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from mmcl_book.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, STYLE, text_width
from mmcl_core.errors import MMCLError

KINDS = {"data": GREY, "network": BLUE, "slow": PURPLE, "shared": GREEN, "loss": ORANGE}
_INK = "#010203"  # becomes the colour of the text around


class Box(NamedTuple):
    """A thing, or a step.

    Args:
        text: one line or several.
        column: place from left to right, 0 is the first; fractions are allowed.
        row: place from top to bottom, likewise.
        kind: "data"; "network", which is trained; "slow", which follows another one without a
            gradient; "shared" by several modalities; or "loss".
    """

    text: str
    column: float
    row: float
    kind: str = "data"


class Arrow(NamedTuple):
    """Something that flows.

    Args:
        start: the name of a box; likewise `end`.
        label: what flows, such as its shape.
        dashed: whether no gradient comes back along it.
        bend: curvature; 0 is straight, above 0 to the right of the way.
        at: where on the way the label stands, 0 to 1.
    """

    start: str
    end: str
    label: str = ""
    dashed: bool = False
    bend: float = 0.0
    at: float = 0.5


class Diagram:
    """A drawing as SVG; shown by notebooks and pages."""

    def __init__(self, svg: str) -> None:
        self.svg = svg

    def _repr_html_(self) -> str:
        # On a narrow screen it scrolls in a frame of its own, which the keyboard can reach.
        return f'<div class="diagram" tabindex="0" style="overflow-x: auto">{self.svg}</div>'


def diagram(
    boxes: Mapping[str, Box],
    arrows: Sequence[Arrow],
    *,
    alt: str,
    column: float = 1.7,
    row: float = 0.8,
) -> Diagram:
    """Draws boxes on a grid, and arrows between them.

    Args:
        boxes: name -> `Box`.
        arrows: between boxes.
        alt: what is seen, for readers who do not see it.
        column: width of a column in inches; four or five of 1.7 fit on a page.
        row: height of a row in inches.

    Raises:
        MMCLError: no boxes, an unknown kind, an arrow from or to a box that is not there, or no alt
            text.
    """
    _check(boxes, arrows, alt)
    columns = [box.column for box in boxes.values()]
    rows = [box.row for box in boxes.values()]
    width = (max(columns) - min(columns) + 1) * column
    height = (max(rows) - min(rows) + 1) * row
    with plt.rc_context(STYLE | {"svg.fonttype": "none", "svg.hashsalt": "diagram"}):
        figure = plt.figure(figsize=(width, height), layout="none")
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set(xlim=(0, width), ylim=(height, 0))  # inches; rows go down
        axis.axis("off")
        patches: dict[str, FancyBboxPatch] = {}
        for name, box in boxes.items():
            x = (box.column - min(columns) + 0.5) * column
            y = (box.row - min(rows) + 0.5) * row
            lines = box.text.split("\n")
            w = max(text_width(line, 9) for line in lines) + 0.16
            h = 0.165 * len(lines) + 0.13
            patches[name] = FancyBboxPatch(
                (x - w / 2, y - h / 2), w, h, boxstyle="round,pad=0,rounding_size=0.06",
                facecolor=f"{KINDS[box.kind]}33", edgecolor=KINDS[box.kind], linewidth=1.3,
            )  # fmt: skip
            axis.add_patch(patches[name])
            axis.text(
                x, y, box.text, size=9, color=_INK, ha="center", va="center", linespacing=1.25
            )
        for arrow in arrows:
            ends = [_centre(patches[name]) for name in (arrow.start, arrow.end)]
            axis.add_patch(
                FancyArrowPatch(
                    *ends, patchA=patches[arrow.start], patchB=patches[arrow.end],
                    shrinkA=1, shrinkB=1, arrowstyle="-|>,head_length=4,head_width=2", color=_INK,
                    linewidth=1, linestyle=(0, (4, 3)) if arrow.dashed else "-",
                    connectionstyle=f"arc3,rad={arrow.bend}",
                )
            )  # fmt: skip
            _write(axis, arrow, patches)
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    return Diagram(_inline(text.getvalue(), alt))


def _write(axis: plt.Axes, arrow: Arrow, patches: Mapping[str, FancyBboxPatch]) -> None:
    """The label of an arrow, beside the part of it that is seen."""
    if not arrow.label:
        return
    one, two = patches[arrow.start], patches[arrow.end]
    (x0, y0), (x1, y1) = _centre(one), _centre(two)
    if abs(x1 - x0) >= abs(y1 - y0):  # from side to side: above it, between the boxes
        sign = 1 if x1 > x0 else -1
        a, b = x0 + sign * one.get_width() / 2, x1 - sign * two.get_width() / 2
        x = a + arrow.at * (b - a)
        y = y0 + (x - x0) / (x1 - x0) * (y1 - y0) + arrow.bend * (x1 - x0) / 2 * 0.9
        # Its lower corner stays clear of a line that rises.
        y -= 0.06 + abs(y1 - y0) / abs(x1 - x0) * text_width(arrow.label, 8) / 2
        axis.text(x, y, arrow.label, size=8, color=_INK, ha="center", va="bottom")
    else:  # up or down: to the right of it
        sign = 1 if y1 > y0 else -1
        a, b = y0 + sign * one.get_height() / 2, y1 - sign * two.get_height() / 2
        y = a + arrow.at * (b - a)
        x = x0 + (y - y0) / (y1 - y0) * (x1 - x0) - arrow.bend * (y1 - y0) / 2 * 0.9
        axis.text(x + 0.07, y, arrow.label, size=8, color=_INK, ha="left", va="center")


def _centre(patch: FancyBboxPatch) -> tuple[float, float]:
    return patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2


def _inline(svg: str, alt: str) -> str:
    """The drawing for the middle of a page: named, without a size, with marks of its own."""
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    own = "d" + hashlib.sha256((svg + alt).encode()).hexdigest()[:8]
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{own}-", svg)  # pages may hold several
    name = html.escape(alt, quote=True)
    width = re.search(r'<svg[^>]*? width="([\d.]+)pt"', svg)
    assert width is not None  # matplotlib always writes it
    pixels = float(width[1]) * 4 / 3
    style = (
        f"width: 100%; min-width: {0.65 * pixels:.0f}px; max-width: {pixels:.0f}px; height: auto"
    )
    head = f'<svg role="img" aria-label="{name}" style="{style}"'
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", head, 1)


def _check(boxes: Mapping[str, Box], arrows: Sequence[Arrow], alt: str) -> None:
    if not boxes or not alt.strip():
        raise MMCLError("a diagram needs at least one box, and alt text that says what is seen")
    for name, box in boxes.items():
        if box.kind not in KINDS:
            raise MMCLError(f"{name}: kind must be one of {', '.join(KINDS)}; got {box.kind!r}")
    for arrow in arrows:
        if unknown := {arrow.start, arrow.end} - set(boxes):
            raise MMCLError(f"an arrow joins two of the boxes {list(boxes)}; got {sorted(unknown)}")
