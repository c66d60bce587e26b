"""CaptionFolder: the layouts on disk, and every sort of broken row."""

import csv
import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader

from mmcl_core.data.captions import CaptionFolder
from mmcl_core.data.tokenizer import WordTokenizer
from mmcl_core.errors import DataError, MMCLError, ShapeError

CAPTIONS = {
    "red.jpg": ["A red thing .", 'It says "stop", loudly', "Ein grüner Kreis, 빨간 원"],
    "wide.png": ["A man, a dog, and a ball", '" starts with a quote', "two"],
    "tall.jpg": ["One .", "Two words", "Now three words"],
    "gray.jpg": ["a", "b", "c"],
}
ROWS = [(name, caption) for name, captions in CAPTIONS.items() for caption in captions]


def draw(folder):
    folder.mkdir(parents=True)
    Image.new("RGB", (80, 60), (200, 30, 10)).save(folder / "red.jpg")
    wide = Image.new("RGB", (120, 40), "blue")
    ImageDraw.Draw(wide).rectangle([40, 0, 79, 39], fill="yellow")
    wide.save(folder / "wide.png")
    Image.new("RGB", (300, 900), (0, 90, 0)).save(folder / "tall.jpg")
    Image.new("L", (50, 50), 100).save(folder / "gray.jpg")


def write_csv(root, rows, header=("image", "caption")):
    with open(root / "captions.txt", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def write_tokens(root, rows):
    counts = {}
    lines = []
    for name, caption in rows:
        lines.append(f"{name}#{counts.setdefault(name, 0)}\t{caption}\n")
        counts[name] += 1
    (root / "Flickr8k.token.txt").write_text("".join(lines), encoding="utf-8")


def coco(rows):
    ids = {name: 100 + i for i, name in enumerate(dict(rows))}
    return {
        "images": [{"id": i, "file_name": name} for name, i in ids.items()],
        "annotations": [
            {"id": i, "image_id": ids[name], "caption": caption}
            for i, (name, caption) in enumerate(rows)
        ],
    }


def write_coco(root, split, content):
    (root / "annotations").mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "annotations" / f"captions_{split}.json").write_text(text, encoding="utf-8")


@pytest.fixture
def flickr(tmp_path):
    """Flickr8k as found today."""
    draw(tmp_path / "Images")
    write_csv(tmp_path, ROWS)
    return tmp_path


@pytest.fixture(params=["csv", "tokens", "coco"])
def layout(request, tmp_path):
    """A root in each of the three layouts, with the same pictures and captions."""
    if request.param == "csv":
        draw(tmp_path / "Images")
        write_csv(tmp_path, ROWS)
    elif request.param == "tokens":
        draw(tmp_path / "Flicker8k_Dataset")
        write_tokens(tmp_path, ROWS)
    else:
        draw(tmp_path / "train2017")
        write_coco(tmp_path, "train2017", coco(ROWS))
    return tmp_path


# -- what is read -----------------------------------------------------------------------------


def test_every_layout_gives_the_same_captions_in_order(layout):
    data = CaptionFolder(layout, size=16)
    assert len(data) == 4
    assert [path.name for path in data.paths] == list(CAPTIONS)
    assert [data.captions(i) for i in range(4)] == list(CAPTIONS.values())
    assert data.skipped == []
    assert repr(data) == "CaptionFolder(4 pictures, 12 captions, size=16)"


def test_sentences_are_the_encoded_captions_and_repeat_where_there_are_fewer(layout):
    data = CaptionFolder(layout)
    assert data.sentences.shape[:2] == (4, 5)
    assert data.sentences.dtype == torch.int64
    for i, captions in enumerate(CAPTIONS.values()):
        for s in range(5):
            ids = data.tokenizer.encode(captions[s % 3])
            assert data.sentences[i, s].tolist() == ids + [0] * (data.sentences.shape[2] - len(ids))
    assert data.tokenizer == WordTokenizer.fit([caption for _, caption in ROWS])
    assert {"grüner", "원", "stop", "ball"} <= set(data.tokenizer.words)


def test_more_captions_than_sentences_stay_readable(flickr):
    data = CaptionFolder(flickr, sentences=2)
    assert data.sentences.shape[1] == 2
    assert len(data.captions(0)) == 3
    assert data.captions(0) is not data.captions(0)


