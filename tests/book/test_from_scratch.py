"""From scratch = library: what a chapter builds gives the numbers of `mmcl_core`.

The definitions are taken from the notebook itself, so that page and library cannot drift apart.
A chapter is added by one `definitions("part/name")` and a short test of its names.
"""

import ast
import copy
import json
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn

from mmcl_book.experiments import gmc, moco, small, structure, tokens
from mmcl_book.methods import MMVAE, codes, vae
from mmcl_core import evaluation, losses
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.augment import compose, crop, paraphrase
from mmcl_core.data.drawing import ATTRIBUTES, VALUES
from mmcl_core.data.shapes import NAMED_AT_DETAIL
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.methods import CLIP, FDT, GMC, MCT, LateFusion, MoCo, blending
from mmcl_core.methods.moco import MomentumCopy
from mmcl_core.sparsemax import sparsemax
from tests import ROOT

BOOK = ROOT / "book"
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
    batch = lab.batch(range(24))
    torch.testing.assert_close(tiny.loss(batch), library.loss(batch))


# --- problems/heterogeneity -----------------------------------------------------------------------


def test_gap_and_cone_by_hand() -> None:
    page = definitions("problems/heterogeneity")
    x, y = unit(7, 5, seed=0), unit(7, 5, seed=1)
    assert float(page["cone_loop"](x)) == pytest.approx(evaluation.cone(x), abs=1e-12)
    assert float(page["cone_vectorised"](x)) == pytest.approx(evaluation.cone(x), abs=1e-12)
    assert float(page["gap_vectorised"](x, y)) == pytest.approx(
        evaluation.modality_gap(x, y), abs=1e-12
    )


@pytest.mark.parametrize("d", [-2.0, 0.0, 0.5, 1.0])
def test_shift_by_hand(d: float) -> None:
    page = definitions("problems/heterogeneity")
    x, y = unit(6, 4, seed=2), unit(6, 4, seed=3)
    for mine, library in zip(
        page["shift_by_hand"](x, y, d), evaluation.shift_gap(x, y, d), strict=True
    ):
        torch.testing.assert_close(mine, library)


def test_word_similarity_loop_and_vectorised() -> None:
    page = definitions("problems/heterogeneity")
    patches, words = unit(3, 4, 5, seed=4), unit(2, 6, 5, seed=5)
    table = page["word_similarity"](patches, words)
    for b in range(3):
        for c in range(2):
            alone = page["word_similarity_loop"](patches[b], words[c])
            assert float(table[b, c]) == pytest.approx(float(alone))


def test_word_similarity_is_that_of_the_library() -> None:
    page = definitions("problems/heterogeneity")
    data = ShapesCaptions(5, seed=1, size=32, objects=(1, 1), sentences=1, synonyms=False)
    torch.manual_seed(0)
    method = CLIP(ImageEncoder(size=32, width=32), CaptionEncoder(len(data.tokenizer), width=32))
    batch = data.batch(range(5))
    patches, _ = method.embed_tokens(batch, "image")
    words, real = structure.words_of(method, batch)
    table = structure.token_similarity(method, batch, batch)
    for c in range(5):  # the page has captions of one length
        mine = page["word_similarity"](patches, words[c, real[c]][None])
        torch.testing.assert_close(mine[:, 0], table[:, c])


# --- problems/missing -----------------------------------------------------------------------------


def two_encoders(data: ShapesCaptions) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    return {
        "image": ImageEncoder(size=32, width=32),
        "caption": CaptionEncoder(len(data.tokenizer), width=32),
    }


def test_tiny_fusion_is_late_fusion() -> None:
    page = definitions("problems/missing")
    data = ShapesCaptions(8, seed=0, size=32, objects=(1, 1))
    encoders = two_encoders(data)
    library = LateFusion(encoders, classes=36, hidden=16)
    mine = page["TinyFusion"](encoders, 36, 16)
    mine.fused.load_state_dict(library.fused.state_dict())
    mine.head.load_state_dict(library.heads["fusion"].state_dict())
    batch = data.batch(range(8))
    for present in (("image",), ("caption",), ("image", "caption")):
        part = {m: batch[m] for m in present}
        torch.testing.assert_close(mine.logits(part), library.logits(part))


def test_accuracy_of_subsets_is_missing_modality() -> None:
    page = definitions("problems/missing")
    data = ShapesCaptions(40, seed=0, size=32, objects=(1, 1))
    encoders = two_encoders(data)
    method = LateFusion(encoders, classes=6, hidden=16).eval()
    labels, names = data.attributes["shape"][:, 0], ("image", "caption")
    found = evaluation.missing_modality(
        method, data, torch.arange(6), data, labels, names, classifier="own"
    )
    batch = data.batch(range(40))
    assert page["accuracy_of_subsets"](method.logits, batch, labels, names) == pytest.approx(
        found.accuracy
    )


