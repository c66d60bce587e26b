"""Patches against words: each similarity and map against loops over all that it compares."""

import math
from typing import NamedTuple

import pytest
import torch

from mmcl_book.experiments import small, structure
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.drawing import VALUES
from mmcl_core.data.shapes import SYNONYMS
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import embed_all
from mmcl_core.methods import CLIP
from tests.tiny import BAGS, SCENES, Few, mean_recall, same_texts, shrink

Vectors = list[list[float]]


class Lab(NamedTuple):
    method: CLIP
    data: ShapesCaptions


@pytest.fixture(scope="module")
def lab() -> Lab:
    """Up to three objects, so that captions have one to three phrases and words come twice."""
    data = small.scenes(60, 5, objects=(1, 3))
    return Lab(small.new_clip(data, 1), data)


def patches_of(lab: Lab, rows: range) -> list[Vectors]:
    with torch.no_grad():
        return lab.method.embed_tokens(lab.data.batch(rows), "image")[0].tolist()


def words_of(lab: Lab, rows: range) -> list[list[tuple[str, list[float]]]]:
    """The words of each caption with their vectors, each caption embedded by itself."""
    spoken = []
    for i in rows:
        ids = [k for k in lab.data.sentences[i, 0].tolist() if k]
        with torch.no_grad():
            vectors, _ = lab.method.embed_tokens({"caption": torch.tensor([ids])}, "caption")
        words = lab.data.text(i).split()
        spoken.append(list(zip(words, vectors[0, 1:-1].tolist(), strict=True)))
    return spoken


def dot(x: list[float], y: list[float]) -> float:
    return math.fsum(map(math.prod, zip(x, y, strict=True)))


def batches(lab: Lab, pictures: range, captions: range) -> list[dict[str, torch.Tensor]]:
    both = lab.data.batch(pictures), lab.data.batch(captions)
    return [{"image": both[0]["image"]}, {"caption": both[1]["caption"]}]


# Pictures, captions: fewer, more, one.
SOME = [(range(3), range(7)), (range(10, 15), range(2)), (range(1), range(9, 10))]


@pytest.mark.parametrize(("pictures", "captions"), SOME)
def test_words_are_compared_with_their_best_patch(lab: Lab, pictures, captions) -> None:
    found = structure.token_similarity(lab.method, *batches(lab, pictures, captions))
    expected = [
        [
            math.fsum(max(dot(word, p) for p in patches) for _, word in words) / len(words)
            for words in words_of(lab, captions)
        ]
        for patches in patches_of(lab, pictures)
    ]
    torch.testing.assert_close(found.detach(), torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("pictures", "captions"), SOME)
def test_phrases_are_compared_with_their_best_patch(lab: Lab, pictures, captions) -> None:
    found = structure.phrase_similarity(lab.method, *batches(lab, pictures, captions))
    expected = []
    for patches in patches_of(lab, pictures):
        row = []
        for words in words_of(lab, captions):
            phrases: list[Vectors] = [[]]
            for word, vector in words:
                phrases += [[]] if word == "and" else []
                phrases[-1] += [] if word == "and" else [vector]
            best = [max(sum(dot(w, p) for w in ph) / len(ph) for p in patches) for ph in phrases]
            row.append(sum(best) / len(best))
        expected.append(row)
    torch.testing.assert_close(found.detach(), torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("pictures", "captions"), SOME)
def test_wholes_are_compared_by_their_cosine(lab: Lab, pictures, captions) -> None:
    found = structure.pooled_similarity(lab.method, *batches(lab, pictures, captions))
    image, caption = (
        embed_all(lab.method, lab.data.subset(rows), (name,)).tolist()
        for name, rows in (("image", pictures), ("caption", captions))
    )
    expected = [[dot(x, y) for y in caption] for x in image]
    torch.testing.assert_close(found.detach(), torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["pooled", "words", "phrases"])
def test_padding_and_order_change_no_similarity(lab: Lab, name: str) -> None:
    pictures, captions = batches(lab, range(4), range(6))
    similarity = structure.SIMILARITIES[name]
    whole = similarity(lab.method, pictures, captions)
    wide = {"caption": torch.nn.functional.pad(captions["caption"], (0, 5))}
    torch.testing.assert_close(similarity(lab.method, pictures, wide), whole)
    turned = {"image": pictures["image"].flip(0)}, {"caption": captions["caption"].flip(0)}
    torch.testing.assert_close(similarity(lab.method, *turned), whole.flip(0, 1))


