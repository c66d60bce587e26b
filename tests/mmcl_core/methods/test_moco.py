"""MoCo: its queue, its momentum encoder, and the authors' order of the steps."""

import copy
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmcl_core.batches import Batch
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.augment import paraphrase
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.errors import MissingModalityError, MMCLError, ShapeError
from mmcl_core.evaluation import recall_at_k
from mmcl_core.methods import MoCo, moco
from mmcl_core.methods.moco import KeyQueue, MomentumCopy
from mmcl_core.training import fit, load_checkpoint, save_checkpoint
from tests import reference
from tests.compare import unit
from tests.mmcl_core.test_distributed import scenes


def small(modality: str = "image", seed: int = 0, **kwargs: Any) -> MoCo:
    torch.manual_seed(seed)
    if modality == "image":
        encoder: nn.Module = ImageEncoder(size=16, width=32)
    else:
        encoder = CaptionEncoder(9, width=32, max_length=8)
    return MoCo(encoder, modality=modality, **{"dim": 8, "queue": 12} | kwargs)


def double(batch: Batch) -> Batch:
    return {name: v.double() if v.is_floating_point() else v for name, v in batch.items()}


# --- what a step may change; the tests of MCT use these, too --------------------------------------


def state(method: nn.Module) -> Batch:
    return {name: value.clone() for name, value in method.state_dict().items()}


def assert_same_state(method: nn.Module, expected: Batch) -> None:
    """Bit for bit."""
    found = method.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def step(method: Any, batch: Batch, rate: float = 0.1) -> None:
    method.zero_grad()
    method.loss(batch)["total"].backward()
    with torch.no_grad():
        for p in method.parameters():
            if p.grad is not None:
                p -= rate * p.grad
    method.after_step()


class Views:
    """22 samples for `fit`: 5 steps an epoch in batches of 4."""

    def __init__(self) -> None:
        self.values = scenes(22)

    def __len__(self) -> int:
        return 22

    def batch(self, indices: list[int]) -> Batch:
        return {name: values[indices] for name, values in self.values.items()}


class Stop(Exception):
    pass


FIT: dict[str, Any] = {"epochs": 2, "batch_size": 4, "lr": 0.01, "progress": False}


def noise(batch: Batch) -> Batch:
    return batch | {"image_view": batch["image_view"] + 0.1 * torch.randn_like(batch["image"])}


def in_step(number: int, then: Callable[[Batch], Batch]) -> Callable[[Batch], Batch]:
    """An augmentation that does something else in one step, counted from 1."""
    calls = []

    def augment(batch: Batch) -> Batch:
        calls.append(batch)
        batch = noise(batch)
        return then(batch) if len(calls) == number else batch

    return augment


def assert_a_failure_in_fit_leaves_all_as_it_was(build: Callable[[], Any]) -> None:
    """The third step fails, each time in another way; then another training goes on from there."""
    expected = build()
    with pytest.raises(Stop):
        fit(expected, Views(), augment=in_step(3, stop), **FIT)
    before = state(expected)

    for name in ("image", "image_view"):
        method = build()
        spoil = in_step(3, lambda b, name=name: b | {name: b[name] * float("nan")})
        with pytest.raises(MMCLError, match="rows hold NaN or infinity"):
            fit(method, Views(), augment=spoil, **FIT)
        assert_same_state(method, before)

    # Loss and its gradient are computed, and the gradient is not finite.
    method = build()
    plain, calls = method.loss, []

    def loss(batch: Batch) -> Batch:
        calls.append(batch)
        parts = plain(batch)
        return (
            parts | {"total": parts["total"] + (0 * parts["total"]).sqrt()} if calls[2:] else parts
        )

    method.loss = loss
    with pytest.raises(MMCLError, match=r"step 3 .* grad_norm = nan"):
        fit(method, Views(), augment=noise, **FIT)
    assert_same_state(method, before)
    method.loss = plain

    # What the failed step has left in memory joins nothing later on.
    for both in (expected, method):
        step(both, scenes(4, seed=7))
    assert_same_state(method, state(expected))


