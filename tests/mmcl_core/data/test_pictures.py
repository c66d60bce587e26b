"""A folder of pictures without captions, and decoding in threads."""

import os
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mmcl_core.data import PictureFolder, pictures
from mmcl_core.errors import DataError, MMCLError, ShapeError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("b.JPG", "a.png", "in/a.webp", "in/deep/z.bmp", ".hidden/no.png", "._no.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were four, whatever this machine has."""
    monkeypatch.setattr(pictures, "_cores", lambda: 4)


def identity(batch):
    return batch


def test_pictures_of_all_folders_in_the_order_of_their_names(folder) -> None:
    data = PictureFolder(folder, size=8)
    assert data.names == ["a.png", "b.JPG", "in/a.webp", "in/deep/z.bmp"]
    assert repr(data) == "PictureFolder(4 pictures, size=8)"
    batch = data.batch([3, 0])
    assert batch["index"].tolist() == [3, 0]
    assert (batch["image"].shape, batch["image"].dtype) == ((2, 3, 8, 8), torch.float32)
    with Image.open(folder / "a.png") as picture:
        square = picture.resize((8, 8), Image.Resampling.BICUBIC, box=(5, 0, 35, 30))
    expected = torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255
    assert torch.equal(batch["image"][1], expected)
    assert all(torch.equal(data[-1][key], batch[key][0]) for key in batch)
    with pytest.raises(IndexError):
        data[4]


def test_a_link_to_a_picture_is_one_and_a_link_to_a_folder_is_not_followed(folder) -> None:
    (folder / "c.png").symlink_to(folder / "a.png")
    (folder / "round").symlink_to(folder, target_is_directory=True)
    assert PictureFolder(folder).names == ["a.png", "b.JPG", "c.png", "in/a.webp", "in/deep/z.bmp"]


def test_what_is_no_folder_of_pictures(tmp_path, folder) -> None:
    with pytest.raises(DataError, match="got no such folder"):
        PictureFolder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"one of \.jpg, .* got none"):
        PictureFolder(tmp_path / "empty")
    with pytest.raises(MMCLError, match="size must be a whole number, at least 1"):
        PictureFolder(folder, size=0)
    for indices in ([], [[0]]):
        with pytest.raises(ShapeError, match="indices: expected"):
            PictureFolder(folder).batch(indices)


@pytest.mark.usefixtures("cores")
def test_unreadable_pictures_are_told_or_stop(folder) -> None:
    for name in ("b.JPG", "in/a.webp"):
        (folder / name).write_bytes(b"not a picture")
    data = PictureFolder(folder, size=8)
    batch, unreadable = data.read([2, 3, 1, 0])
    assert list(unreadable) == [2, 1]
    assert batch["index"].tolist() == [3, 0]
    assert torch.equal(batch["image"], data.batch([3, 0])["image"])
    batch, unreadable = data.read([1])
    assert batch["image"].shape == (0, 3, 8, 8)
    with pytest.raises(DataError, match=r"picture .*in/a\.webp cannot be read \(cannot identify"):
        data.batch([0, 2, 1])


def test_threads_give_what_one_thread_gives(folder, monkeypatch) -> None:
    data, indices = PictureFolder(folder, size=8), [0, 1, 2, 3] * 5
    monkeypatch.setattr(pictures, "_cores", lambda: 1)
    one = data.batch(indices)["image"]
    monkeypatch.setattr(pictures, "_cores", lambda: 4)
    assert torch.equal(data.batch(indices)["image"], one)


@pytest.mark.usefixtures("cores")
def test_the_work_is_done_in_threads_and_none_stays() -> None:
    meet = threading.Barrier(4, timeout=10)  # breaks unless four are at work at once
    before = threading.active_count()
    assert pictures.in_threads(lambda i: (meet.wait(), i)[1], range(8)) == list(range(8))
    assert threading.active_count() == before
    assert pictures.in_threads(lambda i: threading.get_ident(), [0]) == [threading.get_ident()]
    assert pictures.in_threads(identity, []) == []


@pytest.mark.usefixtures("cores")
def test_the_first_error_in_the_order_of_the_items_is_raised() -> None:
    second = threading.Event()

    def fail(i: int) -> None:
        if i == 0:
            assert second.wait(10)
        second.set()
        raise ValueError(i)

    with pytest.raises(ValueError, match="0"):
        pictures.in_threads(fail, range(4))


def test_cores_are_shared_with_other_processes(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert pictures._cores() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert pictures._cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert pictures._cores() == 1


class Threads(torch.utils.data.Dataset):
    """How many threads each worker process would take."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> int:
        return pictures._cores()


def test_worker_processes_take_one_thread_each_and_give_the_same(folder, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    data = PictureFolder(folder, size=8)
    here = data.batch([0, 1, 2, 3])["image"]  # in threads, before the fork
    assert list(DataLoader(Threads(), batch_size=None, num_workers=1)) == [1, 1]
    batches = list(DataLoader(data, batch_size=2, num_workers=2))
    assert torch.equal(torch.cat([batch["image"] for batch in batches]), here)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.usefixtures("cores")
def test_a_forked_process_decodes_in_threads_of_its_own(folder) -> None:
    data = PictureFolder(folder, size=8)
    here = data.batch([0, 1, 2, 3])["image"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's threads, not ours
        child = os.fork()
    if child == 0:
        try:
            os._exit(0 if torch.equal(data.batch([0, 1, 2, 3])["image"], here) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