def test_a_batch(layout):
    data = CaptionFolder(layout, size=16)
    batch = data.batch([2, 0, 3])
    assert batch.keys() == {"image", "caption", "text", "index"}
    assert batch["image"].shape == (3, 3, 16, 16)
    assert batch["image"].dtype == torch.float32
    assert batch["image"].is_contiguous()
    assert batch["index"].tolist() == [2, 0, 3]
    # Trimmed to the longest first sentence in the batch.
    assert torch.equal(batch["caption"], data.tokenizer.encode_batch(["One", "A red thing", "a"]))
    red = torch.tensor([200, 30, 10]) / 255
    assert torch.allclose(batch["image"][1], red[:, None, None].expand(3, 16, 16), atol=0.02)
    assert torch.allclose(batch["image"][2], torch.full((3, 16, 16), 100 / 255), atol=0.02)
    again = data.batch(torch.tensor([2, 0, 3]))
    assert all(torch.equal(batch[key], again[key]) for key in batch)


def test_one_sample_is_a_batch_of_one_without_its_axis(flickr):
    data = CaptionFolder(flickr, size=8)
    batch = data.batch([3])
    for sample in (data[3], data[-1]):
        words = sample["caption"][: batch["caption"].shape[1]]
        assert all(torch.equal(sample[key], batch[key][0]) for key in batch if key != "caption")
        assert torch.equal(words, batch["caption"][0])
        assert sample["caption"].shape == data.sentences.shape[2:]  # all are of one length
    with pytest.raises(IndexError):
        data[4]
    assert len(list(data)) == 4


def test_a_picture_is_cropped_to_its_centred_square(flickr):
    image = CaptionFolder(flickr, size=10)[1]["image"]
    # The middle third of the wide picture is yellow, its sides are blue.
    assert torch.allclose(image[:, 2:8, 2:8].mean((1, 2)), torch.tensor([1.0, 1.0, 0.0]), atol=0.02)
    assert image[2].mean() < 0.2
    assert image.min() == 0
    assert image.max() == 1


def test_a_picture_lying_on_its_side_is_turned_upright(flickr):
    picture = Image.new("RGB", (400, 400), "black")
    ImageDraw.Draw(picture).rectangle([0, 0, 399, 199], fill="white")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    picture.save(flickr / "Images" / "red.jpg", exif=exif)
    image = CaptionFolder(flickr, size=16)[0]["image"]
    assert image[:, :, 9:].mean() > 0.95
    assert image[:, :, :7].mean() < 0.05


@pytest.mark.parametrize("side", [33, 64, 256, 600])
def test_a_jpeg_decoded_small_keeps_its_detail(flickr, side):
    # Noise that is as fine as 32 pixels can show.
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 1), dtype=np.uint8).repeat(3, 2)
    exact = Image.fromarray(noise).resize((side, side), Image.Resampling.NEAREST)
    exact.save(flickr / "Images" / "red.jpg", quality=95)
    image = CaptionFolder(flickr, size=32)[0]["image"]
    expected = np.asarray(exact.resize((32, 32), Image.Resampling.BICUBIC)) / 255
    assert np.abs(image.permute(1, 2, 0).numpy() - expected).mean() < 0.03


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "LA", "1"])
def test_pictures_of_other_modes_become_rgb(flickr, mode):
    name = "red.jpg"
    kind = "JPEG" if mode == "CMYK" else "PNG"
    Image.new("RGB", (20, 20), "white").convert(mode).save(flickr / "Images" / name, kind)
    image = CaptionFolder(flickr, size=8)[0]["image"]
    assert image.shape == (3, 8, 8)
    assert image.min() > 0.95


def test_sixteen_bits_a_channel_are_not_clipped_in_silence(flickr):
    Image.fromarray(np.full((20, 20), 40000, dtype=np.uint16)).save(
        flickr / "Images" / "red.jpg", "PNG"
    )
    with pytest.raises(DataError, match="expected 8 bits"):
        CaptionFolder(flickr)[0]


def test_no_picture_is_opened_before_it_is_asked_for(layout, monkeypatch):
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *args: opened.append(path) or real(path, *args))
    data = CaptionFolder(layout)
    assert opened == []
    data.batch([1, 3])
    assert sorted(opened) == sorted([data.paths[1], data.paths[3]])  # in threads


def test_worker_processes_read_the_same(layout):
    data = CaptionFolder(layout, size=16)
    batches = list(DataLoader(data, batch_size=3, num_workers=2))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2], [3]]
    for batch in batches:
        here = data.batch(batch["index"])
        here["caption"] = data.sentences[batch["index"], 0]  # not cut to the longest
        assert all(torch.equal(batch[key], here[key]) for key in here)


