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
INPUTS = ["requirements.txt", "pyproject.toml"]


def fingerprint(inputs: list[str]) -> str:
    """A hash of what an environment is made from: its files and the Python."""
    digest = hashlib.sha256(repr(sys.version_info[:2]).encode())
    for name in inputs:
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


def stamp(name: str) -> str:
    """The file in environment `name` that says what it was made from, once it is complete."""
    return os.path.join(ROOT, name, "ready")


def is_ready(name: str, inputs: list[str]) -> bool:
    """Whether environment `name` was made, to the end, from these inputs."""
    if not os.path.exists(stamp(name)):
        return False
    with open(stamp(name)) as file:
        return file.read() == fingerprint(inputs)


def make(name: str, inputs: list[str], options: list[str]) -> None:
    """Create environment `name` and install the first of `inputs` with pip's `options`."""
    print(f"Making the environment in {name} from {inputs[0]} (some minutes, once) ...")
    sys.stdout.flush()
    builder = venv.EnvBuilder(with_pip=True, symlinks=os.name != "nt")
    folder = os.path.join(ROOT, name)
    builder.create(folder)
    python = builder.ensure_directories(folder).env_exe
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Relative to the root, because requirements.txt ends with this project itself ("-e .").
    if subprocess.call([*command, *options, "-r", inputs[0]], cwd=ROOT) != 0:
        raise SystemExit(f"pip could not install {inputs[0]}; its message is above.")
    with open(stamp(name), "w") as file:
        file.write(fingerprint(inputs))


def main() -> None:
    """Create `.venv` and install the pins, unless the stamp says that both were done."""
    check_version(sys.version_info[:2])
    if not is_ready(".venv", INPUTS):
        make(".venv", INPUTS, [])


if __name__ == "__main__":
    main()
