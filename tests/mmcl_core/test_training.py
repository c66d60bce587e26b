"""fit() against a plain loop, and stopping and resuming against not stopping.

The methods and data here are made for the tests: `fit` knows none of the library's own.
"""

import io
import json
import math
import os
import pickle
import random
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmcl_core import training
from mmcl_core.checkpoints import made_with
from mmcl_core.encoders import CaptionEncoder, Encoded, ImageEncoder
from mmcl_core.errors import CheckpointError, MMCLError, ShapeError
from mmcl_core.methods import CLIP, FDT, GMC, MCT, LateFusion, MoCo
from mmcl_core.methods.fdt import Cooling
from mmcl_core.training import (
    History,
    Progress,
    fit,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)

SCHEDULES = ["one_cycle", "cosine", "constant"]
N, BATCH = 22, 4  # 5 steps an epoch, 2 samples left out


class Towers(nn.Module):
    """Two linear towers, dropout, a scalar, and a buffer that only after_step() moves."""

    def __init__(self, width: int = 3, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.image = nn.Linear(6, width)
            self.caption = nn.Linear(5, width, bias=False)
        # Not contiguous, as weights in channels-last are not: optimisers must not mix that up.
        self.caption.weight = nn.Parameter(self.caption.weight.detach().T.contiguous().T)
        self.drop = nn.Dropout(0.2)
        self.log_scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("count", torch.tensor(0))

    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        return F.normalize(self.image(batch["image"]), dim=1)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = F.normalize(self.image(self.drop(batch["image"])), dim=1)
        y = F.normalize(self.caption(batch["caption"]), dim=1)
        logits = self.log_scale.exp() * x @ y.T
        matching = F.cross_entropy(logits, torch.arange(len(x), device=x.device))
        centring = (x.mean(0) - self.centre).square().sum()
        return {"matching": matching, "centring": centring, "total": matching + 0.1 * centring}

    @torch.no_grad()
    def after_step(self) -> None:
        self.centre.lerp_(self.image.weight.sum(1), 0.1)
        self.count += 1


class Pairs:
    def __init__(self, n: int = N) -> None:
        g = torch.Generator().manual_seed(1)
        self.image, self.caption = torch.randn(n, 6, generator=g), torch.randn(n, 5, generator=g)
        self.asked: list[list[int]] = []  # batches, but not the samples that tell data apart

    def __len__(self) -> int:
        return len(self.image)

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        if len(indices) == BATCH:
            self.asked.append(list(indices))
        return {"image": self.image[indices], "caption": self.caption[indices]}


def noisy(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch | {"image": batch["image"] + 0.1 * torch.randn_like(batch["image"])}


class Stop(Exception):
    pass


def stopping(after: int, augment=noisy):
    """An augmentation that stops the training in the step after so many."""
    left = [after]

    def call(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if left[0] == 0:
            raise Stop
        left[0] -= 1
        return augment(batch)

    return call


def train(method: nn.Module | None = None, data=None, **kwargs) -> tuple[nn.Module, History]:
    method = Towers() if method is None else method
    data = Pairs() if data is None else data
    kwargs = {"epochs": 3, "batch_size": BATCH, "lr": 0.02, "progress": False} | kwargs
    return method, fit(method, data, **kwargs)


def state(method: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, equal_nan=True, msg=name)


def without_time(history: History) -> dict[str, list[float]]:
    return {name: values for name, values in history.steps.items() if name != "seconds"}


# --- the loop -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "clip"), list(zip(SCHEDULES, [0.3, None, 1.0], strict=True)))
def test_fit_is_the_plain_loop(schedule, clip):
    """Against PyTorch's plain AdamW and schedules, over the batches that fit() asked for."""
    data = Pairs()
    fitted, history = train(
        data=data, schedule=schedule, clip_norm=clip, weight_decay=0.3, augment=noisy, seed=5
    )
    steps = 15
    assert len(history) == len(data.asked) == steps

    method = Towers()
    matrices = [method.image.weight, method.caption.weight]
    others = [method.image.bias, method.log_scale]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}],
        lr=0.02,
        betas=(0.9, 0.98),
        foreach=False,
    )
    scheduler = {
        "one_cycle": lambda: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.02, total_steps=steps, cycle_momentum=False
        ),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps),
        "constant": lambda: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
    }[schedule]()
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        for step, indices in enumerate(data.asked):
            parts = method.loss(noisy(Pairs().batch(indices)))
            optimizer.zero_grad()
            parts["total"].backward()
            grads = torch.cat([p.grad.flatten() for p in method.parameters()])
            if clip is not None and grads.norm() > clip:
                for p in method.parameters():
                    p.grad *= clip / grads.norm()
            assert history["lr"][step] == pytest.approx(optimizer.param_groups[0]["lr"])
            assert history["grad_norm"][step] == pytest.approx(grads.norm().item(), rel=1e-4)
            for name, value in parts.items():
                assert history[name][step] == pytest.approx(value.item(), rel=1e-4)
            optimizer.step()
            scheduler.step()
            method.after_step()
    if clip == 0.3:
        assert max(history["grad_norm"]) > clip  # it was needed
    for name, value in method.state_dict().items():
        torch.testing.assert_close(fitted.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_fit_learns_and_tells():
    method, history = train(data=Pairs(40), epochs=20)
    assert set(history.steps) == {
        "total", "matching", "centring", "lr", "grad_norm", "seconds"
    }  # fmt: skip
    assert all(len(values) == len(history) == 200 for values in history.steps.values())
    assert history.epochs == 20
    means = history.epoch_means("total")
    assert means[3] == pytest.approx(sum(history["total"][30:40]) / 10)
    assert means[-1] < 0.7 * means[0]
    assert all(s > 0 for s in history["seconds"])
    assert method.count == 200
    copy = History(**json.loads(json.dumps(history.to_dict())))
    assert copy == history
    with pytest.raises(MMCLError, match=r"'matching'.*got 'loss'"):
        history["loss"]


def test_biases_and_scalars_are_not_decayed():
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 3))
            self.gain = nn.Parameter(torch.ones(3))
            self.scale = nn.Parameter(torch.tensor(1.0))
            self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)

        def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"total": 0 * (self.weight.sum() + self.gain.sum() + self.scale)}

    method, _ = train(Unused(), lr=0.1, weight_decay=0.5, schedule="constant")
    torch.testing.assert_close(method.weight.detach(), torch.full((3, 3), 0.95**15))
    assert torch.equal(method.gain, torch.ones(3))
    assert method.scale == 1
    assert torch.equal(method.frozen, torch.ones(2, 2))


