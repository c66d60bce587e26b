"""Folders of captioned photographs: Flickr8k, Flickr30k and COCO captions as they lie on disk.

Nothing is downloaded here, and no picture is opened before it is asked for.

- Flickr8k: M. Hodosh, P. Young, J. Hockenmaier, "Framing Image Description as a Ranking Task",
  JAIR 47, 2013.
- Flickr30k: P. Young et al., "From Image Descriptions to Visual Denotations", TACL 2, 2014.
- COCO captions: X. Chen et al., "Microsoft COCO Captions: Data Collection and Evaluation Server",
  arXiv:1504.00325, 2015.
"""

from __future__ import annotations

import csv
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmcl_core.batches import Batch, BatchDataset, row_of
from mmcl_core.data.groups import text_codes
from mmcl_core.data.pictures import as_images, in_threads, tried
from mmcl_core.data.tokenizer import END, SPECIALS, START, UNK, WordTokenizer, split_words
from mmcl_core.errors import DataError, MMCLError, check_count

# The second name is that of the authors' archive, spelled so.
_FLICKR_FOLDERS = (
    "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k_images", "flickr30k-images",
)  # fmt: skip
_TABLES = ("captions.txt", "captions.csv", "results.csv")
_TOKENS = ("Flickr8k.token.txt", "results_20130124.token")
_TEXTS = "Flickr8k_text"  # where the authors' captions and lists lie, if not beside the pictures
COLUMNS = (("image", "image_name"), ("caption", "comment"))
_COCO = {
    "images": {"file_name": str, "id": int},
    "annotations": {"caption": str, "image_id": int, "id": int},
}
_LINES = 20  # in so many, a row in quotes may go on
_FEW = 1000  # one bad row in so many is left out, with a warning


