"""Over-alignment: what words without a counterpart in the picture do to the common space.

A CLIP is trained on captions that end with names, as of photographers. Either the names are drawn
without a look at the picture; or each photographer has a favourite corner for the first object. No
caption names positions.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcl_book.experiments import small
from mmcl_book.experiments.gap import embed_both
from mmcl_book.experiments.unseen_words import unseen_words, with_unseen_words
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.groups import first_captions
from mmcl_core.methods import CLIP

DETAIL, COUNT = 3, 2  # of the captions; names in each that has some
RATES = (0.25, 0.5, 1.0)
CONDITIONS: dict[str, dict[str, Any]] = {"no names": {"rate": 0.0}} | {
    f"{kind}, {rate:g}": {"rate": rate, "follows": follows}
    for kind, follows in {"by chance": None, "by corner": "position"}.items()
    for rate in RATES
}


class Trained(NamedTuple):
    """A CLIP, with the scenes that it was trained on."""

    method: CLIP
    train: ShapesCaptions


def train(seed: int, *, rate: float, follows: str | None = None) -> Trained:
    """Trains a CLIP on captions of which a share ends with names; see `with_unseen_words`."""
    data = small.scenes(small.PAIRS, seed, detail=DETAIL)
    data = with_unseen_words(data, rate, follows=follows, count=COUNT, seed=seed)
    method = small.new_clip(data, seed)
    small.train(method, data, seed)
    return Trained(method, data)


def measure(trained: Trained) -> dict[str, float]:
    """Recall of unseen pairs, and how far names alone pull scenes together.

    - "recall, plain" and "recall, with names": mean recall@1 of both directions on test scenes
      whose captions have no names, and on the same ones with two names in every caption, drawn
      without a look at the picture;
    - "captions tied": of the captions with these names, the mean cosine of two that share a name,
      minus that of two that share none. The names say nothing of the scenes: 0 is right.
    """
    plain = small.scenes(1000, small.TEST_SEED, detail=DETAIL)
    named = with_unseen_words(plain, 1.0, count=COUNT, seed=small.TEST_SEED)
    measured = {}
    for name, test in {"plain": plain, "with names": named}.items():
        image, caption = embed_both(trained.method, test)
        groups = first_captions(test)
        measured[f"recall, {name}"] = sum(small.there_and_back(image, caption, groups)) / 2
    measured["captions tied"] = tied(caption, unseen_words(named.sentences[:, 0], named.tokenizer))
    return measured


def run(seed: int, *, rate: float, follows: str | None = None) -> dict[str, float]:
    """Trains and measures; see `measure`."""
    return measure(train(seed, rate=rate, follows=follows))


def tied(vectors: Tensor, words: Tensor) -> float:
    """Mean cosine of pairs that share a word, minus that of pairs that share none.

    Args:
        vectors: unit vectors [N, D].
        words: which words each sample has, bool [N, W]. Samples without any are left out.

    Returns:
        0.0 where no two samples share a word, or all do.
    """
    some = words.any(dim=1)
    x, has = vectors[some].double(), words[some].double()
    shared = has @ has.T > 0
    pairs = ~torch.eye(len(x), dtype=torch.bool)
    if not (shared & pairs).any() or not (~shared & pairs).any():
        return 0.0
    cosines = x @ x.T
    return (cosines[shared & pairs].mean() - cosines[~shared & pairs].mean()).item()
