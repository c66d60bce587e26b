"""Two real processes give what one gives: loss, every gradient, buffers, and a whole training.

`torchrun` starts two processes once for all tests of this file. They run every task of `TASKS`
and save what came out; the tests compare it with one process on the joined batch.

To add a method, add a line to `CASES`. If its loss, a gradient or a buffer then differs from one
process, `test_two_processes_are_one` names it.
"""

import contextlib
import io
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmcl_book.methods import FDTGMC, CodeCLIP, MoCoCLIP
from mmcl_core import distributed
from mmcl_core.batches import Batch
from mmcl_core.distributed import (
    alone,
    average,
    average_gradients,
    broadcast,
    gather,
    joined,
    own_device,
    own_rows,
    rank,
    world_size,
)
from mmcl_core.encoders import CaptionEncoder, ImageEncoder, TagEncoder
from mmcl_core.errors import CheckpointError, MMCLError, ShapeError
from mmcl_core.methods import CLIP, FDT, GMC, MCT, LateFusion, MoCo, SigLIP
from mmcl_core.methods.fdt import Cooling
from mmcl_core.training import Progress, fit, load_checkpoint
from tests import ROOT

pytestmark = pytest.mark.slow

WORLD = 2
SECONDS = 120  # after which a run counts as hanging; it takes about 8
TOLERANCE = 1e-9  # absolute, in float64


# --- methods: each in two processes and in one ----------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A method without dropout, always with the same weights, and a batch of an even size."""

    build: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    warm_start: bool = False  # with the same batch, before the first step


def scenes(size: int = 12, seed: int = 0) -> Batch:
    """Pictures of 16 pixels, captions of 2 to 6 words, and a second view and some tags of each.

    The longest caption lies in the second half, and two captions that are equal in both halves.
    """
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 6, (size, 1), generator=g)
    lengths[-2] = 6
    captions = torch.randint(1, 9, (2, size, 6), generator=g)
    captions[captions == 3] = 8  # no unknown words: captions that hold some equal no other
    captions[torch.arange(6) >= lengths.expand(2, size, 1)] = 0
    captions[:, -1] = captions[:, 0]
    return {
        "image": torch.rand(size, 3, 16, 16, generator=g),
        "image_view": torch.rand(size, 3, 16, 16, generator=g),
        "caption": captions[0],
        "caption_view": captions[1],
        "tags": (torch.rand(size, 5, generator=g) < 0.4).float(),
        "index": torch.arange(size),
    }


def encoders(seed: int = 0) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    return {
        "image": ImageEncoder(size=16, width=32),
        "caption": CaptionEncoder(9, width=32, max_length=8),
        "tags": TagEncoder(5, width=32),
    }


def clip(seed: int = 0, kind: type[CLIP] = CLIP, **kwargs: Any) -> CLIP:
    by_name = encoders(seed)
    return kind(by_name["image"], by_name["caption"], dim=8, **kwargs)


def moco(modality: str) -> MoCo:
    """In the second step, the queue holds the keys of the first, and others."""
    return MoCo(encoders()[modality], modality=modality, dim=8, queue=24, momentum=0.6)


def mct(**kwargs: Any) -> MCT:
    by_name = encoders()
    settings = {"dim": 8, "tags": 5, "queue": 24, "momentum": 0.6, "min_shared_tags": 1}
    return MCT(by_name["image"], by_name["caption"], **settings | kwargs)


def late_fusion(**kwargs: Any) -> LateFusion:
    by_name = encoders()
    method = LateFusion({m: by_name[m] for m in ("image", "caption")}, 3, dim=8, **kwargs)
    method.set_weights(dict.fromkeys(method.heads, 1.0))
    return method


def labelled() -> Batch:
    return scenes() | {"label": torch.arange(12) % 3}


