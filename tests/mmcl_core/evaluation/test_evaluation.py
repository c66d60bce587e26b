"""Measures against naive loops, closed forms, NumPy and scikit-learn."""

import inspect
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmcl_core import evaluation
from mmcl_core.data.groups import caption_groups
from mmcl_core.data.tokenizer import WordTokenizer
from mmcl_core.errors import MissingModalityError, MMCLError, ShapeError
from mmcl_core.evaluation import (
    accuracy_at_rate,
    alignment,
    cone,
    embed_all,
    linear_probe,
    missing_modality,
    modality_gap,
    partial_to_complete,
    pointing_game,
    recall_at_k,
    retrieval,
    shift_gap,
    space,
    uniformity,
    zero_shot,
)

sizes = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Named(nn.Module):
    """Embeds each modality that it is given by its own map, and adds: shows which were given."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({"image": nn.Linear(5, 3), "caption": nn.Linear(5, 3)})
        self.drop = nn.Dropout(0.5)
        self.seen: list[list[str]] = []

    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        self.seen.append(sorted(batch))
        return F.normalize(sum(self.drop(self.maps[m](x)) for m, x in batch.items()), dim=1)


class Rows:
    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def batch(self, indices) -> dict[str, Tensor]:
        return {name: x[indices] for name, x in self.tensors.items()}


# --- caption_groups -------------------------------------------------------------------------------


@sizes
@given(seeds, st.integers(1, 40), st.integers(1, 6), st.integers(0, 4))
def test_caption_groups_are_the_different_texts(seed, n, length, extra):
    g = torch.Generator().manual_seed(seed)
    captions = torch.randint(0, 3, (n, length), generator=g)
    groups = caption_groups(captions)
    texts = [tuple(row) for row in captions.tolist()]
    same = torch.tensor([[a == b for b in texts] for a in texts])
    assert ((groups[:, None] == groups) == same).all()
    assert sorted(set(groups.tolist())) == list(range(len(set(texts))))
    assert torch.equal(caption_groups(F.pad(captions, (0, extra))), groups)


def test_caption_groups_knows_padding_from_words():
    groups = caption_groups(torch.tensor([[7, 0, 0], [7, 8, 0], [7, 0, 0], [0, 7, 0]]))
    assert groups[0] == groups[2]
    assert len(set(groups.tolist())) == 3
    assert caption_groups(torch.zeros(2, 0, dtype=torch.int64)).tolist() == [0, 0]
    assert caption_groups(torch.zeros(0, 4, dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("captions", [torch.zeros(3), torch.zeros(2, 3), torch.arange(3).int()])
def test_caption_groups_refuses_what_is_no_caption(captions):
    with pytest.raises(ShapeError, match=r"integers \[N, L\]"):
        caption_groups(captions)


# --- embed_all ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_embed_all_is_embed_in_eval_mode(batch_size):
    method = Named()
    method.maps["caption"].eval()  # a part that the user froze stays so
    data = {"image": draw(7, 5), "caption": draw(7, 5, seed=1), "index": torch.arange(7)}
    for source in (data, Rows(**data)):
        for names in (("image",), ("caption",), ("image", "caption")):
            method.seen.clear()
            x = embed_all(method, source, names, batch_size=batch_size)
            assert method.seen == [sorted(names)] * math.ceil(7 / batch_size)
            expected = F.normalize(sum(method.maps[m](data[m]) for m in names), dim=1)
            torch.testing.assert_close(x, expected.detach())
            assert not x.requires_grad
    assert method.training
    assert method.drop.training
    assert not method.maps["caption"].training


def test_embed_all_restores_the_mode_after_an_error():
    method = Named()
    with pytest.raises(RuntimeError):
        embed_all(method, {"image": draw(3, 9)})
    assert method.drop.training


class Returns(nn.Module):
    def __init__(self, x: object) -> None:
        super().__init__()
        self.x = x

    def embed(self, batch: dict[str, Tensor]) -> object:
        return self.x


def test_embed_all_gives_float32_on_the_cpu():
    assert embed_all(Returns(draw(2, 3).bfloat16()), {"image": draw(2, 1)}).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: embed_all(Named(), Rows(image=draw(2, 5)), ("tags",)), MissingModalityError,
         r"\['tags'\].*no tags.*only \['image'\]"),
        (lambda: embed_all(Named(), {"image": draw(0, 5)}), ShapeError, "empty"),
        (lambda: embed_all(Named(), {"image": draw(2, 5), "tags": draw(3, 5)}), ShapeError,
         "'tags': 3"),
        (lambda: embed_all(Named(), {}), ShapeError, "one number of samples"),
        (lambda: embed_all(Named(), [1, 2]), MMCLError, "samples that are dicts"),
        (lambda: embed_all(Named(), {"image": draw(2, 5)}, "image"), MMCLError, r"\('image',\)"),
        (lambda: embed_all(Named(), {"image": draw(2, 5)}, batch_size=0), MMCLError, "got 0"),
        (lambda: embed_all(nn.Linear(5, 2), {"image": draw(2, 5)}), MMCLError, "Linear has none"),
        (lambda: embed_all(Returns(draw(3, 2)), {"image": draw(2, 5)}), ShapeError,
         r"\[2, D\]; got \[3, 2\]"),
        (lambda: embed_all(Returns("x"), {"image": draw(2, 5)}), ShapeError, "got str"),
        (lambda: embed_all(Returns(draw(2, 2) / 0), {"image": draw(2, 5)}), ShapeError,
         "2 of 2 rows"),
    ],
)  # fmt: skip
def test_embed_all_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- recall_at_k ----------------------------------------------------------------------------------


def naive_recall(q: Tensor, keys: Tensor, k: int, correct: list[list[bool]]) -> float:
    """Sorts the keys of each query, the wrong ones first among equals."""
    found = 0
    for i in range(len(q)):
        cosines = [float(F.cosine_similarity(q[i], key, dim=0)) for key in keys]
        order = sorted(range(len(keys)), key=lambda j: (-cosines[j], correct[i][j]))
        found += any(correct[i][j] for j in order[:k])
    return found / len(q)


@sizes
@given(seeds, st.integers(1, 25), st.integers(1, 12), st.data())
def test_recall_is_the_naive_one(seed, n, dim, data):
    q, keys = draw(n, dim + 1, seed=seed), draw(n, dim + 1, seed=seed + 1)
    k = data.draw(st.integers(1, n))
    one = [[i == j for j in range(n)] for i in range(n)]
    assert recall_at_k(q, keys, k) == pytest.approx(naive_recall(q, keys, k, one))
    groups = torch.randint(0, n, (n,), generator=torch.Generator().manual_seed(seed))
    same = (groups[:, None] == groups).tolist()
    expected = naive_recall(q, keys, k, same)
    assert recall_at_k(q, keys, k, groups=groups) == pytest.approx(expected)
    assert recall_at_k(q, keys, (k, 1), groups=groups)[k] == pytest.approx(expected)


@sizes
@given(seeds, st.integers(1, 9), st.integers(1, 4))
def test_recall_with_several_keys_for_a_query(seed, n, per):
    q, keys = draw(n, 4, seed=seed), draw(n * per, 4, seed=seed + 1)
    groups = torch.arange(n), torch.arange(n).repeat_interleave(per)
    same = (groups[0][:, None] == groups[1]).tolist()
    assert recall_at_k(q, keys, 1, groups=groups) == pytest.approx(naive_recall(q, keys, 1, same))
    back = [list(column) for column in zip(*same, strict=True)]
    assert recall_at_k(keys, q, 1, groups=groups[::-1]) == pytest.approx(
        naive_recall(keys, q, 1, back)
    )


def test_recall_in_chunks_is_the_same(monkeypatch):
    q, keys, groups = draw(50, 8), draw(50, 8, seed=1), torch.arange(50) // 3
    whole = recall_at_k(q, keys, (1, 5), groups=groups)
    assert 0 < whole[1] < whole[5] < 1
    monkeypatch.setattr(retrieval, "BLOCK", 7 * 50)
    assert recall_at_k(q, keys, (1, 5), groups=groups) == whole
    monkeypatch.setattr(retrieval, "BLOCK", 1)
    assert recall_at_k(q, keys, (1, 5), groups=groups) == whole


@pytest.mark.parametrize("n", [2, 7, 1000])
def test_a_collapsed_model_finds_nothing(n):
    """All embeddings equal, up to rounding: a tie counts against the model."""
    x = F.normalize(draw(1, 100), dim=1).expand(n, 100)
    assert recall_at_k(x, x, n - 1) == 0.0
    rounded = x * (1 + 1e-7 * draw(n, 100))
    assert recall_at_k(x, rounded, n - 1) == 0.0
    assert recall_at_k(x, x, n) == 1.0  # all keys are looked at


def test_recall_is_one_for_a_perfect_model_and_does_not_mind_length():
    x = draw(300, 64)
    assert recall_at_k(x, 5 * x, (1, 300)) == {1: 1.0, 300: 1.0}
    assert isinstance(recall_at_k(x, x), float)


def test_an_identical_caption_is_correct():
    captions = torch.tensor([[4, 5], [4, 5], [6, 0], [7, 0]])
    text = torch.eye(4)[[0, 0, 1, 2]]
    assert recall_at_k(text, text) == 0.5
    assert recall_at_k(text, text, groups=caption_groups(captions)) == 1.0


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((draw(3, 2), draw(3, 4)), {}, ShapeError, "one width"),
        ((draw(3, 2), draw(4, 2)), {}, ShapeError, "as many keys as queries, 3; got 4"),
        ((draw(3), draw(3)), {}, ShapeError, r"queries: expected floats \[N, D\]"),
        ((draw(0, 2), draw(0, 2)), {}, ShapeError, "not empty"),
        ((draw(3, 2).long(), draw(3, 2)), {}, ShapeError, "int64"),
        ((draw(3, 2) * math.nan, draw(3, 2)), {}, ShapeError, "3 of 3 rows have NaN"),
        ((draw(3, 2), torch.tensor([[1.0, 0], [0, 0], [0, 1]])), {}, ShapeError,
         "keys: .* 1 of 3 rows are zero, the first is row 1"),
        ((draw(3, 2), draw(3, 2), 0), {}, MMCLError, "k must be a whole number, at least 1; got 0"),
        ((draw(3, 2), draw(3, 2), (1, 4)), {}, MMCLError, "got"),
        ((draw(3, 2), draw(3, 2), ()), {}, MMCLError, "got"),
        ((draw(3, 2), draw(3, 2)), {"groups": torch.arange(4)}, ShapeError, r"integers \[3\]"),
        ((draw(3, 2), draw(3, 2)), {"groups": torch.zeros(3)}, ShapeError, "float32"),
        ((draw(2, 2), draw(1, 2)), {"groups": (torch.tensor([5, 6]), torch.tensor([5]))},
         MMCLError, "1 of 2 have none, the first is query 1"),
    ],
)  # fmt: skip
def test_recall_refuses(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        recall_at_k(*args, **kwargs)


# --- zero_shot ------------------------------------------------------------------------------------


class Words(nn.Module):
    """Embeds a caption as the mean of fixed word vectors, an image [B, 1, 1, D] as itself."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)

    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        if "image" in batch:
            return F.normalize(batch["image"].flatten(1), dim=1)
        real = (batch["caption"] > 3)[..., None]
        return F.normalize((self.vectors[batch["caption"]] * real).sum(1), dim=1)


