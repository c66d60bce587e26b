"""`python -m mmcl_core`: its help, wrong input, and the words in which it complains."""

import ast
import io
import json
import os
import re
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch

import mmcl_core
from mmcl_core.cli import program, train
from mmcl_core.cli import runs as run_files
from mmcl_core.cli.registry import METHODS
from tests.mmcl_core.cli.helpers import SMALL

COMMANDS = ("train", "evaluate", "embed", "search")


def parsers() -> dict:
    return program.parser()._subparsers._group_actions[0].choices


def options_of(command: str) -> list:
    return [action for action in parsers()[command]._actions if action.dest != "help"]


# --- help -----------------------------------------------------------------------------------------


def test_the_commands_are_these() -> None:
    assert tuple(parsers()) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_speaks_of_each_option(command, run) -> None:
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    for action in options_of(command):
        assert action.help
        for option in action.option_strings:
            assert option in out
        asked = action.required or not action.option_strings or action.nargs == 0
        assert asked or "default" in action.help.lower(), action.dest
    assert "examples:" in out
    assert run("--help")[0] == 0
    # No range of an option can be broken by what the library finds later.
    for action in options_of(command):
        assert action.nargs == 0 or action.type is not None, action.dest


@pytest.mark.parametrize("command", COMMANDS)
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
            assert train._new_run(args).method == args.method


# --- wrong input ----------------------------------------------------------------------------------

NEW = ["train", "--method", "clip", "--data", "shapes", "--out", "OUT"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: command"),
        (["train", "--method", "clip", "--out", "OUT"], "--data not given"),
        (["train", "--resume", "--out", "OUT"], "--method and --data not given"),
        ([*NEW, "--method", "simclr"], "--method: expected one of clip, "),
        ([*NEW, "--batch-size", "0"], "--batch-size: expected a whole number, at least 1"),
        ([*NEW, "--pairs", "4294967296"], "at least 1 and below 2^32; got '4294967296'"),
        ([*NEW, "--seed", "-1"], "expected a whole number from 0"),
        ([*NEW, "--objects", "many"], "expected LOW-HIGH from 1 to 4, such as 1-3; got 'many'"),
        ([*NEW, "--objects", "2-9"], "expected LOW-HIGH from 1 to 4, such as 1-3; got '2-9'"),
        ([*NEW, "--objects", "3-2"], "expected LOW-HIGH from 1 to 4, such as 1-3; got '3-2'"),
        ([*NEW, "--detail", "5"], "--detail: expected 1, 2, 3 or 4; got '5'"),
        ([*NEW, "--size", "25"], "--size: expected a multiple of 8, from 8 to 1024; got '25'"),
        ([*NEW, "--size", "16"], "--size: expected at least 24 for shapes; got 16"),
        ([*NEW, "--pairs", "64"], "--batch-size: expected at most the 64 pairs; got 128"),
        *[([*NEW, "--lr", lr], f"--lr: expected a number above 0, not infinite; got '{lr}'")
          for lr in ("0", "-1", "nan", "inf", "1e999", "fast")],
        ([*NEW, "--split", "train"], "--split: only for --data FOLDER; got --data shapes"),
        ([*NEW, "--data", ".", "--pairs", "9"], "--pairs: only for --data shapes; got --data ."),
        ([*NEW, "--data", "nowhere"], "nowhere: expected a folder with one of captions.txt"),
        ([*NEW, "--device", "meta"], "expected one of this machine, such as cpu; got meta"),
        ([*NEW, "--device", "abacus"], "expected one of this machine, such as cpu; got abacus"),
        ([*NEW, "--method", "fusion"], "--objects 1-1, got --data shapes --objects 1-3"),
        ([*NEW, "--method", "fusion", "--data", "."], "--objects 1-1, got --data ."),
        ([*NEW, "--out", "FILE"], "--out: expected a folder, there or new; FILE is a file"),
        ([*NEW, "--pairs", "128", "--out", "FILE/new"], "FILE/new: Not a directory"),
        ([*NEW, "--out", ""], "--out: expected a name that is not empty; got ''"),
        ([*NEW, "--quiet", "--progress"], "expected --quiet or --progress, got both"),
        (["evaluate", "OUT"], "expected the folder of a run, found no run.json"),
        (["evaluate", "FILE"], "expected the folder of a run, found no run.json"),
        (["evaluate", "BROKEN"], "expected the arguments of a run; data, size, epochs, batch_size"),
        (["evaluate", "TEXT"], "expected the arguments of a run, found no such"),
    ],
)  # fmt: skip
def test_wrong_input_is_told_and_leaves_nothing(arguments, said, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("not a folder")
    (tmp_path / "BROKEN").mkdir()
    (tmp_path / "BROKEN" / "run.json").write_text('{"arguments": {"method": "clip"}}')
    (tmp_path / "TEXT").mkdir()
    (tmp_path / "TEXT" / "run.json").write_text("text")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())
    assert in_its_own_words(err, str(tmp_path), "batch_size")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["BROKEN", "FILE", "TEXT"]


