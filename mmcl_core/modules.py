"""What is done to a method from outside, and undone: its mode, its place, its wrapper, chance."""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mmcl_core.batches import Batch
from mmcl_core.errors import MMCLError, ShapeError

_WRAPPED = "_orig_mod"  # what torch.compile(module) calls the module within


def unwrapped(method: nn.Module) -> nn.Module:
    """The module within those of `torch.compile`; any other is itself."""
    while _WRAPPED in method._modules:
        method = method.get_submodule(_WRAPPED)
    return method


def own_name(name: str) -> str:
    """The name of a parameter, buffer or module as it is without `torch.compile`."""
    return name.replace(f"{_WRAPPED}.", "")


# --- where it is, and in which type ---------------------------------------------------------------


def device_of(method: nn.Module) -> torch.device:
    """Where a method is; raises ShapeError if it is on several devices, MMCLError if nowhere."""
    devices = {p.device for p in method.parameters()}
    if len(devices) > 1:
        raise ShapeError(
            f"expected a method on one device, got {sorted(map(str, devices))}; move it with .to()"
        )
    if not devices:
        raise MMCLError(f"{type(method).__name__} has no parameters to train")
    return devices.pop()


def taking(method: nn.Module) -> Callable[[Mapping[str, Tensor]], Batch]:
    """What brings batches to the device of a method, and their floats to the method's type.

    Where its parameters are of several types, or there are none, floats keep theirs.
    """
    parameters = list(method.parameters())
    device = parameters[0].device if parameters else torch.device("cpu")
    types = {p.dtype for p in parameters if p.is_floating_point()}
    dtype = types.pop() if len(types) == 1 else None

    def take(batch: Mapping[str, Tensor]) -> Batch:
        return {
            name: x.to(device, dtype if x.is_floating_point() else None, non_blocking=True)
            for name, x in batch.items()
        }

    return take


# --- train and eval mode --------------------------------------------------------------------------


@contextlib.contextmanager
def modes_kept(*modules: nn.Module) -> Iterator[None]:
    """Puts the mode of every module in them back on leaving."""
    found = [(part, part.training) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for part, mode in found:
            part.training = mode


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Eval mode, without gradients. Modes and random states are afterwards as before."""
    with modes_kept(*modules), random_state_kept(), torch.no_grad():
        for module in modules:
            module.eval()
        yield


@contextlib.contextmanager
def training(method: nn.Module) -> Iterator[None]:
    """Train mode, but for what is in eval mode on purpose. Modes are afterwards as before.

    - In a method in train mode, each module that is found in eval mode stays in it: a frozen
      encoder, or a BatchNorm whose running means are not to move.
    - A method in eval mode as a whole, as after `method.eval()`, is put into train mode, but for
      the modules of whose parameters none is trained.
    """
    with modes_kept(method):
        kept = list(method.modules() if method.training else _frozen(method))
        kept = [part for part in kept if not part.training]
        method.train()
        for part in kept:
            part.training = False
        yield


def _frozen(module: nn.Module) -> Iterator[nn.Module]:
    """All modules that have parameters, in them or in what holds them, none of which is trained."""
    parameters = list(module.parameters())
    if getattr(module, "moves", False):  # not by gradients, but it does
        return
    if parameters and not any(p.requires_grad for p in parameters):
        yield from module.modules()
        return
    for child in module.children():
        yield from _frozen(child)


# --- random states: torch's on the CPU and on a CUDA device, NumPy's and Python's -----------------


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Puts the global random states back on leaving, those of all CUDA devices included."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def seed_all(seed: int, device: torch.device) -> None:
    """Seeds all of them; 0 to 2^32 - 1."""
    # Not torch.manual_seed: it would seed devices that are not in use here, too.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


def get_random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of all of them as tensors, by kind."""
    _, keys, *rest = cast(tuple[Any, ...], np.random.get_state())  # noqa: NPY002
    _, words, gauss = random.getstate()
    states = {
        "cpu": torch.get_rng_state(),
        "numpy": torch.tensor([*keys.tolist(), *rest], dtype=torch.float64),
        "python": torch.tensor([*words, np.nan if gauss is None else gauss], dtype=torch.float64),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Puts back what `get_random_state` gave."""
    # Clones: of a row of a larger tensor, PyTorch 2.13 reads past the end, and crashes.
    torch.set_rng_state(states["cpu"].clone())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].clone(), device)
    *keys, place, has_gauss, gauss = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), int(place), int(has_gauss), gauss))  # noqa: NPY002
    *words, gauss = states["python"].tolist()
    random.setstate((3, tuple(map(int, words)), None if np.isnan(gauss) else gauss))