PROMPTS = {"circle": ["circle", "a round circle"], "square": ["a square"], "star": ["star", "a"]}


@pytest.fixture
def words() -> tuple[Words, WordTokenizer]:
    tokenizer = WordTokenizer.fit([text for texts in PROMPTS.values() for text in texts])
    return Words(draw(len(tokenizer), 6)), tokenizer


def test_zero_shot_is_the_nearest_mean(words):
    method, tokenizer = words
    images = draw(20, 1, 1, 6, seed=3)
    labels = torch.randint(0, 3, (20,), generator=torch.Generator().manual_seed(0))
    classes = []
    for texts in PROMPTS.values():
        each = [method.embed({"caption": tokenizer.encode_batch([t])})[0] for t in texts]
        mean = torch.stack(each).mean(0)
        classes.append((mean / mean.norm()).detach())
    scores = F.normalize(images.flatten(1), dim=1) @ torch.stack(classes).T
    for prompts in (PROMPTS, list(PROMPTS.values())):
        for source in (images, {"image": images}, Rows(image=images)):
            result = zero_shot(method, source, prompts, tokenizer, labels=labels, batch_size=3)
            torch.testing.assert_close(result.scores, scores)
            assert result.predictions.tolist() == scores.argmax(1).tolist()
            right = sum(int(a == b) for a, b in zip(result.predictions, labels, strict=True))
            assert result.accuracy == pytest.approx(right / 20)
            assert result.chance == pytest.approx(np.bincount(labels.numpy()).max() / 20)
    assert result.classes == ("0", "1", "2")
    assert zero_shot(method, images, PROMPTS, tokenizer).classes == ("circle", "square", "star")
    assert zero_shot(method, images, PROMPTS, tokenizer).accuracy is None
    assert "tensor" not in repr(result)  # a page shows the numbers that matter


