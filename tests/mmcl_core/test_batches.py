"""What all data sets have in common: which rows are meant, batches for PyTorch, global numbers."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, random_split

from mmcl_book.experiments.drawn_folder import draw_folder
from mmcl_core.batches import Batched, index, row_of, trimmed
from mmcl_core.data import CaptionFolder, Emoji, PictureFolder, ShapesCaptions
from mmcl_core.data.augment import compose, finder, paraphrase, with_labels
from mmcl_core.data.tokenizer import UNK
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.errors import DataError, MMCLError, RowError, ShapeError
from mmcl_core.evaluation import embed_all
from mmcl_core.features import FeatureCaptions
from mmcl_core.methods import CLIP
from mmcl_core.training import fit

N = 12


@pytest.fixture(scope="module")
def every(tmp_path_factory) -> dict[str, Dataset]:
    """Each data set of the library, with N samples."""
    root = draw_folder(tmp_path_factory.mktemp("drawn") / "root", N, size=32)
    folder = CaptionFolder(root, size=8)
    return {
        "shapes": ShapesCaptions(N, size=24),
        "no tags": ShapesCaptions(N, size=24, tags=()),
        "emoji": Emoji("test", language="both", size=8).subset(range(N)),
        "folder": folder,
        "pictures": PictureFolder(root, size=8),
        "features": FeatureCaptions(folder, np.random.default_rng(0).random((N, 5), np.float32)),
    }


NAMES = ["shapes", "no tags", "emoji", "folder", "pictures", "features"]


def mask_of(rows: list[int]) -> Tensor:
    mask = torch.zeros(N, dtype=torch.bool)
    mask[rows] = True
    return mask


# --- which rows are meant (B3) --------------------------------------------------------------------

SAME_ROWS = [
    [10, 3, -1],
    (10, 3, 11),
    torch.tensor([10, 3, -1]),
    torch.tensor([10, 3, 11], dtype=torch.uint8),
    np.array([10, 3, -1], dtype=np.int16),
    np.array([11, 3, 10])[::-1],  # backwards in memory
    [np.int64(10), torch.tensor(3), 11],
    iter([10, 3, 11]),
]
MASKS = [
    mask_of([3, 10, 11]),
    mask_of([3, 10, 11]).numpy(),
    mask_of([3, 10, 11]).tolist(),
    list(mask_of([3, 10, 11])),
    list(mask_of([3, 10, 11]).numpy()),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("indices", MASKS, ids=lambda m: type(m).__name__)
def test_a_mask_means_its_rows_in_every_data_set(every, name, indices) -> None:
    data = every[name]
    assert torch.equal(data.batch(indices)["index"], data.rows[[3, 10, 11]])
    part, expected = data.subset(indices), data.batch([3, 10, 11])
    assert len(part) == 3
    assert all(torch.equal(value, expected[key]) for key, value in part.batch([0, 1, 2]).items())


@pytest.mark.parametrize("indices", SAME_ROWS, ids=lambda i: type(i).__name__)
def test_whole_numbers_of_any_kind(indices) -> None:
    assert index(indices, N).tolist() == [10, 3, 11]


def test_a_mask_in_what_else_takes_rows(every) -> None:
    shapes = every["shapes"]
    assert torch.equal(shapes.masks(mask_of([4, 9])), shapes.masks([4, 9]))
    read, unreadable = every["pictures"].read(mask_of([4, 9]))
    assert read["index"].tolist() == [4, 9]
    assert not unreadable
    assert len(Batched(Subset(shapes, mask_of([4, 9])))) == 2


WRONG = [
    (torch.tensor([0.9, 3.7]), DataError, "expected whole numbers or a mask, got torch.float32"),
    ([1.0, 2.0], DataError, "whole numbers or a mask, got torch.float64"),
    (np.array([1.0]), DataError, "whole numbers or a mask"),
    ([True, 2], DataError, "numbers and truth values"),
    (["1"], DataError, "whole numbers or a mask, got list"),
    ("12", DataError, "whole numbers or a mask, got str"),
    ([None], DataError, "whole numbers or a mask"),
    (mask_of([1])[:-1], ShapeError, "a mask with one entry for each of the 12 samples, got 11"),
    ([True] * 13, ShapeError, "got 13 entries"),
    ([N], RowError, "expected -12 to 11, got 12"),
    ([0, -N - 1], RowError, "got -13"),
    ([], ShapeError, "at least one of the 12 samples, got none"),
    (torch.zeros(N, dtype=torch.bool), ShapeError, "got none"),
    (slice(5, 5), ShapeError, "got none"),
    (3, ShapeError, r"expected \[K\], such as \[3\]"),
    (torch.zeros(1, 1, dtype=torch.int64), ShapeError, r"expected \[K\]"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("indices", "error", "message"), WRONG)
def test_what_means_no_rows(every, name, indices, error, message) -> None:
    """B3, and B13: `[]` gave another error in each data set."""
    data = every[name]
    asked = [data.batch, data.subset, *([data.masks] if hasattr(data, "masks") else [])]
    for ask in asked:
        with pytest.raises(error, match=message) as raised:
            ask(indices)
        assert isinstance(raised.value, MMCLError)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 30), st.data())
def test_rows_are_those_of_a_python_list(n: int, data) -> None:
    values = list(range(100, 100 + n))
    cut = data.draw(st.slices(n))
    numbers = data.draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=40))
    mask = data.draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(any))
    table = torch.tensor(values)
    if values[cut]:
        assert table[index(cut, n)].tolist() == values[cut]
    assert table[index(numbers, n)].tolist() == [values[i] for i in numbers]
    kept = [value for value, keep in zip(values, mask, strict=True) if keep]
    assert table[index(mask, n)].tolist() == kept


@pytest.mark.parametrize("name", NAMES)
def test_one_sample_by_its_number(every, name) -> None:
    data = every[name]
    for i in (-1, np.int64(N - 1), torch.tensor(N - 1)):
        assert data[i]["index"] == data.rows[-1]
    for wrong in (True, np.True_, torch.tensor(True), 1.0, "1", [1], slice(2), None):
        with pytest.raises(DataError, match="expected the number of one sample"):
            data[wrong]
    for wrong in (N, -N - 1):
        with pytest.raises(IndexError) as raised:  # by which Python's `for` ends
            data[wrong]
        assert isinstance(raised.value, RowError)
    assert len(list(data)) == N
    for ask in (getattr(data, "text", None), getattr(data, "captions", None)):
        if ask is not None:
            assert ask(-1) == ask(N - 1)
            for wrong in (mask_of([1]), 1.0, N):
                with pytest.raises(MMCLError):
                    ask(wrong)
    assert row_of(np.int32(-2), 5) == 3


# --- for PyTorch (B5) -----------------------------------------------------------------------------


def as_batch(data, rows: Tensor) -> dict[str, Tensor]:
    """What `data.batch` gives for the samples of these "index" numbers, captions uncut."""
    at = [data.rows.tolist().index(row) for row in rows.tolist()]
    batch = data.batch(at)
    if "caption" in batch:
        batch["caption"] = data.sentences[at, 0]
    if "caption_ko" in batch:
        batch["caption_ko"] = data.korean[at]
    return batch


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["whole", "subset", "random_split", "subset of it"])
def test_a_data_loader_takes_it_as_it_stands(every, name, part) -> None:
    data = every[name]
    of = {
        "whole": data,
        "subset": data.subset([9, 2, 5, 7, 3, 0, 1]),
        "random_split": random_split(data, [7, N - 7], torch.Generator().manual_seed(0))[0],
        "subset of it": random_split(data.subset(range(2, 12)), [7, 3])[0],
    }[part]
    seen: list[int] = []
    for settings_ in ({}, {"shuffle": True, "drop_last": True}):
        batches = list(DataLoader(of, batch_size=3, **settings_))
        sizes = [len(batch["index"]) for batch in batches]
        assert sizes == ([3] * (len(of) // 3) + [len(of) % 3] * (not settings_))[: len(sizes)]
        for batch in batches:
            assert same(batch, as_batch(data, batch["index"]))
        seen = seen or [i for batch in batches for i in batch["index"].tolist()]
    own = data.rows[of.indices] if isinstance(of, Subset) and part == "random_split" else None
    if own is not None:
        assert seen == own.tolist()


@pytest.mark.parametrize("name", ["shapes", "folder"])
def test_worker_processes_give_the_same(every, name) -> None:
    data = every[name]
    (one, other), here = DataLoader(data, batch_size=6, num_workers=2), DataLoader(data, 6)
    assert all(map(same, (one, other), here))
    together = DataLoader(ConcatDataset([data, data.subset([1])]), batch_size=N + 1)
    assert next(iter(together))["index"].tolist() == [*range(N), 1]


class Pairs(Dataset):
    """What most people have: a Dataset of dicts, one sample at a time."""

    def __init__(self, shapes: ShapesCaptions) -> None:
        self.shapes = shapes

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, i: int) -> dict[str, object]:
        return {
            "image": self.shapes.images[i] / 255,
            "caption": self.shapes.sentences[i, 0],
            "weight": 0.5 * i,
        }


def clip(data) -> CLIP:
    torch.manual_seed(0)
    return CLIP(ImageEncoder(size=24, width=32), CaptionEncoder(len(data.tokenizer), width=32))


def test_a_random_split_and_a_plain_dataset_train_and_are_embedded(every) -> None:
    """By whole batches or sample by sample, the method sees the same."""
    shapes = every["shapes"]
    order = [9, 2, 5, 7, 3, 0, 1, 8]
    sources = [
        shapes.subset(order),
        Subset(shapes, order),
        Subset(Subset(shapes, [*order, 4]), range(8)),
        Subset(Pairs(shapes), order),
        Pairs(shapes.subset(order)),
    ]
    losses, vectors = [], []
    for data in sources:
        method = clip(shapes)
        losses.append(fit(method, data, epochs=2, batch_size=4, progress=False)["total"])
        vectors.append(embed_all(method, data, ("image", "caption")))
    for i, like in ((1, 0), (2, 0), (4, 3)):
        assert losses[i] == losses[like]
        assert torch.equal(vectors[i], vectors[like])
    # Captions of single samples have more padding, which changes sums in their last digits.
    assert losses[3] == pytest.approx(losses[0], rel=1e-4)
    whole = Batched(Subset(Pairs(shapes), order))
    batch = whole.batch([1, 0])
    assert batch["index"].tolist() == [2, 9]
    assert batch["weight"].tolist() == [1.0, 4.5]


def test_data_that_cannot_be_used_are_named() -> None:
    class Uneven(Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> dict[str, Tensor]:
            return {"caption": torch.ones(1 + i, dtype=torch.int64)}

    for data, message in (
        (iter([1]), r"must have a length and batch\(indices\)"),
        ([(1, 2)] * 4, "samples that are dicts, .* got tuple"),
        (Uneven(), r"cannot be stacked into a batch .* or the data set a method batch"),
    ):
        with pytest.raises(MMCLError, match=message):
            Batched(data).batch([0, 1])


def test_padding_is_cut_where_all_have_it() -> None:
    captions = torch.tensor([[1, 4, 2, 0, 0], [1, 2, 0, 0, 0]])
    assert trimmed(captions).tolist() == [[1, 4, 2], [1, 2, 0]]


# --- numbers that stay, and data sets that are taken for another (B4) -----------------------------


def own_texts(data: ShapesCaptions, i: int) -> set[str]:
    return {data.text(i, s) for s in range(data.sentences.shape[1])}


def test_captions_of_a_subset_are_those_of_its_pictures() -> None:
    """The reproduction of B4, and a subset of a subset, and random_split."""
    data = ShapesCaptions(40, size=24)
    half = data.subset(range(20, 40))
    few = half.subset([19, 3, 3, 0])
    split = random_split(data, [25, 15], torch.Generator().manual_seed(1))[1]
    for told, part in [
        (data, half), (half, half), (half, few), (few, few), (data, few), (data, split),
        (split, split), (data, Subset(half, [4, 2])),
    ]:  # fmt: skip
        batch = paraphrase(told, view=True)(Batched(part).batch(range(len(part))))
        for row, first, second in zip(
            batch["index"].tolist(), batch["caption"], batch["caption_view"], strict=True
        ):
            assert {data.tokenizer.decode(c) for c in (first, second)} <= own_texts(data, row)
    assert few.batch(range(4))["index"].tolist() == [39, 23, 23, 20]
    assert torch.equal(finder(few)(half.batch([0, 3])), torch.tensor([3, 1]))


def test_captions_of_another_data_set_are_refused(every) -> None:
    data = ShapesCaptions(40, size=24)
    one, other = data.subset(range(20)), data.subset(range(20, 40))
    folder, features = every["folder"], every["features"]
    for told, batch in [
        (one, other.batch([0])),
        (ShapesCaptions(40, size=24, seed=1), data.batch(range(40))),
        (data.with_detail(1), data.batch(range(40))),
        (data, data.with_detail(1).batch(range(40))),
        (data, folder.batch(range(N))),
        (folder, data.batch(range(N))),
        (folder.subset([1]), folder.batch([0])),
    ]:
        with pytest.raises(DataError, match="hand over the data set that the batch is of"):
            paraphrase(told)(batch)
    paraphrase(folder)(features.batch([3, 1]))  # these are its captions
    with pytest.raises(DataError, match="expected a data set with sentences, got PictureFolder"):
        paraphrase(every["pictures"])

    def forget(batch):
        return batch | {"caption": batch["caption"].clamp(max=UNK)}  # all words

    dropped = compose(forget, paraphrase(data))
    with pytest.raises(DataError, match="none of the sentences"):
        dropped(data.batch([0]))


def test_labels_are_those_of_the_sample() -> None:
    data = ShapesCaptions(40, size=24)
    labels = torch.arange(40) + 100
    half = data.subset(range(20, 40))
    split = random_split(data, [25, 15], torch.Generator().manual_seed(1))[1]
    for told, of, part in [
        (data, labels, half),
        (half, labels[20:], half.subset([7, 2])),
        (split, labels[split.indices], split),
    ]:
        batch = with_labels(told, of)(Batched(part).batch(range(len(part))))
        assert torch.equal(batch["label"], batch["index"] + 100)
    train, test = Emoji("train", size=8), Emoji("test", size=8)
    numbers = torch.arange(len(train)) + 7
    told = with_labels(train, numbers)(train.batch([5, 1]))["label"]
    assert torch.equal(told, numbers[[5, 1]])
    for told, of, batch in [
        (half, labels[20:], data.batch([0])),
        (train, numbers, test.batch(range(20))),
    ]:
        with pytest.raises(DataError, match="no sample with the index"):
            with_labels(told, of)(batch)
    with pytest.raises(ShapeError, match="one for each of the 20 samples, got 40"):
        with_labels(half, labels)


# --- to other processes (10) ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_subset_takes_its_own_rows_along(every, name) -> None:
    data = every[name]
    whole, one = (len(pickle.dumps(each)) for each in (data, data.subset([3])))
    copy = pickle.loads(pickle.dumps(data.subset([3])))
    assert same(copy.batch([0]), data.batch([3]))
    assert one < whole
    if name in ("shapes", "no tags"):
        assert one < whole / 2