def test_an_error_in_a_worker_keeps_its_kind_and_its_words(flickr):
    data = CaptionFolder(flickr)
    data.paths[2].write_bytes(b"not a picture")
    batches = iter(DataLoader(data, batch_size=4, num_workers=2))
    with pytest.raises(DataError, match=r"captions\.txt, line 8: the picture .*tall\.jpg"):
        next(batches)
    # Left to the garbage collector, this takes PyTorch five seconds after an error.
    batches._shutdown_workers()


def test_pickle(flickr):
    data = CaptionFolder(flickr, size=16)
    copy = pickle.loads(pickle.dumps(data))
    assert copy.paths == data.paths
    assert copy.tokenizer == data.tokenizer
    assert torch.equal(copy[1]["image"], data[1]["image"])


def test_a_subset_keeps_the_numbers(flickr):
    data = CaptionFolder(flickr, size=8)
    part = data.subset([3, 1])
    assert len(part) == 2
    assert part.captions(0) == CAPTIONS["gray.jpg"]
    assert torch.equal(part.sentences, data.sentences[[3, 1]])
    assert torch.equal(part[1]["image"], data[1]["image"])
    assert part.batch([0, 1])["index"].tolist() == [3, 1]
    assert part.subset([1])[0]["index"] == 1
    assert len(data) == 4


def test_a_tokenizer_from_elsewhere(flickr):
    tokenizer = WordTokenizer(["a", "red"], max_length=20)
    with pytest.warns(UserWarning, match=r"words are not known to the tokenizer") as warned:
        data = CaptionFolder(flickr, tokenizer=tokenizer)
    assert warned[0].filename == __file__
    assert data.tokenizer is tokenizer
    assert data.batch([0])["caption"].tolist() == [[1, 4, 5, 3, 2]]


# -- layouts and splits -----------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["csv", "tokens"], indirect=True)
def test_split_lists(layout):
    (layout / "Flickr_8k.trainImages.txt").write_text("tall.jpg\r\nred.jpg\n\n")
    (layout / "Flickr_8k.devImages.txt").write_text("gray.jpg")
    assert [p.name for p in CaptionFolder(layout, split="train").paths] == ["red.jpg", "tall.jpg"]
    dev = CaptionFolder(layout, split="dev")
    assert dev.captions(0) == ["a", "b", "c"]
    assert dev.tokenizer.words == ("a", "b", "c")
    with pytest.raises(
        DataError,
        match=r"Flickr_8k\.testImages\.txt.*'Flickr_8k\.devImages\.txt', 'Flickr_8k\.train",
    ):
        CaptionFolder(layout, split="test")


def test_what_is_wrong_outside_the_split_does_not_matter(flickr):
    write_csv(flickr, [*ROWS, ("gone.jpg", "a caption"), ("red.jpg", "A red thing .")])
    (flickr / "Flickr_8k.devImages.txt").write_text("gray.jpg\n")
    assert len(CaptionFolder(flickr, split="dev")) == 1


def test_a_split_list_naming_pictures_twice_or_without_captions(flickr):
    (flickr / "Flickr_8k.devImages.txt").write_text("gray.jpg\nother.jpg\n\ngray.jpg\n")
    for on_error in ("few", "raise", "skip"):
        with pytest.warns(UserWarning, match="1 row to know of: .* `notes` lists all") as warned:
            data = CaptionFolder(flickr, split="dev", on_error=on_error)
        assert warned[0].filename == __file__
        assert [path.name for path in data.paths] == ["gray.jpg"]
        assert data.skipped == []
        assert data.notes == [
            "Flickr_8k.devImages.txt, line 2: other.jpg has no row in captions.txt"
        ]
    (flickr / "Flickr_8k.devImages.txt").write_text("other.jpg\n")
    with (
        pytest.warns(UserWarning, match="1 row to know of"),
        pytest.raises(DataError, match="got no usable row"),
    ):
        CaptionFolder(flickr, split="dev")


