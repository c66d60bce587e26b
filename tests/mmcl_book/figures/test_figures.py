"""Figures: each draws what it is given, once, without a warning, and says what it cannot draw."""

import re
import warnings
from io import BytesIO
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from mmcl_book import figures
from mmcl_core.errors import MMCLError, ShapeError

PICTURES = torch.rand(5, 3, 24, 24)
EDGES = torch.tensor([9, 0, 30, -1, 20])[:, None, None]  # also nothing and all of a picture
POINTS = {"pictures": torch.randn(20, 2), "captions": torch.randn(20, 2)}
SPHERE = {side: F.normalize(torch.randn(20, 3), dim=1) for side in ("complete", "picture")}

DRAWINGS = {
    "scenes": lambda: figures.scenes(PICTURES, ["a red circle"] * 5, title="Found", columns=3),
    "scenes without words": lambda: figures.scenes(PICTURES),
    "curves": lambda: figures.curves(
        range(1, 30), {"a": range(29), "b": torch.arange(29)}, title="Found", xlabel="epoch",
        ylabel="loss (nats)", baselines={"chance": 3.0}, yscale="linear",
    ),
    "bars": lambda: figures.bars(
        ["x", "y"], {"a": [0.1, 0.2], "b": [0.3, 0.4]}, title="Found", ylabel="share",
        baselines={"chance": 0.2}, steps={"commonest": [0.1, 0.2]}, ylim=(0, 1),
    ),
    "matrices": lambda: figures.matrices(
        {"cosine": torch.rand(3, 4), "softmax": torch.rand(3, 4)}, title="Found",
        rows=["a", "b", "c"], limits=[(0, 1), None], numbers=".2f",
    ),
    "bands": lambda: figures.curves(
        range(9), {"a": range(9), "b": range(9)}, title="Found", xlabel="x", ylabel="y",
        bands={"b": (range(9), range(1, 10))},
    ),
    "errors": lambda: figures.bars(
        ["x", "y"], {"a": [0.1, -0.2], "b": [0.3, 0.4]}, title="Found", ylabel="share",
        errors={"a": ([0.0, -0.3], [0.2, -0.1])},
    ),
    "intervals": lambda: figures.intervals(
        {"colour": {"named": (0.9, 0.8, 1.0), "left out": (0.4, 0.3, 0.5)},
         "shape": {"left out": (0.5, 0.3, 0.6)}},
        title="Found", xlabel="accuracy (share)", baselines={"chance": 0.25}, xlim=(0, 1),
    ),
    "points": lambda: figures.points(
        {"start": POINTS, "end": POINTS}, title="Found", lines=("pictures", "captions"),
        limits=(-4, 4),
    ),
    "points of ten groups": lambda: figures.points(
        {"": {f"digit {i}": torch.randn(3, 2) for i in range(10)}}, title="Found"
    ),
    "overlays": lambda: figures.overlays(
        PICTURES, torch.rand(5, 4, 4), ["red"] * 5, title="Found", label="cosine",
        outlines=torch.arange(24).expand(5, 24, 24) > EDGES,
    ),
    "overlays of bytes": lambda: figures.overlays(
        (255 * PICTURES).byte(), torch.zeros(5, 2, 2), title="Found"
    ),
    "pairs": lambda: figures.pairs(PICTURES, torch.rand(5, 5), title="Found"),
    "spheres": lambda: figures.spheres(
        {f"epoch {i}": SPHERE for i in range(4)}, torch.arange(20) % 3, group_names="abc",
        title="Found", lines=("complete", "picture"),
    ),
    "circles": lambda: figures.circles(
        {"start": POINTS, "end": POINTS}, title="Found", arrows={"pictures": torch.randn(20, 2)},
        partners=("pictures", "captions"),
    ),
    "map_and_curves": lambda: figures.map_and_curves(
        POINTS, [0, 0.5, 1], {"recall": {"both": [0.7, 0.6, 0.5]}, "loss": {"a": [1, 2, 3],
        "b": [2, 2, 2]}}, at=0.5, title="Found", xlabel="distance", limits=(-3, 3),
        lines=("pictures", "captions"), ylims={"loss": (0, 4)},
    ),
    "token_card": lambda: figures.token_card(
        PICTURES, [0, 3, 5, 15, 9], {"red": 0.6, "crimson": 0.4}, {"colour: red": 0.9}, grid=4,
        title="Found",
    ),
    "token_card that nobody calls": lambda: figures.token_card(
        PICTURES[:0], [], {}, {"colour: red": 0.0, "shape: ring": 0.2}, grid=4, title="Found"
    ),
    "curve_panels": lambda: figures.curve_panels(
        range(9), {"gap": {"a": range(9)}, "cone": {"a": range(9)}}, title="Found", xlabel="step",
        baselines={"gap": 1.0}, bands={"cone": {"a": (range(9), range(9))}},
    ),
    "histograms": lambda: figures.histograms(
        {"own": torch.randn(50), "other": torch.randn(50)}, title="Found", xlabel="cosine",
        ylabel="pictures",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWINGS)
def test_it_draws_and_leaves_nothing_open(name: str) -> None:
    style = dict(plt.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = DRAWINGS[name]()
        figure.savefig(buffer := BytesIO(), format="png", dpi=50)
    assert isinstance(figure, Figure)
    assert not plt.get_fignums(), "an open figure would be shown a second time in a notebook"
    assert dict(plt.rcParams) == style
    assert len(Image.open(buffer).convert("RGB").getcolors(10**6)) > 5, "nothing was painted"


def test_text_of_a_figure_is_in_it() -> None:
    figure = figures.bars(
        ["x", "y"], {"a": [0.1, 0.25]}, title="A finding", ylabel="recall (share)"
    )
    texts = [t.get_text() for t in figure.findobj(plt.Text)]
    assert {"A finding", "recall (share)", "0.25", "x"} <= set(texts)


def test_what_is_no_picture_is_named() -> None:
    with pytest.raises(ShapeError, match=r"\[3, H, W\], got \[1, 8, 8\]"):
        figures.scenes(torch.rand(2, 1, 8, 8))


LONG = (
    "A model that was told of colour in each caption, and of texture in none, finds the texture "
    "almost as well as it finds colours"
)
TITLED = {
    "curves": lambda t: figures.curves([1, 2], {"a": [1, 2]}, title=t, xlabel="x", ylabel="y"),
    "curve_panels": lambda t: figures.curve_panels(
        [1, 2], {"a": {"s": [1, 2]}, "b": {"s": [1, 2]}}, title=t, xlabel="x"
    ),
    "bars": lambda t: figures.bars(["x"], {"a": [1], "b": [2]}, title=t, ylabel="y"),
    "intervals": lambda t: figures.intervals({LONG: {"a": (1, 0, 2)}}, title=t, xlabel="x"),
    "points": lambda t: figures.points({"a": POINTS}, title=t),
    "overlays": lambda t: figures.overlays(PICTURES, torch.rand(5, 2, 2), title=t),
    "scenes": lambda t: figures.scenes(PICTURES, title=t),
    "pairs": lambda t: figures.pairs(PICTURES, torch.rand(5, 5), title=t),
    "matrices": lambda t: figures.matrices({"a": torch.rand(2, 2)}, title=t),
    "circles": lambda t: figures.circles({"a": POINTS}, title=t),
    "histograms": lambda t: figures.histograms({"a": [1.0]}, title=t, xlabel="x", ylabel="y"),
}


@pytest.mark.parametrize("name", TITLED)
def test_a_long_title_is_folded_and_a_short_one_is_not(name: str) -> None:
    figure = TITLED[name](LONG)
    [box, *_] = [
        text.get_window_extent()
        for text in figure.findobj(plt.Text)
        if text.get_text() != LONG and text.get_text().replace("\n", " ") == LONG
    ]
    assert figure.bbox.x0 <= box.x0
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1
    assert "Found" in texts_of(TITLED[name]("Found"))


def test_long_names_stay_in_the_figure() -> None:
    rows = {LONG: {f"{i}: {LONG[:40]}": (i, i - 1, i + 1) for i in range(4)}}
    figure = figures.intervals(rows, title="t", xlabel="x")
    texts = [t for t in figure.findobj(plt.Text) if t.get_text().replace("\n", " ")[3:40] in LONG]
    boxes = [t.get_window_extent() for t in texts if len(t.get_text()) > 20]
    assert len(boxes) >= 5
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(plt.Text)]


def test_a_panel_title_ends_before_the_next_panel() -> None:
    figure = figures.points({LONG: POINTS, "next": POINTS}, title="Found")
    [title] = [t for t in figure.findobj(plt.Text) if t.get_text().replace("\n", " ") == LONG]
    assert title.get_window_extent().x1 < figure.axes[1].bbox.x0


def test_a_formula_in_a_title_is_not_broken() -> None:
    title = "$\\alpha + \\beta + \\gamma$ " * 20
    figure = figures.curves([1, 2], {"a": [1, 2]}, title=title, xlabel="x", ylabel="y")
    [folded] = [text for text in texts_of(figure) if "alpha" in text]
    lines = folded.split("\n")
    assert len(lines) > 1
    assert all(line.count("$") % 2 == 0 for line in lines)


def test_a_band_reaches_from_low_to_high_in_the_colour_of_its_line() -> None:
    figure = figures.curves(
        [0, 1, 2], {"a": [1, 2, 3], "b": [4, 5, 6]}, title="t", xlabel="x", ylabel="y",
        bands={"b": ([3, 4, 5], [5, 7, 9])},
    )  # fmt: skip
    axis = figure.axes[0]
    [band] = axis.collections
    corners = {tuple(xy) for xy in band.get_paths()[0].vertices}
    assert corners == {(0, 3), (1, 4), (2, 5), (0, 5), (1, 7), (2, 9)}
    assert to_hex(band.get_facecolor()[0]) == to_hex(axis.lines[1].get_color())


@pytest.mark.parametrize("ylim", [None, (0, 1)])
def test_values_are_written_beyond_their_error_bars(ylim: tuple[float, float] | None) -> None:
    wide = " ".join(["wide"] * 14)  # over all bars
    figure = figures.bars(
        ["x", "y"], {"a": [0.5, 0.25]}, title=wide, ylabel="share", ylim=ylim,
        errors={"a": ([0.4, 0.2], [1.0, 0.9])},
    )  # fmt: skip
    axis = figure.axes[0]
    labels = {t.get_text(): t.get_window_extent() for t in figure.findobj(plt.Text)}
    for value, high in (("0.50", 1.0), ("0.25", 0.9)):
        assert labels[value].y0 > axis.transData.transform((0, high))[1]
        assert not labels[value].overlaps(labels[wide])


def test_many_bars_have_no_values() -> None:
    series = {name: torch.rand(5) for name in "abc"}
    figure = figures.bars(
        "vwxyz", series, title="t", ylabel="y", errors={"a": (series["a"] - 0.1, series["a"] + 0.1)}
    )
    assert not figure.axes[0].texts


def test_intervals_are_read_from_top_to_bottom() -> None:
    figure = figures.intervals(
        {"first": {"a": (2, 1, 3), "b": (5, 4, 7)}, "second": {"b": (6, 5, 8)}},
        title="t", xlabel="x",
    )  # fmt: skip
    axis = figure.axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["first", "second"]
    heights = [t.get_window_extent().y0 for t in axis.get_yticklabels()]
    assert heights[0] > heights[1]
    whiskers = [[p.vertices[:, 0].tolist() for p in c.get_paths()] for c in axis.collections]
    assert whiskers == [[[1, 3]], [[4, 7], [5, 8]]]
    dots = {line.get_label(): line for line in axis.lines if line.get_marker() != "None"}
    assert [dots[name].get_xdata().tolist() for name in "ab"] == [[2], [5, 6]]
    assert dots["a"].get_color() != dots["b"].get_color()
    assert dots["a"].get_marker() != dots["b"].get_marker()


def test_points_stand_still_and_are_joined_row_by_row() -> None:
    figure = figures.points(
        {"one": POINTS, "two": POINTS}, title="t", lines=("pictures", "captions"), limits=(-5, 5)
    )
    for axis in figure.axes:
        assert axis.get_xlim() == axis.get_ylim() == (-5, 5)
        [lines] = [c for c in axis.collections if isinstance(c, LineCollection)]
        for i, path in enumerate(lines.get_paths()):
            ends = torch.stack([POINTS["pictures"][i], POINTS["captions"][i]])
            assert torch.equal(torch.tensor(path.vertices, dtype=torch.float32), ends)


def test_curves_of_a_frame_stand_still() -> None:
    figure = figures.map_and_curves(
        POINTS, [1, 2], {"loss": {"a": [1, 2]}, "gain": {"a": [1, 2]}}, at=1, title="t",
        xlabel="x", limits=(0, 1), ylims={"loss": (-1, 5)},
    )  # fmt: skip
    _, loss, gain = figure.axes
    assert loss.get_ylim() == (-1, 5)
    assert gain.get_ylim() != (-1, 5)


def test_overlays_have_one_scale_and_lie_on_their_pictures() -> None:
    maps = torch.tensor([[[-1.0, 0.0]], [[0.5, 2.0]]])
    figure = figures.overlays(PICTURES[:2], maps, ["a", "b"], title="t", label="cosine")
    for i, axis in enumerate(figure.axes[:2]):
        below, over = axis.images
        assert over.get_clim() == (-1, 2)
        assert torch.equal(torch.tensor(over.get_array()), maps[i])
        assert over.get_extent() == below.get_extent()
    assert "cosine" in texts_of(figure)


def test_a_sphere_is_seen_from_where_the_reader_stands() -> None:
    """From the pole, x and y are what is seen, turned; what lies below the equator is faint."""
    xyz = SPHERE["complete"]
    figure = figures.spheres(
        {"": {"complete": xyz}}, torch.zeros(20).long(), group_names="a", title="t", view=(90, 0)
    )
    drawn = {}
    for dots in figure.axes[0].collections:
        alpha = {float(c[3]) for c in dots.get_facecolors()}
        if len(dots.get_offsets()):
            drawn[alpha.pop()] = torch.tensor(dots.get_offsets().data).float()
    for alpha, part in ((1.0, xyz[:, 2] >= 0), (0.25, xyz[:, 2] < 0)):
        seen = torch.stack([xyz[part, 1], -xyz[part, 0]], dim=1)
        torch.testing.assert_close(drawn[alpha], seen, atol=1e-6, rtol=0)


RIGHT = {"title": "t", "xlabel": "x", "ylabel": "y"}
WRONG = {
    r"bands: expected names from \['a'\]; got \['b'\]": lambda: figures.curves(
        [1], {"a": [1]}, bands={"b": ([1], [1])}, **RIGHT
    ),
    r"bands: .* got \['c'\]": lambda: figures.curve_panels(
        [1], {"gap": {"a": [1]}}, title="t", xlabel="x", bands={"c": {}}
    ),
    r"errors: .* got \['b'\]": lambda: figures.bars(
        ["x"], {"a": [1]}, errors={"b": ([1], [1])}, **RIGHT
    ),
    "at most 14 series, to be told apart; got 15": lambda: figures.curves(
        [1], {str(i): [1] for i in range(15)}, **RIGHT
    ),
    "at most 3 series": lambda: figures.curves(
        [1], {"a": [1]}, baselines=dict.fromkeys("wxyz", 1.0), **RIGHT
    ),
    r"a: expected points \[N, 2\], got \[4, 3\]": lambda: figures.points(
        {"": {"a": torch.rand(4, 3)}}, title="t"
    ),
    "as many points at both ends of the lines, got 4 and 5": lambda: figures.points(
        {"": {"a": torch.rand(4, 2), "b": torch.rand(5, 2)}}, title="t", lines=("a", "b")
    ),
    r"lines: .* got \['b'\]": lambda: figures.points(
        {"": {"a": torch.rand(4, 2)}}, title="t", lines=("a", "b")
    ),
    r"b: expected points \[20, 3\], got \[20, 2\]": lambda: figures.spheres(
        {"": {"b": POINTS["pictures"]}}, torch.zeros(20), group_names="a", title="t"
    ),
    r"maps \[N, h, w\] with N = 5, got \[4, 2, 2\]": lambda: figures.overlays(
        PICTURES, torch.rand(4, 2, 2), title="t"
    ),
    "finite": lambda: figures.overlays(PICTURES, torch.full((5, 2, 2), torch.nan), title="t"),
    r"outlines \[N, 24, 24\] .* got \[5, 9, 24\]": lambda: figures.overlays(
        PICTURES, torch.rand(5, 2, 2), title="t", outlines=torch.ones(5, 9, 24).bool()
    ),
    r"at most 12 pictures and a cell for each; got 5 and cells \[4\]": lambda: figures.token_card(
        PICTURES, range(4), {}, {"a": 1.0}, grid=4, title="t"
    ),
    r"ylims: .* got \['gain'\]": lambda: figures.map_and_curves(
        POINTS,
        [1],
        {"loss": {"a": [1]}},
        at=1,
        title="t",
        xlabel="x",
        limits=(0, 1),
        ylims={"gain": (0, 1)},
    ),
    "a caption for each of 5 pictures, got 4": lambda: figures.overlays(
        PICTURES, torch.rand(5, 2, 2), ["a"] * 4, title="t"
    ),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_cannot_be_drawn_is_named(said: str) -> None:
    with pytest.raises(MMCLError, match=said):
        WRONG[said]()
    plt.close("all")


# --- diagrams -------------------------------------------------------------------------------------

BOXES = {
    "a": figures.Box("picture\n$x$", 0, 0),
    "b": figures.Box("encoder", 1, 0, "network"),
    "c": figures.Box("copy", 1, 1, "slow"),
    "d": figures.Box("loss", 2.5, 0.5, "loss"),
}
ARROWS = [
    figures.Arrow("a", "b", "[B, 3, H, W]"),
    figures.Arrow("b", "c", "follows", dashed=True),
    figures.Arrow("b", "d", "q", bend=0.2),
    figures.Arrow("c", "d", "<k>", at=0.3),
]


def drawn(alt: str = "A picture & its way") -> str:
    return figures.diagram(BOXES, ARROWS, alt=alt)._repr_html_()


def test_a_diagram_is_xml_that_says_what_is_seen() -> None:
    root = ElementTree.fromstring(drawn())
    (svg,) = root
    assert svg.get("aria-label") == "A picture & its way"
    assert svg.get("role") == "img"
    words = " ".join("".join(e.itertext()) for e in svg.iter() if e.tag.endswith("text"))
    for word in ("picture", "encoder", "[B, 3, H, W]", "<k>"):
        assert word in words


def test_a_diagram_has_the_colour_of_the_text_around_and_no_background() -> None:
    svg = drawn()
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "#ffffff" not in svg


def test_two_diagrams_of_a_page_share_no_marks() -> None:
    one, two = (set(re.findall(r'id="([^"]+)"', drawn(alt))) for alt in ("one", "two"))
    assert one
    assert not one & two
    assert {mark[1:] for mark in re.findall(r'"(#[^"]+)"', drawn("one"))} <= one
    assert drawn("one") == drawn("one")


def test_boxes_of_a_diagram_stay_inside() -> None:
    svg = ElementTree.fromstring(drawn())[0]
    _, _, width, height = map(float, svg.get("viewBox").split())
    x, y = zip(
        *(
            map(float, re.search(r"translate\(([\d.]+) ([\d.]+)\)", e.get("transform")).groups())
            for e in svg.iter()
            if "translate" in e.get("transform", "")
        ),
        strict=True,
    )
    assert 0 <= min(x) <= max(x) <= width
    assert 0 <= min(y) <= max(y) <= height


@pytest.mark.parametrize(
    ("boxes", "arrows", "alt", "match"),
    [
        ({}, [], "alt", "at least one box"),
        (BOXES, [], " ", "alt text"),
        (BOXES, [figures.Arrow("a", "z")], "alt", r"got \['z'\]"),
        ({"a": figures.Box("x", 0, 0, "odd")}, [], "alt", "kind must be one of.*'odd'"),
    ],
)
def test_what_no_diagram_can_be_drawn_of(boxes, arrows, alt: str, match: str) -> None:
    with pytest.raises(MMCLError, match=match):
        figures.diagram(boxes, arrows, alt=alt)


# --- the card of scores ---------------------------------------------------------------------------


def test_scorecard_writes_numbers_and_leaves_gaps() -> None:
    figure = figures.scorecard(
        ["a", "b"],
        {"one": [0.25, 0.5], "two": [None, 3.0]},
        places={"one": [0.0, 1.0], "two": [None, 0.4]},
        title="b is the best",
    )
    assert isinstance(figure, Figure)
    axis = figure.axes[0]
    assert {text.get_text() for text in axis.texts} == {"0.25", "0.50", "3.00"}
    light, dark = (axis.patches[i].get_facecolor()[:3] for i in (0, 1))
    assert sum(light) > sum(dark)
    assert axis.patches[2].get_hatch()
