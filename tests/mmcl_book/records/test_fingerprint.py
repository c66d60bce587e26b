"""The fingerprint of an experiment: of what changes a number, and of nothing else."""

import ast
from pathlib import Path

import pytest

from mmcl_book.records.fingerprint import ROOT, _Code, fingerprint
from mmcl_core.errors import MMCLError

RUN = "def run(seed):\n    return f(seed) + h() + j(d.D) + kk.K"
EXPERIMENT = f"""
from mmcl_core.a import f
from mmcl_core.shelf import h
from mmcl_core import d, k as kk
from mmcl_core.shelf.j import j
CONDITIONS = {{'a': 1}}
{RUN}
"""
A = """
from mmcl_core.b import c
from math import prod
import warnings
Batch = dict[str, int]
RATE, NAMES = 0.5, [n for n in ("x", "y")]
def f(x: int, times: float = 2.0) -> float:
    "Doc."
    if x < 0:
        raise ValueError(f"expected more, got {_shown(x)}")
    assert x >= 0, "message"
    warnings.warn("slow")
    size: Batch = c.g(x) - RATE
    return prod([size, times]) + Tower(x).up()
def _shown(x):
    return f"{x:.3f}"
def other():
    return 1
class Tower:
    height: int
    def __init__(self, x): self.x = x
    def up(self): return self.x + 1
"""
PACKAGE = {
    "__init__.py": "__version__ = '1'",
    "a.py": A,
    "b/__init__.py": "",
    "b/c.py": (
        "def g(x):\n    import mmcl_core.d\n    return mmcl_core.d.E\ndef unused():\n    return 1"
    ),
    "d.py": "D = [1, None, 'text']\nE = 3",
    "k.py": "K = 1\nK += 1\nL = 1",
    "shelf/__init__.py": "'Doc.'\nfrom mmcl_core.shelf.h import h\nfrom mmcl_core.shelf.i import i",
    "shelf/h.py": "def h():\n    return 1",
    "shelf/i.py": "def i():\n    return 1",
    "shelf/j.py": "def j(x):\n    return x",
    "unused.py": "U = 1",
    "exp.py": EXPERIMENT,
}


@pytest.fixture
def library(tmp_path) -> Path:
    """A small package; its experiment is `exp.py`."""
    for name, content in PACKAGE.items():
        path = tmp_path / "mmcl_core" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "mmcl_core"


def hashed(library: Path) -> str:
    return fingerprint(library / "exp.py", library.parent)


def edited(library: Path, file: str, *changes: tuple[str, str]) -> str:
    """The hash with other text in a file."""
    text = (library / file).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (library / file).write_text(text)
    return hashed(library)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("a.py", "if x < 0:", "if x < 0:  # why"),
        ("a.py", '"Doc."', '"Another."\n    "Two."'),
        ("a.py", '    "Doc."\n', ""),
        ("a.py", "expected more, got", "expected at least 0, got"),
        ("a.py", "ValueError(", "RuntimeError("),
        ("a.py", ":.3f", ":.6g"),  # of what only the message uses
        ("a.py", '"message"', 'f"another {x}"'),
        ("a.py", '"slow"', '"very slow", stacklevel=2'),
        ("a.py", '    warnings.warn("slow")\n', ""),
        ("a.py", "x: int", "x: 'int | None'"),
        ("a.py", "-> float", ""),
        ("a.py", "size: Batch = ", "size = "),
        ("a.py", "Batch = dict[str, int]", "Batch = dict[str, float]"),
        ("a.py", "height: int", "height: float"),
        ("a.py", "def other():\n    return 1", "def other():\n    return 2\ndef another(): ..."),
        ("a.py", "c.g(x) - RATE", "(c.g(x)\n      - RATE)"),
        ("a.py", "from math import prod\n", "import os\nfrom math import prod\n"),
        ("__init__.py", "'1'", "'2'"),
        ("unused.py", "1", "2"),
        ("b/c.py", "def unused():\n    return 1", "def unused():\n    return 2"),
        ("shelf/i.py", "1", "2"),
        ("shelf/__init__.py", "from mmcl_core.shelf.i import i", "I = 1"),
        ("k.py", "L = 1", "L = 2"),
        ("exp.py", "{'a': 1}", "{'b': 2}"),
        ("exp.py", RUN, f"EPOCHS = 2\n{RUN}"),
    ],
)
def test_what_changes_no_number_makes_no_record_stale(file, old, new, library) -> None:
    """B2: a message, a type hint or a new function made 12 of 13 records stale."""
    before = hashed(library)
    assert edited(library, file, (old, new)) == before


