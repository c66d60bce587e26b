"""Drawn folders are read back as they were drawn."""

import warnings

import pytest
from PIL import Image

from mmcl_book.experiments.drawn_folder import draw_folder
from mmcl_core.data import CaptionFolder, ShapesCaptions
from mmcl_core.errors import DataError, MMCLError

SCENES = {"seed": 3, "size": 32, "detail": 2, "objects": (1, 2)}


@pytest.mark.parametrize("layout", ["flickr", "coco"])
def test_a_drawn_folder_is_read_back(tmp_path, layout) -> None:
    """Pictures nearly as drawn, the lying ones upright again; each sentence once, in order."""
    root = draw_folder(tmp_path / "deep" / "drawn", 22, layout=layout, **SCENES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no row is left out
        data = CaptionFolder(root, size=32)
    scenes = ShapesCaptions(22, **SCENES)
    pixels = data.batch(range(22))["image"]
    assert (pixels - scenes.images / 255).abs().mean(dim=(1, 2, 3)).max() < 0.02
    for i in range(22):
        told = [scenes.text(i, s) for s in range(5)]
        assert data.captions(i) == sorted(set(told), key=told.index)
    with Image.open(data.paths[9]) as lying:
        assert lying.getexif()[0x0112] == 6
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["drawn"]


def test_the_same_seed_gives_the_same_bytes(tmp_path) -> None:
    one, other = (draw_folder(tmp_path / name, 3, **SCENES) for name in "ab")
    for path in one.rglob("*.*"):
        assert path.read_bytes() == (other / path.relative_to(one)).read_bytes()


def test_a_folder_that_is_there_stays(tmp_path) -> None:
    (tmp_path / "drawn").mkdir()
    with pytest.raises(DataError, match="expected a new folder"):
        draw_folder(tmp_path / "drawn", 3)


@pytest.mark.parametrize("settings", [{"layout": "voc"}, {"quality": 0}, {"size": 1}])
def test_settings_that_cannot_be(tmp_path, settings) -> None:
    with pytest.raises(MMCLError):
        draw_folder(tmp_path / "drawn", 3, **settings)
    assert not list(tmp_path.iterdir())