def test_keep_leaves_one_modality() -> None:
    keep = definitions("problems/missing")["keep"]
    generator = torch.Generator().manual_seed(0)
    assert keep(500, 3, 1.0, generator).sum(1).eq(1).all()
    assert keep(500, 3, 0.0, generator).all()
    assert float((~keep(4000, 3, 0.3, generator)).double().mean()) == pytest.approx(0.3, abs=0.03)


def test_blending_by_hand_is_the_library_s() -> None:
    by_hand = definitions("problems/missing")["blending_by_hand"]
    losses = {"image": ((3.0, 3.1), (1.0, 1.6)), "tags": ((2.0, 2.0), (1.9, 2.3)),
              "fusion": ((3.0, 3.0), (0.5, 0.5))}  # fmt: skip
    earlier = {head: pair[0] for head, pair in losses.items()}
    later = {head: pair[1] for head, pair in losses.items()}
    assert by_hand(losses) == pytest.approx(blending.blending_weights(earlier, later))


def test_could_be_told_is_a_count_of_the_commonest() -> None:
    could_be_told = definitions("problems/missing")["could_be_told"]
    said = torch.tensor([0, 0, 0, 1, 1, 2])
    labels = torch.tensor([4, 4, 3, 0, 1, 4])
    assert could_be_told(said, labels) == pytest.approx((2 + 1 + 1) / 6)


# --- methods/mct ----------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [1, 2, 4])
def test_tag_loss_of_the_page_is_that_of_the_queue(least: int) -> None:
    page = definitions("methods/mct")
    queries, keys = unit(2, 5, 6, seed=0)
    queue, generator = unit(9, 6, seed=1), torch.Generator().manual_seed(2)
    tags, others = ((torch.rand(n, 7, generator=generator) < 0.4).double() for n in (5, 9))
    also = page["shares"](tags, others, least)
    by_sets = [[len({*a.nonzero().flatten().tolist()} & {*b.nonzero().flatten().tolist()}) >= least
                for b in others] for a in tags]  # fmt: skip
    assert also.tolist() == by_sets
    library = value_and_gradients(
        lambda q, k, n: losses.queue_info_nce(q, k, n, 0.2, queue_positives=also),
        queries, keys, queue,
    )  # fmt: skip
    vectorised = value_and_gradients(
        lambda q, k, n: page["queue_loss"](q, k, n, 0.2, also), queries, keys, queue
    )
    loop = value_and_gradients(
        lambda q, k, n: page["tag_loss_loop"](q, k, n, tags, others, least, 0.2),
        queries, keys, queue,
    )  # fmt: skip
    torch.testing.assert_close(vectorised, library)
    torch.testing.assert_close(loop, library)
    torch.testing.assert_close(
        page["queue_loss"](queries, keys, queue, 0.2),
        losses.queue_info_nce(queries, keys, queue, 0.2),
    )


@pytest.mark.parametrize("least", [1, 2])
def test_tiny_mct_is_the_library_mct(least: int) -> None:
    """All five terms, gradients and queues, over three steps in which the queues go round."""
    page = definitions("methods/mct")
    data = ShapesCaptions(24, detail=1, size=32, objects=(1, 2))  # some captions are identical
    torch.manual_seed(0)
    encoders = ImageEncoder(size=32, width=32), CaptionEncoder(len(data.tokenizer), width=32)
    library = MCT(*encoders, tags=12, dim=16, queue=16, min_shared_tags=least)
    queues = {
        name: page["TinyQueue"](queue.keys.clone(), queue.labels.clone())
        for name, queue in library.queues.items()
    }
    tiny = page["TinyMCT"](*copy.deepcopy(encoders), queues, dim=16)
    pairs = [(tiny.image, library.query["image"]), (tiny.caption, library.query["caption"])]
    slow = zip(tiny.slow, (library.key[m].network for m in library.modalities), strict=True)
    for mine, theirs in [*pairs, *slow]:
        mine.load_state_dict(theirs.state_dict())
    trained = library.query, nn.ModuleList([tiny.image, tiny.caption])
    optimizers = [torch.optim.SGD([*towers.parameters()], lr=0.1) for towers in trained]
    views = compose(paraphrase(data, view=True), crop())
    for step in range(3):
        batch = views(data.batch(range(8 * step, 8 * step + 8)))
        theirs = library.loss(batch)
        mine, new = page["five_terms"](tiny, batch, least=least)
        torch.testing.assert_close(mine, {name: theirs[name] for name in mine})
        assert set(mine) | {"total"} == set(theirs)
        for total, optimizer in zip((theirs["total"], sum(mine.values())), optimizers, strict=True):
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        library.after_step()
        page["after_step"](tiny, new)
        for name, queue in library.queues.items():
            at = -int(queue.pointer)  # the page has the oldest key first
            torch.testing.assert_close(queues[name].keys, queue.keys.roll(at, 0))
            assert torch.equal(queues[name].labels, queue.labels.roll(at, 0))
    for mine, theirs in pairs:
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict())