class CaptionFolder(BatchDataset):
    """Pictures with several captions each, read from a folder.

    The first of these files that is there is read: ``captions.txt``, ``captions.csv`` (Flickr8k as
    found today) or ``results.csv`` (Flickr30k), tables with the columns ``image`` and ``caption``,
    or ``image_name`` and ``comment``; ``Flickr8k.token.txt`` or ``results_20130124.token`` (the
    authors' archives), here or in ``Flickr8k_text/``; ``annotations/captions_<split>.json`` (COCO).
    Pictures come in the order in which the files first name them, and are decoded when asked for,
    in threads: turned upright by their EXIF tag, converted to RGB, and the largest centred square
    is resized to `size` (bicubic), as CLIP does.

    Up to one in a thousand rows may be bad, as in the published files: these are left out with a
    warning; more are a `DataError` with file and row. Captions that stand twice for one picture,
    and pictures of a split list without captions, are no reason to stop: a warning counts them.

    A batch has "image", "caption" (the first of each picture), "text" (its code) and "index".

    Attributes:
        paths: the picture files, `N` of them.
        sentences: int64 `[N, S, L]`, padded with 0; where a picture has fewer than S captions, they
            repeat; where it has more, the first S stand here and `captions(i)` has all.
        texts: int64 `[N, S]`, a code of each whole text (`groups.text_codes`), which tells texts
            apart where words are not known, or captions cut.
        tokenizer: the `WordTokenizer` of `sentences`.
        rows: int64 `[N]`, the number of each picture among those that were read.
        skipped: one line of text for each row left out: file, row, reason. `notes`: for odd ones.

    Args:
        root: the folder.
        split: for Flickr8k "train", "dev" or "test", by the lists ``Flickr_8k.<split>Images.txt``;
            for COCO the name of an annotation file, such as "train2017", with or without the year.
            None takes all there is.
        size: side in pixels, at least 1.
        tokenizer: one that was fit before, say on the training captions; None fits one on these.
        sentences: S above, at least 1.
        max_length: most ids of a caption, with start and end; None: the tokenizer's limit, or 64.
        truncate: cut captions that are too long instead of reporting them.
        on_error: "few" leaves out one bad row in a thousand, "raise" none, "skip" any number. With
            "skip" each picture is decoded once at the start, so that none can fail later.
        keep_duplicates: accept the same caption twice for one picture; False makes it a bad row.

    Raises:
        DataError: the layout is not recognised, a file or a row cannot be used, or nothing is left.
    """

    _each: tuple[str, ...] = ("paths", "sentences", "texts", "_captions", "_where")

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        split: str | None = None, size: int = 64, tokenizer: WordTokenizer | None = None,
        sentences: int = 5, max_length: int | None = None, truncate: bool = False,
        on_error: Literal["few", "raise", "skip"] = "few", keep_duplicates: bool = True,
    ) -> None:  # fmt: skip
        self.size, sentences = check_count("size", size), check_count("sentences", sentences)
        if on_error not in ("few", "raise", "skip"):
            raise MMCLError(f"on_error: expected 'few', 'raise' or 'skip', got {on_error!r}")
        limit = 64 if tokenizer is None else tokenizer.max_length
        if tokenizer is not None and max_length not in (None, limit):
            raise MMCLError(f"max_length: expected the tokenizer's limit {limit}, got {max_length}")
        limit = limit if max_length is None else check_count("max_length", max_length, 3)

        problems, notes = list[str](), list[str]()
        odd, most = notes if keep_duplicates else problems, None if truncate else limit
        rows: list[_Row] = []
        for source in _find_sources(Path(root), split, problems):
            rows += _usable_rows(source, problems, notes, odd, most)
        few = on_error == "few" and _FEW * len(problems) <= len(rows)
        if problems and on_error != "skip" and not few:
            raise DataError(
                f"{summary(problems)}. Correct the rows, or pass on_error='skip' to leave them out"
            )
        by_path: dict[str, list[_Row]] = {}
        for row in rows:
            by_path.setdefault(row.path, []).append(row)
        for path, error in _unreadable(list(by_path), size) if on_error == "skip" else ():
            said = f"the picture {path} cannot be read ({error})"
            problems += [f"{row.where}: {said}" for row in by_path.pop(path)]
        if problems:
            text = f"CaptionFolder left rows out: {summary(problems)}; `skipped` lists all"
            warnings.warn(text, stacklevel=2)
        if notes:
            text = f"CaptionFolder: {summary(notes, 'to know of')}; `notes` lists all"
            warnings.warn(text, stacklevel=2)
        if not by_path:
            raise DataError(f"{root}: expected captioned pictures, got no usable row")

        self.skipped, self.notes = problems, notes
        self.paths = [Path(path) for path in by_path]
        self._captions = [[row.caption for row in found] for found in by_path.values()]
        self._where = [found[0].where for found in by_path.values()]
        words = [[row.words for row in found] for found in by_path.values()]
        counts = Counter(word for texts in words for text in texts for word in text.split())
        told = sorted(counts, key=lambda word: (-counts[word], word))  # as `WordTokenizer.fit`
        self.tokenizer = tokenizer or WordTokenizer(told, max_length=limit)
        self.sentences, self.texts = _encode(words, self.tokenizer, sentences)
        self.rows = torch.arange(len(self.paths))
        known = set(self.tokenizer.words)
        if unknown := [word for word in told if word not in known]:
            count = int((self.sentences[:, 0] == UNK).any(1).sum())
            examples = ", ".join(unknown[:5]) + ", ..." * (len(unknown) > 5)
            warnings.warn(
                f"{len(unknown)} words are not known to the tokenizer ({examples}) and are read as "
                f"<unk>; the first captions of {count} of {len(self)} pictures hold some",
                stacklevel=2,
            )

    def __repr__(self) -> str:
        captions, name = sum(map(len, self._captions)), type(self).__name__
        return f"{name}({len(self)} pictures, {captions} captions, size={self.size})"

    def captions(self, i: int) -> list[str]:
        """All captions of picture `i`, as they are written in the file."""
        return list(self._captions[row_of(i, len(self))])

    def _read(self, rows: Tensor) -> Batch:
        """Pictures, their first captions, and the texts of these; DataError if one is damaged."""
        captions, texts = self.sentences[rows, 0], self.texts[rows, 0]
        return {"image": self._images(rows), "caption": captions, "text": texts}

    def _images(self, rows: Tensor) -> Tensor:
        """Pictures, float32 `[B, 3, size, size]` in [0, 1]."""
        return as_images(in_threads(self._picture, rows.tolist()), self.size)

    def _picture(self, i: int) -> np.ndarray:
        found = tried(self.paths[i], self.size)
        if isinstance(found, Exception):
            raise DataError(
                f"{self._where[i]}: the picture {self.paths[i]} cannot be read ({found}). Replace "
                "it, remove its rows, or pass on_error='skip', which finds such pictures at the "
                "start and leaves them out"
            ) from found
        return found


