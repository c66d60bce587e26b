"""Handwritten digits: the halves are scikit-learn's scans, and the splits share them out."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from mmcl_core.data import Digits
from mmcl_core.data.digits import SHARES, WORDS
from mmcl_core.errors import MMCLError

SCANS = load_digits()
SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize(("cut", "axis"), [("rows", 2), ("columns", 3)])
def test_the_halves_put_together_are_the_scans_of_sklearn(cut: str, axis: int) -> None:
    data = Digits("all", cut=cut)
    batch = data.batch(range(len(data)))
    one, other, word = (batch[name] for name in data.modalities)
    whole = torch.cat([one, other], dim=axis)
    assert torch.equal(whole[:, 0], torch.tensor(SCANS.images / 16, dtype=torch.float32))
    assert torch.equal(whole, data.images)
    assert one.shape == other.shape == (1797, 1, *((4, 8) if cut == "rows" else (8, 4)))
    assert word is batch["word"]
    assert 0 <= float(whole.min()) < float(whole.max()) <= 1


def test_words_and_labels_name_the_digit() -> None:
    data = Digits("all")
    assert data.labels.tolist() == SCANS.target.tolist()
    for i in (0, 5, 77, 1796):
        said = data.tokenizer.decode(data.batch([i])["word"][0])
        assert said == data.text(i) == WORDS[SCANS.target[i]]
    assert data.words.shape == (1797, 3)
    assert data.words.dtype == torch.int64


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 10_000))
def test_the_splits_share_out_all_scans_of_each_digit_alike(seed: int) -> None:
    parts = {split: Digits(split, seed=seed) for split in SPLITS}
    assert sorted(row for part in parts.values() for row in part.rows.tolist()) == list(range(1797))
    every = Counter(SCANS.target.tolist())
    for split, share in {**SHARES, "train": 1 - sum(SHARES.values())}.items():
        counts = Counter(parts[split].labels.tolist())
        assert all(abs(counts[digit] - share * every[digit]) <= 1 for digit in range(10))


def test_a_split_is_that_of_its_seed_only() -> None:
    one, other = Digits("test", seed=3), Digits("test", seed=4)
    torch.rand(5)  # of which nothing depends
    assert torch.equal(one.rows, Digits("test", seed=3).rows)
    assert torch.equal(one.images[:, 0], Digits("all").images[one.rows, 0])
    assert not torch.equal(one.rows, other.rows)


def test_single_samples_are_rows_of_the_batch() -> None:
    data = Digits("validation", cut="columns")
    batch = data.batch(torch.tensor([2, 0]))
    assert torch.equal(batch["index"], data.rows[[2, 0]])
    for row, i in enumerate((2, 0)):
        for name, value in data[i].items():
            assert torch.equal(value, batch[name][row])
    assert torch.equal(data[-1]["left"], data[len(data) - 1]["left"])
    with pytest.raises(IndexError, match=f"to {len(data) - 1}; got {len(data)}"):
        data[len(data)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"split": "tests"}, "split must be .* got 'tests'"),
        ({"cut": "diagonal"}, "cut must be .* got 'diagonal'"),
        ({"seed": -1}, "seed must be a whole number, at least 0; got -1"),
    ],
)
def test_wrong_arguments_are_named(settings: dict, said: str) -> None:
    with pytest.raises(MMCLError, match=said):
        Digits(**settings)
