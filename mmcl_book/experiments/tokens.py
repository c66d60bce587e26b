"""What the tokens of an FDT mean: which patches and which words call them, and what is there.

A token is *called* by a picture or a caption that gives it a weight. The caller is the patch, or
the word, that scores highest for it: the maximum over patches or words took that one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_book.experiments import structure
from mmcl_core.batches import Batch
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.drawing import VALUES
from mmcl_core.data.shapes import SYNONYMS
from mmcl_core.data.tokenizer import END, START
from mmcl_core.encoders import ImageEncoder
from mmcl_core.methods import CLIP, FDT
from mmcl_core.modules import evaluating
from mmcl_core.sparsemax import sparsemax

OFTEN = 20  # calls from which on a token is judged


class Calls(NamedTuple):
    """Every call of a token by a sample."""

    token: Tensor  # int64 [K]
    sample: Tensor  # int64 [K]
    place: Tensor  # int64 [K], the patch or the word of the sample
    weight: Tensor  # float [K], of the token in the sample, above 0

    def of(self, token: int) -> "Calls":
        """Those of one token, the largest weight first."""
        rows = (self.token == token).nonzero().flatten()
        return Calls(*(each[rows[self.weight[rows].argsort(descending=True)]] for each in self))


def calls(method: FDT, data: ShapesCaptions, name: str) -> Calls:
    """All calls by the pictures (`name` "image") or by the first sentences ("caption")."""
    silent = 0.0 if method.heads[name].padding == "zero" else -torch.inf
    found = []
    with evaluating(method):
        for rows in torch.arange(len(data)).split(250):
            scores, weights, mask = method.token_attention({name: data.batch(rows)[name]})[name]
            caller = scores.masked_fill(~mask[:, :, None], silent).argmax(1)  # [B, C]
            sample, token = weights.nonzero(as_tuple=True)
            found.append((token, rows[sample], caller[sample, token], weights[sample, token]))
    return Calls(*map(torch.cat, zip(*found, strict=True)))


@torch.no_grad()
def centres(method: CLIP, data: ShapesCaptions, groups: int) -> Tensor:
    """Unit vectors [K, D] in the middle of `groups` groups of patches, by k-means."""
    from sklearn.cluster import MiniBatchKMeans

    patches = torch.cat(
        [vectors.flatten(0, 1) for vectors, _, _ in _vectors(method, data, "image")]
    )
    found = MiniBatchKMeans(groups, random_state=0, n_init=3, batch_size=4096).fit(patches.numpy())
    return F.normalize(torch.from_numpy(found.cluster_centers_).to(patches), dim=1)


@torch.no_grad()
def cluster_calls(method: CLIP, middle: Tensor, data: ShapesCaptions, name: str) -> Calls:
    """As `calls`, with groups of patches for tokens: each patch or word calls the nearest.

    Of the patches of a picture in one group, the nearest to its middle is the caller.

    Args:
        middle: unit vectors [K, D], of the groups.
    """
    found = []
    for vectors, real, rows in _vectors(method, data, name):
        cosines = vectors @ middle.T  # [B, N, K]
        nearest = F.one_hot(cosines.argmax(2), len(middle)).bool() & real[:, :, None]
        best, place = cosines.masked_fill(~nearest, -torch.inf).max(1)
        sample, token = best.isfinite().nonzero(as_tuple=True)
        found.append((token, rows[sample], place[sample, token], best[sample, token]))
    return Calls(*map(torch.cat, zip(*found, strict=True)))


def _vectors(
    method: CLIP, data: ShapesCaptions, name: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Unit vectors [B, N, D] of patches or words, which are real [B, N], and their samples [B]."""
    with evaluating(method):
        for rows in torch.arange(len(data)).split(250):
            yield *method.embed_tokens({name: data.batch(rows)[name]}, name), rows


def under(data: ShapesCaptions, called: Calls) -> dict[str, Tensor]:
    """What lies under each calling patch: attribute -> int64 [K], -1 for background.

    The object is the one that covers most of the patch.
    """
    n, side = len(data), data.size // ImageEncoder.patch
    cells = data.masks(range(n)).unflatten(3, (side, -1)).unflatten(2, (side, -1))
    most, slot = cells.sum((3, 5)).flatten(2).max(1)  # [N, P]
    sample, place = called.sample, called.place
    there = most[sample, place] > 0
    return {
        name: values[sample, slot[sample, place]].where(there, -1)
        for name, values in data.attributes.items()
    }


class Purity(NamedTuple):
    """How far the calls of each token agree."""

    token: Tensor  # int64 [T], those with at least `OFTEN` calls on an object
    share: dict[str, Tensor]  # attribute -> [T]: share of the commonest value
    above: dict[str, Tensor]  # attribute -> [T]: 0 as in all calls, 1 where all agree

    @property
    def best(self) -> Tensor:
        """[T]: `above` in the attribute in which the calls agree most."""
        return torch.stack(list(self.above.values())).amax(0)


def purity(token: Tensor, values: Mapping[str, Tensor]) -> Purity:
    """Whether what lies under the calls of a token is always the same.

    The share of the commonest value says little by itself: with four positions it is larger by
    chance than with six shapes. So `above` is (share - base) / (1 - base), where base is the share
    of the commonest value among the calls of all tokens.

    Args:
        token: int64 [K], of each call.
        values: attribute -> int64 [K]; calls with -1 are left out.
    """
    counts = {name: _counts(token, of, len(VALUES[name])) for name, of in values.items()}
    judged = next(iter(counts.values())).sum(1) >= OFTEN
    share, above = {}, {}
    for name, count in counts.items():
        base = count.sum(0).max() / count.sum().clamp(min=1)
        share[name] = count[judged].amax(1) / count[judged].sum(1)
        above[name] = (share[name] - base) / (1 - base)
    return Purity(judged.nonzero().flatten(), share, above)


