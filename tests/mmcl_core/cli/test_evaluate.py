"""`python -m mmcl_core evaluate`: what is measured, on what, and what is said of it."""

import json
import shutil

import pytest

from mmcl_core.cli.runs import read_run
from mmcl_core.data import CaptionFolder
from mmcl_core.evaluation import summary
from mmcl_core.training import load_checkpoint
from tests import ROOT
from tests.mmcl_core.cli.helpers import SHAPES, SMALL, draw_folder, write_captions


def test_a_folder_trains_and_is_measured(run, tmp_path, monkeypatch) -> None:
    folder, out = draw_folder(tmp_path / "data"), tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    arguments = ["--method", "fdt", "--data", "data", *SMALL, "--epochs", 2, "--split", "train"]
    assert run("train", *arguments, "--out", "run")[0] == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == ["checkpoint.pt", "run.json", "tokenizer.json"]

    monkeypatch.chdir(ROOT)  # the run knows where its data lies
    found = json.loads(run("evaluate", out, "--json")[1])
    assert found["recall"]["on"] == "the 64 pictures of the training"
    assert found["codebook"]["values"]["image_used"] >= 1
    found = json.loads(run("evaluate", out, "--split", "test", "--json")[1])
    assert found["recall"]["on"] == f"32 pictures of {folder}, split test"

    # Measured on the words of the training, whatever another folder would make of its own.
    other = draw_folder(tmp_path / "other", n=64)
    found = json.loads(run("evaluate", out, "--data", other, "--json")[1])
    train = CaptionFolder(folder, split="train", size=24)
    data = CaptionFolder(other, size=24, tokenizer=train.tokenizer)
    method = read_run(out).recipe(train, 4).method
    load_checkpoint(out / "checkpoint.pt", method)
    assert found["recall"]["values"] == summary.recall(method, data)

    # A caption more in the folder: the words stay those of the run.
    with open(folder / "captions.txt", "a") as file:
        file.write("0.png,an entirely new caption\n")
    assert run("evaluate", out)[0] == 0
    for words in (["--pairs", 100], ["--seed", 1]):
        code, _, err = run("evaluate", out, *words)
        assert code == 2
        assert "are for a run on shapes" in err


def test_moco_of_a_folder_has_nothing_to_measure(run, tmp_path) -> None:
    folder, out = draw_folder(tmp_path / "data", n=64), tmp_path / "run"
    arguments = ["--method", "moco", "--data", folder, *SMALL, "--epochs", 1, "--out", out]
    assert run("train", *arguments)[0] == 0
    code, _, err = run("evaluate", out)
    assert code == 2
    assert "moco was trained on pictures alone" in err
    assert "nothing to measure" in err


def test_a_run_of_shapes_is_measured_on_other_shapes(run, tmp_path) -> None:
    assert run("train", "--method", "clip", *SHAPES, "--epochs", 1, "--out", tmp_path)[0] == 0
    for arguments, said in [
        (["--seed", 0], "--seed 0 gives the scenes of the training"),
        (["--data", "."], "are for a run on a folder"),
        (["--skip-bad-rows"], "are for a run on a folder"),
    ]:
        code, out, err = run("evaluate", tmp_path, *arguments)
        assert (code, out) == (2, "")
        assert said in err
    (tmp_path / "run.json").unlink()
    code, _, err = run("train", "--method", "clip", *SHAPES, "--resume", "--out", tmp_path)
    assert code == 2
    assert "expected run.json beside checkpoint.pt" in err


# --- B16, and its kind: few scenes ----------------------------------------------------------------


@pytest.mark.parametrize("method", ["clip", "moco", "gmc"])
@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_too_few_scenes_for_a_probe_are_told_of_in_options(method, pairs, run, runs) -> None:
    """B16: it was "expected test labels that training has; got also [2]"."""
    code, out, err = run("evaluate", runs[method], "--pairs", pairs)
    assert (code, out) == (2, "")
    assert f"error: --pairs {pairs}: too few scenes. The {2 * pairs} that a probe learns" in err
    assert "labels" not in err


def test_few_scenes_are_enough_where_nothing_is_learned(run, runs) -> None:
    for method in ("fdt", "fusion"):
        code, out, err = run("evaluate", runs[method], "--pairs", 3)
        assert (code, err) == (0, "")
        assert "on 3 " in out
    assert "@1 " in run("evaluate", runs["fdt"], "--pairs", 7)[1]
    assert "@10" not in run("evaluate", runs["fdt"], "--pairs", 7)[1]


# --- captions of other words, and other folders ---------------------------------------------------


def test_captions_of_unknown_words_are_counted(run, runs, photos, tmp_path) -> None:
    """Bug-report 2: they all look alike to the run, and nobody was told."""
    shutil.copytree(photos / "Images", tmp_path / "Images")
    names = sorted(path.name for path in (tmp_path / "Images").iterdir())
    captions = {name: f"a beagle number{i} at top" for i, name in enumerate(names[:40])}
    captions |= {name: "a red circle" for name in names[40:]}
    write_captions(tmp_path, captions)
    code, _, err = run("evaluate", runs["words"], "--data", tmp_path)
    assert code == 0
    [line] = [line for line in err.splitlines() if line.startswith("warning")]
    assert "43 words are not in the training (at, beagle, top, number0, " in line
    assert line.endswith("the first captions of 40 of 96 pictures hold some")
    # 40 texts of one picture each, and one text of 56: not one of 96, whose recall is 1.000.
    found = json.loads(run("evaluate", runs["words"], "--data", tmp_path, "--json")[1])
    chance = found["recall"]["values"]["chance@1"]
    assert chance == pytest.approx((40 * 1 + 56 * 56) / 96**2)
    code, _, err = run("evaluate", runs["words"])
    assert (code, err) == (0, "")


def test_the_data_of_the_training_is_not_needed_for_other_data(run, tmp_path) -> None:
    """Bug-report 5: trained on one machine, measured on another."""
    data, other = draw_folder(tmp_path / "data"), draw_folder(tmp_path / "other", n=64)
    arguments = ["--method", "clip", "--data", data, *SMALL, "--epochs", 1]
    assert run("train", *arguments, "--out", tmp_path / "run")[0] == 0
    before = run("evaluate", tmp_path / "run", "--data", other)
    shutil.rmtree(data)
    assert before[0] == 0
    assert run("evaluate", tmp_path / "run", "--data", other) == before
    code, _, err = run("evaluate", tmp_path / "run")
    assert code == 2
    assert f"{data}: expected a folder with one of captions.txt" in err
