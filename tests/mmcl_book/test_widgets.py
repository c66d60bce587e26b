"""The interactive figure: its frames, its links, its fall-back, and what bad input gets."""

import re
from base64 import b64decode
from io import BytesIO

import ipywidgets
import matplotlib
import numpy as np
import pytest
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mmcl_book.widgets import scrub
from mmcl_core.errors import MMCLError

# What a page shows. With ipywidgets 7, as in Colab, Python exchanges the frame; see below.
with_stack = pytest.mark.skipif(not hasattr(ipywidgets, "Stack"), reason="needs ipywidgets 8")
COLOURS = ["red", "green", "blue", "yellow", "black", "white"]


def tile(colour, size=(40, 30)):
    return Image.new("RGB", size, colour)


def bars(heights):
    figure, axes = plt.subplots(figsize=(5, 3))
    axes.bar(range(len(heights)), heights)
    axes.set_ylabel("height")
    return figure


def frames_below(widget):
    """The HTML widgets under `widget`, in order."""
    if isinstance(widget, ipywidgets.HTML):
        return [widget]
    return [frame for child in getattr(widget, "children", ()) for frame in frames_below(child)]


def image_of(frame):
    data = re.search(r"base64,([^\"]+)", frame.value)[1]
    return Image.open(BytesIO(b64decode(data)))


def alt_of(frame):
    return re.search(r'alt="([^"]*)"', frame.value)[1]


def colour_of(frame):
    return image_of(frame).convert("RGB").getpixel((20, 15))


@pytest.fixture
def made_links(monkeypatch):
    """The links made while a test runs, as (source, target)."""
    made = []
    monkeypatch.setattr(ipywidgets, "jslink", lambda source, target: made.append((source, target)))
    return made


@with_stack
def test_one_control_is_linked_to_the_choice_of_the_frame(made_links):
    box = scrub([tile(c) for c in COLOURS], COLOURS, description="colour", alt="A tile", start=2)
    slider, stack = box.children
    assert isinstance(slider, ipywidgets.SelectionSlider)
    assert list(slider.options) == COLOURS
    assert slider.description == "colour"
    assert made_links == [((slider, "index"), (stack, "selected_index"))]
    assert slider.index == stack.selected_index == 2
    assert len(stack.children) == 6
    assert alt_of(stack.children[1]) == "A tile; colour: green"


