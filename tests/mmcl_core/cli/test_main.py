"""`python -m mmcl_core`: each method from end to end, stopping and resuming, and wrong input."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mmcl_core import __main__ as program
from mmcl_core.data import CaptionFolder, ShapesCaptions
from mmcl_core.data.augment import paraphrase
from mmcl_core.data.groups import caption_groups
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.errors import DataError
from mmcl_core.evaluation import embed_all, recall_at_k
from mmcl_core.evaluation import summary as measures
from mmcl_core.methods import CLIP, FDT
from mmcl_core.training import fit, load_checkpoint
from tests import ROOT

METHODS = ("clip", "moco", "mct", "fdt", "gmc", "fusion")
SMALL = ["--size", "24", "--batch-size", "32", "--device", "cpu", "--quiet"]
SHAPES = ["--data", "shapes", "--pairs", "256", *SMALL]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in this process: exit code, what was printed, what was complained."""

    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = program.main([str(arg) for arg in argv])
        except SystemExit as end:  # argparse's own way out
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return call


def weights(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["state"]


def assert_same_weights(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 0) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=tolerance, msg=name)


def stopping(steps: int) -> Callable[..., Any]:
    """A `fit` in which Ctrl-C is pressed in the step after so many."""

    def stopped(method: Any, data: Any, *, augment: Callable, **kwargs: Any) -> Any:
        left = [steps]

        def call(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return augment(batch)

        return fit(method, data, augment=call, **kwargs)

    return stopped


def draw_folder(root: Path, n: int = 96, objects: tuple[int, int] = (1, 3)) -> Path:
    """Pictures with one caption each, in the layout of Flickr8k as found today."""
    scenes = ShapesCaptions(n, seed=3, size=24, detail=2, objects=objects)
    (root / "Images").mkdir(parents=True)
    for i, pixels in enumerate(scenes.images):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(root / "Images" / f"{i}.png")
    with open(root / "captions.txt", "w", newline="", encoding="utf-8") as file:
        rows = [[f"{i}.png", scenes.text(i)] for i in range(n)]
        csv.writer(file, lineterminator="\n").writerows([["image", "caption"], *rows])
    for split, part in {"train": range(64), "test": range(64, n)}.items():
        names = "".join(f"{i}.png\n" for i in part)
        (root / f"Flickr_8k.{split}Images.txt").write_text(names)
    return root


# --- each method ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_and_is_measured(method, run, tmp_path) -> None:
    one = ["--objects", "1-1"] if method == "fusion" else []
    code, out, err = run(
        "train", "--method", method, *SHAPES, "--epochs", 1, *one, "--out", tmp_path
    )
    assert (code, err) == (0, "")
    assert out.startswith("8 steps in ")
    assert out.endswith(f": {tmp_path / 'checkpoint.pt'}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "run.json"]

    code, out, err = run("evaluate", tmp_path, "--pairs", 150, "--json", "--device", "cpu")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["method"], found["step"], found["steps"]) == (method, 8, 8)
    expected = {
        "clip": {"recall": 9, "probes": 10},
        "moco": {"probes": 10},
        "mct": {"recall": 9, "probes": 10},
        "fdt": {"recall": 9, "codebook": 6},
        "gmc": {"accuracy": 8},
        "fusion": {"accuracy": 8},
    }[method]
    names = found.keys() - {"run", "method", "step", "steps"}
    assert {name: len(found[name]["values"]) for name in names} == expected
    for name in names - {"codebook"}:
        assert all(0 <= value <= 1 for value in found[name]["values"].values())

    code, table, err = run("evaluate", tmp_path, "--pairs", 150, "--device", "cpu")
    assert (code, err) == (0, "")
    assert table.startswith(f"{method} of {tmp_path}, step 8 of 8\n")
    for name in names - {"codebook"}:
        assert found[name]["on"] in table
        assert all(f"{value:.3f}" in table for value in found[name]["values"].values())
    told = [line.split()[-1] for line in table.splitlines() if line.startswith("  shape ")]
    assert told == {"clip": ["yes"], "mct": ["yes"], "moco": ["no"]}.get(method, [])


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
        patch.setattr(program, "fit", stopping(11))
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
    monkeypatch.setattr(program, "fit", stopping(1))
    for data in (["--data", "shapes", "--pairs", 64], ["--data", draw_folder(tmp_path / "data")]):
        arguments = ["--method", "clip", *data, *SMALL, "--out", tmp_path / "run"]
        code, out, err = run("train", *arguments)
        assert (code, out) == (130, "")
        assert "nothing is left behind" in err
        assert not (tmp_path / "run").exists()


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
    begun = program.read_run(two)
    first = begun.recipe(begun.training_data(two)).method.encoders["image"].position
    assert (weights(two)["encoders.image.position"] - first).abs().max() > 3e-4
    assert json.loads((two / "run.json").read_text())["begun_with"]["processes"] == 2

    code, _, err = run("train", "--resume", "--out", two)
    assert code == 2
    assert "world_size" in err
    assert run("evaluate", two, "--device", "cpu")[0] == 0  # for use, it is as good as any


# --- a folder of pictures -------------------------------------------------------------------------


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
    method = program.read_run(out).recipe(train).method
    load_checkpoint(out / "checkpoint.pt", method)
    assert found["recall"]["values"] == measures.recall(method, data)

    # A caption more in the folder: the words stay those of the run.
    with open(folder / "captions.txt", "a") as file:
        file.write("0.png,an entirely new caption\n")
    assert run("evaluate", out)[0] == 0
    for words in (["--pairs", 100], ["--seed", 1]):
        code, _, err = run("evaluate", out, *words)
        assert code == 2
        assert "are for a run on shapes" in err


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
    assert err.startswith("warning: CaptionFolder left rows out: 1 row")
    assert run("evaluate", out, "--json")[0] == 0


def test_moco_of_a_folder_has_nothing_to_measure(run, tmp_path) -> None:
    folder, out = draw_folder(tmp_path / "data", n=64), tmp_path / "run"
    arguments = ["--method", "moco", "--data", folder, *SMALL, "--epochs", 1, "--out", out]
    assert run("train", *arguments)[0] == 0
    code, _, err = run("evaluate", out)
    assert code == 2
    assert "moco embeds pictures alone" in err


# --- help, and wrong input ------------------------------------------------------------------------


@pytest.mark.parametrize("command", program.COMMANDS)
def test_help_speaks_of_each_option(command, run) -> None:
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    parsers = program.parser()._subparsers._group_actions[0].choices
    for action in parsers[command]._actions:
        assert action.help
        for option in action.option_strings:
            assert option in out
        asked = action.required or not action.option_strings or action.nargs == 0
        assert asked or "default" in action.help.lower(), action.dest
    assert "examples:" in out
    assert run("--help")[0] == 0


@pytest.mark.parametrize("command", program.COMMANDS)
def test_the_examples_of_the_help_can_be_typed(command, run) -> None:
    examples = [
        line.partition("-m mmcl_core ")[2].split()
        for line in run(command, "--help")[1].splitlines()
        if line.startswith("  ") and "-m mmcl_core " in line
    ]
    assert len(examples) >= 2
    for example in examples:
        args = program.parser().parse_args(example)
        if example[0] == "train" and not args.resume:
            assert program._new_run(args).method == args.method


NEW = ["train", "--method", "clip", "--data", "shapes", "--out", "OUT"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: {train,evaluate,embed,search}"),
        (["train", "--method", "clip", "--out", "OUT"], "--data not given"),
        (["train", "--resume", "--out", "OUT"], "--method and --data not given"),
        ([*NEW, "--method", "simclr"], "invalid choice: 'simclr'"),
        ([*NEW, "--batch-size", "0"], "expected a whole number, at least 1; got '0'"),
        ([*NEW, "--seed", "-1"], "expected a whole number from 0"),
        ([*NEW, "--objects", "many"], "expected LOW-HIGH, such as 1-3; got 'many'"),
        ([*NEW, "--objects", "2-9"], "1 <= low <= high <= 4; got (2, 9)"),
        ([*NEW, "--size", "25"], "size must be an even number"),
        ([*NEW, "--pairs", "64"], "at least one batch of 128 samples; the data has 64"),
        ([*NEW, "--pairs", "64", "--batch-size", "8", "--lr", "-1"], "lr must be a number in"),
        ([*NEW, "--split", "train"], "--split: only for --data FOLDER; got --data shapes"),
        ([*NEW, "--data", ".", "--pairs", "9"], "--pairs: only for --data shapes; got --data ."),
        ([*NEW, "--data", "nowhere"], "nowhere: expected a folder with one of captions.txt"),
        ([*NEW, "--device", "meta"], "expected one of this machine, such as cpu; got meta"),
        ([*NEW, "--device", "abacus"], "expected one of this machine, such as cpu; got abacus"),
        ([*NEW, "--method", "fusion"], "--objects 1-1, got --data shapes --objects 1-3"),
        ([*NEW, "--method", "fusion", "--data", "."], "--objects 1-1, got --data ."),
        ([*NEW, "--pairs", "128", "--out", "FILE"], "FILE"),
        (["evaluate", "OUT"], "expected the folder of a run, found no run.json"),
        (["evaluate", "BROKEN"], "expected the arguments of a run, found something else"),
    ],
)
def test_wrong_input_is_told_and_leaves_nothing(arguments, said, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("not a folder")
    (tmp_path / "BROKEN").mkdir()
    (tmp_path / "BROKEN" / "run.json").write_text('{"arguments": {"method": "clip"}}')
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["BROKEN", "FILE"]


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


# --- measures -------------------------------------------------------------------------------------


def test_chance_of_recall_is_that_of_random_embeddings() -> None:
    data = ShapesCaptions(60, seed=9, size=24, detail=1, objects=(1, 1))
    found = []
    for seed in range(40):
        torch.manual_seed(seed)

        class Random(torch.nn.Module):
            def embed(self, batch: dict[str, Tensor]) -> Tensor:
                return torch.randn(len(next(iter(batch.values()))), 16)

        found.append(measures.recall(Random(), data, ks=(1, 5, 100)))
    assert found[0].keys() == {
        f"{name}@{k}" for name in ("image_to_caption", "caption_to_image", "chance") for k in (1, 5)
    }
    assert len({f["chance@1"] for f in found}) == 1
    for k in (1, 5):
        for way in ("image_to_caption", "caption_to_image"):
            mean = sum(f[f"{way}@{k}"] for f in found) / len(found)
            assert mean == pytest.approx(found[0][f"chance@{k}"], abs=0.03)
    alike = torch.cdist(*[data.sentences[:, 0].float()] * 2) == 0
    assert alike.sum() > 2 * 60  # so that it matters
    assert found[0]["chance@1"] == pytest.approx(float(alike.float().mean()))


def test_codebook_is_counted_over_all_samples() -> None:
    data = ShapesCaptions(50, seed=9, size=24)
    torch.manual_seed(0)
    method = FDT(
        ImageEncoder(size=24),
        CaptionEncoder(len(data.tokenizer)),
        codebook_size=16,
        grounding_temperature=50.0,
    )
    found = measures.codebook(method, data)
    with torch.no_grad():
        weights = method.eval().ground(data.batch(range(50)), "caption").weights
    assert found["caption_used"] == (weights > 1e-9).any(0).sum()
    assert found["caption_active"] == pytest.approx(float((weights > 0).sum(1).float().mean()))


def test_classes_need_one_object() -> None:
    scenes = ShapesCaptions(20, seed=9, size=24, objects=(1, 1))
    labels = measures.shape_and_colour(scenes)
    assert labels.max() < measures.CLASSES == 36
    shape, colour = scenes.attributes["shape"][:, 0], scenes.attributes["colour"][:, 0]
    assert torch.equal(labels // 6, shape)
    assert torch.equal(labels % 6, colour)
    with pytest.raises(DataError, match="one object each, got up to 3"):
        measures.shape_and_colour(ShapesCaptions(20, seed=9, size=24))
