"""Train a method, measure it, search with it: `python -m mmcl_core --help`.

Under `torchrun`, `train` and `evaluate` with several processes that train as one.
"""

import argparse
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from mmcl_core.checkpoints import load_checkpoint
from mmcl_core.cli.options import PAIRS, PROGRAM, SEED, parser
from mmcl_core.cli.runs import (
    ALWAYS,
    DATA_SEED,
    OF_A_FOLDER,
    OF_SHAPES,
    Run,
    default,
    read_run,
    recorded,
)
from mmcl_core.cli.search import (
    PictureIndex,
    TrainedRun,
    embed_folder,
    embed_picture,
    embed_words,
    load_run,
    nearest,
    unknown_words,
)
from mmcl_core.cli.tables import TABLES, print_table
from mmcl_core.data import PictureFolder
from mmcl_core.distributed import joined, own_device, rank, wait, world_size
from mmcl_core.errors import CheckpointError, MMCLError
from mmcl_core.evaluation import summary as measures
from mmcl_core.training import fit


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, 2 after an error, 130 after Ctrl-C."""
    args = parser().parse_args(argv)
    process = int(os.environ.get("RANK", 0))
    speaker = PROGRAM if process == 0 else f"{PROGRAM}, process {process}"

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if process == 0:
            _say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            return COMMANDS[args.command](args)
        except KeyboardInterrupt:
            _say(f"{speaker}: stopped")
            return 130
        except (MMCLError, OSError) as error:
            # What a loader says to a programmer, in the words of this program.
            told = str(error).replace("on_error='skip'", "--skip-bad-rows")
            told = told.replace("skip_bad=True", "--skip-bad-pictures")
            _say(f"{speaker}: error: {told}")
            return 2


# --- train ----------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> int:
    """Trains one method; leaves a run in a folder."""
    out = Path(args.out)
    checkpoint = out / "checkpoint.pt"
    with joined():
        known = _known_run(out, args.resume)
        run = _resumed(known, args, out) if known else _new_run(args)
        data = run.training_data(out)
        recipe, steps = run.recipe(data), run.steps(data)
        device = _device(args.device)
        wait(torch.device("cpu"))  # all have looked; now process 0 writes
        first = rank() == 0
        if first and not args.quiet:
            processes = f" in {world_size()} processes" if world_size() > 1 else ""
            _say(f"{run.method}: {len(data)} pairs, {steps} steps on {device}{processes}")
        new = first and known is None
        try:
            with recorded(run, data, out) if new else contextlib.nullcontext():
                history = fit(
                    recipe.method,
                    data,
                    epochs=run.epochs,
                    batch_size=run.batch_size,
                    lr=run.lr,
                    autocast=run.autocast,
                    augment=recipe.augment,
                    seed=run.seed,
                    device=device,
                    progress=args.progress or (sys.stderr.isatty() and not args.quiet),
                    checkpoint=checkpoint,
                    checkpoint_every=args.checkpoint_every,
                    resume=args.resume,
                )
        except KeyboardInterrupt:
            if first:
                _say(_stopped(checkpoint, recipe.method, steps))
            return 130
        if first:
            print(
                f"{len(history)} steps in {sum(history['seconds']):.1f} seconds, last loss "
                f"{history['total'][-1]:.4f}: {checkpoint}"
            )
    return 0


def _known_run(out: Path, resume: bool) -> Run | None:
    """The run that a folder holds, if it is to go on; None if there is none."""
    found = [name for name in ("run.json", "checkpoint.pt") if (out / name).exists()]
    if found == ["checkpoint.pt"]:
        raise CheckpointError(
            f"{out}: expected run.json beside checkpoint.pt, found none; take another --out"
        )
    if found and not resume:
        raise MMCLError(f"{out} holds a run: go on with it by --resume, or take another --out")
    return read_run(out) if found else None


def _resumed(known: Run, args: argparse.Namespace, out: Path) -> Run:
    """The run as it was begun; raises MMCLError if the arguments say something else."""
    before = asdict(known)
    others = [
        f"{_option(name)} {before[name]}, not {value}"
        for name, value in _given(args).items()
        if value != before[name]
    ]
    if others:
        raise MMCLError(
            f"{out} was begun with {'; '.join(others)}. Leave these out to resume it, or take "
            "another --out"
        )
    return known


def _new_run(args: argparse.Namespace) -> Run:
    given = _given(args)
    if missing := [_option(name) for name in ("method", "data") if name not in given]:
        raise MMCLError(f"a new run needs --method and --data; {' and '.join(missing)} not given")
    shapes = given["data"] == "shapes"
    ours, others = (OF_SHAPES, OF_A_FOLDER) if shapes else (OF_A_FOLDER, OF_SHAPES)
    if wrong := [_option(name) for name in given if name in others and name not in ours]:
        raise MMCLError(
            f"{', '.join(wrong)}: only for --data {'FOLDER' if shapes else 'shapes'}; got "
            f"--data {args.data}"
        )
    if given["method"] == "fusion" and not (shapes and given.get("objects") == "1-1"):
        raise MMCLError(
            "fusion learns shape and colour of the only object of a scene: expected --data shapes "
            f"--objects 1-1, got --data {args.data} --objects "
            f"{given.get('objects', OF_SHAPES['objects'])}"
        )
    own = {name: default(given["method"], name) for name in ("epochs", "batch_size")}
    return Run(**{**ALWAYS, **ours, **own, **given})


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that were typed, of those that decide how a training goes."""
    given = {field.name: getattr(args, field.name) for field in fields(Run)}
    if given["data"] not in (None, "shapes"):
        given["data"] = str(Path(given["data"]).resolve())
    return {name: value for name, value in given.items() if value is not None}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _stopped(checkpoint: Path, method: nn.Module, steps: int) -> str:
    if not checkpoint.exists():
        return "stopped before the first checkpoint: nothing is left behind"
    step = load_checkpoint(checkpoint, method).step
    return (
        f"stopped; {checkpoint} is that of step {step} of {steps}. The same command with --resume "
        "goes on from there"
    )


