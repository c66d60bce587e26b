"""The experiment "gmc": its parts, its rivals, its measures, and each condition in small."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmcl_book.experiments import gmc, missing, parts, small
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import embed_all
from mmcl_core.evaluation.summary import shape_and_colour
from mmcl_core.losses import gmc_loss
from mmcl_core.methods import GMC, LateFusion
from tests.tiny import EPOCHS, shrink

TINY = {"epochs": EPOCHS, "batch_size": 32}


def test_a_reader_reads_the_class_off_caption_and_tags() -> None:
    data = parts.Scenes(900, 5)
    y = shape_and_colour(data.drawn)
    labelled = parts.few(y, 3, 0)
    read = gmc.read_off(data, y[labelled], labelled)
    assert parts.share(read, y) > 0.97
    wrong = y.clone()  # most of what it learns from is right
    wrong[::3] = 0
    assert parts.share(gmc.read_off(data, wrong, torch.arange(900)), y) > 0.9


@pytest.fixture(scope="module")
def runs():
    """Runs a condition in two epochs of two steps; remembers what came out."""
    known: dict[tuple[str, int], dict[str, float]] = {}

    def run(condition: str, seed: int, *, again: bool = False) -> dict[str, float]:
        if again or (condition, seed) not in known:
            known[condition, seed] = gmc.run(seed, **gmc.CONDITIONS[condition] | TINY)
        return known[condition, seed]

    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        # All classes of the test scenes are among those few to train on.
        patch.setattr(gmc, "shape_and_colour", lambda data: shape_and_colour(data) % 4)
        yield run


@pytest.mark.parametrize("condition", gmc.CONDITIONS)
def test_seeds_give_the_same_measures_with_other_values(runs, condition: str) -> None:
    one, two = runs(condition, 0), runs(condition, 1)
    assert list(one) == list(two)
    assert one != two
    assert all(type(value) is float and math.isfinite(value) for value in one.values())


@pytest.mark.parametrize("condition", ["GMC", "co-trained, 2 labels", "one CLIP"])
def test_the_same_seed_gives_the_same_values(runs, condition: str) -> None:
    one = runs(condition, 0)
    torch.manual_seed(99)  # of which nothing depends
    assert runs(condition, 0, again=True) == one


def test_what_is_compared_is_measured_of_both(runs) -> None:
    for claim in gmc.BETTER:
        for condition in (claim.method, *claim.rivals):
            assert claim.measure in runs(condition, 0), (claim, condition)


@pytest.mark.parametrize(
    ("condition", "labels", "steps"),
    [
        ("modality dropout", 64, 4),
        ("modality dropout, 2 labels", 8, 4),
        ("reader, 2 labels", 64, 4),
    ],
)
def test_few_labels_get_as_many_steps_as_all(monkeypatch, condition, labels, steps) -> None:
    shrink(monkeypatch)
    monkeypatch.setattr(gmc, "shape_and_colour", lambda data: shape_and_colour(data) % 4)
    seen = []

    def fit(method, data, *, epochs, batch_size, **how):
        seen.append((len(data), epochs * (len(data) // batch_size)))

    monkeypatch.setattr(gmc, "fit", fit)
    gmc.train(0, **gmc.CONDITIONS[condition] | TINY)
    assert seen == [(labels, steps)]


def test_a_condition_is_what_it_says() -> None:
    data = parts.Scenes(4, 0, 5)
    for name, config in gmc.CONDITIONS.items():
        kind = config.get("kind", "GMC")
        method = gmc.new_method(kind, data, 0)
        assert name.startswith("modality dropout") == (kind == "fusion")
        assert ("labels" in name) == ("labels" in config)
        assert isinstance(method, GMC if kind in gmc.CONTRASTIVE else LateFusion)
        assert ("dropout" in config) == (kind == "fusion")
    with pytest.raises(MMCLError, match="kind must be one of GMC, no joint, one CLIP, fusion"):
        gmc.new_method("early fusion", data, 0)


def test_five_parts_are_measured_one_by_one(runs) -> None:
    found = gmc.run(0, parts=5, **TINY)
    assert {f"size, {m}" for m in (*parts.PARTS, "complete", "chance")} <= set(found)
    assert sum(name.startswith("accuracy") and name.count(",") == 1 for name in found) == 10


# --- the rivals -----------------------------------------------------------------------------------


@pytest.fixture
def scenes() -> parts.Scenes:
    return parts.Scenes(40, 3)


def test_every_two_parts_are_pulled_to_each_other(scenes) -> None:
    batch = scenes.batch(range(9))
    for hub, pairs in ((None, 3), ("image", 2)):
        method = gmc.new_method("no joint", scenes, 0, hub=hub)
        z = [method.embed_modality(batch, m) for m in missing.MODALITIES]
        terms = [gmc_loss([z[i]], z[j], 0.1) for i, j in ((0, 1), (0, 2), (1, 2))][:pairs]
        torch.testing.assert_close(method.loss(batch)["total"], sum(terms))
        mean = F.normalize(torch.stack(z).mean(0), dim=1)
        torch.testing.assert_close(method.embed(batch), mean)


def test_one_clip_sets_the_picture_against_the_rest(scenes) -> None:
    method = gmc.new_method("one CLIP", scenes, 0)
    batch = scenes.batch(range(9))
    picture, rest = (
        method.embed(batch | {}),
        method.embed({m: batch[m] for m in ("caption", "tags")}),
    )
    alone = method.embed({"image": batch["image"]})
    torch.testing.assert_close(picture, F.normalize(alone + rest, dim=1))
    torch.testing.assert_close(method.loss(batch)["total"], gmc_loss([alone], rest, 0.1))
    caption = method.embed({"caption": batch["caption"]})
    assert not torch.allclose(caption, rest)
    torch.testing.assert_close(caption.norm(dim=1), torch.ones(9))


# --- parts ----------------------------------------------------------------------------------------


def test_five_parts_of_a_scene() -> None:
    data = parts.Scenes(12, 0, 5)
    batch = data.batch([3, 7])
    assert set(batch) == {*parts.PARTS, "index"}
    assert batch["index"].tolist() == [3, 7]
    words = data.drawn.tokenizer.decode(batch["size"][0])
    sizes = (("small", "little"), ("large", "big"))[int(data.drawn.attributes["size"][3, 0])]
    assert any(word in words for word in sizes)
    assert not any(word in words for word in ("circle", "red", "striped", "top"))
    grey = batch["image"][1].mean(0)
    assert float(batch["thumbnail"][1, 0, 0, 0]) == pytest.approx(float(grey[:4, :4].mean()))
    assert set(parts.Scenes(2, 0).batch([0])) == {*missing.MODALITIES, "index"}


def test_each_part_has_an_encoder() -> None:
    data = parts.Scenes(5, 0, 5)
    batch = data.batch(range(5))
    for m, trunk in parts.encoders(data).items():
        encoded = trunk(batch[m])
        assert encoded.pooled.shape == (5, small.WIDTH)
        assert encoded.tokens.shape[:2] == encoded.mask.shape
    ink = parts.ThumbnailEncoder(width=8)
    torch.testing.assert_close(
        ink(torch.ones(2, 1, 8, 8)).pooled, F.layer_norm(ink.layers[:4](torch.ones(2, 64)), (8,))
    )


def test_choices_are_all_but_none() -> None:
    assert parts.choices("ab") == [("a",), ("b",), ("a", "b")]
    assert len(parts.choices("abcd")) == 15


def test_few_labels_of_each_class() -> None:
    y = torch.tensor([2, 0, 2, 2, 0, 2, 0])
    at = parts.few(y, 2, 0)
    assert sorted(y[at].tolist()) == [0, 0, 2, 2]
    assert len(set(at.tolist())) == 4
    assert any(parts.few(y, 2, seed).tolist() != at.tolist() for seed in range(1, 9))
    assert len(parts.few(y, 4, 0)) == 7  # there are three of class 0


def test_a_probe_is_asked_by_name() -> None:
    y = torch.arange(12) % 3
    x = F.one_hot(y).float()
    told = parts.probed(x, y, {("a",): x, ("b",): x.roll(1, 1)}, y)
    assert told == {("a",): 1.0, ("b",): 0.0}


# --- what is measured -----------------------------------------------------------------------------


def test_the_nearest_complete_scene_is_found(runs, monkeypatch) -> None:
    """A model whose parts lie at their wholes finds the right class for every picture."""
    trained = gmc.train(0, **TINY)
    monkeypatch.setattr(
        gmc,
        "embed_all",
        lambda m, data, s: F.one_hot(
            shape_and_colour(getattr(data, "drawn", None) or data.dataset.drawn) % 4, 8
        ).float(),
    )
    found = gmc._probed(trained, 0)
    assert found["found, image"] == 1.0
    assert found["accuracy, image, 5 labels"] == 1.0


def test_where_the_test_scenes_lie_is_kept_at_both_ends_or_each_time(runs) -> None:
    both, each = gmc.train(0, **TINY), gmc.train(0, **TINY, each=True)
    assert (len(both.seen), len(each.seen), len(each.alone)) == (2, EPOCHS + 1, EPOCHS + 1)
    torch.testing.assert_close(both.seen[-1], each.seen[-1])
    last = embed_all(each.method, each.test, ("tags",))
    assert torch.equal(each.seen[-1][("tags",)], last)
    measured = gmc._places(each)
    complete = each.seen[-1][missing.MODALITIES]
    assert measured["gap, tags"] == pytest.approx(
        float((last.mean(0) - complete.mean(0)).norm()), 1e-4
    )
    assert measured["cosine, tags"] == pytest.approx(float((last * complete).sum(1).mean()), 1e-4)
