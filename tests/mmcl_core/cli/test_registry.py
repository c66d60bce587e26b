"""The registry: each method trains and is measured, and no other file knows one by its name."""

import ast
import json
from pathlib import Path

import pytest

from mmcl_core import cli
from mmcl_core.cli.evaluate import MEASURES
from mmcl_core.cli.registry import METHODS
from tests.mmcl_core.cli.helpers import SHAPES

# What is measured on scenes, and how many values; on pictures; whether it has words.
EXPECTED = {
    "clip": ({"recall": 9, "probes": 10}, ("recall",), True),
    "siglip": ({"recall": 9, "probes": 10}, ("recall",), True),
    "moco": ({"probes": 10}, (), False),
    "mct": ({"recall": 9, "probes": 10}, ("recall",), True),
    "fdt": ({"recall": 9, "codebook": 6}, ("recall", "codebook"), True),
    "gmc": ({"accuracy": 8}, ("recall",), True),
    "fusion": ({"accuracy": 8}, (), False),
}


def test_the_registry_is_what_is_expected() -> None:
    assert METHODS.keys() == EXPECTED.keys()
    for name, (scenes, pictures, words) in EXPECTED.items():
        entry = METHODS[name]
        assert (entry.scenes, entry.pictures) == (tuple(scenes), pictures)
        assert words == (entry.wordless == "")
        assert {*scenes, *pictures} <= MEASURES.keys()


def test_no_other_file_knows_a_method_by_its_name() -> None:
    """To add one touches the registry; the examples of the help may name some."""
    package = Path(cli.__file__).parent
    for path in [*package.glob("*.py"), package.parent / "__main__.py"]:
        if path.name == "registry.py":
            continue
        strings = {
            node.value for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }  # fmt: skip
        assert not strings & METHODS.keys(), path.name


@pytest.mark.parametrize("method", EXPECTED)
def test_each_method_trains_and_is_measured(method, run, tmp_path) -> None:
    one = ["--objects", "1-1"] if METHODS[method].labels else []
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
    names = found.keys() - {"run", "method", "step", "steps"}
    assert {name: len(found[name]["values"]) for name in names} == EXPECTED[method][0]
    for name in names - {"codebook"}:
        assert all(0 <= value <= 1 for value in found[name]["values"].values())

    code, table, err = run("evaluate", tmp_path, "--pairs", 150, "--device", "cpu")
    assert (code, err) == (0, "")
    assert table.startswith(f"{method} of {tmp_path}, step 8 of 8\n")
    for name in names - {"codebook"}:
        assert found[name]["on"] in table
        assert all(f"{value:.3f}" in table for value in found[name]["values"].values())


def test_each_method_stands_in_the_help(run) -> None:
    for command in ("train", "evaluate"):
        words = run(command, "--help")[1].replace(",", " ").split()
        assert METHODS.keys() <= set(words)
