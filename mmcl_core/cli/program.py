"""`python -m mmcl_core`: reads what was typed, runs the command, and says what went wrong."""

import argparse
import io
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from mmcl_core.cli import embed, evaluate, search, train
from mmcl_core.cli.options import PROGRAM, command, say
from mmcl_core.errors import MMCLError

COMMANDS = (train, evaluate, embed, search)

# What the library says to a programmer, and what this program says instead. The ranges of options
# are looked at before the library is called; these are errors that only it can find.
SAID = (
    (r"pass on_error='skip'", "pass --skip-bad-rows"),
    (r" \(truncate=True cuts it, max_length moves the limit\)", ""),
    (r"for split='(.*)', got", r"for --split \1, got"),
    (r"; split=None takes all pictures, and subset\(\) any part of them", "; or leave out --split"),
    (r"CaptionFolder left rows out", "left out"),
    (r"; `\w+` lists all", ""),
    (r"not known to the tokenizer \((.*)\) and are read as <unk>", r"not in the training (\1)"),
    (r"pass skip_bad=True", "pass --skip-bad-pictures"),
    (r"Check the batch for NaN, lower lr, or raise the temperature", "Take a lower --lr"),
    (r"Has training diverged\?", "Take a lower --lr"),
    (r"Make the batch larger, or drop the last.*\)", "Take a larger --batch-size"),
    (r": begin warmer and cool down \(see Cooling\)", ""),
    (r"batch_size, the samples of a step, must be", "--batch-size must be"),
    (r"world_size = ", "processes = "),
    (r"resume with the same .*", "resume with the same data and processes, or take another --out"),
)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Train a method of multimodal contrastive learning, measure it, search by it.",
        epilog=f"{PROGRAM} train --help and so on say the rest.",
    )
    commands = top.add_subparsers(dest="command", required=True)
    for module in COMMANDS:
        call = getattr(module, module.__name__.rpartition(".")[2])
        command(commands, call, module.ABOUT, module.EXAMPLES, module.OPTIONS)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, 2 after an error, 130 after Ctrl-C."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that it does not have becomes a sign
            stream.reconfigure(errors="replace")
    args = parser().parse_args(argv)
    process = int(os.environ.get("RANK", 0))
    if process > 0 and args.command != "train":
        return 0  # one process is enough
    speaker = PROGRAM if process == 0 else f"{PROGRAM}, process {process}"

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if process == 0:
            say(f"warning: {in_options(message)}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            return int(args.call(args))
        except KeyboardInterrupt:
            say(f"{speaker}: stopped")
            return 130
        except BrokenPipeError:  # who reads has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (MMCLError, OSError) as error:
            say(f"{speaker}: error: {in_options(error)}")
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            less = "take smaller --pairs, --size or --batch-size, or another --device"
            say(f"{speaker}: error: not enough memory; {less}")
    return 2


def in_options(message: Warning | Exception | str) -> str:
    """What the library says, in the words of the command line."""
    if isinstance(message, OSError) and message.strerror and message.filename:
        return f"{message.filename}: {message.strerror}"
    said = str(message)
    for words, ours in SAID:
        said = re.sub(words, ours, said)
    return said