def test_same_seed_same_weights_and_the_caller_is_left_alone():
    torch.manual_seed(123)
    before = torch.get_rng_state()
    method = Towers().eval()
    train(method, augment=noisy, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert not method.training
    assert not method.drop.training
    assert all(p.grad is None for p in method.parameters())
    torch.manual_seed(999)
    assert_same(state(train(augment=noisy, seed=7)[0]), state(method))
    other = train(augment=noisy, seed=8)[0]
    assert not torch.equal(other.image.weight, method.image.weight)


def test_training_is_in_train_mode_and_an_error_puts_the_mode_and_random_state_back():
    method = Towers().eval()
    modes = []
    before = torch.get_rng_state()

    def look(batch):
        modes.append(method.drop.training)
        return noisy(batch)

    with pytest.raises(Stop):
        train(method, augment=stopping(3, look))
    assert modes == [True] * 3
    assert not method.drop.training
    assert torch.equal(torch.get_rng_state(), before)


def test_callbacks_see_the_training_and_do_not_disturb_it():
    plain, _ = train(augment=noisy)
    seen: list[tuple[int, int, int]] = []

    def look(progress: Progress) -> None:
        seen.append((progress.epoch, progress.step, len(progress.history)))
        assert progress.epochs == 3
        assert progress.history.epochs == progress.epoch
        progress.method.eval()
        torch.manual_seed(0)
        torch.rand(7)

    disturbed, history = train(augment=noisy, callbacks=[look, lambda progress: torch.rand(3)])
    assert seen == [(0, 0, 0), (1, 5, 5), (2, 10, 10), (3, 15, 15)]
    assert_same(state(disturbed), state(plain))
    assert disturbed.training
    assert len(history) == 15


def test_seconds_are_those_of_the_step_and_leave_out_callbacks_and_checkpoints(
    tmp_path, monkeypatch
):
    clock = [0.0]

    def passing(seconds: float, result=None):
        clock[0] += seconds
        return result

    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(training, "save_checkpoint", lambda *args, **kwargs: passing(1000))
    _, history = train(
        augment=lambda batch: passing(2, batch),
        callbacks=[lambda progress: passing(100)],
        checkpoint=tmp_path / "a.pt",
    )
    assert history["seconds"] == [2.0] * 15


def test_autocast_computes_in_bfloat16_and_learns_in_float32():
    types = set()

    class Seeing(Towers):
        def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            types.add(self.image(batch["image"]).dtype)
            return super().loss(batch)

    method, history = train(Seeing(), autocast=True)
    assert types == {torch.bfloat16}
    assert {p.dtype for p in method.parameters()} == {torch.float32}
    assert all(map(math.isfinite, history["total"]))
    types.clear()
    with torch.autocast("cpu", torch.bfloat16):  # the caller's does not leak in
        train(Seeing())
    assert types == {torch.float32}


def test_worker_processes_change_nothing():
    here, _ = train(augment=noisy)
    there, _ = train(augment=noisy, num_workers=1)
    assert_same(state(there), state(here))


def test_the_bar_is_shown_or_not(capsys):
    train(progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "epoch 3/3" in shown.err
    assert "15/15" in shown.err
    assert "loss " in shown.err
    train(progress=False)
    assert capsys.readouterr() == ("", "")


# --- order and schedule ---------------------------------------------------------------------------


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**32 - 1), st.data())
def test_the_order_of_an_epoch_depends_on_seed_and_epoch_only(n, batch_size, seed, data):
    batch_size = min(batch_size, n)
    per_epoch = n // batch_size
    steps = 3 * per_epoch
    start = data.draw(st.integers(0, steps))
    whole = list(training._Order(n, batch_size, seed, 0, steps))
    assert list(training._Order(n, batch_size, seed, start, steps)) == whole[start:]
    for epoch in range(3):
        batches = whole[epoch * per_epoch : (epoch + 1) * per_epoch]
        indices = [i for batch in batches for i in batch]
        assert len(indices) == per_epoch * batch_size
        assert len(set(indices)) == len(indices)
        assert set(indices) <= set(range(n))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_the_parts_of_several_processes_are_the_batch_of_one(processes, share, more, seed):
    n, size = processes * share + more, processes * share
    steps = 2 * (n // size)
    parts = [
        list(training._Order(n, size, seed, 1, steps, slice(r * share, (r + 1) * share)))
        for r in range(processes)
    ]
    joined = [[i for part in batch for i in part] for batch in zip(*parts, strict=True)]
    assert joined == list(training._Order(n, size, seed, 1, steps))


def test_epochs_and_seeds_differ_in_order():
    a = list(training._Order(100, 100, 0, 0, 2))
    b = list(training._Order(100, 100, 1, 0, 2))
    assert len({tuple(batch) for batch in a + b}) == 4


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(SCHEDULES), st.integers(1, 80), st.none() | st.floats(0, 0.95))
def test_schedules_stay_in_range_and_turn_once(schedule, steps, warmup):
    factors = [training.schedule_factor(schedule, i, steps, warmup) for i in range(steps)]
    assert all(0 <= f <= 1 for f in factors)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    if schedule == "constant":
        assert factors[-1] == 1 or (warmup or 0) > 0.5


def test_warmup_is_a_straight_rise():
    for schedule in ("cosine", "constant"):
        factors = [training.schedule_factor(schedule, i, 10, 0.36) for i in range(5)]
        assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    for steps in (20, 33, 100):
        reference = torch.optim.lr_scheduler.OneCycleLR(
            torch.optim.SGD([nn.Parameter(torch.zeros(1))]), 1.0, total_steps=steps, pct_start=0.1
        )
        for i in range(steps):
            factor = training.schedule_factor("one_cycle", i, steps, 0.1)
            assert factor == pytest.approx(reference.get_last_lr()[0], abs=1e-9)
            if i + 1 < steps:
                reference.optimizer.step()
                reference.step()


