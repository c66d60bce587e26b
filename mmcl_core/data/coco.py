"""The captioned photographs of COCO, fetched and checked."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import NamedTuple

from mmcl_core.errors import DataError, MMCLError
from mmcl_core.files import new_folder


class Archive(NamedTuple):
    """A zip archive on the net, the sum that vouches for its content, and what we want of it."""

    url: str
    sha256: str
    folder: str  # the folder in it that is wanted


# The sums are as in the list of TensorFlow Datasets (url_checksums/coco.txt) and in several public
# projects. For Flickr8k we found only MD5 sums in more than one place, and these can be forged.
COCO_VAL2017 = (
    Archive(
        "http://images.cocodataset.org/zips/val2017.zip",
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        folder="val2017",
    ),
    Archive(
        "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        folder="annotations",
    ),
)


def fetch_coco(
    root: str | os.PathLike[str], *, archives: tuple[Archive, ...] = COCO_VAL2017,
    progress: bool = True,
) -> Path:  # fmt: skip
    """Fetches the 5,000 captioned photographs of COCO's val2017, about 1 GB, for `CaptionFolder`.

    Needs pooch, which comes with ``mmcl_core[book]``. A folder that is there already is not fetched
    again; an archive that is cut off is fetched anew by the next call. The photographs belong to
    the people who took them; see the terms of use on the site of COCO.

    Args:
        root: the folder to make; then `CaptionFolder(root, split="val2017")` reads it.
        archives: what to fetch.
        progress: show a bar for each archive.

    Raises:
        DataError: an archive cannot be fetched, is not the one with this sum, or has no such
            folder; nothing of it is then left.
    """
    try:
        import pooch  # here, so that the library works without it
    except ImportError as error:
        raise MMCLError(
            'fetch_coco: expected pooch, which is not installed; pip install "mmcl_core[book]"'
        ) from error
    root = Path(root)
    for archive in archives:
        if (root / archive.folder).is_dir():
            continue
        with new_folder(root / archive.folder) as part:
            try:
                name = archive.url.rpartition("/")[2]
                known = f"sha256:{archive.sha256}"
                file = pooch.retrieve(archive.url, known, name, root, progressbar=progress)
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{archive.url}: expected the file with the SHA-256 {archive.sha256}, which "
                    f"cannot be had ({error}); call again, or put it into {root} yourself"
                ) from error
            _unzip(Path(file), archive.folder, part)
        os.remove(file)
    return root


def _unzip(file: Path, folder: str, part: Path) -> None:
    """Unpacks what lies in one folder of an archive, whose sum is known, without its name."""
    with zipfile.ZipFile(file) as packed:
        wanted = [one for one in packed.infolist() if one.filename.startswith(f"{folder}/")]
        if not wanted:
            raise DataError(f"{file}: expected the folder {folder}/ in it, got none")
        for one in wanted:
            if not one.is_dir():
                one.filename = one.filename.removeprefix(f"{folder}/")
                packed.extract(one, part)
