"""Words that no picture shows: where they stand, who gets them, and what they follow."""

import math

import pytest
import torch

from mmcl_book.experiments.unseen_words import UNSEEN, unseen_words, with_unseen_words
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.drawing import ATTRIBUTES, VALUES
from mmcl_core.data.shapes import WORDS
from mmcl_core.data.tokenizer import END
from mmcl_core.errors import DataError, MMCLError

NAMES = set(UNSEEN)


@pytest.fixture(scope="module")
def lab() -> ShapesCaptions:
    return ShapesCaptions(300, size=24, sentences=3)


def all_words(data: ShapesCaptions) -> list[list[list[str]]]:
    """The words of each sentence of each scene."""
    sentences = range(data.sentences.shape[1])
    return [[data.text(i, s).split() for s in sentences] for i in range(len(data))]


def added(data: ShapesCaptions) -> list[list[str]]:
    """The names in the first sentence of each scene."""
    return [[word for word in scene[0] if word in NAMES] for scene in all_words(data)]


def test_the_laboratory_has_no_such_words() -> None:
    assert len(NAMES) == 16
    assert not NAMES & set(WORDS)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_all_words_stay_and_names_follow_them(lab: ShapesCaptions, rate, count) -> None:
    noisy = with_unseen_words(lab, rate, count=count)
    for before, after in zip(all_words(lab), all_words(noisy), strict=True):
        names = [words[len(old) :] for old, words in zip(before, after, strict=True)]
        assert [words[: len(old)] for old, words in zip(before, after, strict=True)] == before
        assert all(own == names[0] for own in names), "the same in all sentences of a scene"
        assert len(names[0]) in ({count} if rate == 1 else {0, count} if rate else {0})
        assert set(names[0]) <= NAMES


def test_names_stand_before_the_end_and_nothing_after_it(lab: ShapesCaptions) -> None:
    noisy = with_unseen_words(lab, 0.5, count=2)
    number = {word: i for i, word in enumerate(noisy.tokenizer.words, start=4)}
    names = added(noisy)
    for i in range(len(lab)):
        for s in range(3):
            old = [k for k in lab.sentences[i, s].tolist() if k]
            assert old.pop() == END
            new = [*old, *(number[name] for name in names[i]), END]
            rest = noisy.sentences.shape[2] - len(new)
            assert noisy.sentences[i, s].tolist() == new + [0] * rest


def test_old_words_keep_their_numbers_and_the_tokenizer_reads_back(lab: ShapesCaptions) -> None:
    noisy = with_unseen_words(lab, 1.0, count=4)
    assert noisy.tokenizer.words == (*lab.tokenizer.words, *UNSEEN)
    for word in lab.tokenizer.words:
        assert noisy.tokenizer.encode(word) == lab.tokenizer.encode(word)
    for i in range(len(lab)):
        ids = noisy.sentences[i, 1].tolist()
        assert noisy.tokenizer.encode(noisy.text(i, 1)) == [k for k in ids if k]


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("follows", [None, "colour"])
def test_the_share_with_names_is_near_the_rate(lab: ShapesCaptions, rate, follows) -> None:
    share = sum(map(bool, added(with_unseen_words(lab, rate, follows=follows)))) / len(lab)
    assert abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / len(lab))