def test_coco_splits(tmp_path):
    draw(tmp_path / "train2017")
    draw(tmp_path / "val2017")
    write_coco(tmp_path, "train2017", coco(ROWS[:6]))
    write_coco(tmp_path, "val2017", coco(ROWS[6:]))
    assert len(CaptionFolder(tmp_path)) == 4
    for split in ("val", "val2017"):
        data = CaptionFolder(tmp_path, split=split)
        assert [path.relative_to(tmp_path).as_posix() for path in data.paths] == [
            "val2017/tall.jpg",
            "val2017/gray.jpg",
        ]
    with pytest.raises(DataError, match=r"out of \['train2017', 'val2017'\], got 'test'"):
        CaptionFolder(tmp_path, split="test")
    # The same file name in two splits is two pictures.
    write_coco(tmp_path, "val2017", coco(ROWS))
    assert len(CaptionFolder(tmp_path)) == 6
    write_coco(tmp_path, "val2014", coco(ROWS))
    with pytest.raises(DataError, match="got 'val'"):
        CaptionFolder(tmp_path, split="val")
    with pytest.raises(DataError, match=r"captions_val2014\.json is there, but .* val2014/ is not"):
        CaptionFolder(tmp_path, split="val2014")


def test_a_folder_of_another_kind(tmp_path):
    looked_for = (
        r"captions\.txt, captions\.csv, results\.csv, .*annotations/captions_\*\.json, got "
    )
    with pytest.raises(DataError, match=looked_for + "none of them"):
        CaptionFolder(tmp_path)
    with pytest.raises(DataError, match=looked_for + "no such folder"):
        CaptionFolder(tmp_path / "nowhere")
    write_csv(tmp_path, ROWS)
    with pytest.raises(DataError, match="Images/, Flicker8k_Dataset/, Flickr8k_Dataset/"):
        CaptionFolder(tmp_path)
    (tmp_path / "Images").mkdir()
    with pytest.raises(DataError, match="no split list; split=None"):
        CaptionFolder(tmp_path, split="train")


def test_arguments_out_of_range(flickr):
    with pytest.raises(MMCLError, match="size must be a whole number, at least 1; got 0"):
        CaptionFolder(flickr, size=0)
    with pytest.raises(MMCLError, match="sentences"):
        CaptionFolder(flickr, sentences=0)
    with pytest.raises(MMCLError, match="max_length must be a whole number, at least 3; got 0"):
        CaptionFolder(flickr, max_length=0)
    with pytest.raises(MMCLError, match="'raise' or 'skip', got 'ignore'"):
        CaptionFolder(flickr, on_error="ignore")
    with pytest.raises(MMCLError, match="the tokenizer's limit 9, got 8"):
        CaptionFolder(flickr, tokenizer=WordTokenizer(["a"], max_length=9), max_length=8)
    data = CaptionFolder(flickr)
    for indices in ([], torch.zeros(1, 1, dtype=torch.int64)):
        with pytest.raises(ShapeError, match="indices: expected"):
            data.batch(indices)


# -- broken rows ------------------------------------------------------------------------------

LONG = "very " * 70 + "long"

BROKEN_CSV = {
    "missing": (b"gone.jpg,A caption", "there is no picture gone.jpg in Images/"),
    "outside": (b"../captions.txt,A caption", "there is no picture ../captions.txt"),
    "empty": (b"gray.jpg,", "the caption of gray.jpg is empty"),
    "no words": (b'gray.jpg," ... "', "the caption of gray.jpg is empty (no words in '...')"),
    "comma": (b"gray.jpg,a man, a dog", "expected 2 fields, image and caption, got 3"),
    "one field": (b"gray.jpg", "expected 2 fields, image and caption, got 1"),
    "open quote": (b'gray.jpg,"a man', "malformed CSV (unexpected end of data)"),
    "stray quote": (b'gray.jpg,"a "man" there"', "malformed CSV (',' expected after '\"')"),
    "not UTF-8": (b"gray.jpg,caf\xe9", "expected UTF-8"),
    "duplicate": (b"gray.jpg,b", "gray.jpg has the same caption as in line 12, 'b'"),
    "too long": (f"gray.jpg,{LONG}".encode(), "at most 64 ids with start and end, got 73"),
}
BROKEN_TOKENS = {
    "missing": (b"gone.jpg#0\tA caption", "there is no picture gone.jpg in Flicker8k_Dataset/"),
    "empty": (b"gray.jpg#3\t .", "the caption of gray.jpg is empty"),
    "no tab": (b"gray.jpg#3 A caption", "expected 'name.jpg#0<TAB>caption', got 'gray.jpg#3 A"),
    "no number": (b"gray.jpg\tA caption", "expected 'name.jpg#0<TAB>caption'"),
    "bad number": (b"gray.jpg#x\tA caption", "expected 'name.jpg#0<TAB>caption'"),
    "number twice": (b"gray.jpg#1\tAnother", "gray.jpg#1 is already in line 11"),
    "duplicate": (b"gray.jpg#3\tb", "gray.jpg has the same caption as in line 11, 'b'"),
    "not UTF-8": (b"gray.jpg#3\tcaf\xe9", "expected UTF-8"),
}


