"""What `make test` runs, on which processor, and what it says at the end."""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import check
import chromium
import pytest
from playwright.sync_api import Error

from tests import ROOT

# Fails where `default` is asked for, and writes down as what it computes.
COMPUTES = """\
import os
from pathlib import Path

import torch

def test_it():
    with open(Path(__file__).with_name("seen"), "a") as file:
        print(torch.backends.cpu.get_cpu_capability(), os.environ.get("MKL_CBWR"), file=file)
    assert os.environ.get("ATEN_CPU_CAPABILITY") != "default"

def test_other():
    pass
"""


@pytest.fixture(autouse=True)
def _nothing_has_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "notes", [])
    monkeypatch.setattr(check, "found", {})


@pytest.fixture
def computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of two tests in place of those that compute."""
    (tmp_path / "test_it.py").write_text(COMPUTES)
    monkeypatch.setattr(check, "NUMERIC", [str(tmp_path)])
    monkeypatch.setattr(check, "PARALLEL", ["-p", "no:cacheprovider"])
    for name in ("ATEN_CPU_CAPABILITY", "MKL_CBWR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_each_capability_has_its_verdict(computes: Path) -> None:
    native = check.capability()
    assert not check.numerics()
    known = {  # on x86-64 of three kinds; on Arm
        "AVX512": ["AVX512 None", "DEFAULT COMPATIBLE", "AVX2 AVX2"],
        "AVX2": ["AVX2 None", "DEFAULT COMPATIBLE"],
        "DEFAULT": ["DEFAULT None"],
    }
    expected = known.get(native, [f"{native} None", "DEFAULT COMPATIBLE"])
    assert (computes / "seen").read_text().splitlines() == expected
    first, second, third = check.notes
    assert first.startswith(f"passed natively ({native}): 2 passed in")
    if native != "DEFAULT":
        assert second.startswith("FAILED default: 1 failed, 1 passed in")
    assert third.startswith("passed avx2: 2 passed" if native == "AVX512" else "skipped avx2: ")


@pytest.mark.parametrize(
    ("native", "asked", "said"),
    [
        ("AVX512", ["default", "avx2"], []),
        ("AVX2", ["default"], ["skipped avx2: that is what this processor does natively"]),
        (
            "DEFAULT",
            [],
            ["skipped default: that", "skipped avx2: this processor (DEFAULT) has"],
        ),
        ("SVE256", ["default"], ["skipped avx2: this processor (SVE256) has no AVX2"]),
    ],
)
def test_what_a_processor_lacks_is_said(native, asked, said, monkeypatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(check, "capability", lambda: native)
    monkeypatch.setattr(check, "numerically", lambda name, **variables: not ran.append(name))
    check.found["unit"] = "1 failed, 9 passed in 2s"
    assert check.numerics()
    assert ran == asked  # and not natively, since `unit` has run
    first, *others = check.notes
    assert first == f"natively ({native}): 1 failed, 9 passed in 2s, the check `unit`"
    assert all(line.startswith(s) for line, s in zip(others, said, strict=True))


def test_the_tests_that_compute_are_there() -> None:
    for place in check.NUMERIC:
        assert (ROOT / place.removeprefix("--ignore=")).exists()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two notebooks, on a branch of its own."""
    for name in ("a.ipynb", "b.ipynb"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.setattr(check, "names", lambda: ["a", "b", "c"])
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    commit(tmp_path)
    git(tmp_path, "switch", "--quiet", "--create", "mine")
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    names = ["-c", "user.name=a", "-c", "user.email=a@localhost"]
    git(folder, *names, "commit", "--quiet", "--message", "x")


def test_what_has_changed_since_main_is_known(repository: Path) -> None:
    assert check.changed_files() == set()
    (repository / "a.ipynb").write_text("{ }")
    assert check.changed_files() == {"a.ipynb"}  # not committed
    commit(repository)
    git(repository, "switch", "--quiet", "main")
    (repository / "b.ipynb").write_text("[ ]")  # others go on
    commit(repository)
    git(repository, "switch", "--quiet", "mine")
    assert check.changed_files() == {"a.ipynb"}
    git(repository, "branch", "--delete", "--force", "main")
    assert check.changed_files() == {"a.ipynb", "b.ipynb", "c.ipynb"}  # who knows: all


def test_notebooks_are_those_that_changed_and_a_few(repository: Path, monkeypatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(check, "ALWAYS", ["c"])
    monkeypatch.setattr(check, "run", lambda *command: True)
    monkeypatch.setattr(check, "as_in_colab", lambda wanted: not ran.extend(wanted))
    (repository / "a.ipynb").write_text("{ }")
    assert check.notebooks()
    assert ran == ["a", "c"]
    ran.clear()
    assert check.every_notebook()
    assert ran == ["a", "b", "c"]


def test_those_that_always_run_exist() -> None:
    assert set(check.ALWAYS) <= set(check.names())


@pytest.mark.parametrize("ci", ["", "true"])
def test_nothing_is_installed_unasked(ci: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    there = {"chromium": None, "apt-get": "/usr/bin/apt-get"}
    monkeypatch.setattr(check.shutil, "which", there.get)
    monkeypatch.setattr(check.subprocess, "run", lambda command, **_: ran.append(command))
    check.install_browser()
    assert [command[1] for command in ran] == (["update", "install"] if ci else [])


def test_without_a_browser_there_is_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(**_):
        raise Error("BrowserType.launch: Executable doesn't exist at /home\n╔═══ ...")

    playwright = SimpleNamespace(chromium=SimpleNamespace(launch=launch))
    with pytest.raises(SystemExit, match=r"(?s)doesn't exist at /home\).*apt-get install chromium"):
        chromium.launch(playwright)


def test_a_check_that_does_not_exist_is_named() -> None:
    with pytest.raises(SystemExit, match=r"no check \['units'\]; there are .*'every-notebook'"):
        check.main(["lint", "units"])
