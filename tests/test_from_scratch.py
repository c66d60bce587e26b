"""From scratch = library: what a chapter builds gives the numbers of `mmcl_core`.

The definitions are taken from the notebook itself, so that page and library cannot drift apart.
A chapter is added by one `definitions("part/name")` and a short test of its names.
"""

import ast
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mmcl_core import evaluation, losses
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.drawing import VALUES
from mmcl_core.data.shapes import NAMED_AT_DETAIL
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.methods import CLIP

BOOK = Path(__file__).resolve().parent.parent / "book"
DEFINES = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


@cache
def definitions(notebook: str) -> dict[str, Any]:
    """The names that the code cells of `book/{notebook}.ipynb` define, nothing else executed.

    Imports, functions, classes and constants (`NAME = 0.2`), in the order of the page; the last of
    two definitions of one name counts. A function that leans on anything else of the page, such as
    its data, fails when it is called here: in a chapter it should take that as an argument.
    """
    path = BOOK / f"{notebook}.ipynb"
    namespace: dict[str, Any] = {"__name__": path.stem}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or "%pip" in source:  # the install cell is no Python
            continue
        kept = [node for node in ast.parse(source).body if _defines(node)]
        exec(compile(ast.Module(kept, []), str(path), "exec"), namespace)
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


@pytest.mark.parametrize(("batch", "width"), [(2, 2), (7, 3), (32, 64)])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
@pytest.mark.parametrize(
    "name", ["info_nce_loop", "info_nce_vectorised", "info_nce_stable", "info_nce"]
)
def test_contrastive_info_nce(name: str, temperature: float, batch: int, width: int) -> None:
    form = definitions("foundations/contrastive")[name]
    queries, keys = unit(2, batch, width, seed=batch)
    torch.testing.assert_close(
        value_and_gradients(lambda q, k: form(q, k, temperature), queries, keys),
        value_and_gradients(lambda q, k: losses.info_nce(q, k, temperature), queries, keys),
    )


def test_contrastive_forms_at_a_low_temperature() -> None:
    """In float32 the naive form breaks, as the page shows; the other two stay with the library."""
    page = definitions("foundations/contrastive")
    queries, keys = unit(2, 16, 8, seed=0).float()
    expected = losses.info_nce(queries, keys, 1e-3)
    assert not page["info_nce_vectorised"](queries, keys, 1e-3).isfinite()
    for name in ("info_nce_stable", "info_nce"):
        torch.testing.assert_close(page[name](queries, keys, 1e-3), expected)


def test_contrastive_halves_of_the_loss() -> None:
    page = definitions("foundations/contrastive")
    image, text = unit(2, 9, 4, seed=1)
    halves = page["pull"](image, text) + page["push"](image, text)
    torch.testing.assert_close(halves, losses.clip_loss(image, text, 1 / page["TAU"]))


def test_contrastive_alignment_and_uniformity() -> None:
    page = definitions("foundations/contrastive")
    x, y = unit(2, 20, 5, seed=2)
    assert page["alignment"](x, y).item() == pytest.approx(evaluation.alignment(x, y))
    assert page["uniformity"](x).item() == pytest.approx(evaluation.uniformity(x))


def test_laboratory_meaning() -> None:
    page, lab = definitions("foundations/laboratory"), ShapesCaptions(300)
    kinds = {name: len(values) for name, values in VALUES.items()}
    for detail, names in NAMED_AT_DETAIL.items():
        library = lab.meaning(detail)
        torch.testing.assert_close(
            page["meaning_vectorised"](lab.attributes, names, kinds), library
        )
        by_loop = page["meaning_loop"](lab.attributes, names)
        assert page["same_groups"](by_loop, library.tolist())
    assert not page["same_groups"]([0, 0, 1], [0, 1, 1])


def test_laboratory_tags() -> None:
    page, lab = definitions("foundations/laboratory"), ShapesCaptions(100, tags=("texture",))
    for name in ("tags_loop", "tags_vectorised"):
        assert torch.equal(page[name](lab.attributes["texture"], 3), lab.tags)


@pytest.mark.parametrize("groups", [None, torch.tensor([0, 1, 0, 2, 2, 2, 3])])
def test_clip_loss_of_the_page(groups: torch.Tensor | None) -> None:
    page = definitions("foundations/clip")
    image, text = unit(2, 7, 5, seed=0)
    library = value_and_gradients(
        lambda x, y: losses.clip_loss(x, y, 12.0, groups=groups), image, text
    )
    vectorised = value_and_gradients(
        lambda x, y: page["clip_loss_vectorised"](x, y, 12.0, groups), image, text
    )
    torch.testing.assert_close(vectorised, library)
    if groups is None:
        loop = value_and_gradients(lambda x, y: page["clip_loss_loop"](x, y, 12.0), image, text)
        torch.testing.assert_close(loop, library)


def test_tiny_clip_is_the_library_clip() -> None:
    lab = ShapesCaptions(24, detail=1)  # detail 1: some captions are identical
    torch.manual_seed(0)
    library = CLIP(ImageEncoder(width=32), CaptionEncoder(len(lab.tokenizer), width=32), dim=16)
    tiny = definitions("foundations/clip")["TinyCLIP"](
        library.encoders["image"], library.encoders["caption"], dim=16
    )
    tiny.image_head.load_state_dict({"weight": library.heads["image"][0].weight})
    tiny.caption_head.load_state_dict({"weight": library.heads["caption"][0].weight})
    batch = lab.__getitems__(range(24))
    torch.testing.assert_close(tiny.loss(batch), library.loss(batch))
