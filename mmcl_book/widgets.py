"""Interactive figures that move in a built page, where no Python runs.

A page without a kernel cannot call back into Python: an `interact` or an `observe` stays frozen
there. What does work is a link between two widgets in the browser. So `scrub` draws every frame
beforehand and links a slider to the choice of the frame. Where not even that works (in print,
without JavaScript, before it has come), its first frame stands as plain HTML.

It is ours: `matplotlib.animation` has one slider and large pictures, and Plotly and Bokeh bring
megabytes of script to each page.
"""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from itertools import product
from math import ceil, floor
from typing import TYPE_CHECKING, Any

from PIL import Image

from mmcl_core.errors import MMCLError

if TYPE_CHECKING:
    from ipywidgets import Widget

CONTROLS = ("slider", "dropdown", "radio")


def scrub(
    frames: Sequence[Any] | Callable[..., Any],
    labels: Sequence[Any] | Mapping[str, Sequence[Any]],
    *,
    alt: str | Sequence[str],
    description: str = "",
    moving: str = "",
    control: str | Sequence[str] = "slider",
    start: int | Sequence[int] = 0,
    dpi: int = 110,
) -> Widget:
    """A figure that changes with a slider, a drop-down or radio buttons, drawn beforehand.

    One control::

        scrub(draw, [0.05, 0.1, 0.5], description="temperature", alt="Similarity matrix of 8 pairs")

    Several controls, here with 3 x 2 frames::

        scrub(draw, {"temperature": [0.05, 0.1, 0.5], "image": ["on", "off"]}, alt="...",
              control=["slider", "radio"])

    Args:
        frames: one picture for each label, or for each combination of labels with the last control
            moving fastest. A picture is a matplotlib figure (which is closed here, so that the
            notebook does not show it a second time), a PIL image, or the bytes of an image file.
            Or a function that is called with one label of each control and returns a picture.
        labels: the positions of the control; or, for several controls, a mapping from each
            control's description to its positions. Shown as `str(label)`, which must differ.
        alt: what is seen, for readers who do not see it: one text, to which the position is added
            ("...; temperature: 0.1"), or one text a frame.
        description: the name beside the control, when there is one control.
        moving: a sentence on what would be seen to change, for readers of a page that cannot move:
            it stands below the first frame in print and without JavaScript.
        control: "slider", "dropdown" or "radio": one for all controls, or one each.
        start: the position at the beginning, as an index: one for all controls, or one each.
        dpi: pixels an inch at which matplotlib figures are drawn. At 110, a figure of 7 x 3.5
            inches is 770 x 385 pixels.

    Frames are stored as WebP, in the smaller of lossless form with 256 colours and lossy form: a
    line plot or a heat map of 7 x 3.5 inches takes 6 to 15 kB, a page of small photographs about
    30 kB. A page, with all its widgets, should stay under 3 MB, which is about 100 frames.

    Returns a widget: let it be the last line of a cell. With ipywidgets 8 it needs no kernel. With
    ipywidgets 7 (Colab), which has no `Stack`, the same call gives a figure moved by a callback.

    Raises:
        MMCLError: no frames or labels, as many frames as there are not labels, labels that look
            alike, no alt text, an unknown control, a start outside the range, or something in
            `frames` that is not a picture.
    """
    axes = _axes(labels, description)
    names, positions = list(axes), list(axes.values())
    kinds = _one_each(control, str, len(axes), "control")
    starts = _one_each(start, int, len(axes), "start")
    for name, values, kind, first in zip(names, positions, kinds, starts, strict=True):
        if kind not in CONTROLS:
            raise MMCLError(f"control must be one of {CONTROLS}, got {kind!r}.")
        if not 0 <= first < len(values):
            raise MMCLError(
                f"start must be from 0 to {len(values) - 1} for {name!r}, which has "
                f"{len(values)} positions; got {first}."
            )
    alts = _alt_texts(alt, axes)
    pictures = _pictures(frames, labels, len(alts), dpi)
    tags = _img_tags(pictures, alts)
    return _assemble(tags, axes, kinds, starts, _still(tags, axes, starts, moving))


def _axes(labels: Any, description: str) -> dict[str, list[str]]:
    """The controls, in order: {description: texts of its positions}."""
    given = labels if isinstance(labels, Mapping) else {description: labels}
    axes = {name: [str(label) for label in values] for name, values in given.items()}
    if not axes:
        raise MMCLError("labels names no control; give at least one, with its positions.")
    for name, texts in axes.items():
        if not texts:
            raise MMCLError(f"the control {name!r} has no labels; give at least one.")
        if len(set(texts)) != len(texts):
            alike = sorted({text for text in texts if texts.count(text) > 1})
            raise MMCLError(
                f"the labels of {name!r} must differ when printed; these come twice: {alike}. "
                "Round them less, or name them."
            )
    return axes


