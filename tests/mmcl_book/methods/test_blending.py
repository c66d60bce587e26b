"""Gradient-Blending: its weights against a naive form, and what it does in a training."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mmcl_book.methods.blending import (
    FLOOR,
    GradientBlending,
    blending_weights,
    head_losses,
    overfitting_to_generalisation,
)
from mmcl_core.errors import MissingModalityError, MMCLError, ShapeError
from mmcl_core.training import fit
from tests.mmcl_core.methods.test_fusion import (
    HEADS,
    WIDTHS,
    Rows,
    assert_same,
    equal,
    samples,
    small,
    state,
)

# --- Gradient-Blending: the weights ---------------------------------------------------------------

EARLIER = {"image": (2.0, 2.0), "caption": (2.0, 2.0), "fusion": (2.0, 2.0)}
LATER = {"image": (1.0, 1.5), "caption": (0.5, 1.0), "fusion": (0.0, 1.0)}


def test_blending_by_hand():
    """
    head     dG = drop of L_val   dO = change of L_val - L_train   dG / dO^2
    image    2.0 - 1.5 = 0.5      (1.5 - 1.0) - 0 = 0.5            2
    caption  2.0 - 1.0 = 1.0      (1.0 - 0.5) - 0 = 0.5            4
    fusion   2.0 - 1.0 = 1.0      (1.0 - 0.0) - 0 = 1.0            1
    """
    ratios = overfitting_to_generalisation(EARLIER, LATER)
    assert ratios == pytest.approx({"image": 1.0, "caption": 0.5, "fusion": 1.0})
    weights = blending_weights(EARLIER, LATER)
    assert weights == pytest.approx({"image": 2 / 7, "caption": 4 / 7, "fusion": 1 / 7})


def test_changes_count_and_not_where_a_head_ended():
    """A head that overfitted before, and learned the same since, weighs the same."""
    earlier = EARLIER | {"fusion": (1.0, 4.0)}
    later = LATER | {"fusion": (-1.0, 3.0)}
    assert blending_weights(earlier, later) == pytest.approx(blending_weights(EARLIER, LATER))
    # The same changes over all heads, in another unit: the same blend.
    double = [{k: (2 * t, 2 * v) for k, (t, v) in each.items()} for each in (EARLIER, LATER)]
    assert blending_weights(*double) == pytest.approx(blending_weights(EARLIER, LATER))


def test_blending_is_the_naive_one_over_random_losses():
    g = torch.Generator().manual_seed(0)
    for _ in range(50):
        rows = torch.rand(2, 4, 2, generator=g, dtype=torch.float64).add(0.5).tolist()
        before, after = (
            {name: (row[0], row[1]) for name, row in zip(HEADS, each, strict=True)} for each in rows
        )
        raw = []
        for name in HEADS:
            (train, val), (train_later, val_later) = before[name], after[name]
            dg, do = val - val_later, (val_later - train_later) - (val - train)
            assert overfitting_to_generalisation(before, after)[name] == pytest.approx(abs(do / dg))
            raw.append(0.0 if dg <= 0 else dg / max(do * do, FLOOR**2))
        if any(raw):
            weights = blending_weights(before, after)
            assert list(weights.values()) == pytest.approx([r / sum(raw) for r in raw])
            assert sum(weights.values()) == pytest.approx(1)


def test_edges_of_blending():
    # A validation loss that rose, or stayed: 0, and an infinite ratio where it stayed.
    later = LATER | {"image": (1.0, 2.5), "fusion": (1.0, 2.0)}
    weights = blending_weights(EARLIER, later)
    assert weights == {"image": 0.0, "caption": 1.0, "fusion": 0.0}
    assert overfitting_to_generalisation(EARLIER, later)["fusion"] == math.inf
    assert overfitting_to_generalisation(EARLIER, later)["image"] == pytest.approx(3.0)
    # No overfitting at all: finite, by the floor. 0.5 / 0.1^2 = 50 against 4 and 1.
    later = LATER | {"image": (1.5, 1.5)}
    assert blending_weights(EARLIER, later, floor=0.1)["image"] == pytest.approx(50 / 55)
    # Less overfitting than before counts by its size, as the formula has it.
    assert overfitting_to_generalisation({"a": (1.0, 3.0)}, {"a": (1.0, 2.0)}) == {"a": 1.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: blending_weights(EARLIER, EARLIER), "image 2 to 2.*keep the weights"),
        (
            lambda: blending_weights(EARLIER, LATER, floor=0.0),
            r"floor must be .* \(0, inf\)",
        ),
        (lambda: blending_weights(EARLIER, {"image": (1.0, 1.0)}), r"got \['image', 'caption'"),
        (lambda: blending_weights({}, {}), "same heads"),
        (
            lambda: overfitting_to_generalisation(EARLIER, LATER | {"fusion": (math.nan, 1.0)}),
            r"finite losses of fusion; got \(2\.0, 2\.0\) and \(nan",
        ),
        (lambda: GradientBlending({}, {}, every=0), "every must be .* got 0"),
        (lambda: GradientBlending({}, {}, every=1, floor=-1.0), r"floor must be .*; got -1"),
    ],
)
def test_blending_refuses(call, message):
    with pytest.raises(MMCLError, match=message):
        call()


# --- Gradient-Blending: in a training -------------------------------------------------------------


def test_head_losses_are_those_of_the_whole_batch_and_the_mode_stays():
    model, train, validation = small(dropout=0.9, impute="mean"), samples(50), samples(23, seed=1)
    model.encoders["image"].eval()
    found = head_losses(model, train, validation, batch_size=8)
    assert model.training
    assert not model.encoders["image"].training
    model.eval()
    for name in HEADS:
        expected = [float(model.loss(batch)[name].detach()) for batch in (train, validation)]
        assert found[name] == pytest.approx(expected)
    assert not any(p.grad is not None for p in model.parameters())
    in_double = head_losses(model.double(), train, validation, batch_size=np.int64(8))
    for name in HEADS:
        assert in_double[name] == pytest.approx(found[name], rel=1e-5)
    with pytest.raises(ShapeError, match="got 0"):
        head_losses(model, train, {})
    with pytest.raises(MMCLError, match="batch_size must be a whole number, at least 1; got 0"):
        head_losses(model, train, validation, batch_size=0)
    with pytest.raises(MissingModalityError, match="label"):
        head_losses(model, train, {m: validation[m] for m in WIDTHS})
    with pytest.raises(ShapeError, match="label"):
        head_losses(model, train, validation | {"label": validation["label"][:8]}, batch_size=8)


TRAIN, VALIDATION = samples(48), samples(60, seed=1)
SETTINGS = {"epochs": 6, "batch_size": 8, "lr": 2e-2, "progress": False}


def blending(every: int = 2) -> GradientBlending:
    return GradientBlending(TRAIN, VALIDATION, every=every)


def test_the_callback_blends_by_the_two_latest_measurements():
    model, callback = equal(small(dropout=0.3, impute="mean")), blending()
    seen: list[dict[str, tuple[float, float]]] = []

    def watch(progress):  # before the callback, on the same state
        if progress.epoch % 2 == 0:
            seen.append(head_losses(progress.method, TRAIN, VALIDATION))

    fit(model, Rows(**TRAIN), callbacks=[watch, callback], **SETTINGS)
    history = callback.history
    assert [m.epoch for m in history] == [0, 2, 4, 6]
    assert history[0].weights == dict.fromkeys(HEADS, 1.0)
    assert not history[0].blended
    for earlier, later, measured in zip(seen[:-1], seen[1:], history[1:], strict=True):
        for name in HEADS:
            assert measured.losses[name] == pytest.approx(later[name], rel=1e-6)
        fell = any(later[name][1] < earlier[name][1] for name in HEADS)
        assert measured.blended == fell
        if fell:
            assert measured.weights == pytest.approx(blending_weights(earlier, later), abs=1e-4)
    assert history[1].blended
    assert history[1].weights["image"] > history[1].weights["tags"]
    assert model.weights.tolist() == pytest.approx(list(history[-1].weights.values()))


@pytest.mark.parametrize("seed", range(5))
def test_where_no_validation_loss_fell_the_weights_stay(seed):
    model = equal(small(seed))
    callback = GradientBlending(TRAIN, VALIDATION, every=1, batch_size=7)
    for epoch in range(3):
        callback(SimpleNamespace(method=model, epoch=epoch))  # nothing is learned between
    assert [m.blended for m in callback.history] == [False] * 3
    assert callback.history[2].weights == dict.fromkeys(HEADS, 1.0)


def test_the_callback_refuses_what_it_cannot_measure():
    with pytest.raises(MMCLError, match="needs a LateFusion; got Linear"):
        blending()(SimpleNamespace(method=nn.Linear(2, 2), epoch=0))
    with pytest.raises(MMCLError, match=r"'image': 0\.0.*dict\.fromkeys"):
        blending()(SimpleNamespace(method=small(), epoch=0))


def test_a_new_training_does_not_blend_by_the_last_one():
    model = equal(small())
    model.measured.fill_(9.0)
    callback = blending()
    callback(SimpleNamespace(method=model, epoch=0))
    assert not callback.history[0].blended
    # Measured for the first time in the middle: nothing to compare with.
    other = equal(small())
    callback(SimpleNamespace(method=other, epoch=2))
    assert not callback.history[1].blended
    assert other.measured.isfinite().all()


class Stop(Exception):
    pass


@pytest.mark.parametrize(("stop", "every"), [(7, 3), (14, 5), (25, 6), (31, 4)])
def test_stop_and_resume_with_blending_is_not_stopping(tmp_path, stop, every):
    def stopping():
        calls = 0

        def apply(batch):
            nonlocal calls
            calls += 1
            if calls > stop:
                raise Stop
            return batch

        return apply

    def train(seed, callback, **kwargs):
        model = equal(small(seed, dropout=0.4, impute="mean"))
        return model, lambda: fit(
            model, Rows(**TRAIN), callbacks=[callback], **SETTINGS, **kwargs
        )  # fmt: skip

    whole = blending()
    plain, run = train(0, whole)
    run()
    kwargs = {"checkpoint": tmp_path / "a.pt", "checkpoint_every": every, "resume": True}
    with pytest.raises(Stop):
        train(0, blending(), augment=stopping(), **kwargs)[1]()
    later = blending()
    resumed, run = train(9, later, **kwargs)
    run()
    assert_same(state(resumed), state(plain))
    done = len(whole.history) - len(later.history)
    assert done > 0
    assert later.history == whole.history[done:]
