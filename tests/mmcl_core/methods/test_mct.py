"""MCT: each of its terms against the formula, its queues and labels, and that it learns."""

import copy
import itertools
import math
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmcl_core.batches import Batch, require
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.augment import compose, moco_v2, paraphrase
from mmcl_core.data.groups import caption_codes, same_text
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.errors import MissingModalityError, MMCLError, ShapeError
from mmcl_core.evaluation import embed_all, recall_at_k
from mmcl_core.methods import MCT
from mmcl_core.methods.mct import TERMS
from mmcl_core.training import fit
from tests import reference
from tests.mmcl_core.methods.test_moco import (
    assert_a_failure_in_fit_leaves_all_as_it_was,
    assert_resumed_is_never_stopped,
    assert_same_state,
    double,
    state,
    step,
)
from tests.mmcl_core.test_distributed import scenes

QUEUES = ("image", "caption", "inter_image", "inter_caption")
# What a term needs besides `image` and `caption`, and its queue.
NEEDS = {
    "image": (("image_view",), "image"),
    "tags": (("image_view", "tags"), "image"),
    "caption": (("caption_view",), "caption"),
    "image_to_caption": ((), "inter_caption"),
    "caption_to_image": ((), "inter_image"),
}
TEXTS = ((1, 2, 6), (1, 2), (4,), (6, 2, 1, 5))


def small(seed: int = 0, **kwargs: Any) -> MCT:
    torch.manual_seed(seed)
    encoders = ImageEncoder(size=16, width=32), CaptionEncoder(9, width=32, max_length=8)
    return MCT(*encoders, **{"tags": 5, "dim": 8, "queue": 12} | kwargs)


def repeating(seed: int, size: int = 6) -> Batch:
    """With few captions, so that many are identical, and padded to a width of 4 to 6."""
    g = torch.Generator().manual_seed(seed)
    said = torch.randint(len(TEXTS), (2, size), generator=g).tolist()
    captions = torch.zeros(2, size, 4 + seed % 3, dtype=torch.int64)
    for view, sample in itertools.product(range(2), range(size)):
        text = TEXTS[said[view][sample]]
        captions[view, sample, : len(text)] = torch.tensor(text)
    return {
        "image": torch.rand(size, 3, 16, 16, generator=g, dtype=torch.float64),
        "image_view": torch.rand(size, 3, 16, 16, generator=g, dtype=torch.float64),
        "caption": captions[0],
        "caption_view": captions[1],
        "tags": (torch.rand(size, 5, generator=g) < 0.6).double(),
    }


def words(captions: Tensor) -> list[tuple[Any, ...]]:
    """The ids of each caption; a word that is not known (3) is like no other."""
    return [tuple(object() if w == 3 else w for w in row if w) for row in captions.tolist()]


def kinds(tags: Tensor) -> list[frozenset[int]]:
    return [frozenset(i for i, t in enumerate(row) if t) for row in tags.tolist()]


# --- the terms ------------------------------------------------------------------------------------


