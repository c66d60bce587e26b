"""MCT: what the page builds, and what its checks say."""

import math

import pytest
import torch
from torch import nn

from mmcl_core import losses
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.augment import compose, crop, paraphrase
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
    loop = value_and_gradients(
        lambda q, k, n: page["tag_loss_loop"](q, k, n, tags, others, least, 0.2),
        queries, keys, queue,
    )  # fmt: skip
    torch.testing.assert_close(loop, library)


def towers_and_library(least: int) -> tuple[nn.Module, MCT, ShapesCaptions]:
    """The page's model with the weights and queues of a library's; and their scenes."""
    page = definitions("methods/mct")
    data = ShapesCaptions(24, detail=1, size=32, objects=(1, 2))  # some captions are identical
    torch.manual_seed(0)
    encoders = ImageEncoder(size=32, width=32), CaptionEncoder(len(data.tokenizer), width=32)
    weights = {"image": 0.5, "tags": 2.0, "caption": 0.2}
    library = MCT(
        *encoders, tags=12, queue=16, min_shared_tags=least, weights=weights,
        inter_temperature=0.05,
    )  # fmt: skip
    tiny = page["tiny_of"](library)
    tiny.least = least
    return tiny, library, data


@pytest.mark.parametrize("least", [1, 2])
def test_tiny_mct_is_the_library_mct(least: int) -> None:
    """All five terms, gradients and queues, over three steps in which the queues go round."""
    tiny, library, data = towers_and_library(least)
    trained = library.query, tiny.fast
    optimizers = [torch.optim.SGD([*towers.parameters()], lr=0.1) for towers in trained]
    views = compose(paraphrase(data, view=True), crop())
    for step in range(3):
        batch = views(data.batch(range(8 * step, 8 * step + 8)))
        theirs, mine = library.loss(batch), tiny.loss(batch)
        torch.testing.assert_close(mine, theirs)
        for of, optimizer in zip((theirs, mine), optimizers, strict=True):
            optimizer.zero_grad()
            of["total"].backward()
            optimizer.step()
        library.after_step()
        tiny.after_step()
        for name, queue in library.queues.items():
            at = -int(queue.pointer)  # the page has the oldest key first
            torch.testing.assert_close(tiny.queues[name].keys, queue.keys.roll(at, 0))
            assert torch.equal(tiny.queues[name].labels, queue.labels.roll(at, 0))
    for m in library.modalities:
        torch.testing.assert_close(tiny.fast[m].state_dict(), library.query[m].state_dict())
        slow = library.key[m].network.state_dict()
        torch.testing.assert_close(tiny.slow[m].state_dict(), slow)
        only = {m: data.batch(range(8))[m]}
        torch.testing.assert_close(tiny.embed(only), library.embed(only))


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
    tiny, _, data = towers_and_library(2)
    learners = {"momentum encoders": tiny.slow}
    for m in ("image", "caption"):
        tower = tiny.fast[m]
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
