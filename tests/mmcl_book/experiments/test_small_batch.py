"""Batches of four: what its conditions are, and that a run is MoCo's in another batch."""

import pytest
import torch

from mmcl_book.experiments import moco, small, small_batch
from mmcl_core.methods import MoCo
from mmcl_core.training import fit
from tests.tiny import shrink


@pytest.fixture
def tiny(monkeypatch):
    shrink(monkeypatch)
    monkeypatch.setattr(small_batch, "EPOCHS", 1)


@pytest.mark.parametrize("condition", small_batch.CONDITIONS)
def test_each_condition_is_what_its_name_says(monkeypatch, tiny, condition: str) -> None:
    seen: list[tuple] = []
    monkeypatch.setattr(
        small_batch, "fit", lambda method, data, **how: seen.append((method, len(data), how))
    )
    config = small_batch.CONDITIONS[condition]
    small_batch.run(3, **config)
    ((method, _, how),) = seen
    assert how["augment"] is moco.two_crops
    assert (how["batch_size"], how["lr"], how["seed"]) == (4, config["lr"], 3)
    assert method.temperature == config["temperature"]
    if condition == "a queue":
        assert isinstance(method, MoCo)
        assert len(method.queue.keys) == moco.QUEUE
        assert method.key.momentum == moco.MOMENTUM
    else:
        assert isinstance(method, moco.InBatch)
        assert method.both_views == ("both views" in condition)


def test_it_is_moco_in_another_batch(monkeypatch, tiny) -> None:
    """The same weights as by hand; the measures are those of `moco.measure`."""
    config = small_batch.CONDITIONS["a queue"]
    one = small_batch.run(5, **config)
    method = moco.new_moco(
        5, set(), queue=moco.QUEUE, momentum=moco.MOMENTUM, temperature=config["temperature"]
    )
    fit(
        method, small.scenes(small.PAIRS, 5), augment=moco.two_crops, epochs=1, batch_size=4,
        lr=config["lr"], seed=5, progress=False,
    )  # fmt: skip
    torch.manual_seed(0)
    assert one == moco.measure(moco.Trained(method, [], 0))
    assert "recall @1" not in one
    assert "drift 1" not in one


@pytest.mark.usefixtures("tiny")
def test_trials_are_measured_on_other_scenes() -> None:
    for tried in small_batch.TRIALS.values():
        assert {of["asked"] for of in tried.settings.values()} == {small.VALIDATION_SEED}
    config = dict(next(iter(small_batch.TRIALS["in the batch"].settings.values())))
    one = small_batch.run(0, **config)
    assert one != small_batch.run(0, **config | {"asked": small.TEST_SEED})