class Notes:
    """What the queues must hold, kept in Python: the last keys, and what was said of each.

    No codes and no multi-hot rows: captions are tuples of words, and tags are sets.
    """

    def __init__(self, model: MCT, min_shared_tags: int) -> None:
        self.model, self.least = model, min_shared_tags
        self.kept = {
            name: deque([(key, None) for key in model.queues[name].keys.clone()], maxlen=12)
            for name in QUEUES
        }

    def new(self, batch: Batch) -> dict[str, list[tuple[Tensor, Any]]]:
        """For each queue, the keys of a batch and what is said of them."""
        image, caption = self.model.key["image"], self.model.key["caption"]
        said = {
            "image": (image(batch["image_view"])[0], kinds(batch["tags"])),
            "caption": (caption(batch["caption_view"])[0], words(batch["caption_view"])),
            "inter_image": (image(batch["image"])[1], words(batch["caption"])),
            "inter_caption": (caption(batch["caption"])[1], words(batch["caption"])),
        }
        return {name: list(zip(*pair, strict=True)) for name, pair in said.items()}

    def terms(self, batch: Batch, temperature: float, inter: Any) -> dict[str, float]:
        """Each term by the naive loops; `inter` is that of the terms between the modalities."""
        image, to_caption = self.model.query["image"](batch["image"])
        caption, to_image = self.model.query["caption"](batch["caption"])
        new = self.new(batch)

        def queue(name: str) -> tuple[Tensor, Tensor]:
            keys, others = ([key for key, _ in pairs] for pairs in (new[name], self.kept[name]))
            return torch.stack(keys), torch.stack(others)

        def marks(name: str) -> list[list[bool]]:
            said = [what for _, what in new[name]]
            there = [what for _, what in self.kept[name]]
            if name == "image":
                return [[len(s & (t or set())) >= self.least for t in there] for s in said]
            heard = words(batch["caption"]) if name == "caption" else said
            return [[t in pair for t in there] for pair in zip(said, heard, strict=True)]

        nce = reference.queue_info_nce
        q_i, q_ic, q_c, q_ci = (q.detach() for q in (image, to_caption, caption, to_image))
        return {
            "image": nce(q_i, *queue("image"), temperature),
            "tags": nce(q_i, *queue("image"), temperature, marks("image")),
            "caption": nce(q_c, *queue("caption"), temperature, marks("caption")),
            "image_to_caption": inter(q_ic, *queue("inter_caption"), marks("inter_caption")),
            "caption_to_image": inter(q_ci, *queue("inter_image"), marks("inter_image")),
        }


@pytest.mark.parametrize(
    ("least", "form"), [(1, "info_nce"), (2, "info_nce"), (2, "hinge"), (3, "hinge")]
)
def test_each_term_is_its_formula(least: int, form: str) -> None:
    """Over six steps, in which each queue is filled three times."""
    weights = {"image": 0.5, "tags": 2.0, "caption": 1.5, "image_to_caption": 0.7}
    model = small(
        min_shared_tags=least, inter=form, weights=weights, intra_temperature=0.15,
        inter_temperature=0.05, margin=0.6, momentum=0.6,
    ).double()  # fmt: skip
    if form == "hinge":

        def inter(q: Tensor, k: Tensor, queue: Tensor, marks: list[list[bool]]) -> float:
            return reference.queue_hinge(q, k, queue, 0.6, marks)
    else:

        def inter(q: Tensor, k: Tensor, queue: Tensor, marks: list[list[bool]]) -> float:
            return reference.queue_info_nce(q, k, queue, 0.05, marks)

    notes = Notes(model, least)
    for i in range(6):
        batch = repeating(i)
        expected, new = notes.terms(batch, 0.15, inter), notes.new(batch)
        found = {name: float(value.detach()) for name, value in model.loss(batch).items()}
        assert list(found) == ["total", *TERMS]
        assert {n: found[n] for n in TERMS} == pytest.approx(expected, rel=1e-10, abs=1e-12)
        full = weights | {"caption_to_image": 1.0}
        total = sum(full[name] * expected[name] for name in TERMS)
        assert found["total"] == pytest.approx(total, rel=1e-10)
        step(model, batch, rate=0.05)
        for name, pairs in new.items():
            notes.kept[name].extend(pairs)
            queue = model.queues[name]
            expected_keys = torch.stack([key for key, _ in notes.kept[name]])
            assert torch.equal(queue.keys.roll(-int(queue.pointer), 0), expected_keys)
    # The marks have mattered: at the end, image and tags differ, and texts are repeated.
    assert abs(found["image"] - found["tags"]) > 1e-3
    assert len({what for _, what in notes.kept["inter_image"]}) < 12


