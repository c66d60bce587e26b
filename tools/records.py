"""Refresh the records of all experiments, `book/records/*.json`; what `make records` runs.

    python tools/records.py       # all
    python tools/records.py gap   # some, by name

A record that is up to date is left as it is. After Ctrl-C, the same command goes on where it was.
"""

import os
import subprocess
import sys
from pathlib import Path

from mmcl_book.records.making import EXPERIMENTS

ROOT = Path(__file__).resolve().parent.parent
SEEDS = range(5)


def command(name: str) -> list[str]:
    """What makes one record; run in the root."""
    options = ["--seeds", *map(str, SEEDS), "--out", f"book/records/{name}.json"]
    return [sys.executable, "-m", "mmcl_book", "record", name, *options]


def main(names: list[str]) -> int:
    """Make the named records, or all; returns the exit code of the first that failed, or 0."""
    # Threads that wait by spinning for long make a training many times slower on a shared machine;
    # spinning for a moment only costs nothing on a quiet one.
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")
    failed = 0
    for name in names or EXPERIMENTS:
        # A process of its own, so that each record is made by the code as it then is.
        process = subprocess.Popen(command(name), cwd=ROOT)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            code = process.wait()  # it heard of it, too, and says how to go on
        if code == 130:
            return code
        failed = failed or code
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