def in_its_own_words(complaint: str, *without: str) -> bool:
    """Whether no argument, function, or name of Python's is in it, paths and the usage aside."""
    said = complaint.rpartition("\nusage")[0] + complaint.rpartition(program.PROGRAM)[2]
    for part in (*without, "open_clip", "mmcl_core["):  # names of packages are words of everyone
        said = said.replace(part, "")
    found = re.findall(r"\w=\S|\w\(|`|\b[a-z]+_[a-z_]+|\bNone\b|\bTrue\b|Errno|Traceback", said)
    assert not found, complaint
    return True


# Each is typed after each option of each command.
EXTREME = (
    "", " ", "0", "1", "3", "-1", "0.5", "nan", "-inf", "1e999", "4294967295", "4294967296",
    "9" * 40, "9" * 5000, "none/such", "FILE", "FOLDER", "PHOTOS", "1-", "3-1", "é\udcff", "shapes",
)  # fmt: skip


@pytest.mark.parametrize(
    ("command", "option"),
    [(command, action.dest) for command in COMMANDS for action in options_of(command)],
)
def test_no_option_can_be_broken(command, option, run, runs, photos, tmp_path, monkeypatch):
    """B16's kind: whatever stands after an option, the answer is in the words of the options.

    Trainings end at their first step, since some would take for ever; those below do not.
    """

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "fit", interrupted)
    monkeypatch.setattr(run_files.ShapesCaptions, "__init__", few(run_files.ShapesCaptions))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("text")
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "PHOTOS").symlink_to(photos, target_is_directory=True)
    assert run("embed", runs["words"], photos, "--out", "index.npz", "--quiet")[0] == 0
    base: dict[str, list[object]] = {
        "train": ["--method", "clip", "--data", "shapes", "--out", "OUT", *SMALL],
        "evaluate": [runs["clip"], "--pairs", 120],
        "embed": [runs["clip"], photos, "--out", "OUT.npz", "--quiet"],
        "search": ["index.npz", "red"],
    }
    action = next(action for action in options_of(command) if action.dest == option)
    for value in EXTREME if action.nargs != 0 else [None]:
        argv = list(base[command])
        if action.option_strings:
            argv += action.option_strings[:1] + ([] if value is None else [value])
        elif option == "queries":
            argv[1] = value
        else:
            argv[{"run": 0, "file": 0, "folder": 1}[option]] = value
        folders = ("split", "skip_bad_rows", "features", "pool", "dropout")
        if option in folders and command == "train":
            argv += ["--data", "PHOTOS"]
        code, out, err = run(command, *argv)
        assert code in (0, 2, 130), (argv, err)
        if code == 2:
            assert out == "" or command == "search", argv  # which answers its other queries
            assert err.count("error: ") == 1, err
            assert in_its_own_words(err, str(tmp_path), str(runs["clip"]), value or " ")
            assert len(err) < 2000 or len(value or "") > 1000
        shutil.rmtree("OUT", ignore_errors=True)
        Path("OUT.npz").unlink(missing_ok=True)
    assert (tmp_path / "FILE").read_text() == "text"


def few(data: type):
    """The `__init__` of drawn scenes, but not so many that drawing them takes long."""
    init = data.__init__

    def limited(self, n: int = 6000, **settings: object) -> None:
        init(self, min(n, 400), **settings)

    return limited


@pytest.mark.parametrize("method", METHODS)
def test_the_smallest_training_works_or_says_why_not(method, run, tmp_path) -> None:
    one = ["--objects", "1-1", "--size", "24", "--epochs", 1, "--quiet", "--device", "cpu"]
    argv = ["train", "--method", method, "--data", "shapes", "--pairs", 3, *one]
    code, out, err = run(*argv, "--batch-size", 1, "--out", tmp_path / "one")
    assert (code == 0 and out.startswith("3 steps")) or (code == 2 and in_its_own_words(err))
    code, out, err = run(*argv, "--batch-size", 3, "--out", tmp_path / "three")
    assert (code, err) == (0, "")


