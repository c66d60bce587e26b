"""Structure: whole against whole, or patches against words, of a CLIP trained on wholes alone.

Its patches and words can be compared all the same: by the heads that the pooled vectors take. With
the best patch for each word this is the half from text to picture of FILIP (Yao et al., ICLR 2022),
which is trained for it; CLIP is not.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmcl_book.experiments import small
from mmcl_core.batches import Batch
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.drawing import VALUES
from mmcl_core.data.groups import caption_groups, codes_of
from mmcl_core.data.shapes import SYNONYMS, WORDS
from mmcl_core.data.tokenizer import END, START, WordTokenizer
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import pointing_game
from mmcl_core.methods import CLIP

CONDITIONS: dict[str, dict[str, Any]] = {"trained": {"epochs": 8}, "untrained": {"epochs": 0}}
AND = WordTokenizer(WORDS).encode("and")[1]
POINTED = ("shape", "colour")  # attributes whose words are looked for


def train(seed: int, *, epochs: int = 8) -> CLIP:
    """Trains a CLIP as in the other experiments; 0 epochs leave it as it begins."""
    data = small.scenes(small.PAIRS, seed)
    method = small.new_clip(data, seed)
    if epochs:
        small.train(method, data, seed, epochs=epochs)
    return method


def words_of(method: CLIP, captions: Batch) -> tuple[Tensor, Tensor]:
    """Unit vectors [C, L, D] of words, and which are real [C, L]: not start, end or padding."""
    words, real = method.embed_tokens(captions, "caption")
    ids = captions["caption"]
    return words, real & (ids != START) & (ids != END)


def token_similarity(method: CLIP, pictures: Batch, captions: Batch) -> Tensor:
    """[B, C]: the mean over the words of a caption of the cosine with their best patch.

    Args:
        method: embeds tokens.
        pictures: has `image` [B, 3, H, W].
        captions: has `caption` [C, L].
    """
    patches, _ = method.embed_tokens(pictures, "image")
    words, real = words_of(method, captions)
    flat = words[real]  # [W, D], the words of all captions one after another
    best = (patches.flatten(0, 1) @ flat.T).unflatten(0, patches.shape[:2]).amax(dim=1)  # [B, W]
    of = real.nonzero()[:, 0]  # the caption of each word
    sums = best.new_zeros(len(best), len(real)).index_add(1, of, best)
    return sums / real.sum(dim=1)


def pooled_similarity(method: CLIP, pictures: Batch, captions: Batch) -> Tensor:
    """[B, C]: the cosines of pictures and captions, as CLIP compares them."""
    x = method.embed({"image": pictures["image"]})
    return x @ method.embed({"caption": captions["caption"]}).T


def phrase_similarity(method: CLIP, pictures: Batch, captions: Batch) -> Tensor:
    """[B, C]: as `token_similarity`, but the words of a phrase have to agree on one patch.

    A caption is cut at each "and". For each phrase, the patch with the highest mean cosine to its
    words; then the mean over phrases.
    """
    patches, _ = method.embed_tokens(pictures, "image")
    words, real = words_of(method, captions)
    joint = captions["caption"] == AND
    phrase = joint.cumsum(dim=1)
    total = patches.new_zeros(len(patches), len(words))
    for i in range(int(phrase.max()) + 1):
        inside = (real & (phrase == i) & ~joint).to(words.dtype)[:, :, None]
        mean = (words * inside).sum(1) / inside.sum(1).clamp(min=1)  # [C, D]; zero without words
        total += (patches.flatten(0, 1) @ mean.T).unflatten(0, patches.shape[:2]).amax(dim=1)
    return total / (phrase.amax(dim=1) + 1)


SIMILARITIES: dict[str, Callable[[CLIP, Batch, Batch], Tensor]] = {
    "pooled": pooled_similarity,
    "words": token_similarity,
    "phrases": phrase_similarity,
}


@torch.no_grad()
def measure(method: CLIP) -> dict[str, float]:
    """Retrieval, colliding bags and the pointing game.

    - "recall, pooled", "recall, words", "recall, phrases": mean recall@1 of both directions on the
      test scenes, by each of the three similarities;
    - "bags, pooled" and so on: share of pictures with a higher similarity to their own caption than
      to the one with the same words bound differently; guessing is 0.5;
    - "pointing, shape" and "pointing, colour": share of the words whose best patch lies on the
      object that they name; "pointing chance, shape" is that of a random patch.
    """
    test = small.scenes(1000, small.TEST_SEED)
    one, other = (
        data.batch(range(500))
        for data in ShapesCaptions.colliding(500, seed=small.TEST_SEED, size=small.SIZE)
    )
    batch = test.batch(range(len(test)))
    groups = caption_groups(codes_of(batch))
    measured = {}
    for name, similarity in SIMILARITIES.items():
        scores = similarity(method, batch, batch)
        measured[f"recall, {name}"] = (_found(scores, groups) + _found(scores.T, groups)) / 2
        own = [similarity(method, each, each).diag() for each in (one, other)]
        swapped = [similarity(method, one, other).diag(), similarity(method, other, one).diag()]
        measured[f"bags, {name}"] = (torch.cat(own) > torch.cat(swapped)).double().mean().item()
    for name in POINTED:
        game = pointing_game(*word_maps(method, test, name)[:2])
        measured |= {f"pointing, {name}": game.accuracy, f"pointing chance, {name}": game.chance}
    return measured


def run(seed: int, *, epochs: int = 8) -> dict[str, float]:
    """Trains and measures; see `measure`."""
    return measure(train(seed, epochs=epochs))


@torch.no_grad()
def word_maps(
    method: CLIP, data: ShapesCaptions, attribute: str
) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """How each patch answers to the words for one attribute, and where their object is.

    Only words that belong to one object of their scene: not "red", where two objects are red.

    Returns:
        Maps float [M, h, w] of cosines of the word and each patch; masks bool [M, H, W] of the
        objects; the scene of each, int64 [M]; the words.
    """
    if attribute not in VALUES or any(" " in value for value in VALUES[attribute]):
        raise MMCLError(f"expected an attribute with a word for each value; got {attribute!r}")
    batch = data.batch(range(len(data)))
    patches, _ = method.embed_tokens(batch, "image")
    words, _ = words_of(method, batch)
    side = round(patches.shape[1] ** 0.5)
    masks = data.masks(range(len(data)))
    values = data.attributes[attribute]
    maps, where, scene, named = [], [], [], []
    for value, word in enumerate(VALUES[attribute]):
        one = (values == value).sum(1) == 1
        for text in dict.fromkeys((word, SYNONYMS.get(word, word))):
            number = data.tokenizer.encode(text)[1]
            said = batch["caption"] == number
            rows = (said.any(1) & one).nonzero().flatten()
            vectors = words[rows, said[rows].long().argmax(1)]
            maps.append((patches[rows] @ vectors[:, :, None]).view(-1, side, side))
            where.append(masks[rows, (values[rows] == value).long().argmax(1)])
            scene.append(rows)
            named += [text] * len(rows)
    return torch.cat(maps), torch.cat(where), torch.cat(scene), named


def _found(scores: Tensor, groups: Tensor) -> float:
    """Recall@1 from scores [N, N]: no wrong key scores as high as the best correct one."""
    correct = groups[:, None] == groups
    best = scores.masked_fill(~correct, -torch.inf).amax(1)
    return (scores.masked_fill(correct, -torch.inf).amax(1) < best).double().mean().item()
