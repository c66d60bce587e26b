"""Figures: each draws what it is given, once, without a warning, and says what it cannot draw."""

import warnings
from io import BytesIO

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from mmcl_core import figures
from mmcl_core.errors import ShapeError

PICTURES = torch.rand(5, 3, 24, 24)
POINTS = {"pictures": torch.randn(20, 2), "captions": torch.randn(20, 2)}

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
    "pairs": lambda: figures.pairs(PICTURES, torch.rand(5, 5), title="Found"),
    "similarity_and_map": lambda: figures.similarity_and_map(
        torch.rand(4, 4), POINTS, torch.arange(20) % 3, group_names="abc", limits=2, title="Found"
    ),
    "circles": lambda: figures.circles(
        {"start": POINTS, "end": POINTS}, title="Found", arrows={"pictures": torch.randn(20, 2)},
        partners=("pictures", "captions"),
    ),
    "curve_panels": lambda: figures.curve_panels(
        range(9), {"gap": {"a": range(9)}, "cone": {"a": range(9)}}, title="Found", xlabel="step",
        baselines={"gap": 1.0},
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
