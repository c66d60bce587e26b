"""Make the book's environment, `.venv`, from `requirements.txt`; do nothing when it is up to date.

    python3 tools/environment.py

Standard library only: it runs before anything is installed.
"""

import hashlib
import os
import subprocess
import sys
import venv

OLDEST, NEWEST = (3, 11), (3, 13)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
STAMP = os.path.join(VENV, "ready")
INPUTS = ["requirements.txt", "pyproject.toml"]


def fingerprint() -> str:
    """A hash of what the environment is made from: the pins and the Python."""
    digest = hashlib.sha256(repr(sys.version_info[:2]).encode())
    for name in INPUTS:
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def check_version(version: tuple[int, ...]) -> None:
    """Raise `SystemExit` with advice unless `version`, as (3, 12), is one that the pins serve."""
    if not OLDEST <= tuple(version[:2]) <= NEWEST:
        raise SystemExit(
            f"This book needs Python 3.11, 3.12 or 3.13, but {sys.executable} is "
            f"{version[0]}.{version[1]}.\nSay which one to use, for example: "
            "make book PYTHON=python3.12"
        )


def main() -> None:
    """Create `.venv` and install the pins, unless the stamp says that both were done."""
    check_version(sys.version_info[:2])
    wanted = fingerprint()
    if os.path.exists(STAMP):
        with open(STAMP) as file:
            if file.read() == wanted:
                return
    print("Making the environment in .venv from requirements.txt (some minutes, once) ...")
    sys.stdout.flush()
    builder = venv.EnvBuilder(with_pip=True, symlinks=os.name != "nt")
    builder.create(VENV)
    python = builder.ensure_directories(VENV).env_exe
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Relative to the root, because requirements.txt ends with this project itself ("-e .").
    if subprocess.call([*command, "-r", "requirements.txt"], cwd=ROOT) != 0:
        raise SystemExit("pip could not install requirements.txt; its message is above.")
    with open(STAMP, "w") as file:
        file.write(wanted)


if __name__ == "__main__":
    main()
