"""The MoCo experiment: crops, watched keys, drift and its measures, against loops."""

import math

import pytest
import torch

from mmcl_book.experiments import moco, small
from mmcl_core import losses
from mmcl_core.data.augment import crop
from mmcl_core.errors import MMCLError
from mmcl_core.methods import MoCo
from tests.compare import unit
from tests.descent import steps
from tests.tiny import SCENES, shrink


@pytest.fixture
def tiny(monkeypatch):
    """Few scenes, two epochs of one step."""
    shrink(monkeypatch)


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, small.SIZE, small.SIZE, generator=torch.Generator().manual_seed(seed))


# --- crops ----------------------------------------------------------------------------------------


def test_two_crops_are_drawn_each_by_itself() -> None:
    batch = {"image": pictures(2), "index": torch.arange(2)}
    kept = batch["image"].clone()
    views = moco.two_crops(batch)
    assert torch.equal(batch["image"], kept)
    assert views.keys() == {"image", "image_view", "index"}
    assert not torch.equal(views["image"], views["image_view"])
    assert not torch.equal(views["image"], kept)
    torch.manual_seed(3)
    first = moco.two_crops(batch)["image"]
    torch.manual_seed(3)
    assert torch.equal(crop(moco.CROP)(batch)["image_view"], first)


# --- methods --------------------------------------------------------------------------------------


def test_negatives_in_the_batch_by_a_loop() -> None:
    method = moco.new_in_batch(0)
    batch = moco.two_crops({"image": pictures(5)})
    x, y = (method.query(batch[name]).detach().double() for name in ("image", "image_view"))
    total = 0.0
    for queries, keys in ((x, y), (y, x)):
        for i in range(5):
            exps = [math.exp(float(queries[i] @ keys[j]) / moco.TEMPERATURE) for j in range(5)]
            total -= math.log(exps[i] / sum(exps))
    assert method.loss(batch)["total"].item() == pytest.approx(total / 10, rel=1e-5)
    assert torch.equal(method.embed(batch), method.query(batch["image"]))


def test_negatives_of_both_views_by_a_loop() -> None:
    """SimCLR's loss: of 2B views each has one partner, and all others are negatives."""
    method = moco.new_in_batch(0, both_views=True, temperature=0.3)
    batch = moco.two_crops({"image": pictures(4)})
    views = torch.cat([method.query(batch[name]).detach() for name in ("image", "image_view")])
    views, total = views.double(), 0.0
    for i in range(8):
        exps = [math.exp(float(views[i] @ views[j]) / 0.3) for j in range(8)]
        total -= math.log(exps[(i + 4) % 8] / (sum(exps) - exps[i]))
    assert method.loss(batch)["total"].item() == pytest.approx(total / 8, rel=1e-5)


def test_fresh_keys_are_those_of_the_key_encoder_now(tiny) -> None:
    """Queue of three batches, made anew every two steps; the pictures are not mixed up."""
    method = moco.new_fresh(0, queue=12, momentum=0.5, every=2)
    batches = [moco.two_crops({"image": pictures(4, seed)}) for seed in range(6)]
    for step, batch in enumerate(batches):
        before = method.queue.keys.clone()
        loss = method.loss(batch)["total"].item()
        keys = method.queue.keys
        if step % 2 == 0 and step:
            held = [one["image_view"] for one in batches[max(step - 3, 0) : step]]
            expected = method.key(torch.cat(held))
            places = (int(method.queue.pointer) - len(expected) + torch.arange(len(expected))) % 12
            torch.testing.assert_close(keys[places], expected)
            assert not torch.equal(keys, before)
        else:
            assert torch.equal(keys, before)
        again = losses.queue_info_nce(
            method.query(batch["image"]), method.key(batch["image_view"]), keys, method.temperature
        )
        assert loss == pytest.approx(again.item(), rel=1e-5)
        optimise(method, batch)


def optimise(method: MoCo, batch: dict[str, torch.Tensor]) -> None:
    """A step of gradient descent by the last loss of a batch."""
    method.loss(batch)["total"].backward()
    for weight in method.query.parameters():
        weight.data -= 0.1 * weight.grad
        weight.grad = None
    method.after_step()


def test_watching_changes_nothing_and_sees_the_keys(tiny) -> None:
    batches = [moco.two_crops({"image": pictures(8, seed)}) for seed in range(4)]
    watched = moco.new_moco(3, {0, 2, 4}, queue=16, momentum=0.5, followers=(0.0, 0.9))
    torch.manual_seed(3)
    plain = MoCo(small.image_encoder(), dim=small.DIM, queue=16, momentum=0.5, temperature=0.2)
    assert steps(watched, batches) == steps(plain, batches)
    torch.testing.assert_close(watched.queue.keys, plain.queue.keys)
    assert {m: list(seen) for m, seen in watched.seen.items()} == {
        m: [0, 2, 4] for m in (0.5, 0.0, 0.9)
    }
    torch.testing.assert_close(watched.seen[0.5][4], plain.key(watched.pictures))
    with torch.no_grad():  # a copy with momentum 0 is the query encoder
        torch.testing.assert_close(watched.seen[0.0][4], plain.query(watched.pictures))


def test_followers_are_means_of_the_weights_that_were(tiny) -> None:
    method = moco.new_moco(0, set(), queue=16, followers=(0.8,))
    weights = [method.query.head[0].weight.detach().clone()]
    for seed in range(3):
        steps(method, [moco.two_crops({"image": pictures(8, seed)})])
        weights.append(method.query.head[0].weight.detach().clone())
    shares = [0.8**3, 0.2 * 0.8**2, 0.2 * 0.8, 0.2]
    expected = sum(share * weight for share, weight in zip(shares, weights, strict=True))
    torch.testing.assert_close(method.copies[1].network.head[0].weight, expected)


