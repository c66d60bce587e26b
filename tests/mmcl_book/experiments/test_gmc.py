"""The experiment "gmc": its loss against loops, its measures, and each condition in small."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl_book.experiments import gmc, handwriting, missing, parts, small
from mmcl_core.data import Digits
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import embed_all, partial_to_complete
from mmcl_core.evaluation.missing import MissingModality, closeness
from mmcl_core.evaluation.summary import shape_and_colour
from mmcl_core.losses import gmc_loss
from mmcl_core.methods import GMC, LateFusion
from tests.compare import unit
from tests.tiny import EPOCHS, SCENES, shrink

sizes = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)


@pytest.fixture(scope="module")
def runs():
    """Runs a condition in two epochs of one step; remembers what came out."""
    known: dict[tuple[str, int], dict[str, float]] = {}

    def run(condition: str, seed: int, *, again: bool = False) -> dict[str, float]:
        config = dict(gmc.CONDITIONS[condition])
        if "epochs" in config:
            config["epochs"] = EPOCHS
        if again or (condition, seed) not in known:
            known[condition, seed] = gmc.run(seed, **config)
        return known[condition, seed]

    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        # All classes of the test scenes are among those few to train on.
        patch.setattr(gmc, "shape_and_colour", lambda data: shape_and_colour(data) % 4)
        patch.setattr(handwriting, "EPOCHS", EPOCHS)
        yield run


@pytest.mark.parametrize("condition", gmc.CONDITIONS)
def test_seeds_give_the_same_measures_with_other_values(runs, condition: str) -> None:
    one, two = runs(condition, 0), runs(condition, 1)
    assert list(one) == list(two)
    assert one != two
    assert all(type(value) is float and math.isfinite(value) for value in one.values())
    assert sum(name.startswith("accuracy") for name in one) == 7


@pytest.mark.parametrize("condition", ["GMC", "no false negatives", "digits, modality dropout"])
def test_the_same_seed_gives_the_same_values(runs, condition: str) -> None:
    one = runs(condition, 0)
    torch.manual_seed(99)  # of which nothing depends
    assert runs(condition, 0, again=True) == one


def test_a_condition_is_what_it_says(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(gmc, "SCENES", SCENES)
    monkeypatch.setattr(gmc, "TESTED", SCENES)
    monkeypatch.setattr(gmc, "told", lambda trained: seen.append(trained.method))
    monkeypatch.setattr(gmc, "measure", lambda trained, found: {})
    monkeypatch.setattr(gmc, "halves", lambda found, labels: {})
    monkeypatch.setattr(small, "train", lambda method, data, seed, **how: seen.append(how))
    for name, config in gmc.CONDITIONS.items():
        if "digits" in config:
            continue
        gmc.run(0, **config)
        how, method = seen[-2:]
        assert how["epochs"] == (12 if name.endswith("12 epochs") else missing.EPOCHS)
        assert isinstance(method, LateFusion if "fusion" in config else GMC)
        if isinstance(method, GMC):
            assert method.temperature == (0.3 if name == "temperature 0.3" else 0.1)
            assert method.variant == (name if name in ("paper", "joint_negatives") else "ntxent")
            assert isinstance(method, gmc.Masked) == (name == "no false negatives")
        else:
            assert method.dropout == (0.3 if "dropout" in name else 0.0)


# --- the loss without false negatives -------------------------------------------------------------


def masked_loop(joint, part, label, said, temperature):
    """Anchor by anchor; who is no negative is left out of the sum."""
    x = [("joint", i, v) for i, v in enumerate(joint.tolist())]
    x += [("part", i, v) for i, v in enumerate(part.tolist())]
    total = 0.0
    for kind, i, v in x:
        terms, positive = [], None
        for other, j, w in x:
            if (other, j) == (kind, i):
                continue
            logit = math.fsum(a * b for a, b in zip(v, w, strict=True)) / temperature
            if i == j:
                positive = logit
            elif kind == other == "joint":
                terms += [logit] if label[i] != label[j] else []
            else:
                terms += [logit] if said[i] != said[j] else []
        assert positive is not None
        total += math.log(math.exp(positive) + sum(map(math.exp, terms))) - positive
    return total / len(x)


@sizes
@given(seeds, st.integers(2, 7), st.integers(1, 5), st.floats(0.05, 2.0))
def test_masked_ntxent_is_the_loop_over_anchors(seed, size, classes, temperature) -> None:
    joint, part = unit(size, 3, seed), unit(size, 3, seed + 1)
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (size,), generator=g)
    said = label // 2
    got = gmc.masked_ntxent(joint, part, label, said, temperature)
    expected = masked_loop(joint, part, label.tolist(), said.tolist(), temperature)
    assert float(got) == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_where_no_two_say_the_same_the_loss_is_that_of_gmc(temperature: float) -> None:
    joint, *modalities = (unit(9, 4, seed) for seed in range(4))
    own = torch.arange(9)
    masked = sum(gmc.masked_ntxent(joint, m, own, own, temperature) for m in modalities)
    torch.testing.assert_close(masked, gmc_loss(modalities, joint, temperature))


def test_what_says_the_same_of_scenes() -> None:
    """Two red circles are no negatives; a red and a blue one are, but not by their captions."""
    data = missing.scenes(40, 3)
    method = gmc.new_gmc(data, 0, masked=True, temperature=0.5)
    plain = gmc.new_gmc(data, 0, temperature=0.5)
    batch = data.batch(range(40)) | {"label": shape_and_colour(data)}
    method.requires_grad_(False)
    assert method.loss(batch)["total"] < plain.loss(batch)["total"]
    joint, total = method.embed_joint(batch), 0.0
    said = {
        "image": shape_and_colour(data).tolist(),
        "caption": data.attributes["shape"][:, 0].tolist(),
        "tags": data.attributes["colour"][:, 0].tolist(),
    }
    for m, of in said.items():
        part = method.embed_modality(batch, m)
        total += masked_loop(joint, part, said["image"], of, 0.5)
    assert float(method.loss(batch)["total"]) == pytest.approx(total, rel=1e-5)


# --- what is measured -----------------------------------------------------------------------------


def test_halves_of_the_class() -> None:
    labels = torch.tensor([0, 7, 14, 35])  # shape * 6 + colour
    found = MissingModality({}, 0.0, {("image",): torch.tensor([0, 13, 13, 30])}, True)
    assert gmc.halves(found, labels) == {"shape, image": 0.75, "colour, image": 0.5}


def test_the_last_epoch_is_what_is_measured_at_the_end(runs) -> None:
    measured = runs("GMC", 0)
    for m in missing.MODALITIES:
        for kind in ("cosine", "cosine of others"):
            last = measured[f"{kind}, {m} @{EPOCHS}"]
            assert last == pytest.approx(measured[f"{kind}, {m}"], abs=1e-6)


def test_choices_are_all_but_none() -> None:
    assert parts.choices("ab") == [("a",), ("b",), ("a", "b")]
    assert len(parts.choices("abcd")) == 15


# --- digits ---------------------------------------------------------------------------------------


def test_each_part_of_a_digit_has_an_encoder() -> None:
    data = Digits("validation")
    trunks = handwriting.encoders(data, data.modalities)
    batch = data.batch(range(5))
    for m, trunk in trunks.items():
        encoded = trunk(batch[m])
        assert encoded.pooled.shape == (5, small.WIDTH)
        assert encoded.tokens.shape[:2] == encoded.mask.shape
        assert bool(encoded.mask.all())
    ink = handwriting.InkEncoder(6, width=8)
    torch.testing.assert_close(
        ink(torch.ones(2, 1, 2, 3)).pooled,
        F.layer_norm(ink.layers[:4](torch.ones(2, 6)), (8,)),
    )


def test_watching_keeps_where_the_test_samples_lie(runs, monkeypatch) -> None:
    trained = handwriting.train(0, split="validation")
    assert len(trained.seen) == EPOCHS + 1
    last = trained.seen[-1]
    assert list(last) == [("top",), ("bottom",), ("word",), ("top", "bottom", "word")]
    assert torch.equal(last[("top",)], embed_all(trained.method, trained.test, ("top",)))
    close = partial_to_complete(trained.method, trained.test, trained.modalities)[("top",)]
    assert closeness(last[("top",)], last[trained.modalities]) == close


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(MMCLError, match="kind must be one of GMC, fusion"):
        handwriting.train(0, "early fusion")
