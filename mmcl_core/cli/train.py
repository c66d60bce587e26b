"""`python -m mmcl_core train`: trains a method with the settings of the book; leaves a run."""

import argparse
import contextlib
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from mmcl_core.checkpoints import load_checkpoint
from mmcl_core.cli import options
from mmcl_core.cli.options import PROGRAM, say
from mmcl_core.cli.registry import METHODS
from mmcl_core.cli.runs import ALWAYS, FEATURES, FOLDER, SHAPES, Run, encoder, read_run, recorded
from mmcl_core.distributed import joined, rank, wait, world_size
from mmcl_core.errors import CheckpointError, MMCLError
from mmcl_core.training import fit

LEAST_SIDE = 24  # of shapes

SETTINGS = "\n".join(
    f"  {name:7} {entry.about}\n          {entry.epochs} epochs, batches of {entry.batch_size}, "
    f"learning rate {entry.lr}"
    for name, entry in METHODS.items()
)

ABOUT = f"""\
The data are drawn scenes of shapes, or a folder of captioned pictures. A run is a
folder: run.json has the arguments, checkpoint.pt the weights and all that --resume
needs. The methods, and the settings of the book:
{SETTINGS}"""

EXAMPLES = f"""\
  CLIP on 5,000 scenes, about a minute on two cores; then go on after Ctrl-C:
    {PROGRAM} train --method clip --data shapes --out runs/clip
    {PROGRAM} train --resume --out runs/clip
  A classifier, to see what it does when a modality is missing:
    {PROGRAM} train --method fusion --data shapes --objects 1-1 --out runs/fusion
  Two processes that train as one (torchrun is python -m torch.distributed.run):
    torchrun --nproc-per-node 2 -m mmcl_core train --method mct --data shapes --out runs/mct"""


OPTIONS = {
    "what, on what, where to": {
        "--method METHOD": "what to train, see above. No default.",
        "--data shapes|FOLDER": "shapes: scenes that the library draws (nothing is downloaded). "
        "FOLDER: captioned pictures in the layout of Flickr8k or COCO. No default.",
        "--out FOLDER": "where to put the run; made if missing.",
    },
    "only with --data shapes": {
        "--pairs N": f"number of scenes, each with captions; default {SHAPES['pairs']}.",
        "--detail LEVEL": "what captions tell. 1 shape, 2 and colour, 3 and size and texture, 4 "
        f"and position; default {SHAPES['detail']}.",
        "--objects LOW-HIGH": f"how many in a scene, from 1 to 4; default {SHAPES['objects']}.",
    },
    "only with --data FOLDER": {
        "--split NAME": "a part of it, such as train (Flickr8k), train2017 (COCO); default: all.",
        "--skip-bad-rows": "leave out unusable rows and pictures, and say which; default: stop "
        "where there are more than one row in a thousand.",
    },
    "only with --data FOLDER: train on the features of an encoder that others have trained": {
        "--features ENCODER": "efficientnet-lite0, open_clip:NAME/WEIGHTS, or module:callable of "
        "your own. Asked once for each picture; its answers are kept in features/, beside the run. "
        "Default: train on the pictures.",
        "--pool mean|max": f"its tokens to one vector; default {FEATURES['pool']}.",
        "--dropout SHARE": "of its tokens and values left out in each step, from 0 to below 1; "
        f"default {FEATURES['dropout']}.",
    },
    "how to train": {
        "--size PIXELS": "side of the square pictures, a multiple of 8, for shapes at least "
        f"{LEAST_SIDE}; default {SHAPES['size']} for shapes, else {FOLDER['size']}, or "
        "what the encoder of --features was made for.",
        "--epochs N": "passes over the data; default: see above.",
        "--batch-size N": "pairs in one step, of all processes together; default: see above.",
        "--lr RATE": "the highest learning rate (of AdamW); default: see above.",
        "--seed SEED": "of the first weights, the order of the pairs and the augmentation, not of "
        f"the scenes; default {ALWAYS['seed']}.",
        **options.DEVICE,
        "--autocast": "compute in bfloat16 where that is safe: faster on GPUs, slower on many "
        "CPUs; default: float32.",
    },
    "stopping, going on, printing": {
        "--checkpoint-every N": "write checkpoint.pt after so many steps; default: each epoch.",
        "--resume": "go on with the run in --out as if it had never stopped (all other arguments "
        "may be left out); begin it if there is none. Default: stop if there is one.",
        **options.BAR,
    },
}


