"""Fetching COCO, from a server of our own that cuts, lies and has other things."""

import hashlib
import io
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mmcl_core.data import coco
from mmcl_core.data.coco import COCO_VAL2017, Archive, fetch_coco
from mmcl_core.errors import DataError, MMCLError


class Server:
    """Serves `content`; `cut` is how many bytes of each answer come before the line is dead."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.cut: int | None = None
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                if self.path not in server.content:
                    self.send_error(404)
                    return
                content = server.content[self.path]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: server.cut])

            def log_message(self, *of: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def offer(self, folder: str, files: dict[str, bytes]) -> Archive:
        """Puts up a zip archive with these files."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        self.content[f"/{folder}.zip"] = packed.getvalue()
        url = f"http://127.0.0.1:{self.http.server_port}/{folder}.zip"
        return Archive(url, hashlib.sha256(packed.getvalue()).hexdigest(), folder)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")  # a proxy of this machine has no part in the test
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture
def archives(server):
    return tuple(
        server.offer(folder, {f"{folder}/": b"", f"{folder}/in/x": folder.encode(), "else/y": b"y"})
        for folder in ("val2017", "annotations")
    )


def content_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


WHOLE = {"val2017/in/x": b"val2017", "annotations/in/x": b"annotations"}


def test_the_wanted_folders_are_fetched_once(server, archives, tmp_path) -> None:
    for _ in range(2):
        root = fetch_coco(tmp_path / "deep" / "coco", archives=archives, progress=False)
    assert root == tmp_path / "deep" / "coco"
    assert content_of(root) == WHOLE
    assert server.asked == ["/val2017.zip", "/annotations.zip"]


def test_a_wrong_sum_leaves_nothing_of_it(server, archives, tmp_path) -> None:
    first, second = archives
    with pytest.raises(DataError, match=rf"annotations.zip: expected .* SHA-256 {'0' * 64}"):
        fetch_coco(tmp_path, archives=(first, second._replace(sha256="0" * 64)), progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["val2017"]
    # The next call goes on where it was.
    fetch_coco(tmp_path, archives=archives, progress=False)
    assert content_of(tmp_path) == WHOLE
    assert server.asked == ["/val2017.zip", "/annotations.zip", "/annotations.zip"]


@pytest.mark.parametrize("cut", [0, 60])
def test_a_download_that_is_cut_leaves_nothing(server, archives, tmp_path, cut) -> None:
    server.cut = cut
    with pytest.raises(DataError, match=r"val2017.zip: .* cannot be had .* call again"):
        fetch_coco(tmp_path, archives=archives, progress=False)
    assert list(tmp_path.iterdir()) == []
    server.cut = None
    assert content_of(fetch_coco(tmp_path, archives=archives, progress=False)) == WHOLE


def test_what_is_not_there(server, archives, tmp_path) -> None:
    del server.content["/val2017.zip"]
    with pytest.raises(DataError, match=r"cannot be had .*404"):
        fetch_coco(tmp_path, archives=archives, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_the_reader_brings_is_taken(server, archives, tmp_path) -> None:
    for path, content in server.content.items():
        (tmp_path / path[1:]).write_bytes(content)
    fetch_coco(tmp_path, archives=archives, progress=False)
    assert content_of(tmp_path) == WHOLE
    assert server.asked == []


def test_something_else_of_this_name_stays(server, archives, tmp_path) -> None:
    (tmp_path / "val2017").write_text("mine")
    with pytest.raises(DataError, match="expected a new folder, but it is there"):
        fetch_coco(tmp_path, archives=archives, progress=False)
    assert content_of(tmp_path) == {"val2017": b"mine"}
    assert server.asked == []  # said before a gigabyte was fetched


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_stop_while_unpacking_leaves_the_archive_alone(
    server, archives, tmp_path, monkeypatch, error
) -> None:
    def stop(*of: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(coco.zipfile.ZipFile, "extract", stop)
        with pytest.raises(type(error)):
            fetch_coco(tmp_path, archives=archives, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["val2017.zip"]
    fetch_coco(tmp_path, archives=archives, progress=False)
    assert content_of(tmp_path) == WHOLE
    assert server.asked == ["/val2017.zip", "/annotations.zip"]


def test_an_archive_without_the_folder(server, tmp_path) -> None:
    archive = server.offer("val2017", {"val2017": b"a file", "val2017b/x": b"x"})
    with pytest.raises(DataError, match="expected the folder val2017/ in it, got none"):
        fetch_coco(tmp_path, archives=(archive,), progress=False)
    assert not (tmp_path / "val2017").exists()


def test_no_name_leads_out_of_the_folder(server, tmp_path) -> None:
    """The sum makes this impossible for COCO; `zipfile` does for any other archive."""
    names = ("val2017/../../evil", "val2017//evil")
    archive = server.offer("val2017", dict.fromkeys(names, b"evil"))
    fetch_coco(tmp_path / "coco", archives=(archive,), progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["coco"]
    assert set(content_of(tmp_path / "coco")) == {"val2017/evil"}


def test_without_pooch(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MMCLError, match=r"expected pooch, .* pip install \"mmcl_core\[book\]\""):
        fetch_coco(tmp_path)


def test_what_is_known_of_coco() -> None:
    """As TensorFlow Datasets lists it."""
    pictures, captions = COCO_VAL2017
    assert pictures.sha256.startswith("4f7e2ccb2866ec50")
    assert captions.sha256.startswith("113a836d90195ee1")
    assert {len(pictures.sha256), len(captions.sha256)} == {64}
