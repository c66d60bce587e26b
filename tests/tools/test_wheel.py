"""What is installed is what is in the repository: both packages, whole, and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

PACKAGES = ("mmcl_core", "mmcl_book")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `pip install` puts into an environment."""
    folder = tmp_path_factory.mktemp("installed")
    # A copy of what git knows: a build in the checkout would leave its own folders there, and find
    # those of an earlier one.
    source = tmp_path_factory.mktemp("source")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if name.startswith(PACKAGES) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder)]
    subprocess.run([*pip, *options, str(source)], check=True)
    return folder


def files(folder: Path) -> set[str]:
    """The files of both packages, by their places in the folder."""
    found = (path for package in PACKAGES for path in (folder / package).rglob("*"))
    kept = (path for path in found if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in kept}


def test_every_file_of_both_packages_is_installed(installed: Path) -> None:
    assert files(installed) == files(ROOT)
    others = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert others <= {*PACKAGES, "bin", "__pycache__"}


def test_the_licences_of_the_data_are_installed(installed: Path) -> None:
    notice = next(installed.glob("*.dist-info/licenses/NOTICE"))
    assert notice.read_bytes() == (ROOT / "NOTICE").read_bytes()


def test_it_works_from_there(installed: Path, tmp_path: Path) -> None:
    code = (
        "import mmcl_core.cli, mmcl_core.training, mmcl_book.figures, mmcl_book.widgets\n"
        "import torch, mmcl_book.live\n"
        "live = mmcl_book.live.circle(torch.rand(2, 3), alt='Three pairs.', moving='They move.')\n"
        "assert 'mmcl.start' in live.html and '.mmcl-place' in live.html\n"
        "from mmcl_core.data import Emoji\n"
        "assert len(Emoji('all')) == 6334\n"
        "print(mmcl_core.__file__, mmcl_book.__file__, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert all(line.startswith(str(installed)) for line in done.stdout.split())