CASES: dict[str, Case] = {
    "clip": Case(clip, scenes),
    "clip in tiles": Case(lambda: clip(chunk_size=4), scenes),
    "clip at a fixed temperature": Case(lambda: clip(learn_temperature=False), scenes),
    "moco of images": Case(lambda: moco("image"), scenes),
    "moco of captions": Case(lambda: moco("caption"), scenes),
    "mct": Case(mct, scenes),
    "mct with a hinge": Case(lambda: mct(inter="hinge", margin=0.6), scenes),
    "mct between the modalities": Case(
        lambda: mct(weights=dict.fromkeys(("image", "tags", "caption"), 0)),
        lambda: {name: scenes()[name] for name in ("image", "caption")},
    ),
    "moco after a warm start": Case(lambda: moco("image"), scenes, warm_start=True),
    "mct after a warm start": Case(mct, scenes, warm_start=True),
    # Halves of 8, for whose means float32 is exact: those of the numbers of active tokens.
    "fdt": Case(
        lambda: clip(kind=FDT, codebook_size=32, grounding_temperature=Cooling(30, 3, steps=2)),
        lambda: scenes(16),
    ),
    "gmc": Case(lambda: GMC(encoders(), common=16, dim=8, hidden=16), scenes),
    "siglip": Case(lambda: clip(kind=SigLIP), scenes),
    "moco with clip": Case(lambda: clip(kind=MoCoCLIP, queue=24, momentum=0.6), scenes),
    "moco with clip after a warm start": Case(
        lambda: clip(kind=MoCoCLIP, queue=24, momentum=0.6), scenes, warm_start=True
    ),
    "fdt under gmc": Case(
        lambda: clip(kind=FDTGMC, codebook_size=32, grounding_temperature=Cooling(30, 3, steps=2)),
        lambda: scenes(16),
    ),
    "codes": Case(lambda: clip(kind=CodeCLIP, codebook_size=32), lambda: scenes(16)),
    "codes in the warm-up": Case(
        lambda: clip(kind=CodeCLIP, codebook_size=32, warmup=1, summary=True), lambda: scenes(16)
    ),
    "late fusion": Case(late_fusion, labelled),
    "late fusion with means": Case(lambda: late_fusion(impute="mean"), labelled),
}


def two_steps(case: Case) -> Batch:
    """Two steps of plain gradient descent, with all that can be compared: parts of the loss,
    gradients, and parameters and buffers at the end. In a process of several, on its own part.
    """
    method = case.build().double()
    batch = case.batch()
    rows = own_rows(len(next(iter(batch.values()))) // world_size()) or slice(None)
    batch = {name: own_part(values, rows) for name, values in batch.items()}
    if case.warm_start:
        method.warm_start([batch] * 3)
    found = {}
    for step in (1, 2):
        method.zero_grad()
        parts = method.loss(batch)
        parts["total"].backward()
        average_gradients(method.parameters())
        found |= {f"step {step}, loss {n}": average(value.detach()) for n, value in parts.items()}
        for name, p in method.named_parameters():
            if p.grad is not None:
                found[f"step {step}, gradient of {name}"] = p.grad.clone()
                p.data -= 0.1 * p.grad
        if hasattr(method, "after_step"):
            method.after_step()
    return found | {f"after: {name}": v.detach() for name, v in method.state_dict().items()}


def own_part(values: Tensor, rows: slice) -> Tensor:
    """In float64; captions cut to the longest of the part, as a loader in one process does it."""
    values = values[rows]
    if values.is_floating_point():
        return values.double()
    return values[:, values.any(0)] if values.ndim == 2 else values


def assert_equal_results(found: Batch, expected: Batch, tolerance: float = TOLERANCE) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name],
            value,
            rtol=0,
            atol=tolerance,
            equal_nan=name.endswith("measured"),  # NaN until it is
            msg=lambda m, name=name: f"{name}: {m}",
        )


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(results, name: str) -> None:
    expected = two_steps(CASES[name])
    for found in results(name):
        assert_equal_results(found, expected)


# --- gather ---------------------------------------------------------------------------------------