def test_a_learning_rate_that_is_too_high_is_told_of_in_options(run, tmp_path) -> None:
    """The library speaks of `lr` and `temperature`; there is a --lr here, and no temperature."""
    shapes = ["--data", "shapes", "--pairs", 64, *SMALL, "--epochs", 4, "--lr", "1e30"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code, _, err = run("train", "--method", "clip", *shapes, "--out", tmp_path / "run")
    assert code == 2
    assert "32 of 32 rows hold NaN or infinity" in err
    assert err.endswith(". Take a lower --lr\n")
    assert in_its_own_words(err)


def test_a_folder_of_pictures_is_told_of_in_options(run, photos, runs, tmp_path) -> None:
    """Bug-report 17, and other advice that only Python could follow."""
    shutil.copytree(photos, tmp_path / "data")
    train_on = ["train", "--method", "clip", "--data", tmp_path / "data", *SMALL]
    train_on += ["--epochs", 1, "--out", tmp_path / "run"]
    with open(tmp_path / "data" / "captions.txt", "a") as file:
        file.write(f"0.png,{'red ' * 80}\n")
    code, _, err = run(*train_on)
    assert code == 2
    assert "expected a caption of at most 64 ids" in err
    assert "Correct the rows, or pass --skip-bad-rows to leave them out" in err
    assert in_its_own_words(err, str(tmp_path))
    code, _, err = run(*train_on, "--split", "dev")
    assert code == 2
    assert "for --split dev, got" in err
    assert "or leave out --split" in err
    assert in_its_own_words(err, str(tmp_path), "Flickr_8k")
    code, _, err = run(*train_on, "--skip-bad-rows")
    assert code == 0
    assert err.startswith("warning: left out: 1 row cannot be used: ")
    assert in_its_own_words(err, str(tmp_path))

    next((tmp_path / "data" / "Images").iterdir()).write_bytes(b"not a picture")
    shutil.copy(photos / "captions.txt", tmp_path / "data")
    shutil.rmtree(tmp_path / "run")
    code, _, err = run(*train_on)
    assert code == 2
    assert "or pass --skip-bad-rows, which finds such pictures at the start" in err
    assert in_its_own_words(err, str(tmp_path))


def test_too_little_memory_is_told(run, tmp_path, monkeypatch) -> None:
    cpu = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you ..."
    for error in (MemoryError(), RuntimeError(cpu), torch.OutOfMemoryError("CUDA out of memory")):

        def full(*args: object, error: BaseException = error, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr(run_files, "ShapesCaptions", full)
        code, _, err = run(*NEW[:-1], tmp_path / "run")
        assert code == 2
        assert "error: not enough memory; take smaller --pairs, --size or --batch-size" in err
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_program_is_not_hidden(run, monkeypatch) -> None:
    def wrong(*args: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(train, "_known_run", wrong)
    with pytest.raises(RuntimeError, match="a mistake"):
        run(*NEW)


def test_the_library_still_says_what_is_translated() -> None:
    """A message that changes there must change in `program.SAID`."""
    said = []
    for path in Path(mmcl_core.__file__).parent.rglob("*.py"):
        if path.name == "program.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = node.values
                said.append(
                    "".join(
                        getattr(part, "value", "") if isinstance(part, ast.Constant) else "'x'"
                        for part in parts
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.append(node.value)
    # The names of the settings of a training are data; the message has only "{key} = ".
    said.append("world_size = ")
    assert [words for words, _ in program.SAID if not any(re.search(words, s) for s in said)] == []


# --- streams --------------------------------------------------------------------------------------


def test_names_that_a_stream_has_no_letters_for(runs, photos_npz, tmp_path, monkeypatch) -> None:
    """Bug-report 4: half an answer, then a traceback, where the output is no UTF-8."""
    query = "강아지 red"
    for argv in ([query], [query, "--json"]):
        streams = {name: io.TextIOWrapper(io.BytesIO(), "cp1252") for name in ("stdout", "stderr")}
        with monkeypatch.context() as patch:
            for name, stream in streams.items():
                patch.setattr(sys, name, stream)
            assert program.main(["search", str(photos_npz), *argv]) == 0
        for stream in streams.values():
            stream.flush()
        out, err = (stream.buffer.getvalue().decode("cp1252") for stream in streams.values())
        assert "??? red" in out
        assert "not in the training: ???" in err
    assert json.loads(out)["queries"][0]["words"] == "??? red"


def test_who_has_seen_enough_may_close_the_pipe(photos_npz, monkeypatch) -> None:
    """Bug-report 14: `search ... | head -1` was an error."""
    read, write = os.pipe()
    os.close(read)
    with monkeypatch.context() as patch, open(write, "w") as closed:
        patch.setattr(sys, "stdout", closed)
        assert program.main(["search", str(photos_npz), "red"]) == 0
