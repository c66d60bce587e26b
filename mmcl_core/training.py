"""One training loop for every method.

A method is an `nn.Module` with `loss(batch) -> dict[str, Tensor]` (named scalar parts, and
`"total"`, which is minimised) and, where state moves without a gradient, `after_step()`.

It is ours, to be read: Lightning and accelerate would hide the loop that the chapters explain.
"""

import hashlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from mmcl_core.batches import Batch, Batched, Data
from mmcl_core.checkpoints import (
    OWN_RECORDS,
    Checkpoint,
    History,
    describe,
    load_checkpoint,
    made_with,
    plain,
    plain_state,
    read_checkpoint,
    save_checkpoint,
)
from mmcl_core.distributed import (
    alone,
    average,
    average_gradients,
    broadcast,
    check_same,
    gather,
    joined,
    own_device,
    own_rows,
    rank,
    world_size,
)
from mmcl_core.errors import CheckpointError, MMCLError, ShapeError, check_count, check_number
from mmcl_core.modules import (
    device_of,
    modes_kept,
    own_name,
    random_state_kept,
    seed_all,
    set_random_state,
    taking,
    unwrapped,
)
from mmcl_core.modules import training as in_train_mode

__all__ = [
    "Checkpoint",
    "History",
    "Progress",
    "fit",
    "load_checkpoint",
    "read_checkpoint",
    "save_checkpoint",
    "schedule_factor",
]

Schedule = Literal["one_cycle", "cosine", "constant"]

SCHEDULES = ("one_cycle", "cosine", "constant")


@dataclass(frozen=True)
class Progress:
    """What a callback is shown: where training stands.

    Attributes:
        method: the method in training. Look, and change only what it offers to be changed, such as
            the weights of its losses. Of several processes, the others get what lies in a buffer.
        epoch: whole epochs done; 0 before the first step.
        epochs: epochs to do in all.
        step: steps done.
        history: the history so far.
    """

    method: nn.Module
    epoch: int
    epochs: int
    step: int
    history: History