def test_identical_captions_in_the_queue_are_no_negatives() -> None:
    """All captions are one text, so all keys are the own key again: log(K + 1), and not more."""
    model = small(queue=6).double()
    batch = repeating(0)
    batch["caption"] = batch["caption_view"] = batch["caption"][:1].expand(6, -1)
    model.warm_start([batch])
    got = model.loss(batch)
    for name in ("caption", "image_to_caption"):
        expected = torch.tensor(7.0, dtype=torch.float64).log()
        torch.testing.assert_close(got[name], expected, rtol=1e-9, atol=0)
    # Pictures differ; all of them are positives, so only their spread is punished.
    q, k = model.query["caption"](batch["caption"])[1], model.key["image"](batch["image"])[1]
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ k.T], dim=1) / 0.07
    expected = (logits.logsumexp(1) - logits.mean(1)).mean()
    torch.testing.assert_close(got["caption_to_image"], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("caption", "view", "marked"),
    [(0, 1, True), (1, 0, True), (0, 0, True), (1, 3, False), (2, 0, True), (2, 1, False)],
)
def test_the_caption_term_compares_texts_with_both_sentences(
    caption: int, view: int, marked: bool
) -> None:
    """The queue holds views that say text 0, of samples whose caption is text 2."""

    def saying(batch: Batch, caption: int, view: int) -> Batch:
        rows = [torch.tensor([TEXTS[number]]).expand(6, -1) for number in (caption, view)]
        return batch | {"caption": rows[0], "caption_view": rows[1]}

    model = small().double()
    model.warm_start([saying(repeating(i), 2, 0) for i in range(2)])
    batch = saying(repeating(2), caption, view)
    q = model.query["caption"](batch["caption"])[0].detach()
    own = model.key["caption"](batch["caption_view"])[0]
    there = model.key["caption"](saying(batch, 2, 0)["caption_view"])[0][:1].expand(12, -1)
    expected = reference.queue_info_nce(q, own, there, 0.2, [[marked] * 12] * 6)
    parts = model.loss(batch)
    assert float(parts["caption"].detach()) == pytest.approx(expected, rel=1e-10)
    # Between the modalities, what counts is the caption alone.
    q = model.query["image"](batch["image"])[1].detach()
    own = model.key["caption"](batch["caption"])[1]
    there = model.key["caption"](saying(batch, 2, 0)["caption"])[1][:1].expand(12, -1)
    expected = reference.queue_info_nce(q, own, there, 0.07, [[caption == 2] * 12] * 6)
    assert float(parts["image_to_caption"].detach()) == pytest.approx(expected, rel=1e-10)


def test_keys_between_the_modalities_are_of_the_plain_entries() -> None:
    """Other views change all within a modality, and no bit between the two."""
    one, other = small().double(), small().double()
    for i in range(2):
        batch, others = repeating(i), repeating(i + 3)
        changed = batch | {name: others[name] for name in ("image_view", "caption_view")}
        a, b = one.loss(batch), other.loss(changed)
        for name in TERMS:
            assert torch.equal(a[name], b[name]) == ("_to_" in name), name
        one.after_step()
        other.after_step()
    for name in QUEUES:
        same = torch.equal(one.queues[name].keys, other.queues[name].keys)
        assert same == name.startswith("inter"), name
    # And it is the plain entries of both batches that they hold, with the code of the caption.
    batches = [repeating(i) for i in range(2)]
    codes = torch.cat([caption_codes(batch["caption"]) for batch in batches])
    for m in ("image", "caption"):
        queue = one.queues[f"inter_{m}"]
        keys = torch.cat([one.key[m](batch[m])[1] for batch in batches])
        torch.testing.assert_close(queue.keys, keys, rtol=1e-12, atol=1e-13)
        assert torch.equal(queue.labels[:, 0], codes)


@given(st.dictionaries(st.sampled_from(TERMS), st.sampled_from([0.0, 3.0])))
@settings(max_examples=12, deadline=None)
def test_weights_scale_and_switch_off(weights: dict[str, float]) -> None:
    full = dict.fromkeys(TERMS, 1.0) | weights
    if not any(full.values()):
        return
    on = [name for name in TERMS if full[name]]
    plain, weighted = small().double(), small(weights=weights).double()
    for name, queue in weighted.queues.items():  # they draw their random keys one after another
        queue.keys.copy_(plain.queues[name].keys)
    batch = repeating(1)
    for i in range(2):  # in the second step, the labels of the first are there
        whole = plain.loss(batch)
        found = weighted.loss({name: batch[name] for name in needed(on)})
        assert list(found) == ["total", *on]
        for name in on:
            torch.testing.assert_close(found[name], whole[name], rtol=1e-12, atol=0)
        total = sum(full[name] * whole[name] for name in on)
        torch.testing.assert_close(found["total"], total, rtol=1e-12, atol=0)
        plain.after_step()
        weighted.after_step()
        batch = repeating(2 + i)


