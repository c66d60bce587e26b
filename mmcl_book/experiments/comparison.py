"""Which problem does each method solve? All of them on the same scenes, on every measure.

Captions name the shape and the colour of each object; its size, its texture and its place are in
the picture alone. Six pairs of shape and colour are never seen in training. Every method has the
same encoders, and sees the same number of samples.

Choices were made by trainings with seed 10, on test scenes of seed 555.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_book.experiments import fdt, small, structure, tokens
from mmcl_book.methods import FDTGMC, MoCoCLIP
from mmcl_core.batches import Batch
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.augment import compose, crop, paraphrase
from mmcl_core.data.drawing import ATTRIBUTES
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import (
    alignment,
    embed_all,
    modality_gap,
    pointing_game,
    recall_at_k,
    summary,
    uniformity,
)
from mmcl_core.methods import CLIP, FDT, GMC, MCT, SigLIP
from mmcl_core.methods.fdt import Cooling
from mmcl_core.training import fit

PAIRS, EPOCHS, BATCH, LR, DETAIL = 4000, 5, 128, 5e-3, 2
QUEUE = 1024  # keys, of MoCo and of MCT
START, COLDEST = 300.0, 15.0  # of the cooling, as in the experiment "fdt"
TESTED, BAGS, PROBED = 1000, 500, 1000  # scenes
MODALITIES = ("image", "caption")
CONDITIONS: dict[str, dict[str, Any]] = {
    "CLIP": {"method": "CLIP"},
    # Published is -10, for batches of 32,768: about the log-odds of one pair in a row. So is this.
    "SigLIP": {"method": "SigLIP", "bias": -5.0},
    "MoCo + CLIP": {"method": "MoCo + CLIP", "weight": 1.0},
    "MCT": {"method": "MCT", "weights": {"tags": 0, "image": 0.2, "caption": 0.2}},
    "FDT": {"method": "FDT"},
    "GMC": {"method": "GMC"},
    "FDT + GMC": {"method": "FDT + GMC"},
}


def scenes(n: int, seed: int, **settings: Any) -> ShapesCaptions:
    """Scenes of one or two objects, whose captions name shape and colour."""
    return small.scenes(n, seed, **{"detail": DETAIL} | settings)


def training_scenes(seed: int, n: int = PAIRS) -> ShapesCaptions:
    """`n` scenes without any of the six pairs of shape and colour that are held out."""
    drawn = scenes(n * 3 // 2, seed)
    return drawn.subset(drawn.compositional_split()[0][:n])


def image_encoder() -> ImageEncoder:
    return small.image_encoder()


def caption_encoder(data: ShapesCaptions) -> CaptionEncoder:
    return CaptionEncoder(len(data.tokenizer), width=small.WIDTH, depth=2)


def new(
    method: str, data: ShapesCaptions, seed: int, *, batch: int = BATCH, **settings: Any
) -> nn.Module:
    """A method with the first weights of that seed. Seeds torch.

    Args:
        method: one of "CLIP", "SigLIP", "MoCo + CLIP", "MCT", "FDT", "GMC" and "FDT + GMC".
        data: what it will be trained on.
        seed: of the weights, and of the random keys in queues.
        batch: samples in a step; a codebook is cooled over all steps.
        settings: of the method.

    Raises:
        MMCLError: there is no such method.
    """
    torch.manual_seed(seed)
    pair, dim = (image_encoder(), caption_encoder(data)), small.DIM
    cooling = Cooling(START, COLDEST, EPOCHS * max(len(data) // batch, 1))
    if method == "MoCo + CLIP":
        return MoCoCLIP(*pair, dim=dim, queue=QUEUE, **settings)
    if method == "MCT":
        return MCT(*pair, dim=dim, queue=QUEUE, **settings)
    if method == "GMC":
        return GMC(dict(zip(MODALITIES, pair, strict=True)), dim=dim, **settings)
    plain: dict[str, type[CLIP]] = {"CLIP": CLIP, "SigLIP": SigLIP}
    tokenised: dict[str, type[FDT]] = {"FDT": FDT, "FDT + GMC": FDTGMC}
    if method in plain:
        return plain[method](*pair, dim=dim, **settings)
    if method in tokenised:
        return tokenised[method](*pair, dim=dim, grounding_temperature=cooling, **settings)
    raise MMCLError(f"the methods are those of CONDITIONS, such as 'CLIP'; got {method!r}")


def train(
    seed: int, *, method: str = "CLIP", batch: int = BATCH, lr: float = LR, **settings: Any
) -> nn.Module:
    """Trains a method.

    Args:
        seed: of scenes, first weights and order.
        method: see `new`.
        batch: samples in a step. The number of samples that are seen is the same for all.
        lr: learning rate.
        settings: of the method.
    """
    data = training_scenes(seed)
    trained = new(method, data, seed, batch=batch, **settings)
    augment = paraphrase(data, view=True)
    if isinstance(trained, MoCoCLIP | MCT):
        augment = compose(augment, crop())
        first = range(0, min(QUEUE, len(data)), batch)
        trained.warm_start(augment(data.batch(range(i, i + batch))) for i in first)
    fit(
        trained, data, epochs=EPOCHS, batch_size=batch, lr=lr, augment=augment, seed=seed,
        progress=False,
    )  # fmt: skip
    return trained


def measure(method: nn.Module) -> dict[str, float]:
    """Every measure of the book, of anything that embeds pictures and captions.

    - "image_to_caption", "caption_to_image", "recall" (their mean): recall@1 among the test scenes
      without a held-out pair; every caption that means the same is correct;
    - "recall, unseen": of queries with a held-out pair, among all test scenes; "recall, seen": of
      the other queries, among the same scenes;
    - "bags": share of pictures nearer to their own caption than to the one with the same words
      bound differently;
    - "probe, size" and so on: accuracy of a linear probe on the features of the image encoder (of
      a method without one: on its embeddings); "probe after, size": on the embeddings of pictures;
    - "gap", "alignment", "uniformity" (the mean of pictures and captions) of the embeddings;
    - "told by both", "told by image", "told by caption": how often shape and colour are told of
      scenes with one object, by a probe that learned from complete samples;
    - "pointing, shape" and "pointing, colour": share of the words whose best patch lies on their
      object; only of methods whose patches and words can be compared;
    - of an FDT, "tokens in common": the weight that a picture and its caption have in common, the
      sum of the smaller weight of each token; "tokens in common, other": with another caption;
    - "recall chance" and so on: what guessing gives.
    """
    measured = _retrieval(method) | _bags(method) | _probes(method) | _told(method)
    measured |= _pointing(method)
    return measured | _tokens(method) if isinstance(method, FDT) else measured


def run(seed: int, **config: Any) -> dict[str, float]:
    """Trains and measures; see `train` and `measure`."""
    return measure(train(seed, **config))


def _retrieval(method: nn.Module) -> dict[str, float]:
    test = scenes(TESTED, small.TEST_SEED)
    image, caption = (embed_all(method, test, (name,)) for name in MODALITIES)
    means = test.meaning()
    seen, unseen = test.compositional_split()

    def recall(queries: Tensor, keys: Tensor) -> tuple[float, float]:
        """Of these queries among these keys, there and back."""
        groups = means[queries], means[keys]
        pairs = (image, caption), (caption, image)
        there, back = (recall_at_k(q[queries], k[keys], groups=groups) for q, k in pairs)
        return there, back

    everything = torch.arange(len(test))
    there, back = recall(seen, seen)
    same = (means[:, None] == means).double()
    return {
        "image_to_caption": there,
        "caption_to_image": back,
        "recall": (there + back) / 2,
        "recall chance": float(same[seen][:, seen].mean()),
        "recall, seen": sum(recall(seen, everything)) / 2,
        "recall, unseen": sum(recall(unseen, everything)) / 2,
        "recall chance, unseen": float(same[unseen].mean()),
        "gap": modality_gap(image, caption),
        "alignment": alignment(image, caption),
        "uniformity": (uniformity(image) + uniformity(caption)) / 2,
    }


def _bags(method: nn.Module) -> dict[str, float]:
    pair = ShapesCaptions.colliding(BAGS, seed=small.TEST_SEED, size=small.SIZE, detail=DETAIL)
    (image, caption), (other_image, other_caption) = (
        [embed_all(method, data, (name,)) for name in MODALITIES] for data in pair
    )
    own = torch.cat([(image * caption).sum(1), (other_image * other_caption).sum(1)])
    swapped = torch.cat([(image * other_caption).sum(1), (other_image * caption).sum(1)])
    return {"bags": (own > swapped).double().mean().item(), "bags chance": 0.5}


def _probes(method: nn.Module) -> dict[str, float]:
    known, asked = _one_object()
    x, test_x = (embed_all(method, data, ("image",)) for data in (known, asked))
    after = summary.probe_attributes(x, known, test_x, asked)
    before = after
    if "image" in getattr(method, "encoders", {}):
        before = summary.probes(method, known, asked)
    measured: dict[str, float] = {}
    for name in ATTRIBUTES:
        measured |= {f"probe, {name}": before[name], f"probe after, {name}": after[name]}
        measured[f"probe chance, {name}"] = after[f"{name}_chance"]
    return measured


def _told(method: nn.Module) -> dict[str, float]:
    known, asked = _one_object()
    found = summary.accuracy_by_modalities(method, known, asked, MODALITIES)
    return {
        "told by both": found["image + caption"],
        "told by image": found["image"],
        "told by caption": found["caption"],
        "told chance": found["chance"],
    }


def _one_object() -> list[ShapesCaptions]:
    """Scenes that a probe learns from, and others that it is tested on."""
    return [scenes(PROBED, seed, objects=(1, 1)) for seed in small.PROBE_SEEDS]


def _pointing(method: nn.Module) -> dict[str, float]:
    if isinstance(method, FDT) or hasattr(method, "token_attention"):
        maps_of: Callable[..., Any] = tokens.token_maps
    elif isinstance(method, MCT | GMC):
        method, maps_of = Spoken(method), structure.word_maps
    elif hasattr(method, "embed_tokens"):
        maps_of = structure.word_maps
    else:
        return {}
    test = scenes(TESTED, small.TEST_SEED)
    measured: dict[str, float] = {}
    for name in structure.POINTED:
        game = pointing_game(*maps_of(method, test, name)[:2])
        measured |= {f"pointing, {name}": game.accuracy, f"pointing chance, {name}": game.chance}
    return measured


def _tokens(method: FDT) -> dict[str, float]:
    weights = fdt.weights_of(method, scenes(TESTED, small.TEST_SEED))
    own, other = fdt.in_common(weights["image"], weights["caption"])
    return {"tokens in common": own, "tokens in common, other": other}


class Spoken(nn.Module):
    """The patches and words of an MCT or a GMC, by the head that their pooled vector takes."""

    def __init__(self, method: MCT | GMC) -> None:
        super().__init__()
        self.method = method

    def embed_tokens(self, batch: Batch, modality: str) -> tuple[Tensor, Tensor]:
        """Unit vectors [B, N, D] and the mask [B, N], as `CLIP.embed_tokens`."""
        method = cast(Any, self.method)
        encoded = method.encoders[modality](batch[modality])
        if isinstance(method, MCT):
            vectors = method.query[modality].inter(encoded.tokens)
        else:
            vectors = method.head(method.bases[modality](encoded.tokens))
        return F.normalize(vectors, dim=-1), encoded.mask
