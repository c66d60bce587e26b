"""A folder as large as Flickr8k: its index, and how fast its pictures are decoded.

Not part of the default test run. Times are printed, never asserted. See `measure`. The pictures are
made here: 1/f noise with edges, of 500 x 375 pixels as those of Flickr8k are, of about 120 kB at
quality 90. 256 of them are distinct; for the index, the others are links to them.

    python -m pytest tests/benchmarks/test_captions_benchmark.py -s
"""

import csv
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mmcl_core.data import CaptionFolder
from mmcl_core.data.pictures import as_images, decode
from tests.benchmarks.measure import in_fresh_process, mebibytes, reads_proc

PICTURES, DISTINCT, CAPTIONS, SIZE = 8091, 256, 5, 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("flickr")
    (root / "Images").mkdir()
    rng = np.random.default_rng(0)
    names = [f"{rng.integers(10**9):010}_{i:06x}.jpg" for i in range(PICTURES)]
    files = [root / "Images" / name for name in names]
    field = fractal(rng, 1024, 1365)
    for file in files[:DISTINCT]:
        photograph(rng, field).save(file, quality=90)
    for i, file in enumerate(files[DISTINCT:]):
        os.link(files[i % DISTINCT], file)
    size = statistics.mean(file.stat().st_size for file in files[:DISTINCT])
    print(f"\n{PICTURES} pictures of {size / 1000:.0f} kB, {CAPTIONS} captions each")
    with open(root / "captions.txt", "w", newline="", encoding="utf-8") as file:
        rows = [(name, sentence(rng)) for name in names for _ in range(CAPTIONS)]
        csv.writer(file, lineterminator="\n").writerows([("image", "caption"), *rows])
    return root


def fractal(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """1/f noise, as photographs have it, in three channels that go together: float [H, W, 3]."""
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    f[0, 0] = 1
    grey, *colour = (
        np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / f, (height, width))
        for _ in range(4)
    )
    field = np.stack([grey / grey.std() + 0.3 * c / c.std() for c in colour], axis=-1)
    return (120 + 60 * field).astype(np.float32)


def photograph(rng: np.random.Generator, field: np.ndarray) -> Image.Image:
    """A piece of the field, with a dozen shapes laid over it and the noise of a sensor."""
    top, left = (int(rng.integers(limit)) for limit in (1024 - 375, 1365 - 500))
    pixels = field[top : top + 375, left : left + 500] + rng.normal(0, 6, (375, 500, 1))
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture, "RGBA")
    for _ in range(12):
        x, y, w, h = (int(n) for n in rng.integers((500, 375, 150, 150)))
        draw.ellipse((x, y, x + w, y + h), fill=(*map(int, rng.integers(256, size=3)), 90))
    return picture


def sentence(rng: np.random.Generator) -> str:
    """About twelve words, of several thousand, the first ones most often."""
    words = [f"w{word}" for word in np.minimum(rng.zipf(1.3, int(rng.integers(6, 19))), 9000)]
    return f"A {' '.join(words)} , and {words[0]} ."


def rounds(form: Callable[[], object], n: int) -> list[float]:
    times = []
    for _ in range(n):
        start = time.perf_counter()
        form()
        times.append(time.perf_counter() - start)
    return times


def held_by_the_index(folder: Path) -> float:
    """MiB that a `CaptionFolder` adds to a process, at its peak."""
    before = mebibytes("VmRSS")
    CaptionFolder(folder, size=SIZE, keep_duplicates=True)
    return mebibytes("VmHWM") - before


@reads_proc
def test_the_index(folder: Path) -> None:
    times = rounds(lambda: CaptionFolder(folder, size=SIZE, keep_duplicates=True), 5)
    data = CaptionFolder(folder, size=SIZE, keep_duplicates=True)
    pixels = sum(path.stat().st_size for path in data.paths) / 2**20
    print(
        f"\n{data}: index in {statistics.median(times):.2f} s (least {min(times):.2f}); the target "
        f"is 2 s\n  {in_fresh_process(held_by_the_index, folder):.0f} MiB at its peak, of "
        f"{pixels:.0f} MiB of files"
    )
    assert (len(data), sum(len(data.captions(i)) for i in range(len(data)))) == (8091, 40455)


def test_decoding(folder: Path) -> None:
    data = CaptionFolder(folder, size=SIZE, keep_duplicates=True)
    paths, batch = data.paths[:128], range(128)

    def one_thread() -> torch.Tensor:
        return as_images([decode(path, SIZE) for path in paths], SIZE)

    def ours() -> torch.Tensor:
        return data.batch(batch)["image"]

    assert torch.equal(one_thread(), ours())  # and both are warm
    times = [(rounds(one_thread, 1)[0], rounds(ours, 1)[0]) for _ in range(11)]
    one, several = (128 / statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    print(
        f"\nbatches of 128, resized to {SIZE} px, {len(os.sched_getaffinity(0))} cores: "
        f"{several:.0f} pictures a second, one thread {one:.0f}; {ratio:.2f}x as fast. The target "
        "on two cores is 400"
    )
