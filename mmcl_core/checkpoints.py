"""What a training leaves behind: its history, and a file from which it goes on exactly."""

import contextlib
import functools
import inspect
import os
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mmcl_core.distributed import gather, rank, wait, world_size
from mmcl_core.errors import CheckpointError, MMCLError
from mmcl_core.files import new_file
from mmcl_core.modules import device_of, get_random_state, own_name, unwrapped

OWN_RECORDS = ("lr", "grad_norm", "seconds")  # what fit() records beside the parts of the loss
_FORMAT = "mmcl_core.checkpoint.3"


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
        settings: the arguments of the training; and "stopped", whether a callback has ended it.
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
        method: its `state_dict()`, buffers included, the name of its class, and what it was made
            with (`made_with`) are kept. `torch.compile` around it, or in it, leaves no trace.
        optimizer: its state is kept.
        history: is kept; 4 to 8 bytes a value.
        settings: numbers, strings and lists, NumPy's too; compared on loading.

    Raises:
        MMCLError: something of another type than these is to be kept, such as an object of your
            own in `settings`; nothing is written.
    """
    device = device_of(method)
    content = {
        "format": _FORMAT,
        "method": type(unwrapped(method)).__qualname__,
        "made_with": made_with(method),
        "state": plain_state(method),
        "optimizer": optimizer and plain(optimizer.state_dict(), "optimizer", tensors=True),
        "history": _packed(history) if history else None,
        "settings": plain(settings or {}, "settings"),
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
        method: of the same class, made with the same arguments (`made_with`), with parameters and
            buffers of the same names and shapes. What may differ, such as a temperature to go on
            with, is changed after loading.
        optimizer: over the same parameters.
        settings: must equal those in the checkpoint; None asks for nothing.

    Raises:
        CheckpointError: the file is missing, cut short or no checkpoint; or it is of another
            method, of other shapes, or of other settings.
    """
    path = Path(path)
    content = _read(path)
    name = type(unwrapped(method)).__qualname__
    if content["method"] != name:
        raise CheckpointError(
            f"{path}: expected a checkpoint of {name}, found one of {content['method']}"
        )
    _check_state(path, describe(plain_state(method)), describe(content["state"]))
    expected = plain(settings or {}, "settings")
    for what, asked, found, advice in (
        (name, made_with(method), content["made_with"], "make the method as that one was made"),
        (
            "training", expected, content["settings"],
            "resume with the same arguments, or begin anew with another file",
        ),
    ):  # fmt: skip
        for key, value in asked.items():
            # What a class kept only before, or keeps only now, cannot be compared.
            if (key in found or what == "training") and found.get(key) != value:
                raise CheckpointError(
                    f"{path}: expected a {what} with {key} = {value}, found {key} = "
                    f"{found.get(key)}; {advice}"
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
    state = method.state_dict()
    state.update({name: content["state"][own_name(name)] for name in state})
    method.load_state_dict(state)
    return _without_weights(content)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """What a checkpoint holds beside the weights, without a method to load them into.

    Raises:
        CheckpointError: the file is missing, cut short or no checkpoint.
    """
    return _without_weights(_read(Path(path)))


def _without_weights(content: dict[str, Any]) -> Checkpoint:
    history = content["history"] and History(
        content["history"]["steps_per_epoch"],
        {name: values.tolist() for name, values in content["history"]["steps"].items()},
    )
    step = len(history) if history is not None else 0
    return Checkpoint(step, history, content["settings"], content["rng"])


def _packed(history: History) -> dict[str, Any]:
    """The history as tensors: float32 where that is exact, as for all that a GPU computed."""
    steps = {}
    for name, values in history.steps.items():
        exact = torch.tensor(values, dtype=torch.float64)
        steps[name] = exact.float() if torch.equal(exact.float().double(), exact) else exact
    return {"steps_per_epoch": history.steps_per_epoch, "steps": steps}


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


def _check_state(path: Path, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raises CheckpointError unless both have tensors of the same names, shapes and types."""
    wrong = []
    for name in {**expected, **found}:
        a, b = (each.get(name, "nothing") for each in (expected, found))
        if a != b:
            wrong.append(f"{name}: expected {a}, found {b}")
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{path}: {'; '.join(wrong[:3])}{more}")


def describe(state: Mapping[str, Any]) -> dict[str, str]:
    """Of each tensor of a state its type and shape, such as "float32 [3, 6]"."""
    return {
        name: f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        if isinstance(value, Tensor)
        else "what is no tensor"
        for name, value in state.items()
    }


def _all_rng(device: torch.device) -> list[dict[str, Tensor]]:
    """The random states of all processes."""
    own, place = get_random_state(device), device if world_size() > 1 else "cpu"
    all_states = {kind: gather(state[None].to(place)).cpu() for kind, state in own.items()}
    return [{kind: states[r] for kind, states in all_states.items()} for r in range(world_size())]


# --- what is written in plain types ---------------------------------------------------------------


def plain(value: Any, name: str, *, tensors: bool = False) -> Any:
    """The same of Python's own numbers and strings, in lists, tuples and dicts.

    NumPy's numbers and arrays, scalar tensors, paths and dataclasses become such. All that goes
    into a file goes through here: the reader of a checkpoint knows no other types.

    Args:
        value: what is to be kept.
        name: of it, for the message.
        tensors: whether tensors are kept as they are.

    Raises:
        MMCLError: it holds something else.
    """
    if isinstance(value, Tensor):
        if tensors:
            return value
        value = value.item() if value.ndim == 0 else value
    elif isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {
            plain(key, f"a key of {name}"): plain(each, f"{name}[{key!r}]", tensors=tensors)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        kept = [plain(each, f"{name}[{i}]", tensors=tensors) for i, each in enumerate(value)]
        return kept if isinstance(value, list) else tuple(kept)
    if value is None or type(value) in (bool, int, float, str, bytes, complex):
        return value
    raise MMCLError(
        f"{name}: expected numbers, strings, lists or dicts, which a checkpoint can keep; got "
        f"{type(value).__name__}"
    )


def plain_state(method: nn.Module) -> dict[str, Any]:
    """The `state_dict()` of a method, without `torch.compile`, in types that a checkpoint keeps.

    Raises:
        MMCLError: `get_extra_state` of a module gives something else.
    """
    state = {own_name(name): value for name, value in method.state_dict().items()}
    return {name: plain(value, name, tensors=True) for name, value in state.items()}


def made_with(method: nn.Module) -> dict[str, Any]:
    """What a method was made with that is no weight: temperatures, variants, widths, ...

    Of each module in it, the arguments of `__init__` that it keeps as attributes of the same name,
    and its attributes that are frozen dataclasses, if they are of plain types. What makes no
    difference, or is moved by training, a module takes out by its name in `not_compared`.

    Returns:
        By names such as "temperature" and "encoders.image.blocks.0.heads".
    """
    found = {}
    for path, module in method.named_modules():
        arguments = _arguments(cast(Hashable, type(module))) - {"training", "device"}
        arguments -= set(getattr(module, "not_compared", ()))
        for name, value in vars(module).items():
            if isinstance(value, os.PathLike) or (isinstance(value, str) and os.sep in value):
                continue  # the same file may lie elsewhere
            frozen = getattr(getattr(value, "__dataclass_params__", None), "frozen", False)
            if name in arguments or frozen:
                with contextlib.suppress(MMCLError):
                    found[own_name(f"{path}.{name}").lstrip(".")] = plain(value, name)
    return found


@functools.cache
def _arguments(kind: Any) -> frozenset[str]:
    """The names of what can be passed to make an object of a class, by its bases, too."""
    signatures = (inspect.signature(each.__init__) for each in kind.__mro__[:-1])
    return frozenset(name for each in signatures for name in each.parameters)
