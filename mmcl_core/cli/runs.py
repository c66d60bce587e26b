"""A run: a folder with all that decides how a training went, and what came out of it.

- `run.json`: the arguments of a `Run`, and the versions that it was begun with;
- `tokenizer.json`: the words of a folder of pictures (those of the shapes never change);
- `checkpoint.pt`: weights, history, and what a resumed training needs (`fit` writes it).
"""

import contextlib
import inspect
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mmcl_core import __version__
from mmcl_core.cli import recipes
from mmcl_core.data import CaptionFolder, ShapesCaptions, WordTokenizer
from mmcl_core.distributed import world_size
from mmcl_core.errors import CheckpointError
from mmcl_core.evaluation import summary as measures
from mmcl_core.files import write_whole

DATA_SEED = 0  # of the scenes that are trained on
METHODS = {**recipes.RECIPES, "fusion": recipes.fusion}

# What a run is made with, where nothing else is said; epochs and batch are the recipe's.
ALWAYS = {"lr": recipes.Recipe._field_defaults["lr"], "seed": 0, "autocast": False}
OF_SHAPES = {"pairs": 5000, "detail": 4, "objects": "1-3", "size": 48}
OF_A_FOLDER = {"split": None, "skip_bad_rows": False, "size": 64}


@dataclass(frozen=True)
class Run:
    """All that decides how a training goes."""

    method: str
    data: str  # "shapes", or the absolute path of a folder
    size: int
    epochs: int
    batch_size: int
    lr: float
    seed: int
    autocast: bool
    # Of shapes; None for a folder.
    pairs: int | None = None
    detail: int | None = None
    objects: str | None = None  # "1-3"
    # Of a folder; None for shapes.
    split: str | None = None
    skip_bad_rows: bool | None = None

    @property
    def shapes(self) -> bool:
        return self.data == "shapes"

    def training_data(self, folder: Path) -> ShapesCaptions | CaptionFolder:
        """What is trained on; pictures with the words of the run, if there are some already."""
        if self.shapes:
            return self.scenes(self.pairs or 0, DATA_SEED)
        words = folder / "tokenizer.json"
        tokenizer = WordTokenizer.load(words) if words.exists() else None
        return self.pictures(
            self.data, self.split, tokenizer, skip_bad_rows=bool(self.skip_bad_rows)
        )

    def scenes(self, n: int, seed: int, *, objects: str | None = None) -> ShapesCaptions:
        """Scenes like those of the training; `objects` may be other ones."""
        low, _, high = (objects or self.objects or "").partition("-")
        return ShapesCaptions(
            n, seed=seed, size=self.size, detail=self.detail or 0, objects=(int(low), int(high))
        )

    def pictures(
        self, root: str, split: str | None, words: WordTokenizer | None, *, skip_bad_rows: bool
    ) -> CaptionFolder:
        """A folder of pictures, read like that of the training."""
        return CaptionFolder(
            root,
            split=split,
            size=self.size,
            tokenizer=words,
            on_error="skip" if skip_bad_rows else "raise",
            keep_duplicates=True,  # two people may write the same words: no reason to stop
        )

    def recipe(self, data: Any) -> recipes.Recipe:
        """The method with the weights of the start, and what it is trained with.

        Seeds torch's generator.
        """
        torch.manual_seed(self.seed)
        settings: dict[str, Any] = {"epochs": self.epochs, "batch_size": self.batch_size}
        if self.method == "fusion":
            labels = measures.shape_and_colour(data)
            settings |= {"labels": labels, "classes": measures.CLASSES}
        return METHODS[self.method](data, **settings)._replace(lr=self.lr)

    def steps(self, data: Any) -> int:
        """Steps of the whole training."""
        return self.epochs * (len(data) // self.batch_size)


def default(method: str, argument: str) -> Any:
    """What the recipe of a method has for `epochs` or `batch_size`."""
    return inspect.signature(METHODS[method]).parameters[argument].default


def read_run(folder: Path) -> Run:
    """Reads what `recorded` wrote.

    Raises:
        CheckpointError: there is no run.json, or it holds something else.
    """
    path = folder / "run.json"
    try:
        return Run(**json.loads(path.read_text(encoding="utf-8"))["arguments"])
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder}: expected the folder of a run, found no run.json in it"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: expected the arguments of a run, found something else ({error})"
        ) from error


@contextlib.contextmanager
def recorded(run: Run, data: Any, folder: Path) -> Iterator[None]:
    """Writes what a new run is; after an error before its first checkpoint, takes it away again."""
    made = not folder.exists()
    files = (
        [folder / "run.json"] if run.shapes else [folder / "tokenizer.json", folder / "run.json"]
    )
    versions = {"mmcl_core": __version__, "torch": torch.__version__, "processes": world_size()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not run.shapes:
            data.tokenizer.save(files[0])
        content = json.dumps({"arguments": asdict(run), "begun_with": versions}, indent=2)
        write_whole(files[-1], f"{content}\n")
        yield
    except BaseException:
        if not (folder / "checkpoint.pt").exists():
            for file in files:
                file.unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):  # someone else has put something there
                    folder.rmdir()
        raise
