"""Captions with words that no picture shows: what people write besides what is to be seen."""

import copy

import torch
from torch import Tensor

from mmcl_core.data.drawing import VALUES
from mmcl_core.data.shapes import ShapesCaptions
from mmcl_core.data.tokenizer import END, WordTokenizer
from mmcl_core.errors import DataError, check_count, check_number

# Names of people; none is a word of the laboratory.
UNSEEN = (
    "anna", "ben", "clara", "david", "emma", "felix", "greta", "hugo",
    "ida", "jonas", "kim", "lena", "min", "noah", "olga", "paul",
)  # fmt: skip


def with_unseen_words(
    data: ShapesCaptions,
    rate: float,
    *,
    follows: str | None = None,
    count: int = 1,
    seed: int = 0,
) -> ShapesCaptions:
    """The same scenes; the captions of some end with words that the picture does not show.

    The words are drawn once for a scene, so that all its sentences share them, like the name of
    the photographer. The tokenizer knows them afterwards: its old words keep their numbers.

    Args:
        data: captions as they are drawn.
        rate: share of the scenes that get such words, in [0, 1].
        follows: None draws from all `UNSEEN` words alike, without a look at the scene. The name of
            an attribute draws from the few words that belong to its value in the first object:
            photographers with a favourite colour, say.
        count: words for each scene that gets some, at least 1.
        seed: of the draw.

    Raises:
        MMCLError: an argument is out of its range.
        DataError: the captions have such words already, the attribute is unknown, or a scene has
            no first object.
    """
    rate, count = check_number("rate", rate, "[0, 1]"), check_count("count", count)
    known = data.tokenizer.words
    if set(UNSEEN) & set(known):
        raise DataError("expected captions without unseen words; these have some already")
    if follows is not None and follows not in VALUES:
        raise DataError(f"unknown attribute {follows!r}; known are {', '.join(VALUES)}")
    n, sentences, length = data.sentences.shape
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(len(UNSEEN), (n, 1, count), generator=generator)
    if follows is not None:
        value = data.attributes[follows][:, :1, None]
        if int(value.min()) < 0:
            raise DataError(
                "expected scenes that have a first object; some have none in that place"
            )
        each = len(UNSEEN) // len(VALUES[follows])
        words = each * value + words % each
    chosen = torch.rand((n, 1, 1), generator=generator) < rate
    added = torch.where(chosen, len(data.tokenizer) + words, 0).expand(n, sentences, count)
    other = copy.copy(data)
    other.tokenizer = WordTokenizer((*known, *UNSEEN), max_length=length + count)
    other.sentences = _before_the_end(data.sentences, added)
    return other


def unseen_words(captions: Tensor, tokenizer: WordTokenizer) -> Tensor:
    """Which of the `UNSEEN` words each caption holds: bool [N, 16] for int64 [N, L].

    Raises:
        DataError: the tokenizer is not one that `with_unseen_words` made.
    """
    if tuple(tokenizer.words[-len(UNSEEN) :]) != UNSEEN:
        raise DataError("expected a tokenizer whose last words are the unseen ones")
    first = len(tokenizer) - len(UNSEEN)
    return (captions[:, :, None] == first + torch.arange(len(UNSEEN))).any(dim=1)


def _before_the_end(sentences: Tensor, added: Tensor) -> Tensor:
    """Sentences [N, S, L] with the words [N, S, K], 0 for none, put before their end."""
    bare = sentences.masked_fill(sentences == END, 0)
    end = torch.full_like(added[:, :, :1], END)
    table = torch.cat([bare, added, end], dim=2)
    # Push the empty places to the back; the order of the words stays.
    order = (table == 0).long().argsort(dim=2, stable=True)
    return table.gather(2, order)[:, :, :-1]