def own_values(process: int) -> tuple[Tensor, Tensor]:
    """Of one process: its values [3, 4], and the numbers [6, 4] that make its function of all."""
    g = torch.Generator().manual_seed(process)
    values, numbers = torch.randn(2, 6, 4, generator=g, dtype=torch.float64)
    return values[:3].requires_grad_(), numbers


def function(values: Tensor, numbers: Tensor) -> Tensor:
    """Not the same in two processes, and without any symmetry."""
    return (values @ numbers.T).sin().mul(numbers @ values.T).exp().sum().log()


def gathering(folder: Path) -> dict[str, Any]:
    with joined():
        values, numbers = own_values(rank())
        everyone = gather(values)
        (gradient,) = torch.autograd.grad(function(everyone, numbers), values, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), values)
        words = torch.arange(1, 7).view(3, 2)[:, : 1 + rank()]  # of widths 1 and 2
        types = [torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bfloat16]
        with alone():
            by_itself = (rank(), world_size(), own_rows(3), gather(values) is values)
        return {
            "everyone": everyone.detach(),
            "gradient": gradient.detach(),
            "second": second,
            "padded": gather(words, pad=True),
            "deep": gather(torch.ones(1, 2 + rank(), 2, requires_grad=True), pad=True).detach(),
            "strided": gather(torch.arange(6).view(2, 3).T + 10 * rank()),
            "types": [gather(torch.tensor([0, 1 + rank()]).to(t)) for t in types],
            "alone": by_itself,
            "who": (rank(), world_size(), own_rows(3)),
        }


def test_gather_has_the_gradient_of_one_process(results) -> None:
    """Against the sum of all functions of the joined values; so too for the second derivative."""
    (a, first), (b, second) = own_values(0), own_values(1)
    everyone = torch.cat([a, b])
    total = function(everyone, first) + function(everyone, second)
    gradients = torch.autograd.grad(total, (a, b), create_graph=True)
    seconds = torch.autograd.grad(sum(g.square().sum() for g in gradients), (a, b))
    for process, found in enumerate(results("gather")):
        expected = {
            "everyone": everyone.detach(),
            "gradient": gradients[process].detach(),
            "second": seconds[process],
        }
        assert_equal_results({name: found[name] for name in expected}, expected, 1e-12)


def test_gather_keeps_the_order_pads_and_knows_all_types(results) -> None:
    for process, found in enumerate(results("gather")):
        assert found["padded"].tolist() == [[1, 0], [3, 0], [5, 0], [1, 2], [3, 4], [5, 6]]
        assert found["deep"].sum(2).tolist() == [[2, 2, 0], [2, 2, 2]]
        assert found["strided"].tolist() == [[0, 3], [1, 4], [2, 5], [10, 13], [11, 14], [12, 15]]
        for values in found["types"]:
            assert values.tolist() == [0, 1, 0, 1 if values.dtype == torch.bool else 2]
        assert found["who"] == (process, 2, slice(3 * process, 3 * process + 3))
        assert found["alone"] == (0, 1, None, True)


def refusing(folder: Path) -> dict[str, str]:
    """In one group: after an error that all share, all can go on."""
    messages = {}
    with joined():
        for name, values, pad in [
            ("sizes", torch.zeros(2 + rank(), 4), False),
            ("widths", torch.zeros(2, 4 + rank()), False),
            ("axes", torch.zeros((2, 4)[rank() :]), False),
            ("padded sizes", torch.zeros(2 + rank(), 4), True),
            ("number", torch.tensor(1.0), False),
            ("nothing to pad", torch.zeros(3), True),
        ]:
            with pytest.raises(ShapeError) as caught:
                gather(values, pad=pad)
            messages[name] = str(caught.value)
    return messages


def test_gather_refuses_in_all_processes_alike(results) -> None:
    for messages in results("refused"):
        assert "got [2, 4], [3, 4] from processes 0 to 1." in messages["sizes"]
        assert "equally many samples" in messages["sizes"]
        assert "got [2, 4], [2, 5] from" in messages["widths"]
        assert "got [2, 4], [4] from" in messages["axes"]
        assert "got [2], [3] from processes 0 to 1 (without the padded" in messages["padded sizes"]
        assert "at least 1 axes; got [[], []]" in messages["number"]
        assert "at least 2 axes; got [[3], [3]]" in messages["nothing to pad"]