# --- stop and resume ------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.sampled_from(SCHEDULES),
    st.lists(st.integers(0, 14), min_size=1, max_size=2),
    st.none() | st.integers(1, 7),
    st.integers(0, 3),
)
def test_stop_and_resume_is_not_stopping(tmp_path_factory, schedule, stops, every, seed):
    """Stopped once or twice, at any step, with checkpoints at any steps: the same, bit for bit."""
    kwargs = {"schedule": schedule, "seed": seed, "augment": noisy}
    plain, expected = train(**kwargs)
    path = tmp_path_factory.mktemp("resume") / "a.pt"
    kwargs |= {"checkpoint": path, "checkpoint_every": every, "resume": True}
    for stop in [*stops, None]:
        # After a checkpoint the weights come from it, and nothing of these others must be left.
        resumed = Towers(seed=9 if path.exists() else 0)
        done = load_checkpoint(path, Towers()).step if path.exists() else 0
        if stop is None:
            _, history = train(resumed, **kwargs)
        else:
            with pytest.raises(Stop):
                train(resumed, **kwargs | {"augment": stopping(min(stop, 14 - done))})
    assert_same(state(resumed), state(plain))
    assert without_time(history) == without_time(expected)
    assert resumed.count == 15


def test_resume_goes_on_in_the_middle_of_an_epoch(tmp_path):
    kwargs = {"checkpoint": tmp_path / "a.pt", "checkpoint_every": 4}
    whole = Pairs()
    train(data=whole)
    with pytest.raises(Stop):
        train(augment=stopping(11), **kwargs)
    data, epochs = Pairs(), []
    train(data=data, resume=True, callbacks=[lambda p: epochs.append(p.epoch)], **kwargs)
    assert data.asked == whole.asked[8:]
    assert epochs == [2, 3]


def test_resuming_what_is_done_only_loads_it(tmp_path):
    path = tmp_path / "folder" / "a.pt"  # the folder is made
    method, history = train(checkpoint=path)
    data, again = Pairs(), Towers(seed=4)
    _, loaded = train(again, data, checkpoint=path, resume=True)
    assert data.asked == []
    assert_same(state(again), state(method))
    assert loaded == history
    assert [p.name for p in path.parent.iterdir()] == ["a.pt"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 4}, "epochs = 4, found epochs = 3"),
        ({"batch_size": 5}, "batch_size = 5"),
        ({"lr": 0.5}, "lr = 0.5"),
        ({"schedule": "cosine"}, "schedule = cosine, found schedule = one_cycle"),
        ({"seed": 1}, "seed = 1"),
        ({"data": Pairs(23)}, "samples = 23, found samples = 22"),
    ],
)
def test_another_training_is_not_resumed(tmp_path, changed, message):
    path = tmp_path / "a.pt"
    train(checkpoint=path)
    method = Towers(seed=3)
    before = state(method)
    with pytest.raises(CheckpointError, match=message):
        train(method, **{"checkpoint": path, "resume": True} | changed)
    assert_same(state(method), before)


def test_another_set_of_frozen_parameters_is_not_resumed(tmp_path):
    train(checkpoint=tmp_path / "a.pt")
    method = Towers()
    method.log_scale.requires_grad_(False)
    with pytest.raises(CheckpointError, match="trained parameters"):
        train(method, checkpoint=tmp_path / "a.pt", resume=True)


# --- checkpoints ----------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "a.pt"
    save_checkpoint(path, Towers(seed=1))
    return path


def refused(path: Path, message: str, method: nn.Module | None = None, **kwargs) -> None:
    method = Towers(seed=2) if method is None else method
    before = state(method)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path, method, **kwargs)
    assert_same(state(method), before)


def test_a_checkpoint_brings_the_method_back(saved):
    method = Towers(seed=2)
    rng = torch.get_rng_state()
    loaded = load_checkpoint(saved, method)
    assert_same(state(method), state(Towers(seed=1)))
    assert (loaded.step, loaded.history, loaded.settings) == (0, None, {})
    assert torch.equal(torch.get_rng_state(), rng)


def test_a_checkpoint_of_fit_is_one_for_use(tmp_path):
    method, history = train(checkpoint=tmp_path / "a.pt")
    other = Towers(seed=2)
    loaded = load_checkpoint(tmp_path / "a.pt", other)
    assert_same(state(other), state(method))
    assert loaded.step == 15
    train(checkpoint=tmp_path / "a.pt", checkpoint_every=7)  # 7, 14, and the end
    assert load_checkpoint(tmp_path / "a.pt", other).step == 15
    assert loaded.history == history
    assert loaded.settings["seed"] == 0


def test_a_checkpoint_cut_short_is_refused(saved):
    whole = saved.read_bytes()
    for keep in [0, 1, 100, len(whole) // 2, len(whole) - 1]:
        saved.write_bytes(whole[:keep])
        refused(saved, f"a file of {keep} bytes that cannot be read; it is cut short")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "b.pt"
    refused(path, "no such file")
    path.write_text("hello")
    refused(path, "something else")
    torch.save([1, 2], path)
    refused(path, r"mmcl_core\.checkpoint\.3, found list")
    torch.save(Towers().state_dict(), path)
    refused(path, "found None")


class Evil:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("evil",)


def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "mmcl_core.checkpoint.3", "method": Evil()}, "evil.pt")
    refused(Path("evil.pt"), "cannot be read")
    Path("evil.pkl").write_bytes(pickle.dumps(Evil(), protocol=2))
    refused(Path("evil.pkl"), "cannot be read")
    assert not Path("evil").exists()