def test_mct_needs_counts_scenes_that_one_attribute_tells_apart() -> None:
    needs = definitions("methods/mct")["needs"]
    data = ShapesCaptions(200, objects=(1, 2))
    objects = [
        [tuple(int(data.attributes[n][i, o]) for n in ATTRIBUTES) for o in range(2)]
        for i in range(200)
    ]
    for at, name in enumerate(ATTRIBUTES):
        rest = [sorted(one[:at] + one[at + 1 :] for one in of) for of in objects]
        alike = [
            any(rest[i] == rest[j] and sorted(objects[i]) != sorted(objects[j]) for j in range(200))
            for i in range(200)
        ]
        expected = sum(alike) / 200
        assert needs(data, name) == pytest.approx(expected)


def test_mct_exercises_name_what_fails() -> None:
    page = definitions("methods/mct")
    check, right = page["check_positives"], page["shares"]
    assert check(right) == "right"
    assert check(page["my_positives"]) == "not answered yet"
    assert "symmetric" in check(lambda a, b, k: (a @ b.T >= k) & (b.sum(1) <= a.sum(1)[:, None]))
    assert "others" in check(lambda a, b, k: (a[:, None] == b).all(2))
    assert "no tags" in check(lambda a, b, k: torch.ones(len(a), len(b), dtype=torch.bool))
    assert "not enough" in check(lambda a, b, k: a @ b.T >= 1)
    assert "bool" in check(lambda a, b, k: a @ b.T)
    assert "least=1" in check(lambda a, b, k: a @ b.T >= 2)
    assert page["check_floor"](math.log) == "right"
    assert "own key" in page["check_floor"](lambda P: P)
    assert "possible" in page["check_floor"](lambda P: P - 1)
    assert "reached" in page["check_floor"](lambda P: 0.0)


def test_mct_exercise_says_who_learns(monkeypatch) -> None:
    page = definitions("methods/mct")
    data = ShapesCaptions(16, detail=1, size=32, objects=(1, 2))
    encoders = ImageEncoder(size=32, width=32), CaptionEncoder(len(data.tokenizer), width=32)
    library = MCT(*copy.deepcopy(encoders), tags=12, dim=16, queue=16)
    queues = {n: page["TinyQueue"](queue.keys, queue.labels) for n, queue in library.queues.items()}
    tiny = page["TinyMCT"](*encoders, queues, dim=16)
    learners = {"momentum encoders": tiny.slow}
    for m in ("image", "caption"):
        tower = getattr(tiny, m)
        learners |= {f"{m} encoder": tower.encoder, f"{m} intra head": tower.intra}
        learners[f"{m} inter head"] = tower.inter
    views = compose(paraphrase(data, view=True), crop())
    for name, value in {"tiny": tiny, "data": data, "views": views, "LEARNERS": learners}.items():
        monkeypatch.setitem(page, name, value)
    check, right = page["check_learners"], page["of_queries"]
    assert check(page["learners"]) == "not answered yet"
    assert check(right) == "right"
    assert "not one name" in check(lambda term: "image encoder")
    assert "not in LEARNERS" in check(lambda term: {"head"})
    assert "follows" in check(lambda term: set(learners))
    assert "side of the keys" in check(lambda term: set(learners) - {"momentum encoders"})
    assert "another head" in check(lambda term: right(term) | right(term.replace("_to_", " ")))
    assert "tags: a gradient reaches" in check(
        lambda term: right(term) if term != "tags" else set()
    )


# --- methods/gmc ----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("name", ["gmc_loop", "gmc_vectorised", "gmc_exponentials"])
def test_gmc_loss_of_the_page(name: str, temperature: float) -> None:
    form = definitions("methods/gmc")[name]
    joint, *modalities = unit(4, 6, 5, seed=0)
    torch.testing.assert_close(
        value_and_gradients(lambda j, *m: form(j, m, temperature), joint, *modalities),
        value_and_gradients(lambda j, *m: losses.gmc_loss(m, j, temperature), joint, *modalities),
    )