@pytest.mark.parametrize(
    ("prompts", "labels", "message"),
    [
        ({"circle": ["circle"]}, None, r"two classes; got \['circle'\]"),
        ({"circle": ["circle"], "star": []}, None, "class 'star'; got"),
        ({"circle": "circle", "star": ["star"]}, None, "class 'circle'; got 'circle'"),
        (PROMPTS, torch.tensor([0, 1]), r"labels: .*\[4\]"),
        (PROMPTS, torch.tensor([0, 1, 2, 3]), "from 0 to 2.* up to 3"),
        (PROMPTS, torch.tensor([0, 1, 2, -1]), "labels"),
        (PROMPTS, torch.tensor([0, 1, 2, 0.5]), "labels"),
        (PROMPTS, torch.zeros(4, 2), "labels"),
    ],
)
def test_zero_shot_refuses(words, prompts, labels, message):
    method, tokenizer = words
    with pytest.raises(MMCLError, match=message):
        zero_shot(method, draw(4, 1, 1, 6), prompts, tokenizer, labels=labels)


def test_zero_shot_refuses_sentences_that_cancel(words):
    method, tokenizer = words
    with torch.no_grad():
        star, circle = (tokenizer.encode(w)[1] for w in ("star", "circle"))
        method.vectors[star] = -method.vectors[circle]
    with pytest.raises(ShapeError, match=r"class embeddings: .*row 0"):
        zero_shot(method, draw(4, 1, 1, 6), [["star", "circle"], ["a"]], tokenizer)


