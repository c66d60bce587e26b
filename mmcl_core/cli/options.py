"""What can be typed after `python -m mmcl_core`, and what its help says.

By argparse: typer would save a hundred lines, and be one more thing to install.
"""

import argparse
from collections.abc import Callable
from typing import Any

from mmcl_core.cli.runs import ALWAYS, DATA_SEED, METHODS, OF_A_FOLDER, OF_SHAPES, default
from mmcl_core.data.shapes import NAMED_AT_DETAIL

PROGRAM = "python -m mmcl_core"
PAIRS, SEED = 1000, 777  # the test scenes of the book


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Train a method of multimodal contrastive learning, measure it, and find "
        "pictures with it.",
        epilog=f"{PROGRAM} train --help and so on say the rest.",
    )
    commands = top.add_subparsers(
        dest="command", required=True, metavar="{train,evaluate,embed,search}"
    )
    _train_options(commands)
    _evaluate_options(commands)
    _embed_options(commands)
    _search_options(commands)
    return top


def _train_options(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a method; writes a folder with run.json and checkpoint.pt",
        description=TRAIN,
        epilog=TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("what, on what, where to").add_argument
    add(
        "--method",
        choices=METHODS,
        help="what to train. clip, mct, fdt, gmc: pictures with captions (mct and gmc: with tags, "
        "too, where there are some); moco: pictures alone; fusion: a classifier of shape and "
        "colour. No default.",
    )
    add(
        "--data",
        metavar="shapes|FOLDER",
        help="shapes: scenes that the library draws (nothing is downloaded). FOLDER: captioned "
        "pictures in the layout of Flickr8k or COCO. No default.",
    )
    add("--out", metavar="FOLDER", required=True, help="where to put the run; made if missing.")
    add = parser.add_argument_group("only with --data shapes").add_argument
    add(
        "--pairs",
        type=_count,
        metavar="N",
        help=f"number of scenes, each with captions; default {OF_SHAPES['pairs']}.",
    )
    add(
        "--detail",
        type=int,
        choices=NAMED_AT_DETAIL,
        help="what captions tell. 1 shape, 2 and colour, 3 and size and texture, 4 and "
        f"position; default {OF_SHAPES['detail']}.",
    )
    add(
        "--objects",
        type=_objects,
        metavar="LOW-HIGH",
        help="number of objects in a scene, from 1 to 4; default "
        f"{OF_SHAPES['objects']}. fusion needs 1-1.",
    )
    add = parser.add_argument_group("only with --data FOLDER").add_argument
    add(
        "--split",
        metavar="NAME",
        help="which part of it, such as train (Flickr8k) or train2017 (COCO); default: all.",
    )
    add(
        "--skip-bad-rows",
        action="store_const",
        const=True,
        help="leave out unusable rows and pictures, and say which; default: stop at them.",
    )
    add = parser.add_argument_group("how to train").add_argument
    add(
        "--size",
        type=_count,
        metavar="PIXELS",
        help=f"side of the square pictures, a multiple of 8; default {OF_SHAPES['size']} for "
        f"shapes (which need 24), {OF_A_FOLDER['size']} for a folder.",
    )
    epochs, sizes = (
        ", ".join(f"{method} {default(method, name)}" for method in METHODS)
        for name in ("epochs", "batch_size")
    )
    add("--epochs", type=_count, metavar="N", help=f"passes over the data; default: {epochs}.")
    add(
        "--batch-size",
        type=_count,
        metavar="N",
        help=f"pairs in one step, of all processes together; default: {sizes}.",
    )
    add(
        "--lr",
        type=float,
        metavar="RATE",
        help=f"the highest learning rate (of AdamW); default {ALWAYS['lr']}.",
    )
    add(
        "--seed",
        type=seed,
        metavar="N",
        help="of the first weights, the order of the pairs and the augmentation, not of the "
        f"scenes; default {ALWAYS['seed']}.",
    )
    _device_option(add)
    add(
        "--autocast",
        action="store_const",
        const=True,
        help="compute in bfloat16 where that is safe: faster on GPUs, slower on many CPUs; "
        "default: float32.",
    )
    group = parser.add_argument_group("stopping, going on, printing")
    add = group.add_argument
    add(
        "--checkpoint-every",
        type=_count,
        metavar="STEPS",
        help="write checkpoint.pt after each so many steps; default: after each epoch.",
    )
    add(
        "--resume",
        action="store_true",
        help="go on with the run in --out as if it had never stopped (all other arguments may be "
        "left out); begin it if there is none. Default: stop if there is one.",
    )
    _bar_options(group)


def _evaluate_options(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure what was trained",
        description=EVALUATE,
        epilog=EVALUATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", metavar="FOLDER", help="the --out of train.")
    add = parser.add_argument_group("only for a run on shapes").add_argument
    add(
        "--pairs",
        type=_count,
        metavar="N",
        help=f"number of scenes; default {PAIRS}. Probes learn from twice as many others.",
    )
    add(
        "--seed",
        type=seed,
        metavar="N",
        help=f"of the scenes; default {SEED}. Not {DATA_SEED}, that of the training. "
        "Probes take the next two.",
    )
    add = parser.add_argument_group("only for a run on a folder").add_argument
    add(
        "--data",
        metavar="FOLDER",
        help="measure on these pictures; default: on those of the training.",
    )
    add(
        "--split",
        metavar="NAME",
        help="which part of it to measure on; default: that of the training, or with --data all.",
    )
    add(
        "--skip-bad-rows",
        action="store_true",
        help="leave out unusable rows and pictures; default: as in training.",
    )
    add = parser.add_argument_group("where, and how to print").add_argument
    _device_option(add)
    add("--json", action="store_true", help="print JSON; default: tables.")


def _embed_options(commands: Any) -> None:
    parser = commands.add_parser(
        "embed",
        help="embed all pictures of a folder with what was trained; writes a file for search",
        description=EMBED,
        epilog=EMBED_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the --out of train.")
    add(
        "folder",
        metavar="FOLDER",
        help="the pictures: all files there, and in the folders inside, that end in .jpg, .png and "
        "so on. Captions are not needed.",
    )
    add("--out", metavar="FILE", required=True, help="where to put the vectors; .npz.")
    add(
        "--skip-bad-pictures",
        action="store_true",
        help="leave out pictures that cannot be read, and say which; default: write nothing, and "
        "say which.",
    )
    add(
        "--batch-size",
        type=_count,
        metavar="N",
        default=256,
        help="pictures embedded at once; default 256.",
    )
    _device_option(add)
    _bar_options(parser)


def _search_options(commands: Any) -> None:
    parser = commands.add_parser(
        "search",
        help="find pictures by words among those that were embedded",
        description=SEARCH,
        epilog=SEARCH_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="the --out of embed.")
    add(
        "queries",
        metavar="WORDS",
        nargs="*",
        help="what to look for; several queries are answered one after the other. Default: each "
        "line that is typed, until it ends (Ctrl-D).",
    )
    add(
        "--like",
        metavar="PICTURE",
        action="append",
        help="look for pictures like this one, a file; may come several times; default: none.",
    )
    add(
        "--top",
        type=_count,
        metavar="K",
        default=5,
        help="pictures to show for each query; default 5.",
    )
    add(
        "--run",
        metavar="FOLDER",
        help="where the run lies now; default: where it lay when FILE was made.",
    )
    _device_option(add)
    add("--json", action="store_true", help="print JSON; default: lines.")


def _bar_options(group: Any) -> None:
    bar = group.add_mutually_exclusive_group()
    bar.add_argument(
        "--quiet", action="store_true", help="print the last line only; default: what goes on."
    )
    bar.add_argument(
        "--progress",
        action="store_true",
        help="show the bar in log files, too; default: on a terminal only.",
    )


def _device_option(add: Callable[..., object]) -> None:
    add(
        "--device",
        metavar="NAME",
        help="cpu, cuda, cuda:1 and so on; default: the GPU if there is one. Of several processes, "
        "each takes its own GPU.",
    )


TRAIN = """\
Trains a method with the settings of the book, on drawn scenes of shapes or on a
folder of captioned pictures. A run is a folder: run.json has the arguments,
checkpoint.pt the weights and all that --resume needs."""

TRAIN_EXAMPLES = f"""\
examples:
  CLIP on 5,000 scenes, about a minute on two cores; then go on after Ctrl-C:
    {PROGRAM} train --method clip --data shapes --out runs/clip
    {PROGRAM} train --resume --out runs/clip
  A classifier, to see what it does when a modality is missing:
    {PROGRAM} train --method fusion --data shapes --objects 1-1 --out runs/fusion
  Two processes that train as one (torchrun is python -m torch.distributed.run):
    torchrun --nproc-per-node 2 -m mmcl_core train --method mct --data shapes --out runs/mct"""

EVALUATE = """\
Measures a run of train, on scenes that it was not trained on:
  clip, mct, fdt   recall among all pairs, in both directions; a caption that is
                   word for word the right one counts
  fdt              how pictures and captions use its tokens
  clip, mct, moco  what a linear probe reads from the features of pictures
  gmc, fusion      accuracy of shape and colour from each choice of modalities
                   (tags name both, and so do captions from --detail 2 on)
A run on a folder: recall, on its own pictures or on those of --data, --split."""

EVALUATE_EXAMPLES = f"""\
examples:
  {PROGRAM} train --method clip --data shapes --out runs/clip
  {PROGRAM} evaluate runs/clip
  {PROGRAM} evaluate runs/clip --pairs 200 --seed 778 --json"""


EMBED = """\
Embeds each picture of a folder as a unit vector, with a run of train. FILE has the
vectors (float32, one row for each picture), the names of the pictures, and where
the run lies. It is written whole or not at all; one that is there is replaced."""

EMBED_EXAMPLES = f"""\
examples:
  {PROGRAM} embed runs/clip photos --out photos.npz
  {PROGRAM} embed runs/clip photos --out photos.npz --skip-bad-pictures"""


SEARCH = """\
Finds pictures by words: prints those whose vectors lie nearest to that of the
query (the cosine, from -1 to 1), and their names in the folder that was embedded.
Words that the run was not trained with are named. moco and fusion have no words
beside their pictures: with them, only --like."""

SEARCH_EXAMPLES = f"""\
examples:
  {PROGRAM} search photos.npz "a dog on the beach" --top 3
  {PROGRAM} search photos.npz --like holiday.jpg --json"""


def _whole(text: str, least: int, expected: str) -> int:
    if not text.isdecimal() or int(text) < least or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected {expected}; got {text!r}")
    return int(text)


def _count(text: str) -> int:
    return _whole(text, 1, "a whole number, at least 1")


def seed(text: str) -> int:
    return _whole(text, 0, "a whole number from 0 to 2^32 - 1")


def _objects(text: str) -> str:
    low, dash, high = text.partition("-")
    if not (low.isdecimal() and (high.isdecimal() if dash else True)):
        raise argparse.ArgumentTypeError(f"expected LOW-HIGH, such as 1-3; got {text!r}")
    return f"{int(low)}-{int(high or low)}"  # "2" is "2-2"
