"""MCT: can each modality keep what is its own? Terms on and off, and what is left to be read.

The captions name the shape alone, the tags name shape and colour, and the pictures show all. One
MCT for each choice of the terms `image`, `tags` and `caption` beside the two between the
modalities; a CLIP that sees the same samples; another weight of the image term; and a second view
that is no crop, but another drawing of the same objects.

Weights, temperature, batch and learning rate were chosen by trainings with seed 10, on test scenes
of seed 555.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_book.experiments import small
from mmcl_core.batches import Batch
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.augment import Augment, compose, crop, finder, paraphrase
from mmcl_core.data.drawing import ATTRIBUTES
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import (
    alignment,
    embed_all,
    modality_gap,
    recall_at_k,
    summary,
    uniformity,
)
from mmcl_core.evaluation.summary import read_all
from mmcl_core.methods import MCT
from mmcl_core.training import fit

SCENES, EPOCHS, DETAIL = 1800, 6, 1
BATCH, QUEUE, LR = 16, 256, 2e-3
TERMS = {"image": 0.2, "tags": 0.5, "caption": 0.2}  # of terms that are on
BETWEEN = ("image_to_caption", "caption_to_image")
PROBED = (1000, 1000)  # one-object scenes that a probe learns from, and is tested on
NEAREST = 5  # neighbours of a picture that are looked at


def named(terms: Sequence[str]) -> str:
    """The name of the condition in which these terms are on, beside those between."""
    return " + ".join(["between", *(term for term in TERMS if term in terms)])


CHOICES = [[], ["image"], ["tags"], ["caption"], ["image", "tags"], ["image", "caption"],
           ["tags", "caption"], ["image", "tags", "caption"]]  # fmt: skip
CONDITIONS: dict[str, dict[str, Any]] = {
    "CLIP": {"method": "clip"},
    **{named(terms): {"terms": terms} for terms in CHOICES},
    "within only": {"terms": [*TERMS], "between": False},
    "image x 1": {"terms": ["image"], "weights": {"image": 1.0}},
    "drawn again": {"terms": ["image"], "view": "again"},
}


def scenes(n: int, seed: int, **settings: Any) -> ShapesCaptions:
    """Scenes whose captions name the shapes, and whose tags name shapes and colours."""
    return small.scenes(n, seed, **{"detail": DETAIL} | settings)


def new_mct(
    data: ShapesCaptions,
    seed: int,
    terms: Sequence[str],
    *,
    weights: Mapping[str, float] | None = None,
    between: bool = True,
) -> MCT:
    """An MCT with the first weights of that seed. Seeds torch.

    Args:
        data: what it will be trained on.
        seed: of the weights and of the random keys in its queues.
        terms: of "image", "tags" and "caption", those that are on.
        weights: of these terms; those not named have `TERMS`.
        between: whether the two terms between the modalities are on.
    """
    full = {term: w for term, w in (TERMS | dict(weights or {})).items() if term in terms}
    full |= dict.fromkeys(BETWEEN, float(between))
    torch.manual_seed(seed)
    return MCT(
        small.image_encoder(),
        small.caption_encoder(data),
        tags=data.tags.shape[1] if "tags" in terms else 0,
        weights=dict.fromkeys(TERMS.keys() - {"tags"}, 0.0) | full,
        dim=small.DIM,
        queue=QUEUE,
        inter_temperature=0.05,
    )


def draw_again(data: ShapesCaptions, seed: int) -> Augment:
    """As second view another picture of the same objects: other background, radii, shifts, noise.

    It knows the attributes, so it is no augmentation that one could have; but a perfect one.
    """
    objects = {name: values.numpy() for name, values in data.attributes.items()}
    other, find = scenes(len(data), seed, attributes=objects), finder(data)

    def apply(batch: Batch) -> Batch:
        return {**batch, "image_view": other.images[find(batch)].float() / 255}

    return apply


def train(
    seed: int,
    *,
    method: str = "mct",
    terms: Sequence[str] = (),
    weights: Mapping[str, float] | None = None,
    between: bool = True,
    view: str = "crop",
) -> nn.Module:
    """Trains an MCT; or a CLIP on the same samples, in batches as in the other experiments.

    Args:
        seed: of scenes, first weights and order.
        method: "mct" or "clip".
        terms: see `new_mct`; likewise `weights` and `between`.
        view: the second view of a picture, "crop" or "again"; a CLIP has none.
    """
    if method not in ("mct", "clip") or view not in ("crop", "again"):
        raise MMCLError(f"expected mct or clip, crop or again; got {method!r} and {view!r}")
    data = scenes(SCENES, seed)
    if method == "clip":
        clip = small.new_clip(data, seed)
        small.train(clip, data, seed, epochs=EPOCHS)
        return clip
    mct = new_mct(data, seed, terms, weights=weights, between=between)
    second = crop() if view == "crop" else draw_again(data, seed + 5000)
    augment = compose(paraphrase(data, view=True), second)
    first = range(0, min(QUEUE, len(data)), BATCH)
    mct.warm_start(augment(data.batch(range(i, i + BATCH))) for i in first)
    fit(
        mct, data, epochs=EPOCHS, batch_size=BATCH, lr=LR, augment=augment, seed=seed,
        progress=False,
    )  # fmt: skip
    return mct


def measure(method: nn.Module) -> dict[str, float]:
    """Retrieval, probes, neighbours, and the shape of the common space.

    - "image_to_caption", "caption_to_image": recall@1 among 1,000 test scenes; every caption that
      means the same is correct, in whichever words; "recall" is the mean of both, "recall chance"
      that of a random order;
    - "colour before", "colour after" and so on: accuracy of a linear probe on the pooled features
      and on the embeddings of pictures with one object, "colour chance" of the commonest value;
    - "same tags", "two tags": share of the `NEAREST` neighbours of a test picture, by the cosine of
      pooled features, that have its tags, or two of them in common; with "chance" of any picture;
    - "paraphrase": share of captions whose nearest other sentence, by pooled features, means the
      same;
    - "gap", "alignment", "uniformity, pictures" and "uniformity, captions" of the embeddings.
    """
    test = scenes(1000, small.TEST_SEED)
    image, caption = (embed_all(method, test, (name,)) for name in ("image", "caption"))
    means = test.meaning()
    there, back = small.there_and_back(image, caption, means)
    measured = {
        "image_to_caption": there,
        "caption_to_image": back,
        "recall": (there + back) / 2,
        "recall chance": _same(means[:, None] == means, others=False),
        "paraphrase": recall_at_k(
            pooled(method, test, "caption"), pooled(method, test, "caption", 1), groups=means
        ),
        "gap": modality_gap(image, caption),
        "alignment": alignment(image, caption),
        "uniformity, pictures": uniformity(image),
        "uniformity, captions": uniformity(caption),
    }
    return measured | _neighbours(method, test) | _probes(method)


def run(seed: int, **config: Any) -> dict[str, float]:
    """Trains and measures; see `train` and `measure`."""
    return measure(train(seed, **config))


def pooled(
    method: nn.Module, data: ShapesCaptions, modality: str = "image", sentence: int = 0
) -> Tensor:
    """The pooled features [N, F] of all pictures, or of one sentence of each scene."""
    encoder = cast(Any, method).encoders[modality]
    given = {"caption": data.sentences[:, sentence]} if modality == "caption" else data
    return read_all(method, lambda batch: encoder(batch[modality]).pooled, given, (modality,))


def nearest(features: Tensor, count: int = NEAREST) -> Tensor:
    """The other rows with the highest cosine to each row: [N, F] -> int64 [N, count]."""
    x = F.normalize(features, dim=1)
    return (x @ x.T).fill_diagonal_(-2).topk(count, dim=1).indices


def _neighbours(method: nn.Module, test: ShapesCaptions) -> dict[str, float]:
    near = nearest(pooled(method, test))
    same = (test.tags[:, None] == test.tags).all(2)
    two = test.tags @ test.tags.T >= 2
    measured: dict[str, float] = {}
    for name, hit in {"same tags": same, "two tags": two}.items():
        measured[name] = hit.gather(1, near).double().mean().item()
        measured[f"{name} chance"] = _same(hit, others=True)
    return measured


def _same(hit: Tensor, *, others: bool) -> float:
    """The mean of a square matrix of hits, with its diagonal or without."""
    n, on = len(hit), hit.double().sum()
    return float((on - n) / (n * (n - 1)) if others else on / n**2)


def _probes(method: nn.Module) -> dict[str, float]:
    known, asked = (
        small.scenes(n, seed, objects=(1, 1))
        for n, seed in zip(PROBED, small.PROBE_SEEDS, strict=True)
    )
    before = summary.probes(method, known, asked)
    x, test_x = (embed_all(method, data, ("image",)) for data in (known, asked))
    after = summary.probe_attributes(x, known, test_x, asked)
    measured: dict[str, float] = {}
    for name in ATTRIBUTES:
        measured |= {f"{name} before": before[name], f"{name} after": after[name]}
        measured[f"{name} chance"] = before[f"{name}_chance"]
    return measured