# --- measures -------------------------------------------------------------------------------------


def test_drift_is_the_loop_over_pictures() -> None:
    seen = {0: unit(12, 4, 0), 3: unit(12, 4, 1), 5: unit(12, 4, 2)}
    for age, old in ((2, seen[3]), (5, seen[0]), (64, seen[0])):
        new = seen[5]
        cosines = [[float(a @ b) for b in new] for a in old]
        own = sum(1 - cosines[i][i] for i in range(12)) / 12
        apart = [1 - float(new[i] @ new[j]) for i in range(12) for j in range(12) if i != j]
        found = sum(row.index(max(row)) == i for i, row in enumerate(cosines)) / 12
        told = moco.drift(seen, 5, age)
        assert told == pytest.approx((own, sum(apart) / len(apart), found), abs=1e-6)


def test_a_key_does_not_drift_from_itself() -> None:
    keys = unit(20, 8, 0)
    assert moco.drift({4: keys}, 4, 0)[::2] == (0.0, 1.0)


def test_recall_and_uniformity_by_loops(tiny) -> None:
    method = moco.new_in_batch(1)
    told = moco.quality(method, 12)
    torch.manual_seed(moco.VIEWS_SEED)
    batch = moco.two_crops(small.scenes(SCENES, 12).batch(range(SCENES)))
    with torch.no_grad():
        x, y = (method.query(batch[name]) for name in ("image", "image_view"))
    cosines = (x @ y.T).tolist()
    others = [row[:i] + row[i + 1 :] for i, row in enumerate(cosines)]
    found = [max(rest) < cosines[i][i] - 1e-6 for i, rest in enumerate(others)]
    assert told["recall"] == sum(found) / SCENES
    assert told["alignment"] == pytest.approx((x - y).square().sum(1).mean().item(), abs=1e-6)
    apart = torch.pdist(x.double()).square().mul(-2).exp().mean().log().item()
    assert told["uniformity"] == pytest.approx(apart, abs=1e-5)


def test_measuring_keeps_the_random_state(tiny) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    method = moco.new_in_batch(1)
    torch.manual_seed(7)
    moco.quality(method, 12)
    assert torch.equal(torch.rand(3), expected)


def test_keys_that_never_move_do_not_drift(tiny) -> None:
    measured = moco.run(0, momentum=1, queue=8)
    for age in moco.AGES:
        assert measured[f"drift {age}"] == 0
        assert measured[f"found {age}"] == 1
    assert 0 < measured["spread"] < 1


def test_what_is_measured_without_a_queue_and_without_a_training(tiny) -> None:
    queue, batch, none = (
        set(moco.run(0, training=of, queue=8)) for of in ("queue", "batch", "none")
    )
    assert batch - none == {f"recall @{epoch}" for epoch in range(moco.EPOCHS + 1)}
    assert none < batch < queue
    assert len(queue - batch) == 2 * len(moco.AGES) + 1
    first = moco.new_moco(5, set()).query.state_dict()
    trained = moco.train(5, training="none").method.query.state_dict()
    assert all(torch.equal(first[name], trained[name]) for name in first)


def test_trials_are_measured_on_other_scenes(tiny) -> None:
    one, two = (
        moco.run(0, training="batch", asked=seed)
        for seed in (small.TEST_SEED, small.VALIDATION_SEED)
    )
    assert one["alignment"] != two["alignment"]
    assert one["size"] != two["size"]  # those of the probe, too


@pytest.mark.parametrize("condition", moco.CONDITIONS)
def test_each_condition_is_what_its_name_says(tiny, monkeypatch, condition: str) -> None:
    seen: list[dict] = []
    monkeypatch.setattr(moco, "fit", lambda method, data, **how: seen.append(how))
    config = moco.CONDITIONS[condition]
    method = moco.train(0, **config).method
    assert bool(seen) == (condition != "untrained")
    if condition == "untrained":
        return
    assert seen[0]["augment"] is moco.two_crops
    assert seen[0]["lr"] == config["lr"]
    assert seen[0]["epochs"] == moco.EPOCHS
    if "in the batch" in condition:
        assert isinstance(method, moco.InBatch)
        assert method.both_views == ("both views" in condition)
        return
    assert isinstance(method, moco.FreshKeys if "fresh" in condition else moco.Watched)
    assert method.queue.keys.shape[1] == small.DIM
    method.queue.check(moco.BATCH)
    if " keys, " in condition:
        keys, momentum = condition.split(" keys, ")
        assert (len(method.queue.keys), method.key.momentum) == (int(keys), float(momentum))
        assert moco.name_of(int(keys), float(momentum)) == condition


def test_the_chosen_queue_is_in_the_grid() -> None:
    chosen = moco.CONDITIONS["a queue"]
    assert moco.name_of(moco.QUEUE, moco.MOMENTUM) == "a queue"
    grid = {moco.name_of(k, m) for m, lengths in moco.GRID.items() for k in lengths}
    assert grid <= moco.CONDITIONS.keys()
    for name in grid:
        assert moco.CONDITIONS[name]["lr"] == chosen["lr"]
        assert moco.CONDITIONS[name]["temperature"] == chosen["temperature"]


def test_unknown_trainings_are_named() -> None:
    with pytest.raises(MMCLError, match="'both views' or 'none'; got 'label'"):
        moco.train(0, training="label")


def test_keys_are_watched_at_the_end_and_before() -> None:
    assert max(moco.AGES) <= moco.EPOCHS * (small.PAIRS // moco.BATCH)  # no age is cut off
    assert max(moco.AGES) * moco.BATCH == max(moco.LENGTHS)  # the oldest key of the longest queue
