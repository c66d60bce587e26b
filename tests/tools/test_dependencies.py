"""pyproject.toml names what is imported: the library's own needs, and those of the book's extra."""

import ast
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import jupytext
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = {"mmcl_core", "mmcl_book"}
# Two are imported where they are asked for; the third limits the threads of scikit-learn, and
# comes with it.
LAZY = {"kornia", "pooch", "threadpoolctl"}


def declared(lines: list[str]) -> set[str]:
    """The distributions that are named."""
    return {canonicalize_name(Requirement(line).name) for line in lines}


def imported(code: str) -> set[str]:
    """The top-level packages that code imports, wherever in it, without those of Python."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found - OURS - sys.stdlib_module_names


GIVERS = {
    name: {canonicalize_name(giver) for giver in givers}
    for name, givers in metadata.packages_distributions().items()
}


def undeclared(names: set[str], known: set[str]) -> set[str]:
    """The imports that no declared distribution gives."""
    return {name for name in names if not known & GIVERS.get(name, set())}


CORE, BOOK = PROJECT["dependencies"], PROJECT["optional-dependencies"]["book"]
FILES = {
    path: imported(path.read_text(encoding="utf-8"))
    for name in sorted(OURS)
    for path in sorted((ROOT / name).rglob("*.py"))
}
CHAPTERS = {
    path: imported("\n".join(c.source for c in jupytext.read(path).cells if c.cell_type == "code"))
    for path in sorted((ROOT / "book").rglob("*.md"))
    if "kernelspec" in path.read_text(encoding="utf-8")
}


@pytest.mark.parametrize("path", [*FILES, *CHAPTERS], ids=lambda path: path.stem)
def test_what_is_imported_is_declared(path: Path) -> None:
    if "mmcl_core" in path.relative_to(ROOT).parts:
        assert undeclared(FILES[path] - LAZY, declared(CORE)) == set()
    else:  # the companion, and chapters: what their first cell installs
        assert undeclared((FILES | CHAPTERS)[path], declared(CORE + BOOK)) == set()


def test_an_import_that_nobody_declares_is_found() -> None:
    names = imported("import numpy.linalg, os, jupytext\ndef f():\n from mmcl_core import torch")
    assert undeclared(names, declared(CORE + BOOK)) == {"jupytext"}


def test_what_is_declared_is_imported() -> None:
    names = set().union(*FILES.values(), *CHAPTERS.values())
    used = set().union(*(GIVERS.get(name, set()) for name in names))
    assert declared(CORE + BOOK) <= used


def test_what_is_declared_is_pinned() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = declared([line for line in lines if line and line[0] not in "#-"])
    dev = PROJECT["optional-dependencies"]["dev"]
    assert declared(CORE + BOOK + dev) - pins == {"mmcl-core"}