def averaging(folder: Path) -> dict[str, Any]:
    with joined():
        parameters = [nn.Parameter(torch.zeros(2, 3)) for _ in range(4)]
        parameters.append(nn.Parameter(torch.zeros(2, dtype=torch.float64)))
        parameters[0].grad = torch.full((3, 2), 1.0 + rank()).T  # not contiguous
        if rank() == 1:
            parameters[1].grad = torch.ones(2, 3)
        parameters[3].grad = torch.full((2, 3), float("nan") if rank() else 0.0)
        parameters[4].grad = torch.full((2,), 3.0 * rank(), dtype=torch.float64)
        average_gradients(parameters)
        module = nn.BatchNorm1d(2)
        module.register_buffer("seen", torch.tensor([True, False]))
        module.weight = nn.Parameter((1 + rank()) * torch.arange(6.0).view(2, 3).T)
        for tensor in [module.bias, *module.buffers()]:
            tensor.data = torch.full_like(tensor.data, rank())
        broadcast(module)
        return {"gradients": [p.grad for p in parameters], "state": dict(module.state_dict())}


def test_gradients_are_averaged_and_states_broadcast(results) -> None:
    for found in results("average"):
        both, one, none, bad, double = found["gradients"]
        assert torch.equal(both, torch.full((2, 3), 1.5))
        assert torch.equal(one, torch.full((2, 3), 0.5))  # unused in a process: counts as 0
        assert none is None
        assert bad.isnan().all()
        assert torch.equal(double, torch.full((2,), 1.5, dtype=torch.float64))
        state = found["state"]
        assert torch.equal(state.pop("weight"), torch.arange(6.0).view(2, 3).T)
        assert state.keys() == {
            "bias",
            "running_mean",
            "running_var",
            "num_batches_tracked",
            "seen",
        }
        assert not any(value.any() for value in state.values())


def test_alone_nothing_happens() -> None:
    values = torch.rand(3, 2, requires_grad=True)
    with joined():
        assert (rank(), world_size(), own_rows(3)) == (0, 1, None)
        assert gather(values) is values
        assert gather(values, pad=True) is values
        assert average(values) is values
        assert own_device("cuda:3") == torch.device("cuda:3")


def test_each_process_has_its_own_gpu(monkeypatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)  # a group that torchrun has not made
    assert own_device("cuda:0") == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_device("cpu") == torch.device("cpu")
    assert own_device("cuda") == own_device("cuda:0") == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(MMCLError, match=r"process 2 .* finds 2. Start at most 2"):
        own_device("cuda")


# --- fit ------------------------------------------------------------------------------------------


class Scenes:
    def __init__(self) -> None:
        self.values = scenes(22)
        self.values["image"] = self.values["image"].double()

    def __len__(self) -> int:
        return 22

    def batch(self, indices: list[int]) -> Batch:
        part = {name: self.values[name][indices] for name in ("image", "caption")}
        return part | {"caption": part["caption"][:, part["caption"].any(0)]}


class Weighted(CLIP):
    """Its loss has a weight, which a callback may set."""

    def __init__(self, *args: Any, margin: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.margin = margin
        self.register_buffer("weight", torch.tensor(1.0))

    def loss(self, batch: Batch) -> Batch:
        total = self.weight * super().loss(batch)["total"]
        return {"total": total, "brightness": batch["image"].mean()}


def weighted(seed: int = 0, **kwargs: Any) -> CLIP:
    return clip(seed, Weighted, **kwargs).double()


SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 4, "lr": 0.01, "progress": False}


def train(method: nn.Module, data: Any = None, **kwargs: Any) -> dict[str, Any]:
    """With 5 steps an epoch. What is left of a training, whether it ends well or not."""
    result: dict[str, Any] = {}
    try:
        result["history"] = fit(method, data or Scenes(), **SETTINGS | kwargs).steps
    except (MMCLError, OSError, RuntimeError, Stop) as error:
        result["failed"] = f"{type(error).__name__}: {error}"
    result["in a group"] = torch.distributed.is_initialized()
    return result | {"state": {name: v.clone() for name, v in method.state_dict().items()}}