def test_gmc_forms_at_a_low_temperature() -> None:
    page = definitions("methods/gmc")
    joint, other = unit(2, 8, 16, seed=0).float()
    part = F.normalize(joint + 0.01 * other, dim=1)
    expected = losses.gmc_loss([part], joint, 0.011)
    assert not page["gmc_exponentials"](joint, [part], 0.011).isfinite()
    torch.testing.assert_close(
        page["gmc_vectorised"](joint, [part], 0.011), expected, atol=1e-9, rtol=0
    )


def test_tiny_gmc_is_the_library_s() -> None:
    page = definitions("methods/gmc")
    data = ShapesCaptions(9, seed=0, size=32, objects=(1, 1))
    library = GMC(two_encoders(data), common=24, dim=8, hidden=16)
    tiny = page["TinyGMC"](library.encoders, library.joint_encoders, 24, 8, 16)
    tiny.bases.load_state_dict(library.bases.state_dict())
    tiny.head.load_state_dict(library.head.state_dict())
    batch = data.batch(range(9))
    torch.testing.assert_close(tiny.loss(batch), library.loss(batch)["total"])
    for present in (("image",), ("caption",), ("image", "caption")):
        part = {m: batch[m] for m in present}
        torch.testing.assert_close(page["embed"](tiny, part), library.embed(part))


def test_masked_nt_xent_is_that_of_the_experiment() -> None:
    page = definitions("methods/gmc")
    joint, part = unit(2, 7, 4, seed=3)
    label = torch.tensor([0, 0, 1, 2, 3, 3, 3])
    said = label // 2
    whole, half = (x[:, None] == x for x in (label, said))
    same = torch.cat([torch.cat([whole, half], 1), torch.cat([half, half], 1)])
    torch.testing.assert_close(
        page["masked_nt_xent"](joint, part, same, 0.2),
        gmc.masked_ntxent(joint, part, label, said, 0.2),
    )
    nothing = torch.eye(14, dtype=torch.bool)
    torch.testing.assert_close(
        page["masked_nt_xent"](joint, part, nothing, 0.2), page["nt_xent"](joint, part, 0.2)
    )


def test_nearest_class_and_plane() -> None:
    page = definitions("methods/gmc")
    whole, labels = unit(12, 3, seed=0), torch.arange(12) % 3
    assert page["nearest_class"](whole, whole, labels) == 1
    nearest = [int((whole @ -row).argmax()) for row in whole]
    right = sum(labels[i] == labels[j] for i, j in enumerate(nearest)) / 12
    assert page["nearest_class"](-whole, whole, labels) == pytest.approx(float(right))
    middle, axes = page["plane"](whole)
    torch.testing.assert_close(axes.T @ axes, torch.eye(2, dtype=torch.float64))
    spread = ((whole - middle) @ axes).var(dim=0, correction=0)
    largest = torch.linalg.eigvalsh(whole.T.cov(correction=0)).flip(0)[:2]
    torch.testing.assert_close(spread, largest)


def test_gmc_exercises_name_what_fails() -> None:
    page = definitions("methods/gmc")
    check = page["check_mean"]
    assert check(page["mean_on_sphere"]) == "not answered yet"
    assert check(lambda z: F.normalize(z.sum(0), dim=-1)) == "right"
    assert "unit norm" in check(lambda z: z.mean(0))
    assert "shape" in check(lambda z: z)
    assert "order" in check(lambda z: z[0])
    assert "own vector" in check(lambda z: -F.normalize(z.sum(0), dim=-1))
    wrong = lambda z: F.normalize(z.sum(0) * (1 + (len(z) > 1) * z.sum(0).square()), dim=-1)  # noqa: E731
    assert "higher sum" in check(wrong)
    check = page["check_floor"]
    assert check(page["floor"]) == "not answered yet"
    assert check(math.log) == "right"
    assert "too high" in check(lambda k: math.log(2 * k - 1))
    assert "twins" in check(lambda k: 0.0)
    check = page["check_length"]
    assert check(page["mean_length"]) == "not answered yet"
    assert check(lambda M, c: ((1 + (M - 1) * c) / M) ** 0.5) == "right"
    assert "as long as they are" in check(lambda M, c: 1 / M)
    assert "square" in check(lambda M, c: (1 + (M - 1) * c) / M)
    assert "M = 3, c = 0.0" in check(lambda M, c: ((1 + c) / 2) ** 0.5)