def _one_each(value: Any, kind: type, count: int, name: str) -> list[Any]:
    """`value` for each of `count` controls: repeated if it is single, else checked for length."""
    values = [value] * count if isinstance(value, kind) else list(value)
    if len(values) != count:
        raise MMCLError(f"{name} has {len(values)} values for {count} controls; give one each.")
    return values


def _alt_texts(alt: str | Sequence[str], axes: dict[str, list[str]]) -> list[str]:
    """One alt text for each combination of positions, the last control moving fastest."""
    combinations = list(product(*axes.values()))
    texts = [alt] * len(combinations) if isinstance(alt, str) else list(alt)
    if len(texts) != len(combinations):
        raise MMCLError(
            f"alt has {len(texts)} texts for {len(combinations)} frames; give one text, or one a "
            "frame."
        )
    if not all(text.strip() for text in texts):
        raise MMCLError(
            "alt is empty; say what is seen in the figure, for readers who do not see it."
        )
    if not isinstance(alt, str):
        return texts
    names = [f"{name}: " if name else "" for name in axes]
    return [
        "; ".join([alt, *(name + label for name, label in zip(names, at, strict=True))])
        for at in combinations
    ]


def _pictures(frames: Any, labels: Any, count: int, dpi: int) -> list[Image.Image]:
    """All frames, drawn, in RGB and of one size, the same things at the same place in each."""
    if callable(frames):
        values = list(labels.values()) if isinstance(labels, Mapping) else [labels]
        # Each is drawn at once: the function may use one figure again and again.
        drawn = [_draw(frames(*at), dpi) for at in product(*map(list, values))]
    else:
        drawn = [_draw(frame, dpi) for frame in frames]
    if len(drawn) != count:
        raise MMCLError(
            f"there are {len(drawn)} frames for {count} combinations of labels; give one each."
        )
    left = min(x for _, x, _ in drawn)
    top = min(y for _, _, y in drawn)
    right = max(x + picture.width for picture, x, _ in drawn)
    bottom = max(y + picture.height for picture, _, y in drawn)
    pictures = []
    for picture, x, y in drawn:
        canvas = Image.new("RGB", (right - left, bottom - top), "white")
        canvas.paste(picture, (x - left, y - top))
        pictures.append(canvas)
    return pictures