def process() -> int:
    """Of torchrun, also outside of the group; 0 in the tests themselves."""
    return int(os.environ.get("RANK", 0))


def with_callbacks() -> tuple[list[tuple[int, float]], list[Callable[[Progress], None]]]:
    """One that looks, at a loss, too; and one that changes a weight of the loss."""
    seen: list[tuple[int, float]] = []
    batch = Scenes().batch(range(8))

    def look(progress: Progress) -> None:
        with torch.no_grad():
            seen.append((progress.step, float(progress.method.loss(batch)["total"])))

    def change(progress: Progress) -> None:
        progress.method.weight.fill_(1 + progress.epoch)

    return seen, [look, change]


def fitting(folder: Path) -> dict[str, Any]:
    seen, callbacks = with_callbacks()
    with contextlib.redirect_stderr(io.StringIO()) as bar:
        result = train(weighted(), progress=True, callbacks=callbacks)
    return result | {"seen": seen, "bar": bar.getvalue()}


def test_fit_in_two_processes_is_fit_in_one(results) -> None:
    seen, callbacks = with_callbacks()
    expected = train(weighted(), callbacks=callbacks)
    first, second = results("fit")
    for found in (first, second):
        assert_equal_results(found["state"], expected["state"], 1e-8)
        for name, values in expected["history"].items():
            if name != "seconds":
                assert found["history"][name] == pytest.approx(values, rel=1e-5), name
        assert not found["in a group"]  # it has left it again
    assert expected["state"]["weight"] == 3
    assert_equal_results(first["state"], second["state"], 0)
    assert [step for step, _ in seen] == [step for step, _ in first["seen"]] == [0, 5, 10]
    assert [loss for _, loss in first["seen"]] == pytest.approx([loss for _, loss in seen])
    assert second["seen"] == []
    assert "10/10" in first["bar"]
    assert second["bar"] == ""


class Stop(Exception):
    pass


def noisy(draws: list[float], stop: int = 10**9, much: float = 0.1) -> Callable[[Batch], Batch]:
    """An augmentation that notes what it drew, and raises in the step after so many."""

    def augment(batch: Batch) -> Batch:
        if len(draws) == stop:
            raise Stop
        noise = torch.randn_like(batch["image"])
        draws.append(float(noise.sum()))
        return batch | {"image": batch["image"] + much * noise}

    return augment


def resuming(folder: Path) -> dict[str, Any]:
    kwargs: dict[str, Any] = {"checkpoint": folder / "two.pt", "checkpoint_every": 3}
    whole, stopped, resumed = [], [], []  # type: list[float], list[float], list[float]
    expected = train(weighted(), augment=noisy(whole))
    train(weighted(), augment=noisy(stopped, stop=8), **kwargs)
    got = train(weighted(seed=9), augment=noisy(resumed), resume=True, **kwargs)
    own = folder / f"{process()}.pt"  # not on a disk that all see, and one is missing
    if process() == 0:
        own.write_bytes((folder / "two.pt").read_bytes())
    apart = train(weighted(seed=9), checkpoint=own, resume=True)
    return {
        "draws": (whole, stopped, resumed),
        "expected": expected["state"],
        "state": got["state"],
        "apart": apart["failed"],
        "left over": [path.name for path in folder.glob(".*.tmp")],
    }