def check_one_bad_row(root, where, message, good=12):
    with pytest.raises(DataError) as caught:
        CaptionFolder(root, keep_duplicates=False)
    text = str(caught.value)
    assert text.startswith("1 row cannot be used: " + where + ": ")
    assert message in text
    assert "on_error='skip'" in text
    with pytest.warns(UserWarning, match="1 row cannot be used") as warned:
        data = CaptionFolder(root, on_error="skip", keep_duplicates=False)
    assert where in str(warned[0].message)
    assert warned[0].filename == __file__
    assert len(data.skipped) == 1
    assert message in data.skipped[0]
    assert sum(len(data.captions(i)) for i in range(len(data))) == good


@pytest.mark.parametrize("name", BROKEN_CSV)
def test_broken_csv_rows(flickr, name):
    row, message = BROKEN_CSV[name]
    path = flickr / "captions.txt"
    lines = path.read_bytes().split(b"\n")
    # In the middle, and duplicates at the end: the rows behind a broken one are read.
    position = 13 if name == "duplicate" else 5
    path.write_bytes(b"\n".join([*lines[:position], row, *lines[position:]]))
    check_one_bad_row(flickr, f"captions.txt, line {position + 1}", message)


@pytest.mark.parametrize("name", BROKEN_TOKENS)
def test_broken_token_rows(tmp_path, name):
    draw(tmp_path / "Flicker8k_Dataset")
    write_tokens(tmp_path, ROWS)
    row, message = BROKEN_TOKENS[name]
    with open(tmp_path / "Flickr8k.token.txt", "ab") as file:
        file.write(row + b"\n")
    check_one_bad_row(tmp_path, "Flickr8k.token.txt, line 13", message)


BROKEN_ANNOTATIONS = {
    "missing": ({"id": 99, "image_id": 5}, "expected 'caption', 'image_id' and 'id'"),
    "not an object": ("A caption", "expected 'caption', 'image_id' and 'id', got A caption"),
    "not a string": ({"id": 99, "image_id": 100, "caption": 7}, "expected 'caption'"),
    "unknown": ({"id": 99, "image_id": 5, "caption": "a"}, "no picture with the id 5"),
    "empty": ({"id": 99, "image_id": 100, "caption": " "}, "the caption of red.jpg is empty"),
    "id twice": ({"id": 3, "image_id": 100, "caption": "x"}, "3 is already at annotations[3]"),
    "duplicate": (
        {"id": 99, "image_id": 103, "caption": "b "},
        "gray.jpg has the same caption as in annotations[10], 'b'",
    ),
}


@pytest.mark.parametrize("name", BROKEN_ANNOTATIONS)
def test_broken_coco_annotations(tmp_path, name):
    entry, message = BROKEN_ANNOTATIONS[name]
    draw(tmp_path / "val2017")
    content = coco(ROWS)
    content["annotations"].append(entry)
    write_coco(tmp_path, "val2017", content)
    check_one_bad_row(tmp_path, "captions_val2017.json, annotations[12]", message)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"id": 99}, "images[4]: expected 'file_name' and 'id'"),
        (7, "images[4]: expected 'file_name' and 'id', got 7"),
        ({"id": 100, "file_name": "new.jpg"}, "images[4]: the picture new.jpg or its id 100"),
        ({"id": 99, "file_name": "red.jpg"}, "images[4]: the picture red.jpg or its id 99"),
        ({"id": 99, "file_name": "x.jpg"}, "the picture x.jpg (id 99) has no caption"),
    ],
)
def test_broken_coco_images(tmp_path, entry, message):
    draw(tmp_path / "val2017")
    content = coco(ROWS)
    content["images"].append(entry)
    write_coco(tmp_path, "val2017", content)
    with pytest.raises(DataError) as caught:
        CaptionFolder(tmp_path)
    assert message in str(caught.value)
    with pytest.warns(UserWarning, match="1 row cannot be used"):
        assert len(CaptionFolder(tmp_path, on_error="skip")) == 4


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(coco(ROWS), indent=1)[:200], r"captions_val2017\.json, line \d\d, column \d+"),
        ('{\n"images": [],\n"annotations": [}', "line 3, column 17: expected JSON"),
        ("[]", "expected an object with the lists 'images' and 'annotations'"),
        ('{"images": {}, "annotations": []}', "expected an object with the lists"),
        ('{"images": [], "annotations": []}', "got no usable row"),
    ],
)
def test_malformed_json_cannot_be_skipped(tmp_path, content, message, on_error):
    draw(tmp_path / "val2017")
    write_coco(tmp_path, "val2017", content)
    with pytest.raises(DataError, match=message):
        CaptionFolder(tmp_path, on_error=on_error)


