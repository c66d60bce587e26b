"""The oldest versions that pyproject.toml allows: install them, and run a part of the tests.

    python tools/floors.py                 # every lower bound
    python tools/floors.py torch==2.13.0   # but for one, as where 2.6 is had with CUDA alone

The environment is `.venv-floors`. A bound that does not work is raised in pyproject.toml.
"""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import environment
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
NAME = ".venv-floors"
LIST = "_build/floors.txt"
# What runs the tests, in the versions of requirements.txt: readers need none of it.
TOOLS = ["pytest", "pytest-xdist", "hypothesis", "entmax"]
# The tests of what readers use, without those that take long.
TESTS = ["tests/mmcl_core", "--ignore=tests/mmcl_core/cli"]
TESTS += [f"--ignore=tests/mmcl_core/test_{name}.py" for name in ("distributed", "imports")]
TESTS += [f"tests/mmcl_book/{name}" for name in ("figures", "records", "methods")]
TESTS += ["tests/mmcl_book/test_widgets.py", "tests/mmcl_book/test_claims.py"]


def lower_bounds(pyproject: str) -> dict[str, str]:
    """{package: oldest version} of all that the library and the companion need.

    Raises:
        SystemExit: one has no lower bound, or more than that.
    """
    project = tomllib.loads(pyproject)["project"]
    found = {}
    for line in [*project["dependencies"], *project["optional-dependencies"]["book"]]:
        needed = Requirement(line)
        bounds = list(needed.specifier)
        if [bound.operator for bound in bounds] != [">="]:
            sys.exit(f"pyproject.toml: expected a lower bound alone, as 'torch>=2.6', got {line!r}")
        found[needed.name] = bounds[0].version
    return found


def replaced(bounds: dict[str, str], others: list[str]) -> dict[str, str]:
    """The bounds, but for others that are given as `package==version`.

    Raises:
        SystemExit: something is written in another way, or no dependency.
    """
    given = dict(other.partition("==")[::2] for other in others)
    if wrong := [name for name, version in given.items() if name not in bounds or not version]:
        sys.exit(f"Expected package==version, of {', '.join(bounds)}; got {', '.join(wrong)}.")
    return bounds | given


def tools(requirements: str) -> list[str]:
    """What runs the tests, as requirements.txt pins it."""
    return [line for line in requirements.splitlines() if line.partition("==")[0] in TOOLS]


def main(others: list[str]) -> None:
    """Make the environment, say what is in it, and run the tests; exits as they do."""
    bounds = replaced(lower_bounds((ROOT / "pyproject.toml").read_text("utf-8")), others)
    lines = [f"{name}=={version}" for name, version in bounds.items()]
    print("The oldest allowed:", *lines, *(["instead of their bounds:", *others] if others else []))
    lines += [*tools((ROOT / "requirements.txt").read_text("utf-8")), "-e ."]
    (ROOT / LIST).parent.mkdir(exist_ok=True)
    (ROOT / LIST).write_text("\n".join(lines) + "\n")
    if not environment.is_ready(NAME, [LIST]):
        environment.make(NAME, [LIST], [])
    python = ROOT / NAME / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    workers = str(min(4, os.cpu_count() or 1))
    options = ["-q", "-p", "no:cacheprovider", "-n", workers, "--dist=loadfile"]
    command = [str(python), "-m", "pytest", *options, *TESTS]
    ended = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    sys.exit(ended.returncode)


if __name__ == "__main__":
    main(sys.argv[1:])
