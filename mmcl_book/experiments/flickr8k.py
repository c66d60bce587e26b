"""Flickr8k: does it hold for photographs? Five methods on frozen features, ridge and CCA as rivals.

8,091 photographs with five captions each (M. Hodosh, P. Young, J. Hockenmaier, JAIR 47, 2013), the
published lists of 6,000 pictures to train on, 1,000 to choose settings by (dev) and 1,000 to test
on. They are not part of the book: `MMCL_FLICKR8K` names their folder, and there, in `features/`,
what the frozen encoder says of each picture is kept in float16.

A picture is the mean of 25 tokens of an EfficientNet-lite0. Words are counted on the training
captions. The simple rivals are closed forms on these features and on tf-idf: ridge regression from
pictures to captions, and canonical correlation analysis (CCA). The methods see captions by the same
tf-idf, reduced (LSA), and learn a linear map on both sides; so it is the loss that differs. Or they
learn word vectors of their own.
"""

import os
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_book.experiments.closed_forms import Rival, cca, numbers, reduced, ridge
from mmcl_book.experiments.protocol import Better, Trials
from mmcl_core.batches import Batch
from mmcl_core.data import CaptionFolder, WordTokenizer
from mmcl_core.data.augment import Augment, compose, finder, paraphrase
from mmcl_core.data.tokenizer import SPECIALS, split_words
from mmcl_core.encoders import CaptionEncoder, Encoded
from mmcl_core.errors import DataError, MMCLError
from mmcl_core.evaluation import embed_all, recall_at_k
from mmcl_core.evaluation.summary import read_all
from mmcl_core.features import FeatureCaptions, FeatureEncoder, cached_features, drop_features
from mmcl_core.frozen import frozen_encoder
from mmcl_core.methods import CLIP, FDT, GMC, MCT, SigLIP
from mmcl_core.methods.fdt import Cooling
from mmcl_core.training import fit

VARIABLE = "MMCL_FLICKR8K"  # of the environment: the folder
ENCODER, SIZE = "efficientnet-lite0", 160
SPLITS = {"train": 6000, "dev": 1000, "test": 1000}  # pictures in the published lists
KS = (1, 5, 10)
# The commonest things in the training captions, picked by us from the list of words.
NOUNS = (
    "man", "dog", "people", "boy", "woman", "shirt", "girl", "water",
    "person", "child", "grass", "field", "dogs", "ball", "street", "men",
    "snow", "children", "camera", "mouth", "jacket", "beach", "bike", "girls",
    "park", "hat", "face", "wall", "women", "building", "crowd", "boys",
    "mountain", "rock", "toy", "dirt", "hair", "hill", "ocean", "road",
    "player", "kids", "shorts", "sidewalk", "path", "sand", "helmet", "bicycle",
    "lake", "trees", "pool", "coat", "fence", "skateboard", "tree", "stick",
    "baby", "soccer", "track", "ramp", "river", "car", "bench", "forest",
)  # fmt: skip
# Typed alone; chosen before any model was asked.
QUERIES = ("dog", "water", "snow", "beach", "bike", "soccer", "mountain", "skateboard")
TOP, SHARED, LIFT = 20, 0.6, 4.0  # of a token: its first pictures; when a noun is theirs
SEEDS = (20, 21, 22)


class Photographs(NamedTuple):
    """Pictures to train on, and others that are asked, as mean features of the frozen encoder."""

    train: FeatureCaptions
    asked: FeatureCaptions


def folder() -> Path:
    """The folder of Flickr8k, which the environment names.

    Raises:
        DataError: it names none.
    """
    if not (path := os.environ.get(VARIABLE, "")):
        raise DataError(
            f"expected the folder of Flickr8k in the environment variable {VARIABLE}; it is not "
            "set. The chapter on photographs says how the published files are laid out"
        )
    return Path(path)