# --- linear_probe ---------------------------------------------------------------------------------


def test_probe_is_scikit_learns_on_standardised_features():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (400,), generator=g)
    x = draw(4, 8, seed=1)[y] + 1.5 * draw(400, 8, seed=2)
    x = x * torch.logspace(-4, 4, 8) + 100  # scales that only standardising evens out
    for C in (0.01, 1.0):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000))
        model.fit(x[:300].double().numpy(), y[:300].numpy())
        probe = linear_probe(x[:300], y[:300], x[300:], y[300:], C=C)
        assert probe.predictions.tolist() == model.predict(x[300:].double().numpy()).tolist()
        assert probe.accuracy == pytest.approx(model.score(x[300:].double(), y[300:]))
        assert 0.4 < probe.accuracy < 1
        assert probe.converged
    assert probe.chance == pytest.approx(y[300:].bincount().max().item() / 100)
    again = linear_probe(x[:300], y[:300], x[300:], y[300:])
    assert torch.equal(again.predictions, probe.predictions)
    assert not linear_probe(x[:300], y[:300], x[300:], y[300:], max_iter=2).converged


def test_probe_reads_what_is_there_and_no_more():
    y = torch.arange(300) % 2
    there = torch.stack([y.float(), torch.ones(300)], dim=1)  # and a constant feature
    assert linear_probe(there, y, there, y).accuracy == 1.0
    constant = torch.full((300, 1), 3.3, dtype=torch.float64)  # its variance is rounding, not 0
    third = (torch.arange(300) % 3 == 0).long()
    probe = linear_probe(constant, third, constant + draw(300, 1), third)
    assert probe.accuracy == probe.chance == pytest.approx(2 / 3)
    nothing = torch.full((300, 2), 0.1)
    probe = linear_probe(nothing, y, nothing, y)
    assert probe.accuracy == probe.chance == 0.5


def test_probe_of_several_columns_is_their_mean():
    x = draw(300, 6)
    y = (x @ draw(6, 3, seed=1) + draw(300, 3, seed=2) > 0).float()
    both = linear_probe(x[:200], y[:200], x[200:], y[200:])
    each = [linear_probe(x[:200], y[:200, t], x[200:], y[200:, t]) for t in range(3)]
    assert both.accuracy == pytest.approx(sum(p.accuracy for p in each) / 3)
    assert both.chance == pytest.approx(sum(p.chance for p in each) / 3)
    assert both.predictions.shape == (100, 3)
    assert torch.equal(both.predictions, torch.stack([p.predictions for p in each], dim=1))


