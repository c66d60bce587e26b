"""Small trainings, pictures on disk, and what the tests of the command line compare."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmcl_core.cli.runs import read_run
from mmcl_core.data import ShapesCaptions
from mmcl_core.training import fit, load_checkpoint

SMALL = ["--size", "24", "--batch-size", "32", "--device", "cpu", "--quiet"]
SHAPES = ["--data", "shapes", "--pairs", "256", *SMALL]


def weights(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["state"]


def assert_same_weights(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 0) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=tolerance, msg=name)


def stopping(steps: int) -> Callable[..., Any]:
    """A `fit` in which Ctrl-C is pressed in the step after so many."""

    def stopped(method: Any, data: Any, *, augment: Callable, **kwargs: Any) -> Any:
        left = [steps]

        def call(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return augment(batch)

        return fit(method, data, augment=call, **kwargs)

    return stopped


def draw_folder(root: Path, n: int = 96, objects: tuple[int, int] = (1, 3)) -> Path:
    """Pictures with one caption each, in the layout of Flickr8k as found today."""
    scenes = ShapesCaptions(n, seed=3, size=24, detail=2, objects=objects)
    (root / "Images").mkdir(parents=True)
    for i, pixels in enumerate(scenes.images):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(root / "Images" / f"{i}.png")
    write_captions(root, {f"{i}.png": scenes.text(i) for i in range(n)})
    for split, part in {"train": range(64), "test": range(64, n)}.items():
        names = "".join(f"{i}.png\n" for i in part)
        (root / f"Flickr_8k.{split}Images.txt").write_text(names)
    return root


def write_captions(root: Path, captions: dict[str, str]) -> None:
    with open(root / "captions.txt", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("image", "caption"), *captions.items()])


def trained(folder: Path) -> tuple[Any, Any]:
    """Method and data of a run, made by way of all its data."""
    begun = read_run(folder)
    data = begun.training_data(folder)
    method = begun.recipe(data, begun.steps(len(data))).method
    load_checkpoint(folder / "checkpoint.pt", method)
    return method.eval(), data
