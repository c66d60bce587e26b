"""A hash of the code that the numbers of an experiment depend on: by it a record is seen as stale.

It begins at `run`, and takes each function, class and module-level name that is used from there, in
both packages. What changes no number is left out: comments, docstrings, type hints, messages of
errors and warnings, where a definition stands, and all that `run` cannot reach. Names of variables
count: after a refactoring, `python -m mmcl_book record NAME --confirm` runs the first seed again.
"""

import ast
import functools
import hashlib
from pathlib import Path
from typing import Any

from mmcl_core.errors import MMCLError

PACKAGES = ("mmcl_core", "mmcl_book")
ROOT = Path(__file__).parent.parent.parent  # of both
# Compared one by one with those of a record, so that a new one leaves the others as they are.
NO_NAMES = {"CONDITIONS"}


def fingerprint(file: Path, root: Path = ROOT) -> str:
    """A hash of what `run` of an experiment computes; the same under each version of Python.

    Args:
        file: the experiment.
        root: the folder with the packages.

    Raises:
        MMCLError: a file imports relatively, or by `*`.
    """
    forms = sorted(_form(node, module) for module, node in _Code(root).reached(file))
    return hashlib.sha256("\n".join(forms).encode()).hexdigest()[:16]


class _Module:
    """A file: what it defines by name, what it imports, and what it does when it is imported."""

    def __init__(self, file: Path, text: str) -> None:
        self.defined: dict[str, list[ast.stmt]] = {}
        self.imported: dict[str, tuple[str, str]] = {}  # name: module, and the name in it or ""
        self.done: list[ast.stmt] = []
        tree = _Plain().visit(ast.parse(text))
        for node in ast.walk(tree):  # functions import, too
            if isinstance(node, ast.Import):
                for alias in node.names:
                    bound = alias.name if alias.asname else alias.name.partition(".")[0]
                    self.imported[alias.asname or bound] = (bound, "")
            elif isinstance(node, ast.ImportFrom):
                if node.level or node.names[0].name == "*":
                    raise MMCLError(f"{file}: expected absolute imports, each name by itself")
                for alias in node.names:
                    self.imported[alias.asname or alias.name] = (str(node.module), alias.name)
        for node in tree.body:
            names = set()
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = {node.name}
            elif isinstance(node, ast.Assign | ast.AugAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                parts = (part for target in targets for part in ast.walk(target))
                stored = (n for n in parts if isinstance(n, ast.Name))
                names = {n.id for n in stored if isinstance(n.ctx, ast.Store)}
            for name in names:
                self.defined.setdefault(name, []).append(node)
            if not names and not isinstance(node, ast.Import | ast.ImportFrom):
                self.done.append(node)


_read = functools.cache(_Module)  # of one text, for several experiments


class _Code:
    """The files below a folder, each read once."""

    def __init__(self, root: Path) -> None:
        self.root, self.modules = root, dict[Path, _Module]()

    def module(self, file: Path) -> _Module:
        if file not in self.modules:
            self.modules[file] = _read(file, file.read_text("utf-8"))
        return self.modules[file]

    def reached(self, file: Path) -> list[tuple[_Module, ast.stmt]]:
        """All that `run` of the file uses, directly or not: each statement and its module."""
        found: dict[ast.stmt, _Module] = {}
        asked: set[tuple[Path, str | None]] = set()
        todo: list[tuple[Path, str | None]] = [(file, "run")]
        while todo:
            path, name = todo.pop()
            if (path, name) in asked:
                continue
            asked.add((path, name))
            module = self.module(path)
            nodes = module.defined.get(name or "", [])
            if name == "":  # a module as such, of which any name may be used
                nodes = [node for of in module.defined.values() for node in of]
            if (path, None) not in asked:  # what it and the packages around it do on import
                todo.append((path, None))
                inits = (above / "__init__.py" for above in path.parents if above != self.root)
                todo += [(init, None) for init in inits if init.is_file()]
            for node in module.done if name is None else nodes:
                found[node] = module
                todo += self._used(node, path)
        return [(module, node) for node, module in found.items()]

    def _used(self, node: ast.AST, file: Path) -> list[tuple[Path, str | None]]:
        """The names that a statement uses: their files, and the names in these."""
        module, used = self.module(file), list[tuple[Path, str | None]]()
        parts = list(ast.walk(node))
        inner = {part.value for part in parts if isinstance(part, ast.Attribute)}
        for part in parts:
            names = _dotted(part) if part not in inner else []
            if not names or names[0] in NO_NAMES:
                continue
            if names[0] in module.defined:
                used.append((file, names[0]))
            elif names[0] in module.imported:
                of, name = module.imported[names[0]]
                used += self._behind(of, *([name] if name else []), *names[1:], "")
        return used

    def _behind(self, module: str, name: str, *more: str) -> list[tuple[Path, str | None]]:
        """The file behind a name of a module, and the name in it; none in another package.

        What a name of a package stands for is followed: another module, or a name that it hands on.
        """
        if module.partition(".")[0] not in PACKAGES:
            return []
        place = self.root.joinpath(*module.split("."))
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if name in self.module(file).defined:
            return [(file, name)]
        of, original = self.module(file).imported.get(name, (module, name))
        if name and (of, original) != (module, name):
            return self._behind(of, original, *more)
        if name and ((place / name).is_dir() or (place / f"{name}.py").is_file()):
            return self._behind(f"{module}.{name}", *(more or ("",)))
        return [(file, "")]  # all of it, for such as `module.__name__`


def _dotted(node: ast.AST) -> list[str]:
    """Of `a.b.c`, the three names; of anything else, none."""
    if isinstance(node, ast.Name):
        return [node.id]
    above = _dotted(node.value) if isinstance(node, ast.Attribute) else []
    return [*above, node.attr] if above and isinstance(node, ast.Attribute) else []


class _Plain(ast.NodeTransformer):
    """Takes away what changes no number."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        if node.value is None:  # the field of a class
            return ast.Expr(node.target)
        return self.generic_visit(ast.Assign([node.target], node.value))

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        called = _dotted(node.value.func) if isinstance(node.value, ast.Call) else []
        if isinstance(node.value, ast.Constant) or called[-1:] == ["warn"]:
            return None
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        node.exc = node.cause = None
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.msg = None
        return self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        # Python 3.12 puts empty texts into it.
        node.values = [value for value in node.values if getattr(value, "value", None) != ""]
        return self.generic_visit(node)


def _form(node: Any, module: _Module) -> str:
    """A syntax tree as text, with what an imported name is called where it comes from.

    Not `ast.dump`, which changes from one version of Python to the next.
    """
    if isinstance(node, list):
        idle = (ast.Import, ast.ImportFrom)
        return f"[{', '.join(_form(n, module) for n in node if not isinstance(n, idle))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Name) and node.id in module.imported:
        of, name = module.imported[node.id]
        within = of.partition(".")[0] in PACKAGES  # there, a definition may move
        return f"Name({(name or of.rpartition('.')[2]) if within else (of, name)})"
    fields = ((n, v) for n, v in ast.iter_fields(node) if v is not None and v != [])
    return f"{type(node).__name__}({', '.join(f'{n}={_form(v, module)}' for n, v in fields)})"
