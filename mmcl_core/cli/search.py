"""Finding pictures by words: with a trained run, any folder of pictures becomes an index.

What `python -m mmcl_core embed` and `search` do, in Python::

    from mmcl_core.data import PictureFolder
    from mmcl_core.evaluation import embed_all
    from mmcl_core.cli.search import load_run

    run = load_run("runs/clip")                                # the --out of train
    pictures = PictureFolder("photos", size=run.size)
    image = embed_all(run.method, pictures, ("image",))        # [N, D], unit vectors
    words = run.tokenizer.encode_batch(["a red star"])
    query = embed_all(run.method, {"caption": words}, ("caption",))
    for i in (image @ query[0]).topk(5).indices:               # the cosine
        print(pictures.names[i])
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_core.checkpoints import load_checkpoint, read_checkpoint
from mmcl_core.cli.runs import DATA_SEED, Run, read_run
from mmcl_core.data.pictures import PictureFolder, as_images, decode
from mmcl_core.data.tokenizer import WordTokenizer, split_words
from mmcl_core.errors import DataError, MMCLError, ShapeError
from mmcl_core.evaluation import embed_all
from mmcl_core.files import new_file

_FORMAT = "mmcl_core.PictureIndex.1"


@dataclass(frozen=True)
class TrainedRun:
    """A run, ready for use; the data that it was trained on is not needed.

    Attributes:
        folder: where it lies.
        method: with the weights of the checkpoint, in eval mode.
        name: of the method, such as "clip".
        tokenizer: its words.
        size: side in pixels of the pictures that it takes.
        step: steps done, of `steps`.
        checkpoint: a hash of the checkpoint file.
    """

    folder: Path
    method: nn.Module
    name: str
    tokenizer: WordTokenizer
    size: int
    step: int
    steps: int
    checkpoint: str


def load_run(folder: str | os.PathLike[str]) -> TrainedRun:
    """Loads what `python -m mmcl_core train` left in a folder.

    Raises:
        CheckpointError: it is not the folder of a run, or its checkpoint cannot be used.
        DataError: its tokenizer cannot be read.
    """
    folder = Path(folder)
    run, path = read_run(folder), folder / "checkpoint.pt"
    kind = _kind(run, folder)
    # A temperature that cools has its steps from the number of samples.
    kind.samples = read_checkpoint(path).settings.get("samples", 1)
    method = run.recipe(kind).method
    saved = load_checkpoint(path, method)
    return TrainedRun(
        folder=folder.resolve(),
        method=method.eval(),
        name=run.method,
        tokenizer=kind.tokenizer,
        size=run.size,
        step=saved.step,
        steps=run.steps(kind),
        checkpoint=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


@dataclass
class _Kind:
    """What a recipe asks of the data of a training: all but the samples themselves."""

    samples: int
    size: int
    tokenizer: WordTokenizer
    sentences: Tensor
    tags: Tensor | None = None
    attributes: dict[str, Tensor] | None = None

    def __len__(self) -> int:
        return self.samples

    @property
    def rows(self) -> Tensor:
        """The numbers of the samples that are here."""
        return torch.arange(len(self.sentences))


def _kind(run: Run, folder: Path) -> _Kind:
    if run.shapes:
        scene = run.scenes(1, DATA_SEED)
        return _Kind(1, run.size, scene.tokenizer, scene.sentences, scene.tags, scene.attributes)
    tokenizer = WordTokenizer.load(folder / "tokenizer.json")
    return _Kind(1, run.size, tokenizer, tokenizer.encode_batch([""])[:, None])


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
                file,
                format=_FORMAT,
                run=str(self.run),
                checkpoint=self.checkpoint,
                pictures=str(self.pictures),
                names=np.array(self.names),
                embeddings=self.embeddings.numpy(),
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PictureIndex:
        """Reads what `save` wrote; runs no code from it.

        Raises:
            DataError: the file is missing, cut short, or something else.
        """
        if not Path(path).is_file():
            raise DataError(f"{path}: expected a file that embed wrote, found no such file")
        try:
            with np.load(path, allow_pickle=False) as content:
                if str(content["format"]) != _FORMAT:
                    raise KeyError(_FORMAT)
                names, embeddings = content["names"].tolist(), content["embeddings"]
                texts = [str(content[key]) for key in ("run", "checkpoint", "pictures")]
        except (
            OSError,
            ValueError,
            KeyError,
            EOFError,
            AttributeError,
            zipfile.BadZipFile,
        ) as error:
            raise DataError(
                f"{path}: expected a file that embed wrote, found something else, or one that is "
                f"cut short ({type(error).__name__})"
            ) from error
        if embeddings.ndim != 2 or len(embeddings) != len(names) or embeddings.dtype != np.float32:
            raise DataError(f"{path}: expected one float32 row for each of the {len(names)} names")
        run, checkpoint, pictures = texts
        return cls(Path(run), checkpoint, Path(pictures), names, torch.from_numpy(embeddings))


def embed_folder(
    run: TrainedRun,
    pictures: PictureFolder,
    *,
    skip_bad: bool = False,
    batch_size: int = 256,
    done: Callable[[int], object] = lambda pictures: None,
) -> tuple[PictureIndex, list[str]]:
    """Embeds all pictures of a folder.

    Args:
        run: its method embeds pictures.
        pictures: of the run's size.
        skip_bad: leave out pictures that cannot be read.
        batch_size: pictures embedded at once.
        done: is told after each batch how many pictures were in it.

    Returns:
        The index, and a line of text for each picture that was left out.

    Raises:
        DataError: pictures cannot be read (all of them are reported), or none can.
        ShapeError: the pictures are of another size.
    """
    if pictures.size != run.size:
        raise ShapeError(
            f"expected pictures of size {run.size}, as in the training; got {pictures.size}"
        )
    rows: list[Tensor] = []
    kept: list[int] = []
    bad: list[str] = []
    for start in range(0, len(pictures), batch_size):
        numbers = range(start, min(start + batch_size, len(pictures)))
        batch, unreadable = pictures.read(numbers)
        bad += [f"{pictures.names[i]} ({error})" for i, error in unreadable.items()]
        if len(batch["index"]) and (skip_bad or not bad):  # else the others are only looked for
            rows.append(embed_all(run.method, {"image": batch["image"]}, ("image",)))
            kept += [i for i in numbers if i not in unreadable]
        done(len(numbers))
    if bad and (not skip_bad or not kept):
        more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
        advice = "" if skip_bad else ". Replace them, or pass skip_bad=True to leave them out"
        raise DataError(
            f"{len(bad)} of {len(pictures)} pictures cannot be read: {'; '.join(bad[:5])}{more}"
            f"{advice}"
        )
    index = PictureIndex(
        run=run.folder,
        checkpoint=run.checkpoint,
        pictures=pictures.root.resolve(),
        names=[pictures.names[i] for i in kept],
        embeddings=F.normalize(torch.cat(rows), dim=1),
    )
    return index, bad


def unknown_words(run: TrainedRun, text: str) -> list[str]:
    """The words of a text that the run was not trained with, each once."""
    known = set(run.tokenizer.words)
    return [word for word in dict.fromkeys(split_words(text)) if word not in known]


def embed_words(run: TrainedRun, text: str) -> Tensor:
    """A query in words as a unit vector [D] in the space of the pictures.

    Raises:
        MMCLError: the method has no words beside its pictures, or knows none of these.
        DataError: the query is too long.
    """
    if run.name == "moco":
        raise MMCLError(
            "moco was trained on pictures alone and knows no words: search by a picture, or train "
            "another method"
        )
    if run.name == "fusion":
        raise MMCLError(
            "fusion is a classifier: nothing in its training brings words and pictures together. "
            "Search by a picture, or train another method"
        )
    if not set(split_words(text)) - set(unknown_words(run, text)):
        raise MMCLError(f"expected words that the run was trained with, got none in {text!r}")
    words = run.tokenizer.encode_batch([text])
    return F.normalize(embed_all(run.method, {"caption": words}, ("caption",)), dim=1)[0]


def embed_picture(run: TrainedRun, path: str | os.PathLike[str]) -> Tensor:
    """A query by a picture from a file as a unit vector [D].

    Raises:
        DataError: the picture cannot be read.
    """
    try:
        image = as_images([decode(path, run.size)], run.size)
    except Exception as error:  # damaged files make Pillow raise errors of many kinds
        raise DataError(f"the picture {path} cannot be read ({error})") from error
    return F.normalize(embed_all(run.method, {"image": image}, ("image",)), dim=1)[0]


def nearest(index: PictureIndex, query: Tensor, top: int = 5) -> list[tuple[float, str]]:
    """The `top` pictures with the greatest cosine to a unit vector [D], as (cosine, name).

    Of equal ones, the first in the order of the index.
    """
    scores = index.embeddings @ query
    order = scores.sort(descending=True, stable=True).indices[:top].tolist()
    return [(float(scores[i]), index.names[i]) for i in order]