class _Row(NamedTuple):
    where: str  # file and row, for messages
    path: str
    caption: str
    words: str  # of the caption, one blank between them: to find them is most of the work


# Takes a file and the list of problems; yields place, name of the picture, caption.
_Reader = Callable[[Path, list[str]], Iterator[tuple[str, str, str]]]


class _Source(NamedTuple):
    file: Path  # of captions
    read: _Reader
    folder: Path
    wanted: dict[str, str] | None = None  # picture -> its place in the split list; None: all


def _find_sources(root: Path, split: str | None, problems: list[str]) -> list[_Source]:
    readers = dict.fromkeys(_TABLES, read_table) | dict.fromkeys(_TOKENS, _read_tokens)
    for name, read in readers.items():
        for file in (root / name, root / _TEXTS / name):
            if file.is_file():
                wanted = None if split is None else _wanted(root, file.parent, split, problems)
                places = [root / at for at in _FLICKR_FOLDERS if (root / at).is_dir()]
                if not places:
                    raise DataError(
                        f"{root}: expected the pictures of {name} in one of "
                        f"{'/, '.join(_FLICKR_FOLDERS)}/, got none of these folders"
                    )
                return [_Source(file, read, places[0], wanted)]
    found = sorted((root / "annotations").glob("captions_*.json"))
    names = {file.stem.removeprefix("captions_"): file for file in found}
    if not names:
        raise DataError(
            f"{root}: expected a folder with one of {', '.join(readers)}, annotations/captions_*"
            f".json, got {'none of them' if root.is_dir() else 'no such folder'}"
        )
    # "train" stands for "train2017".
    chosen = [name for name in names if split in (None, name, name.rstrip("0123456789"))]
    if len(chosen) != 1 and split is not None:
        raise DataError(f"{root}: expected a split out of {list(names)}, got {split!r}")
    if lost := [name for name in chosen if not (root / name).is_dir()]:
        raise DataError(
            f"{root}: {names[lost[0]].name} is there, but its folder of pictures {lost[0]}/ is "
            "not; add it, or choose another split"
        )
    return [_Source(names[name], _read_coco, root / name) for name in chosen]


def _wanted(root: Path, texts: Path, split: str, problems: list[str]) -> dict[str, str]:
    """The pictures of a split, each with its place in the list."""
    lists = {path.name: path for at in (root, texts) for path in at.glob("Flickr_8k.*Images.txt")}
    if (name := f"Flickr_8k.{split}Images.txt") not in lists:
        raise DataError(
            f"{root}: expected {name} for split={split!r}, got {sorted(lists) or 'no split list'}; "
            "split=None takes all pictures, and subset() any part of them"
        )
    return {line.strip(): where for where, line in _lines(lists[name], problems)}


