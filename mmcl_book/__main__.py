"""Make the record of an experiment: `python -m mmcl_book record --help`."""

import argparse
import os
import sys
from collections.abc import Sequence

from mmcl_book.records.making import EXPERIMENTS, make_record
from mmcl_core.cli.options import seed
from mmcl_core.errors import MMCLError

PROGRAM = "python -m mmcl_book"

RECORD = """\
Trains and measures what a chapter of the book shows, under all its conditions
and with each seed. The record holds the results, and what they were made with.
Each finished run is kept in FILE.partial: after Ctrl-C, the same command goes on.
Runs are kept as long as the code and the versions that they depend on are."""

EXAMPLES = f"""\
examples:
  {PROGRAM} record gap --seeds 0 1 2 3 4 --out book/records/gap.json
  {PROGRAM} record gap --seeds 0 --out gap.json --fresh --quiet"""


def parser() -> argparse.ArgumentParser:
    """What can be typed after `python -m mmcl_book`."""
    top = argparse.ArgumentParser(prog=PROGRAM, description="Make what the pages of the book show.")
    commands = top.add_subparsers(dest="command", required=True, metavar="{record}")
    add = commands.add_parser(
        "record",
        help="run an experiment of the book with several seeds; writes the record of it",
        description=RECORD,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).add_argument
    add(
        "name",
        metavar="NAME",
        choices=EXPERIMENTS,
        help=f"which experiment: {', '.join(EXPERIMENTS)}.",
    )
    add(
        "--seeds",
        type=seed,
        metavar="N",
        nargs="+",
        required=True,
        help="each condition is run once with each; intervals need two or more.",
    )
    add("--out", metavar="FILE", required=True, help="where to put the record; JSON.")
    add(
        "--fresh",
        action="store_true",
        help="run all again; default: only what FILE and FILE.partial do not have.",
    )
    add("--quiet", action="store_true", help="print the last line only; default: one a run.")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, 2 after an error, 130 after Ctrl-C."""
    args = parser().parse_args(argv)
    say = (lambda _: None) if args.quiet else _say
    try:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise MMCLError("record runs in one process: start it without torchrun")
        record = make_record(args.name, args.seeds, args.out, say, fresh=args.fresh)
    except KeyboardInterrupt:
        _say(
            "stopped; the same command"
            f"{', without --fresh,' if args.fresh else ''} goes on where it was: what is finished "
            f"stands in {args.out}.partial"
        )
        return 130
    except (MMCLError, OSError) as error:
        _say(f"{PROGRAM}: error: {error}")
        return 2
    print(f"{args.name}: {record.provenance()['runs']}: {args.out}")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
