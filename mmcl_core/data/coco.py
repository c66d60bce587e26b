"""The captioned photographs of COCO, fetched and checked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from mmcl_core.data.archives import unpack
from mmcl_core.data.download import download


class Archive(NamedTuple):
    """An archive on the net, and what has to be known of it before it is fetched."""

    url: str
    sha256: str
    size: int  # bytes
    folder: str  # the folder in it that is wanted
    unpacked: int  # bytes that this folder may have at most
    files: int  # members that the archive may have at most


# Sizes and sums as in the list of TensorFlow Datasets (url_checksums/coco.txt); several public
# projects that fetched the files by themselves have the same ones. The address is http, as there:
# it is the sum that vouches for the content. For the archives of Flickr8k we found only MD5 sums in
# more than one place, and such a sum can be forged; so there is no entry for them.
COCO_VAL2017 = (
    Archive(
        "http://images.cocodataset.org/zips/val2017.zip",
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        815_585_330,
        folder="val2017",
        unpacked=10**9,
        files=6_000,
    ),
    Archive(
        "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        252_907_541,
        folder="annotations",
        unpacked=2 * 10**9,
        files=20,
    ),
)


def fetch_coco(
    root: str | os.PathLike[str],
    *,
    archives: tuple[Archive, ...] = COCO_VAL2017,
    progress: bool = True,
) -> Path:
    """Fetches the 5,000 captioned photographs of COCO's val2017, about 1 GB, for `CaptionFolder`.

    What is there already is not fetched again; what was stopped goes on. The photographs belong to
    the people who took them; see the terms of use on the site of COCO.

    Args:
        root: the folder to make; then `CaptionFolder(root, split="val2017")` reads it.
        archives: what to fetch.
        progress: show a bar for each archive.

    Returns:
        `root`.

    Raises:
        DataError: see `download` and `unpack`.
    """
    root = Path(root)
    for archive in archives:
        folder = root / archive.folder
        if folder.is_dir():
            continue
        file = root / archive.url.rpartition("/")[2]
        download(
            archive.url, file, sha256=archive.sha256, most_bytes=archive.size, progress=progress
        )
        unpack(
            file,
            folder,
            inside=archive.folder,
            most_bytes=archive.unpacked,
            most_files=archive.files,
        )
        file.unlink()
    return root
