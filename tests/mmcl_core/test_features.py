"""Frozen features: computed once, kept whole, and trained on by methods that do not know it."""

import functools
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import mmcl_core.features as module
from mmcl_book.experiments.drawn_folder import draw_folder
from mmcl_core.cli.registry import METHODS
from mmcl_core.data import CaptionFolder
from mmcl_core.data.augment import paraphrase
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.errors import DataError, MissingModalityError, MMCLError, ShapeError
from mmcl_core.evaluation import embed_all
from mmcl_core.features import FeatureCaptions, FeatureEncoder, cached_features, drop_features
from mmcl_core.methods import CLIP, FDT, GMC
from mmcl_core.training import fit
from tests import ROOT

N = 13


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("drawn") / "root", N, size=32, objects=(1, 1))


@pytest.fixture
def data(root):
    return CaptionFolder(root, size=16)


class Counting:
    """Means over quarters of a picture, [B, 12] or [B, 4, 3]; stops after so many pictures."""

    def __init__(self, tokens: bool, stop: int = 10**9) -> None:
        self.tokens, self.stop, self.asked = tokens, stop, []

    def __call__(self, pictures):
        if sum(self.asked) + len(pictures) > self.stop:
            raise KeyboardInterrupt
        self.asked.append(len(pictures))
        grid = nn.functional.adaptive_avg_pool2d(pictures, 2).flatten(2)
        return grid.transpose(1, 2) if self.tokens else grid.flatten(1)


def get(data, encode, folder, name="means", **settings):
    return cached_features(
        data, encode, folder, **{"name": name, "batch_size": 5, "progress": False} | settings
    )


@pytest.mark.parametrize("tokens", [False, True])
def test_features_are_computed_once_and_are_those_of_the_encoder(data, tmp_path, tokens) -> None:
    encode = Counting(tokens)
    features = get(data, encode, tmp_path / "cache")
    assert features.shape == ((N, 4, 3) if tokens else (N, 12))
    assert features.dtype == np.float16
    assert isinstance(features, np.memmap)
    assert not features.flags.writeable
    for i in range(N):
        alone = Counting(tokens)(data[i]["image"][None])[0]
        assert np.allclose(features[i], alone.numpy(), atol=1e-3)
    assert encode.asked == [2, 5, 5, 3]  # the first and the last, then all
    again = get(data, encode, tmp_path / "cache")
    assert encode.asked == [2, 5, 5, 3, 2]
    assert np.array_equal(features, again)
    (file,) = (tmp_path / "cache").iterdir()
    assert file.name.startswith("means-")
    assert file.suffix == ".npy"


def test_a_stopped_call_is_taken_up(data, tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        get(data, Counting(False, stop=2 + 10), tmp_path)
    assert not list(tmp_path.glob("*.npy"))
    encode = Counting(False)
    features = get(data, encode, tmp_path)
    assert encode.asked == [2, 3]
    assert np.array_equal(features, get(data, Counting(False), tmp_path / "whole"))
    assert len(list(tmp_path.glob("means-*"))) == 1


KILLED = """
import os, sys
from mmcl_core.data import CaptionFolder
from mmcl_core.features import cached_features

asked = 0

def means(pictures):
    global asked
    asked += len(pictures)
    if asked > 2 + 10:
        os.kill(os.getpid(), 9)
    return pictures.unflatten(2, (2, -1)).unflatten(4, (2, -1)).mean((3, 5)).flatten(1)

data = CaptionFolder(sys.argv[1], size=16)
cached_features(data, means, sys.argv[2], name="means", batch_size=5, progress=False)
"""


def test_a_killed_process_is_taken_up(root, data, tmp_path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(root), str(tmp_path)], cwd=ROOT)
    assert done.returncode == -9
    encode = Counting(False)
    features = get(data, encode, tmp_path)
    assert encode.asked == [2, 3]
    assert np.allclose(features, get(data, Counting(False), tmp_path / "whole"), atol=1e-6)


@pytest.mark.parametrize("damage", [b"", b"short", "half"])
def test_what_cannot_be_relied_on_is_computed_anew(data, tmp_path, damage) -> None:
    with pytest.raises(KeyboardInterrupt):
        get(data, Counting(False, stop=2 + 10), tmp_path)
    part = next(tmp_path.glob("*.part"))
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2] if damage == "half" else damage)
    encode = Counting(False)
    assert np.array_equal(get(data, encode, tmp_path), get(data, encode, tmp_path / "whole"))
    assert sum(encode.asked) == 2 * (2 + N) - (4 if damage == "half" else 0)


