"""The experiment of MCT: terms, views and data of each condition; each measure against loops."""

import inspect
import json
import math

import pytest
import torch
from torch import Tensor

from mmcl_book.experiments import mct, small
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.drawing import ATTRIBUTES, VALUES
from mmcl_core.data.shapes import SYNONYMS
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import embed_all
from mmcl_core.methods import CLIP, MCT
from mmcl_core.methods.mct import TERMS
from tests.tiny import SCENES, mean_recall, said, shrink

FEW = ("CLIP", "between", "between + image + tags + caption",
       "within only", "drawn again")  # fmt: skip


@pytest.fixture(scope="module")
def runs():
    """Some conditions with two seeds, each trained on one small batch of scenes."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        patch.setattr(mct, "EPOCHS", 1)
        yield {(c, s): mct.run(s, **mct.CONDITIONS[c]) for c in FEW for s in (0, 1)}


def test_conditions_measure_the_same_things_with_other_values(runs) -> None:
    names = {tuple(values) for values in runs.values()}
    assert len(names) == 1
    for values in runs.values():
        assert all(type(v) is float and math.isfinite(v) for v in values.values())
    for condition in FEW:
        assert runs[condition, 0] != runs[condition, 1]
    assert len({tuple(runs[condition, 0].items()) for condition in FEW}) == len(FEW)


@pytest.mark.parametrize("condition", mct.CONDITIONS)
def test_run_takes_every_condition(condition: str) -> None:
    config = mct.CONDITIONS[condition]
    inspect.signature(mct.train).bind(0, **config)
    assert json.loads(json.dumps(config)) == config


def test_the_same_seed_gives_the_same_values(runs, monkeypatch) -> None:
    shrink(monkeypatch)
    monkeypatch.setattr(mct, "EPOCHS", 1)
    torch.manual_seed(99)  # of which nothing depends
    condition = "between + image + tags + caption"
    assert mct.run(0, **mct.CONDITIONS[condition]) == runs[condition, 0]


@pytest.mark.parametrize("condition", mct.CONDITIONS)
def test_terms_are_those_of_the_name(condition: str) -> None:
    config = mct.CONDITIONS[condition]
    if config.get("method") == "clip":
        return
    settings = {k: v for k, v in config.items() if k not in ("terms", "view", "detail")}
    method = mct.new_mct(mct.scenes(2, 0), 0, config["terms"], **settings)
    on = {term for term in TERMS if method.weights[term]}
    within = {term for term in mct.TERMS if term in condition}
    if condition == "within only" or condition.startswith("all five"):
        within = set(mct.TERMS)
    if condition == "drawn again":
        within = {"image"}
    assert on - set(mct.BETWEEN) == within
    assert set(mct.BETWEEN) <= on or condition == "within only"
    if condition.startswith("image x "):
        assert method.weights["image"] == float(condition.removeprefix("image x "))
    else:
        assert all(method.weights[term] == mct.TERMS[term] for term in within)


def test_every_choice_of_the_terms_has_a_condition() -> None:
    choices = [
        [name for name, on in zip(mct.TERMS, (i & 4, i & 2, i & 1), strict=True) if on]
        for i in range(8)
    ]
    for terms in choices:
        assert sorted(mct.CONDITIONS[mct.named(terms)]["terms"]) == sorted(terms)
    assert len({mct.named(terms) for terms in choices}) == 8


def test_an_mct_begins_with_the_weights_of_its_seed() -> None:
    data = mct.scenes(2, 0)
    one, plain = mct.new_mct(data, 3, ["image"]), mct.new_mct(data, 3, [])
    torch.rand(5)
    again, other = mct.new_mct(data, 3, ["image"]), mct.new_mct(data, 4, ["image"])
    weights = [dict(m.named_parameters()) for m in (one, plain, again, other)]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name])
        assert torch.equal(value, weights[2][name])
    assert not torch.equal(one.queues["image"].keys, other.queues["image"].keys)


def test_captions_name_shapes_and_tags_name_shapes_and_colours() -> None:
    data = mct.scenes(SCENES, 4)
    shapes = set(VALUES["shape"]) | {SYNONYMS.get(word, word) for word in VALUES["shape"]}
    openings = {"a", "and", "there", "is", "we", "see", "picture", "of"}
    assert said(data) == shapes | openings
    assert data.tag_names == VALUES["shape"] + VALUES["colour"]


def test_what_is_drawn_again_has_the_same_objects_in_another_picture() -> None:
    data = mct.scenes(8, 3)
    batch = data.batch([5, 0, 7])
    seen = mct.draw_again(data, 99)(batch)
    objects = {name: values.numpy() for name, values in data.attributes.items()}
    other = mct.scenes(8, 99, attributes=objects)
    for name in ATTRIBUTES:
        assert torch.equal(other.attributes[name], data.attributes[name])
    assert torch.equal(seen["image_view"], other.batch([5, 0, 7])["image"])
    difference = (seen["image_view"] - batch["image"]).abs().mean((1, 2, 3))
    assert (difference > 0.01).all()


def test_a_clip_sees_the_same_scenes(monkeypatch) -> None:
    shrink(monkeypatch)
    seen = []
    monkeypatch.setattr(small, "train", lambda method, data, seed, **how: seen.append((data, how)))
    monkeypatch.setattr(mct, "fit", lambda method, data, **how: seen.append((data, how)))
    assert isinstance(mct.train(0, method="clip"), CLIP)
    assert isinstance(mct.train(0, terms=["tags"]), MCT)
    (one, how), (other, how_other) = seen
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.sentences, other.sentences)
    assert how["epochs"] == how_other["epochs"] == mct.EPOCHS


@pytest.mark.parametrize(("method", "view"), [("moco", "crop"), ("mct", "none")])
def test_a_view_that_a_method_has_not_is_refused(method: str, view: str) -> None:
    with pytest.raises(MMCLError, match=view):
        mct.train(0, method=method, view=view)


# --- measures -------------------------------------------------------------------------------------


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize(("n", "count"), [(2, 1), (9, 3), (30, 5)])
def test_nearest_is_the_loop(n: int, count: int) -> None:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(n))
    x[1] = 3 * x[0] + torch.tensor([0.1, 0, 0, 0])  # the nearest of all, and not the row itself
    for i, row in enumerate(mct.nearest(x, count).tolist()):
        others = sorted((j for j in range(n) if j != i), key=lambda j: -cosine(x[i], x[j]))
        assert row == others[:count]


@pytest.fixture(scope="module")
def lab() -> tuple[MCT, ShapesCaptions]:
    data = mct.scenes(SCENES, small.TEST_SEED)
    return mct.new_mct(data, 1, ["image"]), data


def test_pooled_reads_pictures_and_any_sentence(lab) -> None:
    method, data = lab
    batch = data.batch(range(SCENES))
    with torch.no_grad():
        image = method.encoders["image"](batch["image"]).pooled
        second = method.encoders["caption"](data.sentences[:, 1]).pooled
    torch.testing.assert_close(mct.pooled(method, data), image)
    torch.testing.assert_close(mct.pooled(method, data, "caption", 1), second)


def test_measures_are_loops_over_scenes(lab, monkeypatch) -> None:
    shrink(monkeypatch)
    method, data = lab
    measured = mct.measure(method)
    image, caption = (embed_all(method, data, (name,)) for name in ("image", "caption"))
    means = data.meaning().tolist()
    assert measured["recall"] == pytest.approx(mean_recall(image, caption, means), abs=0.5 / SCENES)
    halves = measured["image_to_caption"] + measured["caption_to_image"]
    assert measured["recall"] == pytest.approx(halves / 2)
    alike = [means.count(m) / SCENES for m in means]
    assert measured["recall chance"] == pytest.approx(sum(alike) / SCENES)
    first, second = (mct.pooled(method, data, "caption", i) for i in (0, 1))
    found = 0
    for i in range(SCENES):
        cosines = [cosine(first[i], row) for row in second]
        right = max(c for c, m in zip(cosines, means, strict=True) if m == means[i])
        found += all(c < right - 1e-6 for c, m in zip(cosines, means, strict=True) if m != means[i])
    assert measured["paraphrase"] == pytest.approx(found / SCENES, abs=1.1 / SCENES)


def test_neighbours_are_loops_over_sets_of_tags(lab, monkeypatch) -> None:
    shrink(monkeypatch)
    method, data = lab
    measured = mct.measure(method)
    sets = [{k for k, on in enumerate(row) if on} for row in data.tags.tolist()]
    near = mct.nearest(mct.pooled(method, data)).tolist()
    pairs = [(i, j) for i, row in enumerate(near) for j in row]
    everyone = [(i, j) for i in range(SCENES) for j in range(SCENES) if i != j]
    for suffix, these in (("", pairs), (" chance", everyone)):
        same = sum(sets[i] == sets[j] for i, j in these) / len(these)
        two = sum(len(sets[i] & sets[j]) >= 2 for i, j in these) / len(these)
        assert measured[f"same tags{suffix}"] == pytest.approx(same)
        assert measured[f"two tags{suffix}"] == pytest.approx(two)
