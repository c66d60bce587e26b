"""Fetching a file from the net: bounded, checked, and whole or not at all.

What comes from the net is somebody else's. So a file has a known SHA-256 sum and a largest size
before the first byte is asked for.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from tqdm import tqdm

from mmcl_core.errors import DataError, MMCLError

_BLOCK = 1 << 20
_PAUSE = 0.2  # seconds, doubled with each failure


def download(
    url: str,
    path: str | os.PathLike[str],
    *,
    sha256: str,
    most_bytes: int,
    attempts: int = 5,
    timeout: float = 30.0,
    progress: bool = True,
) -> Path:
    """Fetches a file whose content is known by its sum; whole, or not at all.

    The bytes go to `path` with ".part" behind its name, which gets its own name when the sum is
    right. A download that was stopped, by a cut connection or by the reader, goes on where it was:
    in this call up to `attempts` times without a new byte, and in any later call. A server that
    cannot go on in the middle sends all from the start, as does one whose file has changed since.

    Args:
        url: http or https.
        path: the file to make; its folder is made, too. If it is there with this sum, nothing is
            fetched.
        sha256: the sum, 64 hexadecimal digits.
        most_bytes: of the file. A longer one is given up, before it is fetched where the server
            says its size.
        attempts: how often in a row the server may give nothing, at least 1.
        timeout: seconds to wait for an answer.
        progress: show a bar.

    Returns:
        `path`.

    Raises:
        DataError: there is another file at `path`; the server does not give the file; it is too
            long, or does not fit on the disk; its sum is wrong (what was fetched is then removed).
        MMCLError: an argument is out of its range.
    """
    path = Path(path)
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise MMCLError(f"url: expected http or https, got {url!r}")
    if not re.fullmatch(r"[0-9a-f]{64}", sha256.lower()):
        raise MMCLError(f"sha256: expected 64 hexadecimal digits, got {sha256!r}")
    if most_bytes < 1 or attempts < 1 or not timeout > 0:
        raise MMCLError(
            "most_bytes and attempts: expected at least 1, timeout above 0; got "
            f"{most_bytes}, {attempts} and {timeout}"
        )
    if path.exists():
        if path.is_file() and _sum_of(path) == sha256.lower():
            return path
        raise DataError(
            f"{path}: expected no file, or that with the SHA-256 {sha256}; there is another one. "
            "Move it away to fetch anew"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(path)
    _receive_all(url, part, most_bytes, attempts, timeout, progress)
    found = _sum_of(part.path)
    if found != sha256.lower():
        part.remove()
        raise DataError(
            f"{url}: expected a file with the SHA-256 {sha256}, got {found}. It was removed: it is "
            "damaged, or no longer the file that this library knows"
        )
    os.replace(part.path, path)
    part.remove()
    return path


class _Part:
    """What has been fetched so far, and the server's name for the version that it is part of."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".part")
        self._version = path.with_name(path.name + ".part.version")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def version(self) -> str:
        return self._version.read_text(encoding="utf-8") if self._version.exists() else ""

    def begin(self, version: str) -> None:
        """Empties the file."""
        self.path.write_bytes(b"")
        self._version.write_text(version, encoding="utf-8")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._version.unlink(missing_ok=True)


class _Cut(Exception):
    """The server did not give all; asking again may help."""


def _receive_all(
    url: str, part: _Part, most_bytes: int, attempts: int, timeout: float, progress: bool
) -> None:
    failed, most = 0, part.size
    with tqdm(disable=not progress, unit="B", unit_scale=True, desc=url.rpartition("/")[2]) as bar:
        while True:
            try:
                return _receive(url, part, most_bytes, timeout, bar)
            except (_Cut, http.client.HTTPException, OSError) as error:
                if isinstance(error, OSError) and error.errno in _DISK:
                    raise DataError(f"{part.path}: cannot be written ({error})") from error
                # Never as far as this before? Then it is worth another try.
                failed = 1 if part.size > most else failed + 1
                most = max(most, part.size)
                if failed >= attempts:
                    raise DataError(
                        f"{url}: the server gave nothing more after {part.size:,} bytes, "
                        f"{failed} times in a row ({error}). Those are kept: call again to go on"
                    ) from error
            time.sleep(min(_PAUSE * 2**failed, 10.0))


# Errors of the own disk, at which asking the server again is of no use.
_DISK = {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EISDIR}


def _receive(url: str, part: _Part, most_bytes: int, timeout: float, bar: tqdm) -> None:
    """One answer of the server, added to the part; raises _Cut where it is not all."""
    have = part.size
    request = urllib.request.Request(url, headers={"User-Agent": "mmcl_core"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if part.version:
            # The rest if the file is the same as then, else all of it.
            request.add_header("If-Range", part.version)
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # nothing after `have`: it is all, or too much
                if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                    return
                part.remove()
                raise _Cut("the file has become shorter") from error
            if error.code in (408, 425, 429) or error.code >= 500:
                raise _Cut(f"HTTP {error.code} {error.reason}") from error
            raise DataError(
                f"{url}: expected a file, got HTTP {error.code} {error.reason}"
            ) from error
    with answer:
        start, total = _extent(answer, have)
        if start not in (0, have):
            raise _Cut(f"asked for the bytes from {have}, got those from {start}")
        if (total or 0) > most_bytes:
            part.remove()
            raise DataError(f"{url}: expected at most {most_bytes:,} bytes, got {total:,}")
        free = shutil.disk_usage(part.path.parent).free
        if total and total - start > free:
            raise DataError(
                f"{part.path.parent}: expected room for {total - start:,} bytes, got {free:,}"
            )
        if start == 0:
            # Only a strong tag says that all bytes are the same.
            tag = answer.headers.get("ETag", "")
            part.begin("" if tag.startswith("W/") else tag)
        bar.total = total
        bar.update(start - bar.n)
        with part.path.open("ab") as file:
            while block := answer.read(_BLOCK):
                if file.tell() + len(block) > most_bytes:
                    file.close()
                    part.remove()
                    raise DataError(f"{url}: expected at most {most_bytes:,} bytes, got more")
                file.write(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and part.size < total:
        raise _Cut(f"the connection was cut after {part.size:,} of {total:,} bytes")


def _extent(answer: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """Where the bytes of an answer begin in the file, and how long the whole file is, if said."""
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if not found:
            raise _Cut("a part of the file came, without saying which")
        return int(found[1]), None if found[2] == "*" else int(found[2])
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