def test_a_checkpoint_of_another_method_or_shape_is_refused(saved):
    class Other(Towers):
        pass

    refused(saved, "expected a checkpoint of .*Other, found one of Towers", Other())
    refused(
        saved,
        r"centre: expected float32 \[7\], found float32 \[3\]; .*; and 1 more",
        Towers(width=7),
    )
    refused(saved, r"image.weight: expected float64 \[3, 6\], found float32", Towers().double())
    more = Towers()
    more.extra = nn.Parameter(torch.zeros(2))
    refused(saved, r"extra: expected float32 \[2\], found nothing", more)
    less = Towers()
    del less.log_scale
    refused(saved, r"log_scale: expected nothing, found float32 \[\]", less)


def test_the_optimiser_is_checked_before_the_method_is_loaded(saved, tmp_path):
    method = Towers(seed=2)
    optimizer = torch.optim.AdamW(method.parameters())
    refused(saved, "state of an optimiser, found none", method, optimizer=optimizer)
    save_checkpoint(
        saved, method, optimizer=torch.optim.AdamW([method.image.weight]), settings={"a": 1}
    )
    refused(saved, "another", method, optimizer=optimizer)
    refused(saved, "a = 2, found a = 1", method, settings={"a": 2})


@pytest.mark.parametrize("failing", ["torch.save", "os.fsync", "os.replace"])
def test_a_failed_write_leaves_the_old_checkpoint(saved, monkeypatch, failing):
    old = saved.read_bytes()
    asked = []

    def fail(*args, **kwargs):
        asked.append(failing)
        if failing == "torch.save":
            args[1].write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(failing, fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(saved, Towers(seed=5))
    assert asked == [failing]
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]


# --- bad input ------------------------------------------------------------------------------------


class Breaking(Towers):
    """Its loss, or only the gradient of it, is not finite in one step."""

    def __init__(self, how: str, at: int) -> None:
        super().__init__()
        self.how, self.at = how, at

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        parts = super().loss(batch)
        if self.count == self.at and self.how == "gradient":
            parts["total"] = parts["total"] + (0 * self.log_scale).sqrt()
        elif self.count == self.at:
            parts["total"] = parts["total"] * float(self.how)
        return parts


@pytest.mark.parametrize("how", ["nan", "inf", "gradient"])
@pytest.mark.parametrize("at", [0, 7])
def test_a_loss_that_is_not_finite_leaves_the_weights(tmp_path, how, at):
    good = Towers()
    if at:
        with pytest.raises(Stop):
            train(good, augment=stopping(at))
    method = Breaking(how, at)
    wrong = "grad_norm = (nan|inf)" if how == "gradient" else f"total = {how}"
    with pytest.raises(
        MMCLError, match=rf"step {at + 1} \(epoch {at // 5 + 1}\).*matching = .*{wrong}"
    ):
        train(method, augment=lambda batch: noisy(batch), checkpoint=tmp_path / "a.pt")
    assert_same(state(method), state(good))
    assert all(p.grad is None for p in method.parameters())
    assert (tmp_path / "a.pt").exists() == (at == 7)  # the one of the first epoch


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"epochs": 0}, MMCLError, "epochs .* at least 1; got 0"),
        ({"epochs": 1.5}, MMCLError, "epochs must be a whole number"),
        ({"batch_size": 0}, MMCLError, "batch_size .* got 0"),
        ({"batch_size": 23}, ShapeError, "one batch of 23 samples; the data has 22"),
        ({"lr": 0.0}, MMCLError, "lr must be a number in .0, inf.; got 0.0"),
        ({"lr": math.nan}, MMCLError, "lr must be .* got nan"),
        ({"weight_decay": -1}, MMCLError, "weight_decay .* got -1"),
        ({"schedule": "linear"}, MMCLError, "one_cycle, cosine, constant; got 'linear'"),
        ({"warmup": 1.0}, MMCLError, "warmup"),
        ({"clip_norm": 0}, MMCLError, "clip_norm .* got 0"),
        ({"seed": -1}, MMCLError, "seed .* got -1"),
        ({"data": [1] * 22}, MMCLError, "samples that are dicts, .* got int"),
        ({"data": iter([])}, MMCLError, r"must have a length and batch\(indices\)"),
        ({"method": nn.Linear(2, 2)}, MMCLError, r"loss\(batch\).* got Linear"),
        ({"method": "clip"}, MMCLError, "got str"),
        ({"augment": 3}, MMCLError, "augment and callbacks must be callable; got int"),
        ({"callbacks": [None]}, MMCLError, "callbacks must be callable; got NoneType"),
        ({"augment": lambda batch: None}, MMCLError, "augment.* dict of tensors; got NoneType"),
        ({"augment": lambda batch: {"image": 3}}, MMCLError, r"\['image'\] must be a tensor"),
        ({"resume": True}, MMCLError, "need a checkpoint"),
        ({"checkpoint_every": 3}, MMCLError, "need a checkpoint"),
        ({"checkpoint_every": 0, "checkpoint": "a.pt"}, MMCLError, "checkpoint_every .* got 0"),
        ({"checkpoint": "."}, CheckpointError, "found a folder"),
    ],
)
def test_fit_refuses(kwargs, error, message):
    with pytest.raises(error, match=message):
        train(**kwargs)


class Giving(Towers):
    def __init__(self, give) -> None:
        super().__init__()
        self.give = give

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.give(super().loss(batch))


@pytest.mark.parametrize(
    ("give", "error", "message"),
    [
        (lambda p: p["total"], MMCLError, "dict with 'total'; got Tensor"),
        (lambda p: {"loss": p["total"]}, MMCLError, r"'total'; got \['loss'\]"),
        (lambda p: {"total": p["total"].expand(4)}, ShapeError, r"'total' must be a scalar.*\[4\]"),
        (lambda p: p | {"part": 0.5}, ShapeError, "'part' must be a scalar tensor; got float"),
        (lambda p: {"total": p["total"].detach()}, MMCLError, "depend on a parameter"),
        (lambda p: p | {"lr": p["total"]}, MMCLError, "records 'lr' itself"),
    ],
)
def test_a_loss_out_of_contract_is_refused(give, error, message):
    with pytest.raises(error, match=message):
        train(Giving(give))


def test_parts_that_come_and_go_are_refused():
    calls = iter(range(9))
    method = Giving(lambda parts: parts if next(calls) < 3 else {"total": parts["total"]})
    with pytest.raises(MMCLError, match=r"same loss parts.*'matching'.*got \['total'\]"):
        train(method)


