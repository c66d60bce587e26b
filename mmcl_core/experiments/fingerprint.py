"""A hash of what the numbers of an experiment depend on: by it, a record is seen to be stale."""

import ast
import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmcl_core.errors import MMCLError

LIBRARY = Path(__file__).parent.parent
LIBRARIES = ("torch", "numpy", "scikit-learn")  # whose versions may change a number
# What a number does not depend on: files that deal with records, and the values of two names.
# Conditions are compared one by one, so that a new one leaves the others as they are.
NO_FILES = {
    LIBRARY / "experiments" / name for name in ("records.py", "recording.py", "fingerprint.py")
}
NO_NAMES = {"CONDITIONS", "__version__"}


def fingerprint(file: Path, library: Path = LIBRARY) -> str:
    """A hash of what the numbers of an experiment depend on.

    That is its file, all files of the library that it imports, directly or not, without comments
    and docstrings, and the versions of `LIBRARIES`. The same under each version of Python.
    """
    digest = hashlib.sha256(repr([version(name) for name in LIBRARIES]).encode())
    for form in sorted(_form(ast.parse(p.read_text("utf-8"))) for p in _reached(file, library)):
        digest.update(form.encode())
    return digest.hexdigest()[:16]


def _reached(file: Path, library: Path) -> set[Path]:
    """The file and those of the library that it imports, directly or not, anywhere in a file."""
    found: set[Path] = set()
    todo = [file]
    while todo:
        path = todo.pop()
        if path in found or path in NO_FILES:
            continue
        found.add(path)
        for name in _imported(path):
            parts = name.split(".")
            if parts[0] != library.name:
                continue
            for n in range(1, len(parts) + 1):  # each package on the way is imported, too
                module = library.parent.joinpath(*parts[:n])
                files = (module / "__init__.py", module.parent / f"{module.name}.py")
                todo += [f for f in files if f.is_file()]
    return found


def _imported(path: Path) -> Iterator[str]:
    """What a file may import: of `from a.b import c`, a.b and a.b.c, which may be a module."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise MMCLError(f"{path}: expected absolute imports, got a relative one")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _form(node: Any) -> str:
    """A syntax tree as text, without what changes no number and without empty fields.

    Not `ast.dump`, which changes from one version of Python to the next.
    """
    if isinstance(node, list):
        return f"[{', '.join(_form(n) for n in node if not _idle(n))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.JoinedStr):  # Python 3.12 puts empty texts into it
        node.values = [value for value in node.values if getattr(value, "value", None) != ""]
    fields = (f"{n}={_form(v)}" for n, v in ast.iter_fields(node) if v is not None and v != [])
    return f"{type(node).__name__}({', '.join(fields)})"


def _idle(node: Any) -> bool:
    """Whether it is a docstring, or gives one of `NO_NAMES` its value."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    names = node.targets if isinstance(node, ast.Assign) else []
    names = [node.target] if isinstance(node, ast.AnnAssign) else names
    return any(isinstance(name, ast.Name) and name.id in NO_NAMES for name in names)
