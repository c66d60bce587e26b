"""Whole or not at all: what is stopped half-way leaves what was there, and nothing beside it."""

import ast
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from mmcl_core import files
from mmcl_core.checkpoints import save_checkpoint
from mmcl_core.cli import PictureIndex
from mmcl_core.data.tokenizer import WordTokenizer
from mmcl_core.errors import DataError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def index(tmp_path):
    return PictureIndex(tmp_path, "", tmp_path, ["a"], torch.ones(1, 2))


# What the library writes, each to the file `path`.
WRITERS = {
    "text": lambda path: files.write_whole(path, "new"),
    "checkpoint": lambda path: save_checkpoint(path, torch.nn.Linear(1, 1)),
    "tokenizer": lambda path: WordTokenizer(["a"], max_length=4).save(path),
    "index": lambda path: index(path.parent).save(path),
}


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


def test_a_file_takes_the_place_of_another(write, tmp_path) -> None:
    path = tmp_path / "deep" / "file"
    write(path)  # makes the folder
    first = path.stat()
    path.write_text("old")
    write(path)
    assert path.stat().st_size == first.st_size > 0
    assert b"old" not in path.read_bytes()
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_stop_leaves_what_was_there(write, tmp_path, monkeypatch, failing, error, old) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)

    def stop(*of: object) -> None:
        raise error

    monkeypatch.setattr(os, failing, stop)
    with pytest.raises(type(error)):
        write(path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == (
        {} if old is None else {"file": old}
    )


def test_a_stop_while_writing(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def half() -> None:
        with files.new_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_all_is_on_the_disk_before_it_gets_its_name(write, tmp_path, monkeypatch) -> None:
    events = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        events.append(("fsync", os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        events.append(("replace", os.stat(source).st_ino, os.stat(source).st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write(tmp_path / "file")
    whole = (tmp_path / "file").stat()
    assert events == [(name, whole.st_ino, whole.st_size) for name in ("fsync", "replace")]


def test_writers_at_the_same_time_do_not_meddle(tmp_path) -> None:
    """Each has a name of its own beside the file, also in one process."""
    path, ready = tmp_path / "file", threading.Barrier(4)

    def write(text: str) -> None:
        with files.new_file(path) as file:
            ready.wait()  # all four have begun
            file.write(text.encode())
            file.flush()
            ready.wait()  # and have written, before one has finished

    threads = [threading.Thread(target=write, args=(str(i) * 9,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in {str(i) * 9 for i in range(4)}
    assert names(tmp_path) == ["file"]


def test_a_file_may_be_read_by_those_who_may_read_any_other(tmp_path) -> None:
    files.write_whole(tmp_path / "one", "")
    (tmp_path / "other").touch()
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "other").stat().st_mode
    )


def test_text_is_utf_8_with_the_line_ends_that_it_has(tmp_path) -> None:
    files.write_whole(tmp_path / "file", "대조 \u00fc\r\n\n")
    assert (tmp_path / "file").read_bytes() == "대조 \u00fc\r\n\n".encode()


# --- folders --------------------------------------------------------------------------------------


def fill(root: Path, error: BaseException | None = None) -> None:
    with files.new_folder(root) as part:
        (part / "in").mkdir()
        (part / "in" / "a").write_text("a")
        assert not root.exists()
        if error:
            raise error


def test_a_folder_gets_its_name_when_it_is_full(tmp_path) -> None:
    fill(tmp_path / "deep" / "new")
    assert (tmp_path / "deep" / "new" / "in" / "a").read_text() == "a"
    assert names(tmp_path / "deep") == ["new"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_stopped_folder_leaves_nothing(tmp_path, error) -> None:
    with pytest.raises(type(error)):
        fill(tmp_path / "new", error)
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_there_stays(tmp_path, kind) -> None:
    place = tmp_path / "new"
    if kind == "file":
        place.write_text("mine")
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="expected a new folder, but it is there"):
        fill(place)
    assert names(tmp_path) == ["new"]


def test_two_who_fill_the_same_folder(tmp_path) -> None:
    """The first has it; the second is told so, and neither takes the other's files."""
    root = tmp_path / "new"

    def both() -> None:
        with files.new_folder(root) as part:
            (part / "mine").touch()
            fill(root)
            assert (part / "mine").exists()

    with pytest.raises(DataError, match="expected a new folder, but it is there"):
        both()
    assert names(root) == ["in"]
    assert names(tmp_path) == ["new"]


def test_the_files_that_a_folder_links_to_are_not_touched(tmp_path, monkeypatch) -> None:
    mine = tmp_path / "mine"
    mine.write_text("")
    synced = []
    monkeypatch.setattr(files, "_to_disk", lambda path: synced.append(path.name))
    with files.new_folder(tmp_path / "new") as part:
        (part / "soft").symlink_to(mine)
        (part / "hard").hardlink_to(mine)
        (part / "own").touch()
    assert synced == ["own"]


# --- the only way ---------------------------------------------------------------------------------

WRITES = {"write_text", "write_bytes", "replace", "rename", "mkstemp", "NamedTemporaryFile"}


def writing(tree: ast.AST) -> list[str]:
    """Calls that write a file by themselves: those of os and of a path, and open() to write."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        owner = getattr(getattr(node.func, "value", None), "id", "")
        modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
        modes += [k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)]
        opens = name == "open" and any(isinstance(m, str) and set(m) & set("wax+") for m in modes)
        # `replace` and `rename` are methods of strings and tensors, too.
        moves = name in ("replace", "rename") and owner == "os"
        if opens or moves or name in WRITES - {"replace", "rename"}:
            found.append(ast.unparse(node))
    return found


SOURCES = sorted(Path(files.__file__).parents[1].glob("mmcl_*/**/*.py"))
# Into a folder that `new_folder` names when it is full, or one that is thrown away.
ALLOWED = {"drawn_folder.py", "folders.py", "scaling_worker.py"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_in_the_library_writes_a_file_in_another_way(path: Path) -> None:
    found = writing(ast.parse(path.read_text(encoding="utf-8")))
    assert bool(found) == (path.name in {"files.py", *ALLOWED}), found


def test_the_search_for_other_ways_finds_them() -> None:
    code = "open(p, 'wb'); p.open(mode='a'); os.replace(a, b); p.write_text('x'); s.replace('w', v)"
    assert len(writing(ast.parse(code))) == 4


def test_a_killed_process_leaves_the_old_file(tmp_path) -> None:
    """Not even this leaves half a file: at most its hidden name beside it."""
    path = tmp_path / "file"
    path.write_text("old")
    code = (
        "import os, signal, sys; from mmcl_core.files import new_file\n"
        f"with new_file({str(path)!r}) as file:\n"
        "    file.write(b'x' * 10**6)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code])
    assert done.returncode != 0
    assert path.read_text() == "old"
    assert all(name.startswith(".file.") for name in names(tmp_path) if name != "file")
