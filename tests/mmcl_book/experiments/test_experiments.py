"""The experiments: every condition runs, repeats, and has the data and settings of its name."""

import inspect
import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl_book.experiments import granularity, missing, noise, small
from mmcl_book.experiments.gap import embed_both
from mmcl_book.experiments.unseen_words import UNSEEN, with_unseen_words
from mmcl_book.records.making import EXPERIMENTS, experiment
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.drawing import ATTRIBUTES, VALUES
from mmcl_core.data.shapes import SYNONYMS
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import missing_modality, partial_to_complete
from mmcl_core.training import fit
from tests.compare import unit
from tests.tiny import EPOCHS, SCENES, mean_recall, said, same_texts, shrink

sizes = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)
CONDITIONS = [(name, of) for name in EXPERIMENTS for of in experiment(name).CONDITIONS]
# Those that differ in more than a number.
DIFFERENT = [
    ("gap", "learned 0.07"), ("gap", "fixed 0.01"),
    ("granularity", "detail 1"), ("granularity", "without colour"),
    ("granularity", "untrained"), ("granularity", "supervised"),
    ("noise", "no names"), ("noise", "by chance, 0.5"), ("noise", "by corner, 0.5"),
    ("moco", "64 keys, 0.9"), ("moco", "in the batch"), ("moco", "untrained"),
    *(pair for pair in CONDITIONS if pair[0] in ("structure", "missing")),
]  # fmt: skip
# With all that is drawn: scenes, names, weights, order, sentences, what is dropped.
REPEATED = [
    ("gap", "learned 0.07"), ("granularity", "supervised"), ("noise", "by corner, 0.5"),
    ("structure", "trained"), ("missing", "modality dropout"), ("missing", "blending"),
    ("missing", "words late"), ("moco", "64 keys, 0.9"), ("moco", "in the batch"),
]  # fmt: skip


@pytest.fixture(scope="module")
def runs():
    """Runs a condition in two epochs of one step; remembers what came out."""
    known: dict[tuple[str, str, int], dict[str, float]] = {}

    def run(name: str, condition: str, seed: int, *, again: bool = False) -> dict[str, float]:
        config = dict(experiment(name).CONDITIONS[condition])
        if "epochs" in config:
            config["epochs"] = min(config["epochs"], EPOCHS)
        if again or (name, condition, seed) not in known:
            known[name, condition, seed] = experiment(name).run(seed, **config)
        return known[name, condition, seed]

    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        yield run


@pytest.fixture
def untrained(monkeypatch):
    """Nothing is trained; the data that would have been, and the settings, are kept."""
    shrink(monkeypatch)
    seen: list[tuple[ShapesCaptions, dict]] = []
    monkeypatch.setattr(small, "train", lambda method, data, seed, **how: seen.append((data, how)))
    return seen


# --- all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "condition"), CONDITIONS)
def test_run_takes_every_condition(name: str, condition: str) -> None:
    config = experiment(name).CONDITIONS[condition]
    inspect.signature(experiment(name).run).bind(0, **config)
    assert json.loads(json.dumps(config)) == config
    if name == "missing":  # what run passes on
        ours = inspect.signature(missing.train).bind(0, **config).arguments.get("settings", {})
        missing.new_fusion(missing.scenes(2, 0), 0, **ours)


@pytest.mark.parametrize(("name", "condition"), DIFFERENT)
def test_seeds_give_the_same_measures_with_other_values(runs, name, condition) -> None:
    one, two = (runs(name, condition, seed) for seed in (0, 1))
    assert list(one) == list(two)
    assert len(one) > 1
    for values in (one, two):
        assert all(type(value) is float and math.isfinite(value) for value in values.values())
    assert one != two


@pytest.mark.parametrize(("name", "condition"), REPEATED)
def test_the_same_seed_gives_the_same_values(runs, name, condition) -> None:
    one = runs(name, condition, 0)
    torch.manual_seed(99)  # of which nothing depends
    assert runs(name, condition, 0, again=True) == one


def test_a_clip_begins_with_the_weights_of_its_seed() -> None:
    data = small.scenes(2, 0)
    one = small.new_clip(data, 3).state_dict()
    torch.rand(7)
    two, other = small.new_clip(data, 3).state_dict(), small.new_clip(data, 4).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(*(w["heads.image.0.weight"] for w in (one, other)))


# --- granularity ----------------------------------------------------------------------------------


