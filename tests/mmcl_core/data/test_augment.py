"""Augmentations: same seed same views, and what each must leave alone."""

import math
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from mmcl_core.data.augment import compose, crop, moco_v2, paraphrase, with_labels
from mmcl_core.errors import DataError, MissingModalityError, MMCLError, ShapeError

# Four samples, three sentences each; the word says sample and sentence: 10 * sample + sentence.
SENTENCES = torch.zeros(4, 3, 6, dtype=torch.int64)
for sample in range(4):
    for s in range(3):
        words = [10 * (sample + 1) + s] * (1 + s)
        SENTENCES[sample, s, : len(words) + 2] = torch.tensor([1, *words, 2])


class Told:
    """The least that a data set of one's own needs: sentences, and a length."""

    def __init__(self, sentences=SENTENCES):
        self.sentences = sentences

    def __len__(self):
        return len(self.sentences)


def batch_of(index, **extra):
    index = torch.tensor(index)
    return {"caption": SENTENCES[index, 0, :3], "index": index, **extra}


def copy_of(batch):
    return {key: value.clone() for key, value in batch.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


PICTURES = {"image": torch.rand(16, 3, 24, 24, generator=torch.Generator().manual_seed(0))}
ALL = {
    "paraphrase": (paraphrase(Told(), view=True), batch_of([3, 1, 1, 0])),
    "moco_v2": (moco_v2(24), PICTURES),
    "crop": (crop(), PICTURES),
    "compose": (
        compose(paraphrase(Told(), view=True), moco_v2(24)),
        batch_of([3, 1, 0, 2], image=PICTURES["image"][:4]),
    ),
}


@pytest.mark.parametrize("name", ALL)
def test_the_same_torch_seed_gives_the_same_batch_and_the_old_one_stays(name):
    augment, batch = ALL[name]
    before = copy_of(batch)
    results = []
    for other_seed in range(2):
        random.seed(other_seed)
        np.random.seed(other_seed)  # noqa: NPY002 - an augmentation must not depend on it
        torch.manual_seed(5)
        results.append([augment(batch) for _ in range(4)])
    for first, second in zip(*results, strict=True):
        assert same(first, second)
    # Later draws differ: the generator moves on.
    assert not all(same(results[0][0], later) for later in results[0][1:])
    assert same(batch, before)


@pytest.mark.parametrize("name", ALL)
def test_a_restored_generator_gives_the_next_batch(name):
    augment, batch = ALL[name]
    torch.manual_seed(0)
    augment(batch)
    state = torch.get_rng_state()
    following = augment(batch)
    torch.manual_seed(99)
    torch.set_rng_state(state)
    assert same(augment(batch), following)


def test_compose_goes_from_left_to_right_and_may_be_empty():
    def add(value):
        return lambda batch: {**batch, "seen": [*batch.get("seen", []), value]}

    assert compose(add(1), add(2))({})["seen"] == [1, 2]
    batch = batch_of([0])
    assert same(compose()(batch), batch)
    assert compose()(batch) is not batch


def test_paraphrase_draws_every_sentence_of_the_same_sample_and_trims():
    torch.manual_seed(0)
    index = [2, 0, 3]
    seen = set()
    for _ in range(60):
        caption = paraphrase(Told())(batch_of(index))["caption"]
        sentence = caption[:, 1] % 10
        assert torch.equal(caption[:, 1] // 10 - 1, torch.tensor(index))
        width = 3 + int(sentence.max())
        assert torch.equal(caption, SENTENCES[index, sentence, :width])
        seen |= set(enumerate(sentence.tolist()))
    assert seen == {(row, s) for row in range(3) for s in range(3)}


def test_the_second_view_is_another_sentence_of_the_same_sample():
    torch.manual_seed(0)
    pairs = set()
    for _ in range(60):
        new = paraphrase(Told(), view=True)(batch_of([1, 2]))
        first, second = new["caption"][:, 1], new["caption_view"][:, 1]
        assert torch.equal(first // 10, second // 10)
        assert (first != second).all()
        pairs |= set(zip((first % 10).tolist(), (second % 10).tolist(), strict=True))
    assert pairs == {(a, b) for a in range(3) for b in range(3) if a != b}


def test_with_one_sentence_both_views_are_that_one():
    new = paraphrase(Told(SENTENCES[:, :1]), view=True)(batch_of([1, 2]))
    assert torch.equal(new["caption"], SENTENCES[[1, 2], 0, :3])
    assert torch.equal(new["caption_view"], new["caption"])


def test_paraphrase_says_what_is_wrong():
    with pytest.raises(ShapeError, match=r"\[N, S, L\], got \[4, 6\]"):
        paraphrase(Told(SENTENCES[:, 0]))
    augment = paraphrase(Told())
    with pytest.raises(MissingModalityError, match="index not in the batch"):
        augment({"caption": SENTENCES[:, 0]})
    with pytest.raises(MissingModalityError, match="caption not in the batch"):
        augment({"index": torch.tensor([0])})
    with pytest.raises(DataError, match="no sample with the index 4; hand over the data set"):
        augment({"caption": SENTENCES[:2, 0], "index": torch.tensor([0, 4])})
    with pytest.raises(ShapeError, match="at least one"):
        augment(batch_of([0]) | {"caption": SENTENCES[:0, 0]})


def test_with_labels_adds_the_class_of_each_sample():
    labels = torch.tensor([5, 0, 2, 7])
    batch = batch_of([3, 1, 1, 0])
    before = copy_of(batch)
    new = with_labels(Told(), labels)(batch)
    assert new["label"].tolist() == [7, 0, 0, 5]
    assert new["label"].dtype == torch.int64
    assert same(batch, before)
    assert same({key: new[key] for key in batch}, before)
    # Only the numbers of the samples are needed, and other augmentations may come before.
    assert with_labels(Told(), labels)({"index": torch.tensor([2])})["label"].tolist() == [2]
    both = compose(paraphrase(Told()), with_labels(Told(), labels))(batch)
    assert torch.equal(both["label"], new["label"])


def test_with_labels_says_what_is_wrong():
    for wrong in (torch.ones(4), torch.ones(4, 1, dtype=torch.int64), torch.arange(0)):
        with pytest.raises(ShapeError, match=r"labels: expected int64 \[N\], got"):
            with_labels(Told(), wrong)
    augment = with_labels(Told(), torch.arange(4))
    with pytest.raises(MissingModalityError, match="with_labels needs index; index not in"):
        augment({"caption": SENTENCES[:, 0]})
    for index, found in (([0, 4], 4), ([-1, 2], -1)):
        with pytest.raises(DataError, match=f"no sample with the index {found}; hand over"):
            augment({"index": torch.tensor(index)})
    with pytest.raises(ShapeError, match="at least one"):
        augment({"index": torch.tensor([], dtype=torch.int64)})


# --- crop -----------------------------------------------------------------------------------------


def sampled(picture: torch.Tensor, side: float, shift: list[float]) -> torch.Tensor:
    """The crop of one picture, pixel by pixel, between the four that surround each place."""
    size = picture.shape[-1]
    crop = torch.empty_like(picture)
    for row in range(size):
        for column in range(size):
            x, y = (  # in pixels, from the middle of the first one
                ((side * ((2 * at + 1) / size - 1) + middle + 1) * size - 1) / 2
                for at, middle in zip((column, row), shift, strict=True)
            )
            x, y = (min(max(place, 0), size - 1) for place in (x, y))
            left, top = math.floor(x), math.floor(y)
            right, bottom = min(left + 1, size - 1), min(top + 1, size - 1)
            a, b = x - left, y - top
            upper = (1 - a) * picture[:, top, left] + a * picture[:, top, right]
            lower = (1 - a) * picture[:, bottom, left] + a * picture[:, bottom, right]
            crop[:, row, column] = (1 - b) * upper + b * lower
    return crop


def test_a_crop_is_the_loop_over_pixels():
    given = PICTURES["image"][:3]
    torch.manual_seed(4)
    found = crop((0.25, 1.0))({"image": given})["image_view"]
    torch.manual_seed(4)
    side = torch.empty(3).uniform_(0.25, 1.0).sqrt()
    shift = (2 * torch.rand(3, 2) - 1) * (1 - side)[:, None]
    for i in range(3):
        expected = sampled(given[i], float(side[i]), shift[i].tolist())
        torch.testing.assert_close(found[i], expected, atol=1e-4, rtol=0)


def test_a_crop_of_everything_is_the_picture():
    whole = crop((1.0, 1.0))(PICTURES)
    torch.testing.assert_close(whole["image_view"], PICTURES["image"], atol=1e-5, rtol=0)
    assert whole["image"] is PICTURES["image"]


def test_crops_keep_the_colours_and_the_type():
    plain = torch.tensor([0.2, 0.5, 0.9])[None, :, None, None].expand(4, 3, 32, 32)
    for dtype in (torch.float32, torch.float64):
        found = crop()({"image": plain.to(dtype)})["image_view"]
        torch.testing.assert_close(found, plain.to(dtype), atol=1e-6, rtol=0)


def test_a_crop_is_a_part_of_the_picture() -> None:
    """A picture whose value is its place: the crop tells where it was cut, by two corners."""
    size = 32
    places = torch.linspace(-1 + 1 / size, 1 - 1 / size, size)
    ramp = torch.stack(torch.meshgrid(places, places, indexing="ij"))
    image = torch.cat([ramp, ramp[:1]]).expand(200, -1, -1, -1)
    torch.manual_seed(0)
    part = crop((0.5, 1.0))({"image": image})["image_view"]
    down, right = part[:, 0, 4:-4, 0], part[:, 1, 0, 4:-4]  # inside of the border
    side = (down[:, -1] - down[:, 0]) / (places[-5] - places[4])
    torch.testing.assert_close(side, (right[:, -1] - right[:, 0]) / (places[-5] - places[4]))
    assert 0.5**0.5 - 1e-4 <= float(side.min()) < 0.72
    assert 0.98 < float(side.max()) <= 1 + 1e-4
    middle = part[:, :2, 15:17, 15:17].mean((2, 3))
    assert (middle.abs() <= (1 - side)[:, None] + 1e-4).all()
    assert (middle.mean(0).abs() < 0.03).all()
    assert (middle.std(0) > 0.05).all()


def test_crop_says_what_is_wrong():
    for scale in ((0.0, 1.0), (0.8, 0.5), (0.5, 1.2)):
        with pytest.raises(MMCLError, match="0 < least <= greatest <= 1"):
            crop(scale)
    with pytest.raises(MMCLError, match="views"):
        crop(views=("caption",))
    with pytest.raises(MissingModalityError, match="crop needs image"):
        crop()({"caption": SENTENCES[:, 0]})
    with pytest.raises(ShapeError, match=r"expected float \[B, 3, H, W\]"):
        crop()({"image": torch.ones(2, 3, 8, 8, dtype=torch.uint8)})


# --- MoCo-v2 --------------------------------------------------------------------------------------


def test_moco_v2_gives_two_different_views_in_range_at_the_size_asked_for():
    torch.manual_seed(0)
    new = moco_v2(16)(PICTURES)
    for key in ("image", "image_view"):
        assert new[key].shape == (16, 3, 16, 16)
        assert new[key].dtype == torch.float32
        assert new[key].min() >= 0
        assert new[key].max() <= 1
    # A blurred white picture is white, and not a rounding error brighter.
    white = {"image": torch.ones(64, 3, 24, 24)}
    assert moco_v2(24, jitter_p=0.0, blur_p=1.0)(white)["image"].max() <= 1
    different = (new["image"] - new["image_view"]).abs().amax((1, 2, 3))
    assert (different > 0.01).all()


def test_moco_v2_writes_only_the_views_asked_for():
    new = moco_v2(16, views=("image_view",))(PICTURES)
    assert new["image"] is PICTURES["image"]
    assert new["image_view"].shape[-1] == 16
    assert moco_v2(16, views=("image",))(PICTURES).keys() == {"image"}


PLAIN = {"scale": (1.0, 1.0), "jitter_p": 0.0, "grayscale_p": 0.0, "blur_p": 0.0}


def test_moco_v2_does_not_flip_unless_told():
    torch.manual_seed(0)
    # Dark on the left, bright on the right.
    image = torch.linspace(0, 1, 24).expand(64, 3, 24, 24)

    def brighter_right(flip):
        new = moco_v2(24, flip=flip, views=("image",), **PLAIN)({"image": image})["image"]
        return (new[..., 12:].mean((1, 2, 3)) > new[..., :12].mean((1, 2, 3))).sum()

    assert brighter_right(False) == 64
    assert 12 < brighter_right(True) < 52


def test_each_step_of_moco_v2_acts_when_asked_for():
    torch.manual_seed(0)

    def augment(**settings):
        return moco_v2(24, views=("image",), **{**PLAIN, **settings})(PICTURES)["image"]

    def detail(image):
        return image.diff(dim=-1).abs().mean((1, 2, 3))

    gray = augment(grayscale_p=1.0)
    assert torch.allclose(gray[:, 0], gray[:, 1])
    assert torch.allclose(gray[:, 0], gray[:, 2])
    plain = augment()
    assert not torch.allclose(plain[:, 0], plain[:, 1], atol=0.1)
    blurred = augment(blur_p=1.0, blur_sigma=(1.0, 2.0))
    assert (detail(blurred) < 0.5 * detail(plain)).all()
    bright = augment(jitter_p=1.0, jitter=(0.4, 0.0, 0.0, 0.0))
    assert bright.mean((1, 2, 3)).std() > 3 * plain.mean((1, 2, 3)).std()
    assert (detail(augment(scale=(0.2, 0.3))) < 0.9 * detail(plain)).all()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_moco_v2_at_tiny_sizes(size):
    assert moco_v2(size, blur_p=1.0)(PICTURES)["image"].shape == (16, 3, size, size)


def test_moco_v2_says_what_is_wrong():
    with pytest.raises(MMCLError, match="size"):
        moco_v2(0)
    for views in ((), ("caption",)):
        with pytest.raises(MMCLError, match="views"):
            moco_v2(16, views=views)
    with pytest.raises(MissingModalityError, match=r"which holds \['caption'\]"):
        moco_v2(16)({"caption": SENTENCES[:, 0]})
    for wrong in (torch.ones(2, 1, 8, 8), torch.ones(2, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ShapeError, match=r"expected float \[B, 3, H, W\]"):
            moco_v2(16)({"image": wrong})


WITHOUT_KORNIA = """
import sys
sys.modules["kornia"] = sys.modules["kornia.augmentation"] = None  # as if it were not installed
from mmcl_core.__main__ import main
from mmcl_core.data.augment import moco_v2
from mmcl_core.errors import MMCLError
try:
    moco_v2(8)
except MMCLError as error:
    print(error)
how = "--data shapes --pairs 64 --size 24 --epochs 1 --batch-size 16 --quiet".split()
for method in ("moco", "mct"):
    assert main(["train", "--method", method, "--out", f"{sys.argv[1]}/{method}", *how]) == 0
"""


def test_training_needs_no_kornia(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KORNIA, str(tmp_path)], capture_output=True, text=True
    )
    assert "moco_v2 needs kornia: pip install 'mmcl_core[book]'" in done.stdout
    assert done.returncode == 0, done.stderr
    assert "mct/checkpoint.pt" in done.stdout