def test_json_that_is_not_utf8(tmp_path):
    draw(tmp_path / "val2017")
    write_coco(tmp_path, "val2017", "{}")
    (tmp_path / "annotations" / "captions_val2017.json").write_bytes(b'{\n"images": "caf\xe9"}')
    with pytest.raises(DataError, match="line 2: expected UTF-8"):
        CaptionFolder(tmp_path)


@pytest.mark.parametrize("header", [("name", "text"), ("red.jpg", "A red thing"), ()])
def test_another_header(flickr, header):
    write_csv(flickr, ROWS, header)
    with pytest.raises(DataError, match=r"line \d: expected a header with the columns 'image'"):
        CaptionFolder(flickr, on_error="skip")


def test_a_byte_order_mark_and_windows_line_ends_are_read(flickr):
    path = flickr / "captions.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    data = CaptionFolder(flickr)
    assert [data.captions(i) for i in range(4)] == list(CAPTIONS.values())


def test_many_bad_rows_are_counted_and_the_first_shown(flickr):
    write_csv(flickr, [*ROWS, *((f"gone{i}.jpg", "a caption") for i in range(9))])
    with pytest.raises(DataError, match=r"^9 rows .*gone0.*gone4\.jpg in Images/; and 4 more"):
        CaptionFolder(flickr)
    with pytest.warns(UserWarning, match="9 rows"):
        assert len(CaptionFolder(flickr, on_error="skip").skipped) == 9


def test_nothing_left_is_an_error(flickr):
    write_csv(flickr, [("gone.jpg", "a caption")])
    with (
        pytest.warns(UserWarning, match="1 row"),
        pytest.raises(DataError, match="got no usable row"),
    ):
        CaptionFolder(flickr, on_error="skip")
    write_csv(flickr, [])
    with pytest.raises(DataError, match="got no usable row"):
        CaptionFolder(flickr)


def test_duplicates_are_kept(flickr):
    write_csv(flickr, [*ROWS, ("gray.jpg", "b"), ("tall.jpg", "One .")])
    with pytest.warns(UserWarning, match="2 rows to know of") as warned:
        data = CaptionFolder(flickr)
    assert len(warned) == 1
    assert data.captions(3) == ["a", "b", "c", "b"]
    assert data.notes[0].endswith("line 14: gray.jpg has the same caption as in line 12, 'b'")
    # The same words for another picture are no duplicate.
    write_csv(flickr, [*ROWS, ("red.jpg", "b")])
    assert len(CaptionFolder(flickr, keep_duplicates=False).captions(0)) == 4


def test_long_captions_are_cut_or_allowed_when_asked(flickr):
    write_csv(flickr, [("gray.jpg", LONG), *ROWS])
    assert CaptionFolder(flickr, truncate=True).sentences.shape[2] == 64
    assert CaptionFolder(flickr, max_length=73).sentences.shape[2] == 73
    with pytest.raises(DataError, match="at most 72 ids"):
        CaptionFolder(flickr, max_length=72)
    tokenizer = WordTokenizer(["very"], max_length=10)
    data = CaptionFolder(flickr, tokenizer=tokenizer, truncate=True)
    assert data.sentences[0, 0].tolist() == [1, *[4] * 8, 2]
    with pytest.raises(DataError, match=r"line 2: expected a caption of at most 10 ids"):
        CaptionFolder(flickr, tokenizer=tokenizer)


# -- unreadable pictures ----------------------------------------------------------------------


def damage(path, how):
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"<html>"}[how])


@pytest.mark.parametrize("how", ["cut", "empty", "text"])
@pytest.mark.parametrize(("name", "line"), [("tall.jpg", 8), ("wide.png", 5)])
def test_unreadable_pictures(flickr, name, line, how):
    damage(flickr / "Images" / name, how)
    where = f"captions.txt, line {line}: the picture {flickr / 'Images' / name} cannot be read"
    data = CaptionFolder(flickr)  # lazy: not opened yet
    with pytest.raises(DataError) as caught:
        data.batch(range(4))
    assert str(caught.value).startswith(where)
    with pytest.warns(UserWarning, match="3 rows cannot be used"):
        data = CaptionFolder(flickr, on_error="skip")
    assert len(data) == 3
    assert name not in [path.name for path in data.paths]
    assert len(data.skipped) == 3
    assert data.skipped[0].startswith(where)
    assert data.batch(range(3))["image"].shape == (3, 3, 64, 64)


