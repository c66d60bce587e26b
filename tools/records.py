"""Refresh the records of all experiments, `book/records/*.json`; what `make records` runs.

    python tools/records.py       # all
    python tools/records.py gap   # some, by name

Prints first what it will run and about how long. Two experiments run at a time, with one thread
each; those that measure seconds run alone. A record that is up to date is left as it is. After
Ctrl-C, the same command goes on where it was.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from mmcl_book.records.making import EXPERIMENTS, planned, seeds_of
from mmcl_core.errors import MMCLError

ROOT = Path(__file__).resolve().parent.parent
AT_A_TIME = 2
# The variable of the environment that names the data which a record is made from.
NEEDS = {"flickr8k": "MMCL_FLICKR8K"}
ALONE = {"scaling"}  # its seconds are those of processes that have the machine for themselves


def command(name: str) -> list[str]:
    """What makes one record, with its seeds; run in the root."""
    options = ["--seeds", *map(str, seeds_of(name)), "--out", f"book/records/{name}.json"]
    return [sys.executable, "-m", "mmcl_book", "record", name, *options]


def plan(names: list[str]) -> list[str]:
    """Print what there is to run, and return the names, the longest first and `ALONE` last."""
    runs = {
        name: planned(name, seeds_of(name), ROOT / f"book/records/{name}.json") for name in names
    }
    print(f"{'record':14} runs   about")
    for name, (count, seconds) in runs.items():
        print(f"{name:14} {count:4} {seconds / 60:4.0f} min")
    alone = sum(seconds for name, (_, seconds) in runs.items() if name in ALONE)
    others = [seconds for name, (_, seconds) in runs.items() if name not in ALONE]
    hours = (alone + max([sum(others) / AT_A_TIME, *others])) / 3600
    print(
        f"{sum(count for count, _ in runs.values())} runs, about {hours:.1f} h with {AT_A_TIME} at "
        "a time, by the seconds of the records as they are; all records may take 8 h",
        flush=True,
    )
    return sorted(names, key=lambda name: (name in ALONE, -runs[name][1]))


def main(names: list[str]) -> int:
    """Make the named records, or all; returns the exit code of the first that failed, or 0."""
    # Threads that wait by spinning for long make a training many times slower on a shared machine;
    # spinning for a moment only costs nothing on a quiet one.
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not names:
        names = [name for name in EXPERIMENTS if os.environ.get(NEEDS.get(name, "PATH"))]
        for name in NEEDS.keys() - set(names):
            print(f"{name} stays as it is: {NEEDS[name]} names no folder")
    try:
        todo = plan(names)
    except MMCLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    running: dict[str, subprocess.Popen] = {}
    failed = 0
    try:
        while todo or running:
            free = AT_A_TIME - len(running)
            while todo and free > 0 and not (running and ALONE & {todo[0], *running}):
                # A process of its own, so that each record is made by the code as it then is.
                running[todo[0]] = subprocess.Popen(command(todo[0]), cwd=ROOT)
                todo, free = todo[1:], free - 1
            for name, process in list(running.items()):
                if (code := process.poll()) is not None:
                    del running[name]
                    failed = failed or code
                    if code == 130:  # Ctrl-C, which came to all of them
                        raise KeyboardInterrupt
            time.sleep(0.2)
    except KeyboardInterrupt:
        for process in running.values():
            process.wait()  # each says how to go on
        return 130
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