def test_stop_and_resume_is_not_stopping(results) -> None:
    first, second = results("resume")
    for found in (first, second):
        assert_equal_results(found["state"], found["expected"], 0)
        whole, stopped, resumed = found["draws"]
        assert whole[:8] == stopped
        assert whole[6:] == resumed
        assert "process 0 has a checkpoint of step" in found["apart"]
        assert "= 10, process 1 has" in found["apart"]
        assert "(is it on a disk that all see? 0 is none) = 0" in found["apart"]
        assert found["left over"] == []
    assert not set(first["draws"][0]) & set(second["draws"][0])  # each draws its own
    assert_equal_results(first["state"], second["state"], 0)
    torch.manual_seed(0)  # process 0 draws as one process does, from the seed itself
    assert first["draws"][0][0] == float(torch.randn(2, 3, 16, 16, dtype=torch.float64).sum())


def test_another_number_of_processes_does_not_resume(results, run_folder: Path) -> None:
    results("resume")
    path = run_folder / "two.pt"
    method = weighted(seed=9)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    with pytest.raises(CheckpointError, match="world_size = 1, found world_size = 2; resume with"):
        fit(method, Scenes(), **SETTINGS, checkpoint=path, resume=True)
    assert_equal_results(dict(method.state_dict()), before, 0)
    saved = load_checkpoint(path, method)  # for use, it is as good as any
    assert saved.step == 10
    assert len(saved.rng) == saved.settings["world_size"] == 2


def failing(folder: Path) -> dict[str, Any]:
    """Each in one process only, in the third step."""

    def in_step_3(change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        # The weights of process 1 are others, until it gets those of process 0.
        method, calls = weighted(seed=process()), []
        plain = method.loss

        def loss(batch: Batch) -> Batch:
            calls.append(batch)
            parts = plain(batch)
            if len(calls) == 3 and process() == 1:
                parts["total"] = change(parts["total"])
            return parts

        method.loss = loss  # type: ignore[method-assign]
        return train(method)

    def fail(total: Tensor) -> Tensor:
        raise Stop("of process 1")

    return {
        "infinite": in_step_3(lambda total: total * torch.inf),
        "gradient": in_step_3(lambda total: total + (0 * total).sqrt()),
        "raised": in_step_3(fail),
        "indivisible": train(weighted(), batch_size=5),
    }


def test_a_failure_in_one_process_ends_all_and_updates_none(results) -> None:
    draws: list[float] = []
    expected = train(weighted(), augment=noisy(draws, stop=2, much=0.0))["state"]
    first, second = results("failure")
    for found in (first, second):
        assert "total = inf" in found["infinite"]["failed"]
        assert "step 3 (epoch 1): expected a finite loss" in found["infinite"]["failed"]
        assert "grad_norm = nan" in found["gradient"]["failed"]
        assert "divisible among the 2 processes; got 5" in found["indivisible"]["failed"]
        for name in ("infinite", "gradient", "raised"):
            assert_equal_results(found[name]["state"], expected, 1e-8)
            assert not found[name]["in a group"]
    assert first["infinite"]["failed"] == second["infinite"]["failed"]
    assert second["raised"]["failed"] == "Stop: of process 1"
    assert "Connection" in first["raised"]["failed"]


def raising(folder: Path) -> dict[str, Any]:
    """In one process only, and not in the loss."""

    class Broken(Scenes):
        def batch(self, indices: list[int]) -> Batch:
            if process() == 1 and len(indices) < 8:  # not when data are told apart
                raise Stop("in the data")
            return super().batch(indices)

    def augment(batch: Batch) -> Batch:
        if process() == 1:
            raise Stop("in augment")
        return batch

    def callback(progress: Progress) -> None:
        if progress.epoch == 1:
            raise Stop("in a callback")

    full = folder / "file"
    full.write_text("not a folder")
    wait_for_both(folder, "written")
    return {
        "data": train(weighted(), Broken()),
        "augment": train(weighted(), augment=augment),
        "callback": train(weighted(), callbacks=[callback]),
        "checkpoint": train(weighted(), checkpoint=full / "a.pt"),
    }


def wait_for_both(folder: Path, name: str) -> None:
    """Without a group."""
    (folder / f"{name}.{process()}").touch()
    while not all((folder / f"{name}.{number}").exists() for number in range(WORLD)):
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("where", "who", "told"),
    [
        ("data", 1, "Stop: in the data"),
        ("augment", 1, "Stop: in augment"),
        ("callback", 0, "Stop: in a callback"),
        ("checkpoint", 0, "Error: "),
    ],
)
def test_an_error_anywhere_in_one_process_ends_all(results, where, who, told) -> None:
    found = [result[where] for result in results("raising")]
    assert told in found[who]["failed"]
    assert "Connection" in found[1 - who]["failed"]
    assert not any(each["in a group"] for each in found)


