"""MCT: what the page builds, and what its checks say."""

import copy
import math

import pytest
import torch
from torch import nn

from mmcl_core import losses
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.augment import compose, crop, paraphrase
from mmcl_core.data.drawing import ATTRIBUTES
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.methods import MCT
from tests.book.chapter import definitions, unit, value_and_gradients


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