@with_stack
def test_frames_show_the_pictures_in_order():
    box = scrub([tile(c) for c in COLOURS[:3]], [1, 2, 3], alt="A tile")
    seen = [colour_of(frame) for frame in frames_below(box)]
    expected = [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    assert np.abs(np.array(seen) - expected).max() <= 3


@pytest.mark.parametrize(
    ("control", "kind"),
    [
        ("slider", ipywidgets.SelectionSlider),
        ("dropdown", ipywidgets.Dropdown),
        ("radio", ipywidgets.RadioButtons),
    ],
)
def test_each_control(control, kind):
    box = scrub([tile("red"), tile("blue")], ["a", "b"], alt="A tile", control=control)
    assert isinstance(box.children[0], kind)


@with_stack
def test_two_controls_turn_nested_stacks(made_links):
    calls = []

    def draw(width, colour):
        calls.append((width, colour))
        return tile(colour, (width, 20))

    box = scrub(
        draw,
        {"width": [20, 40], "colour": ["red", "green", "blue"]},
        alt="A tile",
        control=["slider", "radio"],
        start=[1, 2],
    )
    slider, radio, outer = box.children
    assert calls == [(w, c) for w in (20, 40) for c in ("red", "green", "blue")]
    assert [len(inner.children) for inner in outer.children] == [3, 3]
    assert ((slider, "index"), (outer, "selected_index")) in made_links
    for inner in outer.children:
        assert ((radio, "index"), (inner, "selected_index")) in made_links
        assert inner.selected_index == 2
    assert outer.selected_index == 1
    assert alt_of(frames_below(outer)[4]) == "A tile; width: 40; colour: green"


@with_stack
def test_where_nothing_moves_the_first_frame_stands_with_a_sentence():
    box = scrub(
        [tile(c) for c in COLOURS],
        {"colour <1>": COLOURS[:3], "size": ["small", "large"]},
        alt="A tile",
        start=[1, 0],
        moving="Each colour has two tiles & more.",
    )
    bundle = box._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == box.model_id
    still = bundle["text/html"]
    assert frames_below(box)[2].value in still
    assert still.count("<img") == 1
    assert "colour &lt;1&gt; green (of red, green, blue); size small (of small, large)" in still
    assert '<span class="mmcl-moving">Each colour has two tiles &amp; more.</span>' in still


@with_stack
def test_long_rows_of_positions_are_shortened_in_the_sentence():
    box = scrub([tile(c) for c in COLOURS], range(6), description="epoch", alt="A tile", start=5)
    assert "epoch 5 (of 0 to 5)." in box._repr_mimebundle_()["text/html"]


@with_stack
def test_a_flat_sequence_for_two_controls_has_the_last_move_fastest():
    labels = {"row": [0, 1], "column": [0, 1]}
    box = scrub([tile(c) for c in COLOURS[:4]], labels, alt=["a", "b", "c", "d"])
    assert [alt_of(frame) for frame in frames_below(box)] == ["a", "b", "c", "d"]


def test_figures_are_closed_and_not_cut_off():
    plt.close("all")
    box = scrub(bars, [[1, 2], [2, 1]], alt="Two bars")
    assert plt.get_fignums() == []
    for frame in frames_below(box):
        pixels = np.asarray(image_of(frame).convert("L"))
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert border.min() > 250, "something is drawn up to the edge"


@with_stack
def test_axes_stand_still_when_tick_labels_grow():
    def draw(height):
        figure = bars([height])
        figure.axes[0].set_ylim(0, height)
        return figure

    images = [image_of(frame) for frame in frames_below(scrub(draw, [1, 100000], alt="One bar"))]
    assert images[0].size == images[1].size
    # The left spine is the leftmost column that is dark over most of the height.
    spines = [int(np.argmax((np.asarray(i.convert("L")) < 100).mean(axis=0) > 0.6)) for i in images]
    assert abs(spines[0] - spines[1]) <= 1


@with_stack
def test_one_figure_drawn_anew_for_each_frame():
    figure, axes = plt.subplots(figsize=(2, 2))

    def draw(colour):
        axes.clear()
        axes.set_facecolor(colour)
        return figure

    seen = [image_of(f).convert("RGB") for f in frames_below(scrub(draw, ["red", "blue"], alt="x"))]
    centre = (seen[0].width // 2, seen[0].height // 2)
    assert seen[0].getpixel(centre)[0] > 200 > 50 > seen[0].getpixel(centre)[2]
    assert seen[1].getpixel(centre)[2] > 200 > 50 > seen[1].getpixel(centre)[0]


@with_stack
def test_smaller_pictures_are_centred_on_white():
    box = scrub([tile("red", (40, 40)), tile("blue", (20, 20))], ["a", "b"], alt="A tile")
    large, small = (image_of(frame).convert("RGB") for frame in frames_below(box))
    assert large.size == small.size == (40, 40)
    assert min(small.getpixel((2, 2))) > 250
    assert small.getpixel((20, 20))[2] > 250 > 50 > small.getpixel((20, 20))[0]


def test_bytes_and_transparency():
    buffer = BytesIO()
    Image.new("RGBA", (10, 10), (255, 0, 0, 0)).save(buffer, "PNG")
    (frame,) = frames_below(scrub([buffer.getvalue()], ["only"], alt="Nothing, on white"))
    assert min(image_of(frame).convert("RGB").getpixel((5, 5))) > 250


def test_a_line_plot_takes_at_most_twenty_kilobytes():
    def draw(seed):
        figure, axes = plt.subplots(figsize=(7, 3.5))
        axes.plot(np.random.default_rng(seed).normal(size=(50, 3)).cumsum(0))
        return figure

    for frame in frames_below(scrub(draw, [0, 1], alt="Three random walks")):
        assert len(frame.value) < 20_000


def test_alt_text_cannot_break_out_of_its_attribute():
    box = scrub([tile("red")], ["x"], alt='similarity < 1 & "cosine"')
    assert 'alt="similarity &lt; 1 &amp; &quot;cosine&quot;; x"' in frames_below(box)[0].value


def test_without_stack_a_callback_exchanges_the_frame(monkeypatch):
    """ipywidgets 7, which Colab has: the same call, moved by Python."""
    monkeypatch.delattr(ipywidgets, "Stack", raising=False)
    box = scrub(
        [tile(c) for c in COLOURS], {"a": [0, 1], "b": [0, 1, 2]}, alt=COLOURS, start=[1, 0]
    )
    first, second, picture = box.children
    assert alt_of(picture) == "yellow"
    second.index = 2
    assert alt_of(picture) == "white"
    first.index = 0
    assert alt_of(picture) == "blue"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": []}, "0 frames for 2"),
        ({"frames": [tile("red")]}, "1 frames for 2"),
        ({"labels": []}, "has no labels"),
        ({"labels": {}}, "no control"),
        ({"labels": {"a": [1, 2], "b": []}}, "'b' has no labels"),
        ({"labels": [0.1, 0.1]}, r"twice: \['0.1'\]"),
        ({"alt": " "}, "alt is empty"),
        ({"alt": ["one", ""]}, "alt is empty"),
        ({"alt": ["one"]}, "1 texts for 2 frames"),
        ({"control": "knob"}, "got 'knob'"),
        ({"control": ["slider", "radio"]}, "2 values for 1 controls"),
        ({"start": 2}, "from 0 to 1"),
        ({"start": -1}, "from 0 to 1"),
        ({"frames": [tile("red"), "blue.png"]}, "got str"),
        ({"frames": [tile("red"), b"no image"]}, "no image file"),
    ],
)
def test_bad_input_is_refused_with_advice(arguments, message):
    good = {"frames": [tile("red"), tile("blue")], "labels": ["a", "b"], "alt": "A tile"}
    with pytest.raises(MMCLError, match=message):
        scrub(**{**good, **arguments})
