"""What the options of all commands share: what may be typed, and what is printed about it.

By argparse: typer would save some lines, and be one more thing to install.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch

from mmcl_core.cli.registry import METHODS
from mmcl_core.distributed import own_device
from mmcl_core.errors import MMCLError, check_number

PROGRAM = "python -m mmcl_core"
CPU = torch.device("cpu")

DEVICE = {
    "--device NAME": "cpu, cuda, cuda:1 and so on; default: the GPU if there is one. Of several "
    "processes, each takes its own GPU."
}
BAR = {
    "--quiet": "print the last line only; default: what goes on.",
    "--progress": "show the bar in log files, too; default: on a terminal only.",
}


def command(
    commands: Any,
    call: Callable[[argparse.Namespace], int],
    about: str,
    examples: str,
    options: dict[str, dict[str, str]],
) -> None:
    """Adds a command: its name and its line of help are those of the function that does it.

    `options` has a title for each group, and then what is typed: what it means. What follows the
    name of an option decides what may be typed there (`READ`); without, it is True or None.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        call.__name__,
        help=call.__doc__,
        description=f"{call.__doc__}\n\n{about}",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(call=call)
    for title, group in options.items():
        add = parser.add_argument_group(title).add_argument
        for typed, help in group.items():
            name, _, value = typed.partition(" ")
            how: dict[str, Any] = {"type": READ.get(value, text), "metavar": value}
            if not value:
                how = {"action": "store_const", "const": True}
            elif value == "PICTURE":
                how["action"] = "append"
            elif value == "WORDS":
                how["nargs"] = "*"
            elif name == "--out":
                how["required"] = True
            add(name, help=help, **how)


def bar_shown(args: argparse.Namespace) -> bool:
    if args.quiet and args.progress:
        raise MMCLError("expected --quiet or --progress, got both")
    return bool(args.progress or (sys.stderr.isatty() and not args.quiet))


def device(name: str | None) -> torch.device:
    """The device of that name, for this process; None is the GPU if there is one."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = own_device(name)
        torch.zeros(1, device=found).tolist()
    except (RuntimeError, AssertionError) as error:  # as each kind of device puts it
        reason = str(error).splitlines()[0]
        raise MMCLError(
            f"--device: expected one of this machine, such as cpu; got {name} ({reason})"
        ) from error
    return found


def say(line: str) -> None:
    """Prints what is not the result."""
    print(line, file=sys.stderr)


# --- what argparse calls to read what was typed ---------------------------------------------------


def _fail(expected: str, typed: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"expected {expected}; got {typed!r}")


def _whole(expected: str, least: int, most: int = 2**32 - 1, step: int = 1) -> Callable[[str], int]:
    def read(typed: str) -> int:
        if not typed.isdecimal() or not least <= int(typed) <= most or int(typed) % step:
            raise _fail(expected, typed)
        return int(typed)

    return read


def _number(expected: str, interval: str) -> Callable[[str], float]:
    def read(typed: str) -> float:
        try:
            return check_number("", float(typed), interval)
        except ValueError as error:
            raise _fail(expected, typed) from error

    return read


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(typed: str) -> str:
        if typed not in choices:
            raise _fail(f"one of {', '.join(choices)}", typed)
        return typed

    return read


def objects(typed: str) -> str:
    low, dash, high = typed.partition("-")
    high = high if dash else low  # "2" is "2-2"
    if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high) <= 4):
        raise _fail("LOW-HIGH from 1 to 4, such as 1-3", typed)
    return f"{int(low)}-{int(high)}"


def text(typed: str) -> str:
    if not typed.strip():
        raise _fail("a name that is not empty", typed)
    return typed


seed = _whole("a whole number from 0 to 2^32 - 1", 0)
READ: dict[str, Callable[[str], object]] = {
    "N": _whole("a whole number, at least 1 and below 2^32", 1),
    "SEED": seed,
    "LEVEL": _whole("1, 2, 3 or 4", 1, 4),
    "PIXELS": _whole("a multiple of 8, from 8 to 1024", 8, 1024, step=8),
    "RATE": _number("a number above 0, not infinite", "(0, inf)"),
    "LOW-HIGH": objects,
    "SHARE": _number("a number from 0 to below 1", "[0, 1)"),
    "mean|max": _one_of("mean", "max"),
    "METHOD": _one_of(*METHODS),
    "WORDS": str,
}
