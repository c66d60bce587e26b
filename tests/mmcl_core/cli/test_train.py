"""`python -m mmcl_core train`: the training of the chapters, stopping and resuming, bad rows."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from mmcl_core.cli import train
from mmcl_core.cli.runs import read_run
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.augment import paraphrase
from mmcl_core.data.groups import caption_groups
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.evaluation import embed_all, recall_at_k
from mmcl_core.methods import CLIP
from mmcl_core.training import fit
from tests import ROOT
from tests.mmcl_core.cli.helpers import (
    SHAPES,
    SMALL,
    assert_same_weights,
    draw_folder,
    stopping,
    weights,
)


def test_it_is_the_training_and_the_measure_of_the_chapter(run, tmp_path) -> None:
    arguments = ["--method", "clip", *SHAPES, "--epochs", 2, "--seed", 5, "--detail", 2]
    assert run("train", *arguments, "--out", tmp_path)[0] == 0
    data = ShapesCaptions(256, seed=0, size=24, detail=2)
    torch.manual_seed(5)
    model = CLIP(ImageEncoder(size=24), CaptionEncoder(len(data.tokenizer)))
    fit(
        model, data, epochs=2, batch_size=32, lr=2e-3, augment=paraphrase(data),
        seed=5, progress=False,
    )  # fmt: skip
    assert_same_weights(weights(tmp_path), dict(model.state_dict()))

    test = ShapesCaptions(100, seed=888, size=24, detail=2)
    image, caption = (embed_all(model, test, (name,)) for name in ("image", "caption"))
    groups = caption_groups(test.sentences[:, 0])
    assert len(groups.unique()) < 100
    out = run("evaluate", tmp_path, "--pairs", 100, "--seed", 888, "--json", "--device", "cpu")[1]
    values = json.loads(out)["recall"]["values"]
    for k in (1, 5, 10):
        assert values[f"image_to_caption@{k}"] == recall_at_k(image, caption, k, groups=groups)
        assert values[f"caption_to_image@{k}"] == recall_at_k(caption, image, k, groups=groups)


# --- stopping and going on ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["clip", "mct"])
def test_stop_and_resume_is_not_stopping(method, run, tmp_path, monkeypatch) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    arguments = ["--method", method, *SHAPES, "--epochs", 2, "--checkpoint-every", 3]
    assert run("train", *arguments, "--out", whole)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", stopping(11))
        code, out, err = run("train", *arguments, "--out", part)
    assert (code, out) == (130, "")
    assert f"{part / 'checkpoint.pt'} is that of step 9 of 16" in err
    assert "--resume" in err
    assert "not finished" in run("evaluate", part, "--pairs", 100, "--device", "cpu")[1]

    code, _, err = run("train", *arguments, "--out", part)
    assert code == 2
    assert "holds a run: go on with it by --resume" in err
    others = ["--seed", 1, "--epochs", 3, "--data", tmp_path]
    code, _, err = run("train", *others, "--resume", "--out", part)
    assert code == 2
    for said in ("--seed 0, not 1", "--epochs 2, not 3", f"--data shapes, not {tmp_path}"):
        assert said in err

    # With nothing but the folder: all else stands in it.
    code, out, err = run("train", "--resume", "--quiet", "--device", "cpu", "--out", part)
    assert (code, err) == (0, "")
    assert out.startswith("16 steps in ")
    assert_same_weights(weights(part), weights(whole))
    assert run("train", *arguments, "--resume", "--out", part)[1].startswith("16 steps in ")
    assert_same_weights(weights(part), weights(whole))


def test_resume_begins_where_there_is_nothing(run, tmp_path) -> None:
    arguments = ["--method", "clip", *SHAPES, "--epochs", 1, "--resume", "--out", tmp_path / "new"]
    assert run("train", *arguments)[1].startswith("8 steps in ")


def test_what_ends_before_the_first_checkpoint_leaves_nothing(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(train, "fit", stopping(1))
    for data in (["--data", "shapes", "--pairs", 64], ["--data", draw_folder(tmp_path / "data")]):
        arguments = ["--method", "clip", *data, *SMALL, "--out", tmp_path / "run"]
        code, out, err = run("train", *arguments)
        assert (code, out) == (130, "")
        assert "nothing is left behind" in err
        assert not (tmp_path / "run").exists()


def test_of_two_trainings_that_begin_at_once_one_goes_on(run, tmp_path, monkeypatch) -> None:
    """The second looks before the first has written anything, and must not write over it."""
    arguments = ["train", "--method", "clip", *SHAPES, "--epochs", 1, "--out", tmp_path / "run"]
    found = []

    def begins_late(*args, **kwargs):
        monkeypatch.setattr(train, "_known_run", lambda *_: None)
        found.append(run(*arguments))
        return fit(*args, **kwargs)

    monkeypatch.setattr(train, "fit", begins_late)
    assert run(*arguments)[0] == 0
    [(code, out, err)] = found
    assert (code, out) == (2, "")
    assert f"{tmp_path / 'run'}: another training began there; take another --out" in err
    assert len(weights(tmp_path / "run")) > 0
    assert read_run(tmp_path / "run").method == "clip"


@pytest.mark.slow
def test_two_processes_train_as_one(run, tmp_path) -> None:
    data = draw_folder(tmp_path / "data")  # one caption each: nothing is drawn at random
    arguments = ["--method", "clip", "--data", str(data), *SMALL, "--epochs", "2", "--lr", "2e-4"]
    assert run("train", *arguments, "--out", tmp_path / "one")[0] == 0
    two = tmp_path / "two"
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mmcl_core"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "train", *arguments, "--out", str(two)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("6 steps in ")
    assert done.stdout.count("\n") == 1  # one of the two speaks
    assert_same_weights(weights(two), weights(tmp_path / "one"), 1e-5)
    begun = read_run(two)
    first = begun.recipe(begun.training_data(two), 1).method.encoders["image"].position
    assert (weights(two)["encoders.image.position"] - first).abs().max() > 3e-4
    assert json.loads((two / "run.json").read_text())["begun_with"]["processes"] == 2

    code, _, err = run("train", "--resume", "--out", two)
    assert code == 2
    assert "processes = 1, found processes = 2" in err
    assert run("evaluate", two, "--device", "cpu")[0] == 0  # for use, it is as good as any


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills")
def test_a_killed_training_on_a_folder_resumes_exactly(run, tmp_path) -> None:
    """Killed with no warning, in whatever it does: a step, decoding, or writing a checkpoint."""
    folder = draw_folder(tmp_path / "data")
    arguments = ["--method", "mct", "--data", str(folder), *SMALL, "--epochs", "8"]
    arguments += ["--checkpoint-every", "1"]
    killed, out = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-m", "mmcl_core", "train", *arguments, "--out", str(killed)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not (killed / "checkpoint.pt").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert "not finished" in run("evaluate", killed, "--device", "cpu")[1]

    code, said, err = run("train", "--resume", "--quiet", "--device", "cpu", "--out", killed)
    assert (code, err) == (0, "")
    assert said.startswith("24 steps in ")
    assert run("train", *arguments, "--out", out)[0] == 0
    assert_same_weights(weights(killed), weights(out))


def test_bad_rows_stop_a_training_unless_they_are_skipped(run, tmp_path) -> None:
    folder, out = draw_folder(tmp_path / "data"), tmp_path / "run"
    same = (folder / "captions.txt").read_text().splitlines()[-1]
    with open(folder / "captions.txt", "a") as file:
        file.write(f"{same}\nnone.png,a missing picture\n")
    arguments = ["--method", "gmc", "--data", folder, *SMALL, "--epochs", 1, "--out", out]
    code, _, err = run("train", *arguments)
    assert code == 2
    assert "1 row cannot be used" in err  # the same caption twice is no reason to stop
    assert "pass --skip-bad-rows to" in err
    assert not out.exists()
    code, _, err = run("train", *arguments, "--skip-bad-rows")
    assert code == 0
    assert err.startswith("warning: left out: 1 row")
    assert run("evaluate", out, "--json")[0] == 0
