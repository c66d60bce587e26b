"""Files and folders that are there whole or not at all: the only way this library writes any.

What is written goes to another name beside its place first, then to the disk, and gets its own
name last. An error, Ctrl-C or a full disk leaves what was there before, and nothing beside it.

It is ours: Python's library has no such thing, and atomicwrites is no longer kept up.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mmcl_core.errors import DataError


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """An open file to fill, which takes the place of the one at `path` when all went well.

    A missing folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        with open(temporary, "xb") as file:
            yield file
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file of UTF-8 text, its line ends as they are; see `new_file`."""
    with new_file(path) as file:
        file.write(text.encode())


@contextmanager
def new_folder(root: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to fill, which gets its name when all went well.

    Raises:
        DataError: there is something of this name, before or after it was filled.
    """
    root = Path(root)
    there = DataError(f"{root}: expected a new folder, but it is there")
    if root.exists() or root.is_symlink():
        raise there
    part = _beside(root)
    try:
        part.mkdir(parents=True)
        yield part
        for file in part.rglob("*"):
            # A link leads to a file of somebody else, which is on the disk.
            if file.is_file() and not file.is_symlink() and file.stat().st_nlink == 1:
                _to_disk(file)
        try:
            os.rename(part, root)
        except OSError as error:
            if root.exists():
                raise there from error
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def put_in_place(temporary: Path, path: Path) -> None:
    """Gives a finished file its name, in one step that a power cut cannot divide."""
    _to_disk(temporary)
    os.replace(temporary, path)


def _beside(path: Path) -> Path:
    """A name that nobody else has, on the same disk, out of sight."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _to_disk(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
