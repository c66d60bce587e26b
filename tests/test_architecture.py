"""The floors of the library, and what importing it costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mmcl_core"
FLOORS = [
    {"errors"},
    {"data"},
    {"encoders", "losses", "sparsemax", "distributed"},
    {"grounding", "features"},
    {"methods"},
    {"checkpoints"},
    {"training", "evaluation"},
    {"figures", "widgets", "claims", "experiments"},
    {"__main__"},
]
HEAVY = ("matplotlib", "umap", "ipywidgets", "kornia", "sklearn")


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """The parts of mmcl_core that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("mmcl_core.")}
    return found


def test_every_file_has_a_floor() -> None:
    known = set().union(*FLOORS) | {"__init__", "__pycache__"}
    assert {part(p) for p in PACKAGE.rglob("*.py")} <= known


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_a_file_imports_only_from_floors_below(path: Path) -> None:
    own = part(path)
    floor = next((i for i, names in enumerate(FLOORS) if own in names), 0)
    allowed = set().union(*FLOORS[:floor]) | ({own} if path.parent != PACKAGE else set())
    assert imported_parts(path) <= allowed


@pytest.mark.parametrize(
    "module", ["mmcl_core", "mmcl_core.methods", "mmcl_core.data.augment", "mmcl_core.evaluation"]
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
