"""Models that come with a record: trained weights in 16 bits, to be looked at before any training.

They lie beside the record, `weights/NAME-CONDITION.safetensors`: of its first seed, made by the
code of the record. A number that a page computes from them is near the recorded one of this seed,
not the same: of a weight 16 bits are kept.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import safetensors.torch as st
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from mmcl_book.records.reading import RecordError, download, find_record
from mmcl_core.errors import MMCLError
from mmcl_core.files import new_file

MADE = "made"  # the key of a file's metadata
LARGEST = 1_000_000  # bytes of a file: they are kept in git, and fetched by a notebook alone

Model = TypeVar("Model", bound=nn.Module)


def file_of(record: Path, condition: str) -> Path:
    """The file of a model beside the record: its name has letters, digits and dots only."""
    plain = re.sub(r"[^\w.]+", "-", condition).strip("-")
    return record.parent / "weights" / f"{record.stem}-{plain}.safetensors"


def keep(record: Path, condition: str, model: nn.Module, *, seed: int, code: str) -> Path:
    """Writes the weights and buffers of a model; returns the file.

    Args:
        record: the file of the record.
        condition: of the record, by which the model was trained.
        model: the trained model.
        seed: of its training.
        code: the fingerprint of the code that trained it.

    Raises:
        MMCLError: the file would have more than `LARGEST` bytes, or a weight is too large for 16
            bits.
    """
    path = file_of(record, condition)
    tensors = {name: _halved(name, value) for name, value in model.state_dict().items()}
    _write(path, st.save(tensors, _about(condition=condition, seed=seed, code=code)))
    return path


def made_by(record: Path, condition: str) -> str | None:
    """The fingerprint of the code that trained a model; None if there is no such file."""
    path = file_of(record, condition)
    if not path.is_file():
        return None
    with _opened(path, lambda: safe_open(path, "pt")) as file:
        return str(json.loads(file.metadata()[MADE])["code"])


def date(record: Path, condition: str, code: str) -> None:
    """Says of a model that today's code would train it, too; nothing if there is none."""
    path = file_of(record, condition)
    if path.is_file():
        with safe_open(path, "pt") as file:
            made = json.loads(file.metadata()[MADE])
        _write(path, st.save(st.load_file(path), _about(**made | {"code": code})))


def read_weights(name: str, condition: str, model: Model, *, start: Path | None = None) -> Model:
    """Fills a model with the recorded weights, and returns it, in evaluation mode.

    Args:
        name: of the record.
        condition: of the record, by which the model was trained.
        model: of the same form, as it was made for the training.
        start: where to look for the record; see `read_record`.

    Raises:
        RecordError: there is no such record or file, or it is of another form than the model.
    """
    record = find_record(name, start)
    path = file_of(record or Path("records", f"{name}.json"), condition)
    if not path.is_file():
        raise RecordError(f"found no {path}; `make records` makes it, with the record of {name}")
    tensors = _opened(path, lambda: st.load_file(path))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise RecordError(f"{path}: expected the weights of such a model; {error}") from error
    return model.eval()


def fetch_weights(name: str, condition: str, url: str) -> None:
    """Downloads the weights to `records/weights`, unless they are there; after `fetch_record`.

    Raises:
        RecordError: they cannot be had from there, or are something else.
    """
    path = file_of(find_record(name) or Path("records", f"{name}.json"), condition)
    if path.is_file():
        return
    content = download(url, path)
    _opened(url, lambda: st.load(content))
    _write(path, content)


Found = TypeVar("Found")


def _opened(source: object, read: Callable[[], Found]) -> Found:
    try:
        return read()
    except SafetensorError as error:
        raise RecordError(f"{source}: expected weights, found something else ({error})") from error


def _about(**made: object) -> dict[str, str]:
    """Under one key: several are written in no order, and a file should repeat to the byte."""
    return {MADE: json.dumps(made)}


def _halved(name: str, value: torch.Tensor) -> torch.Tensor:
    kept = value.detach().cpu().contiguous()
    if not kept.is_floating_point():
        return kept
    half = kept.half()
    if not half.isfinite().all():
        raise MMCLError(f"{name}: expected numbers that 16 bits hold, got up to {kept.abs().max()}")
    return half


def _write(path: Path, content: bytes) -> None:
    if len(content) > LARGEST:
        raise MMCLError(f"{path}: expected at most {LARGEST} bytes, got {len(content)}")
    with new_file(path) as file:
        file.write(content)
