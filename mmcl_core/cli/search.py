"""`python -m mmcl_core search`: finds pictures by words among those that `embed` has embedded."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from mmcl_core.cli import options
from mmcl_core.cli.embed import PictureIndex
from mmcl_core.cli.options import PROGRAM, say
from mmcl_core.cli.registry import METHODS
from mmcl_core.cli.runs import TrainedRun, load_run
from mmcl_core.data.pictures import as_images, tried
from mmcl_core.data.tokenizer import split_words
from mmcl_core.errors import CheckpointError, DataError, MMCLError, check_count
from mmcl_core.evaluation import embed_all

TOP = 5

ABOUT = """\
Prints the pictures whose vectors lie nearest to that of the query (the cosine, from
-1 to 1), and their names in the folder that was embedded. Words that the run was not
trained with are named. Only --like, since they have no words beside their pictures:
runs of """ + " and ".join(name for name, entry in METHODS.items() if entry.wordless)

EXAMPLES = f"""\
  {PROGRAM} search photos.npz "a dog on the beach" --top 3
  {PROGRAM} search photos.npz --like holiday.jpg --json"""


OPTIONS = {
    "what, and among what": {
        "file FILE": "the --out of embed.",
        "queries WORDS": "what to look for; several queries are answered one after the other. "
        "Default: each line that is typed, until it ends (Ctrl-D).",
        "--like PICTURE": "look for pictures like this file; may come often; default: none.",
    },
    "how": {
        "--top N": f"pictures to show for each query; default {TOP}.",
        "--run FOLDER": "where the run lies now; default: where it lay when FILE was made.",
        **options.DEVICE,
        "--json": "print JSON; default: lines.",
    },
}


def search(args: argparse.Namespace) -> int:
    """Finds pictures by words among those that were embedded."""
    index = PictureIndex.load(args.file)
    folder = index.run if args.run is None else Path(args.run)
    if args.run is None and not (folder / "run.json").exists():
        lost = f"{args.file} was made with the run {folder}, which is not there"
        raise CheckpointError(f"{lost}; say where it lies by --run")
    run = load_run(folder)
    if run.checkpoint != index.checkpoint:
        other = f"{args.file} was made with other weights than those of {folder}"
        raise CheckpointError(f"{other}, which has been trained since: embed the pictures again")
    run.method.to(options.device(args.device))
    found, code = [], 0
    for kind, query in _queries(args):
        try:
            unknown = unknown_words(run, query) if kind == "words" else []
            vector = embed_words(run, query) if kind == "words" else embed_picture(run, query)
        except MMCLError as error:  # the other queries may be better
            say(f"error: {error}")
            code = 2
            continue
        if unknown:
            say(f"warning: {query!r}: not in the training: {', '.join(unknown)}")
        best = nearest(index, vector, args.top or TOP)
        if args.json:
            pictures = [{"score": round(score, 6), "name": name} for score, name in best]
            found.append({kind: query, "unknown": unknown, "found": pictures})
            continue
        print(query if kind == "words" else f"like {query}")
        for score, name in best:
            print(f"  {score:6.3f}  {name}")
        sys.stdout.flush()
    if args.json:
        about = {"run": str(folder), "pictures": str(index.pictures), "queries": found}
        print(json.dumps(about, indent=2, ensure_ascii=False))
    return code


def _queries(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """The queries of the command line, or those that are typed, with their kind."""
    yield from (("words", query) for query in args.queries)
    yield from (("like", path) for path in args.like or ())
    if not args.queries and not args.like:
        yield from (("words", line.strip()) for line in sys.stdin if line.strip())


def unknown_words(run: TrainedRun, text: str) -> list[str]:
    """The words of a text that the run was not trained with, each once."""
    known = set(run.tokenizer.words)
    return [word for word in dict.fromkeys(split_words(text)) if word not in known]


def embed_words(run: TrainedRun, text: str) -> Tensor:
    """A query in words as a unit vector [D] in the space of the pictures.

    MMCLError: the method has no words, or knows none of these; DataError: they are too many.
    """
    if wordless := METHODS[run.name].wordless:
        raise MMCLError(f"{run.name} {wordless}. Search by a picture, or train another method")
    words, longest = split_words(text), run.tokenizer.max_length - 2  # without start and end
    if not set(words) - set(unknown_words(run, text)):
        raise MMCLError(f"expected words that the run was trained with, got none in {text!r}")
    if len(words) > longest:
        raise DataError(f"expected at most {longest} words, got {len(words)}: take fewer")
    ids = run.tokenizer.encode_batch([text])
    return F.normalize(embed_all(run.method, {"caption": ids}, ("caption",)), dim=1)[0]


def embed_picture(run: TrainedRun, path: str | os.PathLike[str]) -> Tensor:
    """A query by a picture from a file as a unit vector [D]; DataError if it cannot be read."""
    pixels = tried(path, run.size)
    if isinstance(pixels, Exception):
        reason = getattr(pixels, "strerror", None) or pixels
        raise DataError(f"the picture {path} cannot be read ({reason})") from pixels
    image = run.see(as_images([pixels], run.size))
    return F.normalize(embed_all(run.method, {"image": image}, ("image",)), dim=1)[0]


def nearest(index: PictureIndex, query: Tensor, top: int = TOP) -> list[tuple[float, str]]:
    """The `top` pictures with the greatest cosine to a unit vector [D], as (cosine, name).

    Of equal ones, the first in the order of the index.
    """
    check_count("top", top)
    scores = index.embeddings @ query
    order = scores.sort(descending=True, stable=True).indices[:top].tolist()
    return [(float(scores[i]), index.names[i]) for i in order]
