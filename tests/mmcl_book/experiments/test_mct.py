"""The experiment of MCT: terms, tags, views and data of each condition; each measure by loops."""

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
from mmcl_core.evaluation import embed_all, linear_probe, summary
from mmcl_core.methods import CLIP, MCT
from mmcl_core.methods.mct import TERMS
from tests.float32 import close32
from tests.tiny import mean_recall, said

FEW = ("CLIP", "two half encoders", "MCT", "CLIP, tag head", "MCT, tags")


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Two steps on few scenes, and few pictures to measure on."""
    for name, value in {"SCENES": 64, "EPOCHS": 1, "EVERY": 1, "PROBED": (600, 60)}.items():
        patch.setattr(mct, name, value)


@pytest.fixture(scope="module")
def runs():
    """Some conditions with two seeds."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        yield {(c, s): mct.run(s, **mct.CONDITIONS[c]) for c in FEW for s in (0, 1)}


def test_runs_give_finite_numbers_that_differ(runs) -> None:
    for (condition, seed), values in runs.items():
        assert all(type(v) is float and math.isfinite(v) for v in values.values())
        assert set(values) == set(runs[condition, 1 - seed])
        assert values != runs[condition, 1 - seed]
        assert {*ATTRIBUTES, *(f"accuracy, {name}" for name in mct.LABELS)} <= set(values)
        assert ("accuracy @ 1" in values) == (condition != "two half encoders")
    assert len({tuple(runs[condition, 0].items()) for condition in FEW}) == len(FEW)


@pytest.mark.parametrize("condition", mct.CONDITIONS)
def test_a_method_can_be_made_for_every_condition(condition: str, monkeypatch) -> None:
    shrink(monkeypatch)
    config = mct.CONDITIONS[condition]
    inspect.signature(mct.run).bind(0, **config)
    assert json.loads(json.dumps(config)) == config
    if config.get("method") != "beside":
        method = mct.untrained(condition)
        assert isinstance(method, MCT) == ("MCT" in condition or condition == "within alone")


def test_the_same_seed_gives_the_same_values(runs, monkeypatch) -> None:
    shrink(monkeypatch)
    torch.manual_seed(99)  # of which nothing depends
    assert mct.run(0, **mct.CONDITIONS["MCT, tags"]) == runs["MCT, tags", 0]


def test_other_scenes_to_measure_on_change_no_training(runs, monkeypatch) -> None:
    shrink(monkeypatch)
    config = mct.CONDITIONS["CLIP"]
    other = mct.run(0, asked=small.VALIDATION_SEED, **config)
    assert other != runs["CLIP", 0]
    one, two = (mct.trained(0, **config) for _ in range(2))
    for mine, again in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, again)


@pytest.mark.parametrize("condition", [c for c in mct.CONDITIONS if "MCT" in c])
def test_terms_are_those_of_the_name(condition: str, monkeypatch) -> None:
    shrink(monkeypatch)
    method = mct.untrained(condition)
    on = {term for term in TERMS if method.weights[term]}
    expected = {*mct.BETWEEN, "caption", "image", *(["tags"] if "tags" in condition else [])}
    assert on == expected - ({"image"} if "no image" in condition else set())


def test_within_alone_is_the_image_term(monkeypatch) -> None:
    shrink(monkeypatch)
    weights = mct.untrained("within alone").weights
    assert [term for term in TERMS if weights[term]] == ["image"]


def test_all_methods_see_the_same_scenes_in_as_many_steps(monkeypatch) -> None:
    shrink(monkeypatch)
    seen = []
    monkeypatch.setattr(mct, "fit", lambda method, data, **how: seen.append((data, how)))
    for condition in mct.CONDITIONS:
        mct.trained(0, **mct.CONDITIONS[condition])
    (first, first_how), *others = seen
    assert len(seen) == len(mct.CONDITIONS) + 1  # two half encoders are two
    for data, how in others:
        assert torch.equal(data.images, first.images)
        for name in ("epochs", "batch_size", "seed"):
            assert how[name] == first_how[name]


@pytest.mark.parametrize(("method", "view"), [("moco", "crop"), ("mct", "none")])
def test_a_method_or_view_that_is_not_there_is_refused(method: str, view: str) -> None:
    with pytest.raises(MMCLError, match=view):
        mct.prepared(0, method=method, view=view)


# --- data and views -------------------------------------------------------------------------------


def test_captions_name_shapes_and_tags_name_shapes_and_colours() -> None:
    data = mct.scenes(64, 4)
    shapes = set(VALUES["shape"]) | {SYNONYMS.get(word, word) for word in VALUES["shape"]}
    openings = {"a", "and", "there", "is", "we", "see", "picture", "of"}
    assert said(data) == shapes | openings
    assert data.tag_names == VALUES["shape"] + VALUES["colour"]


