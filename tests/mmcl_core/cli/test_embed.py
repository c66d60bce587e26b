"""`python -m mmcl_core embed` and `search`: pictures of a folder, found by words."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmcl_core import __main__ as program
from mmcl_core.cli import search
from mmcl_core.cli.runs import read_run
from mmcl_core.data import CaptionFolder, PictureFolder, ShapesCaptions
from mmcl_core.data.drawing import VALUES
from mmcl_core.errors import CheckpointError, DataError, MMCLError, ShapeError
from mmcl_core.evaluation import embed_all
from mmcl_core.methods.fdt import Cooling
from mmcl_core.training import load_checkpoint
from tests.mmcl_core.cli.test_main import SMALL, draw_folder, run  # noqa: F401 (a fixture)

METHODS = ("clip", "moco", "mct", "fdt", "gmc", "fusion")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 pictures with one caption each."""
    return draw_folder(tmp_path_factory.mktemp("photos") / "data")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> dict[str, Path]:
    """One short run of each method on shapes; and "words", one on the folder."""
    root = tmp_path_factory.mktemp("runs")
    shapes = ["--data", "shapes", "--objects", "1-1", "--detail", "2", "--pairs", "128"]
    for method in METHODS:
        few = ["--epochs", "1", *SMALL, "--out", str(root / method)]
        assert program.main(["train", "--method", method, *shapes, *few]) == 0
    few = ["--epochs", "2", *SMALL, "--out", str(root / "words")]
    assert program.main(["train", "--method", "fdt", "--data", str(photos), *few]) == 0
    return {path.name: path for path in root.iterdir()}


def trained(folder: Path) -> tuple[Any, Any]:
    """Method and data of a run, made by way of all its data."""
    begun = read_run(folder)
    data = begun.training_data(folder)
    method = begun.recipe(data).method
    load_checkpoint(folder / "checkpoint.pt", method)
    return method.eval(), data


# --- each method ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*METHODS, "words"])
def test_the_vectors_are_those_of_the_trained_method(name, run, runs, photos, tmp_path):  # noqa: F811
    out = tmp_path / "new" / "photos.npz"
    code, said, err = run("embed", runs[name], photos, "--out", out, "--batch-size", 40)
    assert code == 0
    width = {"gmc": 64}.get(name, 128)
    assert said == f"96 pictures, vectors of {width} numbers: {out}\n"
    kind = "fdt" if name == "words" else name
    steps = 6 if name == "words" else 2 if name == "moco" else 4
    assert err.startswith(f"{kind}, step ")
    assert "96 pictures on" in err
    assert [path.name for path in out.parent.iterdir()] == ["photos.npz"]

    method, data = trained(runs[name])
    pictures = PictureFolder(photos, size=24)
    index = search.PictureIndex.load(out)
    assert index.names == pictures.names
    assert (index.run, index.pictures) == (runs[name].resolve(), photos.resolve())
    assert index.embeddings.dtype == torch.float32
    torch.testing.assert_close(index.embeddings.norm(dim=1), torch.ones(96))
    image = torch.stack([pictures[i]["image"] for i in range(96)])
    expected = F.normalize(embed_all(method, {"image": image}, ("image",)), dim=1)
    torch.testing.assert_close(index.embeddings, expected, rtol=0, atol=1e-5)
    loaded = search.load_run(runs[name])
    assert (loaded.name, loaded.size, loaded.tokenizer) == (kind, 24, data.tokenizer)
    assert loaded.step == loaded.steps >= steps
    cooling = getattr(loaded.method, "cooling", None)
    assert (cooling is None) == (kind != "fdt")
    assert cooling is None or cooling == Cooling(300.0, 15.0, loaded.steps)

    code, said, err = run("search", out, "--like", photos / "Images" / "7.png", "--top", 1)
    assert (code, err) == (0, "")
    assert said.splitlines()[1] == "   1.000  Images/7.png"
    code, said, err = run("search", out, "a red star", "--json")
    if name in ("moco", "fusion"):
        assert code == 2
        assert json.loads(said)["queries"] == []
        assert err.startswith(f"error: {name} ")
        assert "earch by a picture" in err
        return
    assert (code, err) == (0, "")
    caption = data.tokenizer.encode_batch(["a red star"])
    query = F.normalize(embed_all(method, {"caption": caption}, ("caption",)), dim=1)[0]
    [found] = json.loads(said)["queries"]
    assert (found["words"], found["unknown"]) == ("a red star", [])
    best = sorted(zip((expected @ query).tolist(), pictures.names, strict=True), reverse=True)[:5]
    assert [entry["name"] for entry in found["found"]] == [name for _, name in best]
    scores = [entry["score"] for entry in found["found"]]
    assert scores == pytest.approx([score for score, _ in best], abs=1e-5)


