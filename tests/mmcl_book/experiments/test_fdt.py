"""The experiment about FDT: who calls a token, what lies there, and what is measured of it."""

import math
from collections import Counter
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from mmcl_book.experiments import fdt, small, structure, tokens
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.drawing import VALUES
from mmcl_core.data.shapes import SYNONYMS
from mmcl_core.evaluation import embed_all
from mmcl_core.methods import CLIP, FDT
from mmcl_core.sparsemax import sparsemax
from mmcl_core.training import fit
from tests.tiny import EPOCHS, SCENES, Few, mean_recall, shrink


class Lab(NamedTuple):
    method: FDT
    data: ShapesCaptions


@pytest.fixture(scope="module")
def lab() -> Lab:
    data = small.scenes(40, 5)
    return Lab(fdt.new_fdt(data, 1, start=4.0, codebook=32).eval(), data)


@pytest.fixture
def few(monkeypatch):
    shrink(monkeypatch)
    monkeypatch.setattr(fdt, "ShapesCaptions", Few)
    monkeypatch.setattr(fdt, "fit", lambda *of, **how: fit(*of, **how | {"batch_size": SCENES}))
    monkeypatch.setattr(fdt, "BATCH", SCENES)
    monkeypatch.setattr(fdt, "FEW_BATCH", SCENES)
    monkeypatch.setattr(fdt, "FEW_EPOCHS", EPOCHS)
    monkeypatch.setattr(fdt, "EVERY", 1)
    monkeypatch.setattr(tokens, "OFTEN", 3)
    fdt._kept.cache_clear()
    yield
    fdt._kept.cache_clear()


# --- who calls ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["image", "caption"])
def test_calls_are_those_of_each_sample_by_itself(lab: Lab, name: str) -> None:
    found = tokens.calls(lab.method, lab.data, name)
    mine = {
        (token, sample): (place, weight)
        for token, sample, place, weight in zip(*(f.tolist() for f in found), strict=True)
    }
    expected = {}
    for i in range(len(lab.data)):
        with torch.no_grad():  # alone, a caption has no padding
            scores, weights, _ = lab.method.token_attention(lab.data.batch([i]))[name]
        for token, weight in enumerate(weights[0].tolist()):
            if weight > 0:
                column = scores[0, :, token].tolist()
                expected[token, i] = (column.index(max(column)), weight)
    assert mine.keys() == expected.keys()
    assert {k: place for k, (place, _) in mine.items()} == {k: p for k, (p, _) in expected.items()}
    for key, (_, weight) in mine.items():
        assert weight == pytest.approx(expected[key][1], abs=1e-4)


@pytest.mark.parametrize("name", ["image", "caption"])
def test_each_patch_or_word_calls_the_nearest_group(lab: Lab, name: str) -> None:
    clip = fdt.new_clip(lab.data, 3).eval()
    middle = F.normalize(
        torch.randn(6, small.DIM, generator=torch.Generator().manual_seed(0)), dim=1
    )
    expected: dict[tuple[int, int], tuple[float, int]] = {}
    for i in range(len(lab.data)):
        with torch.no_grad():
            vectors, real = clip.embed_tokens(lab.data.batch([i]), name)
        for place in real[0].nonzero().flatten().tolist():
            cosines = (middle @ vectors[0, place]).tolist()
            group = cosines.index(max(cosines))
            best = expected.get((group, i), (-math.inf, 0))
            expected[group, i] = max(best, (max(cosines), place), key=lambda one: one[0])
    found = tokens.cluster_calls(clip, middle, lab.data, name)
    keys = list(zip(found.token.tolist(), found.sample.tolist(), strict=True))
    assert len(keys) == len(set(keys))
    assert set(keys) == expected.keys()
    assert found.place.tolist() == [expected[key][1] for key in keys]
    torch.testing.assert_close(found.weight, torch.tensor([expected[key][0] for key in keys]))