def test_a_subset_is_not_encoded_again(root, data, tmp_path) -> None:
    """Nor are the pictures in another order, or copies of them under other names."""
    first = get(data, Counting(False), tmp_path)
    encode = Counting(False)
    part = get(data.subset(range(3, 7)), encode, tmp_path)
    assert isinstance(part, np.memmap)
    assert np.array_equal(part, first[3:7])
    swapped = get(data.subset([4, 2, 2, 9]), encode, tmp_path)
    assert not isinstance(swapped, np.memmap)
    assert not swapped.flags.writeable
    assert np.array_equal(swapped, first[[4, 2, 2, 9]])
    assert len(get(data.subset([0]), encode, tmp_path)) == 1
    shutil.copytree(root, tmp_path / "copy")
    assert np.array_equal(get(CaptionFolder(tmp_path / "copy", size=16), encode, tmp_path), first)
    assert encode.asked == [2, 2, 1, 2]  # the first and the last, each time


def test_the_whole_encodes_what_its_parts_have_not(data, tmp_path) -> None:
    for rows in ([5, 2, 7], [1, 2]):
        get(data.subset(rows), Counting(False), tmp_path)
    encode = Counting(False)
    whole = get(data, encode, tmp_path)
    assert encode.asked == [2, 5, 4]
    assert np.array_equal(whole, get(data, Counting(False), tmp_path / "anew"))
    assert len(list(tmp_path.glob("*.npy"))) == 3


def test_other_sizes_types_and_names_have_files_of_their_own(root, data, tmp_path) -> None:
    get(data, Counting(False), tmp_path)
    get(CaptionFolder(root, size=8), Counting(False), tmp_path)
    get(data, Counting(False), tmp_path, "other")
    exact = get(data, Counting(False), tmp_path, dtype="float32")
    assert exact.dtype == np.float32
    assert len(list(tmp_path.iterdir())) == 4
    alone = Counting(False)(data[3]["image"][None])[0].numpy()
    assert np.allclose(exact[3], alone, atol=1e-6)


def test_a_file_of_other_pictures_or_of_another_width_is_noticed(data, tmp_path) -> None:
    get(data, Counting(False), tmp_path)
    with pytest.raises(DataError, match=r"expected .*'means' gives, \[24\] for each.* other feat"):
        get(data, lambda x: Counting(False)(x).repeat(1, 2), tmp_path)
    (file,) = tmp_path.iterdir()
    rows = np.load(file)
    rows["row"] = rows["row"][::-1].copy()  # as if its pictures were others
    np.save(file, rows)
    with pytest.raises(DataError, match="Has the encoder changed"):
        get(data, Counting(False), tmp_path)


def test_a_file_that_was_cut_short_is_noticed(data, tmp_path) -> None:
    get(data, Counting(False), tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DataError, match=r"means-.*\.npy: expected what .* or remove the file"):
        get(data, Counting(False), tmp_path)


@pytest.mark.parametrize("scale", [1e6, 1e-6])
def test_what_does_not_fit_into_float16(data, tmp_path, scale) -> None:
    with pytest.raises(ShapeError, match=r"do not fit into float16; pass dtype='float32'"):
        get(data, lambda x: scale * Counting(False)(x), tmp_path)
    assert len(get(data, lambda x: scale * Counting(False)(x), tmp_path, dtype="float32")) == N


def test_a_picture_that_changed_is_noticed(tmp_path) -> None:
    root = draw_folder(tmp_path / "root", 4, size=32)
    data = CaptionFolder(root, size=16)
    before = get(data, Counting(False), tmp_path / "cache")
    data.paths[2].write_bytes(data.paths[1].read_bytes())
    after = get(data, Counting(False), tmp_path / "cache")
    assert np.array_equal(after[2], after[1])
    assert not np.array_equal(before[2], after[2])


@pytest.mark.parametrize("other", [lambda x: 2 * Counting(False)(x), Counting(True)])
def test_another_encoder_of_the_same_name_is_noticed(data, tmp_path, other) -> None:
    get(data, Counting(False), tmp_path)
    with pytest.raises(DataError, match=r"Has the encoder changed\? Give it another name"):
        get(data, other, tmp_path)