# --- processes that differ ------------------------------------------------------------------------


def by_itself(folder: Path) -> dict[str, Any]:
    """Process 1 alone trains."""
    with alone():
        return train(weighted()) if process() == 1 else {}


def test_alone_under_torchrun_waits_for_no_other(results) -> None:
    """B8."""
    first, second = results("alone")
    assert first == {}
    assert_equal_results(second["state"], train(weighted())["state"], 1e-12)


def of_the_first(folder: Path) -> dict[str, Any]:
    """Callbacks of process 0 alone, as scripts often have them; the last one ends the training."""
    path, epochs = folder / "ended.pt", []  # type: Path, list[int]

    def look(progress: Progress) -> bool:
        epochs.append(progress.epoch)
        progress.method.weight.fill_(1 + progress.epoch)
        return progress.epoch < 1

    callbacks = [look] if process() == 0 else []
    ended = train(weighted(), callbacks=callbacks, checkpoint=path)
    again = train(weighted(seed=4), callbacks=callbacks, checkpoint=path, resume=True)
    return {"ended": ended, "again": again, "epochs": epochs}


def test_the_callbacks_are_those_of_process_0_and_may_end_all(results) -> None:
    """B9."""
    first, second = results("callbacks")
    for found in (first, second):
        assert len(found["ended"]["history"]["total"]) == 5
        assert len(found["again"]["history"]["total"]) == 5
        assert found["ended"]["state"]["weight"] == 2
        assert_equal_results(found["again"]["state"], found["ended"]["state"], 0)
    assert_equal_results(first["ended"]["state"], second["ended"]["state"], 0)
    assert (first["epochs"], second["epochs"]) == ([0, 1], [])


def further() -> nn.Module:
    method = weighted()
    method.register_buffer("extra", torch.zeros(2, dtype=torch.float64))
    return method


def fewer() -> nn.Module:
    method = weighted()
    method.heads["image"].requires_grad_(False)
    return method


def other_pictures() -> Scenes:
    data = Scenes()
    data.values["image"][0] += 1
    return data


# What process 1 does in another way, and what both say.
DIFFERENCES: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "epochs": (lambda folder: {"epochs": 3}, "process 0 has epochs = 2, process 1 has epochs = 3"),
    "batch_size": (lambda folder: {"batch_size": 6}, "has batch_size = 6"),
    "lr": (lambda folder: {"lr": 0.02}, "has lr = 0.02"),
    "seed": (lambda folder: {"seed": 1}, "has seed = 1"),
    "augment": (lambda folder: {"augment": noisy([])}, "has augment = True"),
    "checkpoint": (lambda folder: {"checkpoint": folder / "b.pt"}, "has checkpoint = True"),
    "callbacks": (
        lambda folder: {"callbacks": [print]},
        "callbacks are those of process 0, which has 0; another process has 1",
    ),
    "number of samples": (lambda folder: {"data": Fewer()}, "has samples = 20"),
    "samples": (lambda folder: {"data": other_pictures()}, "has data = "),
    "weights": (lambda folder: {"method": further()}, "has extra = float64 [2]"),
    "trained weights": (lambda folder: {"method": fewer()}, "has trained parameters = "),
    "arguments of the method": (
        lambda folder: {"method": weighted(margin=0.5)},
        "process 0 has margin = 0.0, process 1 has margin = 0.5",
    ),
    "method": (lambda folder: {"method": clip().double()}, "process 1 has method = CLIP"),
    "parts of the loss": (
        lambda folder: {"method": clip(kind=Talkative).double()},
        "has the loss parts = ['brightness', 'more', 'total']",
    ),
}


