"""A run: a folder with all that decides how a training went, and what came out of it.

- `run.json`: the arguments of a `Run`, and the versions that it was begun with;
- `tokenizer.json`: the words of a folder of pictures (those of the shapes never change);
- `checkpoint.pt`: weights, history, and what a resumed training needs (`fit` writes it).
"""

import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmcl_core import __version__
from mmcl_core.checkpoints import load_checkpoint, read_checkpoint
from mmcl_core.cli import options
from mmcl_core.cli.registry import METHODS, Recipe
from mmcl_core.data import CaptionFolder, ShapesCaptions, WordTokenizer
from mmcl_core.distributed import world_size
from mmcl_core.errors import CheckpointError, MMCLError
from mmcl_core.features import FeatureCaptions, cached_features, frozen
from mmcl_core.files import write_whole
from mmcl_core.frozen import Encode, frozen_encoder
from mmcl_core.modules import device_of

DATA_SEED = 0  # of the scenes that are trained on

# What a run is made with where nothing else is asked for. The rest is the method's own.
ALWAYS = {"seed": 0, "autocast": False}
SHAPES = {"pairs": 5000, "detail": 4, "objects": "1-3", "size": 48}
FOLDER = {"split": None, "skip_bad_rows": False, "size": 64}
FEATURES = {"features": None, "pool": "mean", "dropout": 0.2}

encoder = functools.cache(frozen_encoder)


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
    # Of frozen features of a folder; None for its pictures.
    features: str | None = None  # what `frozen_encoder` takes
    feature_width: int | None = None
    pool: str | None = None
    dropout: float | None = None

    @property
    def shapes(self) -> bool:
        return self.data == "shapes"

    def encode(self, device: torch.device) -> Encode:
        """What makes features of pictures."""
        found = encoder(self.features or "")
        return found.to(device) if isinstance(found, nn.Module) else found

    def training_data(
        self, folder: Path, device: torch.device = options.CPU, *, bar: bool = False
    ) -> ShapesCaptions | CaptionFolder:
        """What is trained on; pictures with the words of the run, if there are some already."""
        if self.shapes:
            return self.scenes(self.pairs or 0, DATA_SEED)
        words = folder / "tokenizer.json"
        tokenizer = WordTokenizer.load(words) if words.exists() else None
        what = self.data, self.split, tokenizer, bool(self.skip_bad_rows)
        return self.pictures(*what, folder, device, bar=bar)

    def scenes(self, n: int, seed: int, *, objects: str | None = None) -> ShapesCaptions:
        """Scenes like those of the training; `objects` may be other ones."""
        low, _, high = (objects or self.objects or "").partition("-")
        return ShapesCaptions(
            n, seed=seed, size=self.size, detail=self.detail or 0, objects=(int(low), int(high))
        )

    def pictures(
        self, root: str, split: str | None, words: WordTokenizer | None, skip_bad_rows: bool,
        folder: Path, device: torch.device, *, bar: bool = False,
    ) -> CaptionFolder:  # fmt: skip
        """A folder of pictures, or their features, which are kept beside the folder of the run."""
        on_error: Any = "skip" if skip_bad_rows else "few"
        data = CaptionFolder(root, split=split, size=self.size, tokenizer=words, on_error=on_error)
        if self.features is None:
            return data
        name, place = re.sub(r"[^\w.-]+", "-", self.features), folder.resolve().parent
        found = cached_features(
            data, self.encode(device), place / "features", name=name, progress=bar
        )
        pool: Any = self.pool
        return FeatureCaptions(data, found, pool=pool, dropout=self.dropout or 0.0)

    def steps(self, samples: int) -> int:
        """Steps of the whole training."""
        return self.epochs * (samples // self.batch_size)

    def recipe(self, data: Any, steps: int) -> Recipe:
        """The method with the weights of the start, and what it is trained with."""
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it would seed GPUs, too, where nothing is drawn.
            torch.default_generator.manual_seed(self.seed)
            return METHODS[self.method].recipe(data, self.batch_size, steps)


def read_run(folder: Path) -> Run:
    """Reads what `recorded` wrote; CheckpointError if there is no run.json, or another one."""
    path = folder / "run.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: expected the folder of a run, found no run.json in it")
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8"))["arguments"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: expected the arguments of a run, found no such") from error
    types = {field.name: cast(type, field.type) for field in fields(Run)}
    wrong = [name for name, of in types.items() if not isinstance(found.get(name), of)]
    wrong += [name for name in found if name not in types]
    if wrong or found["method"] not in METHODS:
        raise CheckpointError(
            f"{path}: expected the arguments of a run; {', '.join(wrong or ['method'])} cannot be"
        )
    return Run(**found)


