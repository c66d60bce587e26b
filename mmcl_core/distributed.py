"""Several processes that train as one: what they exchange, with exact gradients.

Convention, everywhere: *the loss of the whole batch is the mean over the processes of each one's
loss*, and gradients are averaged over the processes. A loss on gathered embeddings then has every
gradient of one process on the joined batch, whatever the loss is.

All processes must call these functions in the same order; with one process alone, they do nothing.
PyTorch's groups do the work: gloo for tensors on the CPU, NCCL for those on GPUs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_core.errors import MMCLError, ShapeError

MAX_AXES = 8  # of a tensor that is gathered

_alone = False
_times_joined = 0


# --- who is there ---------------------------------------------------------------------------------


def world_size() -> int:
    """The number of processes; 1 without a group."""
    return dist.get_world_size() if _in_group() else 1


def rank() -> int:
    """The number of this process, 0 to `world_size()` - 1; 0 without a group."""
    return dist.get_rank() if _in_group() else 0


def own_rows(size: int) -> slice | None:
    """Where the `size` samples of this process lie in a gathered batch; None when alone."""
    if world_size() == 1:
        return None
    return slice(rank() * size, (rank() + 1) * size)


def own_device(device: torch.device | str) -> torch.device:
    """The device of this process: of several on one machine, the n-th takes the n-th GPU.

    Raises:
        MMCLError: the machine has fewer GPUs than processes.
    """
    device = torch.device(device)
    local = os.environ.get("LOCAL_RANK")
    if device.type != "cuda" or local is None or world_size() == 1:
        return device
    if (count := torch.cuda.device_count()) <= int(local):
        raise MMCLError(
            f"expected a GPU for each process of this machine; process {local} (counted from 0) "
            f"finds {count}. Start at most {count} with --nproc-per-node, or train on the CPU"
        )
    return torch.device("cuda", int(local))


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that `torchrun` has started, and leaves them at the end.

    Outside of torchrun, in a group already, or within `alone`, it does nothing. `with joined():`
    around a whole script saves `fit` from joining by itself; `@joined()` does it for a function.
    When an error ends it in one process, the others get an error too, as soon as they wait for that
    one.
    """
    global _times_joined
    started = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
    if _alone or not started or not dist.is_available() or dist.is_initialized():
        yield
        return
    _times_joined += 1
    store, number, size = _meeting_point()
    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
    if (local := int(os.environ.get("LOCAL_RANK", 0))) < torch.cuda.device_count():
        torch.cuda.set_device(local)  # what plain "cuda" means in this process
    # A name for each time: the addresses of the last group are still in the store.
    store = dist.PrefixStore(f"mmcl_core/{_times_joined}", store)
    dist.init_process_group(backend, store=store, rank=number, world_size=size)
    try:
        wait(torch.device("cpu"))  # who is first must not leave while another still connects
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it, this process counts as the only one, and waits for no other."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@functools.cache
def _meeting_point() -> tuple[dist.Store, int, int]:
    """The store of torchrun, the number of this process, and the number of all.

    Once: the first process may be its server, and must not close it between two groups.
    """
    return next(dist.rendezvous("env://"))


def _in_group() -> bool:
    return not _alone and dist.is_available() and dist.is_initialized()


# --- exchange -------------------------------------------------------------------------------------


def gather(values: Tensor, *, pad: bool = False) -> Tensor:
    """Joins the values of all processes, in the order of their ranks.

    The gradient is exact: each process gets the sum of all processes' gradients by its own values
    (and so for higher derivatives). The backward pass waits for the others, too: either all use
    the result, or none. Alone, the values come back as they are.

    Args:
        values: `[b, ...]`, of any type, with the same shape in each of the W processes.
        pad: first pad axis 1 with zeros to the longest of all processes (captions are trimmed by
            each process for itself).

    Returns:
        `[W * b, ...]`.

    Raises:
        ShapeError: the shapes differ between processes (all processes raise), or there is no axis
            to join along or to pad.
    """
    if world_size() == 1:
        return values
    shapes = _shapes(values)
    least = 2 if pad else 1
    if any(len(shape) < least for shape in shapes):
        raise ShapeError(f"gather needs tensors of at least {least} axes; got {shapes}")
    if pad:
        missing = max(shape[1] for shape in shapes) - values.shape[1]
        values = F.pad(values, (*(0, 0) * (values.ndim - 2), 0, missing))
        shapes = [[shape[0], *shape[2:]] for shape in shapes]
    if any(shape != shapes[0] for shape in shapes):
        given = ", ".join(map(str, shapes))
        raise ShapeError(
            f"expected tensors of one shape in all processes, got {given} from processes 0 to "
            f"{len(shapes) - 1}{' (without the padded axis)' if pad else ''}. Give all of them "
            "equally many samples, and leave out a last batch that is not full"
        )
    return _Gather.apply(values)