def test_chance_is_the_share_of_the_commonest_value(runs) -> None:
    asked = small.scenes(granularity.PROBED[1], small.PROBE_SEEDS[1], objects=(1, 1))
    measured = runs("granularity", "untrained", 0)
    for name in ATTRIBUTES:
        values = asked.attributes[name][:, 0].tolist()
        assert measured[f"{name} chance"] == max(map(values.count, values)) / len(values)
    assert runs("granularity", "supervised", 0).keys() < measured.keys()


@pytest.mark.parametrize("condition", granularity.CONDITIONS)
def test_captions_name_what_the_condition_says(untrained, condition: str) -> None:
    granularity.train(0, **granularity.CONDITIONS[condition])
    if condition in ("untrained", "supervised"):
        assert len(untrained) == (condition == "supervised")
        return
    ((data, _),) = untrained
    kind, which = condition.split()
    told = {"1": 1, "2": 2, "3": 4, "4": 5}
    left_out = ATTRIBUTES[told[which] :] if kind == "detail" else [which]
    for name, values in VALUES.items():
        words = {word for value in values for word in value.split()}
        words |= {SYNONYMS[word] for word in words & set(SYNONYMS)}
        assert words & said(data) == (set() if name in left_out else words)


def test_the_supervised_are_shown_the_attributes_of_their_pictures(untrained) -> None:
    method = granularity.train(0, training="labels")
    ((data, how),) = untrained
    batch = how["augment"](data.batch([5, 60, 3]))
    for name in ATTRIBUTES:
        assert batch[name].tolist() == [int(data.attributes[name][i].max()) for i in (5, 60, 3)]
        method.heads[name].weight.data.zero_()
        method.heads[name].bias.data.zero_()
    uniform = sum(math.log(len(values)) for values in VALUES.values())
    assert method.loss(batch)["total"].item() == pytest.approx(uniform)


# --- noise ----------------------------------------------------------------------------------------


@sizes
@given(seeds, st.integers(2, 12), st.integers(1, 5), st.floats(0, 0.8))
def test_tied_is_the_loop_over_pairs(seed, n, count, share):
    g = torch.Generator().manual_seed(seed)
    vectors, words = unit(n, 4, seed, torch.float32), torch.rand(n, count, generator=g) < share
    x, has = vectors.double().tolist(), words.tolist()
    cosines: dict[bool, list[float]] = {True: [], False: []}
    for i in range(n):
        for j in range(n):
            if i != j and any(has[i]) and any(has[j]):
                shared = any(a and b for a, b in zip(has[i], has[j], strict=True))
                cosines[shared].append(sum(a * b for a, b in zip(x[i], x[j], strict=True)))
    means = {shared: sum(of) / max(len(of), 1) for shared, of in cosines.items()}
    expected = means[True] - means[False] if all(cosines.values()) else 0.0
    assert noise.tied(vectors, words) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("condition", noise.CONDITIONS)