class Fewer(Scenes):
    def __len__(self) -> int:
        return 20


class Talkative(Weighted):
    def loss(self, batch: Batch) -> Batch:
        parts = super().loss(batch)
        return parts | ({"more": parts["total"].detach()} if process() == 1 else {})


def differing(folder: Path) -> dict[str, Any]:
    found = {}
    for name, (change, _) in DIFFERENCES.items():
        changes = change(folder) if process() == 1 or name == "parts of the loss" else {}
        found[name] = train(**{"method": weighted()} | changes)
    return found


@pytest.mark.parametrize("name", DIFFERENCES)
def test_processes_that_differ_are_refused_in_all(results, name) -> None:
    """B9: and no process waits for another in vain."""
    for found in results("differing"):
        assert DIFFERENCES[name][1] in found[name]["failed"]
        assert not found[name]["in a group"]


def entering(folder: Path) -> dict[str, Any]:
    """Process 1 takes its time to connect; whether process 0 is in before it."""
    connect = torch.distributed.init_process_group

    def slowly(*args: Any, **kwargs: Any) -> None:
        connect(*args, **kwargs)
        if process() == 1:
            time.sleep(1)
        (folder / f"connected.{process()}").touch()

    torch.distributed.init_process_group = slowly
    try:
        with joined():
            return {"both": all((folder / f"connected.{n}").exists() for n in range(WORLD))}
    finally:
        torch.distributed.init_process_group = connect


def test_no_process_begins_before_all_have_connected(results) -> None:
    """Else who is first, and fails at once, leaves while another still connects."""
    assert [found["both"] for found in results("entering")] == [True, True]


# --- two processes, started once ------------------------------------------------------------------


def in_a_group(case: Case) -> Callable[[Path], Batch]:
    def task(folder: Path) -> Batch:
        with joined():
            return two_steps(case)

    return task


TASKS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "raising": raising,  # in the first group of the processes, which nothing else may hold
    "gather": gathering,
    "refused": refusing,
    "average": averaging,
    "fit": fitting,
    "resume": resuming,
    "failure": failing,
    "alone": by_itself,
    "callbacks": of_the_first,
    "differing": differing,
    "entering": entering,
    **{name: in_a_group(case) for name, case in CASES.items()},
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two processes have left what came out, and their `log`."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    module = "tests.mmcl_core.test_distributed"
    command += ["--nproc-per-node", str(WORLD), "-m", module, str(folder)]
    with open(folder / "log", "wb") as log:
        running = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
        try:
            running.wait(SECONDS)
        except subprocess.TimeoutExpired:
            log.write(f"\nstopped after {SECONDS} seconds".encode())
        finally:
            running.terminate()  # torchrun ends its processes with it
            running.wait(60)
    return folder


@pytest.fixture
def results(run_folder: Path) -> Callable[[str], list[dict[str, Any]]]:
    """What a task returned, one dict for each process."""

    def of(name: str) -> list[dict[str, Any]]:
        found = []
        for number in range(WORLD):
            path = run_folder / f"{name}.{number}.result"
            if not path.exists():
                log = (run_folder / "log").read_text()[-5000:]
                pytest.fail(f"process {number} has not finished {name!r}:\n{log}", pytrace=False)
            found.append(torch.load(path, weights_only=False))
        if errors := [result["error"] for result in found if "error" in result]:
            pytest.fail("\n".join(errors), pytrace=False)
        return found

    return of


def run_tasks(folder: Path, names: list[str]) -> None:
    """What each of the two processes does: some tasks, or all."""
    torch.set_num_threads(1)
    for name, task in TASKS.items():
        if names and name not in names:
            continue
        print(f"process {process()}: {name}", flush=True)
        try:
            result = task(folder)
        except Exception:  # the next task joins a group of its own, and is not affected
            result = {"error": traceback.format_exc()}
        torch.save(result, folder / f"{name}.{process()}.result")


if __name__ == "__main__":
    run_tasks(Path(sys.argv[1]), sys.argv[2:])
