"""Emoji: pictures that people drew, in five styles, with names and keywords.

Noto Emoji (Apache 2.0) and its first version (the "blobs"), Twemoji, EmojiOne 2 (CC BY 4.0) and
Fluent Emoji, flat (MIT); names and keywords of Unicode CLDR (Unicode 3.0) as emojibase (MIT) has
them. They come with this package, drawn by `tools/emoji.py`; `NOTICE` has the licences in full.
A concept is what one name stands for: "red heart"; that script says which ones there are.
"""

import io
import json
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmcl_core.batches import Batch, BatchDataset, row_of
from mmcl_core.data.pictures import in_threads, over, premultiplied
from mmcl_core.data.tokenizer import CharTokenizer, WordTokenizer
from mmcl_core.errors import DataError, MMCLError, check_count, check_number

FOLDER = Path(__file__).parent / "atlases"
# Of emoji.json, which has the sums of the pictures.
SUM = "8cbe99980fd8cad63e9e241dc02d21314516c13cda85cb5a64cf5cfc7703b2a4"
# The parts of the split by style.
PARTS = {"train": ("noto", "noto_v1", "fluent"), "validation": ("emojione",), "test": ("twemoji",)}
STYLES = tuple(chain.from_iterable(PARTS.values()))
LANGUAGES = {"en": WordTokenizer, "ko": CharTokenizer}


class Emoji(BatchDataset):
    """Pictures of emoji with names, keywords as tags, groups and subgroups.

    A batch has "image", "caption" (the name), "tags" and "index", and "caption_ko" with
    ``language="both"``. Pictures of one concept have one caption: methods take them as positives.

    Args:
        part: "train", "validation", "test", or "all" of them.
        split: what a part has for itself: "style" (see `PARTS`), or "concept", of which a fifth is
            for the test, a tenth for validation; left and right, man and woman stay together.
        styles: only these of `STYLES`; None takes all of the part.
        language: of "caption": "en", by words; "ko", by characters; "both", Korean in "caption_ko".
        sentences: S below: the name, then keywords in turn, for `augment.paraphrase`.
        min_concepts: tags are the English keywords that so many concepts have.
        size: side of a picture in pixels.
        ground: red, green and blue behind the pictures, in [0, 1]; see also `augment.composite`.

    Attributes:
        images: uint8 `[N, 4, 48, 48]`, RGBA.
        sentences: int64 `[N, S, L]`, 0 is padding; by `tokenizer`.
        korean: int64 `[N, L]`, names in Korean; by `tokenizer_ko`.
        tags: float32 `[N, T]`, multi-hot; see `tag_names`. One concept in ten has none.
        concept, style, group, subgroup: int64 `[N]`. Their names: `names["en"]`, `names["ko"]` and
            `characters`; `STYLES`; `group_names`; `subgroup_names`.
        rows: int64 `[N]`, the "index": style * number of all concepts + concept.

    Raises:
        MMCLError: an argument is out of its range.
        DataError: a file of the package is missing or damaged.
    """

    _each = ("images", "sentences", "korean", "tags", "concept", "style", "group", "subgroup")

    def __init__(
        self,
        part: Literal["train", "validation", "test", "all"] = "train",
        *,
        split: Literal["style", "concept"] = "style",
        styles: Sequence[str] | None = None,
        language: Literal["en", "ko", "both"] = "en",
        sentences: int = 1,
        min_concepts: int = 5,
        size: int = 48,
        ground: tuple[float, float, float] = (0.93, 0.93, 0.93),
    ) -> None:
        _check("part", part, (*PARTS, "all"))
        _check("split", split, ("style", "concept"))
        _check("language", language, (*LANGUAGES, "both"))
        known = PARTS[part] if split == "style" and part != "all" else STYLES
        chosen = known if styles is None else tuple(styles)
        if not chosen or not set(chosen) <= set(known) or len(set(chosen)) < len(chosen):
            raise MMCLError(f"styles must be one or more of {known}, each once; got {styles!r}")
        colour = [check_number("ground", value, "[0, 1]") for value in ground]
        if len(colour) != 3:
            raise MMCLError(f"ground must be red, green and blue; got {ground!r}")
        self.ground = torch.tensor(colour).view(3, 1, 1)
        self.size, self.language = check_count("size", size), language
        table = json.loads(_content("emoji.json", SUM))
        concepts = table["concepts"]
        pixels = in_threads(lambda style: _pictures(style, table), chosen)
        wanted = torch.tensor([split == "style" or part in ("all", c["part"]) for c in concepts])
        there = torch.stack([(of[:, 3] > 0).flatten(1).any(1) for of in pixels]) & wanted
        self.images = torch.cat([of[some] for of, some in zip(pixels, there, strict=True)])
        which, self.concept = there.nonzero(as_tuple=True)
        self.style = torch.tensor([STYLES.index(style) for style in chosen])[which]
        self.rows = self.style * len(concepts) + self.concept
        groups = torch.tensor([[of["group"], of["subgroup"]] for of in concepts])
        self.group, self.subgroup = groups[self.concept].unbind(1)
        self.group_names, self.subgroup_names = table["groups"], table["subgroups"]
        self.names = {key: [of[key][0] for of in concepts] for key in LANGUAGES}
        self.characters = [of["emoji"] for of in concepts]
        self.tokenizer_ko, korean = _encoded(concepts, "ko", 1)
        self.korean = korean[self.concept, 0]
        sentences, caption = check_count("sentences", sentences), "ko" if language == "ko" else "en"
        self.tokenizer, encoded = _encoded(concepts, caption, sentences)
        self.sentences = encoded[self.concept]
        keywords = [set(of["en"][1:]) for of in concepts]
        counts, least = Counter(chain(*keywords)), check_count("min_concepts", min_concepts)
        self.tag_names = tuple(sorted(tag for tag in counts if counts[tag] >= least))
        tags = torch.tensor([[float(tag in of) for tag in self.tag_names] for of in keywords])
        self.tags = tags[self.concept]

    def _read(self, rows: Tensor) -> Batch:
        """`image` over the ground, `caption` (the first sentence), `tags`, perhaps `caption_ko`."""
        image = over(premultiplied(self.images[rows]), self.ground, self.size)
        batch = {"image": image, "caption": self.sentences[rows, 0], "tags": self.tags[rows]}
        return {**batch, "caption_ko": self.korean[rows]} if self.language == "both" else batch

    def text(self, i: int, sentence: int = 0) -> str:
        """A sentence of picture `i`, without capitals and punctuation."""
        sentences = self.sentences[row_of(i, len(self))]
        return self.tokenizer.decode(sentences[row_of(sentence, len(sentences))])