def stop(batch: Batch) -> Batch:
    raise Stop


def assert_resumed_is_never_stopped(build: Callable[[int], Any], path: Path) -> None:
    whole = build(0)
    history = fit(whole, Views(), augment=noise, **FIT)
    kwargs = FIT | {"checkpoint": path, "checkpoint_every": 3}
    with pytest.raises(Stop):
        fit(build(0), Views(), augment=in_step(8, stop), **kwargs)
    resumed = build(9)
    again = fit(resumed, Views(), augment=noise, resume=True, **kwargs)
    assert_same_state(resumed, state(whole))
    assert again["total"] == history["total"]
    assert len(history) == 10


# --- the queue ------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 6), min_size=1, max_size=9), st.booleans(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_queue_is_first_in_first_out_with_its_labels(
    sizes: list[int], codes: bool, seed: int
) -> None:
    """As Python's deque, over several rounds, and where a batch goes over the end."""
    torch.manual_seed(seed)
    kind = {"labels": 1, "dtype": torch.int64} if codes else {"labels": 3}
    queue = KeyQueue(6, 4, **kind)
    assert not queue.labels.any()
    kept = deque(zip(queue.keys.clone(), queue.labels.clone(), strict=True), maxlen=6)
    for size in sizes:
        keys = F.normalize(torch.randn(size, 4), dim=1)
        labels = torch.randint(-(2**62), 2**62, (size, 1)) if codes else torch.rand(size, 3)
        queue.enqueue(keys, labels)
        kept.extend(zip(keys, labels, strict=True))
        keys, labels = (torch.stack(column) for column in zip(*kept, strict=True))
        assert torch.equal(queue.keys.roll(-int(queue.pointer), 0), keys)
        assert torch.equal(queue.labels.roll(-int(queue.pointer), 0), labels)
    assert int(queue.pointer) == sum(sizes) % 6


def test_queue_starts_with_random_unit_vectors() -> None:
    queue = KeyQueue(500, 16)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(500))
    assert float(queue.keys.mean(0).norm()) < 0.2  # all around
    assert queue.labels.shape == (500, 0)
    assert set(dict(queue.named_buffers())) == {"keys", "labels", "pointer"}
    assert not list(queue.parameters())


def test_queue_takes_keys_of_another_type() -> None:
    queue = KeyQueue(4, 3, labels=2)
    keys, labels = unit(2, 3, 0), torch.tensor([[1, 0], [0, 1]])
    queue.enqueue(keys.requires_grad_(), labels)
    assert queue.keys.dtype == queue.labels.dtype == torch.float32
    assert not queue.keys.requires_grad
    assert torch.equal(queue.keys[:2], keys.detach().float())
    assert torch.equal(queue.labels[:2], labels.float())


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (13, "the queue has 12 keys, fewer than the batch of 13: lengthen it"),
        (5, "12 keys and a batch of 5: take a queue of 10, for example"),
        (8, "12 keys and a batch of 8: take a queue of 8, for example"),
    ],
)
def test_batches_that_do_not_fit_the_queue(size: int, message: str) -> None:
    queue = KeyQueue(12, 4)
    with pytest.raises(ShapeError, match=message):
        queue.check(size)
    for good in (1, 2, 3, 4, 6, 12):
        queue.check(good)


