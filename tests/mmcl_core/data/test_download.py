"""Fetching and unpacking, against a server of our own that cuts, ignores, changes and lies."""

import hashlib
import io
import stat
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from mmcl_core.data import download as module
from mmcl_core.data.archives import unpack
from mmcl_core.data.coco import COCO_VAL2017, Archive, fetch_coco
from mmcl_core.data.download import download
from mmcl_core.errors import DataError, MMCLError

CONTENT = np.random.default_rng(0).bytes(300_000)
SUM = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves `content`; what it does wrong is set from outside."""

    def __init__(self) -> None:
        self.content = {"/file.zip": CONTENT}
        self.cuts: list[int] = []  # so many bytes of an answer, then the connection is closed
        self.ranges = True  # whether it can begin in the middle
        self.says_length = True
        self.status: list[int] = []  # what the next answers are, in place of the file
        self.asked: list[str | None] = []  # the Range of each request
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.headers["Range"])
                if server.status:
                    self.send_error(server.status.pop(0))
                    return
                if self.path not in server.content:
                    self.send_error(404)
                    return
                content = server.content[self.path]
                tag = f'"{hashlib.md5(content).hexdigest()}"'
                start = 0
                wanted = self.headers["Range"] if server.ranges else None
                if wanted and self.headers.get("If-Range", tag) == tag:
                    start = int(wanted.removeprefix("bytes=").rstrip("-"))
                    if start >= len(content):
                        self.send_response(416)
                        self.send_header("Content-Range", f"bytes */{len(content)}")
                        self.end_headers()
                        return
                    self.send_response(206)
                    end = f"{start}-{len(content) - 1}/{len(content)}"
                    self.send_header("Content-Range", f"bytes {end}")
                else:
                    self.send_response(200)
                if server.says_length:
                    self.send_header("Content-Length", str(len(content) - start))
                self.send_header("ETag", tag)
                self.end_headers()
                some = content[start:]
                if server.cuts:
                    some = some[: server.cuts.pop(0)]
                self.wfile.write(some)
                self.close_connection = True

            def log_message(self, *of: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/file.zip"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "*")  # a proxy of this machine has no part in the test
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def get(server, path, **settings):
    settings = {"sha256": SUM, "most_bytes": len(CONTENT), "progress": False} | settings
    return download(server.url, path, **settings)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- download -----------------------------------------------------------------------------------


def test_a_file_is_fetched_once(server, tmp_path) -> None:
    path = tmp_path / "deep" / "file.zip"
    assert get(server, path) == path
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["file.zip"]
    assert get(server, path) == path
    assert len(server.asked) == 1


@pytest.mark.parametrize("says_length", [True, False])
def test_a_cut_connection_is_taken_up_in_the_middle(server, tmp_path, says_length) -> None:
    server.cuts, server.says_length = [100_000, 0, 50_000], says_length
    if says_length:
        get(server, tmp_path / "file.zip")
        assert server.asked == [None, *["bytes=100000-"] * 2, "bytes=150000-"]
        assert (tmp_path / "file.zip").read_bytes() == CONTENT
    else:  # nothing says that it was cut, but the sum does
        with pytest.raises(DataError, match="expected a file with the SHA-256"):
            get(server, tmp_path / "file.zip")
        assert names(tmp_path) == []


def test_what_was_fetched_is_kept_for_the_next_call(server, tmp_path) -> None:
    server.cuts = [120_000] + 10 * [0]
    with pytest.raises(DataError, match=r"120,000 bytes, 3 times in a row .* call again to go on"):
        get(server, tmp_path / "file.zip", attempts=3)
    assert (tmp_path / "file.zip.part").read_bytes() == CONTENT[:120_000]
    assert not (tmp_path / "file.zip").exists()
    server.cuts, server.asked = [], []
    get(server, tmp_path / "file.zip")
    assert server.asked == ["bytes=120000-"]
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert names(tmp_path) == ["file.zip"]


def test_a_server_without_ranges_begins_again(server, tmp_path) -> None:
    server.cuts, server.ranges = [200_000, 250_000], False
    get(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_server_that_never_gets_farther_is_given_up(server, tmp_path) -> None:
    server.cuts, server.ranges = [1000, 900, 1000, 800, 1000, 900, 1000], False
    with pytest.raises(DataError, match="gave nothing more"):
        get(server, tmp_path / "file.zip", attempts=4)
    assert len(server.asked) < 7


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path) -> None:
    server.content["/file.zip"] = CONTENT[::-1]
    server.cuts = [120_000] + 5 * [0]
    with pytest.raises(DataError, match="gave nothing more"):
        get(server, tmp_path / "file.zip", attempts=2)
    server.content["/file.zip"], server.cuts = CONTENT, []
    get(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_all_bytes_were_there_before_the_stop(server, tmp_path) -> None:
    (tmp_path / "file.zip.part").write_bytes(CONTENT)
    get(server, tmp_path / "file.zip")
    assert server.asked == ["bytes=300000-"]
    assert names(tmp_path) == ["file.zip"]


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path) -> None:
    (tmp_path / "file.zip.part").write_bytes(CONTENT + b"more")
    get(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_server_is_asked_again(server, tmp_path, status) -> None:
    server.status = [status, status]
    get(server, tmp_path / "file.zip")
    assert len(server.asked) == 3


def test_a_wrong_sum_leaves_nothing(server, tmp_path) -> None:
    with pytest.raises(DataError, match=f"expected a file with the SHA-256 {'0' * 64}, got {SUM}"):
        get(server, tmp_path / "file.zip", sha256="0" * 64)
    assert names(tmp_path) == []


@pytest.mark.parametrize("says_length", [True, False])
def test_a_file_that_is_too_long_leaves_nothing(server, tmp_path, says_length) -> None:
    server.says_length = says_length
    with pytest.raises(DataError, match="expected at most 299,999 bytes, got"):
        get(server, tmp_path / "file.zip", most_bytes=len(CONTENT) - 1)
    assert names(tmp_path) == []


def test_what_is_not_there_is_not_asked_for_again(server, tmp_path) -> None:
    server.content = {}
    with pytest.raises(DataError, match="expected a file, got HTTP 404"):
        get(server, tmp_path / "file.zip")
    assert len(server.asked) == 1


def test_nobody_listens(server, tmp_path) -> None:
    with pytest.raises(DataError, match="gave nothing more after 0 bytes, 2 times"):
        download(
            "http://127.0.0.1:1/x",
            tmp_path / "x",
            sha256=SUM,
            most_bytes=1,
            attempts=2,
            progress=False,
        )


def test_no_room_on_the_disk(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(
        module.shutil, "disk_usage", lambda path: module.shutil._ntuple_diskusage(9, 8, 1)
    )
    with pytest.raises(DataError, match="expected room for 300,000 bytes, got 1"):
        get(server, tmp_path / "file.zip")


def test_another_file_in_its_place_stays(server, tmp_path) -> None:
    (tmp_path / "file.zip").write_text("mine")
    with pytest.raises(DataError, match="there is another one"):
        get(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_text() == "mine"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sha256": "abc"}, "64 hexadecimal digits"),
        ({"most_bytes": 0}, "at least 1"),
        ({"attempts": 0}, "at least 1"),
        ({"timeout": 0.0}, "above 0"),
    ],
)
def test_settings_that_cannot_be(server, tmp_path, settings, message) -> None:
    with pytest.raises(MMCLError, match=message):
        get(server, tmp_path / "file.zip", **settings)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "x"])
def test_only_the_web(tmp_path, url) -> None:
    with pytest.raises(MMCLError, match="expected http or https"):
        download(url, tmp_path / "x", sha256=SUM, most_bytes=1)


# --- unpack -------------------------------------------------------------------------------------

FILES = {"top/a.txt": b"a" * 1000, "top/in/b.txt": b"b", "other/c.txt": b"c"}
BOUNDS = {"most_bytes": 10_000, "most_files": 10}


def make_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path


def make_tar(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as packed:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(params=["zip", "tar", "gz", "xz"])
def make(request, tmp_path):
    """Makes an archive of one kind from names and contents."""
    path = tmp_path / f"archive.{request.param}"
    if request.param == "zip":
        return lambda files: make_zip(path, files)
    mode = "w" if request.param == "tar" else f"w:{request.param}"
    return lambda files: make_tar(path, files, mode)


def content_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(archive, tmp_path, message, **settings):
    """The archive is refused, and leaves nothing."""
    before = names(tmp_path)
    with pytest.raises(DataError, match=message):
        unpack(archive, tmp_path / "new", **BOUNDS | settings)
    assert names(tmp_path) == before


def test_all_of_an_archive(make, tmp_path) -> None:
    folder = unpack(make(FILES), tmp_path / "deep" / "new", **BOUNDS)
    assert content_of(folder) == FILES
    assert names(tmp_path / "deep") == ["new"]
    assert stat.S_IMODE(folder.stat().st_mode) & 0o500 == 0o500


def test_one_folder_of_an_archive(make, tmp_path) -> None:
    folder = unpack(make(FILES), tmp_path / "new", inside="top", **BOUNDS)
    assert content_of(folder) == {"a.txt": FILES["top/a.txt"], "in/b.txt": b"b"}
    refused(make(FILES), tmp_path, "but it is there")
    with pytest.raises(DataError, match=r"expected files in its folder to/, got none"):
        unpack(make(FILES), tmp_path / "another", inside="to", **BOUNDS)


@pytest.mark.parametrize(
    "name",
    ["../evil", "top/../../evil", "/evil", "\\evil", "C:\\evil", "c:evil", "a\\..\\..\\evil"],
)
def test_no_member_leaves_the_folder(make, tmp_path, name) -> None:
    refused(make({"good": b"", name: b"evil"}), tmp_path, "would lie outside of the folder")
    # Nor where only another folder of the archive was wanted.
    refused(make({"good/x": b"", name: b"evil"}), tmp_path, "would lie outside", inside="good")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_no_links_and_no_devices_of_tar(tmp_path, kind) -> None:
    path = tmp_path / "archive.tar"
    with tarfile.open(path, "w") as packed:
        info = tarfile.TarInfo("innocent")
        info.type, info.linkname = kind, "/etc/passwd"
        packed.addfile(info)
    refused(path, tmp_path, "expected plain files and folders, got a (link|special file)")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO])
def test_no_links_of_zip(tmp_path, kind) -> None:
    path, info = tmp_path / "archive.zip", zipfile.ZipInfo("innocent")
    info.external_attr = (kind | 0o777) << 16
    make_zip(path, {info: b"/etc/passwd"})
    refused(path, tmp_path, "expected plain files and folders, got a (link|special file)")


def test_the_bounds(make, tmp_path) -> None:
    archive = make(FILES)
    refused(archive, tmp_path, "at most 1,001 bytes in it", most_bytes=1001)
    refused(archive, tmp_path, "at most 2 members", most_files=2)
    assert unpack(archive, tmp_path / "new", most_bytes=1002, most_files=3)


def test_a_zip_that_says_less_than_is_in_it(tmp_path) -> None:
    """A bomb: the list says 10 bytes, the member has a million."""
    archive = make_zip(tmp_path / "archive.zip", {"bomb": bytes(10**6)})
    archive.write_bytes(
        archive.read_bytes().replace((10**6).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    )
    refused(archive, tmp_path, "expected (a whole zip or tar archive|at most)")


def test_a_damaged_archive(make, tmp_path) -> None:
    archive = make({"a": np.random.default_rng(1).bytes(5000)})
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    refused(archive, tmp_path, "expected a whole zip or tar archive")
    archive.write_text("no archive at all")
    refused(archive, tmp_path, "expected a whole zip or tar archive")
    archive.unlink()
    refused(archive, tmp_path, "expected a whole zip or tar archive")


def test_one_name_twice(tmp_path) -> None:
    archive = make_zip(tmp_path / "archive.zip", {"first": b"1", "other": b"2"})
    archive.write_bytes(archive.read_bytes().replace(b"other", b"first"))
    refused(archive, tmp_path, "is in it twice")


def test_what_a_stopped_call_left_is_no_hindrance(make, tmp_path) -> None:
    (tmp_path / ".new.part").mkdir()
    (tmp_path / ".new.part" / "half").write_text("half")
    assert content_of(unpack(make(FILES), tmp_path / "new", **BOUNDS)) == FILES


def test_bounds_that_cannot_be(tmp_path) -> None:
    with pytest.raises(MMCLError, match="at least 1"):
        unpack(tmp_path / "x", tmp_path / "new", most_bytes=0, most_files=1)


# --- COCO ---------------------------------------------------------------------------------------


def test_coco_is_fetched_unpacked_and_not_fetched_again(server, tmp_path) -> None:
    archives = []
    for folder in ("val2017", "annotations"):
        made = make_zip(tmp_path / f"{folder}.zip", {f"{folder}/x": b"x", "else/y": b"y"})
        packed = made.read_bytes()
        server.content[f"/{folder}.zip"] = packed
        url = server.url.replace("file.zip", f"{folder}.zip")
        sha256 = hashlib.sha256(packed).hexdigest()
        archives.append(Archive(url, sha256, len(packed), folder, unpacked=10, files=2))
    for _ in range(2):
        root = fetch_coco(tmp_path / "coco", archives=tuple(archives), progress=False)
    assert content_of(root) == {"val2017/x": b"x", "annotations/x": b"x"}
    assert len(server.asked) == 2


def test_what_is_known_of_coco() -> None:
    """As TensorFlow Datasets lists it."""
    pictures, captions = COCO_VAL2017
    assert (pictures.size, captions.size) == (815_585_330, 252_907_541)
    assert pictures.sha256.startswith("4f7e2ccb2866ec50")
    assert captions.sha256.startswith("113a836d90195ee1")