def test_a_module_is_asked_in_eval_mode_without_gradients(data, tmp_path) -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 16 * 16, 4))
    encoder[0].eval()
    get(data, encoder, tmp_path)
    assert [part.training for part in encoder] == [False, True, True]
    assert encoder.training
    assert encoder[2].weight.grad is None


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda x: x, r"got \[2, 3, 16, 16\]"),
        (lambda x: x.flatten(1)[:1], r"got \[1, 768\]"),
        (lambda x: None, "got NoneType"),
        (lambda x: x.flatten(1).long(), "expected floats"),
        (lambda x: x.flatten(1) / 0, "NaN or infinity"),
        (lambda x: x.flatten(1)[:, : 10 * len(x)], r"expected \[20\] for each picture"),
    ],
)
def test_what_is_no_feature(data, tmp_path, encode, message) -> None:
    with pytest.raises(ShapeError, match=message):
        get(data, encode, tmp_path)
    assert not list(tmp_path.glob("*.npy"))


def test_an_encoder_in_half_precision_that_draws_leaves_the_random_state(data, tmp_path) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(3, 4)

        def forward(self, pictures):
            torch.rand(1)
            return self.map(pictures.mean((2, 3)))

    encode = Small().bfloat16()
    before = torch.get_rng_state()
    features = get(data, encode, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert encode.training
    expected = encode.float()(torch.stack([data[i]["image"] for i in range(N)])).detach()
    assert np.allclose(features, expected.numpy(), atol=0.02)


@pytest.mark.parametrize("settings", [{"name": "a/b"}, {"name": ""}, {"batch_size": 0}])
def test_settings_that_cannot_be(data, tmp_path, settings) -> None:
    with pytest.raises(MMCLError, match=r"expected a name of letters|batch_size must be .*got 0"):
        get(data, Counting(False), tmp_path, **settings)


# --- as data ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [False, True])
def test_a_batch_has_the_captions_of_the_folder(data, tmp_path, tokens) -> None:
    features = get(data, Counting(tokens), tmp_path)
    both = FeatureCaptions(data, features)
    batch, pictures = both.batch([4, 0]), data.batch([4, 0])
    assert torch.equal(batch["image"], torch.from_numpy(features[[4, 0]]))
    assert torch.equal(batch["caption"], pictures["caption"])
    assert torch.equal(batch["index"], pictures["index"])
    assert len(both) == N
    assert both.captions(4) == data.captions(4)
    assert torch.equal(both[-1]["image"], torch.from_numpy(features[N - 1].copy()))
    part = both.subset(torch.tensor([4, 0]))
    assert torch.equal(part.batch([0, 1])["image"], batch["image"])
    assert torch.equal(part.sentences, data.sentences[[4, 0]])
    assert part.paths == [data.paths[4], data.paths[0]]
    assert part.features is both.features  # nothing is copied
    again = part.subset([1])
    assert torch.equal(again[0]["image"], batch["image"][1])
    assert again.captions(0) == data.captions(0)
    with pytest.raises(IndexError):
        both[N]
    with pytest.raises(ShapeError):
        both.batch([])
    with pytest.raises(ShapeError, match="one row for each picture"):
        FeatureCaptions(data, features[1:])


# --- as an encoder ------------------------------------------------------------------------------


def test_one_vector_is_one_token() -> None:
    torch.manual_seed(0)
    encoder = FeatureEncoder(12, width=8).eval()
    x = torch.randn(3, 12)
    one, tokens = encoder(x), encoder(x[:, None])
    assert one.tokens.shape == (3, 1, 8)
    assert one.mask.all()
    assert all(map(torch.equal, one, tokens))
    assert torch.equal(one.pooled, one.tokens[:, 0])


def test_without_blocks_it_is_a_linear_map_of_each_token() -> None:
    torch.manual_seed(0)
    encoder, x = FeatureEncoder(5, width=8, depth=0), torch.randn(2, 3, 5)
    norm, linear = encoder.map
    for b in range(2):
        for n in range(3):
            centred = x[b, n] - x[b, n].mean()
            scaled = centred / (centred.pow(2).mean() + norm.eps).sqrt()
            y = linear.weight @ scaled + linear.bias
            y = (y - y.mean()) / (y.var(unbiased=False) + encoder.norm.eps).sqrt()
            assert torch.allclose(encoder(x).tokens[b, n], y, atol=1e-5)
    assert torch.equal(encoder(x).pooled, encoder(x).tokens.amax(dim=1))


def test_pooled_by_a_mean_as_by_a_maximum() -> None:
    torch.manual_seed(0)
    encoder, x = FeatureEncoder(5, width=8, pool="mean"), torch.randn(2, 3, 5)
    assert torch.equal(encoder(x).pooled, encoder(x).tokens.mean(1))
    with pytest.raises(MMCLError, match="pool must be 'max' or 'mean'; got 'cls'"):
        FeatureEncoder(5, pool="cls")


@pytest.mark.parametrize("x", [torch.zeros(2, 4), torch.zeros(2, 3, 4), torch.zeros(5)])
def test_features_of_another_width(x) -> None:
    with pytest.raises(ShapeError, match=r"expected features \[B, 5\] or \[B, N, 5\]"):
        FeatureEncoder(5)(x)


@pytest.mark.parametrize("settings", [{"features": 0}, {"width": 0}, {"depth": -1}])
def test_encoders_that_cannot_be(settings) -> None:
    with pytest.raises(MMCLError):
        FeatureEncoder(**{"features": 5} | settings)


# --- dropout, and second views --------------------------------------------------------------------


def test_dropout_of_tokens_leaves_others_as_they_are_in_their_order() -> None:
    torch.manual_seed(0)
    x = torch.arange(1.0, 61).view(2, 10, 3)
    batch = drop_features(tokens=0.3, views=("image", "image_view"))({"image": x, "index": x})
    for name in ("image", "image_view"):
        assert batch[name].shape == (2, 7, 3)
        for kept, all_of in zip(batch[name], x, strict=True):
            where = [int((all_of == token).all(1).nonzero()) for token in kept]
            assert where == sorted(set(where))
    assert not torch.equal(batch["image"], batch["image_view"])
    assert batch["index"] is x
    assert drop_features(tokens=0.99)({"image": x})["image"].shape == (2, 1, 3)
    assert torch.equal(drop_features()({"image": x})["image"], x)


@pytest.mark.parametrize("shape", [(400, 50), (40, 10, 50)])
def test_dropout_of_values_keeps_their_mean(shape) -> None:
    torch.manual_seed(0)
    x = torch.ones(shape)
    view = drop_features(values=0.2, views=("image_view",))({"image": x})
    assert torch.equal(view["image"], x)
    assert set(view["image_view"].unique().tolist()) == {0, 1.25}
    assert abs(view["image_view"].mean() - 1) < 0.02


@pytest.mark.parametrize(
    ("settings", "batch", "error"),
    [
        ({"tokens": 1.0}, {}, MMCLError),
        ({"values": -0.1}, {}, MMCLError),
        ({"views": ()}, {}, MMCLError),
        ({"views": ("caption",)}, {}, MMCLError),
        ({}, {}, MissingModalityError),
        ({}, {"image": torch.zeros(2, 3, 4, 4)}, ShapeError),
        ({}, {"image": torch.zeros(2, 3, dtype=torch.int64)}, ShapeError),
    ],
)
def test_dropout_that_cannot_be(settings, batch, error) -> None:
    with pytest.raises(error):
        drop_features(**settings)(batch)


@pytest.mark.parametrize("method", ["clip", "siglip", "moco", "mct", "fdt", "gmc"])
@pytest.mark.parametrize("tokens", [False, True])
def test_every_recipe_of_the_command_line_takes_features(data, tmp_path, method, tokens) -> None:
    features = get(data, Counting(tokens), tmp_path)
    both = FeatureCaptions(data, features, pool="max", dropout=0.2)
    recipe = METHODS[method].recipe(both, 6, 4)
    settings = {"epochs": 2, "batch_size": 6, "augment": recipe.augment, "progress": False}
    history = fit(recipe.method, both, **settings)
    assert all(np.isfinite(history.steps["total"]))
    assert embed_all(recipe.method, both).shape[0] == N


@pytest.mark.parametrize("kind", ["CLIP", "FDT", "GMC"])
@pytest.mark.parametrize("tokens", [False, True])
def test_methods_train_on_features_as_on_pictures(data, tmp_path, kind, tokens) -> None:
    both = FeatureCaptions(data, get(data, Counting(tokens), tmp_path))
    torch.manual_seed(0)
    image = FeatureEncoder(both.features.shape[-1], width=32)
    caption = CaptionEncoder(len(data.tokenizer), width=32)
    if kind == "GMC":
        method = GMC({"image": image, "caption": caption})
    else:
        method = {"CLIP": CLIP, "FDT": FDT}[kind](image, caption)
    history = fit(method, both, epochs=2, batch_size=6, augment=paraphrase(both), progress=False)
    assert all(np.isfinite(history.steps["total"]))
    assert embed_all(method, both).shape[0] == N


def test_the_frozen_encoder_of_a_trained_method(data, tmp_path) -> None:
    """Its tokens, cached, are those that it computes; the encoder does not train along."""
    torch.manual_seed(0)
    encoder = ImageEncoder(size=16, width=32)
    features = get(data, lambda x: encoder(x).tokens, tmp_path)
    with torch.no_grad():
        tokens = encoder(data.batch(range(N))["image"]).tokens
    assert np.allclose(features, tokens.numpy(), atol=1e-2)
    assert module.FeatureCaptions(data, features)[0]["image"].requires_grad is False


# --- the encoder's weights (B16) ------------------------------------------------------------------


class Holder:
    """An encoder inside of something that is no module."""

    def __init__(self, inside: nn.Module) -> None:
        self.inside = inside

    def encode(self, x):
        return self.inside(x)


def wrapped(encoder: nn.Module) -> dict:
    def inner(x):
        return encoder(x)

    return {
        "module": encoder,
        "lambda": lambda x: encoder(x),
        "function of a function": lambda x: inner(x),
        "method": encoder.forward,
        "partial": functools.partial(lambda scale, x: scale * encoder(x), 1.0),
        "method of a holder": Holder(encoder).encode,
    }


@pytest.mark.parametrize("how", wrapped(nn.Identity()))
def test_other_weights_are_other_features(data, tmp_path, how) -> None:
    """Features of about 1e-4, and weights that change by one part in a million."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with torch.no_grad():
        for p in encoder.parameters():
            p *= 1e-4
    first = get(data, wrapped(encoder)[how], tmp_path, dtype="float32").copy()
    assert np.array_equal(get(data, wrapped(encoder)[how], tmp_path, dtype="float32"), first)
    with torch.no_grad():
        encoder[1].weight *= 1 + 1e-6
    second = get(data, wrapped(encoder)[how], tmp_path, dtype="float32")
    assert len(list(tmp_path.glob("*.npy"))) == 2
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("change", [1.001, -1.0])
def test_small_features_of_a_function_that_changed(data, tmp_path, change) -> None:
    """What a function holds in numbers is seen by what it gives, however small that is."""
    get(data, lambda x: 1e-4 * Counting(False)(x), tmp_path, dtype="float32")
    with pytest.raises(DataError, match="Has the encoder changed"):
        get(data, lambda x: change * 1e-4 * Counting(False)(x), tmp_path, dtype="float32")


# --- to other processes (10) ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array,
        lambda array: np.asarray(array),  # no memmap by name
        lambda array: array[::-1],
        lambda array: array[:, 100:50_100:2],
        lambda array: array.reshape(N, 100, 1000).transpose(0, 2, 1),
    ],
)
def test_a_file_on_disk_travels_as_its_path(data, tmp_path, view) -> None:
    np.save(tmp_path / "f.npy", np.random.default_rng(0).random((N, 100_000), np.float32))
    features = view(np.load(tmp_path / "f.npy", mmap_mode="r"))
    both = FeatureCaptions(data, features)
    without = len(pickle.dumps(data))
    for each in (both, both.subset([3]), both.subset([7, 3, 5]).subset([1])):
        sent = pickle.dumps(each)
        assert len(sent) < without + 5_000
        arrived = pickle.loads(sent)
        assert torch.equal(arrived.batch([0])["image"], each.batch([0])["image"])
        assert pickle.loads(pickle.dumps(arrived)).batch([0])["index"] == each.rows[0]


def test_what_is_in_no_file_travels_as_the_own_rows(data, tmp_path) -> None:
    features = np.random.default_rng(0).random((N, 100_000), np.float32)
    np.save(tmp_path / "f.npy", features)
    changed = np.load(tmp_path / "f.npy", mmap_mode="c")  # written to memory alone
    changed[3] = 7
    for array in (features, changed):
        both = FeatureCaptions(data, array)
        part = both.subset([3, 1])
        sent = pickle.dumps(part)
        assert len(sent) < 2.2 * features[0].nbytes + len(pickle.dumps(data))
        arrived = pickle.loads(sent)
        for name, value in part.batch([0, 1]).items():
            assert torch.equal(arrived.batch([0, 1])[name], value)
        assert part.features is both.features  # here nothing was copied


def test_spawned_workers_read_the_file(data, tmp_path) -> None:
    np.save(tmp_path / "f.npy", np.random.default_rng(0).random((N, 8), np.float32))
    both = FeatureCaptions(data, np.load(tmp_path / "f.npy", mmap_mode="r"))
    loader = DataLoader(both, batch_size=5, num_workers=1, multiprocessing_context="spawn")
    image = torch.cat([batch["image"] for batch in loader])
    assert torch.equal(image, both.batch(range(N))["image"])