@pytest.mark.parametrize("follows", ATTRIBUTES)
def test_a_name_tells_the_value_that_it_follows(lab: ShapesCaptions, follows) -> None:
    said: dict[int, set[str]] = {}
    noisy = with_unseen_words(lab, 0.8, follows=follows, count=2)
    for value, names in zip(lab.attributes[follows][:, 0].tolist(), added(noisy), strict=True):
        said.setdefault(value, set()).update(names)
    assert sorted(said) == list(range(len(VALUES[follows])))
    assert len(set.union(*said.values())) == sum(map(len, said.values())), "no name has two values"
    assert {len(names) for names in said.values()} == {16 // len(VALUES[follows])}


def test_without_an_attribute_to_follow_every_value_has_every_name(lab: ShapesCaptions) -> None:
    names = added(with_unseen_words(lab, 1.0, count=3))
    for value in range(4):
        rows = (lab.attributes["position"][:, 0] == value).nonzero().flatten().tolist()
        seen = [name for i in rows for name in names[i]]
        assert set(seen) == NAMES
        assert max(map(seen.count, UNSEEN)) < 3 * len(seen) / 16


def test_the_same_seed_gives_the_same(lab: ShapesCaptions) -> None:
    torch.manual_seed(0)
    one = with_unseen_words(lab, 0.5, count=2, seed=4)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    two = with_unseen_words(lab, 0.5, count=2, seed=4)
    other = with_unseen_words(lab, 0.5, count=2, seed=5)
    assert torch.equal(one.sentences, two.sentences)
    assert not torch.equal(one.sentences, other.sentences)
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state()), "torch's own generator is not drawn from"


def test_what_was_passed_in_stays_as_it_was(lab: ShapesCaptions) -> None:
    sentences, tokenizer = lab.sentences.clone(), lab.tokenizer
    noisy = with_unseen_words(lab, 1.0)
    assert torch.equal(lab.sentences, sentences)
    assert lab.tokenizer is tokenizer
    assert not NAMES & set(lab.tokenizer.words)
    assert noisy.images is lab.images
    assert noisy.attributes is lab.attributes
    assert noisy.named == lab.named
    assert torch.equal(noisy.meaning(), lab.meaning())


def test_a_part_of_the_scenes_works(lab: ShapesCaptions) -> None:
    part = lab.with_detail(2).subset([7, 3, 200])
    noisy = with_unseen_words(part, 1.0, follows="position", count=2)
    for i, row in enumerate([7, 3, 200]):
        old, words = part.text(i, 2).split(), noisy.text(i, 2).split()
        assert words[:-2] == old
        first = UNSEEN.index(words[-1]) // 4
        assert first == UNSEEN.index(words[-2]) // 4 == int(lab.attributes["position"][row, 0])
        assert torch.equal(noisy[i]["image"], lab[row]["image"])
    again = noisy.subset([2, 0])
    assert [again.text(i, 1) for i in (0, 1)] == [noisy.text(i, 1) for i in (2, 0)]


def test_unseen_words_are_those_of_the_text(lab: ShapesCaptions) -> None:
    noisy = with_unseen_words(lab, 0.6, count=3)
    batch = noisy.batch(range(0, 300, 2))["caption"]
    found = unseen_words(batch, noisy.tokenizer)
    assert found.shape == (150, 16)
    for i, row in enumerate(found.tolist()):
        text = set(noisy.text(2 * i).split())
        assert row == [name in text for name in UNSEEN]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rate": -0.1}, MMCLError, "rate must be .* got -0.1"),
        ({"rate": 1.5}, MMCLError, r"rate must be a number in .* got 1.5"),
        ({"rate": math.nan}, MMCLError, "got nan"),
        ({"rate": 0.5, "count": 0}, MMCLError, "count must be .* got 0"),
        ({"rate": 0.5, "follows": "mood"}, DataError, "unknown attribute 'mood'; known are shape"),
    ],
)
def test_with_unseen_words_refuses(lab: ShapesCaptions, arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        with_unseen_words(lab, **arguments)


def test_names_are_put_in_once(lab: ShapesCaptions) -> None:
    noisy = with_unseen_words(lab, 0.0)
    with pytest.raises(DataError, match="have some already"):
        with_unseen_words(noisy, 0.5)


def test_names_cannot_follow_an_object_that_is_not_there() -> None:
    scenes = {name: [[-1, 1]] * 20 for name in ATTRIBUTES}
    with pytest.raises(DataError, match="first object"):
        with_unseen_words(ShapesCaptions(attributes=scenes), 1.0, follows="position")


def test_unseen_words_needs_a_tokenizer_that_knows_them(lab: ShapesCaptions) -> None:
    with pytest.raises(MMCLError):
        unseen_words(lab.sentences[:, 0], lab.tokenizer)