def test_the_batch_that_must_fit_is_that_of_all_processes(monkeypatch) -> None:
    monkeypatch.setattr(moco, "world_size", lambda: 2)
    queue = KeyQueue(12, 4)
    for good in (1, 2, 3, 6):
        queue.check(good)
    with pytest.raises(ShapeError, match="12 keys and a batch of 8"):
        queue.check(4)
    with pytest.raises(ShapeError, match="fewer than the batch of 24"):
        queue.check(12)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.ones(4, 3), r"expected labels \[B, 2\], the width the queue .* got \[4, 3\]"),
        (torch.ones(4, 1), r"expected labels \[B, 2\], .* got \[4, 1\]"),
        (torch.ones(4), r"expected labels \[B, 2\], .* got \[4\]"),
        (torch.ones(4, 2, 1), r"expected labels \[B, 2\], .* got \[4, 2, 1\]"),
        (None, r"expected labels \[B, 2\], .* got none"),
    ],
)
def test_labels_that_do_not_fit_are_not_enqueued(labels: Tensor | None, message: str) -> None:
    queue = KeyQueue(12, 4, labels=2)
    before = state(queue)
    with pytest.raises(ShapeError, match=message):
        queue.check_labels(labels)
    with pytest.raises(ShapeError, match=message):
        queue.enqueue(unit(4, 4, 0), labels)
    assert_same_state(queue, before)
    for good in (1, 4, 12):
        queue.check_labels(torch.ones(good, 2))


def test_a_queue_without_labels_takes_none() -> None:
    queue = KeyQueue(12, 4)
    for good in (None, torch.ones(4, 0)):
        queue.check_labels(good)
        queue.enqueue(unit(4, 4, 0), good)
    assert int(queue.pointer) == 8
    before = state(queue)
    with pytest.raises(ShapeError, match=r"expected labels \[B, 0\], .* got \[4, 1\]"):
        queue.enqueue(unit(4, 4, 1), torch.ones(4, 1))
    assert_same_state(queue, before)


@pytest.mark.parametrize(("length", "dim"), [(0, 4), (-1, 4), (4, 0)])
def test_a_queue_of_nothing(length: int, dim: int) -> None:
    with pytest.raises(MMCLError, match=r"(length|dim) must be .* at least 1; got (0|-1)$"):
        KeyQueue(length, dim)


# --- the momentum encoder -------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


def numbers(module: nn.Module) -> list[float]:
    return [x for p in module.parameters() for x in p.detach().flatten().tolist()]


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.5, 0.99, 1.0])
def test_momentum_is_the_formula(momentum: float) -> None:
    net = network()
    ours = MomentumCopy(net, momentum)
    expected = numbers(net)
    assert numbers(ours) == expected
    for _ in range(4):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        ours.follow(net)
        new = numbers(net)
        expected = [momentum * k + (1 - momentum) * q for k, q in zip(expected, new, strict=True)]
        assert numbers(ours) == pytest.approx(expected, rel=1e-13, abs=1e-15)
        if momentum in (0, 1):  # exactly
            assert numbers(ours) == expected


def test_momentum_copy_has_no_gradient_and_its_own_buffers() -> None:
    net = network()
    ours = MomentumCopy(net, 0.5)
    assert not any(p.requires_grad for p in ours.parameters())
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    net(x).sum().backward()  # moves the running mean of this one alone
    assert not ours(x.detach()).requires_grad
    assert not ours(x).requires_grad
    buffers = {name: b.clone() for name, b in ours.named_buffers()}
    assert int(net[1].num_batches_tracked) == 1
    assert int(ours.network[1].num_batches_tracked) == 2
    ours.follow(net)
    for name, value in ours.named_buffers():
        assert torch.equal(value, buffers[name])


@pytest.mark.parametrize("momentum", [-0.1, 1.5, float("nan")])
def test_bad_momentum(momentum: float) -> None:
    with pytest.raises(MMCLError, match=rf"momentum must be a number in \[0, 1\]; got {momentum}"):
        small(momentum=momentum)


# --- a training -----------------------------------------------------------------------------------


