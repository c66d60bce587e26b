"""Every check of the project, one after the other; what `make test` runs.

    python tools/check.py            # all of `make test`
    python tools/check.py lint unit  # some, by their names below

A check that fails does not stop the others. At the end: each one's verdict and seconds.
Once a week, and when they are named, run also: `every-notebook` and `floors`.
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
# So many at a time, each with one thread: two processes of one thread do more than one of two.
WORKERS = min(4, os.cpu_count() or 1)
PARALLEL = ["-n", str(WORKERS)]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
NOTEBOOK_SECONDS = 3600  # for one cell, against one that hangs

UNIT = ["-m", "not browser", "--durations=5"]
# The tests that compute, for `numerics`. Those left out are about files and words.
NUMERIC = [
    "tests/mmcl_core",
    "tests/mmcl_book/methods",
    "tests/mmcl_book/experiments",
    "tests/book",
]
NUMERIC += ["--ignore=tests/mmcl_core/cli"]
# What PyTorch and its libraries are told, to compute as another processor does.
CAPABILITIES = {
    "default": {"ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
}
# Run in Colab's environment each time: with a widget, with a record, with photographs.
ALWAYS = ["book/intro", "book/synthesis/comparison", "book/synthesis/photographs"]
BASES = ["origin/main", "main"]  # of these, the first that git knows is what a change is made to

notes: list[str] = []  # lines for the end, of the check that runs
found: dict[str, str] = {}  # of each check that has run tests: how many, in pytest's words


def run(*command: str, **variables: str) -> bool:
    """Run a command in the repository's root, with more variables; True when it succeeded."""
    print("$", " ".join([Path(command[0]).name, *command[1:]]), flush=True)
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}).returncode == 0


def run_tests(name: str, *options: str, **variables: str) -> bool:
    """Run pytest, and keep its last line, of how many passed, in `found[name]`."""
    command = [PYTHON, "-m", "pytest", "-q", "--ignore=tests/benchmarks", *PARALLEL, *options]
    print("$", *(f"{key}={value}" for key, value in variables.items()), *command[1:], flush=True)
    environment = {**os.environ, **ONE_THREAD, **variables}
    line = ""
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
    found[name] = line.strip("= \n")
    return process.returncode == 0


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
    return run_tests("unit", *UNIT, "--dist=loadfile", "tests")


def numerics() -> bool:
    """The tests that compute, as other processors compute; natively, unless `unit` has just run."""
    native, passed = capability(), True
    if "unit" in found:
        notes.append(f"natively ({native}): {found['unit']}, the check `unit`")
    else:
        passed = numerically(f"natively ({native})")
    for name, variables in CAPABILITIES.items():
        if name == "avx2" and not native.startswith("AVX"):
            notes.append(f"skipped {name}: this processor ({native}) has no AVX2")
        elif name.upper() == native:
            notes.append(f"skipped {name}: that is what this processor does natively")
        else:
            passed &= numerically(name, ATEN_CPU_CAPABILITY=name, **variables)
    return passed


def numerically(name: str, **variables: str) -> bool:
    """The tests that compute, once; with a note of the verdict."""
    passed = run_tests(name, *UNIT, "--dist=loadfile", *NUMERIC, **variables)
    notes.append(f"{'passed' if passed else 'FAILED'} {name}: {found[name]}")
    return passed


def capability() -> str:
    """What PyTorch makes of this processor by itself: DEFAULT, AVX2, AVX512, or a name on Arm."""
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    variables = {k: v for k, v in os.environ.items() if k != "ATEN_CPU_CAPABILITY"}
    return subprocess.check_output([PYTHON, "-c", code], env=variables, text=True).strip()


def notebooks() -> bool:
    """The notebooks are what the chapters give, and run as in Colab: some, and all that changed.

    `book` has executed the cells of all of them already, with the pinned versions. What is left to
    find is what only Colab's versions break; every week each notebook is asked (`every-notebook`).
    """
    changed = changed_files()
    wanted = [name for name in names() if name in ALWAYS or f"{name}.ipynb" in changed]
    return run(PYTHON, "tools/notebooks.py", "--check") & as_in_colab(wanted)


