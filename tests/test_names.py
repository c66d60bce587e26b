"""What another file imports is not private."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("mmcl_core", "mmcl_book", "tools")
FILES = [path for part in PARTS for path in (ROOT / part).rglob("*.py")]


def private(source: str) -> list[str]:
    """Names with a leading underscore that are taken from a file of this repository."""
    return [
        f"{node.module}.{name.name}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmcl_")
        for name in node.names
        if name.name.startswith("_") and not name.name.startswith("__")
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_another_file_imports_is_not_private(path: Path) -> None:
    assert not private(path.read_text(encoding="utf-8"))


def test_a_private_name_is_found() -> None:
    source = "from mmcl_core.evaluation.checks import _unit, told\nfrom os import _exit\n"
    assert private(source) == ["mmcl_core.evaluation.checks._unit"]
