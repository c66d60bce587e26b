"""Runs on disk: what `load_run` reads, what it refuses, and what it leaves as it was."""

import json
import random
import shutil

import numpy as np
import pytest
import torch

from mmcl_core import cli
from mmcl_core.cli.runs import read_run
from mmcl_core.data import PictureFolder
from mmcl_core.errors import CheckpointError
from tests.mmcl_core.cli.helpers import SMALL


def random_states() -> list[object]:
    _, keys, *rest = np.random.get_state()  # noqa: NPY002 (a caller may use it)
    return [torch.get_rng_state().tolist(), keys.tolist(), rest, random.getstate()]


def test_nothing_here_moves_the_random_state_of_the_caller(run, runs, photos, tmp_path) -> None:
    """B11: `load_run` seeded torch. Nor does any other function for Python, nor any command."""
    words = ["--data", photos, "--split", "train"]
    out, index = tmp_path / "run", tmp_path / "photos.npz"
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before = random_states()
        loaded = cli.load_run(runs["fdt"])
        pictures, _ = cli.embed_folder(loaded, PictureFolder(photos, size=24))
        vectors = [
            cli.embed_words(loaded, "a red star"),
            cli.embed_picture(loaded, photos / "Images" / "1.png"),
        ]
        assert all(len(cli.nearest(pictures, vector)) == 5 for vector in vectors)
        assert random_states() == before
        for method in ("fdt", "moco", "fusion"):
            shapes = ["--data", "shapes", "--objects", "1-1", "--pairs", 64, *SMALL]
            argv = ["--method", method, *shapes, "--epochs", 1, "--out", tmp_path / method]
            assert run("train", *argv)[0] == 0
            shutil.rmtree(tmp_path / method)
            assert run("evaluate", runs[method], "--pairs", 120)[0] == 0
        assert run("train", "--method", "mct", *words, *SMALL, "--epochs", 1, "--out", out)[0] == 0
        assert run("embed", out, photos, "--out", index)[0] == 0
        assert run("search", index, "red")[0] == 0
        assert random_states() == before
        shutil.rmtree(out)


def test_a_run_is_loaded_with_its_own_seed_all_the_same(runs) -> None:
    """What is no weight and not in the checkpoint either is as it was in the training."""
    torch.manual_seed(7)
    first = cli.load_run(runs["mct"]).method
    torch.manual_seed(8)
    second = cli.load_run(runs["mct"]).method
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"method": "simclr"}, "; method cannot be"),
        ({"size": "24"}, "; size cannot be"),
        ({"lr": None, "epochs": 1.5}, "; epochs, lr cannot be"),
        ({"objects": [1, 3]}, "; objects cannot be"),
        ({"queue": 7}, "; queue cannot be"),
    ],
)
def test_a_run_that_someone_has_changed_is_refused(change, found, runs, run, tmp_path) -> None:
    shutil.copytree(runs["clip"], tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    content = json.loads(path.read_text())
    content["arguments"] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="expected the arguments of a run"):
        read_run(tmp_path / "run")
    for argv in (["evaluate", path.parent], ["train", "--resume", "--out", path.parent]):
        code, _, err = run(*argv)
        assert code == 2
        assert found in err


def test_what_is_no_run_is_refused(runs, run, tmp_path) -> None:
    (tmp_path / "file").write_text("text")
    for path in (tmp_path, tmp_path / "file", tmp_path / "none"):
        with pytest.raises(CheckpointError, match="expected the folder of a run, found no"):
            cli.load_run(path)
    shutil.copytree(runs["clip"], tmp_path / "run")
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cut short"):
        cli.load_run(tmp_path / "run")
