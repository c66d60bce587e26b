"""`python -m mmcl_core embed`: a folder of pictures becomes a file of vectors, for `search`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mmcl_core.cli import options
from mmcl_core.cli.options import PROGRAM, say
from mmcl_core.cli.runs import TrainedRun, load_run
from mmcl_core.data.pictures import PictureFolder
from mmcl_core.errors import DataError, MMCLError, ShapeError, check_count
from mmcl_core.evaluation import embed_all
from mmcl_core.files import new_file

_FORMAT = "mmcl_core.PictureIndex.1"
BATCH = 256

ABOUT = """\
Each picture becomes a unit vector, by a run of train. FILE has the vectors (float32,
one row for each picture), the names of the pictures, and where the run lies. It is
written whole or not at all; one that is there is replaced."""

EXAMPLES = f"""\
  {PROGRAM} embed runs/clip photos --out photos.npz
  {PROGRAM} embed runs/clip photos --out photos.npz --skip-bad-pictures"""


OPTIONS = {
    "what, and where to": {
        "run RUN": "the --out of train.",
        "folder FOLDER": "the pictures: all files there, and in the folders inside, that end in "
        ".jpg, .png and so on. Captions are not needed.",
        "--out FILE": "where to put the vectors; .npz.",
    },
    "how": {
        "--skip-bad-pictures": "leave out pictures that cannot be read, and say which; default: "
        "write nothing, and say which.",
        "--batch-size N": f"pictures embedded at once; default {BATCH}.",
        **options.DEVICE,
        **options.BAR,
    },
}


def embed(args: argparse.Namespace) -> int:
    """Embeds all pictures of a folder with what was trained; writes a file for search."""
    out, shown = Path(args.out), options.bar_shown(args)
    if out.suffix != ".npz" or out.is_dir():
        raise MMCLError(f"--out: expected a file that ends in .npz, got {out}")
    run = load_run(args.run)
    pictures = PictureFolder(args.folder, size=run.size)
    device = options.device(args.device)
    run.method.to(device)
    if not args.quiet:
        unfinished = "" if run.step == run.steps else " (not finished)"
        step = f"step {run.step} of {run.steps}{unfinished}"
        say(f"{run.name}, {step}: {len(pictures)} pictures on {device}")
    skip, batch = bool(args.skip_bad_pictures), args.batch_size or BATCH
    with tqdm(total=len(pictures), disable=not shown, unit="picture", dynamic_ncols=True) as bar:
        index, bad = embed_folder(run, pictures, skip_bad=skip, batch_size=batch, done=bar.update)
    for picture in bad:
        say(f"warning: left out: {picture}")
    index.save(out)
    n, d = index.embeddings.shape
    print(f"{n} pictures, vectors of {d} numbers: {out}")
    return 0


@dataclass(frozen=True)
class PictureIndex:
    """Pictures of a folder, embedded by a run.

    Attributes:
        run: the folder of the run.
        checkpoint: the hash of its checkpoint, as it was then.
        pictures: the folder of the pictures.
        names: paths from there, N of them.
        embeddings: float32 [N, D], of unit norm.
    """

    run: Path
    checkpoint: str
    pictures: Path
    names: list[str]
    embeddings: Tensor

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one file in NumPy's format npz, whole or not at all; makes a missing folder."""
        with new_file(path) as file:
            np.savez(
                file, format=_FORMAT, run=str(self.run), checkpoint=self.checkpoint,
                pictures=str(self.pictures), names=np.array(self.names),
                embeddings=self.embeddings.numpy(),
            )  # fmt: skip

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PictureIndex:
        """Reads what `save` wrote; runs no code from it. DataError if the file cannot be used."""
        if not Path(path).is_file():
            raise DataError(f"{path}: expected a file that embed wrote, found no such file")
        try:
            with np.load(path, allow_pickle=False) as content:
                if str(content["format"]) != _FORMAT:
                    raise KeyError(_FORMAT)
                names, embeddings = content["names"].tolist(), content["embeddings"]
                texts = [str(content[key]) for key in ("run", "checkpoint", "pictures")]
        except Exception as error:  # damaged files make NumPy raise errors of many kinds
            raise DataError(
                f"{path}: expected a file that embed wrote, found something else, or one that is "
                f"cut short ({type(error).__name__})"
            ) from error
        if embeddings.ndim != 2 or len(embeddings) != len(names) or embeddings.dtype != np.float32:
            raise DataError(f"{path}: expected one float32 row for each of the {len(names)} names")
        run, checkpoint, pictures = texts
        return cls(Path(run), checkpoint, Path(pictures), names, torch.from_numpy(embeddings))


def embed_folder(
    run: TrainedRun, pictures: PictureFolder, *, skip_bad: bool = False, batch_size: int = BATCH,
    done: Callable[[int], object] = lambda pictures: None,
) -> tuple[PictureIndex, list[str]]:  # fmt: skip
    """Embeds all pictures of a folder, of the run's size.

    Args:
        run: its method embeds pictures.
        pictures: the folder.
        skip_bad: leave out pictures that cannot be read.
        batch_size: pictures embedded at once.
        done: is told after each batch how many pictures were in it.

    Returns:
        The index, and a line of text for each picture that was left out.

    Raises:
        DataError: pictures cannot be read (all of them are reported), or none can.
        ShapeError: they are of another size; MMCLError: the batch size is below 1.
    """
    check_count("batch_size", batch_size)
    if pictures.size != run.size:
        raise ShapeError(
            f"expected pictures of size {run.size}, as in the training; got {pictures.size}"
        )
    rows, kept, bad = list[Tensor](), list[int](), list[str]()
    for start in range(0, len(pictures), batch_size):
        numbers = range(start, min(start + batch_size, len(pictures)))
        batch, unreadable = pictures.read(numbers)
        bad += [f"{pictures.names[i]} ({error})" for i, error in unreadable.items()]
        if len(batch["index"]) and (skip_bad or not bad):  # else the others are only looked for
            rows.append(embed_all(run.method, {"image": run.see(batch["image"])}, ("image",)))
            kept += [i for i in numbers if i not in unreadable]
        done(len(numbers))
    if bad and (not skip_bad or not kept):
        more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
        advice = "" if skip_bad else ". Replace them, or pass skip_bad=True to leave them out"
        raise DataError(
            f"{len(bad)} of {len(pictures)} pictures cannot be read: {'; '.join(bad[:5])}{more}"
            f"{advice}"
        )
    names, vectors = [pictures.names[i] for i in kept], F.normalize(torch.cat(rows), dim=1)
    return PictureIndex(run.folder, run.checkpoint, pictures.root.resolve(), names, vectors), bad