# --- methods/moco ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["queue_loss_loop", "queue_loss"])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_moco_loss_against_a_queue(name: str, temperature: float) -> None:
    form = definitions("methods/moco")[name]
    q, k, queue = unit(7, 5, seed=0), unit(7, 5, seed=1), unit(12, 5, seed=2)
    torch.testing.assert_close(
        value_and_gradients(lambda *of: form(*of, temperature), q, k, queue),
        value_and_gradients(lambda *of: losses.queue_info_nce(*of, temperature), q, k, queue),
    )


def test_moco_class_is_the_librarys_for_some_steps() -> None:
    """Losses, both encoders and the queue, oldest key first; the queue is filled more than once."""
    page = definitions("methods/moco")
    torch.manual_seed(1)
    library = MoCo(ImageEncoder(size=32, width=32), dim=8, queue=12, momentum=0.8, temperature=0.3)
    tiny = page["TinyMoCo"](copy.deepcopy(library.query), 12, 8, 0.8, 0.3)
    assert tiny.queue.shape == library.queue.keys.shape
    torch.testing.assert_close(tiny.queue.norm(dim=1), torch.ones(12))
    tiny.queue = library.queue.keys.clone()
    views = torch.rand(7, 2, 4, 3, 32, 32)
    batches = [{"image": one, "image_view": two} for one, two in views]
    torch.testing.assert_close(
        page["eight_steps"](tiny, batches, lr=0.1), page["eight_steps"](library, batches, lr=0.1)
    )
    for ours, theirs in ((tiny.query, library.query), (tiny.key, library.key.network)):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    oldest_first = library.queue.keys.roll(-int(library.queue.pointer), 0)
    torch.testing.assert_close(tiny.queue, oldest_first)


def test_moco_drift_by_hand() -> None:
    old, new = unit(20, 4, seed=0), unit(20, 4, seed=1)
    expected = moco.drift({0: old, 1: new}, 1, 1)
    assert definitions("methods/moco")["drift_by_hand"](old, new) == pytest.approx(expected[::2])


def test_moco_weights_that_follow() -> None:
    """The page's list, and the library's momentum copy of a network with one weight."""
    path = unit(30, seed=0).tolist()
    network = torch.nn.Linear(1, 1, bias=False).double()
    network.weight.data.fill_(path[0])
    slow, places = MomentumCopy(network, 0.7), []
    for place in path:
        network.weight.data.fill_(place)
        slow.follow(network)
        places.append(slow.network.weight.item())
    assert definitions("methods/moco")["follow"](path, 0.7) == pytest.approx(places)


def test_moco_what_was_seen_before() -> None:
    assert definitions("methods/moco")["seen_before"](["a", "b"], ["a", "c", "a", "b"]) == 0.75


def test_moco_exercises_name_what_fails() -> None:
    page = definitions("methods/moco")
    check = page["check_lag"]
    assert check(page["lag"]) == "not answered yet"
    assert check(lambda v, m: v * m / (1 - m)) == "right"
    assert "the key is the query" in check(lambda v, m: v / (1 - m))
    assert "twice as far" in check(lambda v, m: m / (1 - m))
    assert "m = 0.5" in check(lambda v, m: v * m)
    check = page["check_twice"]
    assert check(page["smallest_loss"]) == "not answered yet"
    assert check(lambda: math.log(2)) == "right"
    assert "same logit" in check(lambda: 0.0)
    assert "too high" in check(lambda: math.log(3))
    assert "too low" in check(lambda: 0.3)
    assert "negative logarithm" in check(lambda: 0.5)
    check = page["check_itself"]
    assert check(page["meets_itself"]) == "not answered yet"
    assert check(lambda keys, n: (keys / n) ** 2 / 2) == "right"
    assert "no share" in check(lambda keys, n: keys)
    assert "how long" in check(lambda keys, n: keys / n)
    assert "drawn" in check(lambda keys, n: (keys / n) ** 2)


# --- methods/fdt ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("count", [1, 2, 9, 60])
def test_sparsemax_of_the_page(count: int, scale: float) -> None:
    page = definitions("methods/fdt")
    generator = torch.Generator().manual_seed(count)
    scores = scale * torch.randn(5, count, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        value_and_gradients(lambda s: (page["sparsemax_vectorised"](s) ** 2).sum(), scores),
        value_and_gradients(lambda s: (sparsemax(s) ** 2).sum(), scores),
    )
    for row in scores:
        torch.testing.assert_close(page["sparsemax_loop"](row), sparsemax(row))