def _check(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise MMCLError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def _content(name: str, expected: str) -> bytes:
    """What is in a file of this package, which has this sum."""
    path = FOLDER / name
    content = path.read_bytes() if path.is_file() else b""
    if sha256(content).hexdigest() != expected:
        wrong = "damaged, or of another version" if content else "not there"
        raise DataError(f"{path}: a file of mmcl_core is {wrong}; install mmcl_core again")
    return content


def _pictures(style: str, table: dict[str, Any]) -> Tensor:
    """A style: uint8 `[C, 4, 48, 48]`, all clear for a concept that it does not draw."""
    content = _content(f"{style}.webp", table["sha256"][f"{style}.webp"])
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(content)).convert("RGBA")))
    side, columns = table["side"], table["columns"]
    cells = pixels.view(-1, side, columns, side, 4).permute(0, 2, 4, 1, 3)
    return cells.reshape(-1, 4, side, side)[: len(table["concepts"])]


def _encoded(concepts: list[Any], language: str, count: int) -> tuple[WordTokenizer, Tensor]:
    """The tokenizer of all concepts, whatever the part; and their sentences, `[C, count, L]`."""
    texts = []
    for name, *keywords in (of[language] for of in concepts):
        texts += [name, *islice(cycle(keywords or [name]), count - 1)]
    tokenizer = LANGUAGES[language].fit(texts)
    return tokenizer, tokenizer.encode_batch(texts).view(len(concepts), count, -1)