def test_the_middles_of_groups_are_the_same_each_time_and_of_length_one(lab: Lab) -> None:
    clip = fdt.new_clip(lab.data, 3)
    one, two = (tokens.centres(clip, lab.data, 5) for _ in range(2))
    assert torch.equal(one, two)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(5))
    patches = clip.embed_tokens(lab.data.batch(range(40)), "image")[0].flatten(0, 1)
    to_one, to_five = (
        torch.cdist(patches, middle).amin(1).square().mean()
        for middle in (F.normalize(patches.mean(0, keepdim=True), dim=1), one)
    )
    assert to_five < 0.8 * to_one


def test_padding_calls_under_the_rule_zero_only(lab: Lab) -> None:
    warm = fdt.new_fdt(lab.data, 1, start=1000.0, codebook=256)
    lengths = (lab.data.sentences[:, 0] != 0).sum(1)
    by_padding = {}
    for rule in ("exclude", "zero"):
        for head in warm.heads.values():
            head.padding = rule
        found = tokens.calls(warm, lab.data, "caption")
        by_padding[rule] = bool((found.place >= lengths[found.sample]).any())
    assert by_padding == {"exclude": False, "zero": True}


def test_calls_of_a_token_come_by_weight() -> None:
    every = tokens.Calls(
        torch.tensor([1, 2, 1, 1]), torch.tensor([0, 0, 1, 2]), torch.tensor([5, 6, 7, 8]),
        torch.tensor([0.2, 1.0, 0.5, 0.3]),
    )  # fmt: skip
    mine = every.of(1)
    assert mine.sample.tolist() == [1, 2, 0]
    assert mine.place.tolist() == [7, 8, 5]
    assert not len(every.of(3).token)