def test_a_picture_deleted_after_the_start(flickr):
    data = CaptionFolder(flickr)
    data.paths[0].unlink()
    with pytest.raises(DataError, match=r"line 2: the picture .*red\.jpg.*No such file"):
        data[0]


def test_skip_without_anything_bad_is_quiet(layout):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = CaptionFolder(layout, on_error="skip")
    assert len(data) == 4
    assert data.skipped == []


# -- tables as they are published (B10) -------------------------------------------------------


EIGHT = 1000  # pictures of a small Flickr8k, five captions each


def write_names(root, names):
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / name).touch()  # not opened until it is asked for


def write_flickr8k(root, texts=""):
    """The authors' two archives: the file names, line ends and flaws are theirs.

    The rows of one name with ".1" at its end have no picture; two people wrote the same words; and
    a list names a picture that has no captions.
    """
    names = [f"{1000268201 + i}_693b08cb0e.jpg" for i in range(EIGHT)]
    write_names(root / "Flicker8k_Dataset", names)
    place = root / texts
    place.mkdir(exist_ok=True)
    rows = [f'{name}#{k}\tA dog {k} runs , and "barks" .\n' for name in names for k in range(5)]
    rows[7] = rows[5].replace("#0", "#2")  # of the second picture
    flaw = [f"2258277193_586949ec62.jpg.1#{k}\tPeople on a street .\n" for k in range(5)]
    (place / "Flickr8k.token.txt").write_text("".join([*rows[:99], *flaw, *rows[99:]]))
    lists = {"train": names[:800], "dev": names[800:900], "test": [*names[900:], "9000.jpg"]}
    for split, of in lists.items():
        (place / f"Flickr_8k.{split}Images.txt").write_text("".join(f"{name}\n" for name in of))
    return names


@pytest.mark.parametrize("texts", ["", "Flickr8k_text"])
def test_flickr8k_as_its_authors_publish_it(tmp_path, texts):
    names = write_flickr8k(tmp_path, texts)
    with pytest.warns(UserWarning, match="rows? ") as warned:
        data = CaptionFolder(tmp_path)
    assert [path.name for path in data.paths] == names
    assert data.captions(1)[2] == data.captions(1)[0] == 'A dog 0 runs , and "barks" .'
    assert [str(w.message).partition(":")[0] for w in warned] == [
        "CaptionFolder left rows out", "CaptionFolder",
    ]  # fmt: skip
    assert len(data.skipped) == 5
    assert "there is no picture 2258277193_586949ec62.jpg.1 in Flicker8k_D" in data.skipped[0]
    with pytest.raises(DataError, match=r"^5 rows cannot be used: "):
        CaptionFolder(tmp_path, on_error="raise")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(CaptionFolder(tmp_path, split="dev")) == 100
    with pytest.warns(UserWarning, match=r"1 row to know of: Flickr_8k\.testImages\.txt, line 101"):
        assert len(CaptionFolder(tmp_path, split="test")) == 100


@pytest.mark.parametrize("name", ["captions.txt", "captions.csv"])
@pytest.mark.parametrize("header", ["image,caption", '"image","caption"'])
def test_flickr8k_as_it_is_found_today(tmp_path, name, header):
    """One table; captions with commas or quotes stand in quotes, and these are doubled."""
    draw(tmp_path / "Images")
    (tmp_path / name).write_text(
        header + "\n"
        "gray.jpg,A child in a pink dress is climbing up a set of stairs in an entry way .\n"
        'gray.jpg,"A dog , a red ball , and a ""no dogs"" sign ."\n'
        "gray.jpg,A dog shakes .\ngray.jpg,A dog shakes .\n"
    )
    with pytest.warns(UserWarning, match="1 row to know of"):
        data = CaptionFolder(tmp_path)
    assert data.captions(0)[1:3] == [
        'A dog , a red ball , and a "no dogs" sign .',
        "A dog shakes .",
    ]
    assert len(data.captions(0)) == 4


