"""A drawn folder of captioned pictures, where the way from a disk to a batch is the point."""

import json
import os
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from mmcl_core.data import ShapesCaptions
from mmcl_core.data.folders import write_table
from mmcl_core.errors import MMCLError, check_number
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
            write_table(part / "captions.txt", rows)
        else:
            _write_coco(part / "annotations" / "captions_drawn.json", names, rows)
    return Path(root)


def _save(pixels: torch.Tensor, path: Path, quality: int, *, sideways: bool) -> None:
    """uint8 [H, W, 3] as JPEG; `sideways`: stored on its side, with a tag to turn it back."""
    picture, exif = Image.fromarray(pixels.numpy()), Image.Exif()
    if sideways:
        picture = picture.transpose(Image.Transpose.ROTATE_90)  # counter-clockwise
        exif[_ORIENTATION] = _SIDEWAYS
    # Colours at full resolution: a shape of a few pixels would else lose its own.
    picture.save(path, quality=quality, subsampling=0, exif=exif)


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
