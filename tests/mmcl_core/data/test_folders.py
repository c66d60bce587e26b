"""Folders made for CaptionFolder of the reader's own pictures and table."""

import csv

import pytest
from PIL import Image

from mmcl_core.data import CaptionFolder
from mmcl_core.data.folders import link_folder
from mmcl_core.errors import DataError, MMCLError


@pytest.fixture
def mine(tmp_path):
    """Pictures in a folder and in one within it."""
    folder = tmp_path / "mine"
    (folder / "cats").mkdir(parents=True)
    Image.new("RGB", (20, 20), "red").save(folder / "a.png")
    Image.new("RGB", (20, 20), "blue").save(folder / "cats" / "a.png")
    return folder


def table(folder, rows, delimiter=",", encoding="utf-8"):
    path = folder.parent / "table.csv"
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


ROWS = [
    ("image", "caption"),
    ("a.png", "a red thing, and nothing else"),
    ("cats/a.png", 'a blue one; "really"\nblue'),
    ("a.png", "rot, wie 빨강"),
]


@pytest.mark.parametrize(
    ("delimiter", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")]
)
def test_own_pictures_are_read_and_not_copied(mine, delimiter, encoding) -> None:
    root = link_folder(
        mine.parent / "root", pictures=mine, table=table(mine, ROWS, delimiter, encoding)
    )
    data = CaptionFolder(root, size=8)
    assert [path.name for path in data.paths] == ["a.png", "cats__a.png"]
    assert data.captions(0) == [ROWS[1][1], ROWS[3][1]]
    assert data.captions(1) == ['a blue one; "really" blue']
    assert data[0]["image"][0].mean() == 1
    assert data[1]["image"][2].mean() == 1
    assert all(path.is_symlink() for path in (root / "Images").iterdir())


def test_other_columns_in_another_order(mine) -> None:
    rows = [("n", "text", "file"), ("1", "a red thing", "./a.png")]
    root = link_folder(
        mine.parent / "root", pictures=mine, table=table(mine, rows), image="file", caption="text"
    )
    assert CaptionFolder(root).captions(0) == ["a red thing"]


def test_a_path_from_where_we_are(mine, monkeypatch) -> None:
    monkeypatch.chdir(mine.parent)
    link_folder("root", pictures="mine", table=table(mine, ROWS))
    assert len(CaptionFolder("root")) == 2


BROKEN = {
    "no picture 'b.png' in mine/": ("b.png", "a red thing"),
    "no picture '' in mine/": ("", "a red thing"),
    "'a.png' has an empty caption": ("a.png", " ."),
    "'../table.csv' lies outside mine/": ("../table.csv", "a red thing"),
    "expected 2 fields, image and caption, got 3 in 'a.png,one, two'": ("a.png", "one", " two"),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_row_that_cannot_be_used(mine, message) -> None:
    path = table(mine, [*ROWS[:2], BROKEN[message]])
    with pytest.raises(DataError) as error:
        link_folder(mine.parent / "root", pictures=mine, table=path)
    assert "1 row cannot be used: table.csv, line 3: " in str(error.value)
    assert message in str(error.value)
    assert not (mine.parent / "root").exists()
    with pytest.warns(UserWarning, match="left rows out: 1 row"):
        link_folder(mine.parent / "root", pictures=mine, table=path, on_error="skip")
    assert len(CaptionFolder(mine.parent / "root")) == 1


def test_two_pictures_that_would_have_one_name(mine) -> None:
    Image.new("RGB", (20, 20)).save(mine / "cats__a.png")
    path = table(mine, [*ROWS, ("cats__a.png", "a third")])
    with pytest.raises(DataError, match=r"would have one name, 'cats__a\.png'"):
        link_folder(mine.parent / "root", pictures=mine, table=path)


def test_tables_that_cannot_be_read(mine) -> None:
    def message(**settings):
        with pytest.raises(DataError) as error:
            link_folder(mine.parent / "root", **{"pictures": mine, "table": path} | settings)
        return str(error.value)

    path = mine.parent / "table.csv"
    assert "expected a table of pictures and captions" in message()
    path.write_text("")
    assert "expected a header with the columns 'image' and 'caption', got ''" in message()
    path.write_text("image:caption\na.png:red")
    assert "got 'image:caption'; image= and caption= name other columns" in message()
    path.write_bytes("image,caption\na.png,größer".encode("latin-1"))
    assert "line 2: expected UTF-8" in message()
    path.write_text('image,caption\na.png,"open')
    assert "malformed CSV" in message()
    path.write_text("image,caption\n")
    assert "expected rows with a picture and a caption, got none" in message()
    assert "expected the folder of the pictures" in message(pictures=mine / "dogs")
    assert not (mine.parent / "root").exists()
    with pytest.raises(MMCLError, match="'raise' or 'skip'"):
        link_folder(mine.parent / "root", pictures=mine, table=path, on_error="no")


def test_where_links_are_not_allowed(mine, monkeypatch) -> None:
    def refuse(*of):
        raise OSError("a privilege is not held")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    root = link_folder(mine.parent / "hard", pictures=mine, table=table(mine, ROWS))
    assert (root / "Images" / "a.png").samefile(mine / "a.png")
    monkeypatch.setattr("os.link", refuse)
    with pytest.raises(DataError, match=r"links cannot be made here .* copy the pictures"):
        link_folder(mine.parent / "root", pictures=mine, table=table(mine, ROWS))
    assert not (mine.parent / "root").exists()


@pytest.mark.parametrize("sign", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c"])
def test_rare_marks_of_lines_end_no_row(mine, sign) -> None:
    """Bug report 6: half of the caption was left out."""
    path = mine.parent / "table.csv"
    path.write_text(f"image,caption\na.png,red dog{sign}on grass\n", encoding="utf-8")
    root = link_folder(mine.parent / "root", pictures=mine, table=path)
    assert CaptionFolder(root).captions(0) == ["red dog on grass"]


def test_the_table_of_flickr30k(mine) -> None:
    """B10: fields parted by a bar, and its own names of columns."""
    path = mine.parent / "results.csv"
    path.write_text(
        "image_name| comment_number| comment\na.png| 0| A red thing , and no more .\n"
        'cats/a.png| 1| One that says " blue "\n'
    )
    root = link_folder(mine.parent / "root", pictures=mine, table=path)
    data = CaptionFolder(root)
    assert data.captions(0) == ["A red thing , and no more ."]
    assert data.captions(1) == ['One that says " blue "']