def test_tags_as_words_follow_each_sentence() -> None:
    data = mct.scenes(20, 5)
    told = mct.with_tags_as_words(data)
    for i in range(len(data)):
        words = [name for name, on in zip(data.tag_names, data.tags[i], strict=True) if on]
        for sentence in range(data.sentences.shape[1]):
            assert told.text(i, sentence).split() == [*data.text(i, sentence).split(), *words]
            row = told.sentences[i, sentence]
            assert (row == 2).sum() == 1  # <end>
            assert not row[int((row == 2).nonzero()) + 1 :].any()  # padding, and nothing else


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


def test_another_light_is_one_line_for_each_channel_of_a_picture() -> None:
    image = torch.full((6, 3, 32, 32), 0.5)
    image[:, :, :16] = 0.4  # no value will reach 0 or 1
    torch.manual_seed(0)
    view = mct.lit(gain=0.3, offset=0.1, tint=0.05)({"image": image})["image_view"]
    contrast = (view.amax((2, 3)) - view.amin((2, 3))) / 0.1
    assert (contrast >= 0.7 - 1e-4).all()
    assert (contrast <= 1.3 + 1e-4).all()
    assert contrast.std(1).max() < 1e-4  # one contrast a picture
    assert contrast.std() > 0.01
    level = view.amax((2, 3)) - 0.5  # where the picture is 0.5, contrast changes nothing
    assert (level.abs() <= 0.15 + 1e-5).all()
    assert 0 < (level - level.mean(1, keepdim=True)).abs().max() <= 0.1  # a tint
    plain = mct.lit(gain=0, offset=0, tint=0)
    torch.manual_seed(1)
    cropped = mct.crop()({"image": image})["image_view"]
    torch.manual_seed(1)
    close32(plain({"image": image})["image_view"], cropped)


# --- methods --------------------------------------------------------------------------------------


def two_encoders(data: ShapesCaptions) -> tuple[torch.nn.Module, torch.nn.Module]:
    return small.image_encoder(), small.caption_encoder(data)


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_a_tagged_clip_is_a_clip_and_a_classifier_of_tags(weight: float) -> None:
    data = mct.scenes(12, 1)
    batch = data.batch(range(12))
    torch.manual_seed(0)
    method = mct.TaggedCLIP(*two_encoders(data), dim=16, tags=12, weight=weight)
    found = method.loss(batch)
    torch.manual_seed(0)
    plain = CLIP(*two_encoders(data), dim=16)
    close32(found["clip"], plain.loss(batch)["total"])
    probability = torch.sigmoid(method.teller(method.encoders["image"](batch["image"]).pooled))
    by_hand = [
        -math.log(p if tag else 1 - p)
        for row, tags in zip(probability.tolist(), batch["tags"].tolist(), strict=True)
        for p, tag in zip(row, tags, strict=True)
    ]
    assert found["tags"].item() == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)
    close32(found["total"], found["clip"] + weight * found["tags"])


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


# --- measures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 100])
def test_few_of_each_label(count: int) -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 0, 0, 5])
    rows = mct.few_of_each(labels, count, 1)
    assert len(set(rows.tolist())) == len(rows)
    for label in set(labels.tolist()):
        found = sum(int(labels[i]) == label for i in rows.tolist())
        assert found == min(count, int((labels == label).sum()))
    more = mct.few_of_each(labels, count + 1, 1)
    assert set(rows.tolist()) <= set(more.tolist())  # more labels are those and others
    draws = {tuple(mct.few_of_each(labels, 1, seed).tolist()) for seed in range(20)}
    assert len(draws) > 3


def test_two_encoders_side_by_side_are_both() -> None:
    data = mct.scenes(8, 1)
    clip, within = small.new_clip(data, 0), mct.new_mct(data, 1, ["image"], between=False)
    both = mct.Beside(clip, within)
    x = mct.pooled(both, data)
    assert torch.equal(x, torch.cat([mct.pooled(clip, data), mct.pooled(within, data)], dim=1))
    assert torch.equal(embed_all(both, data, ("image",)), embed_all(clip, data, ("image",)))


def test_measures_are_loops_over_scenes(monkeypatch) -> None:
    shrink(monkeypatch)
    data = mct.scenes(4, 0)
    method = mct.new_mct(data, 1, ["image"])
    measures = mct.Measures(small.VALIDATION_SEED, 3)
    found = measures(method)
    test = mct.scenes(1000, small.VALIDATION_SEED)
    image, caption = (embed_all(method, test, (name,)) for name in ("image", "caption"))
    means = test.meaning().tolist()
    assert found["recall"] == pytest.approx(mean_recall(image, caption, means), abs=2e-3)
    known = small.scenes(600, small.PROBE_SEEDS[0], objects=(1, 1))
    single = small.scenes(60, small.VALIDATION_SEED, objects=(1, 1))

    def features(data: ShapesCaptions) -> Tensor:
        with torch.no_grad():
            return method.encoders["image"](data.batch(range(len(data)))["image"]).pooled

    y, truth = (summary.shape_and_colour(d) for d in (known, single))
    rows = mct.few_of_each(y, 2, 3)
    probe = linear_probe(features(known)[rows], y[rows], features(single), truth)
    assert found["accuracy, 2 labels"] == pytest.approx(probe.accuracy, abs=0.04)