def test_names_are_as_the_condition_says(untrained, condition: str) -> None:
    data = noise.train(0, **noise.CONDITIONS[condition]).train
    assert untrained[0][0] is data
    rate = noise.CONDITIONS[condition]["rate"]
    texts = [data.text(i).split() for i in range(SCENES)]
    share = sum(bool(set(words) & set(UNSEEN)) for words in texts) / SCENES
    assert abs(share - rate) <= 4 * math.sqrt(rate * (1 - rate) / SCENES)
    assert not {"top", "upper", "bottom", "lower", "left", "right", "at"} & said(data)
    corners = [
        (UNSEEN.index(word) // 4, corner)
        for words, corner in zip(texts, data.attributes["position"][:, 0].tolist(), strict=True)
        for word in set(words) & set(UNSEEN)
    ]
    assert all(a == b for a, b in corners) == (condition == "no names" or "corner" in condition)


def test_recall_is_measured_with_names_and_without(untrained) -> None:
    trained = noise.train(0, rate=1.0)
    measured = noise.measure(trained)
    plain = small.scenes(1000, small.TEST_SEED, detail=3)
    named = with_unseen_words(plain, 1.0, count=2, seed=small.TEST_SEED)
    for kind, test in (("plain", plain), ("with names", named)):
        image, caption = embed_both(trained.method, test)
        recall = mean_recall(image, caption, same_texts(test))
        assert measured[f"recall, {kind}"] == pytest.approx(recall)
    words = [[name in named.text(i).split() for name in UNSEEN] for i in range(SCENES)]
    assert measured["captions tied"] == pytest.approx(noise.tied(caption, torch.tensor(words)))


# --- missing --------------------------------------------------------------------------------------


def test_captions_name_the_shape_and_tags_the_colour() -> None:
    data = missing.scenes(SCENES, 4)
    shapes = {SYNONYMS.get(word, word) for word in VALUES["shape"]} | set(VALUES["shape"])
    assert said(data) == shapes | {"a", "there", "is", "we", "see", "picture", "of"}
    assert data.tag_names == VALUES["colour"]
    assert torch.equal(data.tags, F.one_hot(data.attributes["colour"][:, 0], 6).float())
    assert data.attributes["shape"].shape == (SCENES, 1)


@pytest.mark.parametrize(
    ("condition", "stages"),
    [
        ("fusion", [(0, 0, 0, 1)]),
        ("mean imputation", [(0, 0, 0, 1)]),
        ("modality dropout", [(0, 0, 0, 1)]),
        ("picture first", [(1, 0, 0, 0), (0, 0, 0, 1)]),
        ("words first", [(0, 1, 1, 0), (0, 0, 0, 1)]),
        ("words late", [(0, 0, 0, 1)]),
        ("equal weights", [(0.25, 0.25, 0.25, 0.25)]),
    ],
)
def test_heads_have_the_weights_of_the_condition(monkeypatch, condition, stages) -> None:
    shrink(monkeypatch)
    seen = []

    def fitted(method, data, **how):
        seen.append(tuple(method.weights.tolist()))
        return fit(method, data, **how)

    monkeypatch.setattr(missing, "fit", fitted)
    method = missing.trained(0, **missing.CONDITIONS[condition])
    assert seen == stages
    assert (method.dropout > 0) == (condition == "modality dropout")
    assert method.impute == ("mean" if condition == "mean imputation" else "zero")


def test_the_fusion_begins_with_the_encoder_that_learned_first(monkeypatch) -> None:
    shrink(monkeypatch)
    begun = []

    def fitted(method, data, **how):
        begun.append({name: value.clone() for name, value in method.state_dict().items()})
        return fit(method, data, **how)

    monkeypatch.setattr(missing, "fit", fitted)
    missing.train(0, first="image", epochs=1)
    moved = {name for name in begun[0] if not torch.equal(begun[0][name], begun[1][name])}
    assert {name.split(".")[1] for name in moved if "." in name} == {"image"}


def test_words_say_nothing_in_the_first_steps() -> None:
    data = missing.scenes(8, 0)
    augment, batch = missing.wordless(2), data.batch(range(8))
    for _ in range(2):
        silent = augment(batch)
        for m in missing.WORDS:
            assert torch.equal(silent[m], batch[m][:1].expand_as(batch[m]))
        assert torch.equal(silent["image"], batch["image"])
    assert all(torch.equal(value, batch[m]) for m, value in augment(batch).items())


def test_gradients_are_those_before_clipping(monkeypatch) -> None:
    shrink(monkeypatch)
    history = missing.train(0, epochs=1).history
    parts = [history[f"gradient, {m}"] for m in missing.MODALITIES]
    for whole, *of in zip(history["grad_norm"], *parts, strict=True):
        assert 0 < math.hypot(*of) < whole  # the rest is the fusion's


def test_tell_is_what_the_library_measures(monkeypatch) -> None:
    shrink(monkeypatch)
    trained = missing.train(0, impute="mean", epochs=1)
    method, test, labels = trained.method, trained.test, trained.labels
    found = missing_modality(
        method, test, torch.arange(36), test, labels, missing.MODALITIES, classifier="own"
    )
    assert {s: trained.accuracy(s) for s in found.accuracy} == pytest.approx(found.accuracy)
    measured = missing.measure(trained)
    for present, close in partial_to_complete(method, test, missing.MODALITIES).items():
        name = " + ".join(present)
        assert measured[f"cosine, {name}"] == pytest.approx(close.same, abs=1e-5)
        assert measured[f"cosine of others, {name}"] == pytest.approx(close.other, abs=1e-5)


@pytest.mark.parametrize("condition", missing.CONDITIONS)
def test_measures_of_the_missing_agree_with_each_other(runs, condition: str) -> None:
    measured = runs("missing", condition, 0)
    for name in ("image", "caption + tags"):
        assert measured[f"accuracy, {name} @{EPOCHS}"] == measured[f"accuracy, {name}"]
    for name in missing.MODALITIES:
        assert {f"{name} alone @{epoch}" for epoch in range(EPOCHS + 1)} < measured.keys()
        assert {f"gradient, {name} @{half}" for half in ("0.5", "1", "2")} < measured.keys()
    weights = [value for name, value in measured.items() if name.startswith("weight")]
    assert sum(weights) == pytest.approx(float(condition == "blending"))


@pytest.mark.parametrize("wrong", [{"weights": "online"}, {"first": "tags"}])
def test_an_unknown_training_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(MMCLError, match="must be 'fusion', 'equal' or 'blended'"):
        missing.train(0, **wrong)