def train(args: argparse.Namespace) -> int:
    """Trains a method; writes a folder with run.json and checkpoint.pt."""
    out, shown = Path(args.out), options.bar_shown(args)
    checkpoint = out / "checkpoint.pt"
    with joined():
        known = _known_run(out, args.resume)
        run = _resumed(known, args, out) if known else _new_run(args)
        device = options.device(args.device)
        for turn in (0, 1):  # process 0 asks the encoder of features; then the others read them
            if min(rank(), 1) == turn:
                data = run.training_data(out, device, bar=shown)
            wait(options.CPU)  # all have looked; now process 0 writes
        run = replace(run, feature_width=getattr(data, "width", None))
        if (size := run.batch_size) > len(data):
            raise MMCLError(f"--batch-size: expected at most the {len(data)} pairs; got {size}")
        steps = run.steps(len(data))
        recipe = run.recipe(data, steps)
        first = rank() == 0
        if first and not args.quiet:
            processes = f" in {world_size()} processes" if world_size() > 1 else ""
            say(f"{run.method}: {len(data)} pairs, {steps} steps on {device}{processes}")
        new = first and known is None
        try:
            with recorded(run, data, out) if new else contextlib.nullcontext():
                history = fit(
                    recipe.method, data, epochs=run.epochs, batch_size=run.batch_size, lr=run.lr,
                    autocast=run.autocast, augment=recipe.augment, seed=run.seed, device=device,
                    progress=shown, checkpoint=checkpoint, checkpoint_every=args.checkpoint_every,
                    resume=bool(args.resume),
                )  # fmt: skip
        except KeyboardInterrupt:
            if first:
                say(_stopped(checkpoint, recipe.method, steps))
            return 130
        if first:
            print(
                f"{len(history)} steps in {sum(history['seconds']):.1f} seconds, last loss "
                f"{history['total'][-1]:.4f}: {checkpoint}"
            )
    return 0


def _known_run(out: Path, resume: bool) -> Run | None:
    """The run that a folder holds, if it is to go on; None if there is none."""
    if out.exists() and not out.is_dir():
        raise MMCLError(f"--out: expected a folder, there or new; {out} is a file")
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
            f"{out} was begun with {'; '.join(others)}. Leave these out, or take another --out"
        )
    return known


def _new_run(args: argparse.Namespace) -> Run:
    given = _given(args)
    if missing := [_option(name) for name in ("method", "data") if name not in given]:
        raise MMCLError(f"a new run needs --method and --data; {' and '.join(missing)} not given")
    method, shapes = given["method"], given["data"] == "shapes"
    frozen = "features" in given
    ours = SHAPES if shapes else FOLDER | FEATURES if frozen else FOLDER
    if wrong := [name for name in given if name in SHAPES | FOLDER | FEATURES and name not in ours]:
        kind = f"for --data {'FOLDER' if shapes else 'shapes'}; got --data {args.data}"
        kind = "with --features" if not shapes and wrong[0] in FEATURES else kind
        raise MMCLError(f"{', '.join(map(_option, wrong))}: only {kind}")
    if METHODS[method].labels and not (shapes and given.get("objects") == "1-1"):
        raise MMCLError(
            f"{method} learns shape and colour of the only object of a scene: expected --data "
            f"shapes --objects 1-1, got --data {args.data} --objects "
            f"{given.get('objects', SHAPES['objects'])}"
        )
    own = {name: getattr(METHODS[method], name) for name in ("epochs", "batch_size", "lr")}
    if frozen and "size" not in given:
        own["size"] = getattr(encoder(given["features"]), "size", 224)
    run = Run(**{**ALWAYS, **ours, **own, **given})
    if shapes and run.size < LEAST_SIDE:
        raise MMCLError(f"--size: expected at least {LEAST_SIDE} for shapes; got {run.size}")
    return run


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that were typed, of those that decide how a training goes."""
    given = {field.name: getattr(args, field.name, None) for field in fields(Run)}
    if given["data"] not in (None, "shapes"):
        given["data"] = str(Path(given["data"]).resolve())
    return {name: value for name, value in given.items() if value is not None}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _stopped(checkpoint: Path, method: nn.Module, steps: int) -> str:
    if not checkpoint.exists():
        return "stopped before the first checkpoint: nothing is left behind"
    step = load_checkpoint(checkpoint, method).step
    return f"stopped; {checkpoint} is that of step {step} of {steps}; --resume goes on from there"
