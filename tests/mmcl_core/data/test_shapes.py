"""The shapes laboratory: what the captions say is what the pictures show."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl_core.data import ShapesCaptions
from mmcl_core.data.drawing import ATTRIBUTES, VALUES
from mmcl_core.data.shapes import NAMED_AT_DETAIL, SYNONYMS
from mmcl_core.errors import DataError, MMCLError

CANONICAL = {synonym: word for word, synonym in SYNONYMS.items()}


@pytest.fixture(scope="module")
def lab() -> ShapesCaptions:
    return ShapesCaptions(400)


def parse(text: str) -> list[dict[str, str]]:
    """Read a sentence back, word by word: an independent check on the table of slots."""
    value_of = {v: name for name in ("shape", "colour", "size", "texture") for v in VALUES[name]}
    words = [CANONICAL.get(w, w) for w in text.split()]
    found: list[dict[str, str]] = []
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        if word in ("a", "an") and following != "picture":
            found.append({})
        elif word in value_of:
            assert value_of[word] not in found[-1], text
            found[-1][value_of[word]] = word
        elif word in ("top", "bottom"):
            found[-1]["position"] = f"{word} {following}"
    return found


def truth(lab: ShapesCaptions, i: int, names: tuple[str, ...]) -> list[dict[str, str]]:
    there = (lab.attributes["shape"][i] >= 0).nonzero().flatten().tolist()
    return [{n: VALUES[n][int(lab.attributes[n][i, o])] for n in names} for o in there]


def in_order(objects: list[dict[str, str]]) -> list[list[tuple[str, str]]]:
    return sorted(sorted(o.items()) for o in objects)


@pytest.mark.parametrize("detail", [1, 2, 3, 4])
def test_every_sentence_says_exactly_what_its_detail_names(
    lab: ShapesCaptions, detail: int
) -> None:
    told = lab.with_detail(detail)
    for i in range(100):
        for s in range(5):
            assert in_order(parse(told.text(i, s))) == in_order(
                truth(lab, i, NAMED_AT_DETAIL[detail])
            )


def test_articles_fit_the_word_that_follows(lab: ShapesCaptions) -> None:
    words = [lab.with_detail(2).text(i, s).split() for i in range(200) for s in range(5)]
    pairs = {
        (a, b[0] in "aeiou") for w in words for a, b in itertools.pairwise(w) if a in ("a", "an")
    }
    assert pairs == {("a", False), ("an", True)}


def test_sentences_of_a_scene_differ_and_the_tokenizer_reads_them_back(lab: ShapesCaptions) -> None:
    distinct = [len({lab.text(i, s) for s in range(5)}) for i in range(100)]
    assert np.mean(distinct) > 4.5
    ids = lab.sentences[7, 3]
    assert lab.tokenizer.encode(lab.text(7, 3)) == ids[ids != 0].tolist()


def test_without_synonyms_only_the_plain_words_are_said() -> None:
    plain = ShapesCaptions(50, synonyms=False)
    said = {w for i in range(50) for s in range(5) for w in plain.text(i, s).split()}
    assert not said & set(CANONICAL)


def test_same_seed_same_bytes_on_every_machine() -> None:
    """The hash was recorded once; another machine or NumPy version must reproduce it."""
    lab = ShapesCaptions(64, seed=3)
    digest = hashlib.sha256(lab.images.numpy().tobytes() + lab.sentences.numpy().tobytes())
    assert digest.hexdigest() == "e6c06def779a7a87c84372b57d4899e1216aa0459c272971f7b8173735c6d9b4"
    assert not torch.equal(lab.images, ShapesCaptions(64, seed=4).images)


def test_stripes_do_not_look_like_a_chessboard() -> None:
    """Along a diagonal a stripe goes on; across it, it ends: also in small pictures."""
    n = 64
    everywhere = {"shape": 1, "colour": 0, "size": 1, "texture": 1, "position": 0}
    lab = ShapesCaptions(
        n, seed=0, size=32, objects=(1, 1),
        attributes={name: np.full((n, 1), value) for name, value in everywhere.items()},
    )  # fmt: skip
    red = lab.images[:, 0].double()
    inside = lab.masks(range(n))[:, 0] > 0.99
    inside = inside[:, 1:-1, 1:-1]
    along = (red[:, 1:-1, 1:-1] - red[:, 2:, :-2]).abs()[inside].mean()
    across = (red[:, 1:-1, 1:-1] - red[:, 2:, 2:]).abs()[inside].mean()
    assert across > 4 * along  # of a chessboard, both are 0


def test_captions_are_those_from_before_parts_could_be_left_out() -> None:
    """Recorded at 690f400, when there was no `without`."""
    lab, digest = ShapesCaptions(64), hashlib.sha256()
    for detail in (1, 2, 3, 4):
        digest.update(lab.with_detail(detail).sentences.numpy().tobytes())
    assert digest.hexdigest() == "4cefb07f060d4a1b6667bf3d0882b6438424e7bc9627b1e3c683c625d37d6150"


def test_rows_do_not_depend_on_how_many_there_are_nor_pictures_on_captions() -> None:
    few, many = ShapesCaptions(300), ShapesCaptions(700, detail=2)
    assert torch.equal(few.images, many.images[:300])
    told = many.with_detail(4)
    assert [few.text(i, 2) for i in range(300)] == [told.text(i, 2) for i in range(300)]


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 40),
    size=st.sampled_from([24, 32, 48, 50, 64, 96]),
    low=st.integers(1, 4),
    more=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
def test_any_size_and_number_of_objects(n: int, size: int, low: int, more: int, seed: int) -> None:
    high = min(low + more, 4)
    lab = ShapesCaptions(n, size=size, objects=(low, high), seed=seed)
    count = (lab.attributes["shape"] >= 0).sum(dim=1)
    assert lab.images.shape == (n, 3, size, size)
    assert low <= int(count.min()) <= int(count.max()) <= high
    masks = lab.masks(range(n))
    assert masks.shape == (n, high, size, size)
    assert torch.equal(masks.any(dim=(2, 3)), lab.attributes["shape"] >= 0)
    assert int(masks.sum(dim=1).max()) == 1, "objects never cover each other"


def test_masks_hold_the_colour_and_lie_in_the_quarter_that_attributes_say() -> None:
    lab = ShapesCaptions(300, objects=(1, 1))
    mask = lab.masks(range(300))[:, 0]
    solid = lab.attributes["texture"][:, 0] == 0
    mean = (lab.images * mask[:, None]).sum(dim=(2, 3)) / mask.sum(dim=(1, 2))[:, None]
    # The mean colour under a solid object's mask is nearest to its own colour's mean, always.
    colour = lab.attributes["colour"][:, 0]
    centres = torch.stack([mean[solid & (colour == c)].mean(dim=0) for c in range(6)])
    assert torch.equal(torch.cdist(mean[solid], centres).argmin(dim=1), colour[solid])
    rows = (mask.any(dim=2) * torch.arange(48)).float().sum(dim=1) / mask.any(dim=2).sum(dim=1)
    assert torch.equal(rows > 23.5, lab.attributes["position"][:, 0] >= 2)


def test_large_objects_are_larger() -> None:
    lab = ShapesCaptions(300, objects=(1, 1))
    area = lab.masks(range(300)).sum(dim=(1, 2, 3))
    for shape in range(6):
        same = lab.attributes["shape"][:, 0] == shape
        large = lab.attributes["size"][:, 0] == 1
        assert area[same & large].min() > area[same & ~large].max()


def test_tags_are_the_values_that_occur() -> None:
    lab = ShapesCaptions(50, tags=("shape", "texture"))
    assert lab.tag_names == VALUES["shape"] + VALUES["texture"]
    for i in range(50):
        there = {v for o in truth(lab, i, ("shape", "texture")) for v in o.values()}
        assert {n for n, t in zip(lab.tag_names, lab.tags[i], strict=True) if t} == there


def test_colliding_bags_have_the_same_words_and_swapped_colours() -> None:
    one, other = ShapesCaptions.colliding(100)
    for i in range(100):
        assert sorted(one.text(i).split()) == sorted(other.text(i).split())
        assert in_order(parse(one.text(i))) != in_order(parse(other.text(i)))
    assert torch.equal(one.attributes["shape"], other.attributes["shape"])
    assert torch.equal(one.attributes["colour"], other.attributes["colour"].flip(1))
    assert torch.equal(one.masks(range(100)), other.masks(range(100)))


def test_compositional_split_keeps_pairs_apart_but_shows_every_part(lab: ShapesCaptions) -> None:
    train, test = lab.compositional_split([("circle", "red"), ("star", "blue")])
    pairs = [{(o["shape"], o["colour"]) for o in truth(lab, i, ATTRIBUTES)} for i in range(400)]
    held = {("circle", "red"), ("star", "blue")}
    assert test.tolist() == [i for i in range(400) if pairs[i] & held]
    assert sorted(train.tolist() + test.tolist()) == list(range(400))
    default_train, default_test = lab.compositional_split()
    seen = set().union(*(pairs[i] for i in default_train.tolist()))
    assert {s for s, _ in seen} == set(VALUES["shape"])
    assert {c for _, c in seen} == set(VALUES["colour"])
    assert len(default_test) > 0


@pytest.mark.parametrize("detail", [1, 2, 3, 4])
def test_meaning_numbers_scenes_by_what_is_said(lab: ShapesCaptions, detail: int) -> None:
    said = [str(in_order(truth(lab, i, NAMED_AT_DETAIL[detail]))) for i in range(400)]
    number = lab.meaning(detail)
    assert len(set(said)) == len(number.unique())
    assert len({(s, int(m)) for s, m in zip(said, number, strict=True)}) == len(set(said))


# --- without --------------------------------------------------------------------------------------


def words_for(names: tuple[str, ...]) -> set[str]:
    """Every word that is only said to name one of these attributes."""
    words = {w for name in names for value in VALUES[name] for w in value.split()}
    words |= {SYNONYMS[word] for word in words & set(SYNONYMS)}
    return words | {"at"} if "position" in names else words


def articles_alike(words: list[str]) -> list[str]:
    return ["a" if word == "an" else word for word in words]


@pytest.mark.parametrize(
    "left_out", [*itertools.combinations(ATTRIBUTES, 1), ("size", "texture"), ATTRIBUTES[3::-1]]
)
def test_without_leaves_out_the_words_for_an_attribute_alone(lab: ShapesCaptions, left_out) -> None:
    told = lab
    for name in left_out:
        told = told.without(name)
    assert told.named == tuple(name for name in ATTRIBUTES if name not in left_out)
    gone = words_for(left_out)
    for i, s in itertools.product(range(100), range(5)):
        words = told.text(i, s).split()
        assert not gone & set(words)
        kept = [word for word in lab.text(i, s).split() if word not in gone]
        assert articles_alike(words) == articles_alike(kept)
        for article, following in itertools.pairwise(words):
            if article in ("a", "an") and following != "at":
                assert article == ("an" if following[0] in "aeiou" else "a")


def test_without_is_the_same_scenes(lab: ShapesCaptions) -> None:
    before = lab.sentences.clone()
    told = lab.without("colour")
    assert told.images is lab.images
    assert told.tags is lab.tags
    assert told.attributes is lab.attributes
    assert told.tokenizer is lab.tokenizer
    assert torch.equal(told.masks(range(9)), lab.masks(range(9)))
    assert torch.equal(lab.sentences, before)
    assert lab.named == ATTRIBUTES
    part = told.subset([5, 2])
    assert part.named == told.named
    assert part.text(1, 3) == told.text(2, 3)


def test_without_the_last_detail_is_the_detail_before(lab: ShapesCaptions) -> None:
    told = lab.without("position")
    assert torch.equal(told.sentences, lab.with_detail(3).sentences)
    told = told.without("texture").without("size")
    assert torch.equal(told.sentences, lab.with_detail(2).sentences)
    assert torch.equal(told.without("colour").sentences, lab.with_detail(1).sentences)
    again = told.with_detail(4)  # names everything, whatever was left out before
    assert again.named == ATTRIBUTES
    assert torch.equal(again.sentences, lab.sentences)


@pytest.mark.parametrize("left_out", ATTRIBUTES)
def test_meaning_ignores_what_is_left_out(lab: ShapesCaptions, left_out: str) -> None:
    told = lab.without(left_out)
    said = [str(in_order(truth(lab, i, told.named))) for i in range(400)]
    pairs = set(zip(said, told.meaning().tolist(), strict=True))
    assert len(pairs) == len(set(said)) == len(told.meaning().unique())
    assert torch.equal(told.meaning(4), lab.meaning())


def test_without_refuses(lab: ShapesCaptions) -> None:
    with pytest.raises(DataError, match="unknown attribute 'mood'; known are shape"):
        lab.without("mood")
    with pytest.raises(DataError, match=r"name size and something else; these name shape, colour$"):
        lab.with_detail(2).without("size")
    with pytest.raises(DataError, match=r"name colour and .* shape, size, texture, position$"):
        lab.without("colour").without("colour")
    with pytest.raises(DataError, match=r"name shape and something else; these name shape$"):
        lab.with_detail(1).without("shape")


def test_as_a_data_set(lab: ShapesCaptions) -> None:
    batch = lab.batch([5, 3])
    assert batch["image"].dtype == torch.float32
    assert 0 <= float(batch["image"].min()) <= float(batch["image"].max()) <= 1
    assert batch["caption"].shape[1] == int((lab.sentences[[5, 3], 0] != 0).sum(dim=1).max())
    assert batch["index"].tolist() == [5, 3]
    assert torch.equal(lab[-1]["image"], lab[399]["image"])
    assert torch.equal(lab[5]["image"], batch["image"][0])
    part = lab.subset([9, 5])
    assert torch.equal(part[1]["image"], lab[5]["image"])
    assert part.text(1, 4) == lab.text(5, 4)
    assert torch.equal(part.masks([1]), lab.masks([5]))
    assert torch.equal(
        part.with_detail(2).sentences[1], lab.with_detail(2).subset([5]).sentences[0]
    )
    with pytest.raises(IndexError, match="-400 to 399; got 400"):
        lab[400]


def test_scenes_can_be_given() -> None:
    red_circle = {
        "shape": [[0]],
        "colour": [[0]],
        "size": [[1]],
        "texture": [[0]],
        "position": [[3]],
    }
    lab = ShapesCaptions(attributes=red_circle, synonyms=False)
    assert lab.text(0).endswith("a large solid red circle at bottom right")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": 47}, "even number of pixels"),
        ({"detail": 5}, "detail must be 1, 2, 3 or 4; got 5"),
        ({"objects": (0, 2)}, "objects must be"),
        ({"objects": (3, 2)}, "objects must be"),
        ({"n": 0}, "n must be .* got 0"),
        ({"tags": ("shape", "mood")}, "unknown attribute 'mood'; known are shape"),
        ({"attributes": {"mood": [[0]]}}, "unknown attribute 'mood'"),
        ({"attributes": {"shape": [[0]]}}, "not given"),
        ({"attributes": {n: [[7]] for n in ATTRIBUTES}}, "must lie in"),
        ({"attributes": {n: [[0, 0]] for n in ATTRIBUTES}}, "same position"),
        ({"attributes": {n: [0] for n in ATTRIBUTES}}, r"\[N, O\]"),
        ({"attributes": {n: [[-1]] for n in ATTRIBUTES}}, "at least one object"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict, message: str) -> None:
    with pytest.raises(MMCLError, match=message):
        ShapesCaptions(**({"n": 3} | kwargs))


def test_bad_questions_are_named(lab: ShapesCaptions) -> None:
    with pytest.raises(MMCLError, match="got 9"):
        lab.with_detail(9)
    with pytest.raises(DataError, match="unknown colour 'pink'"):
        lab.compositional_split([("circle", "pink")])
    with pytest.raises(MMCLError, match="detail 2 to 4"):
        ShapesCaptions.colliding(3, detail=1)


def test_scenes_without_tags() -> None:
    """B13: no tags are a missing key, in all that is made of the data."""
    data = ShapesCaptions(6, size=24, tags=())
    assert data.tags.shape == (6, 0)
    assert data.tag_names == ()
    for part in (data, data.subset([2, 1]), data.with_detail(2)):
        assert part.batch([0, 1]).keys() == part[0].keys() == {"image", "caption", "index"}
    with pytest.raises(DataError, match="unknown attribute 'shade'"):
        ShapesCaptions(6, size=24, tags=("shade",))
