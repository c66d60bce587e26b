"""Make the environment of a reader in Colab, `.venv-colab`, and check the notebooks' first cell.

    python tools/colab.py   # then: pytest --nbmake --nbmake-kernel=colab, as tools/check.py does

The environment has Colab's versions (`tools/colab.txt`) and no `mmcl_core`. The first cell must
bring the library and change nothing that Colab has; a widget must then move under ipywidgets 7.
The cell installs from the repository's address. Here git is told to take, for that address, a
repository made on the spot from the library as it is now, committed or not.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import environment
import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from notebooks import INSTALL, ROOT, notebooks_in
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NAME = ".venv-colab"
KERNEL = "colab"
PINS = "tools/colab.txt"
INPUTS = [PINS]
AT_HAND = ROOT / "_build" / "colab" / "repository"
SECONDS = 600  # for the first cell: it downloads

# With ipywidgets 7 a picture is moved by Python. The library must be the one just installed.
MOVE_A_WIDGET = """\
import ipywidgets
import matplotlib.pyplot as plt
import mmcl_core
from mmcl_book.widgets import scrub

def draw(height):
    figure, axes = plt.subplots()
    axes.bar([0], [height])
    axes.set_ylim(0, 3)
    return figure

box = scrub(draw, [1, 2, 3], alt="A bar that grows with the slider", description="height")
slider, picture = box.children
before = picture.value
slider.index = 2
assert ipywidgets.__version__ == "7.7.1", ipywidgets.__version__
assert "site-packages" in mmcl_core.__file__, mmcl_core.__file__
assert "height: 1" in before and "height: 3" in picture.value
assert before.split("base64")[1] != picture.value.split("base64")[1]
box
"""


def main() -> None:
    """Make the environment where it is not ready, run the first cell in it, say what it changed."""
    python = ready_python()
    write_kernel(python)
    before = installed(python)
    outputs = run_cells([first_cell(), MOVE_A_WIDGET], redirect(AT_HAND))
    after = installed(python)
    if wrong := changes(before, after):
        sys.exit("The notebooks' first cell changes what Colab has:\n" + "\n".join(wrong))
    if "mmcl-core" not in after:
        sys.exit(f"The notebooks' first cell installed no mmcl_core:\n{outputs}")
    added = sorted(f"{name} {after[name]}" for name in after.keys() - before.keys())
    print(f"Colab: the first cell changed none of {len(before)} packages, and added", *added)


def ready_python() -> Path:
    """The Python of an environment that is as Colab is before the first cell."""
    python = ROOT / NAME / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = {canonicalize_name(dist.name): dist.version for dist in torch_alone()} | pins()
    if environment.is_ready(NAME, INPUTS):
        found = installed(python)
        added = sorted(found.keys() - wanted.keys())  # by the first cell, in an earlier run
        if added:
            pip(python, "uninstall", "--yes", *added)
        if all(found.get(name) == version for name, version in wanted.items()):
            return python
    shutil.rmtree(ROOT / NAME, ignore_errors=True)
    # No dependencies: the list is complete, and pip would not leave jedi out.
    environment.make(NAME, INPUTS, ["--no-deps"])
    link_torch(python)
    return python


def pip(python: Path, *arguments: str) -> None:
    """Run pip in an environment, and stop when it fails."""
    subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", "-q", *arguments], check=True
    )


def pins() -> dict[str, str]:
    """{package: version} of `tools/colab.txt`, for this Python."""
    lines = (ROOT / PINS).read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        canonicalize_name(one.name): next(iter(one.specifier)).version
        for one in wanted
        if one.marker is None or one.marker.evaluate()
    }


def torch_alone() -> list[metadata.Distribution]:
    """torch in the environment of this script, and all it needs that is not in the list."""
    known, found, open_ = set(pins()), {}, ["torch"]
    while open_:
        name = canonicalize_name(open_.pop())
        if name in known or name in found:
            continue
        found[name] = metadata.distribution(name)
        needs = [Requirement(line) for line in found[name].requires or []]
        # An extra that nobody asked for has the marker `extra == "..."`.
        open_ += [n.name for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})]
    return list(found.values())


def link_torch(python: Path) -> None:
    """Links to torch's folders in `.venv`: with CUDA, as on Linux by default, it has many GB."""
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(subprocess.check_output([python, "-c", code], text=True).strip())
    for dist in torch_alone():
        for top in {file.parts[0] for file in dist.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(dist.locate_file(top)).resolve())


def write_kernel(python: Path) -> None:
    """The kernel `colab`, in the environment itself; see `kernel_path`."""
    folder = ROOT / NAME / "share" / "jupyter" / "kernels" / KERNEL
    folder.mkdir(parents=True, exist_ok=True)
    quiet = "-Xfrozen_modules=off"  # else the debugger warns on every start
    command = [str(python), quiet, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Colab", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))


def kernel_path() -> dict[str, str]:
    """The environment variable by which Jupyter finds the kernel."""
    return {"JUPYTER_PATH": str(ROOT / NAME / "share" / "jupyter")}


def installed(python: Path) -> dict[str, str]:
    """{package: version} of an environment."""
    code = (
        "import json, importlib.metadata as m;"
        "print(json.dumps({d.name: d.version for d in m.distributions()}))"
    )
    found = json.loads(subprocess.check_output([python, "-c", code], cwd=ROOT / NAME))
    return {str(canonicalize_name(name)): version for name, version in found.items()}


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What became of packages that were there before, one line each."""
    return [
        f"{name}: {version} before, {after.get(name, 'nothing')} after"
        for name, version in sorted(before.items())
        if after.get(name) != version
    ]


def first_cell() -> str:
    """The part of the notebooks' first cell that installs: the same in each of them."""
    cell = INSTALL.format(repository=repository())
    for path in notebooks_in(ROOT):
        source = nbformat.read(path, as_version=4).cells[0].source
        if not source.startswith(cell):
            sys.exit(f"{path.relative_to(ROOT)} does not begin with the cell that installs.")
    return cell


def repository() -> str:
    """The repository's address, from the one place that has it."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return config["repository"]["url"]


def redirect(folder: Path) -> dict[str, str]:
    """Environment variables by which git takes the library at hand for the one published.

    A repository with it is made in `folder`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignore = shutil.ignore_patterns("__pycache__")
    for package in ("mmcl_core", "mmcl_book"):
        shutil.copytree(ROOT / package, folder / package, ignore=ignore)
    for arguments in (
        ["init", "--quiet"],
        ["add", "--all"],
        ["-c", "user.name=check", "-c", "user.email=check@localhost", "commit", "-qm", "at hand"],
    ):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{folder.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": repository(),
    }


def run_cells(sources: list[str], variables: dict[str, str]) -> str:
    """Run cells in Colab's kernel; return what they printed."""
    os.environ.update(variables | kernel_path())
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    client = NotebookClient(notebook, timeout=SECONDS, kernel_name=KERNEL)
    try:
        client.execute(cwd=str(AT_HAND.parent))
    except CellExecutionError as error:
        sys.exit(f"A cell fails in the environment of Colab:\n{error}")
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    return "".join(output.get("text", "") for output in outputs)


if __name__ == "__main__":
    main()