def authors(
    model: MoCo, batches: list[Batch], momentum: float, temperature: float, rate: float
) -> tuple[list[float], nn.Module, nn.Module, Tensor]:
    """Their `builder.py` and `main_moco.py`, in their order, with the queue as columns."""
    query = nn.ModuleList([copy.deepcopy(model.query.encoder), copy.deepcopy(model.query.head)])
    key, queue, pointer = copy.deepcopy(query), model.queue.keys.T.clone(), 0
    optimizer = torch.optim.SGD(query.parameters(), lr=rate)

    def embed(net: nn.ModuleList, values: Tensor) -> Tensor:
        vectors = net[1](net[0](values).pooled)
        return vectors / vectors.square().sum(1, keepdim=True).sqrt()

    def follow() -> None:
        for q, k in zip(query.parameters(), key.parameters(), strict=True):
            k.data = k.data * momentum + q.data * (1 - momentum)

    losses = []
    for batch in batches:
        q = embed(query, batch[model.modality])
        with torch.no_grad():
            follow()
            k = embed(key, batch[f"{model.modality}_view"])
        positive = torch.einsum("nc,nc->n", q, k)[:, None]
        negative = torch.einsum("nc,ck->nk", q, queue.clone())
        logits = torch.cat([positive, negative], dim=1) / temperature
        loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))
        queue[:, pointer : pointer + len(k)] = k.T
        pointer = (pointer + len(k)) % queue.shape[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    follow()  # what their next step would begin with
    return losses, query, key, queue.T


@pytest.mark.parametrize("modality", ["image", "caption"])
def test_training_is_that_of_the_authors(modality: str) -> None:
    """Enqueue and momentum at the end of a step, not in it: the same circle."""
    model = small(modality, momentum=0.7, temperature=0.15).double()
    batches = [double(scenes(4, seed=i)) for i in range(7)]
    losses, query, key, queue = authors(model, batches, 0.7, 0.15, rate=0.2)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.2)
    start, found = numbers(model.query), []
    for batch in batches:
        loss = model.loss(batch)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step()
        found.append(float(loss.detach()))
    assert found == pytest.approx(losses, rel=1e-11)
    assert numbers(model.query) == pytest.approx(numbers(query), rel=1e-10, abs=1e-12)
    assert numbers(model.key) == pytest.approx(numbers(key), rel=1e-10, abs=1e-12)
    torch.testing.assert_close(model.queue.keys, queue, rtol=1e-10, atol=1e-12)
    assert numbers(model.query) != pytest.approx(start, abs=1e-2)  # it has moved


def test_loss_is_the_formula_and_the_batch_holds_no_negatives() -> None:
    model = small(queue=8, momentum=0.5).double()
    for i in range(3):
        step(model, double(scenes(4, seed=i)), rate=0.5)
    batch = double(scenes(4, seed=3))
    q, k = model.embed(batch).detach(), model.key(batch["image_view"])
    by_query = model.embed({"image": batch["image_view"]}).detach()
    assert float((k - by_query).abs().max()) > 1e-3
    expected = reference.queue_info_nce(q, k, model.queue.keys, 0.2)
    assert float(model.loss(batch)["total"].detach()) == pytest.approx(expected, rel=1e-10)
    each = [model.loss({n: v[i : i + 1] for n, v in batch.items()})["total"] for i in range(4)]
    assert float(torch.stack(each).mean().detach()) == pytest.approx(expected, rel=1e-10)


def test_only_the_query_encoder_is_trained() -> None:
    model = small()
    assert model.encoders == {"image": model.query.encoder}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"query.{name}" for name, _ in model.query.named_parameters()}
    model.loss(scenes(4))["total"].backward()
    for name, p in model.named_parameters():
        assert (p.grad is None) == name.startswith("key."), name


@pytest.mark.parametrize("modality", ["image", "caption"])
def test_embeds_the_query(modality: str) -> None:
    model, batch = small(modality), scenes(5)
    vectors = model.embed(batch)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    assert torch.equal(vectors, model.query(batch[modality]))
    assert vectors.requires_grad


# --- steps that fail ------------------------------------------------------------------------------