def test_the_snippet_of_the_module_finds_the_same(run, runs, photos, tmp_path, monkeypatch):  # noqa: F811
    shutil.copytree(runs["clip"], tmp_path / "runs" / "clip")
    (tmp_path / "photos").symlink_to(photos, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    assert run("embed", "runs/clip", "photos", "--out", "photos.npz")[0] == 0
    found = run("search", "photos.npz", "a red star")[1].splitlines()[1:]
    lines = (search.__doc__ or "").splitlines()
    shown: list[str] = []
    code = "\n".join(line.removeprefix("    ") for line in lines if line.startswith("    "))
    exec(code, {"print": shown.append})
    assert shown == [line.split()[1] for line in found]
    assert len(code.splitlines()) <= 12


def test_a_trained_run_finds_what_the_words_say(run, tmp_path) -> None:  # noqa: F811
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


@pytest.fixture
def photos_npz(run, runs, photos, tmp_path) -> Path:  # noqa: F811
    assert run("embed", runs["words"], photos, "--out", tmp_path / "photos.npz", "--quiet")[0] == 0
    return tmp_path / "photos.npz"


def test_unknown_words_are_named_and_others_still_count(run, photos_npz) -> None:  # noqa: F811
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


def test_queries_can_be_typed_line_by_line(run, photos_npz, monkeypatch) -> None:  # noqa: F811
    whole = run("search", photos_npz, "red", "blue star")
    monkeypatch.setattr("sys.stdin", io.StringIO("red\n\n  blue star\n"))
    assert run("search", photos_npz) == whole


def test_a_query_that_is_too_long_or_no_picture(run, photos_npz) -> None:  # noqa: F811
    code, said, err = run("search", photos_npz, "red " * 70, "--like", photos_npz)
    assert (code, said) == (2, "")
    assert "expected at most 64 ids" in err
    assert f"the picture {photos_npz} cannot be read" in err


def test_of_equal_pictures_the_first_comes_first() -> None:
    index = search.PictureIndex(
        Path("run"), "", Path("photos"), list("abcd"), F.normalize(torch.tensor(
            [[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]
        ))
    )  # fmt: skip
    found = search.nearest(index, torch.tensor([1.0, 0.0]), 4)
    assert [name for _, name in found] == ["b", "a", "c", "d"]
    assert [score for score, _ in found] == pytest.approx([1, 0.5**0.5, 0.5**0.5, -1])


# --- files ----------------------------------------------------------------------------------------


def test_unreadable_pictures_stop_it_unless_they_are_skipped(run, runs, photos, tmp_path):  # noqa: F811
    shutil.copytree(photos / "Images", tmp_path / "in")
    for name in ("5.png", "11.png"):
        (tmp_path / "in" / name).write_bytes(b"not a picture")
    out = tmp_path / "photos.npz"
    arguments = ["embed", runs["clip"], tmp_path / "in", "--out", out, "--batch-size", 10]
    code, said, err = run(*arguments)
    assert (code, said) == (2, "")
    assert "2 of 96 pictures cannot be read: 11.png (" in err
    assert "5.png (" in err
    assert "pass --skip-bad-pictures to" in err
    assert not out.exists()
    code, said, err = run(*arguments, "--skip-bad-pictures")
    assert code == 0
    assert said.startswith("94 pictures, ")
    assert err.count("warning: left out: ") == 2
    index = search.PictureIndex.load(out)
    assert not {"5.png", "11.png"} & set(index.names)
    whole = PictureFolder(tmp_path / "in", size=24)
    rows = [whole.names.index(name) for name in index.names]
    image = whole.batch(rows)["image"]
    loaded = search.load_run(runs["clip"])
    expected = embed_all(loaded.method, {"image": image}, ("image",))
    torch.testing.assert_close(index.embeddings, expected, rtol=0, atol=1e-5)

    for path in (tmp_path / "in").iterdir():
        path.write_bytes(b"not a picture")
    code, _, err = run(*arguments, "--skip-bad-pictures")
    assert code == 2
    assert "96 of 96 pictures cannot be read" in err
    assert "91 more\n" in err
    assert len(search.PictureIndex.load(out).names) == 94  # as it was


def test_what_fails_on_the_way_leaves_the_earlier_file(run, runs, photos, tmp_path, monkeypatch):  # noqa: F811
    out = tmp_path / "photos.npz"
    assert run("embed", runs["clip"], photos, "--out", out)[0] == 0
    before = out.read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left")

    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        assert run("embed", runs["mct"], photos, "--out", out)[0] == 2
        patch.setattr(search, "embed_all", stop)
        assert run("embed", runs["mct"], photos, "--out", out)[0] == 130
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_the_run_is_that_of_the_file(run, runs, photos, photos_npz, tmp_path) -> None:  # noqa: F811
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


def test_the_data_of_the_training_is_not_needed(run, tmp_path) -> None:  # noqa: F811
    data = draw_folder(tmp_path / "data")
    arguments = ["--method", "clip", "--data", data, *SMALL, "--epochs", 1]
    assert run("train", *arguments, "--out", tmp_path / "run")[0] == 0
    words = CaptionFolder(data).tokenizer
    photos = data.rename(tmp_path / "photos") / "Images"
    assert run("embed", tmp_path / "run", photos, "--out", tmp_path / "photos.npz")[0] == 0
    assert run("search", tmp_path / "photos.npz", words.words[0])[0] == 0


def test_wrong_input_is_told(run, runs, photos, photos_npz, tmp_path) -> None:  # noqa: F811
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.npz").write_bytes(photos_npz.read_bytes()[:2000])
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    (tmp_path / "text.npz").write_text("text")
    files = sorted(path.name for path in tmp_path.iterdir())
    out = ["--out", tmp_path / "new.npz"]
    for arguments, said in [
        (["embed", runs["clip"], photos, "--out", tmp_path / "x.pt"], "ends in .npz, got"),
        (["embed", runs["clip"], photos, "--out", tmp_path], "ends in .npz, got"),
        (["embed", runs["clip"], tmp_path / "empty", *out], "expected pictures, names that end"),
        (["embed", runs["clip"], tmp_path / "none", *out], "got no such folder"),
        (["embed", tmp_path / "empty", photos, *out], "found no run.json"),
        (["embed", runs["clip"], photos, *out, "--device", "abacus"], "got abacus"),
        (["search", tmp_path / "none.npz", "red"], "found no such file"),
        (["search", tmp_path / "broken.npz", "red"], "expected a file that embed wrote"),
        (["search", tmp_path / "other.npz", "red"], "expected a file that embed wrote"),
        (["search", tmp_path / "text.npz", "red"], "expected a file that embed wrote"),
        (["search", photos_npz, "red", "--top", "0"], "at least 1; got '0'"),
    ]:
        code, printed, err = run(*arguments)
        assert (code, printed) == (2, ""), arguments
        assert said in " ".join(err.split())
        assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_the_functions_say_what_they_need(runs, photos, tmp_path) -> None:
    loaded = search.load_run(runs["clip"])
    with pytest.raises(ShapeError, match="size 24, as in the training; got 32"):
        search.embed_folder(loaded, PictureFolder(photos, size=32))
    with pytest.raises(DataError, match="cannot be read"):
        search.embed_picture(loaded, tmp_path / "none.png")
    with pytest.raises(MMCLError, match="got none in 'zebra'"):
        search.embed_words(loaded, "zebra")
    shutil.copytree(runs["clip"], tmp_path / "run")
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cut short"):
        search.load_run(tmp_path / "run")


def test_names_of_any_bytes_come_back(tmp_path) -> None:
    names = ["원.png", "a b.png", "\udcff.png"]  # the last is not UTF-8
    rows = F.normalize(torch.eye(3))
    search.PictureIndex(Path("r"), "", Path("p"), names, rows).save(tmp_path / "x.npz")
    loaded = search.PictureIndex.load(tmp_path / "x.npz")
    assert loaded.names == names
    assert torch.equal(loaded.embeddings, rows)
    assert program._shown(names[2]) == "�.png"
    assert program._shown(names[0]) == names[0]