def test_a_row_that_stands_twice_is_two_captions(tmp_path):
    draw(tmp_path / "Flicker8k_Dataset")
    write_tokens(tmp_path, ROWS)
    path = tmp_path / "Flickr8k.token.txt"
    path.write_text(path.read_text(encoding="utf-8") + "gray.jpg#2\tc\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="1 row to know of"):
        assert CaptionFolder(tmp_path).captions(3) == ["a", "b", "c", "c"]


@pytest.mark.parametrize("bad", [1, 2])
def test_few_bad_rows_are_left_out_and_more_are_not(tmp_path, bad):
    """One in a thousand."""
    write_names(tmp_path / "Images", [f"{i}.jpg" for i in range(1500)])
    rows = [(f"{i}.jpg", "a dog") for i in range(1500)]
    write_csv(tmp_path, [*rows, *(("gone.jpg", "a dog") for _ in range(bad))])
    if bad == 1:
        with pytest.warns(UserWarning, match=r"left rows out: 1 row cannot be used: .*gone\.jpg"):
            assert len(CaptionFolder(tmp_path)) == 1500
    else:
        with pytest.raises(DataError, match="2 rows cannot be used"):
            CaptionFolder(tmp_path)


@pytest.mark.parametrize("comma", [",", ";", "\t"])
def test_any_table_that_quotes_all(flickr, comma):
    with open(flickr / "captions.txt", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=comma, quoting=csv.QUOTE_ALL).writerows(
            [("Image", "Caption"), *ROWS]
        )
    data = CaptionFolder(flickr)
    assert [data.captions(i) for i in range(4)] == list(CAPTIONS.values())


# As the three places that have it write its header.
HEADERS = (
    "image_name| comment_number| comment",
    "image_name | comment_number | comment",
    '"image_name"|"comment_number"|"comment"',
)


def write_flickr30k(root, header=HEADERS[0], rows=ROWS):
    lines = [header, *(f"{name}| {i % 5}| {caption}" for i, (name, caption) in enumerate(rows))]
    (root / "results.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("header", HEADERS)
def test_flickr30k_as_it_is_published(tmp_path, header):
    draw(tmp_path / "flickr30k_images")
    write_flickr30k(tmp_path, header)
    data = CaptionFolder(tmp_path, size=8)
    assert [data.captions(i) for i in range(4)] == list(CAPTIONS.values())
    # The one row of it that lacks a sign; here one in twelve.
    with open(tmp_path / "results.csv", "a") as file:
        file.write("gray.jpg| 4   A dog runs across the grass .\n")
    with pytest.raises(DataError, match=r"line 14: expected 3 fields, image_name and .* got 2"):
        CaptionFolder(tmp_path, size=8)
    with pytest.warns(UserWarning, match="1 row cannot be used"):
        assert len(CaptionFolder(tmp_path, size=8, on_error="skip")) == 4


def test_flickr30k_loads_with_its_bad_row(tmp_path):
    """Its pictures lie in a folder of the folder's own name, and its last column is the caption."""
    root = tmp_path / "flickr30k_images"
    names = [f"{1000092795 + i}.jpg" for i in range(400)]
    write_names(root / "flickr30k_images", names)
    rows = [
        (name, f"Two young , White males are outside near {k} bushes .")
        for name in names for k in range(5)
    ]  # fmt: skip
    write_flickr30k(root, rows=rows)
    with open(root / "results.csv", "a") as file:
        file.write(f"{names[-1]}| 4   A dog runs across the grass .\n")
    with pytest.warns(UserWarning, match=r"results\.csv, line 2002: expected 3 fields"):
        data = CaptionFolder(root)
    assert len(data) == 400
    assert data.captions(0)[4] == "Two young , White males are outside near 4 bushes ."


def test_the_archive_of_flickr30k(tmp_path):
    draw(tmp_path / "flickr30k-images")
    write_tokens(tmp_path, ROWS)
    (tmp_path / "Flickr8k.token.txt").rename(tmp_path / "results_20130124.token")
    assert len(CaptionFolder(tmp_path)) == 4


def test_a_caption_may_go_on_in_the_next_line_and_a_stray_quote_takes_no_other_row(flickr):
    path = flickr / "captions.txt"
    path.write_text(
        'image,caption\nred.jpg,"one\ntwo, three"\ngray.jpg,"stray\nwide.png,four\n'
        'tall.jpg,"five, six"\n',
        encoding="utf-8",
    )
    with pytest.warns(UserWarning, match=r"line 4: malformed CSV"):
        data = CaptionFolder(flickr, on_error="skip")
    told = {data.paths[i].name: data.captions(i) for i in range(len(data))}
    assert told == {"red.jpg": ["one\ntwo, three"], "wide.png": ["four"], "tall.jpg": ["five, six"]}
