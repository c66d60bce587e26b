"""WordTokenizer: round trips, limits, files."""

import json
import os
import pickle
import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmcl_core.data.tokenizer import PAD, SPECIALS, CharTokenizer, WordTokenizer, split_words
from mmcl_core.errors import DataError, MMCLError, ShapeError

TEXTS = ["A red circle.", "A blue square, a red ring!"]


def test_split_words_drops_punctuation_and_keeps_inner_apostrophes():
    assert split_words("A dog's T-shirt, 2 cats.") == ["a", "dog's", "t", "shirt", "2", "cats"]
    assert split_words("'Quoted' - \"it’s\" snake_case") == ["quoted", "it's", "snake", "case"]
    assert split_words("Ein GRÜNER Kreis") == split_words("ein gru\u0308ner kreis")
    # A "ǰ" is one letter in Unicode, a "J̌" is two.
    assert split_words("J\u030cx") == ["ǰx"]
    assert split_words("빨간 원, 파란 네모!") == ["빨간", "원", "파란", "네모"]
    assert split_words(" ...!? ") == []


@given(st.text())
def test_splitting_twice_changes_nothing(text):
    words = split_words(text)
    assert split_words(" ".join(words)) == words
    assert [split_words(word) for word in words] == [[word] for word in words]


def test_ids_are_specials_then_words_in_order():
    tokenizer = WordTokenizer(["red", "circle"])
    assert SPECIALS == ("<pad>", "<start>", "<end>", "<unk>")
    assert tokenizer.words == ("red", "circle")
    assert len(tokenizer) == 6
    assert tokenizer.encode("Circle, red. Green") == [1, 5, 4, 3, 2]
    assert tokenizer.encode("") == [1, 2]


def test_fit_orders_by_count_then_alphabet():
    tokenizer = WordTokenizer.fit(TEXTS)
    assert tokenizer.words == ("a", "red", "blue", "circle", "ring", "square")
    assert WordTokenizer.fit(TEXTS, min_count=2).words == ("a", "red")
    assert WordTokenizer.fit(TEXTS, max_words=3).words == ("a", "red", "blue")
    assert WordTokenizer.fit(iter(TEXTS), max_length=7).max_length == 7


@given(st.lists(st.text(), min_size=1).filter(lambda texts: any(map(split_words, texts))))
def test_decode_undoes_encode(texts):
    tokenizer = WordTokenizer.fit(texts, max_length=10_000)
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == " ".join(split_words(text))
    batch = tokenizer.encode_batch(texts)
    assert batch.dtype == torch.int64
    assert batch.shape == (len(texts), 2 + max(len(split_words(text)) for text in texts))
    for row, text in zip(batch, texts, strict=True):
        ids = tokenizer.encode(text)
        assert row[: len(ids)].tolist() == ids
        assert (row[len(ids) :] == PAD).all()
        assert tokenizer.decode(row) == " ".join(split_words(text))


def test_decode_shows_unknown_words_and_skips_specials():
    tokenizer = WordTokenizer(["red"])
    assert tokenizer.decode(tokenizer.encode("red dragon")) == "red <unk>"
    assert tokenizer.decode([0, 1, 4, 2, 0]) == "red"
    with pytest.raises(DataError, match="expected 0 to 4, got 5"):
        tokenizer.decode([5])
    with pytest.raises(DataError, match="got -1"):
        tokenizer.decode([-1])
    with pytest.raises(ShapeError, match=r"got shape \[1, 1\]"):
        tokenizer.decode(torch.ones(1, 1, dtype=torch.int64))


def test_too_long_a_caption_is_an_error_and_truncated_only_when_asked():
    tokenizer = WordTokenizer(["a", "b"], max_length=4)
    assert tokenizer.encode("a b") == [1, 4, 5, 2]
    long = "a b " + "a" * 200
    with pytest.raises(
        DataError, match=r"at most 4 ids.* got 5 .*'a b aaa.*\.\.\.'.*truncate=True"
    ):
        tokenizer.encode(long)
    with pytest.raises(DataError, match="at most 4"):
        tokenizer.encode_batch(["a", "a b a"])
    assert tokenizer.encode("b a b a", truncate=True) == [1, 5, 4, 2]
    assert tokenizer.encode_batch(["a", "a b a"], truncate=True).tolist() == [
        [1, 4, 2, 0],
        [1, 4, 5, 2],
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["red", "blue", "red"], r"more often: \['red'\]"),
        (["red", "<unk>"], "'<unk>' is a special"),
        (["Red"], r"got 'Red', which is split into \['red'\]"),
        (["t-shirt"], "got 't-shirt'"),
        ([""], "got ''"),
        ("red", "one string 'red'"),
    ],
)
def test_unusable_word_lists(words, message):
    with pytest.raises(DataError, match=message):
        WordTokenizer(words)