def read(split: str, tokenizer: WordTokenizer | None = None, size: int = SIZE) -> CaptionFolder:
    """A split of the published lists. Warnings of the loader, of which we know, are left out.

    Raises:
        DataError: there is no such folder, or more than one picture in a hundred is missing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = CaptionFolder(folder(), split=split, size=size, tokenizer=tokenizer)
    if not 0.99 * SPLITS[split] <= len(data) <= SPLITS[split]:
        raise DataError(
            f"{folder()}: expected {SPLITS[split]} pictures in the split {split}, got {len(data)}"
        )
    return data


@lru_cache(maxsize=2)
def photographs(split: str) -> Photographs:
    """The training pictures and those of a split, by their features.

    These are standardised, number by number, by the training pictures. Words that stand once in
    the training captions are unknown.
    """
    plain = read("train")
    texts = (text for i in range(len(plain)) for text in plain.captions(i))
    words = WordTokenizer.fit(texts, min_count=2)
    data = [read(name, words) for name in ("train", split)]
    train, asked = (_means(of) for of in data)
    centre, spread = train.mean(axis=0), train.std(axis=0) + 1e-6
    features = [(x - centre) / spread for x in (train, asked)]
    return Photographs(*map(FeatureCaptions, data, features))


def _means(data: CaptionFolder) -> np.ndarray:
    """The mean over the tokens that the frozen encoder gives, float32 [N, F]; kept on disk."""
    place, encode = folder() / "features", frozen_encoder(ENCODER)
    found = cached_features(data, encode, place, name=ENCODER, progress=False)
    return np.stack([row.mean(axis=0, dtype=np.float32) for row in found])


def captions_of(data: CaptionFolder) -> tuple[list[str], Tensor]:
    """All captions, and for each the row of its picture."""
    texts = [data.captions(i) for i in range(len(data))]
    rows = torch.arange(len(data)).repeat_interleave(torch.tensor([len(of) for of in texts]))
    return [text for of in texts for text in of], rows


def says(data: CaptionFolder, words: Sequence[str]) -> Tensor:
    """Whether a word is in one of the captions of a picture: bool [N, W]."""
    said = [{w for text in data.captions(i) for w in split_words(text)} for i in range(len(data))]
    return torch.tensor([[word in of for word in words] for of in said])


# --- the methods ----------------------------------------------------------------------------------


class WordVectors(nn.Module):
    """Captions by tf-idf: a weighted sum of fixed vectors of their words, then a linear map.

    Args:
        table: float [V, D], a vector of each word number, as `lsa` makes it.
        weights: float [V], the idf of each; 0 for padding and what is unknown.
        middle: float [D], the mean of the training captions.
        width: of what is returned.
    """

    table: Tensor
    weights: Tensor
    middle: Tensor

    def __init__(self, table: Tensor, weights: Tensor, middle: Tensor, width: int) -> None:
        super().__init__()
        for name, value in (("table", table), ("weights", weights), ("middle", middle)):
            self.register_buffer(name, value)
        self.map, self.width = FeatureEncoder(table.shape[1], width=width, depth=0), width

    def forward(self, captions: Tensor) -> Encoded:
        """Captions int64 [B, L] -> `Encoded` with one token."""
        return self.map(summed(captions, self.table, self.weights) - self.middle)


def summed(captions: Tensor, table: Tensor, weights: Tensor) -> Tensor:
    """The reduced tf-idf of captions int64 [B, L], by the vectors and weights of words: [B, D]."""
    mine = weights[captions]
    share = mine / mine.norm(dim=1, keepdim=True).clamp(min=1e-6)
    return F.embedding_bag(captions, table, per_sample_weights=share, mode="sum")


@lru_cache(maxsize=4)
def lsa(data: CaptionFolder, dims: int) -> tuple[Tensor, Tensor, Tensor]:
    """What `WordVectors` stands on: the tf-idf of the training captions, by its main directions."""
    words, svd, _ = reduced(data, dims)
    known = words.vocabulary_
    at = [known.get(word, -1) for word in (*SPECIALS, *data.tokenizer.words)]
    there = torch.tensor([i >= 0 for i in at])
    table = torch.from_numpy(svd.components_.T[at]).float() * there[:, None]
    weights = torch.from_numpy(words.idf_[at]).float() * there
    return table, weights, summed(data.sentences[:, 0], table, weights).mean(dim=0)


def drop_words(share: float) -> Augment:
    """Each word of a caption becomes padding with this probability, which no encoder looks at."""

    def apply(batch: Batch) -> Batch:
        new: Batch = {}
        for name in ("caption", "caption_view"):
            if name in batch:
                ids = batch[name]
                lost = (torch.rand(ids.shape) < share).to(ids.device) & (ids >= len(SPECIALS))
                new[name] = ids.masked_fill(lost, 0)
        return {**batch, **new}

    return apply


def with_tags(data: CaptionFolder, tags: Tensor) -> Augment:
    """Adds "tags", float [B, T], of the samples of a batch."""
    find = finder(data)
    return lambda batch: {**batch, "tags": tags[find(batch)].float()}


def new_method(
    method: str, data: FeatureCaptions, seed: int, *, steps: int, width: int = 256, dim: int = 256,
    text: int = 400, temperature: float = 0.07, codebook: int = 512, end: float = 15.0,
    weights: dict[str, float] | None = None, queue: int = 2048,
) -> nn.Module:  # fmt: skip
    """One of the five, with the first weights of that seed. Seeds torch.

    Args:
        method: "CLIP", "SigLIP", "MCT", "FDT" or "GMC".
        data: has the words, and the width of the features.
        seed: of the weights.
        steps: of the training, for the cooling of an FDT.
        width: of both encoders; `dim` of the common space.
        dim: see `width`.
        text: dimensions of the fixed vectors of words; 0 learns vectors of `width`, from nothing.
        temperature: of the contrastive loss; of SigLIP and CLIP where it begins.
        codebook: entries of an FDT.
        end: of its cooling, from 300.
        weights: of the terms of an MCT.
        queue: of an MCT.
    """
    torch.manual_seed(seed)
    image, caption = FeatureEncoder(data.width, width=width, depth=0), _of_words(data, text, width)
    if method == "CLIP":
        return CLIP(image, caption, dim=dim, temperature=temperature)
    if method == "SigLIP":
        return SigLIP(image, caption, dim=dim, temperature=temperature)
    if method == "FDT":
        cooling = Cooling(300.0, end, steps)
        return FDT(
            image, caption, dim=dim, codebook_size=codebook, grounding_temperature=cooling,
            temperature=temperature,
        )  # fmt: skip
    if method == "MCT":
        return MCT(
            image, caption, tags=len(NOUNS), dim=dim, queue=queue, weights=weights,
            inter_temperature=temperature,
        )  # fmt: skip
    if method == "GMC":
        return GMC(
            {"image": image, "caption": caption}, common=width, dim=dim, hidden=2 * width,
            temperature=temperature,
        )  # fmt: skip
    raise MMCLError(f"method must be one of CLIP, SigLIP, MCT, FDT, GMC; got {method!r}")


def _of_words(data: FeatureCaptions, text: int, width: int) -> nn.Module:
    if text:
        return WordVectors(*lsa(data, text), width)
    longest = max(64, data.sentences.shape[2])
    return CaptionEncoder(len(data.tokenizer), width=width, depth=0, max_length=longest)


def train(
    seed: int, photos: Photographs, *, method: str, epochs: int = 15, batch_size: int = 512,
    lr: float = 2e-3, weight_decay: float = 0.1, words: float = 0.2, values: float = 0.5,
    **settings: Any,
) -> nn.Module:  # fmt: skip
    """Trains one method; in each epoch a picture comes with one of its five captions.

    Args:
        seed: of the first weights, the order, the captions and all dropout.
        photos: what to train on.
        method: see `new_method`; `settings`, too.
        epochs: of the training; likewise `batch_size`, `lr` and `weight_decay`, as of `fit`.
        words: share of the words that are dropped; likewise `values` of the features.
    """
    data = photos.train
    batch_size = min(batch_size, len(data))
    steps = epochs * (len(data) // batch_size)
    model = new_method(method, data, seed, steps=steps, **settings)
    views = ["image", "image_view"] if method == "MCT" else ["image"]
    augments = [
        paraphrase(data, view=method == "MCT"),
        drop_features(values=values, views=views),
        drop_words(words),
    ]
    if method == "MCT":
        augments.append(with_tags(data, says(data, NOUNS)))
    fit(
        model, data, epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay,
        augment=compose(*augments), seed=seed, progress=False,
    )  # fmt: skip
    return model


# --- what is measured -----------------------------------------------------------------------------


class Asked(NamedTuple):
    """Embeddings [N, D] of pictures, of all their captions, and of the typed words."""

    image: Tensor
    caption: Tensor
    typed: Tensor


def asked_of_rival(rival: Rival, data: FeatureCaptions) -> Asked:
    """Of a closed form. Text without a known word gets a vector that says nothing."""
    texts, _ = captions_of(data)
    image, caption, typed = (
        torch.from_numpy(np.asarray(z)).float()
        for z in (rival.image(numbers(data)), rival.caption(texts), rival.caption(QUERIES))
    )
    return Asked(*(F.normalize(z + 1e-9, dim=1) for z in (image, caption, typed)))


def asked_of(method: nn.Module, data: FeatureCaptions) -> Asked:
    """Of a trained method."""
    texts, _ = captions_of(data)
    image = embed_all(method, data, ("image",))
    caption, typed = (
        embed_all(method, {"caption": data.tokenizer.encode_batch(of)}, ("caption",))
        for of in (texts, list(QUERIES))
    )
    return Asked(image, caption, typed)


def measure(asked: Asked, data: FeatureCaptions) -> dict[str, float]:
    """Retrieval as it is published for these data, and typed words.

    - "recall@1, image to caption" and so on, k of 1, 5 and 10: one of its own captions is among the
      first k of all captions; "recall@1, caption to image": each caption finds its picture;
    - "recall@10": the mean of both;
    - "precision@10": of the first ten pictures for a typed word, the share of which a caption has
      the word, the mean over `QUERIES`; "precision@10, dog" and so on; "precision@10, chance";
    - "pictures asked", "captions asked": how many.
    """
    _, rows = captions_of(data)
    own = torch.arange(len(data))
    there = recall_at_k(asked.image, asked.caption, KS, groups=(own, rows))
    back = recall_at_k(asked.caption, asked.image, KS, groups=(rows, own))
    measured = {f"recall@{k}, image to caption": there[k] for k in KS}
    measured |= {f"recall@{k}, caption to image": back[k] for k in KS}
    measured["recall@10"] = (there[10] + back[10]) / 2
    has = says(data, QUERIES).double()
    first = (asked.typed @ asked.image.T).topk(min(10, len(data)), dim=1).indices
    hits = has.T.gather(1, first).mean(1)
    measured |= {f"precision@10, {w}": float(hit) for w, hit in zip(QUERIES, hits, strict=True)}
    measured["precision@10"] = float(hits.mean())
    measured["precision@10, chance"] = float(has.mean())
    return measured | {"pictures asked": float(len(data)), "captions asked": float(len(rows))}


def named(weights: Tensor, has: Tensor) -> Tensor:
    """The noun of each token: of its first `TOP` pictures, a share of `SHARED` has it, and `LIFT`
    times the share of all pictures.

    Args:
        weights: [N, C] of pictures; tokens with a weight in fewer than `TOP` are left out.
        has: bool [N, W], which nouns the captions of a picture have.

    Returns:
        int64 [K], of each token that is judged: the noun of the highest lift, or -1.
    """
    judged = (weights > 0).sum(0) >= TOP
    first = weights[:, judged].topk(TOP, dim=0).indices.T  # [K, TOP]
    return _noun(first, has)


def _noun(first: Tensor, has: Tensor) -> Tensor:
    if not len(first):
        return torch.zeros(0, dtype=torch.int64)
    share, base = has[first].double().mean(1), has.double().mean(0).clamp(min=1e-9)
    lift, noun = (share / base).masked_fill(share < SHARED, 0).max(dim=1)
    return noun.masked_fill(lift < LIFT, -1)


def codebook(method: FDT, data: FeatureCaptions, seed: int) -> dict[str, float]:
    """What the tokens of an FDT mean on photographs.

    - "tokens judged": tokens with a weight in `TOP` pictures;
    - "named tokens": share of these with a noun (`named`); "named tokens, random sets": of as many
      sets of pictures, drawn at random;
    - "tokens of dog" and so on: how many tokens have this noun.
    """
    weights = read_all(method, lambda b: method.ground(b, "image").weights, data)
    has = says(data, NOUNS)
    noun = named(weights, has)
    g = torch.Generator().manual_seed(seed)
    drawn = torch.stack([torch.randperm(len(data), generator=g)[:TOP] for _ in range(512)])
    by_chance = _noun(drawn, has)
    measured = {
        "tokens judged": float(len(noun)),
        "named tokens": float((noun >= 0).double().mean()) if len(noun) else 0.0,
        "named tokens, random sets": float((by_chance >= 0).double().mean()),
    }
    return measured | {f"tokens of {w}": float((noun == i).sum()) for i, w in enumerate(NOUNS)}


@lru_cache(maxsize=64)
def _of_rival(method: str, asked: str, settings: tuple[tuple[str, Any], ...]) -> dict[str, float]:
    """What a closed form gives, whatever the seed."""
    photos = photographs(asked)
    rivals: dict[str, Any] = {"ridge": ridge, "CCA": cca}
    rival = rivals[method](photos.train, **dict(settings))
    return measure(asked_of_rival(rival, photos.asked), photos.asked)


def run(seed: int, *, method: str, asked: str = "test", **settings: Any) -> dict[str, float]:
    """Trains on the training pictures, and measures on those of a split.

    Args:
        seed: of all that is drawn in the training.
        method: "ridge", "CCA", or see `new_method`.
        asked: the split, "test"; or "dev" in trials.
        settings: of `train`, or of `ridge` and `cca`.

    Returns:
        What `measure` gives; of an FDT, also what `codebook` does.
    """
    if method in ("ridge", "CCA"):
        return dict(_of_rival(method, asked, tuple(settings.items())))
    photos = photographs(asked)
    model = train(seed, photos, method=method, **settings)
    measured = measure(asked_of(model, photos.asked), photos.asked)
    return measured | codebook(model, photos.asked, seed) if isinstance(model, FDT) else measured


def _tried(method: str, **settings: dict[str, Any]) -> Trials:
    return Trials(
        "recall@10",
        {name: {"method": method, "asked": "dev"} | of for name, of in settings.items()},
    )


# The other methods have the settings of CLIP.
LONGER: dict[str, Any] = {"text": 800, "epochs": 40}
TRIALS = {
    "ridge": Trials(
        "recall@10",
        {
            f"{dims} dimensions, penalty {alpha:g}": {
                "method": "ridge", "asked": "dev", "dims": dims, "alpha": alpha,
            }
            for dims in (200, 400, 800, 1600, 3200)
            for alpha in (0.3, 1.0, 3.0, 10.0)
        },
    ),
    "CCA": Trials(
        "recall@10",
        {
            f"penalty {alpha:g}, power {power:g}": {
                "method": "CCA", "asked": "dev", "dims": 400, "kept": 200,
                "alpha": alpha, "power": power,
            }
            for alpha in (0.3, 0.5, 1.0)
            for power in (1.0, 2.0)
        },
    ),
    "CLIP": _tried(
        "CLIP",
        longer=LONGER | {"epochs": 20},
        usual={},
        longest=LONGER,
        **{"80 epochs": LONGER | {"epochs": 80}},
    ),
}  # fmt: skip
CONDITIONS: dict[str, dict[str, Any]] = {
    "ridge": {"method": "ridge", "dims": 800, "alpha": 1.0},
    "CCA": {"method": "CCA", "dims": 400, "kept": 200, "alpha": 0.5, "power": 1.0},
    "CLIP": {"method": "CLIP"} | LONGER,
    "FDT": {"method": "FDT"} | LONGER,
    "SigLIP": {"method": "SigLIP"} | LONGER,
    "GMC": {"method": "GMC"} | LONGER,
    "MCT": {"method": "MCT", "batch_size": 256} | LONGER,
}
THERE, BACK = "recall@10, image to caption", "recall@10, caption to image"
BETTER = (
    Better(
        "CLIP",
        ("ridge",),
        THERE,
        by=0.1,
        says="CLIP finds a caption of a photograph more often than ridge regression",
    ),
    Better("CLIP", ("ridge",), BACK, by=0.01, says="And the photograph of a caption"),
    Better(
        "CLIP",
        ("ridge", "CCA"),
        THERE,
        by=0.03,
        says="It finds a caption of a photograph more often than CCA, too",
    ),
)
