"""Every check of the project, one after the other; what `make test` runs.

    python tools/check.py            # all
    python tools/check.py lint unit  # some, by their names below

A check that fails does not stop the others. At the end: each one's verdict and seconds.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from build import BUILD, report
from colab import KERNEL, kernel_path
from notebooks import notebooks_in

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
PYTEST = [PYTHON, "-m", "pytest", "-q", "--ignore=tests/benchmarks"]
# So many at a time, each with one thread: two processes of one thread do more than one of two.
WORKERS = min(4, os.cpu_count() or 1)
PARALLEL = ["-n", str(WORKERS)]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
NOTEBOOK_SECONDS = 1200  # for one notebook; a slow machine takes ten times our 90 s


def run(*command: str, **variables: str) -> bool:
    """Run a command in the repository's root, with more variables; True when it succeeded."""
    print("$", " ".join([Path(command[0]).name, *command[1:]]), flush=True)
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}).returncode == 0


def lint() -> bool:
    """Style, form, types and floors. All run, so that one round of corrections is enough."""
    ruff = [PYTHON, "-m", "ruff"]
    return all(
        [
            run(*ruff, "check", "."),
            run(*ruff, "format", "--check", "."),
            run(PYTHON, "-m", "mypy"),
            run(str(Path(PYTHON).with_name("lint-imports"))),
        ]
    )


def unit() -> bool:
    """The tests that need neither the book nor a browser."""
    # The tests of a file share what its fixtures made: they stay together.
    options = ["-m", "not browser", "--dist=loadfile", "--durations=5"]
    return run(*PYTEST, *PARALLEL, *options, "tests", **ONE_THREAD)


def notebooks() -> bool:
    """The notebooks are what the chapters give, and each runs from top to bottom as in Colab."""
    current = run(PYTHON, "tools/notebooks.py", "--check")
    if not run(PYTHON, "tools/colab.py"):  # makes the environment; runs the first cell
        return False
    kernel = [f"--nbmake-kernel={KERNEL}", f"--nbmake-timeout={NOTEBOOK_SECONDS}"]
    options = [*PARALLEL, "--maxschedchunk=1", "--durations=0", "-p", "no:cacheprovider"]
    command = [PYTHON, "-m", "pytest", "-q", "--nbmake", *kernel, *options, *longest_first()]
    return run(*command, **ONE_THREAD, **kernel_path()) and current


def longest_first() -> list[str]:
    """The notebooks by the seconds that their pages took, so that none is left over at the end."""
    known = BUILD / "seconds.json"
    seconds = json.loads(known.read_text()) if known.exists() else {}
    names = [path.relative_to(ROOT).with_suffix("").as_posix() for path in notebooks_in(ROOT)]
    return [f"{name}.ipynb" for name in sorted(names, key=lambda name: -seconds.get(name, 0))]


def book() -> bool:
    """The book is built without a warning; prints the seconds of each chapter."""
    return run(PYTHON, "tools/build.py", "--strict")


def browser() -> bool:
    """Each built page in a real browser: its widgets move, its formulas are rendered."""
    install_browser()
    # Printed once, here: the processes of the tests would each print it.
    printed = run(PYTHON, "tools/pdf.py")
    return run(*PYTEST, *PARALLEL, "-m", "browser", "--durations=5", "tests") and printed


def install_browser() -> None:
    """Install Debian's Chromium where it is missing and this user may; else the test says how."""
    if shutil.which("chromium") or not shutil.which("apt-get") or os.geteuid() != 0:
        return
    print("Installing Chromium for the browser test (once) ...", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        subprocess.run(["apt-get", *command], env=environment, capture_output=True)


CHECKS: dict[str, Callable[[], bool]] = {
    "lint": lint,
    "unit": unit,
    "book": book,
    "notebooks": notebooks,  # after the book, which tells how long each takes
    "browser": browser,
}


def main(names: list[str]) -> None:
    """Run the named checks, print the verdicts, and exit with 1 if one failed."""
    # Threads that wait by spinning for long make a training many times slower on a shared machine;
    # spinning for a moment only costs nothing on a quiet one.
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")
    if unknown := set(names) - set(CHECKS):
        sys.exit(f"There is no check {sorted(unknown)}; there are {list(CHECKS)}.")
    verdicts = {}
    for name in names or CHECKS:
        print(f"\n=== {name}", flush=True)
        start = time.perf_counter()
        passed = CHECKS[name]()
        verdicts[name] = passed, time.perf_counter() - start
    print()
    for name, (passed, seconds) in verdicts.items():
        print(f"{seconds:8.1f} s  {'passed' if passed else 'FAILED'}  {name}")
    print(f"{sum(seconds for _, seconds in verdicts.values()):8.1f} s  in all")
    if verdicts.get("book", (False,))[0]:
        report()
    if not all(passed for passed, _ in verdicts.values()):
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