@joined()
def fit(
    method: nn.Module,
    data: Data,
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.98),
    schedule: Schedule = "one_cycle",
    warmup: float | None = None,
    clip_norm: float | None = 1.0,
    autocast: bool = False,
    augment: Callable[[Batch], Batch] | None = None,
    callbacks: Sequence[Callable[[Progress], object]] = (),
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    num_workers: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
) -> History:
    """Trains a method, in place, with AdamW.

    One step: loss, gradients, clipping, optimiser, `method.after_step()`. The order of the samples
    depends on `seed` and the epoch only; the last samples of an epoch that do not fill a batch are
    left out of it (other ones each epoch). The caller's random states (torch's, NumPy's, Python's)
    and all modes are afterwards as before. On the CPU the same seed gives the same weights, bit for
    bit, for one version of PyTorch, one machine and one number of threads.

    Modes. What is in eval mode within a method in train mode stays there: a frozen encoder, or a
    BatchNorm whose running means are not to move. A method that is in eval mode as a whole is put
    into train mode, but for the modules of whose parameters none is trained: these stay as found.

    Calls. A method that has a `forward` is called, `method(batch)`, so that hooks and
    `torch.compile(method)` act; `forward` must then be its loss. Otherwise `method.loss` is. Floats
    of a batch are brought to the type of the method's parameters, such as float64 or bfloat16.

    Several processes. Under `torchrun`, W processes train as one: the samples of each step are
    those of one process, cut into W equal parts in the order of the ranks; loss parts and gradients
    are averaged, and all begin with the weights of process 0. For a method that gathers its
    embeddings (see `distributed.gather`), this is the training of one process. Each process draws
    random numbers of its own, so that augmentations differ between them. Callbacks and the bar are
    process 0's, which counts as alone in a callback: `method.loss` does not wait for the others.
    An error in one process ends all, before anything is updated. All else must be the same in all
    processes, data and method included, and is compared at the start.

    Args:
        method: an `nn.Module` with `loss(batch) -> dict` of scalars, `"total"` among them, and
            perhaps `after_step()`, called after each step of the optimiser.
        data: has `__len__` and `batch(indices) -> dict of tensors`, as the data sets of this
            library have; or is a part of such one by `random_split`; or any `Dataset` whose samples
            are dicts (see `Batched`). To tell other data of the same length, eight samples are read
            before a training with a checkpoint or several processes, unless it says itself who it
            is, with a string `identity`.
        epochs: passes over the data; at least 1.
        batch_size: samples of one step, 1 to `len(data)`; of all processes together.
        lr: the highest learning rate, above 0.
        weight_decay: of weights; biases, gains of norms and scalars (all that has fewer than two
            axes) are not decayed.
        betas: AdamW's decay rates of the two moments.
        schedule: how `lr` moves, see `schedule_factor`.
        warmup: share of the steps in which `lr` rises, in [0, 1); None is the schedule's own.
        clip_norm: gradients with a greater norm are scaled down to it; None clips nothing.
        autocast: compute the loss in bfloat16 where PyTorch thinks it safe. Measure before use:
            on many CPUs it is slower.
        augment: changes each batch, on the device; may draw from the global generators.
        callbacks: each is called with a `Progress` before the first step and after each epoch. If
            one returns False, the training ends there; whatever else it returns means nothing.
            Random numbers that it draws, and the mode that it sets, do not disturb training.
        seed: of the order of samples and of torch's generator, 0 to 2^32 - 1.
        device: where to train; the method is moved there. None is where the method is. Of several
            processes on one machine, each takes its own GPU.
        progress: show a bar with the loss.
        num_workers: processes that make batches; 0 makes them here, best for data in memory.
        checkpoint: file to write the state of the training to.
        checkpoint_every: write after each so many steps, and at the end. None is each epoch.
        resume: go on from `checkpoint` if that file is there, else begin. With the same arguments
            and number of processes the weights are those of a training that never stopped.
            Callbacks are not called again for epochs that are done, and a training that one of
            them has ended stays ended.

    Returns:
        The history of all steps, those before a resume included.

    Raises:
        MMCLError: an argument is outside its range; or the loss or its gradient is not finite, and
            then parameters, optimiser and `after_step()` state are as before that step; or the
            processes differ in what must be the same.
        ShapeError: fewer samples than `batch_size`, parts of the loss that are not scalars, or a
            method on several devices.
        CheckpointError: the checkpoint is not of this method or of this training.
    """
    data, callbacks = Batched(data), tuple(callbacks)
    _check_protocols(method, augment, callbacks)
    # All that decides what comes next: a training is resumed with the same, or not at all.
    settings = _checked_settings(
        epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, betas=betas,
        schedule=schedule, warmup=warmup, clip_norm=clip_norm, autocast=bool(autocast), seed=seed,
        samples=len(data), world_size=world_size(),
    )  # fmt: skip
    path = _checkpoint_path(checkpoint, checkpoint_every, resume)
    epochs, batch_size, seed = (settings[name] for name in ("epochs", "batch_size", "seed"))
    method.to(own_device(device_of(method) if device is None else device))
    place, take = device_of(method), taking(method)
    trained = {own_name(name): p for name, p in method.named_parameters() if p.requires_grad}
    parameters = list(trained.values())
    settings["trained parameters"] = list(trained)
    optimizer = _optimizer(parameters, settings, place)
    steps_per_epoch = len(data) // batch_size
    steps = epochs * steps_per_epoch
    save_every = checkpoint_every or steps_per_epoch

    if path or world_size() > 1:
        settings["data"] = _identity_of(data)
        state = describe(plain_state(method))  # it can be kept, as far as can be known
        others = {
            "method": type(unwrapped(method)).__qualname__,
            "augment": augment is not None,
            "checkpoint": path is not None,
            "checkpoint_every": checkpoint_every,
            "resume": resume,
            "device": place.type,
        }
        check_same(settings | others | made_with(method) | state)
    history, start, rng, ended = History(steps_per_epoch), 0, None, False
    if path and resume and path.exists():
        saved = load_checkpoint(path, method, optimizer=optimizer, settings=settings)
        history, start, rng = saved.history or history, saved.step, saved.rng[rank()]
        ended = saved.settings.get("stopped", False)
    _check_same_start(path, start, callbacks, place)
    broadcast(method)

    loss = _loss_of(method)
    after_step = cast(Callable[[], None] | None, getattr(method, "after_step", None))
    loader = DataLoader(
        data,
        batch_sampler=_Order(
            len(data), batch_size, seed, start, steps, own_rows(batch_size // world_size())
        ),
        collate_fn=_as_it_is,
        num_workers=check_count("num_workers", num_workers, 0),
        pin_memory=place.type == "cuda",
        generator=torch.Generator().manual_seed(seed),  # else it draws from the global one
    )
    bar = tqdm(
        total=steps,
        initial=start,
        disable=not progress or rank() > 0,
        unit="step",
        mininterval=0.5,
        dynamic_ncols=True,
        desc=f"epoch {start // steps_per_epoch}/{epochs}",
    )

    def report(step: int) -> bool:
        """Calls the callbacks of process 0; whether one of them ends the training."""
        state = Progress(unwrapped(method), step // steps_per_epoch, epochs, step, history)
        end = False
        for callback in callbacks if rank() == 0 else ():
            with alone(), modes_kept(method), random_state_kept():
                end |= _is_false(callback(state))
        # The other processes wait here, and get what has changed.
        changed, end = gather(torch.tensor([[bool(callbacks), end]], device=place))[0].tolist()
        if changed:
            broadcast(method)
        return end

    def save() -> None:
        if path:
            kept = settings | {"stopped": ended}
            save_checkpoint(path, method, optimizer=optimizer, history=history, settings=kept)

    with bar, in_train_mode(method), random_state_kept():
        if rng is None:
            # Not seed + 2^32 * rank: torch's generator on the CPU takes the lower 32 bits alone.
            seed_all((seed + 1_000_003 * rank()) % 2**32, place)
        else:
            set_random_state(rng, place)
        if start == 0 and not ended:
            ended = report(0)
            if ended:
                save()
        batches = iter(loader) if start < steps and not ended else iter(())
        for step in range(start, steps):
            if ended:
                break
            started = time.perf_counter()
            batch = _to_device(next(batches), place)
            if augment is not None:
                batch = _checked_batch(augment(batch), "augment(batch)")
            with torch.autocast(place.type, torch.bfloat16, enabled=settings["autocast"]):
                parts = loss(take(batch))
            _check_parts(parts, history)
            if step == start:
                check_same({"the loss parts": sorted(parts)})
            optimizer.zero_grad()
            parts["total"].backward()
            average_gradients(parameters)
            norm = _clip(parameters, settings["clip_norm"])
            # One transfer for all values of the step. It waits for the device, so nothing is
            # updated before the values are known to be finite, in any process.
            names = sorted(parts)
            values = torch.stack([*(parts[name].detach().float() for name in names), norm.float()])
            record = dict(zip([*names, "grad_norm"], average(values).tolist(), strict=True))
            if not math.isfinite(record["total"] + record["grad_norm"]):
                optimizer.zero_grad()
                raise MMCLError(_not_finite(record, step, step // steps_per_epoch))
            factor = schedule_factor(settings["schedule"], step, steps, settings["warmup"])
            for group in optimizer.param_groups:
                group["lr"] = settings["lr"] * factor
            optimizer.step()
            if after_step is not None:
                after_step()

            record["lr"] = settings["lr"] * factor
            record["seconds"] = time.perf_counter() - started
            for name, value in record.items():
                history.steps.setdefault(name, []).append(value)
            done = step + 1
            bar.set_postfix_str(f"loss {record['total']:.4f}", refresh=False)
            if done % steps_per_epoch == 0:
                bar.set_description_str(f"epoch {done // steps_per_epoch}/{epochs}", refresh=False)
            bar.update()
            if done % steps_per_epoch == 0:
                ended = report(done)
            if ended or done % save_every == 0 or done == steps:
                save()
        optimizer.zero_grad()
    return history


def schedule_factor(
    schedule: Schedule, step: int, steps: int, warmup: float | None = None
) -> float:
    """What `lr` is multiplied by in a step; at most 1.

    - `"one_cycle"`: half a cosine up from 1/25 over the first `warmup` (0.3) of the steps, half a
      cosine down to 1/250000 over the others (Smith & Topin, 2018, as PyTorch's `OneCycleLR` has
      it, without the cycle of the momentum).
    - `"cosine"`: half a cosine from 1 to 0; with a `warmup` (0), a straight rise to 1 before it.
    - `"constant"`: 1, with a `warmup` (0) as above.

    Args:
        schedule: one of the three names.
        step: 0 to `steps` - 1.
        steps: steps in all.
        warmup: share of the steps, in [0, 1); None is the value in parentheses above.
    """
    if schedule == "one_cycle":
        low, end = 1 / 25, 1 / 250_000
        top = max((0.3 if warmup is None else warmup) * steps - 1, 0.0)  # the step with factor 1
        if step < top:
            return 1 + (low - 1) * _half_cosine(step / top)
        return end + (1 - end) * _half_cosine((step - top) / max(steps - 1 - top, 1.0))
    rise = round((warmup or 0.0) * steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    return _half_cosine((step - rise) / (steps - rise)) if schedule == "cosine" else 1.0


def _half_cosine(x: float) -> float:
    """From 1 at x = 0 to 0 at x = 1."""
    return (1 + math.cos(math.pi * x)) / 2


class _Order(Sampler[list[int]]):
    """The batches of indices of steps `start` to `steps` - 1.

    The order of an epoch depends on (seed, epoch) only, so any step can be the first. One iterator
    runs over all epochs: worker processes start once. Of each batch it gives `rows`; None is all.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        start: int,
        steps: int,
        rows: slice | None = None,
    ) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.start, self.steps, self.rows = start, steps, rows or slice(None)

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = self.n // self.batch_size
        batches: list[list[int]] = []
        for step in range(self.start, self.steps):
            epoch, i = divmod(step, per_epoch)
            if not batches or i == 0:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                order = torch.randperm(self.n, generator=generator)[: per_epoch * self.batch_size]
                batches = order.view(per_epoch, self.batch_size).tolist()
            yield batches[i][self.rows]


def _as_it_is(batch: Any) -> Any:
    return batch


def _to_device(batch: Batch, device: torch.device) -> Batch:
    batch = _checked_batch(batch, "data.batch(indices)")
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def _identity_of(data: Batched) -> str | None:
    """A hash of eight samples, or what `data` says itself; None if no two readings are equal."""
    if (own := getattr(data.data, "identity", None)) is not None:
        return str(own)
    rows = sorted({i * (len(data) - 1) // 7 for i in range(8)})
    found = set()
    for _ in range(2):
        with random_state_kept():
            seed_all(0, torch.device("cpu"))
            batch = _checked_batch(data.batch(rows), "data.batch(indices)")
        digest = hashlib.sha256(repr(sorted(describe(batch).items())).encode())
        for _, value in sorted(batch.items()):
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        found.add(digest.hexdigest()[:16])
    return found.pop() if len(found) == 1 else None


def _loss_of(method: nn.Module) -> Callable[[Batch], dict[str, Tensor]]:
    """What computes the loss: the method itself where it has a `forward`, else its `loss`."""
    inner = unwrapped(method)
    if getattr(inner.forward, "__func__", inner.forward) is not nn.Module.forward:
        return method
    if inner is not method:
        warnings.warn(
            f"torch.compile compiles what forward() does, and {type(inner).__name__} has none: it "
            "trains as it is. Write `forward = loss` in its class",
            stacklevel=4,
        )
    return cast(Callable[[Batch], dict[str, Tensor]], method.loss)


def _is_false(answer: object) -> bool:
    """Whether a callback has said False, in Python, NumPy or torch."""
    return answer is False or (getattr(answer, "shape", None) == () and plain(answer, "") is False)


def _checked_batch(batch: object, source: str) -> Batch:
    if not isinstance(batch, dict):
        raise MMCLError(f"{source} must return a dict of tensors; got {type(batch).__name__}")
    for name, value in batch.items():
        if not isinstance(value, Tensor):
            raise MMCLError(f"{source}[{name!r}] must be a tensor; got {type(value).__name__}")
    return batch


def _optimizer(
    parameters: list[nn.Parameter], settings: dict[str, Any], device: torch.device
) -> torch.optim.AdamW:
    groups = [
        {
            "params": [p for p in parameters if p.ndim >= 2],
            "weight_decay": settings["weight_decay"],
        },
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    # Fused is one kernel for all parameters: on a CPU a tenth of the time of the plain loop.
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=settings["lr"], betas=settings["betas"], fused=fused)


def _clip(parameters: list[nn.Parameter], clip_norm: float | None) -> Tensor:
    """Scales the gradients to a norm of at most `clip_norm`; returns the norm before, a scalar."""
    if clip_norm is not None:
        return nn.utils.clip_grad_norm_(parameters, clip_norm)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _not_finite(record: dict[str, float], step: int, epoch: int) -> str:
    values = ", ".join(f"{name} = {value:g}" for name, value in record.items())
    return (
        f"step {step + 1} (epoch {epoch + 1}): expected a finite loss and gradient, got {values}. "
        "The weights are those before this step. Check the batch for NaN, lower lr, or raise the "
        "temperature"
    )


def _check_parts(parts: object, history: History) -> None:
    if not isinstance(parts, dict) or "total" not in parts:
        found = list(parts) if isinstance(parts, dict) else type(parts).__name__
        raise MMCLError(
            "method.loss(batch), and method.forward(batch) if there is one, must return a dict "
            f"with 'total'; got {found}"
        )
    for name, value in parts.items():
        if not isinstance(value, Tensor) or value.ndim:
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ShapeError(f"the loss part {name!r} must be a scalar tensor; got {shape}")
        if name in OWN_RECORDS:
            raise MMCLError(f"fit() records {name!r} itself; give this part of the loss a name")
    if not parts["total"].requires_grad:
        raise MMCLError("the loss 'total' must depend on a parameter that is trained; it does not")
    known = history.steps.keys() - OWN_RECORDS
    if len(history) and parts.keys() != known:
        raise MMCLError(
            f"expected the same loss parts in each step, {sorted(known)}; got {sorted(parts)}"
        )


def _checked_settings(**given: Any) -> dict[str, Any]:
    """The arguments of `fit` in plain types, each in its range."""
    settings: dict[str, Any] = plain(given, "fit")
    for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
        settings[name] = check_count(name, settings[name], least)
    for name, interval in (
        ("lr", "(0, inf)"),
        ("weight_decay", "[0, inf)"),
        ("warmup", "[0, 1)"),
        ("clip_norm", "(0, inf)"),
    ):
        if settings[name] is not None or name in ("lr", "weight_decay"):
            settings[name] = check_number(name, settings[name], interval)
    betas, batch_size, samples = (settings[name] for name in ("betas", "batch_size", "samples"))
    if not isinstance(betas, list | tuple) or len(betas) != 2:
        raise MMCLError(f"betas must be two numbers; got {betas}")
    settings["betas"] = tuple(check_number("betas", beta, "[0, 1)") for beta in betas)
    if settings["schedule"] not in SCHEDULES:
        raise MMCLError(
            f"schedule must be one of {', '.join(SCHEDULES)}; got {settings['schedule']!r}"
        )
    if settings["seed"] >= 2**32:
        raise MMCLError(f"seed must be at most 2^32 - 1; got {settings['seed']}")
    if batch_size % world_size():
        raise MMCLError(
            f"batch_size, the samples of a step, must be divisible among the {world_size()} "
            f"processes; got {batch_size}"
        )
    if samples < batch_size:
        raise ShapeError(
            f"expected at least one batch of {batch_size} samples; the data has {samples}"
        )
    return settings


def _check_protocols(method: object, augment: object, callbacks: Sequence[object]) -> None:
    if not isinstance(method, nn.Module) or not callable(getattr(method, "loss", None)):
        raise MMCLError(
            "method must be an nn.Module with loss(batch) -> dict of scalars; "
            f"got {type(method).__name__}"
        )
    for what, each in (
        *([] if augment is None else [("augment", augment)]),
        *(("a callback", callback) for callback in callbacks),
    ):
        if not callable(each):
            raise MMCLError(f"{what} must be callable; got {type(each).__name__}")


def _check_same_start(
    path: Path | None, start: int, callbacks: Sequence[object], device: torch.device
) -> None:
    """Raises in all processes unless they begin at one step, and process 0 has the callbacks."""
    everyone = gather(torch.tensor([[start, len(callbacks)]], device=device)).tolist()
    starts, counts = zip(*everyone, strict=True)
    if len(set(starts)) > 1:
        raise CheckpointError(
            f"{path}: expected one checkpoint for all processes, they found those of the steps "
            f"{list(starts)} (0 is none); put it on a disk that all of them see"
        )
    if max(counts) > counts[0]:
        raise MMCLError(
            f"the callbacks are those of process 0, which has {counts[0]}; process "
            f"{counts.index(max(counts))} has {max(counts)}"
        )


def _checkpoint_path(
    checkpoint: str | os.PathLike[str] | None, every: int | None, resume: bool
) -> Path | None:
    if checkpoint is None:
        if resume or every is not None:
            raise MMCLError("resume and checkpoint_every need a checkpoint: pass the path of one")
        return None
    if every is not None:
        check_count("checkpoint_every", every)
    path = Path(checkpoint)
    if path.is_dir():
        raise CheckpointError(f"{path}: expected the path of a file, found a folder")
    return path
