"""The pointing game against a loop over cells and pixels, and maps whose score is known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmcl_core.errors import ShapeError
from mmcl_core.evaluation import pointing_game

games = settings(max_examples=50, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)
# Number of maps, their cells down and across, and pixels of a cell down and across.
shapes = st.tuples(*[st.integers(1, top) for top in (6, 4, 4, 3, 3)])


def draw(seed: int, shape: tuple[int, ...], levels: int = 0) -> tuple[Tensor, Tensor]:
    """Maps (of so many different values; 0: all different), and masks with some pixels."""
    n, h, w, down, across = shape
    g = torch.Generator().manual_seed(seed)
    maps = torch.randn(n, h, w, generator=g)
    if levels:
        maps = torch.randint(levels, (n, h, w), generator=g).float() - 1
    masks = torch.rand(n, h * down, w * across, generator=g) < 0.3
    masks[:, 0, -1] |= ~masks.flatten(1).any(1)
    return maps, masks


def touched(mask: list[list[bool]], h: int, w: int) -> set[tuple[int, int]]:
    """The cells, of h x w, in which some pixel lies in the mask."""
    return {
        (i * h // len(mask), j * w // len(mask[0]))
        for i in range(len(mask))
        for j in range(len(mask[0]))
        if mask[i][j]
    }


def naive(maps: Tensor, masks: Tensor) -> tuple[list[float], float]:
    """The hits, and chance."""
    n, h, w = maps.shape
    hits, shares = [], []
    for values, mask in zip(maps.tolist(), masks.tolist(), strict=True):
        cells = touched(mask, h, w)
        best = max(max(row) for row in values)
        strongest = [(i, j) for i in range(h) for j in range(w) if values[i][j] == best]
        hits.append(sum(cell in cells for cell in strongest) / len(strongest))
        shares.append(len(cells) / (h * w))
    return hits, sum(shares) / n


@games
@given(seeds, shapes, st.integers(0, 3))
def test_pointing_game_is_the_loop(seed, shape, levels):
    """With few levels, several cells are the strongest."""
    maps, masks = draw(seed, shape, levels)
    hits, chance = naive(maps, masks)
    found = pointing_game(maps, masks)
    assert found.hits.tolist() == pytest.approx(hits)
    assert found.accuracy == pytest.approx(sum(hits) / len(hits))
    assert found.chance == pytest.approx(chance)
    assert 0 < found.chance <= 1


@games
@given(seeds, shapes)
def test_maps_of_the_touched_cells_always_hit(seed, shape):
    maps, masks = draw(seed, shape)
    n, h, w = maps.shape
    for k in range(n):
        cells = touched(masks[k].tolist(), h, w)
        maps[k] = torch.tensor([[float((i, j) in cells) for j in range(w)] for i in range(h)])
    assert pointing_game(maps, masks).accuracy == 1
    whole = torch.ones_like(masks)
    assert pointing_game(-maps, whole).accuracy == pointing_game(-maps, whole).chance == 1


@games
@given(seeds, shapes, st.floats(-5, 5))
def test_flat_maps_are_no_better_than_chance(seed, shape, level):
    _, masks = draw(seed, shape)
    flat = torch.full(shape[:3], level)
    found = pointing_game(flat, masks)
    assert found.accuracy == pytest.approx(found.chance)
    for share, mask in zip(found.hits.tolist(), masks, strict=True):
        cells = touched(mask.tolist(), *shape[1:3])
        assert share == pytest.approx(len(cells) / (shape[1] * shape[2]))


def test_random_maps_hit_by_chance():
    maps, masks = draw(0, (4000, 3, 4, 2, 2))
    found = pointing_game(maps, masks)
    assert 0.2 < found.chance < 0.9
    assert found.accuracy == pytest.approx(found.chance, abs=0.03)  # four standard errors


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 7), (4, 8), (11, 15)])
def test_one_pixel_is_hit_from_its_own_cell_alone(row, column):
    """Cells of 4 x 8 pixels."""
    mask = torch.zeros(12, 16, dtype=torch.bool)
    mask[row, column] = True
    peaks = torch.eye(6).view(6, 3, 2)
    found = pointing_game(peaks, mask.expand(6, -1, -1))
    assert found.hits.tolist() == [float(k == row // 4 * 2 + column // 8) for k in range(6)]
    assert found.accuracy == found.chance == pytest.approx(1 / 6)


def test_of_several_strongest_cells_the_share_counts():
    maps = torch.tensor([[[2.0, 2.0], [2.0, 1.0]], [[-1.0, -1.0], [-2.0, -3.0]]])
    masks = torch.zeros(2, 2, 2, dtype=torch.bool)
    masks[:, 1] = True  # the lower two cells
    assert pointing_game(maps, masks).hits.tolist() == pytest.approx([1 / 3, 0])


MAPS, MASKS = torch.zeros(3, 2, 2), torch.ones(3, 4, 6, dtype=torch.bool)
EMPTY = MASKS.clone()
EMPTY[1:] = False


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        (MAPS[0], MASKS, r"maps: expected floats \[N, h, w\]; got .* \[2, 2\]"),
        (MAPS.long(), MASKS, r"maps: .* torch.int64"),
        (MAPS[:0], MASKS[:0], "maps: .*0, 2, 2"),
        (MAPS, MASKS[0], r"masks: expected bool \[3, H, W\].*\[4, 6\]"),
        (MAPS, MASKS.float(), "masks: expected bool.*float32"),
        (MAPS, MASKS[:2], r"masks: expected bool \[3.*\[2, 4, 6\]"),
        (MAPS, MASKS[:, :3], "multiples of 2 and 2"),
        (MAPS, MASKS[:, :, :5], "multiples of 2 and 2"),
        (MAPS, MASKS[:, :1, :1], "multiples of 2 and 2"),
        (MAPS, MASKS[:, :0], "a pixel in each; mask 0 is empty"),
        (MAPS, EMPTY, "a pixel in each; mask 1 is empty"),
        (MAPS + torch.tensor([0, math.nan]), MASKS, "maps: expected finite"),
        (MAPS - math.inf, MASKS, "maps: expected finite"),
    ],
)
def test_pointing_game_refuses(maps, masks, message):
    with pytest.raises(ShapeError, match=message):
        pointing_game(maps, masks)