@contextlib.contextmanager
def recorded(run: Run, data: Any, folder: Path) -> Iterator[None]:
    """Writes what a new run is; after an error before its first checkpoint, takes it away again."""
    made = not folder.exists()
    files = [folder / "run.json"] + ([] if run.shapes else [folder / "tokenizer.json"])
    versions = {"mmcl_core": __version__, "torch": torch.__version__, "processes": world_size()}
    content = json.dumps({"arguments": asdict(run), "begun_with": versions}, indent=2)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        files[0].touch(exist_ok=False)  # of two that begin at once, one goes on
    except FileExistsError as error:
        raise MMCLError(f"{folder}: another training began there; take another --out") from error
    try:
        if not run.shapes:
            data.tokenizer.save(files[1])
        write_whole(files[0], f"{content}\n")
        yield
    except BaseException:
        if not (folder / "checkpoint.pt").exists():
            for file in files:
                file.unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):  # someone else has put something there
                    folder.rmdir()
        raise


# --- a run that is ready for use ------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedRun:
    """A run, ready for use; the data that it was trained on is not needed.

    Attributes:
        folder: where it lies.
        arguments: what it was trained with.
        method: with the weights of the checkpoint, in eval mode.
        tokenizer: its words.
        step: steps done, of `steps`.
        checkpoint: a hash of the checkpoint file.
    """

    folder: Path
    arguments: Run
    method: nn.Module
    tokenizer: WordTokenizer
    step: int
    steps: int
    checkpoint: str

    @property
    def name(self) -> str:
        """Of the method, such as "clip"."""
        return self.arguments.method

    @property
    def size(self) -> int:
        """Side in pixels of the pictures that it takes."""
        return self.arguments.size

    def see(self, images: Tensor) -> Tensor:
        """What the method gets of pictures float32 [B, 3, size, size]: these, or their features."""
        if self.arguments.features is None:
            return images
        with frozen(self.arguments.encode(device_of(self.method))) as apply:
            return torch.from_numpy(apply(images))


class _Like(SimpleNamespace):
    """One sample, of which only its kind is known."""

    def __len__(self) -> int:
        return 1


def load_run(folder: str | os.PathLike[str]) -> TrainedRun:
    """Loads what `python -m mmcl_core train` left in a folder.

    Raises:
        CheckpointError: it is not the folder of a run, or its checkpoint cannot be used.
        DataError: its tokenizer cannot be read.
    """
    folder = Path(folder)
    run, path = read_run(folder), folder / "checkpoint.pt"
    like: Any  # all that a recipe asks of the data of a training
    if run.shapes:
        like = run.scenes(1, DATA_SEED)
    else:
        words = WordTokenizer.load(folder / "tokenizer.json")
        empty, one = words.encode_batch([""])[:, None], torch.arange(1)
        look: dict[str, Any] = {"width": run.feature_width, "pool": run.pool, "dropout": 0}
        look |= {"features": ()} if run.features else {}  # by which a recipe knows them
        like = _Like(size=run.size, tokenizer=words, sentences=empty, rows=one, **look)
    # What cools takes as long as the training; how long that is, the checkpoint knows.
    steps = run.steps(read_checkpoint(path).settings.get("samples", 0))
    method = run.recipe(like, steps).method
    step, code = load_checkpoint(path, method).step, hashlib.sha256(path.read_bytes()).hexdigest()
    return TrainedRun(folder.resolve(), run, method.eval(), like.tokenizer, step, steps, code)
