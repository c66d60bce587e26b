"""Build the book: vendored files, notebooks, executed pages in `_build/html`.

python tools/build.py            # as the reader wants it
python tools/build.py --strict   # as `make test` wants it: a warning is an error
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import notebooks
import vendor

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
# Of no concern here: each kernel warns that it talks to this machine unencrypted, and PyTorch's
# profiler, which measures memory, says that it starts and stops.
NOISE = ("[IPKernelApp] WARNING", "SyncActivityProfilerHandler", "Memory block of unknown size")


def build(*, strict: bool) -> bool:
    """Run jupyter-book; True when it succeeded."""
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    command = [str(jupyter_book), "build", str(ROOT), "--quiet"]
    if strict:
        # --all: a page that was not read again would keep its warnings to itself.
        command += ["--warningiserror", "--keep-going", "--all"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if not any(noise in line for noise in NOISE):
            print(line, end="", file=sys.stderr, flush=True)
    return process.wait() == 0


def report() -> None:
    """Print where the book lies and what each chapter took to execute."""
    seconds = json.loads((BUILD / "seconds.json").read_text())
    for page, value in seconds.items():
        print(f"{value:8.1f} s  {page}")
    print(f"{sum(seconds.values()):8.1f} s  to execute all chapters (when they last were)")
    print(f"The book: {(BUILD / 'html' / 'index.html').as_posix()}")


def main() -> None:
    """Build, and say where the result lies."""
    # Threads that wait by spinning for long make a training many times slower on a shared machine;
    # spinning for a moment only costs nothing on a quiet one.
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")
    start = time.perf_counter()
    vendor.vendor()
    # A page can be read although its notebook cannot: that is a check's business, not the reader's.
    for problem in notebooks.write():
        print(problem)
    if not build(strict="--strict" in sys.argv[1:]):
        sys.exit("The book was not built; the reason is above.")
    report()
    print(f"Built in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