def every_notebook() -> bool:
    """Each notebook runs from top to bottom as in Colab."""
    return as_in_colab(names())


def names() -> list[str]:
    """The notebooks, without their ending."""
    return [path.relative_to(ROOT).with_suffix("").as_posix() for path in notebooks_in(ROOT)]


def changed_files() -> set[str]:
    """The files that differ from `main`, committed or not; where git knows no `main`, all."""
    git = ["git", "-C", str(ROOT)]
    for base in BASES:
        common = subprocess.run([*git, "merge-base", base, "HEAD"], capture_output=True, text=True)
        if common.returncode == 0:
            command = [*git, "diff", "--name-only", common.stdout.strip()]
            return set(subprocess.check_output(command, text=True).splitlines())
    return {f"{name}.ipynb" for name in names()}


def as_in_colab(wanted: list[str]) -> bool:
    """These notebooks run in an environment with Colab's versions, the longest first."""
    if not run(PYTHON, "tools/colab.py"):  # makes the environment; runs the first cell
        return False
    known = BUILD / "seconds.json"
    seconds = json.loads(known.read_text()) if known.exists() else {}
    files = [f"{n}.ipynb" for n in sorted(wanted, key=lambda name: -seconds.get(name, 0))]
    notes.append(f"{len(files)} of {len(names())} notebooks, in Colab's environment")
    kernel = [f"--nbmake-kernel={KERNEL}", f"--nbmake-timeout={NOTEBOOK_SECONDS}"]
    options = ["--maxschedchunk=1", "--durations=0", "-p", "no:cacheprovider"]
    return run_tests("notebooks", "--nbmake", *kernel, *options, *files, **kernel_path())


def book() -> bool:
    """The book is built without a warning; prints the seconds of each chapter."""
    return run(PYTHON, "tools/build.py", "--strict")


def browser() -> bool:
    """Each built page in a real browser: its widgets move, its formulas are rendered."""
    install_browser()
    # Printed once, here: the processes of the tests would each print it.
    printed = run(PYTHON, "tools/pdf.py")
    return run_tests("browser", "-m", "browser", "--durations=5", "tests") & printed


def install_browser() -> None:
    """In CI, install Debian's Chromium where there is none; elsewhere its absence is explained."""
    if not os.environ.get("CI") or shutil.which("chromium") or not shutil.which("apt-get"):
        return
    if os.geteuid() != 0:
        return
    print("Installing Chromium for the browser test (once) ...", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        subprocess.run(["apt-get", *command], env=environment, capture_output=True)


def floors() -> bool:
    """The oldest versions that pyproject.toml allows pass a part of the tests."""
    return run(PYTHON, "tools/floors.py")


CHECKS: dict[str, Callable[[], bool]] = {
    "lint": lint,
    "unit": unit,
    "numerics": numerics,
    "book": book,
    "notebooks": notebooks,  # after the book, which tells how long each takes
    "browser": browser,
}
WEEKLY: dict[str, Callable[[], bool]] = {"every-notebook": every_notebook, "floors": floors}


def main(wanted: list[str]) -> None:
    """Run the named checks, print the verdicts, and exit with 1 if one failed."""
    # Threads that wait by spinning for long make a training many times slower on a shared machine;
    # spinning for a moment only costs nothing on a quiet one.
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")
    known = CHECKS | WEEKLY
    if unknown := set(wanted) - set(known):
        sys.exit(f"There is no check {sorted(unknown)}; there are {list(known)}.")
    verdicts = {}
    for name in wanted or CHECKS:
        print(f"\n=== {name}", flush=True)
        notes.clear()
        start = time.perf_counter()
        passed = known[name]()
        verdicts[name] = passed, time.perf_counter() - start, list(notes)
    print()
    for name, (passed, seconds, said) in verdicts.items():
        print(f"{seconds:8.1f} s  {'passed' if passed else 'FAILED'}  {name}")
        print(*(f"{'':12}{line}\n" for line in said), sep="", end="")
    print(f"{sum(seconds for _, seconds, _ in verdicts.values()):8.1f} s  in all")
    if verdicts.get("book", (False,))[0]:
        report()
    if not all(passed for passed, *_ in verdicts.values()):
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
