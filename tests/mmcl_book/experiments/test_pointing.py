"""Pointing where captions name shape and colour alone: what is trained, and on which captions."""

import pytest

from mmcl_book.experiments import fdt, pointing, small, structure, tokens
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import pointing_game
from mmcl_core.methods import CLIP, FDT
from tests.tiny import Few, said, shrink


@pytest.fixture
def few(monkeypatch):
    shrink(monkeypatch)
    monkeypatch.setattr(fdt, "ShapesCaptions", Few)


@pytest.mark.parametrize(("kind", "method"), [("FDT", FDT), ("CLIP", CLIP)])
def test_captions_name_shape_and_colour_alone(monkeypatch, few, kind, method) -> None:
    trained = []
    monkeypatch.setattr(small, "train", lambda *of, **how: trained.append((*of, how)))
    assert type(pointing.train(3, **pointing.CONDITIONS[kind])) is method
    ((_, data, seed, how),) = trained
    assert (seed, how["epochs"]) == (3, fdt.EPOCHS)
    assert data.named == ("shape", "colour")
    assert {"red", "star"} <= said(data)
    assert not {"small", "striped", "top"} & said(data)


@pytest.mark.parametrize(
    ("kind", "maps"), [("FDT", tokens.token_maps), ("CLIP", structure.word_maps)]
)
def test_each_is_asked_by_its_own_maps(monkeypatch, few, kind, maps) -> None:
    monkeypatch.setattr(small, "train", lambda *of, **how: None)
    method = pointing.train(0, kind)
    measured = pointing.measure(method)
    test = small.scenes(1000, small.TEST_SEED, detail=2)
    for name in ("shape", "colour"):
        game = pointing_game(*maps(method, test, name)[:2])
        assert measured[f"pointing, {name}"] == game.accuracy
        assert measured[f"pointing chance, {name}"] == game.chance


def test_there_are_two_kinds() -> None:
    with pytest.raises(MMCLError, match="kind must be 'FDT' or 'CLIP'; got 'MCT'"):
        pointing.train(0, "MCT")
