"""`python -m mmcl_core evaluate`: measures a run, and prints what came out."""

import argparse
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from mmcl_core.cli import options
from mmcl_core.cli.options import PROGRAM
from mmcl_core.cli.registry import METHODS
from mmcl_core.cli.runs import DATA_SEED, TrainedRun, load_run
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.drawing import ATTRIBUTES
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import summary
from mmcl_core.modules import device_of

PAIRS, SEED = 1000, 777  # the test scenes of the book

Values = dict[str, float]


class Measure(NamedTuple):
    """A measure of a run, and how it is printed.

    Attributes:
        values: from the run, data, and other data for a classifier to learn from (or None).
        columns: of the table; of each the key of its values, where {} is a row, and their format.
        rows: of the table, with what is printed for each; None has a row for each value.
        classes: what a classifier has to tell of scenes with one object each; None: any data.
    """

    title: str
    values: Callable[[TrainedRun, Any, Any], Values]
    columns: dict[str, tuple[str, str]]
    rows: Mapping[str, str] | None = None
    classes: Callable[[ShapesCaptions], dict[str, Tensor]] | None = None
    note: str = ""


def _accuracy(run: TrainedRun, data: Any, learn: Any) -> Values:
    method: Any = run.method
    own: Literal["own", "probe"] = "own" if METHODS[run.name].labels else "probe"
    return summary.accuracy_by_modalities(method, learn, data, method.modalities, classifier=own)


MEASURES = {
    "recall": Measure(
        "recall",
        lambda run, data, _: summary.recall(run.method, data),
        {f"@{k}": (f"{{}}@{k}", ".3f") for k in (1, 5, 10)},
        {
            "image_to_caption": "picture to caption",
            "caption_to_image": "caption to picture",
            "chance": "chance",
        },
        note=": among all pairs, by the first caption of each; the same words count as right",
    ),
    "codebook": Measure(
        "tokens",
        lambda run, data, _: summary.codebook(run.method, data),  # type: ignore[arg-type]
        {
            "active in one": ("{}_active", ".1f"),
            "used in all": ("{}_used", ".0f"),
            "perplexity": ("{}_perplexity", ".1f"),
        },
        {"image": "pictures", "caption": "captions"},
        note=": how pictures and captions use them",
    ),
    "probes": Measure(
        "read from pictures",
        lambda run, data, learn: summary.probes(run.method, learn, data),
        {"accuracy": ("{}", ".3f"), "chance": ("{}_chance", ".3f")},
        dict(zip(ATTRIBUTES, ATTRIBUTES, strict=True)),
        summary.of_the_object,
        note=" by a linear classifier, from the features of their encoder",
    ),
    "accuracy": Measure(
        "shape and colour together, told from",
        _accuracy,
        {"accuracy": ("{}", ".3f")},
        classes=lambda scenes: {"shape and colour": summary.shape_and_colour(scenes)},
        note=" each choice of modalities\n"
        "    (tags name both, and so do captions from --detail 2 on)",
    ),
}


ABOUT = "It is measured on what it was not trained on:\n" + "".join(
    f"  {', '.join(method for method, entry in METHODS.items() if name in entry.scenes)}\n"
    f"    {measure.title}{measure.note}\n"
    for name, measure in MEASURES.items()
)
ABOUT += "A run on a folder: recall, on its own pictures or on those of --data, --split."

EXAMPLES = f"""\
  {PROGRAM} train --method clip --data shapes --out runs/clip
  {PROGRAM} evaluate runs/clip
  {PROGRAM} evaluate runs/clip --pairs 200 --seed 778 --json"""


OPTIONS = {
    "what": {"run FOLDER": "the --out of train."},
    "only for a run on shapes": {
        "--pairs N": f"number of scenes; default {PAIRS}. Probes learn from twice as many others.",
        "--seed SEED": f"of the scenes; default {SEED}. Not {DATA_SEED}, that of the training. "
        "Probes take the next two.",
    },
    "only for a run on a folder": {
        "--data FOLDER": "measure on these pictures; default: on those of the training.",
        "--split NAME": "which part of it to measure on; default: that of the training, or with "
        "--data all.",
        "--skip-bad-rows": "leave out unusable rows and pictures; default: as in training.",
    },
    "where, and how to print": {**options.DEVICE, "--json": "print JSON; default: tables."},
}