def _draw(frame: Any, dpi: int) -> tuple[Image.Image, int, int]:
    """A frame as an RGB image on white, and the place (x, y) of its upper left corner in pixels.

    A figure is cropped to what is drawn in it; its place tells where the crop was, so that axes
    stand still from frame to frame. Other pictures are placed by their centre.
    """
    if hasattr(frame, "savefig"):
        return _draw_figure(frame, dpi)
    if isinstance(frame, bytes):
        try:
            frame = Image.open(BytesIO(frame))
            frame.load()
        except OSError as error:
            raise MMCLError(f"a frame of {len(frame)} bytes is no image file: {error}") from None
    if not isinstance(frame, Image.Image):
        raise MMCLError(
            "a frame must be a matplotlib figure, a PIL image or the bytes of an image file, got "
            f"{type(frame).__name__}."
        )
    rgba = frame.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    picture = Image.alpha_composite(white, rgba).convert("RGB")
    return picture, -(picture.width // 2), -(picture.height // 2)


def _draw_figure(figure: Any, dpi: int) -> tuple[Image.Image, int, int]:
    """Draw a matplotlib figure, cropped to whole pixels, and close it."""
    # Imported here: matplotlib is slow to import, and a figure's maker has imported it anyway.
    import matplotlib.pyplot as plt
    from matplotlib.transforms import Bbox

    # The layout settles in a first drawing; before, there is no extent to ask for.
    figure.draw_without_rendering()
    x0, y0, x1, y1 = figure.get_tightbbox().padded(0.08).extents * dpi
    left, bottom, right, top = floor(x0), floor(y0), ceil(x1), ceil(y1)
    crop = Bbox([[left / dpi, bottom / dpi], [right / dpi, top / dpi]])
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", bbox_inches=crop)
    plt.close(figure)
    # matplotlib counts from the bottom, pictures from the top.
    return Image.open(buffer).convert("RGB"), left, -top


def _webp(picture: Image.Image) -> bytes:
    """The picture as WebP: few colours and lossless, or lossy, whichever is smaller."""
    # Without dithering: its noise would cost more than the colours that it saves.
    few = picture.quantize(256, dither=Image.Dither.NONE).convert("RGB")
    lossless, lossy = BytesIO(), BytesIO()
    few.save(lossless, "WEBP", lossless=True, quality=80, method=4)
    picture.save(lossy, "WEBP", quality=88, method=4)
    return min(lossless.getvalue(), lossy.getvalue(), key=len)


def _img_tags(pictures: list[Image.Image], alts: list[str]) -> list[str]:
    """HTML for each frame. Width and height keep the place while the browser decodes."""
    style = "display:block;max-width:100%;height:auto;background:white"
    return [
        f'<img src="data:image/webp;base64,{b64encode(_webp(picture)).decode()}" '
        f'alt="{html.escape(alt)}" width="{picture.width}" height="{picture.height}" '
        f'decoding="sync" style="{style}">'
        for picture, alt in zip(pictures, alts, strict=True)
    ]


def _controls(axes: dict[str, list[str]], kinds: list[str], starts: list[int]) -> list[Any]:
    """One ipywidgets control for each axis."""
    import ipywidgets

    classes = {
        "slider": ipywidgets.SelectionSlider,
        "dropdown": ipywidgets.Dropdown,
        "radio": ipywidgets.RadioButtons,
    }
    return [
        classes[kind](
            options=texts,
            index=first,
            description=name,
            style={"description_width": "initial"},
            layout=ipywidgets.Layout(width="min(100%, 30em)"),
        )
        for (name, texts), kind, first in zip(axes.items(), kinds, starts, strict=True)
    ]


def _still(tags: list[str], axes: dict[str, list[str]], starts: list[int], moving: str) -> str:
    """HTML of the frame at the beginning, where each control stands, and what moving would show."""
    places = []
    for (name, texts), first in zip(axes.items(), starts, strict=True):
        choices = ", ".join(texts) if len(texts) <= 4 else f"{texts[0]} to {texts[-1]}"
        places.append(f"{name or 'position'} {texts[first]} (of {choices})")
    tag = tags[_index(starts, [len(texts) for texts in axes.values()])]
    text = html.escape(f"A figure to play with, here standing still at {'; '.join(places)}.")
    change = f' <span class="mmcl-moving">{html.escape(moving)}</span>' if moving else ""
    return f'<div class="mmcl-still">{tag}<p>{text}{change}</p></div>'


def _index(positions: Sequence[int], sizes: Sequence[int]) -> int:
    """The number of a combination of positions, the last one moving fastest."""
    at = 0
    for position, size in zip(positions, sizes, strict=True):
        at = at * size + position
    return at


def _assemble(
    tags: list[str], axes: dict[str, list[str]], kinds: list[str], starts: list[int], still: str
) -> Widget:
    """Controls above the picture, linked in the browser where ipywidgets can do so."""
    import ipywidgets

    class Scrub(ipywidgets.VBox):
        """A box that says, too, what a page shows which draws no widgets."""

        def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
            return {**super()._repr_mimebundle_(**kwargs), "text/html": still}

    controls = _controls(axes, kinds, starts)
    if hasattr(ipywidgets, "Stack"):
        box = Scrub([*controls, _linked_picture(tags, controls)])
    else:
        box = ipywidgets.VBox([*controls, _live_picture(tags, controls)])
    box.add_class("mmcl-scrub")
    return box


def _linked_picture(tags: list[str], controls: list[Any]) -> Widget:
    """All frames in nested stacks: each control turns every stack of its own level."""
    import ipywidgets

    # Shared by all frames: each model of its own would add about 1 kB to the page.
    layout, style = ipywidgets.Layout(), ipywidgets.HTML().style

    def nest(part: list[str], level: int) -> Widget:
        if level == len(controls):
            return ipywidgets.HTML(part[0], layout=layout, style=style)
        control = controls[level]
        size = len(part) // len(control.options)
        children = [nest(part[i : i + size], level + 1) for i in range(0, len(part), size)]
        stack = ipywidgets.Stack(children=children, selected_index=control.index)
        ipywidgets.jslink((control, "index"), (stack, "selected_index"))
        return stack

    return nest(tags, 0)


def _live_picture(tags: list[str], controls: list[Any]) -> Widget:
    """One frame, exchanged by Python: for ipywidgets 7, which has no `Stack`."""
    import ipywidgets

    sizes = [len(control.options) for control in controls]

    def current() -> str:
        return tags[_index([control.index for control in controls], sizes)]

    picture = ipywidgets.HTML(current())

    def show(_change: object) -> None:
        picture.value = current()

    for control in controls:
        control.observe(show, "index")
    return picture
