"""A folder that `CaptionFolder` can read, made of your own pictures and a table."""

from __future__ import annotations

import csv
import os
import warnings
from pathlib import Path
from typing import Literal

from mmcl_core.data.captions import COLUMNS, read_table, summary
from mmcl_core.data.tokenizer import split_words
from mmcl_core.errors import DataError, MMCLError
from mmcl_core.files import new_folder


def link_folder(
    root: str | os.PathLike[str], *, pictures: str | os.PathLike[str],
    table: str | os.PathLike[str], image: str | None = None, caption: str | None = None,
    on_error: Literal["raise", "skip"] = "raise",
) -> Path:  # fmt: skip
    """Makes a folder, `root`, for `CaptionFolder` out of your own pictures and a CSV, by links.

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
    problems, rows, files = list[str](), list[tuple[str, str]](), dict[str, Path]()
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
        write_table(part / "captions.txt", rows)
    return root


def _link(place: Path, file: Path) -> None:
    """A link to a file; raises OSError where none can be made."""
    try:
        place.symlink_to(file)
    except OSError:  # on Windows, these need a right that few people have
        os.link(file, place)


def write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    """Writes the captions of a folder: rows of a picture's name and a caption."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("image", "caption"), *rows])