def evaluate(args: argparse.Namespace) -> int:
    """Measures what was trained, and prints what came out."""
    run = load_run(args.run)
    run.method.to(options.device(args.device))
    measured = (_on_scenes if run.arguments.shapes else _on_pictures)(run, args)
    if args.json:
        about = {"run": args.run, "method": run.name, "step": run.step, "steps": run.steps}
        found = {name: {"on": on, "values": values} for name, (on, values) in measured.items()}
        print(json.dumps(about | found, indent=2))
        return 0
    unfinished = "" if run.step == run.steps else ", not finished: train --resume goes on with it"
    print(f"{run.name} of {args.run}, step {run.step} of {run.steps}{unfinished}")
    for name, (on, values) in measured.items():
        print(f"\n{MEASURES[name].title}, on {on}")
        _print_table(MEASURES[name], values)
    return 0


def _on_scenes(run: TrainedRun, args: argparse.Namespace) -> dict[str, tuple[str, Values]]:
    """Each measure: on what it was taken, and its values."""
    if args.data is not None or args.split is not None or args.skip_bad_rows:
        raise MMCLError("--data, --split, --skip-bad-rows are for a run on a folder, not on shapes")
    n, seed = args.pairs or PAIRS, SEED if args.seed is None else args.seed
    if seed == DATA_SEED:
        raise MMCLError(f"--seed {seed} gives the scenes of the training; take another one")
    scenes = functools.cache(run.arguments.scenes)  # several measures are taken on the same
    measured = {}
    for name in METHODS[run.name].scenes:
        measure = MEASURES[name]
        if measure.classes is None:
            data, learn, on = scenes(n, seed), None, f"{n} scenes of seed {seed}"
        else:
            data = scenes(n, seed + 2, objects="1-1")
            learn, on = data, f"{n} one-object scenes of seed {seed + 2}"
            if not METHODS[run.name].labels:  # else it is a classifier itself
                learn = scenes(2 * n, seed + 1, objects="1-1")
                on += f" (probe: {2 * n} of seed {seed + 1})"
                _check_classes(measure.classes(learn), measure.classes(data), n)
        measured[name] = on, measure.values(run, data, learn)
    return measured


def _check_classes(known: dict[str, Tensor], asked: dict[str, Tensor], n: int) -> None:
    for name in known:
        there, wanted = set(known[name].tolist()), set(asked[name].tolist())
        if len(there) < 2 or wanted - there:
            raise MMCLError(
                f"--pairs {n}: too few scenes. The {2 * n} that a probe learns from do not show "
                f"every {name} of the {n} that it is asked about; take more, such as {PAIRS}"
            )


def _on_pictures(run: TrainedRun, args: argparse.Namespace) -> dict[str, tuple[str, Values]]:
    if args.pairs is not None or args.seed is not None:
        raise MMCLError("--pairs and --seed are for a run on shapes, not on a folder")
    entry, arguments = METHODS[run.name], run.arguments
    if not entry.pictures:
        raise MMCLError(
            f"{run.name} {entry.wordless}, and pictures of a folder have no labels: there is "
            "nothing to measure here"
        )
    root, split = args.data or arguments.data, args.split
    ours = args.data is None and split is None
    if ours:
        split = arguments.split
    skip = args.skip_bad_rows or bool(arguments.skip_bad_rows)
    words, place = run.tokenizer, device_of(run.method)
    data = arguments.pictures(root, split, words, skip, run.folder, place)
    on = f"{len(data)} pictures of {root}" + ("" if split is None else f", split {split}")
    if ours:
        on = f"the {len(data)} pictures of the training"
    return {name: (on, MEASURES[name].values(run, data, None)) for name in entry.pictures}


def _print_table(measure: Measure, values: Values) -> None:
    rows = measure.rows or {name: name for name in values}
    some = next(iter(rows))
    # Not what was left out: of few pairs, there is no recall among ten.
    columns = {h: of for h, of in measure.columns.items() if of[0].format(some) in values}
    table = [["", *columns]]
    for name, shown in rows.items():
        cells = [format(values[key.format(name)], form) for key, form in columns.values()]
        table.append([shown, *cells])
    first, *widths = (max(map(len, column)) for column in zip(*table, strict=True))
    for shown, *cells in table:
        aligned = (f"{cell:>{max(6, w)}}" for cell, w in zip(cells, widths, strict=True))
        print(f"  {shown:{first}}  {'  '.join(aligned)}")