def test_an_import_may_have_another_name(library) -> None:
    before = hashed(library)
    assert edited(library, "a.py", ("import prod", "import prod as p"), ("prod([", "p([")) == before
    assert edited(library, "exp.py", ("k as kk", "k"), ("kk.K", "k.K")) == before


def test_a_definition_may_move_to_another_file(library) -> None:
    before = hashed(library)
    (library / "moved.py").write_text(PACKAGE["shelf/j.py"])
    (library / "shelf/j.py").unlink()
    assert edited(library, "exp.py", ("mmcl_core.shelf.j", "mmcl_core.moved")) == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("a.py", "times: float = 2.0", "times: float = 3.0"),
        ("a.py", "RATE, NAMES = 0.5", "RATE, NAMES = 0.6"),
        ("a.py", "c.g(x) - RATE", "c.g(x) + RATE"),
        ("a.py", "c.g(x) - RATE", "RATE - c.g(x)"),
        ("a.py", "if x < 0:", "if x <= 0:"),
        ("a.py", "from math import prod", "from numpy import prod"),
        ("a.py", "from math import prod", "from math import fsum as prod"),
        ("a.py", "self.x + 1", "self.x + 2"),
        ("a.py", "    height: int\n", ""),
        ("a.py", "class Tower:", "class Tower(dict):"),
        ("a.py", "RATE, NAMES", "RATE, NAMES = 1, 2\nRATE, NAMES"),
        ("a.py", "def other()", "RATE += 1\ndef other()"),
        ("a.py", "def other()", "warnings.simplefilter('error')\ndef other()"),  # done on import
        ("__init__.py", "__version__", "print()\n__version__"),
        ("b/c.py", "d.E", "d.D"),
        ("b/c.py", "def g(x):", "@print\ndef g(x):"),
        ("d.py", "E = 3", "E = 4"),
        ("d.py", "1, None, 'text'", "None, 1, 'text'"),
        ("k.py", "K = 1\nK += 1", "K = 1\nK -= 1"),
        ("k.py", "K = 1\nK += 1", "K = 0\nK += 1"),
        ("shelf/__init__.py", "shelf.i import i", "shelf.i import i as h"),
        ("shelf/h.py", "1", "2"),
        ("shelf/j.py", "return x", "return -x"),
        ("exp.py", "j(d.D) + kk.K", "kk.K + j(d.D)"),
        ("exp.py", "d.D", "getattr(d, 'D')"),
    ],
)
def test_what_may_change_a_number_makes_a_record_stale(file, old, new, library) -> None:
    before = hashed(library)
    assert edited(library, file, (old, new)) != before


@pytest.mark.parametrize("line", ["from . import d", "from mmcl_core.d import *"])
def test_imports_that_hide_what_is_used_are_refused(line, library) -> None:
    (library / "a.py").write_text(f"{line}\n{A}")
    with pytest.raises(MMCLError, match=r"a\.py: expected absolute imports"):
        hashed(library)


def names_reached(experiment: str) -> dict[str, set[str]]:
    """By file of the repository: functions and classes whose change makes the record stale."""
    code = _Code(ROOT)
    reached = code.reached(ROOT / "mmcl_book" / "experiments" / f"{experiment}.py")
    files = {id(module): file for file, module in code.modules.items()}
    found: dict[str, set[str]] = {}
    for module, node in reached:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            file = files[id(module)].relative_to(ROOT).as_posix()
            found.setdefault(file, set()).add(node.name)
    return found


def test_the_fingerprint_knows_the_real_library() -> None:
    mct = names_reached("mct")
    assert {"run", "train", "Measures"} <= mct["mmcl_book/experiments/mct.py"]
    assert "MCT" in mct["mmcl_core/methods/mct.py"]
    assert "fit" in mct["mmcl_core/training.py"]
    assert "ShapesCaptions" in mct["mmcl_core/data/shapes.py"]
    assert any("linear_probe" in names for names in mct.values())
    others = ("cli/", "records", "figures", "widgets", "methods/fdt", "__main__")
    assert not [file for file in mct if any(part in file for part in others)]
    # What other processes run, by the name of the module.
    worker = names_reached("scaling")["mmcl_book/experiments/scaling_worker.py"]
    assert {"main", "learned"} <= worker
