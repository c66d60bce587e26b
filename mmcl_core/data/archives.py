"""Unpacking somebody else's archive: bounded, inside its folder, and whole or not at all."""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, NamedTuple

from mmcl_core.errors import DataError, MMCLError

_BLOCK = 1 << 20


class _Member(NamedTuple):
    """One member of an archive."""

    name: str
    kind: str  # "file", "folder", or what else it is, in words
    size: int  # as announced, which need not be true
    info: Any  # of zipfile or tarfile


def unpack(
    archive: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    most_bytes: int,
    most_files: int,
    inside: str = "",
) -> Path:
    """Unpacks a zip or tar archive into a new folder; whole, or not at all.

    All goes to a folder of another name beside it first. An archive with anything but plain files
    and folders in it (links, devices), or with a name that would lie outside, is not unpacked.

    Args:
        archive: zip, or tar, also compressed by gzip, bzip2 or xz.
        folder: the folder to make; must not be there.
        most_bytes: of all files that are unpacked; counted while unpacking, since an archive may
            say less than is in it.
        most_files: members that the archive may have, folders included.
        inside: take only what lies in this folder of the archive, without its name.

    Returns:
        `folder`.

    Raises:
        DataError: the folder is there; the archive cannot be read, is too large, has nothing in
            `inside`, or has a member that is not wanted.
        MMCLError: a bound is below 1.
    """
    archive, folder = Path(archive), Path(folder)
    if most_bytes < 1 or most_files < 1:
        raise MMCLError(
            f"most_bytes and most_files: expected at least 1, got {most_bytes} and {most_files}"
        )
    with new_folder(folder) as part:
        try:
            _unpack_into(archive, part, most_bytes, most_files, PurePosixPath(inside))
        except DataError:
            raise
        except _UNREADABLE as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise DataError(f"{folder}: cannot be written ({error})") from error
            raise DataError(
                f"{archive}: expected a whole zip or tar archive, got {error}"
            ) from error
    return folder


@contextmanager
def new_folder(root: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when all went well."""
    if root.exists() or root.is_symlink():
        raise DataError(f"{root}: expected a new folder, but it is there")
    part = root.with_name(f".{root.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a call that was stopped
    part.mkdir(parents=True)
    try:
        yield part
        os.rename(part, root)
    finally:
        shutil.rmtree(part, ignore_errors=True)


# RuntimeError: a password; NotImplementedError: an unknown compression.
_UNREADABLE = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError,
    OSError, RuntimeError, NotImplementedError, ValueError,
)  # fmt: skip


def _unpack_into(
    archive: Path, root: Path, most_bytes: int, most_files: int, inside: PurePosixPath
) -> None:
    written, files = 0, 0
    with ExitStack() as stack:
        members, opened = _opened(archive, stack)
        for count, member in enumerate(members, start=1):
            if count > most_files:
                raise DataError(f"{archive}: expected at most {most_files:,} members, got more")
            name = _safe_name(archive, member)
            if not name.is_relative_to(inside):
                continue
            target = root / name.relative_to(inside)
            if member.kind == "folder":
                target.mkdir(parents=True, exist_ok=True)
                continue
            if written + member.size > most_bytes:
                raise DataError(f"{archive}: expected at most {most_bytes:,} bytes in it, got more")
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                raise DataError(f"{archive}: {member.name} is in it twice")
            with opened(member) as source, target.open("xb") as file:
                while block := source.read(_BLOCK):
                    written += len(block)
                    if written > most_bytes:
                        raise DataError(
                            f"{archive}: expected at most {most_bytes:,} bytes in it, got more"
                        )
                    file.write(block)
            files += 1
    if not files:
        where = f"files in its folder {inside}/" if inside.parts else "files"
        raise DataError(f"{archive}: expected {where}, got none")


def _opened(
    archive: Path, stack: ExitStack
) -> tuple[Iterator[_Member], Callable[[_Member], IO[bytes]]]:
    """The members of an archive, and what opens one of them."""
    if zipfile.is_zipfile(archive):
        packed = stack.enter_context(zipfile.ZipFile(archive))
        return map(_zip_member, packed.infolist()), lambda member: packed.open(member.info)
    tar = stack.enter_context(tarfile.open(archive, "r:*"))  # noqa: SIM115
    return _tar_members(tar), lambda member: _tar_file(tar, member.info)


def _zip_member(info: zipfile.ZipInfo) -> _Member:
    mode = stat.S_IFMT(info.external_attr >> 16)
    kind = "folder" if info.is_dir() else "file"
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        kind = "link" if mode == stat.S_IFLNK else "special file"
    return _Member(info.filename, kind, info.file_size, info)


def _tar_members(tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:
        kind = "file" if info.isreg() else "folder" if info.isdir() else "special file"
        if info.issym() or info.islnk():
            kind = "link"
        yield _Member(info.name, kind, info.size, info)


def _tar_file(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(info)
    assert file is not None  # it is a plain file
    return file


def _safe_name(archive: Path, member: _Member) -> PurePosixPath:
    """The path of a member in the folder.

    Raises:
        DataError: it is no plain file or folder, or would lie outside on some system.
    """
    if member.kind not in ("file", "folder"):
        raise DataError(
            f"{archive}: expected plain files and folders, got a {member.kind}, {member.name!r}; "
            "nothing was unpacked"
        )
    # Windows takes both strokes for separators, and names drives: what is safe there is so here.
    path = PureWindowsPath(member.name)
    if path.drive or path.root or ".." in path.parts or "\0" in member.name or not path.parts:
        if member.kind == "folder" and member.name in (".", "./"):
            return PurePosixPath()
        raise DataError(
            f"{archive}: the member {member.name!r} would lie outside of the folder; nothing was "
            "unpacked"
        )
    return PurePosixPath(member.name)