def test_a_method_on_two_devices_or_without_parameters_is_refused():
    method = Towers()
    method.caption.to("meta")
    with pytest.raises(ShapeError, match=r"\['cpu', 'meta'\]"):
        train(method)

    class Empty(nn.Module):
        def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {}

    with pytest.raises(MMCLError, match="Empty has no parameters"):
        train(Empty())


# --- modes: what is in eval mode on purpose stays there (B12) -------------------------------------


class Frame(nn.Module):
    """An encoder with all that has a mode, and a head that is trained."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.encoder = nn.Sequential(
                nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4)
            )
            self.head, self.drop = nn.Linear(4, 3), nn.Dropout(0.1)
        self.modes: set[tuple[bool, ...]] = set()  # of all but the encoder itself, in each step

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.modes.add(tuple(part.training for part in (*self.encoder, self.head, self.drop)))
        x = self.head(self.drop(self.encoder(batch["image"])))
        return {"total": (x - batch["caption"][:, :3]).square().mean()}

    def moved(self) -> bool:
        return bool(self.encoder[1].running_mean.any())


def frozen(method: Frame) -> None:
    method.encoder.requires_grad_(False).eval()


def frozen_but_not_eval(method: Frame) -> None:
    method.encoder.requires_grad_(False)


def frozen_in_part(method: Frame) -> None:
    method.encoder[0].requires_grad_(False).eval()
    method.encoder[1].requires_grad_(False).eval()


def norm_in_eval_mode(method: Frame) -> None:
    method.encoder[1].eval()


@pytest.mark.parametrize(
    ("prepare", "as_a_whole", "modes"),
    [
        (frozen, False, (0, 0, 0, 0, 1, 1)),
        (frozen, True, (0, 0, 0, 0, 1, 1)),  # after method.eval(), as evaluation scripts leave it
        (frozen_but_not_eval, False, (1, 1, 1, 1, 1, 1)),
        (frozen_but_not_eval, True, (0, 0, 0, 0, 1, 1)),
        (frozen_in_part, False, (0, 0, 1, 1, 1, 1)),
        (frozen_in_part, True, (0, 0, 1, 1, 1, 1)),
        (norm_in_eval_mode, False, (1, 0, 1, 1, 1, 1)),
        (norm_in_eval_mode, True, (1, 1, 1, 1, 1, 1)),  # nothing tells it from the others
        (lambda method: None, False, (1, 1, 1, 1, 1, 1)),
        (lambda method: None, True, (1, 1, 1, 1, 1, 1)),
    ],
)
def test_what_is_in_eval_mode_on_purpose_stays_there(prepare, as_a_whole, modes):
    method = Frame()
    prepare(method)
    if as_a_whole:
        method.eval()
    before = [part.training for part in method.modules()]
    train(method)
    assert method.modes == {tuple(map(bool, modes))}
    assert method.moved() == bool(modes[1])
    assert [part.training for part in method.modules()] == before


def test_a_module_that_keeps_its_own_mode_is_asked():
    """As one that holds its norms still by `train` itself."""

    class Still(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> "Still":
            return super().train(False)

    method = Frame()
    method.encoder[1] = Still(4)
    train(method)
    assert not method.moved()


def test_the_momentum_encoder_is_not_frozen():
    class Norm(nn.Module):
        width = 6

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Encoded:
            x = self.norm(x)
            return Encoded(x, x[:, None], torch.ones(len(x), 1, dtype=torch.bool))

    method = MoCo(Norm(), dim=4, queue=8).eval()
    train(method, augment=lambda batch: batch | {"image_view": batch["image"] + 1})
    assert method.key.network.encoder.norm.running_mean.any()
    assert not method.key.network.encoder.norm.training


# --- the caller's random state --------------------------------------------------------------------


def drawing(*_: object) -> None:
    torch.rand(1), np.random.rand(1), random.random()  # noqa: NPY002
    if torch.cuda.is_available():
        torch.rand(1, device="cuda")


def states() -> list[object]:
    gathered = [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()]  # noqa: NPY002
    gathered += [np.random.get_state()[2:], random.getstate()]  # noqa: NPY002
    if torch.cuda.is_available():
        gathered.append(torch.cuda.get_rng_state().tolist())
    return gathered


class Drawn(Pairs):
    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        drawing()
        return super().batch(indices)


class Drawing(Towers):
    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        drawing()
        return super().loss(batch)


def test_fit_and_checkpoints_leave_all_random_states(tmp_path):
    random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    random.gauss(0, 1), np.random.randn()  # noqa: NPY002 so that a half of a pair is kept
    before = states()
    path = tmp_path / "a.pt"

    def augment(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        drawing()
        return batch

    train(Drawing(), Drawn(), augment=augment, callbacks=[drawing], checkpoint=path)
    assert states() == before
    train(Drawing(), Drawn(), checkpoint=path, resume=True)
    assert states() == before
    with pytest.raises(Stop):
        train(Drawing(), Drawn(), augment=stopping(3))
    assert states() == before
    save_checkpoint(path, Drawing())
    load_checkpoint(path, Drawing())
    read_checkpoint(path)
    assert states() == before


def by_numpy_and_python(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    noise = np.random.randn(*batch["image"].shape) + random.gauss(0, 1)  # noqa: NPY002
    return batch | {"image": batch["image"] + 0.1 * torch.from_numpy(noise)}


def test_numpy_and_python_are_seeded_and_resumed_too(tmp_path):
    random.seed(1), np.random.seed(1)  # noqa: NPY002
    whole, _ = train(augment=by_numpy_and_python, seed=4)
    path = tmp_path / "a.pt"
    random.seed(2), np.random.seed(2)  # noqa: NPY002
    with pytest.raises(Stop):
        train(augment=stopping(8, by_numpy_and_python), seed=4, checkpoint=path, checkpoint_every=3)
    resumed, _ = train(augment=by_numpy_and_python, seed=4, checkpoint=path, resume=True,
                       checkpoint_every=3)  # fmt: skip
    assert_same(state(resumed), state(whole))


# --- a callback may stop it -----------------------------------------------------------------------


@pytest.mark.parametrize("no", [False, np.False_, torch.tensor(False)])
def test_a_callback_ends_the_training_by_false_alone(no):
    plain, _ = train(epochs=3, schedule="constant")
    seen = []

    def stop(progress: Progress) -> object:
        return no if progress.epoch == 2 else True

    def look(progress: Progress) -> None:
        seen.append(progress.epoch)

    method, history = train(epochs=5, schedule="constant", callbacks=[stop, look])
    assert (len(history), history.epochs, seen) == (10, 2, [0, 1, 2])  # the others are called, too
    two, _ = train(epochs=2, schedule="constant")
    assert_same(state(method), state(two))
    assert not torch.equal(method.image.weight, plain.image.weight)
    for still in (
        None,
        0,
        "",
        [],
        torch.zeros(()),
        np.float64(0),
        torch.zeros(2, dtype=torch.bool),
    ):
        assert len(train(callbacks=[lambda progress, still=still: still])[1]) == 15


def test_a_training_that_was_ended_stays_ended(tmp_path):
    path = tmp_path / "a.pt"
    kwargs = {"checkpoint": path, "checkpoint_every": 4, "resume": True}
    method, history = train(callbacks=[lambda progress: progress.epoch < 2], **kwargs)
    assert len(history) == 10
    data, calls, again = Pairs(), [], Towers(seed=4)
    _, found = train(again, data, callbacks=[calls.append], **kwargs)
    assert (data.asked, calls, len(found)) == ([], [], 10)
    assert_same(state(again), state(method))


def test_a_training_can_end_before_its_first_step(tmp_path):
    path = tmp_path / "a.pt"
    method, history = train(callbacks=[lambda progress: False], checkpoint=path)
    assert len(history) == 0
    assert_same(state(method), state(Towers()))
    calls: list[object] = []
    assert len(train(checkpoint=path, resume=True, callbacks=[calls.append])[1]) == 0
    assert calls == []


def test_callbacks_can_come_one_after_another():
    seen: list[object] = []
    train(callbacks=iter([seen.append]))
    assert len(seen) == 4


# --- NumPy's numbers, wherever a number is wanted (bug reports 1 and 23) --------------------------


def test_numbers_of_numpy_are_numbers(tmp_path):
    path = tmp_path / "a.pt"
    expected, _ = train(lr=0.01, betas=(0.5, 0.75), weight_decay=0.25, schedule="cosine")
    of_numpy = {
        "lr": np.logspace(-4, -2, 3)[2],
        "weight_decay": np.float32(0.25),
        "betas": np.array([0.5, 0.75]),
        "schedule": np.str_("cosine"),
        "clip_norm": torch.tensor(1.0),
        "epochs": np.int64(3),
        "batch_size": np.int16(BATCH),
        "seed": np.uint32(0),
        "checkpoint_every": np.int64(4),
        "autocast": np.False_,
        "num_workers": np.int64(0),
    }
    method, history = train(checkpoint=path, **of_numpy)
    assert_same(state(method), state(expected))
    again = Towers(seed=3)
    _, found = train(again, checkpoint=path, resume=True, **of_numpy)
    assert_same(state(again), state(method))
    assert found == history
    assert json.loads(json.dumps(history.to_dict()))["steps_per_epoch"] == 5
    loaded = load_checkpoint(path, again)
    assert {type(value) for value in loaded.settings.values()} == {
        int, float, tuple, str, bool, list, type(None)
    }  # fmt: skip
    train(again, checkpoint=path, resume=True, lr=0.01, weight_decay=0.25, betas=(0.5, 0.75),
          schedule="cosine", checkpoint_every=4)  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": True},
        {"epochs": np.True_},
        {"epochs": np.float64(3)},
        {"batch_size": "4"},
        {"checkpoint_every": True, "checkpoint": "a.pt"},
        {"seed": np.int64(-1)},
        {"seed": 2**32},
        {"num_workers": -1},
        {"lr": "0.1"},
        {"lr": True},
        {"lr": np.array([0.1, 0.2])},
        {"lr": object()},
        {"betas": (0.9,)},
        {"betas": 0.9},
        {"betas": (0.9, 1.0)},
        {"warmup": np.float64("nan")},
        {"schedule": None},
    ],
)
def test_what_is_no_such_number_is_refused_by_its_name(wrong):
    with pytest.raises(MMCLError, match=next(iter(wrong))):
        train(**wrong)


@dataclass
class Own:
    width: int


def test_settings_are_kept_in_plain_types_or_refused(tmp_path):
    path = tmp_path / "a.pt"
    given = {
        "lr": np.float64(0.5),
        "rates": np.array([1, 2]),
        "one": torch.tensor(3),
        "name": np.str_("x"),
        "nested": {"flag": np.True_, np.int64(3): (np.float32(0.5), None)},
        "path": Path("a/b"),
        "own": Own(np.int64(4)),
    }
    save_checkpoint(path, Towers(), settings=given)
    kept = {
        "lr": 0.5, "rates": [1, 2], "one": 3, "name": "x",
        "nested": {"flag": True, 3: (0.5, None)}, "path": str(Path("a/b")), "own": {"width": 4},
    }  # fmt: skip
    assert repr(load_checkpoint(path, Towers(), settings=given).settings) == repr(kept)
    before = path.read_bytes()
    for wrong in ({"a": object()}, {"a": [torch.zeros(2)]}, {"a": {"b": {1, 2}}}, {"a": Own}):
        with pytest.raises(MMCLError, match=r"settings\['a'\].*expected numbers, strings"):
            save_checkpoint(path, Towers(), settings=wrong)
    assert path.read_bytes() == before


def test_an_optimiser_with_numbers_of_numpy_is_kept(tmp_path):
    method = Towers()
    optimizer = torch.optim.SGD(method.parameters(), lr=np.float64(0.5), momentum=np.float32(0.25))
    save_checkpoint(tmp_path / "a.pt", method, optimizer=optimizer)
    other = torch.optim.SGD(method.parameters(), lr=1.0)
    load_checkpoint(tmp_path / "a.pt", method, optimizer=other)
    assert (other.param_groups[0]["lr"], other.param_groups[0]["momentum"]) == (0.5, 0.25)


class WithState(Towers):
    """State beside tensors, as `get_extra_state` of a module may give it."""

    extra: object = None

    def get_extra_state(self) -> object:
        return self.extra

    def set_extra_state(self, extra: object) -> None:
        self.extra = extra


def test_state_that_is_no_tensor_is_kept_or_refused_before_the_first_step(tmp_path):
    path, method, data = tmp_path / "a.pt", WithState(), Pairs()
    method.extra = {"count": np.int64(3), "mean": torch.ones(2)}
    train(method, checkpoint=path)
    other = WithState()
    load_checkpoint(path, other)
    assert other.extra["count"] == 3
    assert torch.equal(other.extra["mean"], torch.ones(2))
    method.extra = object()
    with pytest.raises(MMCLError, match=r"_extra_state: expected numbers.* got object"):
        train(method, data, checkpoint=tmp_path / "b.pt")
    assert data.asked == []


# --- wrappers (bug report 9), and forward ---------------------------------------------------------


class Called(Towers):
    """A method whose `forward` is its loss."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.loss(batch)


