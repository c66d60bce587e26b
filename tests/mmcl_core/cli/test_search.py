"""`python -m mmcl_core search`: pictures found by words and by pictures."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mmcl_core import cli
from mmcl_core.data import CaptionFolder, ShapesCaptions
from mmcl_core.data.drawing import VALUES
from tests.mmcl_core.cli.helpers import SMALL, draw_folder


def test_the_snippet_of_the_module_finds_the_same(run, runs, photos, tmp_path, monkeypatch):
    shutil.copytree(runs["clip"], tmp_path / "runs" / "clip")
    (tmp_path / "photos").symlink_to(photos, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    assert run("embed", "runs/clip", "photos", "--out", "photos.npz")[0] == 0
    found = run("search", "photos.npz", "a red star")[1].splitlines()[1:]
    lines = (cli.__doc__ or "").splitlines()
    shown: list[str] = []
    code = "\n".join(line.removeprefix("    ") for line in lines if line.startswith("    "))
    exec(code, {"print": shown.append})
    assert shown == [line.split()[1] for line in found]
    assert len(code.splitlines()) <= 12


def test_a_trained_run_finds_what_the_words_say(run, tmp_path) -> None:
    shapes = ["--data", "shapes", "--objects", "1-1", "--detail", "2", "--pairs", "512"]
    few = ["--epochs", 8, *SMALL, "--out", tmp_path / "run"]
    assert run("train", "--method", "clip", *shapes, *few)[0] == 0
    photos = draw_folder(tmp_path / "photos", n=64, objects=(1, 1))
    assert run("embed", tmp_path / "run", photos, "--out", tmp_path / "x.npz")[0] == 0
    scenes = ShapesCaptions(64, seed=3, size=24, detail=2, objects=(1, 1))
    colours = VALUES["colour"]
    queries = [f"a {colour} {shape}" for colour in colours for shape in VALUES["shape"]]
    said = run("search", tmp_path / "x.npz", *queries, "--top", 1, "--json")[1]
    hits = [
        colours[scenes.attributes["colour"][int(Path(found["name"]).stem), 0]] in query["words"]
        for query in json.loads(said)["queries"]
        for found in query["found"]
    ]
    assert len(hits) == 36
    assert sum(hits) / len(hits) > 0.6  # by chance, one of six


# --- queries --------------------------------------------------------------------------------------


def test_unknown_words_are_named_and_others_still_count(run, photos_npz) -> None:
    queries = ["A red, RED zebra", "zebra", "", "red"]
    code, said, err = run("search", photos_npz, *queries, "--top", 2)
    assert code == 2
    assert err.splitlines() == [
        "warning: 'A red, RED zebra': not in the training: zebra",
        "error: expected words that the run was trained with, got none in 'zebra'",
        "error: expected words that the run was trained with, got none in ''",
    ]
    lines = said.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["A red, RED zebra", "red"]
    assert len(lines) == 2 + 2 * 2
    found = json.loads(run("search", photos_npz, "red zebra", "--top", 999, "--json")[1])
    assert found["queries"][0]["unknown"] == ["zebra"]
    assert len(found["queries"][0]["found"]) == 96


def test_queries_can_be_typed_line_by_line(run, photos_npz, monkeypatch) -> None:
    whole = run("search", photos_npz, "red", "blue star")
    monkeypatch.setattr("sys.stdin", io.StringIO("red\n\n  blue star\n"))
    assert run("search", photos_npz) == whole


def test_a_query_that_is_too_long_or_no_picture(run, photos_npz) -> None:
    code, said, err = run("search", photos_npz, "red " * 70, "--like", photos_npz)
    assert (code, said) == (2, "")
    assert "expected at most 62 words, got 70: take fewer" in err
    assert f"the picture {photos_npz} cannot be read" in err


def test_of_equal_pictures_the_first_comes_first() -> None:
    index = cli.PictureIndex(
        Path("run"), "", Path("photos"), list("abcd"), F.normalize(torch.tensor(
            [[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]
        ))
    )  # fmt: skip
    found = cli.nearest(index, torch.tensor([1.0, 0.0]), 4)
    assert [name for _, name in found] == ["b", "a", "c", "d"]
    assert [score for score, _ in found] == pytest.approx([1, 0.5**0.5, 0.5**0.5, -1])


def test_the_run_is_that_of_the_file(run, runs, photos, photos_npz, tmp_path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(runs["words"], moved)
    assert run("embed", moved, photos, "--out", photos_npz)[0] == 0
    there = run("search", photos_npz, "red")
    moved = moved.rename(tmp_path / "elsewhere")
    code, said, err = run("search", photos_npz, "red")
    assert (code, said) == (2, "")
    assert f"{tmp_path / 'moved'}, which is not there; say where it lies by --run" in err
    assert run("search", photos_npz, "red", "--run", moved) == there
    code, _, err = run("search", photos_npz, "red", "--run", runs["clip"])
    assert code == 2
    assert "other weights than those of" in err
    assert "embed the pictures again" in err


def test_the_data_of_the_training_is_not_needed(run, tmp_path) -> None:
    data = draw_folder(tmp_path / "data")
    arguments = ["--method", "clip", "--data", data, *SMALL, "--epochs", 1]
    assert run("train", *arguments, "--out", tmp_path / "run")[0] == 0
    words = CaptionFolder(data).tokenizer
    photos = data.rename(tmp_path / "photos") / "Images"
    assert run("embed", tmp_path / "run", photos, "--out", tmp_path / "photos.npz")[0] == 0
    assert run("search", tmp_path / "photos.npz", words.words[0])[0] == 0
