"""Photographs: what the page builds, and what its checks say."""

import numpy as np
import torch
from PIL import Image, ImageOps

from tests.book.chapter import definitions


def test_a_lying_picture_is_turned_as_pillow_turns_it() -> None:
    page = definitions("synthesis/photographs")
    pixels = torch.randint(
        256, (5, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    turned = page["upright_loop"](pixels.tolist())
    assert turned == page["upright"](pixels).tolist()
    picture = Image.fromarray(pixels.numpy())
    picture.getexif()[0x0112] = 6
    assert torch.tensor(turned).equal(
        torch.tensor(np.array(ImageOps.exif_transpose(picture))).long()
    )


def test_photographs_exercises_name_what_fails() -> None:
    page = definitions("synthesis/photographs")
    check = page["check_lost"]
    assert check(page["lost"]) == "not answered yet"
    assert check(page["lost_share"]) == "right"
    assert "lies in 0 to 1" in check(lambda w, h: 1 - w / h)
    assert "share that stays" in check(lambda w, h: min(w, h) / max(w, h))
    assert "not the lost" in check(lambda w, h: 0.0)
    check, right = page["check_bytes"], page["bytes_of_features"]()
    assert check(page["feature_bytes"]) == "not answered yet"
    assert check(lambda: right) == "right"
    assert "4 bytes" in check(lambda: (right[0] // 4, right[1]))
    assert "tokens: pictures x" in check(lambda: (right[0], right[0]))
    check = page["check_inside"]
    assert check(page["stays_inside"]) == "not answered yet"
    assert check(page["inside"]) == "right"
    assert "is refused" in check(lambda name: ".." not in name)
    assert "goes up and out" in check(lambda name: not name.startswith(("/", "..")))
    assert "begins at the root" in check(lambda name: ".." not in name.split("/"))