# --- maps of words --------------------------------------------------------------------------------


def expected_maps(lab: Lab, attribute: str) -> dict[tuple[int, str], int]:
    """Scene and word -> slot of its object, for words that name one object of their scene."""
    found = {}
    for i, row in enumerate(lab.data.attributes[attribute].tolist()):
        for slot, value in enumerate(row):
            if value >= 0 and row.count(value) == 1:
                word = VALUES[attribute][value]
                said = {word, SYNONYMS.get(word, word)} & set(lab.data.text(i).split())
                found[i, said.pop()] = slot
                assert not said
    return found


@pytest.mark.parametrize("attribute", ["shape", "colour", "size", "texture"])
def test_maps_are_the_cosines_of_a_word_and_masks_its_object(lab: Lab, attribute: str) -> None:
    maps, masks, scenes, words = structure.word_maps(lab.method, lab.data, attribute)
    known = expected_maps(lab, attribute)
    assert len(words) == len(known)
    assert set(zip(scenes.tolist(), words, strict=True)) == set(known), (
        "ambiguous ones are left out"
    )
    objects = int((lab.data.attributes[attribute] >= 0).sum())
    assert 0 < len(known) < objects
    assert maps.shape == (len(known), 4, 4)
    everywhere, patches = lab.data.masks(range(60)), patches_of(lab, range(60))
    spoken = words_of(lab, range(60))
    for k, (i, word) in enumerate(zip(scenes.tolist(), words, strict=True)):
        assert torch.equal(masks[k], everywhere[i, known[i, word]])
        vector = next(v for w, v in spoken[i] if w == word)
        by_hand = [[dot(vector, patches[i][4 * y + x]) for x in range(4)] for y in range(4)]
        torch.testing.assert_close(maps[k], torch.tensor(by_hand), atol=1e-5, rtol=0)


def test_an_attribute_that_captions_do_not_name_has_no_maps(lab: Lab) -> None:
    maps, masks, scenes, words = structure.word_maps(lab.method, lab.data.with_detail(1), "colour")
    assert (maps.shape, masks.shape) == ((0, 4, 4), (0, 32, 32))
    assert (scenes.tolist(), words) == ([], [])


@pytest.mark.parametrize("attribute", ["position", "mood"])
def test_an_attribute_without_a_word_for_each_value_is_refused(lab: Lab, attribute: str) -> None:
    with pytest.raises(MMCLError, match=attribute):
        structure.word_maps(lab.method, lab.data, attribute)


# --- what is measured -----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 9, 30])
@pytest.mark.parametrize("count", [1, 3, 100])
def test_found_is_the_loop(n: int, count: int) -> None:
    g = torch.Generator().manual_seed(n + count)
    scores = torch.randint(6, (n, n), generator=g).float()  # ties, too
    groups = torch.randint(count, (n,), generator=g)
    rows, of = scores.tolist(), groups.tolist()
    found = 0
    for i, row in enumerate(rows):
        best = max(s for s, group in zip(row, of, strict=True) if group == of[i])
        found += all(s < best for s, group in zip(row, of, strict=True) if group != of[i])
    assert structure._found(scores, groups) == pytest.approx(found / n)


def test_structure_measures_are_recall_and_single_comparisons(monkeypatch) -> None:
    shrink(monkeypatch)
    method = structure.train(0, epochs=0)
    measured = structure.measure(method)
    test = small.scenes(1000, small.TEST_SEED)
    image, caption = (embed_all(method, test, (name,)) for name in ("image", "caption"))
    recall = mean_recall(image, caption, same_texts(test))
    # Up to one near tie, here and below.
    assert measured["recall, pooled"] == pytest.approx(recall, abs=1.1 / (2 * SCENES))
    pair = Few.colliding(BAGS, seed=small.TEST_SEED, size=small.SIZE)
    for name, similarity in structure.SIMILARITIES.items():
        won = 0
        for own, other in (pair, pair[::-1]):
            for i in range(BAGS):
                picture = own.batch([i])
                captions = own.batch([i]), other.batch([i])
                right, wrong = (similarity(method, picture, each).item() for each in captions)
                won += right > wrong
        assert measured[f"bags, {name}"] == pytest.approx(won / (2 * BAGS), abs=1.1 / (2 * BAGS))
