"""The experiment "alternatives" in small: what is drawn, told and called, against loops."""

import math

import pytest
import torch

from mmcl_book.experiments import alternatives, comparison
from mmcl_book.methods import MMVAE, MVAE, CodeCLIP
from mmcl_core.data.drawing import VALUES
from mmcl_core.data.shapes import SYNONYMS
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import summary
from mmcl_core.evaluation.summary import shape_and_colour
from mmcl_core.methods import FDT
from tests.tiny import Few, shrink


@pytest.fixture(scope="module")
def lab():
    return comparison.scenes(30, 5)


@pytest.fixture
def few(monkeypatch):
    shrink(monkeypatch)
    for name, value in {"EPOCHS": 1, "BATCH": 16, "PAIRS": 32, "QUEUE": 16}.items():
        monkeypatch.setattr(comparison, name, value)
    monkeypatch.setattr(comparison, "BAGS", 20)
    monkeypatch.setattr(comparison, "ShapesCaptions", Few)
    # All classes of the test scenes are among those few to train on.
    monkeypatch.setattr(summary, "shape_and_colour", lambda data: shape_and_colour(data) % 4)
    monkeypatch.setattr(alternatives, "JUDGE_EPOCHS", 1)
    alternatives.judge.cache_clear()
    yield
    alternatives.judge.cache_clear()


@pytest.mark.parametrize("condition", alternatives.CONDITIONS)
@pytest.mark.usefixtures("few")
def test_seeds_give_the_same_measures_with_other_values(condition: str) -> None:
    config = alternatives.CONDITIONS[condition]
    one, two = (alternatives.run(seed, **config) for seed in (0, 1))
    assert list(one) == list(two)
    assert one != two
    assert all(type(value) is float and math.isfinite(value) for value in one.values())
    assert any(name.startswith("recall") for name in one) == (condition != "FDT")
    assert ("shared, own" in one) == (condition in ("codes", "FDT"))
    assert ("colour drawn, caption" in one) == (condition in ("MVAE", "MMVAE"))


@pytest.mark.usefixtures("few")
def test_the_same_seed_gives_the_same_weights() -> None:
    for name in ("MVAE", "codes"):
        first = alternatives.train(0, method=name).state_dict()
        torch.manual_seed(99)  # of which nothing depends
        again = alternatives.train(0, method=name).state_dict()
        assert all(torch.equal(value, again[key]) for key, value in first.items())


def test_each_condition_is_its_method(lab) -> None:
    kinds = {"MVAE": MVAE, "MMVAE": MMVAE, "codes": CodeCLIP, "FDT": FDT}
    for name in alternatives.CONDITIONS:
        assert type(alternatives.new(name, lab, 0)) is kinds[name]
    with pytest.raises(MMCLError, match="got 'GAN'"):
        alternatives.new("GAN", lab, 0)


def test_told_words_count_with_their_synonyms(lab) -> None:
    words = torch.zeros(2, len(lab.tokenizer))
    spoken = (
        {"crimson": 0.4, "red": 0.3, "blue": 0.6, "star": 0.9},
        {"amber": 0.5, "ring": 0.3, "hoop": 0.3, "star": 0.5},
    )
    for row, said in enumerate(spoken):
        for word, p in said.items():
            words[row, lab.tokenizer.encode(word)[1]] = p
    found = alternatives.told(words, lab)
    assert [VALUES["colour"][i] for i in found["colour"]] == ["red", "orange"]
    assert [VALUES["shape"][i] for i in found["shape"]] == ["star", "ring"]
    assert SYNONYMS["red"] == "crimson"


def test_reconstructions_are_those_of_single_scenes(lab) -> None:
    method = alternatives.new("MVAE", lab, 0).eval()
    for source in alternatives.SOURCES.values():
        for wanted in ("image", "caption"):
            rows = alternatives.reconstructions(method, lab, source, wanted)
            batch = lab.batch([7])
            with torch.no_grad():
                one = method.reconstruct({m: batch[m] for m in source}, wanted)
            torch.testing.assert_close(rows[7:8], one, atol=1e-5, rtol=1e-4)


def test_each_patch_and_word_calls_its_code(lab) -> None:
    method = alternatives.new("codes", lab, 0).eval()
    weights = alternatives.weights_of(method, lab)
    for name in comparison.MODALITIES:
        calls = alternatives.calls(method, lab, name)
        counts = torch.zeros_like(weights[name])
        for token, sample in zip(calls.token.tolist(), calls.sample.tolist(), strict=True):
            counts[sample, token] += 1
        torch.testing.assert_close(counts / counts.sum(1, keepdim=True), weights[name])
        real = 16 if name == "image" else (lab.sentences[:, 0] != 0).sum(1)
        assert torch.equal(counts.sum(1), torch.as_tensor(real).expand(len(lab)).float())


@pytest.mark.usefixtures("few")
def test_the_judge_leaves_the_random_state(lab) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    named = alternatives.judged(lab.images[:8].float() / 255)
    assert torch.equal(torch.rand(3), expected)
    assert {name: int(of.max()) < len(VALUES[name]) for name, of in named.items()} == {
        "shape": True,
        "colour": True,
    }
    assert len(named["shape"]) == 8