def shuffled(values: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """The objects under the calls, exchanged among the calls; background stays where it is."""
    rows = (next(iter(values.values())) >= 0).nonzero().flatten()
    order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    return {name: of.index_copy(0, rows, of[order]) for name, of in values.items()}


def meanings(data: ShapesCaptions) -> dict[int, tuple[str, str]]:
    """Word number -> the attribute and the plain word: those of "crimson" are colour and "red".

    "top" and "left" are words for a position each. Words that name nothing are not there.
    """
    found = {}
    for name, values in VALUES.items():
        for plain in dict.fromkeys(word for value in values for word in value.split()):
            for word in (plain, SYNONYMS.get(plain, plain)):
                found[data.tokenizer.encode(word)[1]] = (name, plain)
    return found


class Agreement(NamedTuple):
    """Whether the patches that call a token lie on what the words that call it name."""

    token: Tensor  # int64 [T], those with `OFTEN` calls on objects whose words mostly name a value
    word: list[str]  # that value
    share: Tensor  # [T], of the calls by patches that lie on that value
    base: Tensor  # [T], the same of the calls of all tokens


def agreement(
    data: ShapesCaptions, patches: Calls, values: Mapping[str, Tensor], words: Calls
) -> Agreement:
    """Compares the patches that call a token with its commonest word; synonyms are one word.

    Tokens that are called most by a word that names nothing are left out.

    Args:
        data: the scenes of both kinds of calls.
        patches: calls by pictures; `values` is what lies under them.
        words: calls by captions.
    """
    known = meanings(data)
    plain = [("", ""), *dict.fromkeys(known.values())]
    number = torch.zeros(len(data.tokenizer), dtype=torch.int64)
    for i, meaning in known.items():
        number[i] = plain.index(meaning)
    said = number[data.sentences[words.sample, 0, words.place]]
    size = int(max(patches.token.max(), words.token.max())) + 1
    top = _counts(words.token, said, len(plain), size).max(1)
    on_object = next(iter(values.values())) >= 0
    often = patches.token[on_object].bincount(minlength=size) >= OFTEN
    rows = (often & (top.values > 0) & (top.indices > 0)).nonzero().flatten()
    share, base = [], []
    for token in rows:
        attribute, word = plain[int(top.indices[token])]
        named = torch.tensor([word in value.split() for value in VALUES[attribute]])
        on_it = named[values[attribute][on_object]].double()
        share.append(on_it[patches.token[on_object] == token].mean())
        base.append(on_it.mean())
    names = [plain[int(top.indices[token])][1] for token in rows]
    return Agreement(
        rows, names, *(torch.stack(of) if of else torch.empty(0) for of in (share, base))
    )


def commonest_words(data: ShapesCaptions, words: Calls) -> dict[int, str]:
    """Token -> the word that calls it most in captions, in its plain form ("red" of "crimson").

    A token that is called most by a word that names nothing has that word, such as "a" or "<end>".
    """
    known, found = meanings(data), {}
    said = data.sentences[words.sample, 0, words.place]
    for token in words.token.unique().tolist():
        number = int(said[words.token == token].mode().values)
        found[token] = known.get(number, ("", spell(data, number)))[1]
    return found


def spell(data: ShapesCaptions, number: int) -> str:
    """A word number as text, such as "crimson" or "<end>"."""
    special = {START: "<start>", END: "<end>"}
    return special.get(number) or data.tokenizer.decode([number])


def moved(weights: Tensor, away: Sequence[int], to: Sequence[int], like: Tensor) -> Tensor:
    """Weights [M, C] of which all of the tokens `away` is given to the tokens `to`.

    Args:
        weights: of pictures or captions.
        away: tokens that lose it.
        to: tokens that get it; if there are none, it is lost.
        like: [C], weights in whose shares they get it.
    """
    changed = weights.clone()
    changed[:, away] = 0
    share = like[to] / like[to].sum().clamp(min=1e-12)
    changed[:, to] += weights[:, away].sum(1, keepdim=True) * share
    return changed


class Spoken(nn.Module):
    """An FDT whose patches and words are vectors over the tokens, so that they can be compared.

    A patch is its scores [C]; a word is the sparsemax of its own. Their inner product is the mean
    score of the patch for the tokens that the word asks for.
    """

    def __init__(self, method: FDT) -> None:
        super().__init__()
        self.method = method

    def embed_tokens(self, batch: Batch, modality: str) -> tuple[Tensor, Tensor]:
        """Vectors [B, N, C] of each patch or word, and the mask [B, N]."""
        scores, _, mask = self.method.token_attention({modality: batch[modality]})[modality]
        return (scores if modality == "image" else sparsemax(scores)), mask


def token_maps(
    method: FDT, data: ShapesCaptions, attribute: str
) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Where the tokens of each word for an attribute are found in its picture.

    Returns as `structure.word_maps`, with `Spoken` vectors.
    """
    return structure.word_maps(cast(Any, Spoken(method)), data, attribute)


def _counts(token: Tensor, value: Tensor, kinds: int, size: int = 0) -> Tensor:
    """Calls of each token with each value: float64 [C, kinds]; values below 0 do not count."""
    token, value = token[value >= 0], value[value >= 0]
    size = max(size, int(token.max()) + 1 if len(token) else 0)
    return (token * kinds + value).bincount(minlength=size * kinds).view(size, kinds).double()