def needed(on: Iterable[str]) -> set[str]:
    return {"image", "caption"}.union(*(NEEDS[name][0] for name in on))


@pytest.mark.parametrize(
    "on", [on for n in range(1, 6) for on in itertools.combinations(TERMS, n)], ids="+".join
)
def test_a_term_that_is_off_needs_nothing_and_has_no_queue(on: tuple[str, ...]) -> None:
    model = small(weights={name: float(name in on) for name in TERMS})
    queues = {NEEDS[name][1] for name in on}
    assert set(model.queues) == queues
    assert {
        name.split(".")[1] for name in model.state_dict() if name.startswith("queues")
    } == queues
    if "image" in queues:
        assert model.queues["image"].labels.shape == (12, 5 if "tags" in on else 0)
    batch = {name: scenes(4)[name] for name in needed(on)}
    model.warm_start([batch])
    step(model, batch)
    assert all(int(queue.pointer) == 8 for queue in model.queues.values())
    before = state(model)
    for name in batch:
        for train in (model.loss, lambda b: model.warm_start([b])):
            with pytest.raises(MissingModalityError, match=f"MCT trains on .*; {name} not in the"):
                train(without(name)(batch))
    assert_same_state(model, before)


def test_terms_between_the_modalities_train_without_views() -> None:
    """A few pairs are learned by heart; the heads within the modalities stay as they are."""

    class Pairs:
        def __len__(self) -> int:
            return 12

        def batch(self, indices: list[int]) -> Batch:
            return {name: scenes()[name][indices] for name in ("image", "caption")}

    model = small(tags=0, weights={"image": 0, "caption": 0}, momentum=0.9)
    before = state(model)
    history = fit(model, Pairs(), epochs=60, batch_size=4, lr=0.01, progress=False)
    assert set(model.queues) == {"inter_image", "inter_caption"}
    terms = [history[name] for name in ("image_to_caption", "caption_to_image")]
    assert history["total"] == pytest.approx([a + b for a, b in zip(*terms, strict=True)], rel=1e-5)
    assert history.epoch_means("total")[-1] < math.log(13)  # half of guessing, twice log(12 + 1)
    after = state(model)
    same = {name for name in after if torch.equal(after[name], before[name])}
    assert {name for name in same if "intra" in name} == {n for n in after if "intra" in n}
    assert not {name for name in same if ".inter." in name or name.endswith(("keys", "labels"))}


def test_tags_can_be_there_and_not_used() -> None:
    """The number of tags is given, and the term is off: the queue keeps none."""
    for kwargs in ({"tags": 0}, {"tags": 5, "weights": {"tags": 0}}):
        model = small(**kwargs)
        for i in range(2):
            batch = scenes(4, seed=i)
            parts = model.loss(batch)
            assert "tags" not in parts
            model.after_step()
        assert model.queues["image"].labels.shape == (12, 0)
        assert int(model.queues["image"].pointer) == 8
        del batch["tags"]
        model.warm_start([batch] * 3)


def test_tags_may_be_of_any_type() -> None:
    values = []
    for kind in (torch.float32, torch.int64, torch.bool):
        model = small()
        for i in range(2):
            batch = scenes(4, seed=i)
            parts = model.loss(batch | {"tags": batch["tags"].to(kind)})
            model.after_step()
        values.append(float(parts["tags"].detach()))
        assert torch.equal(model.queues["image"].labels[4:8], scenes(4, seed=1)["tags"])
    assert values[0] == values[1] == values[2]


# --- who learns from what -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "taught"),
    [
        ("image", "image.intra"),
        ("tags", "image.intra"),
        ("caption", "caption.intra"),
        ("image_to_caption", "image.inter"),
        ("caption_to_image", "caption.inter"),
    ],
)
@pytest.mark.parametrize("form", ["info_nce", "hinge"])
def test_a_term_teaches_one_head_and_its_encoder(term: str, taught: str, form: str) -> None:
    model = small(inter=form, margin=0.5)
    model.loss(scenes(4))[term].backward()
    found = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    modality = taught.split(".")[0]
    expected = {
        name
        for name, p in model.named_parameters()
        if name.startswith((f"query.{taught}.", f"query.{modality}.encoder."))
    }
    assert found <= expected
    # All of that head, and the encoder (padding and unused positions have no gradient).
    assert {name for name in expected if taught in name} <= found
    assert any("encoder" in name for name in found)


