"""Emoji: what is shipped is whole, the splits part it, and batches are those of the other data."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, random_split

from mmcl_core.batches import Batched
from mmcl_core.data import Emoji, ShapesCaptions, emoji
from mmcl_core.data.augment import compose, composite, crop, paraphrase, with_labels
from mmcl_core.data.groups import caption_groups, codes_of, first_captions
from mmcl_core.data.pictures import premultiplied
from mmcl_core.encoders import CaptionEncoder, ImageEncoder, TagEncoder
from mmcl_core.errors import DataError, MissingModalityError, MMCLError, ShapeError
from mmcl_core.methods import CLIP, GMC
from mmcl_core.training import fit

TABLE = json.loads((emoji.FOLDER / "emoji.json").read_text(encoding="utf-8"))
CONCEPTS = TABLE["concepts"]
PARTS = ("train", "validation", "test")
COUNTS = {"noto": 1402, "noto_v1": 1066, "fluent": 1401, "emojione": 1063, "twemoji": 1402}


@pytest.fixture(scope="module")
def everything() -> Emoji:
    return Emoji("all", language="both")


@pytest.fixture(scope="module")
def by_concept() -> dict[str, Emoji]:
    return {part: Emoji(part, split="concept") for part in PARTS}


# --- what is shipped ------------------------------------------------------------------------------


def test_each_style_draws_most_concepts(everything: Emoji) -> None:
    assert len(everything) == sum(COUNTS.values())
    counts = Counter(emoji.STYLES[i] for i in everything.style.tolist())
    assert counts == COUNTS
    drawn = Counter(everything.concept.tolist())
    assert sorted(drawn) == list(range(len(CONCEPTS)))
    assert min(drawn.values()) == 3
    assert everything.images.dtype == torch.uint8
    assert everything.images.shape[1:] == (4, 48, 48)
    # Nothing but a clear ground is missing.
    assert (everything.images[:, 3].flatten(1) > 0).float().mean(1).min() > 0.03


def test_the_files_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in emoji.FOLDER.iterdir()}
    assert sizes.keys() == {"emoji.json", *(f"{style}.webp" for style in emoji.STYLES)}
    assert sum(sizes.values()) < 8_000_000


def test_an_atlas_has_its_pictures_in_rows(everything: Emoji) -> None:
    atlas = np.asarray(Image.open(emoji.FOLDER / "fluent.webp").convert("RGBA"))
    for concept in (0, 1, 39, 40, 1401):
        row, column = divmod(concept, 40)
        cell = atlas[48 * row : 48 * row + 48, 48 * column : 48 * column + 48]
        where = (everything.concept == concept) & (everything.style == 2)
        ours = everything.images[where][0].permute(1, 2, 0).numpy()
        assert (ours == cell).all()


def test_no_two_concepts_have_one_name(everything: Emoji) -> None:
    groups = first_captions(everything)
    korean = caption_groups(everything.korean)
    # Each number of a name goes with one number of a concept, and the other way round.
    for of in (groups, korean):
        pairs = set(zip(of.tolist(), everything.concept.tolist(), strict=True))
        assert len(pairs) == len(CONCEPTS) == len(set(of.tolist()))
    texts = {everything.text(i) for i in range(len(everything))}
    assert len(texts) == len(CONCEPTS)
    assert not any("<unk>" in text for text in texts)


@pytest.mark.parametrize("word", ["flag:", "skin tone", "keycap", "family", "facing right"])
def test_what_is_left_out(word: str) -> None:
    assert not [of["en"][0] for of in CONCEPTS if word in of["en"][0].lower()]


def test_a_man_and_a_woman_are_left_out_where_there_is_a_person() -> None:
    names = {of["en"][0] for of in CONCEPTS}
    assert {"artist", "person running", "man", "woman", "red heart"} <= names
    assert not {"man artist", "woman artist", "man running", "mermaid"} & names


def test_names_are_those_of_the_emoji(everything: Emoji) -> None:
    i = everything.characters.index("🐶")
    assert everything.names["en"][i] == "dog face"
    assert everything.names["ko"][i] == "강아지 얼굴"
    row = int((everything.concept == i).nonzero()[0])
    assert everything.text(row) == "dog face"
    assert everything.tokenizer_ko.decode(everything.korean[row]) == "강아지 얼굴"
    assert everything.group_names[everything.group[row]] == "animals-nature"
    assert everything.subgroup_names[everything.subgroup[row]] == "animal-mammal"
    assert "animal" in tags_of(everything, row)


def tags_of(data: Emoji, i: int) -> list[str]:
    return [data.tag_names[t] for t in data.tags[i].nonzero().flatten().tolist()]


def test_tags_are_the_keywords_of_enough_concepts(everything: Emoji) -> None:
    counts = Counter(tag for of in CONCEPTS for tag in set(of["en"][1:]))
    assert everything.tag_names == tuple(sorted(t for t, n in counts.items() if n >= 5))
    for i in (0, 1000, 6000):
        keywords = set(CONCEPTS[everything.concept[i]]["en"][1:])
        assert tags_of(everything, i) == sorted(keywords & set(everything.tag_names))
    fewer = Emoji("test", min_concepts=20)
    assert fewer.tags.shape == (1402, len(fewer.tag_names))
    assert len(fewer.tag_names) < 50


# --- the splits -----------------------------------------------------------------------------------


def test_no_style_is_in_two_parts_of_the_split_by_style() -> None:
    styles = {part: set(Emoji(part).style.tolist()) for part in PARTS}
    assert styles == {"train": {0, 1, 2}, "validation": {3}, "test": {4}}


def test_no_concept_is_in_two_parts_of_the_split_by_concept(by_concept: dict[str, Emoji]) -> None:
    concepts = {part: set(data.concept.tolist()) for part, data in by_concept.items()}
    assert sorted(c for part in concepts.values() for c in part) == list(range(len(CONCEPTS)))
    shares = {part: len(of) / len(CONCEPTS) for part, of in concepts.items()}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.02)
    bases = {part: {CONCEPTS[c]["base"] for c in of} for part, of in concepts.items()}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not bases[one] & bases[other]
    assert len({of["base"] for of in CONCEPTS if "arrow" in of["en"][0]}) < 20


@pytest.mark.parametrize("split", ["style", "concept"])
def test_the_parts_are_all_there_is(split: str, everything: Emoji) -> None:
    parts = [Emoji(part, split=split) for part in PARTS]
    rows = torch.cat([part.rows for part in parts])
    assert sorted(rows.tolist()) == sorted(everything.rows.tolist())
    assert len(set(rows.tolist())) == len(everything)
    # One vocabulary, so that what one part trains the other can ask.
    assert {part.tokenizer for part in parts} == {everything.tokenizer}
    assert {part.tag_names for part in parts} == {everything.tag_names}


def test_styles_can_be_chosen(by_concept: dict[str, Emoji]) -> None:
    data = Emoji("test", split="concept", styles=("twemoji", "noto"))
    assert set(data.style.tolist()) == {0, 4}
    assert set(data.concept.tolist()) == set(by_concept["test"].concept.tolist())
    whole = by_concept["test"]
    same = (whole.rows[:, None] == data.rows[0]).any(1)
    assert torch.equal(whole.images[same][0], data.images[0])


def test_it_is_the_same_each_time() -> None:
    one = Emoji("train")
    torch.rand(3)  # of which nothing depends
    other = Emoji("train")
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.sentences, other.sentences)
    assert torch.equal(one.rows, other.rows)


# --- as a data set --------------------------------------------------------------------------------


def test_a_batch_is_that_of_the_other_data() -> None:
    data, scenes = Emoji("test"), ShapesCaptions(8)
    batch, other = data.batch([3, 0, -1]), scenes.batch([3, 0, -1])
    assert batch.keys() == other.keys()
    for name, value in batch.items():
        assert value.dtype == other[name].dtype
        assert value.ndim == other[name].ndim
        assert len(value) == 3
    assert batch["index"].tolist() == data.rows[[3, 0, -1]].tolist()
    assert 0 <= float(batch["image"].min()) < float(batch["image"].max()) <= 1
    assert batch["caption"].shape[1] < data.sentences.shape[2]  # trimmed
    single = data[3]
    for name in ("image", "tags", "index"):
        assert torch.equal(single[name], batch[name][0])
    loaded = next(iter(DataLoader(data, batch_size=4)))
    assert torch.equal(loaded["image"], data.batch(range(4))["image"])


def test_parts_keep_their_index_and_all_that_goes_with_it(everything: Emoji) -> None:
    part = everything.subset(everything.group == 1).subset(slice(5, None, 7))
    where = torch.searchsorted(everything.rows, part.rows)
    for name in ("images", "sentences", "korean", "tags", "concept", "style", "group", "subgroup"):
        assert torch.equal(getattr(part, name), getattr(everything, name)[where])
    assert set(part.group.tolist()) == {1}
    some, _ = random_split(part, [10, len(part) - 10])
    batch = Batched(some).batch([0, 1])
    assert batch["index"].tolist() == part.rows[some.indices[:2]].tolist()
    labels = with_labels(everything, everything.subgroup)(batch)["label"]
    assert torch.equal(labels, part.subgroup[some.indices[:2]])


def test_pictures_lie_on_the_ground_that_is_asked_for(everything: Emoji) -> None:
    data = Emoji("test", ground=(1, 0.5, 0))
    batch, clear = data.batch([7]), data.images[7, 3] == 0
    assert clear.any()
    image = batch["image"][0][:, clear]
    assert torch.allclose(image, torch.tensor([1, 0.5, 0])[:, None].expand_as(image))
    full = data.images[7, 3] == 255
    assert torch.allclose(batch["image"][0][:, full], data.images[7, :3, full] / 255)


def test_the_size_is_that_of_the_batch() -> None:
    small, whole = Emoji("test", size=24), Emoji("test")
    image = small.batch([0])["image"]
    assert image.shape == (1, 3, 24, 24)
    assert image.mean() == pytest.approx(float(whole.batch([0])["image"].mean()), abs=0.01)
    assert 0 <= float(image.min()) <= float(image.max()) <= 1


def test_languages_are_captions() -> None:
    english, korean, both = (Emoji("test", language=name) for name in ("en", "ko", "both"))
    rows = [10, 400, 900]
    pairs = both.batch(rows)
    assert torch.equal(pairs["caption"], english.batch(rows)["caption"])
    assert torch.equal(pairs["caption_ko"], korean.batch(rows)["caption"])
    assert "caption_ko" not in english.batch(rows)
    for i in rows:
        name = korean.names["ko"][korean.concept[i]]
        assert korean.text(i) == "".join(c for c in name if c.isalnum() or c == " ")
    assert korean.tokenizer == both.tokenizer_ko
    assert len(korean.tokenizer) < len(english.tokenizer)


def test_keywords_are_further_sentences() -> None:
    data = Emoji("test", sentences=4)
    assert data.sentences.shape[:2] == (1402, 4)
    i = data.names["en"].index("sailboat")
    keywords = CONCEPTS[i]["en"][1:]
    row = int((data.concept == i).nonzero()[0])
    texts = [data.text(row, s) for s in range(4)]
    assert texts == ["sailboat", *keywords[:3]]
    batch = data.batch([row] * 64)
    torch.manual_seed(0)
    drawn = paraphrase(data, view=True)(batch)
    found = {data.tokenizer.decode(ids) for ids in drawn["caption"]}
    assert found == set(texts)


def test_pictures_of_one_concept_are_positives_of_each_other() -> None:
    data = Emoji("train")
    groups = caption_groups(codes_of(data.batch(slice(None))))
    pairs = set(zip(groups.tolist(), data.concept.tolist(), strict=True))
    assert len(pairs) == len(set(groups.tolist())) == len(set(data.concept.tolist()))


# --- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"part": "tests"}, "part must be one of train, validation, test, all; got 'tests'"),
        ({"split": "word"}, "split must be one of style, concept; got 'word'"),
        ({"language": "fr"}, "language must be one of en, ko, both; got 'fr'"),
        ({"styles": ("twemoji",)}, r"styles must be .*'noto'.* got \('twemoji',\)"),
        ({"styles": ("apple",), "split": "concept"}, "styles must be .*'twemoji'.* got .*apple"),
        ({"styles": "noto"}, "styles must be one or more of .* got 'noto'"),
        ({"styles": ("noto", "noto")}, "each once"),
        ({"styles": ()}, "one or more"),
        ({"size": 0}, "size must be a whole number"),
        ({"sentences": 0}, "sentences must be a whole number"),
        ({"min_concepts": 0}, "min_concepts must be a whole number"),
        ({"ground": (1, 1, 2)}, r"ground must be a number in \[0, 1\]; got 2"),
        ({"ground": (1, 1)}, "ground must be red, green and blue"),
    ],
)
def test_wrong_arguments_are_named(settings: dict, expected: str) -> None:
    with pytest.raises(MMCLError, match=expected):
        Emoji(**settings)


@pytest.mark.parametrize("name", ["emoji.json", "twemoji.webp"])
def test_a_damaged_file_is_named(name: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in emoji.FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(emoji, "FOLDER", tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:1000] + b"?" + content[1001:])
    with pytest.raises(DataError, match=f"{name}: .* damaged.*install mmcl_core again"):
        Emoji("test")
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name}: .* not there.*install mmcl_core again"):
        Emoji("test")


# --- augmentation ---------------------------------------------------------------------------------

STILL = {"shift": 0.0, "scale": (1.0, 1.0), "angle": 0.0, "gain": 0.0}


def test_nothing_but_the_ground_changes_when_all_else_is_off() -> None:
    data = Emoji("test", ground=(0.8, 0.8, 0.8))
    batch = data.batch(range(16))
    drawn = composite(data, **STILL, ground=(0.8, 0.8))(batch)
    assert torch.allclose(drawn["image"], batch["image"], atol=1e-5)
    assert drawn["image"] is not batch["image"]
    assert drawn["caption"] is batch["caption"]


def test_the_ground_is_of_one_pale_colour() -> None:
    data = Emoji("test")
    batch = data.batch(range(32))
    drawn = composite(data, **STILL, ground=(0.7, 0.9))(batch)["image"]
    for image, alpha in zip(drawn, data.images[:32, 3], strict=True):
        ground = image[:, alpha == 0]
        assert torch.allclose(ground, ground[:, :1].expand_as(ground))
        assert 0.7 <= float(ground.min()) <= float(ground.max()) <= 0.9
    assert len(drawn[:, :, 0, 0].unique(dim=0)) > 20


def test_pictures_are_moved_turned_and_scaled_as_far_as_is_said() -> None:
    data = Emoji("test")
    square = torch.zeros_like(data.images)
    square[:, :, 16:32, 16:32] = 255
    data.images = square
    batch = data.batch(range(200))
    one = {**STILL, "ground": (0.0, 0.0)}

    def drawn(**settings) -> torch.Tensor:
        return composite(data, **{**one, **settings})(batch)["image"][:, 0]

    places = torch.arange(48) - 23.5
    moved = drawn(shift=0.2)
    for axis in (1, 2):
        centre = (moved.sum(3 - axis) * places).sum(1) / moved.sum((1, 2))
        assert centre.abs().max() <= 0.2 * 48 + 1e-3
        assert centre.min() < -8
        assert centre.max() > 8
    areas = drawn(scale=(0.5, 1.5)).sum((1, 2)) / 16**2
    assert 0.24 < float(areas.min()) < 0.5 < 1.8 < float(areas.max()) < 2.3
    turned = drawn(angle=45.0)
    assert turned.sum((1, 2)) == pytest.approx(np.full(200, 16**2), rel=0.05)
    assert turned[:, 24, 14].max() > 0.5  # a corner of one that is turned by 45 degrees
    assert drawn(angle=0.0)[:, 24, 14].max() == 0


def test_the_seed_of_torch_tells_what_is_drawn_and_each_view_is_drawn_anew() -> None:
    data = Emoji("test")
    batch = data.batch([5] * 8)
    augment = composite(data, views=("image", "image_view"))
    torch.manual_seed(3)
    one = augment(batch)
    torch.manual_seed(3)
    other = augment(batch)
    assert torch.equal(one["image"], other["image"])
    assert torch.equal(one["image_view"], other["image_view"])
    assert not torch.allclose(one["image"], one["image_view"], atol=0.02)
    assert not torch.allclose(one["image"][0], one["image"][1], atol=0.02)
    assert 0 <= float(one["image"].min()) <= float(one["image"].max()) <= 1
    assert one["image"].dtype == torch.float32


def test_it_draws_the_pictures_of_the_batch_from_a_part_and_at_its_size() -> None:
    data = Emoji("train", size=32)
    part = random_split(data, [100, len(data) - 100])[0]
    batch = Batched(part).batch(range(20))
    drawn = composite(part, **STILL, ground=(0.93, 0.93))(batch)["image"]
    assert drawn.shape == (20, 3, 32, 32)
    assert torch.allclose(drawn, batch["image"], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"scale": (0, 1)}, r"least <= greatest, got scale=\(0, 1\)"),
        ({"scale": (2, 1)}, "least <= greatest"),
        ({"ground": (0.5, 1.5)}, r"ground=\(0.5, 1.5\)"),
        ({"shift": 2}, "shift must be a number"),
        ({"angle": 200}, "angle must be a number"),
        ({"gain": -0.1}, "gain must be a number"),
        ({"views": ("picture",)}, "views"),
    ],
)
def test_wrong_settings_of_the_augmentation(settings: dict, expected: str) -> None:
    with pytest.raises(MMCLError, match=expected):
        composite(Emoji("validation"), **settings)


def test_the_augmentation_wants_its_own_data() -> None:
    data = Emoji("validation")
    with pytest.raises(DataError, match="RGBA pictures, got ShapesCaptions"):
        composite(ShapesCaptions(2))
    augment = composite(data)
    with pytest.raises(DataError, match="no sample with the index"):
        augment(Emoji("test").batch([0]))
    batch = data.batch([0])
    with pytest.raises(MissingModalityError, match="index"):
        augment({"image": batch["image"]})
    with pytest.raises(ShapeError, match="image"):
        augment({**batch, "image": batch["tags"]})


def test_colours_are_multiplied_by_their_alpha() -> None:
    pixels = premultiplied(torch.tensor([255, 51, 0, 51], dtype=torch.uint8).view(1, 4, 1, 1))
    assert pixels.flatten().tolist() == pytest.approx([0.2, 0.04, 0, 0.2])


# --- with the methods -----------------------------------------------------------------------------


def test_clip_learns_from_it() -> None:
    data = Emoji("train", size=24).subset(slice(0, 64))
    torch.manual_seed(0)
    encoders = ImageEncoder(size=24, width=32), CaptionEncoder(len(data.tokenizer), width=32)
    augment = compose(composite(data), crop((0.9, 1.0), views=("image",)))
    history = fit(
        CLIP(*encoders, dim=16), data, epochs=6, batch_size=32, augment=augment, progress=False
    )
    losses = history.epoch_means("total")
    assert losses[-1] < losses[0]


def test_two_languages_and_tags_are_modalities() -> None:
    data = Emoji("train", size=24, language="both").subset(slice(0, 32))
    method = GMC(
        {
            "image": ImageEncoder(size=24, width=32),
            "caption": CaptionEncoder(len(data.tokenizer), width=32),
            "caption_ko": CaptionEncoder(len(data.tokenizer_ko), width=32),
            "tags": TagEncoder(len(data.tag_names), width=32),
        },
        common=16,
        dim=16,
        hidden=16,
    )
    loss = method(data.batch(slice(None)))["total"]
    loss.backward()
    assert torch.isfinite(loss)
