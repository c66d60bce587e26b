"""From scratch = library: what a chapter builds gives the numbers of `mmcl_core`.

The definitions are taken from the notebook itself, so that page and library cannot drift apart.
A chapter has a file of tests by its name, with `definitions("part/name")` and a short test of each
form, and of what its checks say of mistakes.
"""

import ast
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from mmcl_core.data import ShapesCaptions
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from tests import ROOT

BOOK = ROOT / "book"
DEFINES = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def cells(notebook: str) -> Iterator[str]:
    """The code cells of `book/{notebook}.ipynb`, but for the one that installs: it is no Python."""
    path = BOOK / f"{notebook}.ipynb"
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "%pip" not in source:
            yield source


@cache
def definitions(notebook: str) -> dict[str, Any]:
    """The names that the code cells of `book/{notebook}.ipynb` define, nothing else executed.

    Imports, functions, classes and constants (`NAME = 0.2`), in the order of the page; the last of
    two definitions of one name counts. A function that leans on anything else of the page, such as
    its data, fails when it is called here: in a chapter it should take that as an argument.
    """
    namespace: dict[str, Any] = {"__name__": notebook.rpartition("/")[2]}
    for source in cells(notebook):
        kept = [node for node in ast.parse(source).body if _defines(node)]
        exec(compile(ast.Module(kept, []), notebook, "exec"), namespace)
    return namespace


def _defines(node: ast.stmt) -> bool:
    """Whether a statement only gives a name to something, without using the page's data."""
    if isinstance(node, ast.Assign):
        try:
            ast.literal_eval(node.value)
        except ValueError:
            return False
        return True
    return isinstance(node, DEFINES)


def unit(*shape: int, seed: int) -> torch.Tensor:
    """Random unit vectors, float64: the two sides differ by rounding only."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def value_and_gradients(loss: Any, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """The loss, and its gradient by each tensor."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def two_encoders(data: ShapesCaptions) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    return {
        "image": ImageEncoder(size=32, width=32),
        "caption": CaptionEncoder(len(data.tokenizer), width=32),
    }