def _usable_rows(
    source: _Source, problems: list[str], notes: list[str], odd: list[str], limit: int | None
) -> Iterator[_Row]:
    """The rows of one file that can be used; a line about every other one goes to `problems`.

    Captions that stand twice go to `odd`: `problems`, or `notes`, and then they are used.
    """
    with os.scandir(source.folder) as entries:
        paths = {entry.name: entry.path for entry in entries if entry.is_file()}
    first: dict[tuple[str, str], str] = {}
    named = set()
    for where, name, caption in source.read(source.file, problems):
        if source.wanted is not None and name not in source.wanted:
            continue
        named.add(name)
        words = split_words(caption)
        earlier = first.setdefault((name, caption), where)
        if not words:
            problems.append(f"{where}: the caption of {name} is empty (no words in {caption!r})")
        elif name not in paths:
            problems.append(f"{where}: there is no picture {name} in {source.folder.name}/")
        elif limit is not None and len(words) + 2 > limit:
            problems.append(
                f"{where}: expected a caption of at most {limit} ids with start and end, got "
                f"{len(words) + 2} from {caption[:60]!r}... (truncate=True cuts it, max_length "
                "moves the limit)"
            )
        else:
            if earlier is not where:
                line = earlier.rpartition(", ")[2]
                odd.append(f"{where}: {name} has the same caption as in {line}, {caption[:60]!r}")
            if earlier is where or odd is notes:
                yield _Row(where, paths[name], caption, " ".join(words))
    for name, where in (source.wanted or {}).items():
        if name not in named:
            notes.append(f"{where}: {name} has no row in {source.file.name}")


def _lines(path: Path, problems: list[str]) -> Iterator[tuple[str, str]]:
    """Lines with their place, blank ones left out; one that is not UTF-8 goes to `problems`."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        where = f"{path.name}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            problems.append(f"{where}: expected UTF-8, got {error.reason}")
            continue
        if text.strip():
            yield where, text.rstrip("\r")


def read_table(
    path: Path, problems: list[str], columns: Sequence[Sequence[str]] = COLUMNS
) -> Iterator[tuple[str, str, str]]:
    """Yields place, name of the picture and caption of each row of a table with a header.

    Fields are parted by what parts the header. A quote that no line ends within `_LINES` lines
    belongs to its own line alone. DataError: the header has not the columns, of which names are
    given in small letters.
    """
    lines = list(_lines(path, problems))
    header = lines[0][1] if lines else ""
    for comma in ",;\t|":
        names = [name.strip().strip('"').lower() for name in header.split(comma)]
        at, of = (next((n for n in names if n in known), None) for known in columns)
        if at is not None and of is not None:
            break
    else:
        raise DataError(
            f"{path}, line 1: expected a header with the columns {columns[0][0]!r} and "
            f"{columns[1][0]!r}, got {header[:60]!r}"
        )
    place, text, done = names.index(at), names.index(of), 0
    for i, (where, line) in enumerate(lines[1:], start=1):
        if i < done:  # the row before went on in this line
            continue
        # A reader for each line takes longer than all else. Most lines do not need one.
        fields, done = line.split(comma), i + 1
        if '"' in line or "\r" in line:
            try:
                fields, done = _quoted(lines, i, comma)
            except csv.Error as error:
                problems.append(f"{where}: malformed CSV ({error}) in {line[:60]!r}")
                continue
        if len(fields) != len(names):
            problems.append(
                f"{where}: expected {len(names)} fields, {' and '.join(names)}, got {len(fields)} "
                f"in {line[:60]!r}; a caption with {comma!r} stands in double quotes"
            )
            continue
        yield where, fields[place].strip(), fields[text].strip()


def _quoted(lines: list[tuple[str, str]], i: int, comma: str) -> tuple[list[str], int]:
    """The fields of the row that begins with line `i`, and the line where the next one begins."""
    first: csv.Error | None = None
    for stop in range(i + 1, min(i + _LINES, len(lines)) + 1):
        row = [f"{line}\n" for _, line in lines[i:stop]]
        try:
            return next(csv.reader(row, delimiter=comma, strict=True)), stop
        except csv.Error as error:
            first = first or error
            if "end of data" not in str(error):
                break
    raise first or csv.Error("no row")


def _read_tokens(path: Path, problems: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yields place, picture name, caption from lines ``name.jpg#0<TAB>caption``."""
    keys: dict[str, tuple[str, str]] = {}
    for where, line in _lines(path, problems):
        key, tab, caption = line.partition("\t")
        name, _, sentence = key.strip().rpartition("#")
        if not tab or not name or not sentence.isdecimal():
            problems.append(f"{where}: expected 'name.jpg#0<TAB>caption', got {line[:60]!r}")
        elif (earlier := keys.setdefault(key.strip(), (where, caption)))[1] != caption:
            line = earlier[0].rpartition(", ")[2]
            problems.append(f"{where}: {key.strip()} is already in {line}")
        else:
            yield where, name, caption.strip()


