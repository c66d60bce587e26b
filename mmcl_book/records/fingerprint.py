"""A hash of what the numbers of an experiment depend on: by it, a record is seen to be stale."""

import ast
import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmcl_core.errors import MMCLError

PACKAGES = ("mmcl_core", "mmcl_book")
ROOT = Path(__file__).parent.parent.parent  # of both
LIBRARIES = ("torch", "numpy", "scikit-learn")  # whose versions may change a number
# What a number does not depend on: files that deal with records, and the values of two names.
# Conditions are compared one by one, so that a new one leaves the others as they are.
NO_FILES = set(Path(__file__).parent.glob("*.py"))
NO_NAMES = {"CONDITIONS", "__version__", "__all__"}


def fingerprint(file: Path, root: Path = ROOT) -> str:
    """A hash of what the numbers of an experiment depend on.

    That is its file, all files of the library that it imports, directly or not, without comments
    and docstrings, and the versions of `LIBRARIES`. The same under each version of Python. Of a
    package whose `__init__.py` only hands names on, the files of the names that are asked for: a
    new method beside the others leaves their records as they are.
    """
    digest = hashlib.sha256(repr([version(name) for name in LIBRARIES]).encode())
    for form in sorted(_form(ast.parse(p.read_text("utf-8"))) for p in _reached(file, root)):
        digest.update(form.encode())
    return digest.hexdigest()[:16]


def _reached(file: Path, root: Path) -> set[Path]:
    """The file and those of the library that it imports, directly or not, anywhere in a file."""
    found: set[Path] = set()
    todo = [file]
    while todo:
        path = todo.pop()
        if path not in found and path not in NO_FILES:
            found.add(path)
            for module, name in _imports(path):
                todo += _behind(module, name, root)
    return found


def _imports(path: Path) -> Iterator[tuple[str, str]]:
    """What a file imports, as module and name; of `import a.b`, the name is empty."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise MMCLError(f"{path}: expected absolute imports, got a relative one")
            yield from ((node.module or "", alias.name) for alias in node.names)


def _behind(module: str, name: str, root: Path) -> Iterator[Path]:
    """The files of the library behind one import, those on the way to them included."""
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return
    place = root.joinpath(*parts)
    for above in reversed(place.relative_to(root).parents[:-1]):
        init = root / above / "__init__.py"
        if init.is_file() and _handed_on(init) is None:
            yield init
    if place.with_suffix(".py").is_file():
        yield place.with_suffix(".py")
        return
    handed_on = _handed_on(place / "__init__.py")
    if handed_on is None or not name:  # `import a.b`: any name of it may be used
        yield place / "__init__.py"
    if handed_on and name in handed_on:
        yield from _behind(handed_on[name], name, root)
    elif name:
        yield from _behind(f"{module}.{name}", "", root) if _is_module(place / name) else ()


def _is_module(place: Path) -> bool:
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def _handed_on(init: Path) -> dict[str, str] | None:
    """Of a file that only hands names on: each name and its module. None of any other file."""
    names: dict[str, str] = {}
    for node in ast.parse(init.read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: node.module for alias in node.names}
        elif not _idle(node):
            return None
    return names


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
