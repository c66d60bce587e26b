"""What the library needs and loads, and that the floors of both packages are kept by a check."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import ROOT

NEEDED = ("torch", "numpy", "pillow", "tqdm", "scikit-learn")
HEAVY = ("matplotlib", "umap", "ipywidgets", "kornia", "sklearn", "mmcl_book")

# --- with what a reader installs, and nothing else ------------------------------------------------

# Each step in turn; what it printed, or how it failed, by its name.
CHILD = '''
import contextlib, io, json, sys, traceback
blocked, heavy, steps = json.load(sys.stdin)

class Hiding:
    """A finder that does not find what is blocked."""
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in blocked
        return None if hidden else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Hiding, sys.meta_path)
found = {}
for name, code in steps.items():
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, {"__name__": "__main__"})
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code:
            out.write(f"FAILED\\n{traceback.format_exc()}")
    loaded = [module for module in heavy if module in sys.modules]
    found[name] = {"out": out.getvalue(), "loaded": loaded}
print(json.dumps(found))
'''


def needed() -> set[str]:
    """The distributions of `NEEDED`, and what these need."""
    found: set[str] = set()
    todo = list(NEEDED)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        found.add(name)
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return found


def ten_lines() -> str:
    """The first program of the README, with fewer scenes."""
    program = re.findall(r"^```python\n(.+?)^```", (ROOT / "README.md").read_text(), re.M | re.S)[0]
    for much, few in {"6000": "96", "5000": "64", "epochs=8": "epochs=1", "128": "32"}.items():
        assert much in program
        program = program.replace(much, few)
    return program


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Each step, run in one process in which only what `NEEDED` says can be imported."""
    allowed = needed()
    blocked = {"mmcl_book"} | {
        module
        for module, names in metadata.packages_distributions().items()
        if not any(re.sub(r"[-_.]+", "-", name).lower() in allowed for name in names)
    } - {"mmcl_core"}
    assert {"matplotlib", "umap", "ipywidgets", "pytest"} <= blocked
    assert not {"torch", "numpy", "PIL", "tqdm", "sklearn", "scipy"} & blocked
    parts = ("training", "methods", "evaluation", "data", "data.augment", "cli", "features")
    command = "import sys; from mmcl_core.cli.program import main; sys.exit(main({argv!r}))"
    run = str(tmp_path_factory.mktemp("runs") / "moco")
    train = f"train --method moco --data shapes --pairs 64 --size 24 --batch-size 32 --out {run}"
    program = {
        "import mmcl_core": "import mmcl_core",
        "import its parts": "\n".join(f"import mmcl_core.{part}" for part in parts),
        "help": command.format(argv=["train", "--help"]),
        "readme": ten_lines(),
        "train": command.format(argv=[*train.split(), "--epochs", "1", "--device", "cpu"]),
        "evaluate": command.format(argv=["evaluate", run, "--pairs", "100", "--device", "cpu"]),
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps([[*blocked], HEAVY, program]), text=True,
        capture_output=True, cwd=ROOT, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("step", ["import mmcl_core", "import its parts", "help"])
def test_importing_loads_nothing_heavy(step, steps) -> None:
    assert "FAILED" not in steps[step]["out"], steps[step]["out"]
    assert steps[step]["loaded"] == []


@pytest.mark.parametrize(
    ("step", "printed"),
    [("readme", r"^[01]\.\d+$"), ("train", r"^2 steps in "), ("evaluate", r"^  colour +0\.")],
)
def test_it_needs_only_what_it_says_that_it_needs(step, printed, steps) -> None:
    assert "FAILED" not in steps[step]["out"], steps[step]["out"]
    assert re.search(printed, steps[step]["out"], re.M), steps[step]["out"]


# --- floors ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both packages, and the contracts."""
    root = tmp_path_factory.mktemp("copy")
    for package in ("mmcl_core", "mmcl_book"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, root / package, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


def lint_imports(root: Path) -> tuple[int, str]:
    """The exit code and what was printed of the check that `make lint` runs."""
    code = "from importlinter.cli import lint_imports_command as run; run()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=root, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(root), "COLUMNS": "200"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_floors_are_kept(copy) -> None:
    code, said = lint_imports(copy)
    assert code == 0, said
    assert "3 kept, 0 broken" in said


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        # B15: of `from mmcl_core import x`, the test by hand saw nothing.
        ("mmcl_core/data/groups.py", "from mmcl_core import training", "mmcl_core.training"),
        ("mmcl_core/losses/clip.py", "def f():\n    from mmcl_core import evaluation as e; e",
         "mmcl_core.evaluation"),
        ("mmcl_core/encoders.py", "from . import methods", "mmcl_core.methods"),
        ("mmcl_core/training.py", "from mmcl_book import claims", "mmcl_book.claims"),
        ("mmcl_core/cli/embed.py", "import mmcl_book.experiments.small",
         "mmcl_book.experiments.small"),
        ("mmcl_core/evaluation/space.py", "from matplotlib import pyplot", "matplotlib"),
        ("mmcl_book/experiments/gap.py", "from mmcl_book import figures", "mmcl_book.figures"),
    ],
)  # fmt: skip
def test_an_import_from_above_is_found(file, line, said, copy) -> None:
    path = copy / file
    before = path.read_text()
    path.write_text(f"{before}\n{line}\n")
    try:
        code, found = lint_imports(copy)
    finally:
        path.write_text(before)
    assert code == 1, found
    assert "1 broken" in found or "2 broken" in found
    importer = file.removesuffix(".py").replace("/", ".")
    assert re.search(rf"{re.escape(importer)} -> {re.escape(said)}", found), found


def ruff(text: str, name: str) -> str:
    """What ruff says of a file of that name."""
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise"]
    done = subprocess.run(
        [*command, "--stdin-filename", name, "-"], input=text, cwd=ROOT, capture_output=True,
        text=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize(
    "text",
    [
        'import importlib\n\nimportlib.import_module("mmcl_core.training")\n',
        'from importlib import import_module\n\nimport_module("mmcl_core.training")\n',
        'import importlib as i\n\nx = i.import_module\n',
        'import builtins\n\nbuiltins.__import__("mmcl_core.training")\n',
    ],
)  # fmt: skip
def test_no_file_of_the_packages_imports_by_a_string(text) -> None:
    """B15: no contract can see that."""
    for name in ("mmcl_core/data/coco.py", "mmcl_book/figures/frames.py"):
        assert "TID251" in ruff(text, name)
    assert "TID251" not in ruff(text, "tests/test_x.py")


def test_no_file_of_the_packages_uses_what_ruff_cannot_see() -> None:
    """The plain `__import__`, and `exec` of text."""
    for package in ("mmcl_core", "mmcl_book"):
        for path in (ROOT / package).rglob("*.py"):
            found = re.findall(r"\b__import__\b|\bexec\(|\brunpy\b", path.read_text("utf-8"))
            assert not found, path