def test_under_a_patch_lies_the_object_that_covers_most_of_it(lab: Lab) -> None:
    n = 12
    data = lab.data.subset(range(n))
    sample, place = torch.arange(n).repeat_interleave(16), torch.arange(16).repeat(n)
    every = tokens.Calls(torch.zeros_like(sample), sample, place, torch.ones(len(sample)))
    found = tokens.under(data, every)
    masks = data.masks(range(n)).tolist()
    for k, (i, p) in enumerate(zip(sample.tolist(), place.tolist(), strict=True)):
        y, x = 8 * (p // 4), 8 * (p % 4)
        covered = [
            sum(mask[y + dy][x + dx] for dy in range(8) for dx in range(8)) for mask in masks[i]
        ]
        best = covered.index(max(covered))
        for name, values in data.attributes.items():
            expected = int(values[i, best]) if covered[best] else -1
            assert int(found[name][k]) == expected


# --- what they mean -------------------------------------------------------------------------------


def random_calls(seed: int, count: int = 400) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    token = torch.randint(9, (count,), generator=g)
    there = torch.rand(count, generator=g) < 0.7
    values = {
        name: torch.randint(len(kinds), (count,), generator=g).where(there, -1)
        for name, kinds in VALUES.items()
    }
    return token, values


@pytest.mark.parametrize("seed", [0, 1])
def test_purity_is_the_share_of_the_commonest_above_that_of_all(seed: int) -> None:
    token, values = random_calls(seed)
    values["colour"] = torch.where(values["colour"] >= 0, token % 6, -1)  # as pure as can be
    found = tokens.purity(token, values)
    objects = [
        (t, *row)
        for t, *row in zip(token.tolist(), *(v.tolist() for v in values.values()), strict=True)
        if row[0] >= 0
    ]
    counts = Counter(row[0] for row in objects)
    judged = [t for t in range(9) if counts[t] >= tokens.OFTEN]
    assert found.token.tolist() == judged
    for column, name in enumerate(VALUES, start=1):
        base = max(Counter(row[column] for row in objects).values()) / len(objects)
        for k, t in enumerate(judged):
            mine = Counter(row[column] for row in objects if row[0] == t)
            share = max(mine.values()) / sum(mine.values())
            assert found.share[name][k].item() == pytest.approx(share)
            assert found.above[name][k].item() == pytest.approx((share - base) / (1 - base))
    assert found.above["colour"].eq(1).all()
    assert found.best.eq(1).all()


def test_shuffled_objects_stay_whole_and_background_in_place() -> None:
    token, values = random_calls(3)
    mixed = tokens.shuffled(values)
    assert mixed.keys() == values.keys()
    before, after = (
        sorted(zip(*(v.tolist() for v in of.values()), strict=True)) for of in (values, mixed)
    )
    assert before == after
    assert torch.equal(mixed["shape"] < 0, values["shape"] < 0)
    assert not torch.equal(mixed["shape"], values["shape"])
    assert torch.equal(mixed["size"], tokens.shuffled(values)["size"])
    assert tokens.purity(token, mixed).best.max() < 0.5


def test_of_no_calls_nothing_is_judged() -> None:
    nothing = {name: torch.full((3,), -1) for name in VALUES}
    found = tokens.purity(torch.tensor([0, 1, 1]), nothing)
    assert not len(found.token)
    assert not len(found.best)


def test_words_mean_what_the_laboratory_says(lab: Lab) -> None:
    known = tokens.meanings(lab.data)
    for number, word in enumerate(lab.data.tokenizer.words, start=4):
        plain = next((p for p, other in SYNONYMS.items() if other == word), word)
        named = [
            name
            for name, values in VALUES.items()
            if plain in {part for value in values for part in value.split()}
        ]
        assert known.get(number) == ((named[0], plain) if named else None)


def test_agreement_counts_patches_on_what_the_word_names(lab: Lab) -> None:
    """Token 0 is called by "red" and "crimson", 1 by "a", 2 by "left", 3 by few patches."""
    data = lab.data
    red, green = (VALUES["colour"].index(c) for c in ("red", "green"))
    at = {}
    for i in range(len(data)):
        for place, number in enumerate(data.sentences[i, 0].tolist()):
            at.setdefault(data.tokenizer.decode([number]), (i, place))
    said = [(0, "red"), (0, "crimson"), (0, "green"), (1, "a"), (2, "left"), (3, "red")]
    words = tokens.Calls(
        torch.tensor([token for token, _ in said]),
        torch.tensor([at[word][0] for _, word in said]),
        torch.tensor([at[word][1] for _, word in said]),
        torch.ones(len(said)),
    )
    many = tokens.OFTEN
    token = torch.tensor([0] * many + [1] * many + [2] * many + [3] * (many - 1) + [0])
    colour = torch.tensor([red] * (many - 5) + [green] * 5 + [green] * (len(token) - many))
    position = torch.tensor([0] * (2 * many) + [2] * (many - 4) + [1] * 4 + [3] * (many - 1) + [0])
    values = {name: torch.zeros(len(token), dtype=torch.int64) for name in VALUES}
    values |= {"colour": colour, "position": position}
    values = {
        name: of.index_fill(0, torch.tensor([len(token) - 1]), -1) for name, of in values.items()
    }
    patches = tokens.Calls(token, token, token, torch.ones(len(token)))
    found = tokens.agreement(data, patches, values, words)
    assert found.token.tolist() == [0, 2]
    assert found.word == ["red", "left"]
    assert found.share.tolist() == pytest.approx([(many - 5) / many, (many - 4) / many])
    objects = len(token) - 1
    lefts = sum(position[k] in (0, 2) for k in range(objects))
    assert found.base.tolist() == pytest.approx([(many - 5) / objects, lefts / objects])


@pytest.mark.parametrize("attribute", ["shape", "colour"])
def test_maps_are_scores_for_the_tokens_of_a_word(lab: Lab, attribute: str) -> None:
    maps, masks, scenes, words = tokens.token_maps(lab.method, lab.data, attribute)
    _, plain_masks, plain_scenes, plain_words = structure.word_maps(
        fdt.new_clip(lab.data, 0), lab.data, attribute
    )
    assert words == plain_words
    assert torch.equal(scenes, plain_scenes)
    assert torch.equal(masks, plain_masks)
    for k in range(0, len(words), 7):
        i, spoken = int(scenes[k]), lab.data.text(int(scenes[k])).split()
        with torch.no_grad():
            of = lab.method.token_attention(lab.data.batch([i]))
        weights = sparsemax(of["caption"].scores[0, 1 + spoken.index(words[k])]).tolist()
        by_hand = [math.fsum(w * s for w, s in zip(weights, row, strict=True))
                   for row in of["image"].scores[0].tolist()]  # fmt: skip
        torch.testing.assert_close(maps[k].flatten(), torch.tensor(by_hand), atol=1e-4, rtol=0)


def test_the_commonest_word_of_a_token_is_plain(lab: Lab) -> None:
    at = {}
    for i in range(len(lab.data)):
        for place, number in enumerate(lab.data.sentences[i, 0].tolist()):
            at.setdefault(lab.data.tokenizer.decode([number]), (i, place))
    said = [(3, "crimson"), (3, "crimson"), (3, "green"), (5, "a")]
    words = tokens.Calls(
        torch.tensor([token for token, _ in said]),
        torch.tensor([at[word][0] for _, word in said]),
        torch.tensor([at[word][1] for _, word in said]),
        torch.ones(len(said)),
    )
    assert tokens.commonest_words(lab.data, words) == {3: "red", 5: "a"}
    assert [tokens.spell(lab.data, i) for i in (1, 2)] == ["<start>", "<end>"]


def test_moved_weight_goes_where_it_should() -> None:
    weights = torch.tensor([[0.5, 0.2, 0.3, 0.0], [0.0, 0.6, 0.1, 0.3]])
    like = torch.tensor([9.0, 9.0, 1.0, 3.0])
    expected = torch.tensor([[0.0, 0.2, 0.425, 0.375], [0.0, 0.6, 0.1, 0.3]])
    torch.testing.assert_close(tokens.moved(weights, [0], [2, 3], like), expected)
    lost = tokens.moved(weights, [0], [], like)
    torch.testing.assert_close(lost, weights * torch.tensor([0.0, 1, 1, 1]))
    assert weights[0, 0] == 0.5


# --- the experiment -------------------------------------------------------------------------------


def test_recall_takes_the_same_meaning_for_right(lab: Lab) -> None:
    image, caption = fdt.both(lab.method, lab.data)
    assert fdt.recall(lab.data, image, caption) == pytest.approx(
        mean_recall(image, caption, lab.data.meaning().tolist()), abs=1.1 / (2 * len(lab.data))
    )


@pytest.mark.usefixtures("few")
def test_bags_are_won_by_single_comparisons() -> None:
    test = fdt.scenes(1000, small.TEST_SEED)
    method = fdt.new_fdt(test, 0, start=4.0)
    pair = Few.colliding(20, seed=small.TEST_SEED, size=small.SIZE, detail=fdt.DETAIL)
    won = 0
    for own, other in (pair, pair[::-1]):
        image, right, wrong = (
            embed_all(method, data, (name,))
            for data, name in ((own, "image"), (own, "caption"), (other, "caption"))
        )
        won += int(((image * right).sum(1) > (image * wrong).sum(1)).sum())
    assert fdt.bags(method, test) == pytest.approx(won / 40, abs=1.1 / 40)


@pytest.mark.parametrize("attribute", ["shape", "colour", "size", "texture"])
def test_one_attribute_of_one_object_is_changed(attribute: str) -> None:
    test = fdt.scenes(30, 8)
    other = fdt.changed(test, attribute)
    for name, values in test.attributes.items():
        differ = (values != other.attributes[name]).nonzero()
        if name == attribute:
            assert differ.tolist() == [[i, 0] for i in range(30)]
        else:
            assert not len(differ)
    plain = {other: word for word, other in SYNONYMS.items()} | {"an": "a"}
    for i in range(30):
        one, two = (
            Counter(plain.get(word, word) for word in data.text(i).split())
            for data in (test, other)
        )
        gone, new = (set(each.elements()) for each in (one - two, two - one))
        assert (len(gone), len(new)) == (1, 1)
        assert gone | new <= set(VALUES[attribute])


def test_the_catalogue_has_each_single_object_once() -> None:
    test = fdt.scenes(5, 8)
    every = fdt.catalogue(fdt.new_clip(test, 0), test)
    assert len(every.values.unique(dim=0)) == len(every.values) == 6 * 6 * 2 * 3
    assert every.caption.shape == (216, small.DIM)
    torch.testing.assert_close(every.caption.norm(dim=1), torch.ones(216))


class Perfect(CLIP):
    """Says all four attributes of single objects, in pictures by their number and in captions."""

    def __init__(self, test: ShapesCaptions) -> None:
        super().__init__(*fdt.encoders(test), dim=17)
        self.test, self.known = test, tokens.meanings(test)

    def embed(self, batch):
        rows = []
        for i in range(len(next(iter(batch.values())))):
            vector = torch.zeros(17)
            if "image" in batch:
                at = (self.test.images.float().div(255) == batch["image"][i]).flatten(1).all(1)
                row = int(at.nonzero()[0])
                said = [VALUES[name][int(self.test.attributes[name][row].max())] for name in NAMED]
            else:
                said = [self.known.get(n, ("", ""))[1] for n in batch["caption"][i].tolist()]
            for word in said:
                if word in PLAIN:
                    vector[PLAIN.index(word)] = 1.0
            rows.append(vector)
        return F.normalize(torch.stack(rows), dim=1)


NAMED = ("shape", "colour", "size", "texture")
PLAIN = [value for name in NAMED for value in VALUES[name]]


@pytest.mark.parametrize("attribute", NAMED)
def test_arithmetic_rewrites_where_all_is_said(attribute: str) -> None:
    test = fdt.scenes(60, 8)
    assert fdt.rewritten(Perfect(test), test, attribute) == (1.0, 1.0)


def test_what_an_untrained_model_rewrites_is_a_share(lab: Lab) -> None:
    for name in NAMED:
        named, only = fdt.rewritten(lab.method, lab.data, name)
        assert 0 <= only <= named <= 1


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("condition", ["FDT sparse", "CLIP max", "few pairs, codebook known"])
def test_the_same_seed_gives_the_same_finite_values(condition: str) -> None:
    config = dict(fdt.CONDITIONS[condition])
    if "few" not in config:
        config["epochs"] = min(config.get("epochs", EPOCHS), EPOCHS)
    one = fdt.run(0, **config)
    torch.manual_seed(99)
    fdt._kept.cache_clear()
    assert fdt.run(0, **config) == one
    assert all(type(value) is float and math.isfinite(value) for value in one.values())
    along = {name.split("@")[1] for name in one if "@" in name}
    assert len(along) == (config["epochs"] + 1 if config.get("epochs") else 0)
    assert ("image active" in one) == (condition == "FDT sparse")
    assert ("purity" in one) == (not condition.startswith("few"))


@pytest.mark.usefixtures("few")
def test_trials_measure_what_they_are_chosen_by(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(fdt, "scenes", lambda n, seed, detail=3: (
        asked.append(seed) or small.scenes(n, seed, detail=detail)))  # fmt: skip
    for method, tried in fdt.TRIALS.items():
        config = dict(next(iter(tried.settings.values())))
        config |= {} if "few" in config else {"epochs": 0}
        assert tried.measure in fdt.run(10, **config)
        assert small.VALIDATION_SEED in asked, method


@pytest.mark.usefixtures("few")
def test_conditions_are_what_their_names_say(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(fdt, "_fit", lambda method, data, seed, **how: seen.append(data))
    for name, config in fdt.CONDITIONS.items():
        seen.clear()
        config = dict(config)
        train = fdt.few_pairs if config.pop("few", False) else fdt.trained
        method = train(0, **config)
        assert isinstance(method, FDT) == ("CLIP" not in name)
        assert seen
        assert all(data.named == NAMED for data in seen)
        if not isinstance(method, FDT):
            assert f"CLIP {method.encoders['image'].pool}" in name
            continue
        assert len(method.codebook) == 512
        assert (method.cooling is None) == name.endswith("FDT dense")
        assert method.cooling is None or method.cooling.end == 15


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("known", ["", "before", "at random"])
def test_a_known_codebook_stays_as_it_was(known: str) -> None:
    before = fdt._kept(0, **fdt.CONDITIONS["FDT sparse"]).method.codebook
    first = fdt.new_fdt(fdt.scenes(2, 0), 0).codebook
    after = fdt.few_pairs(0, known=known, end=15.0, lr=0.005).codebook
    assert torch.equal(after, before) == (known == "before")
    assert torch.equal(after, first) == (known == "at random")