def test_only_the_queries_are_trained() -> None:
    model = small()
    assert model.encoders == {m: model.query[m].encoder for m in ("image", "caption")}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"query.{name}" for name, _ in model.query.named_parameters()}
    model.loss(scenes(4))["total"].backward()
    for name, p in model.named_parameters():
        assert (p.grad is None) == name.startswith("key."), name


def test_momentum_encoders_follow_both_towers() -> None:
    model = small(momentum=0.75)
    before = copy.deepcopy(model.key)
    step(model, scenes(4), rate=0.5)
    for m in ("image", "caption"):
        moved = 0.0
        for old, new, q in zip(
            before[m].parameters(), model.key[m].parameters(), model.query[m].parameters(),
            strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(new, 0.75 * old + 0.25 * q, rtol=1e-5, atol=1e-6)
            moved += float((new - old).detach().abs().sum())
        assert moved > 0.01


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"inter": "margin"}, "inter must be 'info_nce' or 'hinge'; got 'margin'"),
        ({"min_shared_tags": 0}, "min_shared_tags must be a whole number, at least 1; got 0"),
        ({"weights": {"text": 1.0}}, r"terms are image, tags, .* weights for \['text'\]"),
        ({"tags": 0, "weights": {"tags": 1.0}}, "needs their number: pass tags=T"),
        ({"weights": {"image": -1.0}}, "finite, at least 0, and not all 0; got .*-1"),
        ({"weights": {"image": float("nan")}}, "finite, at least 0, and not all 0; got .*nan"),
        ({"weights": {"image": float("inf")}}, "finite, at least 0, and not all 0; got .*inf"),
        ({"weights": dict.fromkeys(TERMS, 0)}, "finite, at least 0, and not all 0"),
        (
            {"tags": 0, "weights": dict.fromkeys([t for t in TERMS if t != "tags"], 0)},
            "finite, at least 0, and not all 0",
        ),
        ({"momentum": 2.0}, r"momentum must be a number in \[0, 1\]; got 2.0"),
        ({"queue": 0}, "queue must be a whole number, at least 1; got 0"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(MMCLError, match=message):
        small(**kwargs)


def test_an_encoder_without_a_width() -> None:
    with pytest.raises(MMCLError, match="Linear has no `width`"):
        MCT(nn.Linear(2, 2), CaptionEncoder(9, width=32))


def without(name: str) -> Any:
    return lambda batch: {n: v for n, v in batch.items() if n != name}


BAD_BATCHES = [
    *(
        (without(name), MissingModalityError, f"MCT trains on image and .*; {name} not in")
        for name in ("image", "image_view", "caption", "caption_view", "tags")
    ),
    (lambda b: b | {"caption": b["caption"][:3]}, ShapeError, "'caption': 3, 'image_view'"),
    (lambda b: b | {"tags": b["tags"][:3]}, ShapeError, "'tags': 3"),
    (lambda b: {n: v[:0] for n, v in b.items()}, ShapeError, "at least one, in all"),
    (lambda b: scenes(5), ShapeError, "12 keys and a batch of 5"),
    (lambda b: scenes(16), ShapeError, "12 keys, fewer than the batch of 16"),
    (lambda b: b | {"tags": b["tags"][:, :4]}, ShapeError, r"labels \[B, 5\].*got \[4, 4\]"),
    (lambda b: b | {"tags": b["tags"][:, :1]}, ShapeError, r"labels \[B, 5\].*got \[4, 1\]"),
    (lambda b: b | {"tags": b["tags"][:, 0]}, ShapeError, r"labels \[B, 5\].*got \[4\]"),
    (lambda b: b | {"caption": b["caption"].float()}, ShapeError, "captions as integers"),
    (lambda b: b | {"caption_view": b["caption"].float()}, ShapeError, "captions as integers"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        *BAD_BATCHES,
        (lambda b: b | {"image": b["image"] * float("nan")}, MMCLError, "queries: 4 of 4 rows"),
        (lambda b: b | {"image_view": b["image"] * float("inf")}, MMCLError, "positives: 4 of 4"),
    ],
)
def test_a_loss_that_raises_leaves_all_as_it_was(change, error, message: str) -> None:
    model = small()
    step(model, scenes(4))
    before = state(model)
    with pytest.raises(error, match=message):
        model.loss(change(scenes(4, seed=1)))
    assert_same_state(model, before)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"intra_temperature": 0.0}, r"intra_temperature must be above 0 and finite .*; got 0.0"),
        ({"inter_temperature": -1.0}, r"inter_temperature must be above 0 and finite .*; got -1.0"),
        ({"inter": "hinge", "margin": -0.5}, r"margin must be a number in \[0, inf\); got -0.5"),
    ],
)
def test_bad_temperatures_and_margin(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(MMCLError, match=message):
        small(**kwargs).loss(scenes(4))


# --- steps that fail, and trainings that stop -----------------------------------------------------


def test_a_loss_without_a_step_leaves_all_as_it_was() -> None:
    model = small()
    step(model, scenes(4))
    before = state(model)
    model.loss(scenes(4, seed=1))["total"].backward()
    assert_same_state(model, before)
    other = copy.deepcopy(model)
    for one in (model, other):  # the keys of the last loss alone join the queues
        step(one, scenes(4, seed=2))
    model.loss(scenes(4, seed=5))
    assert_same_state(model, state(other))


def test_a_failure_in_fit_leaves_all_as_it_was() -> None:
    assert_a_failure_in_fit_leaves_all_as_it_was(small)


def test_a_loss_in_eval_mode_keeps_no_keys() -> None:
    model = small().eval()
    before = state(model.queues)
    model.loss(scenes(4))
    model.after_step()
    assert_same_state(model.queues, before)
    model.train().loss(scenes(4))
    model.after_step()
    model.after_step()  # they join once
    assert [int(model.queues[name].pointer) for name in QUEUES] == [4] * 4


def test_a_resumed_training_is_one_that_never_stopped(tmp_path: Path) -> None:
    assert_resumed_is_never_stopped(lambda seed: small(seed), tmp_path / "a.pt")


# --- warm start -----------------------------------------------------------------------------------


def test_warm_start_fills_the_queues_and_the_first_loss_meets_those_keys() -> None:
    model = small(min_shared_tags=1).double()
    batches = [double(scenes(size, seed=size)) for size in (4, 6, 2)]
    before = state(model)
    model.warm_start(iter(batches))
    notes = Notes(model, 1)
    for name, entry, head in (
        ("image", "image_view", 0),
        ("caption", "caption_view", 0),
        ("inter_image", "image", 1),
        ("inter_caption", "caption", 1),
    ):
        # Both encoders are still equal, so the keys are queries.
        tower = model.query[entry.removesuffix("_view")]
        keys = torch.cat([tower(batch[entry])[head].detach() for batch in batches])
        torch.testing.assert_close(model.queues[name].keys, keys, rtol=1e-12, atol=1e-13)
        said = [what for batch in batches for _, what in notes.new(batch)[name]]
        notes.kept[name] = deque(zip(keys, said, strict=True))
        if name == "image":
            tags = torch.cat([batch["tags"] for batch in batches])
            assert torch.equal(model.queues[name].labels, tags)
        else:
            codes = model.queues[name].labels.flatten()
            same = torch.tensor([[a == b for b in said] for a in said])
            assert torch.equal(same_text(codes, codes) | torch.eye(12, dtype=torch.bool), same)
    after = state(model)
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert changed == [f"queues.{q}.{what}" for q in QUEUES for what in ("keys", "labels")]

    # The same samples, met again, find themselves marked.
    expected = notes.terms(
        batches[0], 0.2, lambda q, k, queue, m: reference.queue_info_nce(q, k, queue, 0.07, m)
    )
    found = {name: float(value.detach()) for name, value in model.loss(batches[0]).items()}
    assert {name: found[name] for name in TERMS} == pytest.approx(expected, rel=1e-10)


def test_warm_start_enqueues_what_a_step_does() -> None:
    """Keys of the momentum encoders replace the oldest; nothing else changes, now or later."""
    model = small(momentum=0.5).double()
    notes = Notes(model, 2)
    for i in range(2):
        batch = double(scenes(4, seed=i))
        new = notes.new(batch)
        step(model, batch, rate=0.5)
        for name in QUEUES:
            notes.kept[name].extend(new[name])
    before = state(model)
    batches = [double(scenes(4, seed=i)) for i in range(2, 4)]
    for batch in batches:
        for name, pairs in notes.new(batch).items():
            notes.kept[name].extend(pairs)
    model.warm_start(batches)
    after = state(model)
    assert all(
        name.startswith("queues") for name in after if not torch.equal(after[name], before[name])
    )
    for name in QUEUES:
        queue = model.queues[name]
        keys = torch.stack([key for key, _ in notes.kept[name]])
        torch.testing.assert_close(queue.keys.roll(-int(queue.pointer), 0), keys)
        assert int(queue.pointer) == 4
    model.after_step()  # and no step brings them again
    assert [int(model.queues[name].pointer) for name in QUEUES] == [4] * 4


@pytest.mark.parametrize(("change", "error", "message"), BAD_BATCHES)
def test_warm_start_checks_each_batch_as_loss_does(change, error, message: str) -> None:
    """Of a bad one, nothing is taken; those before it were."""
    model = small()
    step(model, scenes(4))
    before = state(model)
    model.warm_start([])
    with pytest.raises(error, match=message):
        model.warm_start([change(scenes(4, seed=2))])
    assert_same_state(model, before)
    other = copy.deepcopy(model)
    other.warm_start([scenes(4, seed=1)])
    with pytest.raises(error, match=message):
        model.warm_start([scenes(4, seed=1), change(scenes(4, seed=2)), scenes(4, seed=3)])
    assert_same_state(model, state(other))


# --- embeddings -----------------------------------------------------------------------------------


def test_embeds_whatever_is_there() -> None:
    model, batch = small(), scenes(5)
    image, caption = (model.embed({m: batch[m]}) for m in ("image", "caption"))
    both = model.embed(batch)
    for vectors in (image, caption, both):
        assert vectors.shape == (5, 8)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(both, F.normalize(image + caption, dim=1))
    pooled = model.encoders["image"](batch["image"]).pooled
    inter = F.normalize(model.query["image"].inter(pooled), dim=1)
    torch.testing.assert_close(image, inter)
    with pytest.raises(
        MissingModalityError, match=r"image, caption, or some of them; .*\['tags'\]"
    ):
        model.embed({"tags": batch["tags"]})


def test_autocast_keeps_queues_and_marks_exact() -> None:
    model = small(min_shared_tags=1)
    for i in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            parts = model.loss(scenes(4, seed=i))
        assert all(value.dtype == torch.float32 and value.isfinite() for value in parts.values())
        parts["total"].backward()
        model.after_step()
    assert model.queues["image"].keys.dtype == torch.float32
    expected = torch.cat([scenes(4, seed=i)["tags"] for i in range(3)])
    assert torch.equal(model.queues["image"].labels, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_what_the_cpu_gives() -> None:
    here, there = small().double(), small().double().cuda()
    for i in range(4):
        batch = double(scenes(4, seed=i))
        step(here, batch)
        step(there, {name: values.cuda() for name, values in batch.items()})
    for name, value in there.state_dict().items():
        torch.testing.assert_close(value.cpu(), here.state_dict()[name], rtol=1e-7, atol=1e-9)


# --- it learns ------------------------------------------------------------------------------------


def test_it_learns_within_and_between_the_modalities() -> None:
    """Recall ends at 0.57; with another's captions at 0.08, as at the start: that is chance."""
    lab = ShapesCaptions(128, size=24)
    torch.manual_seed(0)
    model = MCT(
        ImageEncoder(size=24, width=32), CaptionEncoder(len(lab.tokenizer), width=32),
        tags=lab.tags.shape[1], dim=16, queue=64,
    )  # fmt: skip

    def recalls() -> list[float]:
        image, caption = (embed_all(model, lab, (name,)) for name in ("image", "caption"))
        return [recall_at_k(image, caption, 10), recall_at_k(caption, image, 10)]

    assert max(recalls()) < 0.2
    views = moco_v2(
        24, views=("image_view",), scale=(0.7, 1.0), jitter=(0.2, 0.2, 0.2, 0.0),
        grayscale_p=0.0, blur_p=0.0,
    )  # fmt: skip
    augment = compose(paraphrase(lab, view=True), views)
    model.warm_start([augment(lab.batch(range(64)))])  # now losses can be compared
    history = fit(
        model, lab, epochs=24, batch_size=32, lr=3e-3, progress=False, augment=augment
    )  # fmt: skip
    for name in ("image", "caption", "image_to_caption", "caption_to_image"):
        means = history.epoch_means(name)
        assert means[-1] < 0.85 * means[0], name
    assert min(recalls()) > 0.35


# --- one number for a caption, and what a batch must hold -----------------------------------------


def test_a_caption_has_one_code_at_any_width_in_any_batch() -> None:
    captions = torch.randint(4, 50, (40, 7), generator=torch.Generator().manual_seed(0))
    captions[torch.arange(7) >= torch.randint(1, 8, (40, 1))] = 0
    codes = caption_codes(captions)
    assert codes.dtype == torch.int64
    assert codes.shape == (40,)
    assert torch.equal(caption_codes(F.pad(captions, (0, 9))), codes)
    assert torch.equal(caption_codes(captions.flip(0)), codes.flip(0))
    assert torch.equal(caption_codes(captions.int()), codes)
    assert torch.equal(caption_codes(captions.to(torch.uint8)), codes)
    for i in (0, 13, 39):
        own = captions[i : i + 1]
        assert torch.equal(caption_codes(own[:, own[0] != 0]), codes[i : i + 1])
    assert caption_codes(captions[:0]).shape == (0,)


@pytest.mark.parametrize("detail", [1, 2, 4])
def test_different_captions_of_the_laboratory_have_different_codes(
    detail: int, many: ShapesCaptions
) -> None:
    sentences = many.with_detail(detail).sentences.flatten(0, 1)
    codes, texts = caption_codes(sentences).tolist(), words(sentences)
    pairs = set(zip(codes, texts, strict=True))
    assert len(pairs) == len(set(codes)) == len(set(texts))
    assert len(pairs) > 100
    assert 0 not in codes  # that of the random keys


@pytest.fixture(scope="module")
def many() -> ShapesCaptions:
    return ShapesCaptions(2000, size=24)


def test_all_short_captions_have_different_codes() -> None:
    """All of up to four words out of 12: what differs in one word, in two, or in order."""
    every = torch.cartesian_prod(*[torch.tensor([0, 1, 2, *range(4, 13)])] * 4)
    text = every[(every.sort(dim=1, descending=True).values != 0).any(1)]
    packed = text[((text[:, :-1] == 0) <= (text[:, 1:] == 0)).all(1)]  # padding at the end alone
    assert len(packed) == 11 + 11**2 + 11**3 + 11**4
    assert len(caption_codes(packed).unique()) == len(packed)
    assert 0 not in caption_codes(packed)


@pytest.mark.parametrize("captions", [torch.ones(3), torch.ones(3, 4), torch.ones(2, 2, 2).long()])
def test_codes_of_what_is_no_caption(captions: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"expected captions as integers \[N, L\], got torch\."):
        caption_codes(captions)


def test_require_names_what_is_missing() -> None:
    batch = {"image": torch.zeros(3, 2), "caption": torch.zeros(3), "tags": torch.zeros(2)}
    require(batch, "X trains on", "image", "caption")
    require(batch, "X trains on", "tags")
    message = r"^X needs image and a and b; a and b not in .* \['caption', 'image', 'tags'\]$"
    with pytest.raises(MissingModalityError, match=message):
        require(batch, "X needs", "image", "a", "b")
    with pytest.raises(ShapeError, match=r"one number of samples.*\{'image': 3, 'tags': 2\}"):
        require(batch, "X needs", "image", "tags")
    with pytest.raises(ShapeError, match=r"at least one, in all; got \{'image': 0\}"):
        require({"image": torch.zeros(0, 2)}, "X needs", "image")