def _device(name: str | None) -> torch.device:
    """The device of that name, for this process; None is the GPU if there is one."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = own_device(name)
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError) as error:  # as each kind of device puts it
        reason = str(error).splitlines()[0]
        raise MMCLError(
            f"--device: expected one of this machine, such as cpu; got {name} ({reason})"
        ) from error
    return device


def _say(text: str) -> None:
    print(text, file=sys.stderr)


# --- evaluate -------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """Some measures, and on what they were taken."""

    on: str
    values: dict[str, float]


def evaluate(args: argparse.Namespace) -> int:
    """Measures a trained method, and prints what came out."""
    if int(os.environ.get("RANK", 0)) > 0:
        return 0  # one process is enough
    folder = Path(args.run)
    run = read_run(folder)
    data = run.training_data(folder)
    method, steps = run.recipe(data).method, run.steps(data)
    step = load_checkpoint(folder / "checkpoint.pt", method).step
    method.to(_device(args.device))
    measured = (_on_scenes if run.shapes else _on_pictures)(run, method, data, args)
    if args.json:
        about = {"run": str(folder), "method": run.method, "step": step, "steps": steps}
        print(json.dumps(about | {name: m._asdict() for name, m in measured.items()}, indent=2))
        return 0
    unfinished = "" if step == steps else ", not finished: train --resume goes on with it"
    print(f"{run.method} of {folder}, step {step} of {steps}{unfinished}")
    for name, (on, values) in measured.items():
        title, columns, rows = TABLES[name](run, values)
        print(f"\n{title}, on {on}")
        print_table(columns, rows)
    return 0


def _on_scenes(run: Run, method: Any, data: Any, args: argparse.Namespace) -> dict[str, Measured]:
    if args.data is not None or args.split is not None or args.skip_bad_rows:
        raise MMCLError(
            "--data, --split and --skip-bad-rows are for a run on a folder; this one was trained "
            "on shapes, and is measured on shapes"
        )
    n, seed = args.pairs or PAIRS, SEED if args.seed is None else args.seed
    if seed == DATA_SEED:
        raise MMCLError(f"--seed {seed} gives the scenes of the training; take another one")
    measured = {}
    if run.method in ("clip", "mct", "fdt"):
        on, test = f"{n} scenes of seed {seed}", run.scenes(n, seed)
        measured["recall"] = Measured(on, measures.recall(method, test))
        if run.method == "fdt":
            measured["codebook"] = Measured(on, measures.codebook(method, test))
            return measured
    # Classes need scenes with one object, and probes other ones to learn from.
    on, test = f"{n} one-object scenes of seed {seed + 2}", run.scenes(n, seed + 2, objects="1-1")
    if run.method == "fusion":
        values = measures.accuracy_by_modalities(
            method, data, test, method.modalities, classifier="own"
        )
        return {"accuracy": Measured(on, values)}
    if run.method == "gmc" and run.objects == "1-1":
        learn, whose = data, "those of the training"
    else:
        learn = run.scenes(2 * n, seed + 1, objects="1-1")
        whose = f"{2 * n} of seed {seed + 1}"
    on += f" (probe: {whose})"
    if run.method == "gmc":
        values = measures.accuracy_by_modalities(method, learn, test, method.modalities)
        return {"accuracy": Measured(on, values)}
    return measured | {"probes": Measured(on, measures.probes(method, learn, test))}


def _on_pictures(run: Run, method: Any, data: Any, args: argparse.Namespace) -> dict[str, Measured]:
    if args.pairs is not None or args.seed is not None:
        raise MMCLError(
            "--pairs and --seed are for a run on shapes; this one was trained on a folder, and is "
            "measured on all pictures of --data and --split"
        )
    if run.method == "moco":
        raise MMCLError(
            "moco embeds pictures alone, and those of a folder have no labels: there is nothing to "
            "measure here"
        )
    test, on = data, f"the {len(data)} pictures of the training"
    if args.data is not None or args.split is not None:
        root = run.data if args.data is None else args.data
        skip = args.skip_bad_rows or bool(run.skip_bad_rows)
        test = run.pictures(root, args.split, data.tokenizer, skip_bad_rows=skip)
        on = f"{len(test)} pictures of {root}"
        on += "" if args.split is None else f", split {args.split}"
    measured = {"recall": Measured(on, measures.recall(method, test))}
    if run.method == "fdt":
        measured["codebook"] = Measured(on, measures.codebook(method, test))
    return measured


# --- embed and search -----------------------------------------------------------------------------


def embed(args: argparse.Namespace) -> int:
    """Embeds a folder of pictures with a trained method; writes one file."""
    if int(os.environ.get("RANK", 0)) > 0:
        return 0  # one process is enough
    out = Path(args.out)
    if out.suffix != ".npz" or out.is_dir():
        raise MMCLError(f"--out: expected a file that ends in .npz, got {out}")
    run = load_run(args.run)
    pictures = PictureFolder(args.folder, size=run.size)
    device = _device(args.device)
    run.method.to(device)
    if not args.quiet:
        _say(f"{_which(run)}: {len(pictures)} pictures on {device}")
    shown = args.progress or (sys.stderr.isatty() and not args.quiet)
    with tqdm(total=len(pictures), disable=not shown, unit="picture", dynamic_ncols=True) as bar:
        index, bad = embed_folder(
            run,
            pictures,
            skip_bad=args.skip_bad_pictures,
            batch_size=args.batch_size,
            done=bar.update,
        )
    for picture in bad:
        _say(f"warning: left out: {picture}")
    index.save(out)
    n, d = index.embeddings.shape
    print(f"{n} pictures, vectors of {d} numbers: {out}")
    return 0


def search(args: argparse.Namespace) -> int:
    """Prints the pictures that lie nearest to each query."""
    if int(os.environ.get("RANK", 0)) > 0:
        return 0
    index = PictureIndex.load(args.file)
    folder = index.run if args.run is None else Path(args.run)
    if not (folder / "run.json").exists():
        raise CheckpointError(
            f"{args.file} was made with the run {folder}, which is not there; say where it lies by "
            "--run"
        )
    run = load_run(folder)
    if run.checkpoint != index.checkpoint:
        raise CheckpointError(
            f"{args.file} was made with other weights than those of {folder}, which has been "
            "trained since: embed the pictures again"
        )
    run.method.to(_device(args.device))
    found, code = [], 0
    for kind, query in _queries(args):
        try:
            unknown = unknown_words(run, query) if kind == "words" else []
            vector = embed_words(run, query) if kind == "words" else embed_picture(run, query)
        except MMCLError as error:  # the other queries may be better
            _say(f"error: {error}")
            code = 2
            continue
        if unknown:
            _say(f"warning: {query!r}: not in the training: {', '.join(unknown)}")
        best = [(round(score, 6), _shown(name)) for score, name in nearest(index, vector, args.top)]
        if args.json:
            pictures = [{"score": score, "name": name} for score, name in best]
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


def _which(run: TrainedRun) -> str:
    unfinished = "" if run.step == run.steps else " (not finished)"
    return f"{run.name}, step {run.step} of {run.steps}{unfinished}"


def _queries(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """The queries of the command line, or those that are typed, with their kind."""
    yield from (("words", query) for query in args.queries)
    yield from (("like", path) for path in args.like or ())
    if not args.queries and not args.like:
        yield from (("words", line.strip()) for line in sys.stdin if line.strip())


def _shown(name: str) -> str:
    """A file's name, if need be with a sign for what is not UTF-8 in it."""
    return os.fsencode(name).decode(errors="replace")


COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "embed": embed,
    "search": search,
}

if __name__ == "__main__":
    sys.exit(main())
