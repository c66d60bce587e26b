"""One training loop for every method.

A method is an `nn.Module` with `loss(batch) -> dict[str, Tensor]` (named scalar parts, and
`"total"`, which is minimised) and, where state moves without a gradient, `after_step()`.
"""

import contextlib
import math
import os
import time
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
    device_of,
    load_checkpoint,
    save_checkpoint,
    set_rng,
)
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
from mmcl_core.errors import CheckpointError, MMCLError, ShapeError

__all__ = [
    "Checkpoint",
    "History",
    "Progress",
    "fit",
    "load_checkpoint",
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
    left out of it (other ones each epoch). The caller's random state, and the method's train or
    eval mode, are afterwards as before. On the CPU the same seed gives the same weights, bit for
    bit, for one version of PyTorch, one machine and one number of threads.

    Several processes. Under `torchrun`, W processes train as one: the samples of each step are
    those of one process, cut into W equal parts in the order of the ranks; loss parts and gradients
    are averaged, and all begin with the weights of process 0. For a method that gathers its
    embeddings (see `distributed.gather`), this is the training of one process. Each process draws
    random numbers of its own, so that augmentations differ between them. Callbacks and the bar are
    process 0's, which counts as alone in a callback: `method.loss` does not wait for the others.
    An error in one process ends all, before anything is updated.

    Args:
        method: an `nn.Module` with `loss(batch) -> dict` of scalars, `"total"` among them, and
            perhaps `after_step()`, called after each step of the optimiser.
        data: has `__len__` and `batch(indices) -> dict of tensors`, as the data sets of this
            library have; or is a part of such one by `random_split`; or any `Dataset` whose samples
            are dicts (see `Batched`).
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
        augment: changes each batch, on the device; may draw from torch's global generator.
        callbacks: each is called with a `Progress` before the first step and after each epoch.
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
            Callbacks are not called again for epochs that are done.

    Returns:
        The history of all steps, those before a resume included.

    Raises:
        MMCLError: an argument is outside its range; or the loss or its gradient is not finite, and
            then parameters, optimiser and `after_step()` state are as before that step.
        ShapeError: fewer samples than `batch_size`, parts of the loss that are not scalars, or a
            method on several devices.
        CheckpointError: the checkpoint is not of this method or of this training.
    """
    _check_settings(epochs, batch_size, lr, weight_decay, schedule, warmup, clip_norm, seed)
    data = Batched(data)
    _check_protocols(method, data, augment, callbacks, batch_size)
    path = _checkpoint_path(checkpoint, checkpoint_every, resume)
    method.to(own_device(device_of(method) if device is None else device))
    place = device_of(method)
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    parameters = list(trained.values())
    optimizer = _optimizer(parameters, lr, weight_decay, betas, place)

    steps_per_epoch = len(data) // batch_size
    steps = epochs * steps_per_epoch
    save_every = checkpoint_every or steps_per_epoch
    # All that decides what comes next: a training is resumed with the same, or not at all.
    settings = {
        "world_size": world_size(),
        "samples": len(data),
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": float(lr),
        "weight_decay": float(weight_decay),
        "betas": (float(betas[0]), float(betas[1])),
        "schedule": schedule,
        "warmup": None if warmup is None else float(warmup),
        "clip_norm": None if clip_norm is None else float(clip_norm),
        "autocast": bool(autocast),
        "seed": seed,
        "trained parameters": list(trained),
    }
    history, start, rng = History(steps_per_epoch), 0, None
    if path and resume and path.exists():
        saved = load_checkpoint(path, method, optimizer=optimizer, settings=settings)
        history, start, rng = saved.history or history, saved.step, saved.rng[rank()]
    _check_same_start(path, start, place)
    broadcast(method)

    loss = cast(Callable[[Batch], dict[str, Tensor]], method.loss)
    after_step = cast(Callable[[], None] | None, getattr(method, "after_step", None))
    loader = DataLoader(
        data,
        batch_sampler=_Order(
            len(data), batch_size, seed, start, steps, own_rows(batch_size // world_size())
        ),
        collate_fn=_identity,
        num_workers=num_workers,
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

    def report(step: int) -> None:
        state = Progress(method, step // steps_per_epoch, epochs, step, history)
        for callback in callbacks if rank() == 0 else ():
            with alone(), _modes_kept(method), _fork_rng(place):
                callback(state)
        if callbacks:
            broadcast(method)  # what they have changed; the other processes wait here

    with bar, _modes_kept(method), _fork_rng(place):
        if rng is None:
            # Not seed + 2^32 * rank: torch's generator on the CPU takes the lower 32 bits alone.
            _seed_rng((seed + 1_000_003 * rank()) % 2**32, place)
        else:
            set_rng(rng, place)
        if start == 0:
            report(0)
        method.train()
        batches = iter(loader) if start < steps else iter(())
        for step in range(start, steps):
            started = time.perf_counter()
            batch = _to_device(next(batches), place)
            if augment is not None:
                batch = _checked_batch(augment(batch), "augment(batch)")
            with torch.autocast(place.type, torch.bfloat16, enabled=autocast):
                parts = loss(batch)
            _check_parts(parts, history)
            optimizer.zero_grad()
            parts["total"].backward()
            average_gradients(parameters)
            norm = _clip(parameters, clip_norm)
            # One transfer for all values of the step. It waits for the device, so nothing is
            # updated before the values are known to be finite, in any process.
            values = torch.stack([*(p.detach().float() for p in parts.values()), norm.float()])
            values = average(values)
            record = dict(zip([*parts, "grad_norm"], values.tolist(), strict=True))
            if not math.isfinite(record["total"] + record["grad_norm"]):
                optimizer.zero_grad()
                raise MMCLError(_not_finite(record, step, step // steps_per_epoch))
            rate = lr * schedule_factor(schedule, step, steps, warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            if after_step is not None:
                after_step()

            record |= {"lr": rate, "seconds": time.perf_counter() - started}
            for name, value in record.items():
                history.steps.setdefault(name, []).append(value)
            done = step + 1
            bar.set_postfix_str(f"loss {record['total']:.4f}", refresh=False)
            if done % steps_per_epoch == 0:
                bar.set_description_str(f"epoch {done // steps_per_epoch}/{epochs}", refresh=False)
            bar.update()
            if done % steps_per_epoch == 0:
                report(done)
            if path and (done % save_every == 0 or done == steps):
                save_checkpoint(
                    path, method, optimizer=optimizer, history=history, settings=settings
                )
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


def _identity(batch: Any) -> Any:
    return batch


def _to_device(batch: Batch, device: torch.device) -> Batch:
    batch = _checked_batch(batch, "data.batch(indices)")
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def _checked_batch(batch: object, source: str) -> Batch:
    if not isinstance(batch, dict):
        raise MMCLError(f"{source} must return a dict of tensors; got {type(batch).__name__}")
    for name, value in batch.items():
        if not isinstance(value, Tensor):
            raise MMCLError(f"{source}[{name!r}] must be a tensor; got {type(value).__name__}")
    return batch


def _optimizer(
    parameters: list[nn.Parameter],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    device: torch.device,
) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    # Fused is one kernel for all parameters: on a CPU a tenth of the time of the plain loop.
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)


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
        raise MMCLError(f"method.loss(batch) must return a dict with 'total'; got {found}")
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


def _check_settings(
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    schedule: str,
    warmup: float | None,
    clip_norm: float | None,
    seed: int,
) -> None:
    for name, count in (("epochs", epochs), ("batch_size", batch_size)):
        if not isinstance(count, int) or count < 1:
            raise MMCLError(f"{name} must be a whole number, at least 1; got {count!r}")
    if batch_size % world_size():
        raise MMCLError(
            f"batch_size, the samples of a step, must be divisible among the {world_size()} "
            f"processes; got {batch_size}"
        )
    if not 0 < lr < math.inf:
        raise MMCLError(f"lr must be above 0 and finite; got {lr}")
    if not 0 <= weight_decay < math.inf:
        raise MMCLError(f"weight_decay must be at least 0 and finite; got {weight_decay}")
    if schedule not in SCHEDULES:
        raise MMCLError(f"schedule must be one of {', '.join(SCHEDULES)}; got {schedule!r}")
    if warmup is not None and not 0 <= warmup < 1:
        raise MMCLError(f"warmup is a share of the steps, in [0, 1); got {warmup}")
    if clip_norm is not None and not 0 < clip_norm < math.inf:
        raise MMCLError(f"clip_norm must be above 0 and finite, or None; got {clip_norm}")
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise MMCLError(f"seed must be a whole number from 0 to 2^32 - 1; got {seed!r}")


def _check_protocols(
    method: nn.Module,
    data: Batched,
    augment: object,
    callbacks: Sequence[object],
    batch_size: int,
) -> None:
    if not isinstance(method, nn.Module) or not callable(getattr(method, "loss", None)):
        raise MMCLError(
            "method must be an nn.Module with loss(batch) -> dict of scalars; "
            f"got {type(method).__name__}"
        )
    if (n := len(data)) < batch_size:
        raise ShapeError(f"expected at least one batch of {batch_size} samples; the data has {n}")
    if augment is not None and not callable(augment):
        raise MMCLError(f"augment must be callable on a batch; got {type(augment).__name__}")
    for callback in callbacks:
        if not callable(callback):
            raise MMCLError(f"a callback must be callable; got {type(callback).__name__}")


def _check_same_start(path: Path | None, start: int, device: torch.device) -> None:
    starts = gather(torch.tensor([start], device=device)).tolist()
    if len(set(starts)) > 1:
        raise CheckpointError(
            f"{path}: expected one checkpoint for all processes, they found those of the steps "
            f"{starts} (0 is none); put it on a disk that all of them see"
        )


def _checkpoint_path(
    checkpoint: str | os.PathLike[str] | None, every: int | None, resume: bool
) -> Path | None:
    if checkpoint is None:
        if resume or every is not None:
            raise MMCLError("resume and checkpoint_every need a checkpoint: pass the path of one")
        return None
    if every is not None and (not isinstance(every, int) or every < 1):
        raise MMCLError(f"checkpoint_every must be a whole number, at least 1; got {every!r}")
    path = Path(checkpoint)
    if path.is_dir():
        raise CheckpointError(f"{path}: expected the path of a file, found a folder")
    return path


def _fork_rng(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Puts the random state back on leaving."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _seed_rng(seed: int, device: torch.device) -> None:
    # Not torch.manual_seed: it would seed devices that are not in use here, too.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def _modes_kept(method: nn.Module) -> Iterator[None]:
    """Puts every module's train or eval mode back on leaving."""
    modes = [(module, module.training) for module in method.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