def _read_coco(path: Path, problems: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yields place, picture name, caption. The place is the position in the list "annotations"."""
    try:
        content = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}, column {error.colno}: expected JSON, got {error.msg}"
        ) from error
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: expected UTF-8, got {error.reason}") from error
    if not isinstance(content, dict) or any(type(content.get(name)) is not list for name in _COCO):
        raise DataError(f"{path}: expected an object with the lists 'images' and 'annotations'")
    names: dict[int, str] = {}
    taken, captioned, keys = set[str](), set[int](), dict[int, str]()
    for where, (name, key) in _entries(path, content, "images", problems):
        if key in names or name in taken:
            problems.append(f"{where}: the picture {name} or its id {key} stands there twice")
        else:
            names[key] = name
            taken.add(name)
    for where, (caption, image, key) in _entries(path, content, "annotations", problems):
        if image not in names:
            problems.append(f"{where}: there is no picture with the id {image} in 'images'")
        elif (earlier := keys.setdefault(key, where)) is not where:
            problems.append(f"{where}: the id {key} is already at {earlier.rpartition(', ')[2]}")
        else:
            captioned.add(image)
            yield where, names[image], caption.strip()
    for key, name in names.items():
        if key not in captioned:
            problems.append(f"{path.name}: the picture {name} (id {key}) has no caption")


def _entries(
    path: Path, content: dict[str, Any], name: str, problems: list[str]
) -> Iterator[tuple[str, list[Any]]]:
    """Place and values of each entry of one of the lists; a line about others to `problems`."""
    *some, last = map(repr, _COCO[name])
    for position, entry in enumerate(content[name]):
        where = f"{path.name}, {name}[{position}]"
        values = [entry.get(key) if isinstance(entry, dict) else None for key in _COCO[name]]
        if [type(value) for value in values] == [*_COCO[name].values()]:
            yield where, values
        else:
            wrong = f"expected {', '.join(some)} and {last}, got {str(entry)[:60]}"
            problems.append(f"{where}: {wrong}")


def summary(problems: Sequence[str], what: str = "cannot be used") -> str:
    """How many rows there are something about, and what of the first ones."""
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    rows = "row" if len(problems) == 1 else "rows"
    return f"{len(problems)} {rows} {what}: {'; '.join(problems[:5])}{more}"


def _unreadable(paths: list[str], size: int) -> list[tuple[str, Exception]]:
    def error(path: str) -> Exception | None:  # and not the pixels, of which there are too many
        return found if isinstance(found := tried(path, size), Exception) else None

    return [(p, e) for p, e in zip(paths, in_threads(error, paths), strict=True) if e]


def _encode(
    words: list[list[str]], tokenizer: WordTokenizer, sentences: int
) -> tuple[Tensor, Tensor]:
    """The first captions of each picture, int64 `[N, S, L]`, and the codes of their whole texts.

    From their words, by the ids that `WordTokenizer.encode` gives; what is too long is cut.
    """
    ids = {word: i for i, word in enumerate(tokenizer.words, start=len(SPECIALS))}
    most, unknown = tokenizer.max_length - 2, repeat(UNK)
    texts = [
        captions[s % min(len(captions), sentences)] for captions in words for s in range(sentences)
    ]
    rows = [[START, *map(ids.get, text.split()[:most], unknown), END] for text in texts]
    lengths = np.array([len(row) for row in rows])
    table = np.zeros((len(rows), lengths.max()), dtype=np.int64)
    table[np.arange(lengths.max()) < lengths[:, None]] = np.fromiter(
        chain.from_iterable(rows), dtype=np.int64, count=lengths.sum()
    )
    shape = (len(words), sentences)
    return torch.from_numpy(table).view(*shape, -1), text_codes(texts).view(shape)