X, Y = draw(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((X, Y[:5], X, Y), {}, r"train_y: .*\[6\].*\[5\]"),
        ((X, Y, X, Y + 0.5), {}, "test_y"),
        ((X, Y, X, Y - 1), {}, "test_y"),
        ((X, Y.tolist(), X, Y), {}, "train_y: expected a tensor; got list"),
        ((X, Y, draw(6, 3), Y), {}, "one width"),
        ((X, Y, X, Y[:, None] % 2), {}, "one width"),
        ((X, Y[:, None], X, Y[:, None]), {}, "columns of 0 and 1"),
        ((X * math.inf, Y, X, Y), {}, "train_x: expected finite"),
        ((X, Y * 0, X, Y * 0), {}, r"two classes to train on; got \[0\]"),
        ((X, torch.stack([Y % 2, Y * 0], 1), X, torch.stack([Y % 2, Y * 0], 1)), {}, "in column 1"),
        ((X, Y % 2, X, Y), {}, r"that training has; got also \[2\]"),
        ((X, Y, X, Y), {"C": 0.0}, "C must be a number in"),
        ((X, Y, X, Y), {"max_iter": 0}, "max_iter must be a whole number, at least 1"),
    ],
)
def test_probe_refuses(args, kwargs, message):
    with pytest.raises(MMCLError, match=message):
        linear_probe(*args, **kwargs)


# --- missing modalities ---------------------------------------------------------------------------