def fdt_and_tiny(temperature: float) -> tuple[FDT, torch.nn.Module, dict[str, torch.Tensor]]:
    """The library's and that of the page, with the same weights; and a batch with padding."""
    data = small.scenes(12, 3)
    torch.manual_seed(0)
    words = CaptionEncoder(len(data.tokenizer), width=32)
    library = FDT(
        ImageEncoder(size=32, width=32), words, tokens=40, dim=16, temperature=temperature
    )
    tiny = definitions("methods/fdt")["TinyFDT"](
        library.encoders["image"], library.encoders["caption"], 40, 16, temperature
    )
    tiny.load_state_dict({k: v for k, v in library.state_dict().items() if k != "step"})
    return library, tiny, data.batch(range(12))


@pytest.mark.parametrize("temperature", [1.0, 30.0])
def test_tiny_fdt_is_fdt(temperature: float) -> None:
    library, tiny, batch = fdt_and_tiny(temperature)
    mine, theirs = tiny.loss(batch)["total"], library.loss(batch)["total"]
    torch.testing.assert_close(mine, theirs)
    mine.backward()
    gradients = {name: p.grad.clone() for name, p in tiny.named_parameters() if p.grad is not None}
    library.zero_grad()
    theirs.backward()
    for name, parameter in library.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-3)


