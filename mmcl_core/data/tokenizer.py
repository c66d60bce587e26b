"""Words to numbers: a plain word-level tokenizer, and one by characters for Korean.

The book uses words and not sub-words on purpose: a reader can see which word a token is, and the
laboratory's vocabulary is small and closed.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from mmcl_core.errors import DataError, MMCLError, ShapeError, check_count
from mmcl_core.files import write_whole

PAD, START, END, UNK = 0, 1, 2, 3
SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")

# A word: letters and digits of any script, and apostrophes inside ("dog's"). All else separates.
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def split_words(text: str) -> list[str]:
    """Splits a text into lower-case words; punctuation is dropped.

    A word is a run of letters and digits of any script, with apostrophes inside it kept:
    ``"A dog's T-shirt, 2 cats."`` gives ``["a", "dog's", "t", "shirt", "2", "cats"]``. Letters are
    composed first (Unicode NFC), so that an "ü" is one letter whichever way it was typed.
    Splitting ``" ".join(words)`` again gives the same words.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text.replace("’", "'"))
        # Lower-casing may leave a letter in two parts: compose again.
        return _WORD.findall(unicodedata.normalize("NFC", text.lower()))
    return _WORD.findall(text.lower())


class WordTokenizer:
    """Maps words to ids and back.

    Ids 0 to 3 are ``<pad>``, ``<start>``, ``<end>`` and ``<unk>``; ``words[i]`` has id ``i + 4``.
    Every encoded text starts with ``<start>`` and ends with ``<end>``. Two tokenizers are equal
    when their words and their limit are.

    Args:
        words: the vocabulary; its order is kept.
        max_length: the most ids an encoded text may have, ``<start>`` and ``<end>`` included;
            at least 3.

    Raises:
        DataError: a word comes twice, is a special, or is not one word as `split_words` would give
            it (upper case, a hyphen, a space), so that no text could ever reach it.
        MMCLError: `max_length` is below 3.
    """

    _split = staticmethod(split_words)
    _joint, _format = " ", "mmcl_core.WordTokenizer.1"
    _inner: tuple[str, ...] = ()  # words that no text consists of alone

    def __init__(self, words: Sequence[str], *, max_length: int = 64) -> None:
        if isinstance(words, str):
            raise DataError(f"words: expected a list of words, got one string {_shorten(words)!r}")
        self.max_length = check_count("max_length", max_length, 3)  # <start>, one word, <end>
        for word in words:
            if word in SPECIALS:
                raise DataError(f"words: {word!r} is a special token and is added by itself")
            if self._split(word) != [word] and word not in self._inner:
                raise DataError(
                    f"words: expected single lower-case words, got {word!r}, which is split into "
                    f"{self._split(word)}; pass those"
                )
        self._words = tuple(words)
        self._ids = {word: i for i, word in enumerate(self._words, start=len(SPECIALS))}
        if len(self._ids) < len(self._words):
            twice = [word for word, count in Counter(self._words).items() if count > 1]
            raise DataError(f"words: expected each word once, got these more often: {twice[:10]}")

    @classmethod
    def fit(
        cls,
        texts: Iterable[str],
        *,
        min_count: int = 1,
        max_words: int | None = None,
        max_length: int = 64,
    ) -> Self:
        """Takes the vocabulary from texts: words by falling count, ties by alphabet.

        Args:
            texts: any number of texts, read once.
            min_count: rarer words become ``<unk>``; at least 1.
            max_words: keep only so many of the most frequent words; None keeps all.
            max_length: as in the constructor.

        Raises:
            DataError: no word is left.
            MMCLError: a number is out of its range.
        """
        if isinstance(texts, str):
            raise DataError(f"texts: expected several texts, got one string {_shorten(texts)!r}")
        min_count = check_count("min_count", min_count)
        if max_words is not None:
            max_words = check_count("max_words", max_words)
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(cls._split(text))
        kept = [word for word, count in counts.items() if count >= min_count]
        if not kept:
            raise DataError(
                f"expected texts with words that occur at least {min_count} times, "
                f"got {len(counts)} different words, all of them rarer"
                if counts
                else "expected texts with words in them, got none"
            )
        kept.sort(key=lambda word: (-counts[word], word))
        return cls(kept[:max_words], max_length=max_length)

    @property
    def words(self) -> tuple[str, ...]:
        """The vocabulary without the specials; ``words[i]`` has id ``i + 4``."""
        return self._words

    def __len__(self) -> int:
        """The number of ids, the four specials included."""
        return len(SPECIALS) + len(self._words)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WordTokenizer) or type(other) is not type(self):
            return NotImplemented
        return self._words == other._words and self.max_length == other.max_length

    def __hash__(self) -> int:
        return hash((self._words, self.max_length))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._words)} words, max_length={self.max_length})"

    def encode(self, text: str, *, truncate: bool = False) -> list[int]:
        """Turns a text into ids, with ``<start>`` before and ``<end>`` after.

        Words are split by `split_words`; a word outside the vocabulary becomes ``<unk>``. A text
        without words gives ``[1, 2]``.

        Args:
            text: any text.
            truncate: cut a text that is too long to `max_length` ids, ``<end>`` kept.

        Raises:
            DataError: the text is too long, and `truncate` is False.
        """
        ids = [START, *(self._ids.get(word, UNK) for word in self._split(text)), END]
        if len(ids) > self.max_length:
            if not truncate:
                raise DataError(
                    f"expected at most {self.max_length} ids (<start> and <end> included), got "
                    f"{len(ids)} from the caption {_shorten(text)!r}; pass truncate=True to cut "
                    "it, or give the tokenizer a larger max_length"
                )
            ids[self.max_length - 1 :] = [END]
        return ids

    def encode_batch(self, texts: Sequence[str], *, truncate: bool = False) -> Tensor:
        """Encodes texts as one int64 tensor `[B, L]`, padded with 0 to the longest of them.

        Raises:
            ShapeError: there are no texts.
            DataError: a text is too long, and `truncate` is False; or `texts` is one string.
        """
        if isinstance(texts, str):
            raise DataError(f"texts: expected several texts, got one string {_shorten(texts)!r}")
        return pad([self.encode(text, truncate=truncate) for text in texts])

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Turns ids `[L]` back into words, joined by spaces.

        ``<pad>``, ``<start>`` and ``<end>`` are left out; ``<unk>`` is shown.

        Raises:
            ShapeError: `ids` is a tensor with more than one axis.
            DataError: an id is outside ``0 .. len(self) - 1``.
        """
        if isinstance(ids, Tensor):
            if ids.ndim != 1:
                raise ShapeError(f"ids: expected one caption [L], got shape {list(ids.shape)}")
            ids = ids.tolist()
        words = []
        for i in ids:
            if not 0 <= i < len(self):
                raise DataError(f"ids: expected 0 to {len(self) - 1}, got {i}")
            if i >= len(SPECIALS):
                words.append(self._words[i - len(SPECIALS)])
            elif i == UNK:
                words.append(SPECIALS[UNK])
        return self._joint.join(words)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the tokenizer as JSON, whole or not at all; makes a missing folder."""
        content = {"format": self._format, "max_length": self.max_length, "words": self._words}
        write_whole(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote.

        Raises:
            DataError: the file is missing, is not JSON (with the line), or is not a tokenizer.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{path}: expected a saved tokenizer, got {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: expected a tokenizer as UTF-8 JSON, got {error}") from error
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {error.lineno}: expected a tokenizer as JSON, got {error.msg}; "
                "the file may be cut short: save it again"
            ) from error
        if not isinstance(content, dict) or content.get("format") != cls._format:
            raise DataError(f"{path}: expected JSON with format {cls._format!r}, got another file")
        words, max_length = content.get("words"), content.get("max_length", 0)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DataError(f"{path}: expected 'words' to be a list of strings")
        try:
            return cls(words, max_length=max_length)
        except MMCLError as error:
            raise DataError(f"{path}: {error}") from error


class CharTokenizer(WordTokenizer):
    """A `WordTokenizer` whose "words" are characters, those of `split_words` and blanks.

    For Korean, where a word carries its particle: "얼굴", "얼굴을", "얼굴로" are three words, each
    met once or twice, of the same syllables. A syllable is one character, however it was typed.
    """

    _split = staticmethod(lambda text: list(" ".join(split_words(text))))
    _joint, _format, _inner = "", "mmcl_core.CharTokenizer.1", (" ", "'")


def pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """Stacks lists of ids into one int64 tensor `[B, L]`, padded with 0 to the longest.

    Raises:
        ShapeError: there are no rows.
    """
    if not rows:
        raise ShapeError("expected at least one text, got an empty batch")
    length = max(len(row) for row in rows)
    return torch.tensor([[*row, *([PAD] * (length - len(row)))] for row in rows], dtype=torch.int64)


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[:limit] + "..."
