"""Make the record of an experiment, or print what records claim: `python -m mmcl_book --help`."""

import argparse
import os
import sys
from collections.abc import Sequence

from mmcl_book.claims import BetterTable
from mmcl_book.records import compare, read_record
from mmcl_book.records.making import (
    EXPERIMENTS,
    TRIAL_SEEDS,
    confirm_record,
    experiment,
    make_record,
    seeds_of,
)
from mmcl_core.cli.options import seed
from mmcl_core.errors import MMCLError

PROGRAM = "python -m mmcl_book"

RECORD = """\
Trains and measures what a chapter of the book shows, under all its conditions
and with each seed. The record holds the results, and what they were made with.
Each finished run is kept in FILE.partial: after Ctrl-C, the same command goes on.
Runs are kept as long as the code and the versions that they depend on are. Some
experiments also keep the weights of trained models, beside FILE."""

CLAIMS = """\
Prints each claim that a method is better than the best simple rival: both
intervals, their difference, the margin that was set before the record was made,
and how many settings each was chosen from."""

EXAMPLES = f"""\
examples:
  {PROGRAM} record gap
  {PROGRAM} record gap --seeds 0 1 --out gap.json --fresh --quiet
  {PROGRAM} record gap --confirm"""


def parser() -> argparse.ArgumentParser:
    """What can be typed after `python -m mmcl_book`."""
    top = argparse.ArgumentParser(prog=PROGRAM, description="Make what the pages of the book show.")
    commands = top.add_subparsers(dest="command", required=True, metavar="{record,claims}")
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
        help="each condition is run once with each; intervals need two or more. Default: those of "
        f"the experiment; of --trials {' '.join(map(str, TRIAL_SEEDS))}.",
    )
    add(
        "--out",
        metavar="FILE",
        help="where to put the record; JSON. Default: book/records/NAME.json; of --trials "
        "book/records/trials/NAME.json.",
    )
    add(
        "--trials",
        action="store_true",
        help="run the settings that each method is chosen from, on scenes and with seeds of their "
        "own, in place of the conditions.",
    )
    add(
        "--fresh",
        action="store_true",
        help="run all again; default: only what FILE and FILE.partial do not have.",
    )
    add(
        "--confirm",
        action="store_true",
        help="after a change of the code that should change no number: run the first seed of each "
        "condition of FILE again. If every measure is as it was, FILE counts as made by today's "
        "code; else it is left as it is, and the command fails.",
    )
    add("--quiet", action="store_true", help="print the last line only; default: one a run.")
    claims = commands.add_parser(
        "claims",
        help="print the claims that a method is better than the best simple rival",
        description=CLAIMS,
    )
    claims.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        help="of experiments; default: all with claims.",
    )
    return top


def claimed(names: Sequence[str]) -> bool:
    """Prints what records say of the claims of experiments; returns whether all of them hold.

    Raises:
        RecordError: there is no record, or it is none.
    """
    known = [name for name in EXPERIMENTS if getattr(experiment(name), "BETTER", ())]
    all_hold = True
    for name in names or known:
        record = read_record(name)
        found = [compare(record, claim) for claim in getattr(experiment(name), "BETTER", ())]
        print(f"{name}\n{BetterTable(found)}\n")
        all_hold = all_hold and all(each.holds for each in found)
    return all_hold


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    It is 0, 1 where a claim does not hold, 2 after an error, and 130 after Ctrl-C.
    """
    args = parser().parse_args(argv)
    if args.command == "claims":
        try:
            return 0 if claimed(args.names) else 1
        except MMCLError as error:
            _say(f"{PROGRAM}: error: {error}")
            return 2
    say = (lambda _: None) if args.quiet else _say
    out = args.out or f"book/records/{'trials/' if args.trials else ''}{args.name}.json"
    try:
        if args.confirm and (args.fresh or args.seeds or args.trials):
            raise MMCLError(
                "--confirm runs the first seed of the record: leave out --fresh, --seeds, --trials"
            )
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise MMCLError("record runs in one process: start it without torchrun")
        if args.confirm:
            record = confirm_record(args.name, out, say)
        else:
            seeds = args.seeds or (TRIAL_SEEDS if args.trials else seeds_of(args.name))
            record = make_record(args.name, seeds, out, say, fresh=args.fresh, trials=args.trials)
    except KeyboardInterrupt:
        if args.confirm:
            _say(f"stopped; {out} is as it was")
            return 130
        _say(
            "stopped; the same command"
            f"{', without --fresh,' if args.fresh else ''} goes on where it was: what is finished "
            f"stands in {out}.partial"
        )
        return 130
    except (MMCLError, OSError) as error:
        _say(f"{PROGRAM}: error: {error}")
        return 2
    print(f"{args.name}: {record.provenance()['runs']}: {out}")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