class Classes(nn.Module):
    """Adds up what it is given, scaled; the logits are the sum itself. Randomness when training."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.drop = nn.Dropout(0.5)
        self.asked: list[tuple[str, tuple[str, ...], int]] = []

    def _sum(self, verb: str, batch: dict[str, Tensor]) -> Tensor:
        assert not torch.is_grad_enabled()
        torch.rand(1)  # a method that draws
        self.asked.append((verb, tuple(batch), len(next(iter(batch.values())))))
        return self.drop(self.scale * sum(batch.values()))

    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        return F.normalize(self._sum("embed", batch), dim=1)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        return self._sum("logits", batch)


def eyes(n: int, seed: int, classes: int = 4) -> tuple[dict[str, Tensor], Tensor]:
    """One sense knows the class well, one a little, one not at all."""
    y = torch.arange(n) % classes
    told = F.one_hot(y, 5).float()
    noise = [draw(n, 5, seed=3 * seed + i) for i in range(3)]
    senses = {"a": 3 * told + noise[0], "b": told + noise[1], "c": noise[2]}
    return senses | {"index": torch.arange(n)}, y


SUBSETS = [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]


def test_missing_modality_is_a_probe_of_complete_samples_on_each_subset():
    (train, y), (test, truth) = eyes(120, 0), eyes(80, 1)
    method = Classes()
    method.drop.eval()  # a part that the user froze stays so
    rng = torch.get_rng_state()
    found = missing_modality(method, train, y, Rows(**test), truth, ("a", "b", "c"), C=0.3)
    assert torch.equal(torch.get_rng_state(), rng)
    assert method.training
    assert not method.drop.training
    # Each once: the complete training samples, and each subset of the test samples.
    assert method.asked == [("embed", ("a", "b", "c"), 120), *(("embed", s, 80) for s in SUBSETS)]
    assert list(found.accuracy) == list(found.predictions) == SUBSETS
    assert found.chance == 0.25
    assert found.converged
    whole = embed_all(method, train, ("a", "b", "c"))
    for present in SUBSETS:
        probe = linear_probe(whole, y, embed_all(method, test, present), truth, C=0.3)
        assert torch.equal(found.predictions[present], probe.predictions)
        right = sum(p == t for p, t in zip(probe.predictions.tolist(), truth.tolist(), strict=True))
        assert found.accuracy[present] == pytest.approx(right / 80)
    assert found.accuracy["a",] > 0.6 > found.accuracy["c",]
    few = missing_modality(method, train, y, test, truth, ("a", "b"), max_iter=1)
    assert not few.converged


def test_missing_modality_by_the_methods_own_classifier():
    (train, y), (test, truth) = eyes(120, 0), eyes(80, 1)
    method = Classes()
    found = missing_modality(
        method, train, y, test, truth, ("a", "b", "c"), classifier="own", batch_size=50
    )
    assert {verb for verb, _, _ in method.asked} == {"logits"}
    assert [size for _, _, size in method.asked] == [50, 30] * 7
    for present in SUBSETS:
        logits = sum(test[name] for name in present)
        right = [
            max(range(5), key=row.__getitem__) == t
            for row, t in zip(logits.tolist(), truth.tolist(), strict=True)
        ]
        assert found.accuracy[present] == pytest.approx(sum(right) / 80)
    assert found.converged
    assert method.drop.training


def test_missing_modality_takes_one_modality_and_columns_of_a_table():
    (train, y), (test, truth) = eyes(40, 0), eyes(40, 1)
    table = torch.stack([y, truth], dim=1)  # labels that do not lie side by side
    found = missing_modality(Classes(), train, table[:, 0], test, table[:, 1], ["a"])
    assert list(found.accuracy) == [("a",)]


class Picky(Classes):
    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        if "a" not in batch:
            raise MissingModalityError("Picky needs a")
        return super().embed(batch)


SEEN, SEEN_Y = eyes(40, 0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"modalities": "a"}, MMCLError, "each once; got 'a'"),
        ({"modalities": ()}, MMCLError, r"got \(\)"),
        ({"modalities": ("a", "a")}, MMCLError, r"got \('a', 'a'\)"),
        ({"modalities": ("a", "d")}, MissingModalityError, r"no d, only \['a', 'b', 'c', 'index'"),
        ({"classifier": "best"}, MMCLError, "'probe' or 'own'; got 'best'"),
        ({"train_y": SEEN_Y[:9]}, ShapeError, r"train_y: .*\[40\].*\[9\]"),
        ({"test_y": SEEN_Y[:9]}, ShapeError, r"test_y: .*\[40\].*\[9\]"),
        ({"test_y": SEEN_Y[:9], "classifier": "own"}, ShapeError, "test_y"),
        ({"train_y": SEEN_Y.tolist()}, ShapeError, "expected a tensor; got list"),
        ({"train_y": SEEN_Y[:, None] % 2}, ShapeError, r"labels \[N\] and \[M\]; got \[40, 1\]"),
        ({"train_y": SEEN_Y * 0}, MMCLError, r"two classes to train on; got \[0\]"),
        ({"train_y": SEEN_Y % 3}, MMCLError, r"that training has; got also \[3\]"),
        ({"train_y": SEEN_Y + 4, "test_y": SEEN_Y + 4, "classifier": "own"}, MMCLError,
         "from 0 to 4, the classes of the method; got up to 7"),
        ({"C": 0.0}, MMCLError, "C must be a number in"),
        ({"batch_size": 0}, MMCLError, "batch_size"),
        ({"method": Picky()}, MissingModalityError, "Picky needs a"),
        ({"method": Named(), "classifier": "own"}, MMCLError, r"logits\(batch\); Named has none"),
        ({"test": SEEN | {"b": SEEN["b"] / 0}}, ShapeError, "embed of b: expected finite"),
    ],
)  # fmt: skip
def test_missing_modality_refuses(changes, error, message):
    rng = torch.get_rng_state()
    arguments = {
        "method": Classes(), "train": SEEN, "train_y": SEEN_Y, "test": SEEN, "test_y": SEEN_Y,
        "modalities": ("a", "b", "c"),
    }  # fmt: skip
    with pytest.raises(error, match=message):
        missing_modality(**arguments | changes)
    assert torch.equal(torch.get_rng_state(), rng)


# --- the shape of the space -----------------------------------------------------------------------


def unit(x: Tensor) -> np.ndarray:
    a = x.double().numpy()
    return a / np.linalg.norm(a, axis=1, keepdims=True)


@sizes
@given(seeds, st.integers(2, 30), st.integers(1, 30), st.integers(1, 9), st.floats(0.1, 30))
def test_measures_are_the_naive_ones(seed, n, m, dim, t):
    x, y = draw(n, dim, seed=seed), draw(m, dim, seed=seed + 1)
    partner = draw(n, dim, seed=seed + 2)
    a, b, p = unit(x), unit(y), unit(partner)
    assert modality_gap(x, y) == pytest.approx(np.linalg.norm(a.mean(0) - b.mean(0)), abs=1e-6)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    assert cone(x) == pytest.approx(np.mean([a[i] @ a[j] for i, j in pairs]), abs=1e-6)
    assert alignment(x, partner) == pytest.approx(
        np.mean([np.sum((a[i] - p[i]) ** 2) for i in range(n)]), rel=1e-5
    )
    kernel = [np.exp(-t * np.sum((a[i] - a[j]) ** 2)) for i, j in pairs]
    assert uniformity(x, t) == pytest.approx(np.log(np.mean(kernel)), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("n", [2, 3, 50])
def test_closed_forms_of_orthonormal_vectors(n):
    """All distances are sqrt(2), all cosines 0, and the centre is 1/sqrt(n) away."""
    x = torch.eye(n)
    assert uniformity(x) == pytest.approx(-4)
    assert uniformity(x, t=0.5) == pytest.approx(-1)
    assert cone(x) == pytest.approx(0, abs=1e-12)
    assert alignment(x, x) == 0
    assert alignment(x, -x) == pytest.approx(4)
    assert modality_gap(x, -x) == pytest.approx(2 / math.sqrt(n))
    assert modality_gap(x, x) == 0


def test_closed_forms_of_one_point_and_of_two():
    x = F.normalize(draw(1, 16), dim=1).expand(9, 16)
    assert uniformity(x) == pytest.approx(0, abs=1e-6)
    assert cone(x) == pytest.approx(1)
    two = torch.tensor([[1.0, 0], [-1, 0]])
    assert uniformity(two) == pytest.approx(-8)
    assert cone(two) == pytest.approx(-1)
    # exp(-400 * 4) is 0 even in float64: the sum is over logarithms
    assert uniformity(two, t=400) == pytest.approx(-1600)


def test_uniformity_in_chunks_is_the_same(monkeypatch):
    x = draw(60, 8)
    whole = uniformity(x)
    for block in (1, 60 * 7):
        monkeypatch.setattr(space, "BLOCK", block)
        assert uniformity(x) == pytest.approx(whole, abs=1e-12)


@sizes
@given(seeds, st.integers(1, 20), st.integers(1, 20), st.floats(-2, 2))
def test_shift_is_the_formula(seed, n, m, d):
    x, y = draw(n, 5, seed=seed) + 0.5, draw(m, 5, seed=seed + 1)
    a, b = unit(x), unit(y)
    gap = a.mean(0) - b.mean(0)
    expected = a - d / 2 * gap, b + d / 2 * gap
    for got, want in zip(shift_gap(x, y, d), expected, strict=True):
        assert np.allclose(got.numpy(), unit(torch.from_numpy(want)), atol=1e-4)


def test_shift_closes_and_widens_the_gap():
    x, y = draw(200, 8) + 1, draw(200, 8, seed=1) - 1
    gaps = [modality_gap(*shift_gap(x, y, d)) for d in (-0.5, 0.0, 0.5, 1.0)]
    assert gaps[1] == pytest.approx(modality_gap(x, y))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[3] < 0.2 * gaps[1]
    # two antipodal points meet in the middle, where there is no direction
    with pytest.raises(ShapeError, match=r"the shifted x: .* zero"):
        shift_gap(torch.tensor([[1.0, 0]]), torch.tensor([[-1.0, 0]]), 1.0)


ZERO = torch.tensor([[1.0, 0], [0, 0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: modality_gap(draw(3, 2), draw(3, 3)), "one width"),
        (lambda: modality_gap(ZERO, draw(3, 2)), "x: .*1 of 2 rows are zero"),
        (lambda: alignment(draw(3, 2), draw(4, 2)), "pairs"),
        (lambda: alignment(draw(3, 2), draw(3, 2) / 0), "y: expected finite"),
        (lambda: uniformity(draw(1, 2)), "at least two samples"),
        (lambda: uniformity(draw(0, 2)), "not empty"),
        (lambda: uniformity(ZERO), "zero"),
        (lambda: uniformity(draw(3, 2), t=0), "t must be above 0"),
        (lambda: cone(draw(1, 2)), "at least two samples"),
        (lambda: cone(draw(4)), r"\[N, D\]"),
        (lambda: shift_gap(draw(3, 2), draw(3, 2), math.nan), "d must be finite"),
        (lambda: shift_gap(draw(3, 2), draw(3, 4), 0.5), "one width"),
    ],
)
def test_measures_refuse(call, message):
    with pytest.raises(MMCLError, match=message):
        call()


# --- what is left as it was: random states, modes, types of floats --------------------------------


class Drawing(Named):
    """Its embeddings and logits draw from every global generator."""

    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        noise = torch.rand(1) + np.random.rand() + random.random()  # noqa: NPY002
        return F.normalize(super().embed(batch) + 0.01 * noise, dim=1)

    logits = embed


def states() -> list[object]:
    _, keys, *rest = np.random.get_state()  # noqa: NPY002
    return [torch.get_rng_state().tolist(), keys.tolist(), rest, random.getstate()]


def pairs(n: int = 12) -> dict[str, Tensor]:
    words = torch.arange(n)[:, None] % 3 + torch.zeros(1, 5)
    return {"image": draw(n, 5), "caption": words}


CLASSES = torch.arange(12) % 3

# Of each public function of `mmcl_core.evaluation`, a call on a method that draws.
CALLS = {
    "embed_all": lambda method: embed_all(method, pairs()),
    "linear_probe": lambda method: linear_probe(draw(12, 5), CLASSES, draw(12, 5), CLASSES),
    "missing_modality": lambda method: missing_modality(
        method, pairs(), CLASSES, pairs(), CLASSES, ("image", "caption"), classifier="own"
    ),
    "accuracy_at_rate": lambda method: accuracy_at_rate(
        missing_modality(method, pairs(), CLASSES, pairs(), CLASSES, ("image", "caption")),
        CLASSES, "image", 0.5, seed=np.int64(1),
    ),
    "partial_to_complete": lambda method: partial_to_complete(
        method, pairs(), ("image", "caption")
    ),
    "zero_shot": lambda method: zero_shot(method, draw(12, 5), [["a b"], ["b a"]], Padded()),
    "recall_at_k": lambda method: recall_at_k(draw(5, 3), draw(5, 3)),
    "modality_gap": lambda method: modality_gap(draw(5, 3), draw(5, 3)),
    "shift_gap": lambda method: shift_gap(draw(5, 3), draw(5, 3, seed=1), 0.5),
    "cone": lambda method: cone(draw(5, 3)),
    "alignment": lambda method: alignment(draw(5, 3), draw(5, 3)),
    "uniformity": lambda method: uniformity(draw(5, 3)),
    "pointing_game": lambda method: pointing_game(draw(2, 2, 2), torch.ones(2, 4, 4).bool()),
}  # fmt: skip


class Padded:
    """What `zero_shot` asks of a tokenizer: here floats, as `Named` takes them."""

    def encode_batch(self, texts: list[str]) -> Tensor:
        return draw(len(texts), 5)


def test_there_is_a_call_of_each_public_function():
    functions = {n for n in evaluation.__all__ if inspect.isfunction(getattr(evaluation, n))}
    assert CALLS.keys() == functions


@pytest.mark.parametrize("name", CALLS)
def test_random_states_and_modes_are_left_as_they_were(name):
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    method = Drawing()
    method.maps["caption"].eval()
    method.maps["image"].requires_grad_(False)
    modes, before = [part.training for part in method.modules()], states()
    CALLS[name](method)
    assert states() == before
    assert [part.training for part in method.modules()] == modes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_embed_all_brings_floats_to_the_type_of_the_method(dtype):
    method = Named()
    expected = embed_all(method, pairs(), ("image", "caption"))
    found = embed_all(method.to(dtype), pairs(), ("image", "caption"))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_a_method_in_half_precision_is_measured_by_all():
    method = Named().bfloat16()
    method.logits = method.embed
    for name in ("missing_modality", "partial_to_complete", "zero_shot"):
        CALLS[name](method)


def test_measures_under_a_default_of_float64():
    method, data = Named(), pairs()
    torch.set_default_dtype(torch.float64)
    try:
        found = zero_shot(method, data["image"], [["a"], ["b"]], Padded()).scores
        assert found.dtype == torch.float32
        assert embed_all(Named(), data).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_whole_numbers_of_numpy_are_whole_numbers():
    """And True is none (bug report 23)."""
    x = draw(6, 3)
    two = np.int64(2)
    assert recall_at_k(x, x, two) == recall_at_k(x, x, 2) == 1
    assert recall_at_k(x, x, np.array([1, 2])) == recall_at_k(x, x, [1, 2])
    assert list(recall_at_k(x, x, np.array([1, 2]))) == [1, 2]
    assert torch.equal(embed_all(m := Named(), pairs(), batch_size=two), embed_all(m, pairs()))
    for call in (
        lambda: recall_at_k(x, x, True),
        lambda: recall_at_k(x, x, [1, 2.0]),
        lambda: recall_at_k(x, x, []),
        lambda: embed_all(Named(), pairs(), batch_size=True),
        lambda: embed_all(Named(), pairs(), batch_size="2"),
        lambda: linear_probe(x, CLASSES[:6], x, CLASSES[:6], max_iter=True),
        lambda: linear_probe(x, CLASSES[:6], x, CLASSES[:6], C="1"),
    ):
        with pytest.raises(MMCLError):
            call()