def test_groundings_of_the_page_are_the_library_s() -> None:
    page, (library, tiny, batch) = definitions("methods/fdt"), fdt_and_tiny(2.0)
    for name in ("image", "caption"):
        encoded, head = library.encoders[name](batch[name]), library.heads[name]
        assert name == "image" or not encoded.mask.all()
        expected = head(encoded.tokens, library.codebook, encoded.mask)
        mixture, weights = tiny.heads[name](encoded.tokens, tiny.codebook, encoded.mask)
        torch.testing.assert_close(mixture, expected.feature)
        torch.testing.assert_close(weights, expected.weights)
        queries = head.query(encoded.tokens)
        for i in (0, 7):
            one, w = page["ground_loop"](queries[i], library.codebook, 2.0, encoded.mask[i])
            torch.testing.assert_close(one, expected.feature[i], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(w, expected.weights[i])


def test_steps_of_a_grounding() -> None:
    page, (library, _, batch) = definitions("methods/fdt"), fdt_and_tiny(2.0)
    one = {name: values[3:4] for name, values in batch.items()}
    queries, scores, pooled = page["grounding_steps"](library, one, "image")
    with torch.no_grad():
        of = library.token_attention(one)["image"]
    torch.testing.assert_close(scores, of.scores[0])
    torch.testing.assert_close(sparsemax(pooled), of.weights[0])
    assert queries.shape == (16, 16)
    gives = page["given"](of.scores[0], of.weights[0])
    assert gives.shape == (16, 40)
    torch.testing.assert_close(gives.amax(0), of.weights[0], atol=1e-5, rtol=1e-4)


def test_purity_by_hand_is_that_of_the_library(monkeypatch) -> None:
    monkeypatch.setattr(tokens, "OFTEN", 1)
    generator = torch.Generator().manual_seed(0)
    token, colour = torch.randint(4, (90,), generator=generator), torch.randint(6, (90,))
    found = tokens.purity(token, {"colour": colour}).above["colour"]
    by_hand = definitions("methods/fdt")["purity_by_hand"]
    for t in range(4):
        assert by_hand(colour[token == t].tolist(), colour.tolist()) == pytest.approx(
            float(found[t])
        )


def test_moved_weight_goes_where_it_should() -> None:
    move = definitions("methods/fdt")["move"]
    weights = torch.tensor([[0.5, 0.2, 0.3, 0.0], [0.0, 0.6, 0.1, 0.3]])
    moved = move(weights, [0], [2, 3], torch.tensor([9.0, 9.0, 1.0, 3.0]))
    torch.testing.assert_close(
        moved, torch.tensor([[0.0, 0.2, 0.425, 0.375], [0.0, 0.6, 0.1, 0.3]])
    )
    assert weights[0, 0] == 0.5


def test_fdt_exercises_name_what_fails() -> None:
    page = definitions("methods/fdt")
    check = page["check_two"]
    assert check(page["sparsemax_of_two"]) == "not answered yet"
    assert check(page["two"]) == "right"
    assert "sum to 1" in check(lambda a, b: (0.5, 0.4))
    assert "below 0" in check(lambda a, b: ((1 + a - b) / 2, (1 - a + b) / 2))
    assert "leave one" in check(lambda a, b: (w := min(max((1 + a - b) / 2, 0.1), 0.9), 1 - w))
    assert "differ by 0.5" in check(lambda a, b: (0.5, 0.5) if abs(a - b) < 1 else (a > b, a < b))
    check = page["check_pool"]
    assert check(page["pool"]) == "not answered yet"
    assert check(lambda s, m: s.masked_fill(~m[:, :, None], -torch.inf).amax(1)) == "right"
    assert "shape" in check(lambda s, m: s)
    assert "counts as 0" in check(lambda s, m: (s * m[:, :, None]).amax(1))
    assert "plain maximum" in check(lambda s, m: s.mean(1))
    assert "real words" in check(lambda s, m: s.amax(1))
    check = page["check_binding"]
    assert check(page["binding"]) == "not answered yet"
    assert check(lambda: [[1, 0, 1, 0], [1, 0, 0, 1]]) == "right"
    assert "[C, 4]" in check(lambda: [1, 0, 1, 0])
    assert "single token" in check(lambda: [[1, 0, 1, 0]])
    assert "equally present" in check(lambda: torch.eye(4))
    assert "sparsemax" in check(lambda: [[9, 0, 9, 0], [1, 0, 0, 1]])
    pairs = [[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]]
    assert "both mix to" in check(lambda: pairs)


# --- photographs --------------------------------------------------------------------------------


def test_a_lying_picture_is_turned_as_pillow_turns_it() -> None:
    page = definitions("synthesis/photographs")
    pixels = torch.randint(
        256, (5, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    turned = page["upright_loop"](pixels.tolist())
    assert turned == page["upright"](pixels).tolist()
    picture = Image.fromarray(pixels.numpy())
    picture.getexif()[0x0112] = 6
    assert torch.tensor(turned).equal(
        torch.tensor(np.array(ImageOps.exif_transpose(picture))).long()
    )


def test_photographs_exercises_name_what_fails() -> None:
    page = definitions("synthesis/photographs")
    check = page["check_lost"]
    assert check(page["lost"]) == "not answered yet"
    assert check(page["lost_share"]) == "right"
    assert "lies in 0 to 1" in check(lambda w, h: 1 - w / h)
    assert "share that stays" in check(lambda w, h: min(w, h) / max(w, h))
    assert "not the lost" in check(lambda w, h: 0.0)
    check, right = page["check_bytes"], page["bytes_of_features"]()
    assert check(page["feature_bytes"]) == "not answered yet"
    assert check(lambda: right) == "right"
    assert "4 bytes" in check(lambda: (right[0] // 4, right[1]))
    assert "tokens: pictures x" in check(lambda: (right[0], right[0]))
    check = page["check_inside"]
    assert check(page["stays_inside"]) == "not answered yet"
    assert check(page["inside"]) == "right"
    assert "is refused" in check(lambda name: ".." not in name)
    assert "goes up and out" in check(lambda name: not name.startswith(("/", "..")))
    assert "begins at the root" in check(lambda name: ".." not in name.split("/"))


# --- synthesis/alternatives -----------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3])
def test_products_of_the_page_are_the_library_s(count: int) -> None:
    page, g = definitions("synthesis/alternatives"), torch.Generator().manual_seed(count)
    means = torch.randn(count, 1, generator=g, dtype=torch.float64)
    variances = torch.rand(count, 1, generator=g, dtype=torch.float64) + 0.1
    mean, variance = page["product_by_hand"](means.flatten().tolist(), variances.flatten().tolist())
    if not count:
        assert (mean, variance) == (0, 1)
        return
    found = vae.product_of_experts(
        [vae.Gaussian(m[None], v.log()[None]) for m, v in zip(means, variances, strict=True)]
    )
    assert float(found.mean) == pytest.approx(mean)
    assert float(found.log_variance.exp()) == pytest.approx(variance)


def test_divergences_of_the_page_are_the_library_s() -> None:
    page = definitions("synthesis/alternatives")
    for mean, variance in ((0.0, 1.0), (1.5, 0.3), (-2.0, 2.0)):
        of = vae.Gaussian(torch.tensor([[mean]]), torch.tensor([[variance]]).log())
        expected = float(vae.kl_to_prior(of))
        assert page["kl_by_hand"](mean, variance) == pytest.approx(expected, abs=1e-5)
        assert page["kl_by_drawing"](mean, variance) == pytest.approx(expected, abs=0.02)


def test_tiny_mmvae_is_mmvae() -> None:
    data = ShapesCaptions(8, seed=2, size=24, detail=2)
    torch.manual_seed(0)
    encoders = ImageEncoder(size=24, width=32), CaptionEncoder(len(data.tokenizer), width=32)
    library, batch = MMVAE(*encoders, hidden=5), data.batch(range(8))
    likelihoods = {
        "image": lambda drawn, x: vae.picture_log_likelihood(drawn, x, library.pixel_std),
        "caption": lambda logits, x: vae.words_log_likelihood(
            logits, vae.words_there(x, library.vocabulary)
        ),
    }
    tiny = definitions("synthesis/alternatives")["TinyMMVAE"](
        library.encoders, library.posteriors, library.decoders, likelihoods, library.weights
    )
    torch.manual_seed(1)
    mine = tiny.loss(batch)
    torch.manual_seed(1)
    torch.testing.assert_close(mine, library.loss(batch)["total"])


def test_codes_of_the_page_are_the_library_s() -> None:
    page, g = definitions("synthesis/alternatives"), torch.Generator().manual_seed(0)
    tokens, codebook = torch.randn(1, 9, 4, generator=g), torch.randn(6, 4, generator=g)
    found = codes.quantise(tokens, codebook, torch.ones(1, 9, dtype=torch.bool))
    assert page["nearest_by_loop"](tokens[0], codebook) == found.codes[0].tolist()
    one, other = torch.rand(2, 5, 6, generator=g).softmax(dim=2)
    assert page["matching_by_loop"](one, other) == pytest.approx(
        float(codes.code_matching_loss(one, other)), abs=1e-5
    )


def test_scaling_peak_is_the_largest_running_sum() -> None:
    page = definitions("synthesis/scaling")
    assert page["peak_loop"]([3, 4, -5, 2, 3, -7]) == (7, 1)
    assert page["peak_loop"]([-1, 2]) == (1, 1)
    assert page["peak_loop"]([]) == (0, 0)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_scaling_gradient_of_processes(processes: int) -> None:
    """That of the whole loss; cut, without what other processes' captions say of a picture."""
    gradient = definitions("synthesis/scaling")["gradient_of_processes"]
    x, y = unit(2, 8, 5, seed=0)
    leaf = x.clone().requires_grad_()
    (right,) = torch.autograd.grad(losses.clip_loss(leaf, y, 10.0), leaf)
    torch.testing.assert_close(gradient(x, y, processes), right)
    torch.testing.assert_close(gradient(x, y, processes, twice=True), right / processes)
    by_column = (10 * x @ y.T).softmax(0)
    other = torch.arange(8)[:, None] // (8 // processes) != torch.arange(8) // (8 // processes)
    lost = 10 / 16 * (by_column * other) @ y
    torch.testing.assert_close(gradient(x, y, processes, cut=True), right - lost)


def test_scaling_exercises_name_what_fails() -> None:
    page = definitions("synthesis/scaling")
    check = page["check_batch"]
    assert check(page["largest_batch"]) == "not answered yet"
    assert check(page["fits"]) == "right"
    assert "does not fit" in check(lambda room, D: page["fits"](room, D) + 1)
    assert "one more" in check(lambda room, D: page["fits"](room, D) - 1)
    assert "whole number" in check(lambda room, D: 1.5)
    check, right = page["check_incomplete"], page["lost"]
    assert check(page["incomplete"]) == "not answered yet"
    assert check(right) == "right"
    assert "its own row" in check(lambda B, n: torch.ones(B, B, dtype=torch.bool))
    assert "own process" in check(lambda B, n: (torch.arange(B) == n)[:, None].expand(B, B))
    assert "not heard" in check(lambda B, n: torch.zeros(B, B, dtype=torch.bool))
    assert "expected [4, 4]" in check(lambda B, n: right(B, n)[0])
    check = page["check_received"]
    assert check(page["received_by_each"]) == "not answered yet"
    assert check(page["ring"]) == "right"
    assert "nothing to receive" in check(lambda size, W: size)
    assert "one way" in check(lambda size, W: (W - 1) * size / W)
    assert "never more" in check(lambda size, W: 3 * size * (W > 1))
    assert "expected" in check(lambda size, W: size * (W > 1) * 0.9)


def test_checks_of_alternatives_say_what_is_wrong() -> None:
    page = definitions("synthesis/alternatives")
    say, price, count = (page[f"check_{name}"] for name in ("say", "price", "perplexity"))
    assert say(lambda: {"knows nothing": "hers", "is certain": "hers"}).startswith("knows nothing:")
    assert "now it is 5.00" in say(lambda: {"knows nothing": "nothing", "is certain": "nothing"})
    assert "expected" in say(lambda: {"knows nothing": "all", "is certain": "hers"})
    assert price(lambda nats: 2.0) == "for 0.5 nats you say 2.000; it costs 2.000"
    assert price(lambda nats: nats).startswith("for 0.5 nats")
    assert price(lambda nats: (2 * nats) ** 0.5) == "right"
    assert "it is 4.000" in count(lambda shares: math.log(len(shares)))
    assert "it is 2.828" in count(len)
