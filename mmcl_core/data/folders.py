"""Folders that `CaptionFolder` can read: one that is drawn, and one made of your own pictures."""

from __future__ import annotations

import csv
import json
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from mmcl_core.data.captions import COLUMNS, read_table, summary
from mmcl_core.data.shapes import ShapesCaptions
from mmcl_core.data.tokenizer import split_words
from mmcl_core.errors import DataError, MMCLError, check_number
from mmcl_core.files import new_folder

_SIDEWAYS = 6  # the EXIF tag "turn by a quarter, clockwise"
_ORIENTATION = 0x0112


def draw_folder(
    root: str | os.PathLike[str],
    n: int,
    *,
    layout: Literal["flickr", "coco"] = "flickr",
    quality: int = 90,
    **settings: Any,
) -> Path:
    """Draws scenes of the laboratory into a folder, as JPEG files with captions.

    These are not photographs: only the way from the disk to a batch is that of photographs. Every
    tenth picture is stored lying on its side, with the EXIF tag that says so, as some phones do. A
    picture has each of its sentences once. The folder is made whole or not at all.

    Args:
        root: the folder to make; must not be there.
        n: number of pictures, at least 1.
        layout: "flickr" is ``captions.txt`` and ``Images/``; "coco" is
            ``annotations/captions_drawn.json`` and ``drawn/``.
        quality: of the JPEG files, 1 to 95.
        settings: as for `ShapesCaptions`: `seed`, `size`, `detail`, `objects` and so on.

    Returns:
        `root`.

    Raises:
        DataError: the folder is there.
        MMCLError: an argument is out of its range.
    """
    if layout not in ("flickr", "coco"):
        raise MMCLError(f"layout: expected 'flickr' or 'coco', got {layout!r}")
    check_number("quality", quality, "[1, 95]")
    scenes = ShapesCaptions(n, **settings)
    names = [f"{i:06}.jpg" for i in range(n)]
    told = [
        list(dict.fromkeys(scenes.text(i, s) for s in range(scenes.sentences.shape[1])))
        for i in range(n)
    ]
    with new_folder(root) as part:
        pictures = part / ("Images" if layout == "flickr" else "drawn")
        pictures.mkdir()
        for i, (name, pixels) in enumerate(zip(names, scenes.images, strict=True)):
            _save(pixels.permute(1, 2, 0), pictures / name, quality, sideways=i % 10 == 9)
        rows = [(name, text) for name, texts in zip(names, told, strict=True) for text in texts]
        if layout == "flickr":
            _write_table(part / "captions.txt", rows)
        else:
            _write_coco(part / "annotations" / "captions_drawn.json", names, rows)
    return Path(root)


def link_folder(
    root: str | os.PathLike[str],
    *,
    pictures: str | os.PathLike[str],
    table: str | os.PathLike[str],
    image: str | None = None,
    caption: str | None = None,
    on_error: Literal["raise", "skip"] = "raise",
) -> Path:
    """Makes a folder for `CaptionFolder` out of your own pictures and a CSV, without copying any.

    The folder holds ``captions.txt``, and in ``Images/`` a link to each picture. The table has a
    header and one row for each caption; its fields are parted by commas, semicolons (as some
    spreadsheets do), tabs or ``|``. A picture is named by its path from the folder of the pictures.

    Args:
        root: the folder to make; must not be there.
        pictures: the folder of your pictures; folders in it are fine.
        table: the CSV file, UTF-8.
        image: the column with the names of the pictures; None is "image" or "image_name".
        caption: the column with the captions; None is "caption" or "comment".
        on_error: "raise" reports all rows that cannot be used in one error; "skip" leaves them out
            and warns.

    Returns:
        `root`.

    Raises:
        DataError: the folder is there; table or pictures are not; the table has not these columns,
            is not UTF-8, or has rows that cannot be used; or links are not allowed here.
        MMCLError: `on_error` is neither of the two.
    """
    root, pictures, table = Path(root), Path(pictures).absolute(), Path(table)
    if on_error not in ("raise", "skip"):
        raise MMCLError(f"on_error: expected 'raise' or 'skip', got {on_error!r}")
    if not pictures.is_dir():
        raise DataError(f"{pictures}: expected the folder of the pictures, got no folder")
    problems: list[str] = []
    rows: list[tuple[str, str]] = []
    files: dict[str, Path] = {}
    if not table.is_file():
        raise DataError(f"{table}: expected a table of pictures and captions, got no such file")
    given = zip((image, caption), COLUMNS, strict=True)
    columns = [known if name is None else (name.lower(),) for name, known in given]
    try:
        found = list(read_table(table, problems, columns))
    except DataError as error:
        raise DataError(f"{error}; image= and caption= name other columns") from error
    for where, name, text in found:
        file = pictures / name
        flat = "__".join(part for part in Path(name).parts if part not in (os.sep, "."))
        if not split_words(text):
            problems.append(f"{where}: {name!r} has an empty caption")
        elif not name or not file.is_file():
            problems.append(f"{where}: there is no picture {name!r} in {pictures.name}/")
        elif not file.resolve().is_relative_to(pictures.resolve()):
            problems.append(f"{where}: {name!r} lies outside {pictures.name}/")
        elif files.setdefault(flat, file) != file:
            problems.append(f"{where}: {name!r} and another picture would have one name, {flat!r}")
        else:
            rows.append((flat, " ".join(text.split())))
    if problems:
        if on_error == "raise":
            raise DataError(
                f"{summary(problems)}. Correct them, or pass on_error='skip' to leave them out"
            )
        warnings.warn(f"link_folder left rows out: {summary(problems)}", stacklevel=2)
    if not rows:
        raise DataError(f"{table}: expected rows with a picture and a caption, got none")
    with new_folder(root) as part:
        (part / "Images").mkdir()
        for flat in dict.fromkeys(name for name, _ in rows):
            try:
                _link(part / "Images" / flat, files[flat])
            except OSError as error:
                raise DataError(
                    f"{root}: links cannot be made here ({error}); choose a folder on another "
                    "disk, or copy the pictures to Images/ and the table to captions.txt yourself"
                ) from error
        _write_table(part / "captions.txt", rows)
    return root


def _link(place: Path, file: Path) -> None:
    """A link to a file; raises OSError where none can be made."""
    try:
        place.symlink_to(file)
    except OSError:  # on Windows, these need a right that few people have
        os.link(file, place)


def _save(pixels: torch.Tensor, path: Path, quality: int, *, sideways: bool) -> None:
    """uint8 [H, W, 3] as JPEG; `sideways`: stored on its side, with a tag to turn it back."""
    picture, exif = Image.fromarray(pixels.numpy()), Image.Exif()
    if sideways:
        picture = picture.transpose(Image.Transpose.ROTATE_90)  # counter-clockwise
        exif[_ORIENTATION] = _SIDEWAYS
    # Colours at full resolution: a shape of a few pixels would else lose its own.
    picture.save(path, quality=quality, subsampling=0, exif=exif)


def _write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("image", "caption"), *rows])


def _write_coco(path: Path, names: list[str], rows: list[tuple[str, str]]) -> None:
    number = {name: i for i, name in enumerate(names, start=1)}
    path.parent.mkdir()
    content = {
        "images": [{"id": number[name], "file_name": name} for name in names],
        "annotations": [
            {"id": i, "image_id": number[name], "caption": text}
            for i, (name, text) in enumerate(rows, start=1)
        ],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