BAD_BATCHES = [
    (lambda b: {"image": b["image"]}, MissingModalityError, r"image_view not in.*\['image'\]"),
    (lambda b: {"caption": b["caption"]}, MissingModalityError, "image and image_view not in"),
    (lambda b: b | {"image": b["image"][:2]}, ShapeError, "'image': 2, 'image_view': 4"),
    (lambda b: {n: v[:0] for n, v in b.items()}, ShapeError, "at least one, in all"),
    (lambda b: scenes(5), ShapeError, "12 keys and a batch of 5"),
    (lambda b: scenes(16), ShapeError, "12 keys, fewer than the batch of 16"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        *BAD_BATCHES,
        (lambda b: b | {"image": b["image"] * float("inf")}, MMCLError, "queries: 4 of 4 rows"),
        (lambda b: b | {"image_view": b["image"] * float("nan")}, MMCLError, "positives: 4 of 4"),
    ],
)
def test_a_loss_that_raises_leaves_all_as_it_was(change, error, message: str) -> None:
    model = small()
    step(model, scenes(4))
    before = state(model)
    with pytest.raises(error, match=message):
        model.loss(change(scenes(4, seed=1)))
    assert_same_state(model, before)


def test_a_loss_without_a_step_leaves_all_as_it_was() -> None:
    model = small()
    step(model, scenes(4))
    before = state(model)
    model.loss(scenes(4, seed=1))["total"].backward()
    assert_same_state(model, before)
    other = copy.deepcopy(model)
    for one in (model, other):  # the keys of the last loss alone join the queue
        step(one, scenes(4, seed=2))
    model.loss(scenes(4, seed=5))
    assert_same_state(model, state(other))


def test_a_failure_in_fit_leaves_all_as_it_was() -> None:
    assert_a_failure_in_fit_leaves_all_as_it_was(small)


def test_a_loss_in_eval_mode_keeps_no_keys() -> None:
    model = small().eval()
    before = state(model.queue)
    model.loss(scenes(4))
    model.after_step()
    assert_same_state(model.queue, before)
    model.train().loss(scenes(4))
    model.after_step()
    assert int(model.queue.pointer) == 4
    model.after_step()  # they join it once
    assert int(model.queue.pointer) == 4


@pytest.mark.parametrize("kwargs", [{"temperature": 0.0}, {"temperature": float("nan")}])
def test_bad_temperature(kwargs: dict[str, float]) -> None:
    with pytest.raises(MMCLError, match="temperature must be above 0 and finite"):
        small(**kwargs)


def test_an_encoder_without_a_width() -> None:
    with pytest.raises(MMCLError, match="Linear has no `width`"):
        MoCo(nn.Linear(2, 2))
    with pytest.raises(MMCLError, match="queue must be a whole number, at least 1; got 0"):
        small(queue=0)


# --- stop and go on -------------------------------------------------------------------------------


def test_state_dict_brings_it_all_back(tmp_path: Path) -> None:
    model, other = small(momentum=0.5), small(seed=4, momentum=0.5)
    for i in range(4):
        step(model, scenes(4, seed=i))
    other.load_state_dict(model.state_dict())
    save_checkpoint(tmp_path / "a.pt", model)
    third = small(seed=5, momentum=0.5)
    load_checkpoint(tmp_path / "a.pt", third)
    for one in (model, other, third):
        step(one, scenes(4, seed=9))
    assert_same_state(other, state(model))
    assert_same_state(third, state(model))


@pytest.mark.parametrize("modality", ["image", "caption"])
def test_a_resumed_training_is_one_that_never_stopped(modality: str, tmp_path: Path) -> None:
    assert_resumed_is_never_stopped(lambda seed: small(modality, seed), tmp_path / "a.pt")


