"""What a training leaves behind: its history, and a file from which it goes on exactly."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmcl_core.distributed import gather, rank, wait, world_size
from mmcl_core.errors import CheckpointError, MMCLError, ShapeError
from mmcl_core.files import new_file

OWN_RECORDS = ("lr", "grad_norm", "seconds")  # what fit() records beside the parts of the loss
_FORMAT = "mmcl_core.checkpoint.2"


@dataclass
class History:
    """What happened in each step.

    Attributes:
        steps_per_epoch: steps that make one epoch.
        steps: name to one float for each step. The names are the parts of the loss (`"total"`
            among them), `"lr"`, `"grad_norm"` (before clipping) and `"seconds"` (wall time of the
            step, data included, callbacks and checkpoints not).
    """

    steps_per_epoch: int
    steps: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in ("total", *OWN_RECORDS)}
    )

    def __getitem__(self, name: str) -> list[float]:
        """The values of one name, one for each step: `history["total"]`."""
        if name not in self.steps:
            raise MMCLError(f"the history holds {sorted(self.steps)}; got {name!r}")
        return self.steps[name]

    def __len__(self) -> int:
        """The number of steps so far."""
        return len(self.steps["total"])

    @property
    def epochs(self) -> int:
        """The number of whole epochs so far."""
        return len(self) // self.steps_per_epoch

    def epoch_means(self, name: str) -> list[float]:
        """The mean of `name` over each whole epoch."""
        values, n = self[name], self.steps_per_epoch
        return [sum(values[e * n : (e + 1) * n]) / n for e in range(self.epochs)]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and strings, for JSON; `History(**d)` makes the history again."""
        return {
            "steps_per_epoch": self.steps_per_epoch,
            "steps": {name: list(values) for name, values in self.steps.items()},
        }


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds beside the weights.

    Attributes:
        step: steps done when it was written.
        history: of these steps, or None.
        settings: the arguments of the training.
        rng: states of the random generators, by kind of device: one dict for each process.
    """

    step: int
    history: History | None
    settings: dict[str, Any]
    rng: list[dict[str, Tensor]]


def save_checkpoint(
    path: str | os.PathLike[str],
    method: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    history: History | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes a method, and what its training needs to go on, to one file.

    The file is written under another name in the same folder and then renamed: a failure on the
    way leaves an earlier checkpoint as it was, and no other file. A missing folder is made.

    With several processes, all call this; process 0 writes, and the others wait for it.

    Args:
        path: the file.
        method: its `state_dict()`, buffers included, and the name of its class are kept.
        optimizer: its state is kept.
        history: is kept.
        settings: plain numbers, strings and lists, compared on loading.
    """
    device = device_of(method)
    content = {
        "format": _FORMAT,
        "method": type(method).__qualname__,
        "state": method.state_dict(),
        "optimizer": optimizer.state_dict() if optimizer else None,
        "history": history.to_dict() if history else None,
        "settings": dict(settings or {}),
        "rng": _all_rng(device),
    }
    if rank() == 0:
        with new_file(path) as file:
            torch.save(content, file)
    wait(device)


def load_checkpoint(
    path: str | os.PathLike[str],
    method: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Loads a checkpoint into a method, and into an optimiser if one is given.

    All is checked before anything is loaded: after an error the method is as it was. The file is
    read with `weights_only`, so it runs no code. The random generators are not touched.

    Args:
        path: a file that `save_checkpoint` wrote.
        method: of the same class, with parameters and buffers of the same names and shapes.
        optimizer: over the same parameters.
        settings: must equal those in the checkpoint; None asks for nothing.

    Raises:
        CheckpointError: the file is missing, cut short or no checkpoint; or it is of another
            method, of other shapes, or of other settings.
    """
    path = Path(path)
    content = _read(path)
    name = type(method).__qualname__
    if content["method"] != name:
        raise CheckpointError(
            f"{path}: expected a checkpoint of {name}, found one of {content['method']}"
        )
    _check_state(path, method.state_dict(), content["state"])
    for key, expected in (settings or {}).items():
        found = content["settings"].get(key)
        if found != expected:
            raise CheckpointError(
                f"{path}: expected a training with {key} = {expected}, found {key} = {found}; "
                "resume with the same arguments, or begin anew with another file"
            )
    if optimizer is not None:
        if content["optimizer"] is None:
            raise CheckpointError(f"{path}: expected the state of an optimiser, found none")
        try:
            optimizer.load_state_dict(content["optimizer"])
        except ValueError as error:
            raise CheckpointError(
                f"{path}: expected the state of this optimiser, found another: {error}"
            ) from error
    method.load_state_dict(content["state"])
    history = History(**content["history"]) if content["history"] else None
    step = len(history) if history else 0
    return Checkpoint(step, history, content["settings"], content["rng"])


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a checkpoint, found no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each raise their own on a damaged file
        raise CheckpointError(
            f"{path}: expected a checkpoint, found a file of {path.stat().st_size} bytes that "
            f"cannot be read; it is cut short or something else ({type(error).__name__})"
        ) from error
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found != _FORMAT:
        raise CheckpointError(f"{path}: expected the format {_FORMAT}, found {found}")
    return cast(dict[str, Any], content)


def _check_state(path: Path, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises CheckpointError unless both have tensors of the same names, shapes and types."""
    wrong = []
    for name in [*expected, *(name for name in found if name not in expected)]:
        a, b = _describe(expected, name), _describe(found, name)
        if a != b:
            wrong.append(f"{name}: expected {a}, found {b}")
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{path}: {'; '.join(wrong[:3])}{more}")


def _describe(state: Mapping[str, Any], name: str) -> str:
    if name not in state:
        return "nothing"
    value = state[name]
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def device_of(method: nn.Module) -> torch.device:
    devices = {p.device for p in method.parameters()}
    if len(devices) > 1:
        raise ShapeError(
            f"expected a method on one device, got {sorted(map(str, devices))}; move it with .to()"
        )
    if not devices:
        raise MMCLError(f"{type(method).__name__} has no parameters to train")
    return devices.pop()


# --- random generators: the CPU's, and that of the CUDA device in use -----------------------------


def get_rng(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _all_rng(device: torch.device) -> list[dict[str, Tensor]]:
    """The states of all processes."""
    all_states = {
        kind: gather(state[None].to(device)).cpu() for kind, state in get_rng(device).items()
    }
    return [{kind: states[r] for kind, states in all_states.items()} for r in range(world_size())]


def set_rng(states: Mapping[str, Tensor], device: torch.device) -> None:
    # Clones: of a row of a larger tensor, PyTorch 2.13 reads past the end, and crashes.
    torch.set_rng_state(states["cpu"].clone())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].clone(), device)