@torch.no_grad()
def average(values: Tensor) -> Tensor:
    """The mean of a tensor over the processes, in each of them; without a gradient."""
    if world_size() == 1:
        return values
    return _average_(values.clone())


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the processes.

    A parameter that only some processes have used counts as a gradient of 0 in the others; one
    that none has used keeps None.
    """
    if world_size() == 1:
        return
    parameters = list(parameters)
    used = [float(p.grad is not None) for p in parameters]
    used = average(torch.tensor(used, device=parameters[0].device)).tolist()
    gradients = []
    for p, share in zip(parameters, used, strict=True):
        if share > 0:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            gradients.append(p.grad)
    _in_buckets(gradients, _average_)


@torch.no_grad()
def broadcast(module: nn.Module) -> None:
    """Gives all processes the parameters and buffers of process 0."""
    if world_size() > 1:
        _in_buckets([*module.parameters(), *module.buffers()], lambda b: dist.broadcast(b, 0))


def check_same(values: Mapping[str, object]) -> None:
    """Compares what must be equal in all processes, before one waits for another in vain.

    Args:
        values: by name; what is compared is how they print. The names may differ, too.

    Raises:
        MMCLError: in all processes: some values differ.
    """
    if world_size() == 1:
        return
    # Of a group that has no way for tensors on the CPU, the GPU of this process.
    device = "cpu" if "cpu:" in dist.get_backend_config() else "cuda"
    own = json.dumps({name: str(value) for name, value in values.items()}).encode()
    rows = gather(torch.tensor([list(own)], dtype=torch.uint8, device=device), pad=True)
    first, *others = (json.loads(bytes(row).rstrip(b"\0")) for row in rows.tolist())
    for number, other in enumerate(others, 1):
        for name in first | other:
            a, b = (each.get(name, "nothing") for each in (first, other))
            if a != b:
                raise MMCLError(
                    f"expected the same in all processes; process 0 has {name} = {a[:200]}, "
                    f"process {number} has {name} = {b[:200]}"
                )


def wait(device: torch.device) -> None:
    """Returns when all processes have come here; `device` is one that the group can use."""
    average(torch.zeros(1, device=device)).tolist()


def _shapes(values: Tensor) -> list[list[int]]:
    """The shape of `values` in each process."""
    if values.ndim > MAX_AXES:
        raise ShapeError(f"expected at most {MAX_AXES} axes, got shape {list(values.shape)}")
    own = [values.ndim, *values.shape, *[0] * (MAX_AXES - values.ndim)]
    rows = _all(torch.tensor(own, device=values.device)).tolist()
    return [row[1 : 1 + row[0]] for row in rows]


def _all(values: Tensor) -> Tensor:
    """`[b, ...]` of one shape in all processes -> `[W, b, ...]`."""
    values = values.contiguous()
    joined = values.new_empty(dist.get_world_size(), *values.shape)
    # As bytes, since gloo does not know all types.
    dist.all_gather(list(joined.view(torch.uint8).unbind()), values.view(torch.uint8))
    return joined


def _average_(values: Tensor) -> Tensor:
    dist.all_reduce(values)
    return values.div_(dist.get_world_size())


def _in_buckets(tensors: Iterable[Tensor], change: Callable[[Tensor], object]) -> None:
    """Changes tensors in place, joined to one for each type: few messages instead of many."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for members in kinds.values():
        bucket = torch.cat([tensor.flatten() for tensor in members])
        change(bucket)
        parts = bucket.split([tensor.numel() for tensor in members])
        for tensor, part in zip(members, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))


class _Gather(torch.autograd.Function):
    """`[b, ...]` -> `[W * b, ...]`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.rows = own_rows(len(values))
        return _all(values).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Sum.apply(grad)[ctx.rows]


class _Sum(torch.autograd.Function):
    """The sum over the processes, and its gradient: again the sum."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Sum.apply(grad)