# --- warm start -----------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["image", "caption"])
def test_warm_start_fills_the_queue_and_the_first_loss_meets_those_keys(modality: str) -> None:
    model = small(modality).double()
    view = f"{modality}_view"
    batches = [double(scenes(size, seed=size)) for size in (4, 6, 2)]
    before = state(model)
    model.warm_start({name: batch[name] for name in (modality, view)} for batch in batches)
    # Both encoders are still equal, so the keys are the embeddings of the views.
    keys = torch.cat([model.embed({modality: batch[view]}).detach() for batch in batches])
    torch.testing.assert_close(model.queue.keys, keys, rtol=1e-12, atol=1e-13)
    after = state(model)
    assert [n for n in after if not torch.equal(after[n], before[n])] == ["queue.keys"]

    batch = double(scenes(4, seed=7))
    q, k = (model.embed({modality: batch[name]}).detach() for name in (modality, view))
    expected = reference.queue_info_nce(q, k, keys, 0.2)
    assert float(model.loss(batch)["total"].detach()) == pytest.approx(expected, rel=1e-10)


def test_warm_start_enqueues_keys_of_the_momentum_encoder() -> None:
    """As after a step: those of the views replace the oldest; of too many, the last stay."""
    model = small(momentum=0.5).double()
    for i in range(2):
        step(model, double(scenes(4, seed=i)), rate=0.5)
    before = model.queue.keys.clone()
    batches = [double(scenes(4, seed=i)) for i in range(2, 6)]
    keys = torch.stack([model.key(batch["image_view"]) for batch in batches])
    by_query = model.embed({"image": batches[0]["image_view"]}).detach()
    assert float((keys[0] - by_query).abs().max()) > 1e-3
    model.warm_start(batches[:2])
    expected = torch.cat([keys[1], before[4:8], keys[0]])
    torch.testing.assert_close(model.queue.keys, expected, rtol=1e-12, atol=1e-13)
    assert int(model.queue.pointer) == 4
    model.warm_start(batches)
    expected = torch.cat([keys[2], keys[3], keys[1]])
    torch.testing.assert_close(model.queue.keys, expected, rtol=1e-12, atol=1e-13)
    model.after_step()  # and no step brings them again
    assert int(model.queue.pointer) == 8
    torch.testing.assert_close(model.queue.keys, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("change", "error", "message"), BAD_BATCHES)
def test_warm_start_checks_each_batch_as_loss_does(change, error, message: str) -> None:
    """A bad one is not taken; those before it were."""
    model = small()
    step(model, scenes(4))
    before = state(model)
    model.warm_start([])
    with pytest.raises(error, match=message):
        model.warm_start([change(scenes(4, seed=2))])
    assert_same_state(model, before)
    other = copy.deepcopy(model)
    other.warm_start([scenes(4, seed=1)])
    with pytest.raises(error, match=message):
        model.warm_start([scenes(4, seed=1), change(scenes(4, seed=2)), scenes(4, seed=3)])
    assert_same_state(model, state(other))


def test_missing_modalities_are_named() -> None:
    with pytest.raises(MissingModalityError, match=r"embeds image; .* holds \['caption'\]"):
        small().embed({"caption": torch.ones(2, 3, dtype=torch.int64)})


# --- it learns ------------------------------------------------------------------------------------


def test_it_learns_that_paraphrases_say_the_same() -> None:
    """Recall ends at 0.46 to 0.80, by seed; at 0.01 if a caption is paired with the next one's."""
    lab = ShapesCaptions(256)
    torch.manual_seed(0)
    encoder = CaptionEncoder(len(lab.tokenizer), width=32)
    model = MoCo(encoder, modality="caption", dim=16, queue=128, momentum=0.98)

    def recall() -> float:
        with torch.no_grad():
            one, other = (model.embed({"caption": lab.sentences[:, i]}) for i in (0, 1))
        return recall_at_k(one, other, 1)

    before = recall()
    fit(
        model, lab, epochs=10, batch_size=32, lr=1e-2, progress=False,
        augment=paraphrase(lab, view=True),
    )  # fmt: skip
    assert before < 0.1
    assert recall() > 0.3