def test_unusable_arguments():
    with pytest.raises(MMCLError, match="max_length must be a whole number, at least 3"):
        WordTokenizer(["red"], max_length=2)
    with pytest.raises(MMCLError, match="min_count must be a whole number, at least 1; got 0"):
        WordTokenizer.fit(TEXTS, min_count=0)
    with pytest.raises(MMCLError, match="max_words"):
        WordTokenizer.fit(TEXTS, max_words=0)
    with pytest.raises(DataError, match="got 6 different words, all of them rarer"):
        WordTokenizer.fit(TEXTS, min_count=9)
    with pytest.raises(DataError, match="got none"):
        WordTokenizer.fit(["...", ""])
    with pytest.raises(DataError, match="one string"):
        WordTokenizer.fit("a red circle")
    with pytest.raises(DataError, match="one string"):
        WordTokenizer.fit(TEXTS).encode_batch("a red circle")
    with pytest.raises(ShapeError, match="empty batch"):
        WordTokenizer.fit(TEXTS).encode_batch([])


def test_equality_and_pickle():
    tokenizer = WordTokenizer.fit(TEXTS)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy == tokenizer
    assert hash(copy) == hash(tokenizer)
    assert copy.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert tokenizer != WordTokenizer.fit(TEXTS, max_length=32)
    assert tokenizer != WordTokenizer(tokenizer.words[::-1])
    assert tokenizer != list(tokenizer.words)


def test_save_and_load(tmp_path):
    tokenizer = WordTokenizer.fit([*TEXTS, "ein grüner Kreis", "빨간 원"], max_length=20)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    assert WordTokenizer.load(path) == tokenizer
    assert os.listdir(tmp_path) == ["tokenizer.json"]


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    WordTokenizer(["old"]).save(path)

    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        WordTokenizer(["new"]).save(path)
    assert WordTokenizer.load(path).words == ("old",)
    assert os.listdir(tmp_path) == ["tokenizer.json"]


GOOD = {"format": "mmcl_core.WordTokenizer.1", "max_length": 8, "words": ["red"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(GOOD, indent=1)[:-12], "line 5: expected a tokenizer as JSON"),
        ("", "line 1"),
        ("[1, 2]", "got another file"),
        (json.dumps({**GOOD, "format": "else"}), "got another file"),
        (json.dumps({**GOOD, "words": "red"}), "list of strings"),
        (json.dumps({**GOOD, "words": ["red", 3]}), "list of strings"),
        (json.dumps({**GOOD, "max_length": "8"}), "max_length must be a whole number"),
        (json.dumps({**GOOD, "max_length": 1}), "at least 3"),
        (json.dumps({**GOOD, "words": ["red", "red"]}), r"tokenizer\.json: words: .*'red'"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_load_rejects_malformed_files(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        WordTokenizer.load(path)
    assert "tokenizer.json" in str(caught.value)


def test_load_of_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        WordTokenizer.load(tmp_path / "none.json")


# --- by characters ------------------------------------------------------------------------------


def test_characters_are_those_of_the_words_and_blanks():
    tokenizer = CharTokenizer(["얼", "굴", " ", "웃"])
    assert tokenizer.encode("웃 얼굴!") == [1, 7, 6, 4, 5, 2]
    assert tokenizer.encode("  얼굴 ") == tokenizer.encode("얼굴")
    assert tokenizer.encode("눈") == [1, 3, 2]
    assert tokenizer.decode(tokenizer.encode("웃 눈")) == "웃 <unk>"
    assert tokenizer.decode(tokenizer.encode_batch(["얼굴", "웃"])[1]) == "웃"
    assert len(tokenizer) == 8
    assert repr(tokenizer) == "CharTokenizer(4 words, max_length=64)"


def test_a_syllable_is_one_character_however_it_was_typed():
    parts = unicodedata.normalize("NFD", "빨간색 하트")
    assert len(parts) > len("빨간색 하트")
    tokenizer = CharTokenizer.fit([parts])
    assert sorted(tokenizer.words) == sorted("빨간색 하트")
    assert tokenizer.encode(parts) == tokenizer.encode("빨간색 하트")
    assert tokenizer.decode(tokenizer.encode(parts)) == "빨간색 하트"
    assert tokenizer.encode(unicodedata.normalize("NFKD", "하트")) == tokenizer.encode("하트")


@given(st.lists(st.text(), min_size=1).filter(lambda texts: any(map(split_words, texts))))
def test_decode_undoes_encode_by_characters(texts):
    tokenizer = CharTokenizer.fit(texts, max_length=10_000)
    assert CharTokenizer(tokenizer.words, max_length=10_000) == tokenizer
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == " ".join(split_words(text))
        assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_words_and_characters_are_not_mistaken_for_each_other(tmp_path):
    characters, words = CharTokenizer(["a", "b"]), WordTokenizer(["a", "b"])
    assert characters != words
    assert words != characters
    characters.save(tmp_path / "tokenizer.json")
    loaded = CharTokenizer.load(tmp_path / "tokenizer.json")
    assert type(loaded) is CharTokenizer
    assert loaded == characters
    with pytest.raises(DataError, match=r"format 'mmcl_core\.WordTokenizer\.1'"):
        WordTokenizer.load(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("word", ["ab", "", "  ", "A", "-", "<pad>"])
def test_what_is_not_one_character_is_named(word):
    with pytest.raises(DataError, match="words: "):
        CharTokenizer(["a", word])
