"""Which captions say the same: told by the text, and not by ids that stand for many texts (2)."""

import warnings

import pytest
import torch
from PIL import Image

from mmcl_core.data import CaptionFolder, WordTokenizer
from mmcl_core.data.augment import paraphrase
from mmcl_core.data.groups import (
    caption_codes,
    caption_groups,
    codes_of,
    first_captions,
    same_text,
    text_codes,
)
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.evaluation import recall_at_k
from mmcl_core.evaluation.summary import recall
from mmcl_core.features import FeatureCaptions
from mmcl_core.losses import clip_loss, siglip_loss
from mmcl_core.methods import CLIP, MCT, SigLIP

DOGS = ("corgi", "beagle", "poodle", "husky", "collie")
PLACES = ("sofa", "lawn", "beach", "bench")
TEXTS = [f"a {dog} at the {place}" for dog in DOGS for place in PLACES]


@pytest.fixture
def breeds(tmp_path):
    """20 pictures; the same two texts for each, which differ from picture to picture."""
    (tmp_path / "Images").mkdir()
    rows = ["image,caption"]
    for i, text in enumerate(TEXTS):
        Image.new("RGB", (16, 16), (10 * i, 255 - 10 * i, 90)).save(tmp_path / f"Images/{i:02}.png")
        rows += [f"{i:02}.png,{text}", f"{i:02}.png,{text} again"]
    (tmp_path / "captions.txt").write_text("\n".join(rows))
    return tmp_path


def read(root, **settings) -> CaptionFolder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CaptionFolder(root, size=16, **settings)


UNKNOWN = {"tokenizer": WordTokenizer(["a", "at", "the", "again"])}
CUT = {"max_length": 3, "truncate": True}
KNOWN: dict = {}


def test_unknown_words_are_not_one_text() -> None:
    """The reproduction: 12 texts were 1 group, and random vectors had a recall of 1."""
    captions = WordTokenizer(["a", "at", "the"]).encode_batch(TEXTS)
    groups = caption_groups(captions)
    assert len(groups.unique()) == len(TEXTS)
    torch.manual_seed(0)
    found = [
        recall_at_k(torch.randn(20, 8), torch.randn(20, 8), 1, groups=groups) for _ in range(50)
    ]
    assert abs(sum(found) / 50 - 1 / 20) < 0.03


@pytest.mark.parametrize("settings", [UNKNOWN, CUT, KNOWN], ids=["unknown", "cut", "known"])
def test_a_folder_knows_its_texts(breeds, settings) -> None:
    data = read(breeds, sentences=2, **settings)
    if settings:
        assert len(data.sentences[:, 0].unique(dim=0)) == 1  # the ids are all the same
    groups = first_captions(data)
    assert len(groups.unique()) == len(TEXTS)
    assert torch.equal(data.texts[:, 0], text_codes(TEXTS))
    twice = data.subset([3, 5, 3])
    assert first_captions(twice)[0] == first_captions(twice)[2] != first_captions(twice)[1]
    method = CLIP(ImageEncoder(size=16, width=32), CaptionEncoder(len(data.tokenizer), width=32))
    measured = recall(method, data)
    assert measured["chance@1"] == pytest.approx(1 / 20)
    if settings:  # captions that are all the same cannot find their picture
        assert measured["image_to_caption@1"] == 0
    features = FeatureCaptions(data, torch.rand(20, 4).numpy())
    assert torch.equal(first_captions(features), groups)
    assert torch.equal(codes_of(features.batch([4, 1])), data.texts[[4, 1], 0])


def test_words_of_a_text_in_other_letters_and_signs_are_the_same_text(breeds) -> None:
    table = breeds / "captions.txt"
    table.write_text(f"{table.read_text()}\n00.png,A CORGI at the sofa!")
    data = read(breeds, sentences=3, **UNKNOWN)
    assert data.texts[0, 2] == data.texts[0, 0]


def test_it_is_told_which_words_are_unknown(breeds) -> None:
    with pytest.warns(UserWarning, match=r"9 words are not known to the tokenizer \(beach, ") as w:
        CaptionFolder(breeds, **UNKNOWN)
    assert len(w) == 1
    assert "the first captions of 20 of 20 pictures hold some" in str(w[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = CaptionFolder(breeds)
        CaptionFolder(breeds, tokenizer=data.tokenizer)


@pytest.mark.parametrize("settings", [UNKNOWN, CUT, KNOWN], ids=["unknown", "cut", "known"])
@pytest.mark.parametrize("kind", [CLIP, SigLIP])
def test_losses_take_the_texts(breeds, settings, kind) -> None:
    """Two of the five are the same text; no others, whatever their ids."""
    data = read(breeds, **settings)
    torch.manual_seed(0)
    method = kind(ImageEncoder(size=16, width=32), CaptionEncoder(len(data.tokenizer), width=32))
    batch = data.batch([2, 5, 2, 9, 0])
    image, caption = (method.embed({name: batch[name]}) for name in ("image", "caption"))
    groups = torch.tensor([0, 1, 0, 2, 3])
    if kind is CLIP:
        expected = clip_loss(image, caption, method.logit_scale, groups=groups)
    else:
        expected = siglip_loss(image, caption, method.logit_scale, method.bias, groups=groups)
    torch.testing.assert_close(method.loss(batch)["total"], expected)


def test_queues_hold_the_texts(breeds) -> None:
    data = read(breeds, sentences=2, **UNKNOWN)
    torch.manual_seed(0)
    encoders = ImageEncoder(size=16, width=32), CaptionEncoder(len(data.tokenizer), width=32)
    method = MCT(*encoders, weights={"image": 0}, queue=4, dim=8)
    augment = paraphrase(data, view=True)
    batch = augment(data.batch([7, 2, 11, 2]))
    method.warm_start([batch])
    labels = method.queues["inter_image"].labels[:, 0]
    assert torch.equal(labels, batch["text"])
    told = torch.tensor([7, 2, 11, 2])
    for name in ("text", "text_view"):
        assert (batch[name][:, None] == data.texts[told]).any(1).all()
    assert (batch["text"] != batch["text_view"]).all()


def test_a_code_of_zero_equals_nothing() -> None:
    captions = torch.tensor([[1, 4, 2], [1, 3, 2], [1, 3, 2], [1, 4, 2]])
    codes = caption_codes(captions)
    assert codes[[1, 2]].tolist() == [0, 0]
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[[[0], [3]], [0, 3]] = True
    assert torch.equal(same_text(codes, codes), expected)
    groups = caption_groups(captions)
    assert groups[0] == groups[3]
    assert len(groups.unique()) == 3
    assert torch.equal(caption_groups(codes), groups)
    assert torch.equal(codes_of({"caption": captions}), codes)
    assert codes_of({"caption": captions, "text": torch.arange(4)}).tolist() == [0, 1, 2, 3]


def test_codes_of_texts_are_the_same_everywhere() -> None:
    assert len(text_codes(TEXTS).unique()) == len(TEXTS)
    # Of BLAKE2b, eight bytes, little-endian: by another implementation (`b2sum -l 64`).
    assert text_codes(["a red star"]).tolist() == [-1334348713213267625]
    assert text_codes([]).shape == (0,)