def compiled(method: nn.Module, graphs: list[int]) -> nn.Module:
    def backend(graph, inputs):
        graphs.append(len(inputs))
        return graph.forward

    return torch.compile(method, backend=backend)


def whole(method: nn.Module, graphs: list[int]) -> nn.Module:
    return compiled(method, graphs)


def in_place(method: nn.Module, graphs: list[int]) -> nn.Module:
    method.compile(backend=lambda graph, inputs: graphs.append(len(inputs)) or graph.forward)
    return method


def a_part(method: nn.Module, graphs: list[int]) -> nn.Module:
    method.image = compiled(method.image, graphs)
    return method


@pytest.mark.parametrize("wrap", [whole, in_place, a_part])
def test_what_is_compiled_trains_compiled_and_leaves_a_checkpoint_like_any(tmp_path, wrap):
    plain, _ = train(Called(), checkpoint=tmp_path / "plain.pt", epochs=1)
    graphs: list[int] = []
    method, _ = train(wrap(Called(), graphs), checkpoint=tmp_path / "wrapped.pt", epochs=1)
    assert graphs  # the loss really ran compiled
    for name in ("plain.pt", "wrapped.pt"):
        for other in (Called(seed=3), wrap(Called(seed=3), [])):
            assert load_checkpoint(tmp_path / name, other).step == 5
            for ours, theirs in zip(other.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(ours, theirs)
            # ... and either goes on with the other's training.
            train(other, checkpoint=tmp_path / name, resume=True, epochs=1)
    seen: list[nn.Module] = []
    train(method, callbacks=[lambda progress: seen.append(progress.method)], epochs=1)
    assert type(seen[0]) is Called


def test_compiling_a_method_without_forward_is_said_to_do_nothing():
    with pytest.warns(UserWarning, match="Towers has none: it trains as it is"):
        train(torch.compile(Towers(), backend="eager"), epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(Towers(), epochs=1)
        train(torch.compile(Called(), backend="eager"), epochs=1)


def test_hooks_are_called_where_forward_is_the_loss():
    method, seen = Called(), []
    method.register_forward_hook(lambda module, args, parts: seen.append(sorted(parts)))
    train(method)
    assert seen == [["centring", "matching", "total"]] * 15
    expected, _ = train(Towers())
    assert_same(state(method), state(expected))


def test_a_forward_that_is_no_loss_is_refused():
    class Embedding(Towers):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.embed(batch)

    with pytest.raises(MMCLError, match=r"method.forward\(batch\) if there is one.* got Tensor"):
        train(Embedding())


# --- types of floats (bug report 22) --------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_batches_come_in_the_type_of_the_method(dtype):
    method, _ = train(Towers().to(dtype), augment=noisy, lr=1e-3)
    expected, _ = train(Towers(), augment=noisy, lr=1e-3)
    assert {p.dtype for p in method.parameters()} == {dtype}
    tolerance = 1e-5 if dtype == torch.float64 else 0.05
    for ours, theirs in zip(method.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.float(), theirs, atol=tolerance, rtol=tolerance)


def test_the_default_type_may_be_float64():
    data = Pairs()
    torch.set_default_dtype(torch.float64)
    try:
        method, history = train(data=data, augment=noisy)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in method.parameters()} == {torch.float64}
    assert all(map(math.isfinite, history["total"]))


def test_where_types_are_mixed_floats_keep_theirs():
    types = []

    class Mixed(Towers):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Parameter(torch.zeros(1, dtype=torch.float64), requires_grad=False)

        def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            types.append(batch["image"].dtype)
            return super().loss(batch)

    train(Mixed())
    assert set(types) == {torch.float32}


# --- what a training is resumed with (B16) --------------------------------------------------------


class Named(Pairs):
    def __init__(self, identity: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.identity = identity


class Random(Pairs):
    """Draws from the global generators: the same data, though no two readings are equal."""

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        return by_numpy_and_python(noisy(super().batch(indices)))


class Unsteady(Pairs):
    """Draws from a generator of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        noise = torch.randn(len(indices), 6, generator=self.generator)
        batch = super().batch(indices)
        return batch | {"image": batch["image"] + noise}


def changed(name: str, row: int) -> Pairs:
    data = Pairs()
    getattr(data, name)[row] += 1
    return data


@pytest.mark.parametrize("other", [changed("image", 0), changed("caption", 21)])
def test_other_data_of_the_same_length_is_not_resumed(tmp_path, other):
    path = tmp_path / "a.pt"
    train(checkpoint=path)
    with pytest.raises(CheckpointError, match=r"expected a training with data = .*found data = "):
        train(Towers(), other, checkpoint=path, resume=True)


def test_the_same_data_is_resumed_however_it_comes(tmp_path):
    for i, (first, second) in enumerate(
        [
            (Pairs(), Pairs()),
            (Random(), Random()),
            (Unsteady(1), Unsteady(2)),
            (Named("flowers"), Named("flowers", n=N)),
        ]
    ):
        train(data=first, checkpoint=tmp_path / f"{i}.pt")
        torch.rand(3)
        train(data=second, checkpoint=tmp_path / f"{i}.pt", resume=True)
    with pytest.raises(CheckpointError, match="data = trees, found data = flowers"):
        train(data=Named("trees"), checkpoint=tmp_path / "3.pt", resume=True)


def encoders(heads: int = 4) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return ImageEncoder(size=16, width=32, heads=heads), CaptionEncoder(9, width=32, heads=2)


def by_name(*args: int) -> dict[str, nn.Module]:
    return dict(zip(("image", "caption"), encoders(*args), strict=True))


class Tempered(Towers):
    def __init__(self, temperature: float = 0.5, name: str = "plain", where: str = "cpu") -> None:
        super().__init__()
        self.temperature, self.name, self.where = temperature, name, where
        self.calls = 0  # no argument


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            lambda: GMC(by_name()), lambda: GMC(by_name(), temperature=5),
            r"a GMC with temperature = 5.*, found temperature = 0.1; make the method as",
        ),
        (
            lambda: GMC(by_name()), lambda: GMC(by_name(), variant="paper"),
            "variant = paper, found variant = ntxent",
        ),
        (
            lambda: MoCo(encoders()[0]), lambda: MoCo(encoders()[0], momentum=0.5),
            "key.momentum = 0.5, found key.momentum = 0.99",
        ),
        (
            lambda: CLIP(*encoders()), lambda: CLIP(*encoders(heads=2)),
            r"encoders.image.blocks.0.heads = 2, found .* = 4",
        ),
        (
            lambda: MCT(*encoders()), lambda: MCT(*encoders(), inter_temperature=0.5),
            "inter_temperature = 0.5",
        ),
        (
            lambda: MCT(*encoders()), lambda: MCT(*encoders(), weights={"image": 0.5}),
            "weights = {'image': 0.5",
        ),
        (
            lambda: LateFusion(by_name(), 3), lambda: LateFusion(by_name(), 3, dropout=0.5),
            "dropout = 0.5, found dropout = 0.0",
        ),
        (
            lambda: FDT(*encoders()), lambda: FDT(*encoders(), pooling="mean"),
            "heads.image.pooling = mean",
        ),
        (
            lambda: FDT(*encoders(), grounding_temperature=Cooling(30, 3, 9)),
            lambda: FDT(*encoders(), grounding_temperature=Cooling(300, 3, 9)),
            "cooling = {'start': 300",
        ),
        (lambda: Tempered(), lambda: Tempered(np.float64(0.25)), "temperature = 0.25, .* = 0.5"),
        (lambda: Frame(), lambda: frame_with_dropout(0.25), "encoder.2.p = 0.25, found .*p = 0.5"),
    ],
)  # fmt: skip
def test_a_method_made_with_other_arguments_is_refused(tmp_path, first, second, message):
    save_checkpoint(tmp_path / "a.pt", first())
    refused(tmp_path / "a.pt", message, second())
    load_checkpoint(tmp_path / "a.pt", first())


def frame_with_dropout(p: float) -> Frame:
    method = Frame()
    method.encoder[2].p = p
    return method


def test_what_makes_no_difference_is_not_compared(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, CLIP(*encoders(), chunk_size=8))
    load_checkpoint(path, CLIP(*encoders()))
    first, second = Tempered(1, where=f"a{os.sep}b"), Tempered(np.float32(1), where=f"c{os.sep}d")
    first.calls = 7
    save_checkpoint(path, first)
    load_checkpoint(path, second)
    assert made_with(first)["temperature"] == 1
    # The temperature of the grounding has moved in training, as its schedule says.
    method = FDT(*encoders(), grounding_temperature=Cooling(30, 3, 4))
    save_checkpoint(path, method)
    for _ in range(4):
        method.after_step()
    batch = {"image": torch.rand(2, 3, 16, 16), "caption": torch.ones(2, 3, dtype=torch.int64)}
    method.embed(batch)
    assert method.heads["image"].grounding_temperature == pytest.approx(3)
    load_checkpoint(path, method)
    save_checkpoint(path, method)
    load_checkpoint(path, FDT(*encoders(), grounding_temperature=Cooling(30, 3, 4)))


def test_the_history_takes_few_bytes_a_value_and_comes_back_exactly(tmp_path):
    g = torch.Generator().manual_seed(0)
    steps = 20_000
    single = torch.rand(steps, generator=g).tolist()  # as a loss is
    double = torch.rand(steps, generator=g, dtype=torch.float64).tolist()  # as a time is
    history = History(5, {"total": single, "lr": double, "odd": [math.nan, *single[1:]]})
    method = nn.Linear(2, 2)
    save_checkpoint(tmp_path / "a.pt", method)
    save_checkpoint(tmp_path / "b.pt", method, history=history)
    size = (tmp_path / "b.pt").stat().st_size - (tmp_path / "a.pt").stat().st_size
    assert size < (4 + 8 + 8) * steps + 2000
    found = load_checkpoint(tmp_path / "b.pt", method).history
    assert repr(found) == repr(history)
    assert read_checkpoint(tmp_path / "b.pt").step == steps
    lists = io.BytesIO()
    torch.save(history.to_dict(), lists)  # what was written before
    assert size < 0.8 * len(lists.getvalue())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_trains_and_resumes_as_the_cpu_does(tmp_path):
    """Random draws differ between devices, so without any."""
    here = Towers()
    here.drop.p = 0.0
    there = Towers()
    there.drop.p = 0.0
    _, expected = train(here)
    kwargs = {"device": "cuda", "checkpoint": tmp_path / "a.pt", "checkpoint_every": 4}
    with pytest.raises(Stop):
        train(there, augment=stopping(11, lambda batch: batch), **kwargs)
    before = torch.cuda.get_rng_state()
    _, history = train(there, resume=True, **kwargs)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert next(there.parameters()).device.type == "cuda"
    assert history["total"] == pytest.approx(expected["total"], rel=1e-3)
