"""What the tests of the command line share: calling it, and runs and pictures to call it with."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmcl_core.cli import program
from mmcl_core.cli.registry import METHODS
from tests.mmcl_core.cli.helpers import SMALL, draw_folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in this process: exit code, what was printed, what was complained."""

    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = program.main([str(arg) for arg in argv])
        except SystemExit as end:  # argparse's own way out
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 pictures with one caption each."""
    return draw_folder(tmp_path_factory.mktemp("photos") / "data")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> dict[str, Path]:
    """One short run of each method on shapes; and "words", one on the folder."""
    torch.set_num_threads(1)  # as each module of tests does for itself
    root = tmp_path_factory.mktemp("runs")
    shapes = ["--data", "shapes", "--objects", "1-1", "--detail", "2", "--pairs", "128"]
    for method in METHODS:
        few = ["--epochs", "1", *SMALL, "--out", str(root / method)]
        assert program.main(["train", "--method", method, *shapes, *few]) == 0
    few = ["--epochs", "2", *SMALL, "--out", str(root / "words")]
    assert program.main(["train", "--method", "fdt", "--data", str(photos), *few]) == 0
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def photos_npz(run, runs, photos, tmp_path) -> Path:
    """The pictures, embedded by the run on their folder."""
    assert run("embed", runs["words"], photos, "--out", tmp_path / "photos.npz", "--quiet")[0] == 0
    return tmp_path / "photos.npz"
