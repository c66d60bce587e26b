"""FDT: can patches and words speak in the same tokens?

Varied: the temperature of the grounding, fixed or cooled down, the size of the codebook, and what
padding does. Measured: retrieval, how many tokens are at work, whether the tokens of a word point
to its object, and whether the patches and the words that call a token mean the same. A CLIP with
the same encoders stands beside.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_book.experiments import small, structure, tokens
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.groups import first_captions
from mmcl_core.encoders import CaptionEncoder
from mmcl_core.evaluation import embed_all, pointing_game, summary
from mmcl_core.methods import CLIP, FDT
from mmcl_core.methods.fdt import Cooling, codebook_usage
from mmcl_core.training import Progress

EPOCHS, BATCH = 8, 128
START = 300.0  # of the cooling; the best of 100, 300 and 1000 on the scenes of seed 555
CONDITIONS: dict[str, dict[str, Any]] = {
    "cooled to 15": {"end": 15.0},
    "CLIP": {"training": "clip"},
    "untrained": {"start": 15.0, "epochs": 0},
    "fixed at 1": {"start": 1.0},
    "fixed at 10": {"start": 10.0},
    "fixed at 100": {"start": 100.0},
    "fixed at 1000": {"start": 1000.0},
    "cooled to 60": {"end": 60.0},
    "cooled to 15, 64 tokens": {"end": 15.0, "codebook": 64},
    "cooled to 15, 1024 tokens": {"end": 15.0, "codebook": 1024},
}
FEW = 250  # test scenes that are looked at after each epoch


class Trained(NamedTuple):
    """A method, and what was seen along the way."""

    method: CLIP
    along: list[dict[str, float]]  # at the start, and after each epoch; see `watch`


def encoders(data: ShapesCaptions) -> tuple[nn.Module, nn.Module]:
    """Of the small laboratory, with a second layer over the words."""
    words = CaptionEncoder(len(data.tokenizer), width=small.WIDTH, depth=2)
    return small.image_encoder(), words


def new_fdt(
    data: ShapesCaptions,
    seed: int,
    *,
    start: float = START,
    end: float | None = None,
    codebook: int = 512,
    padding: Any = "exclude",
    epochs: int = EPOCHS,
) -> FDT:
    """An FDT with the first weights of that seed. Seeds torch.

    Args:
        data: the scenes of the training.
        seed: of the weights.
        start: temperature of the grounding, at which it stays unless there is an `end`.
        end: cooled down to it over 80 % of the steps.
        codebook: number of entries.
        padding: "exclude" or "zero".
        epochs: of the training, for the cooling.
    """
    torch.manual_seed(seed)
    steps = epochs * max(len(data) // BATCH, 1)
    return FDT(
        *encoders(data),
        dim=small.DIM,
        codebook_size=codebook,
        grounding_temperature=start if end is None else Cooling(start, end, steps),
        padding=padding,
    )


def new_clip(data: ShapesCaptions, seed: int) -> CLIP:
    """A CLIP with the same encoders. Seeds torch."""
    torch.manual_seed(seed)
    return CLIP(*encoders(data), dim=small.DIM)


def watch(method: CLIP, few: ShapesCaptions) -> dict[str, float]:
    """Mean recall@1 among few test scenes; of an FDT, also the active tokens and the perplexity."""
    if not isinstance(method, FDT):
        return {"recall of few": recall(few, *both(method, few))}
    weights = weights_of(method, few)
    seen = {"recall of few": recall(few, *mixtures(method, weights))}
    for name, of in weights.items():
        usage = codebook_usage(of)
        seen |= {f"{name} active": usage.active, f"{name} perplexity": usage.perplexity}
    return seen


def train(seed: int, *, training: str = "fdt", epochs: int = EPOCHS, **settings: Any) -> Trained:
    """Trains an FDT or a CLIP, and looks at it after each epoch.

    Args:
        seed: of scenes, first weights and order.
        training: "fdt" or "clip".
        epochs: the cooling, too, is as long; 0 leaves the method as it begins.
        settings: of `new_fdt`.
    """
    data = small.scenes(small.PAIRS, seed)
    few = small.scenes(1000, small.TEST_SEED).subset(range(min(FEW, len(data))))
    clip = training == "clip"
    method = new_clip(data, seed) if clip else new_fdt(data, seed, epochs=epochs, **settings)
    along: list[dict[str, float]] = []

    def look(progress: Progress) -> None:
        along.append(watch(method, few))

    if epochs:
        small.train(method, data, seed, epochs=epochs, callbacks=[look])
    return Trained(method, along)


@torch.no_grad()
def measure(trained: Trained) -> dict[str, float]:
    """Retrieval and binding; for each word, where its tokens are; and what the tokens mean.

    - "recall": recall@1 among the test scenes, the mean of both directions;
    - "bags": share of pictures nearer to their own caption than to the one with the same words
      bound differently; guessing is 0.5;
    - "pointing, colour" and "pointing chance, colour", likewise shape: share of the words whose
      strongest patch lies on their object (`tokens.token_maps`; CLIP: `structure.word_maps`);
    - "recall of few@3" and so on: what was seen along the way, after epoch 3;
    - of an FDT, also what `codebook` measures.
    """
    method, along = trained
    test = small.scenes(1000, small.TEST_SEED)
    measured = {"recall": recall(test, *both(method, test)), "bags": bags(method)}
    for name in structure.POINTED:
        if isinstance(method, FDT):
            maps, masks, *_ = tokens.token_maps(method, test, name)
        else:
            maps, masks, *_ = structure.word_maps(method, test, name)
        game = pointing_game(maps, masks)
        measured |= {f"pointing, {name}": game.accuracy, f"pointing chance, {name}": game.chance}
    for epoch, seen in enumerate(along):
        measured |= {f"{name}@{epoch}": value for name, value in seen.items()}
    return measured | codebook(method, test) if isinstance(method, FDT) else measured


def codebook(method: FDT, test: ShapesCaptions) -> dict[str, float]:
    """How the tokens are used (`usage`), and what they mean.

    - "recall, other padding" and "caption active, other padding": of the same model, asked with
      the other rule for padding;
    - "calls on background": share of the calls by patches;
    - "purity" and "purity, shuffled": the median over tokens of how far the calls of a token agree
      in one attribute (`tokens.purity`);
    - "agreement" and "agreement, chance": the median over tokens of the share of calls that lie on
      what the commonest word of the token names (`tokens.agreement`);
    - "tokens of colour" and so on: number of tokens that agree in colour most, and by 0.5 at least;
    - "tokens judged" and "tokens with a word": of how many tokens the medians are.
    """
    measured = usage(weights_of(method, test))
    chosen = method.heads["caption"].padding
    set_padding(method, "zero" if chosen == "exclude" else "exclude")
    other = weights_of(method, test)
    set_padding(method, chosen)
    measured["recall, other padding"] = recall(test, *mixtures(method, other))
    measured["caption active, other padding"] = codebook_usage(other["caption"]).active
    patches, words = (tokens.calls(method, test, name) for name in method.modalities)
    values = tokens.under(test, patches)
    pure, by_chance = (tokens.purity(patches.token, of) for of in (values, tokens.shuffled(values)))
    agreed = tokens.agreement(test, patches, values, words)
    for name, above in pure.above.items():
        speaking = (above == pure.best) & (above >= 0.5)
        measured[f"tokens of {name}"] = float(speaking.sum())
    return measured | {
        "calls on background": float((values["shape"] < 0).double().mean()),
        "purity": median(pure.best),
        "purity, shuffled": median(by_chance.best),
        "agreement": median(agreed.share),
        "agreement, chance": median(agreed.base),
        "tokens judged": float(len(pure.token)),
        "tokens with a word": float(len(agreed.token)),
    }


def usage(weights: Mapping[str, Tensor]) -> dict[str, float]:
    """How a codebook is used by pictures and captions.

    - "image active", "image used", "image perplexity", and of captions: see `codebook_usage`;
    - "shared, own" and "shared, other": see `in_common`.

    Args:
        weights: float [N, C] of each modality.
    """
    measured = {
        f"{name} {what}": float(value)
        for name, of in weights.items()
        for what, value in codebook_usage(of)._asdict().items()
    }
    own, other = in_common(weights["image"], weights["caption"])
    return measured | {"shared, own": own, "shared, other": other}


def in_common(image: Tensor, caption: Tensor) -> tuple[float, float]:
    """The weight that a picture and its caption have in common, and a picture and another caption.

    That is the sum of the smaller weight of each entry, the mean over N samples of weights [N, C].
    """
    pairs = (torch.minimum(image, of) for of in (caption, caption.roll(1, 0)))
    own, other = (float(smaller.sum(1).mean()) for smaller in pairs)
    return own, other


def weights_of(method: FDT, data: ShapesCaptions) -> dict[str, Tensor]:
    """How pictures and captions are mixed: float [N, C] of each modality."""

    def read(name: str) -> Tensor:
        return summary.read_all(method, lambda b: method.ground(b, name).weights, data, (name,))

    return {name: read(name) for name in method.modalities}


def mixtures(method: FDT, weights: dict[str, Tensor]) -> list[Tensor]:
    """Unit vectors [N, D] of each modality from its weights."""
    return [F.normalize(of @ method.codebook.detach(), dim=1) for of in weights.values()]


def both(method: CLIP, data: ShapesCaptions) -> list[Tensor]:
    """Unit vectors [N, D] of pictures, and of captions."""
    return [embed_all(method, data, (name,)) for name in method.modalities]


def set_padding(method: FDT, padding: Any) -> None:
    """What padding does, from now on, in both groundings."""
    for head in method.heads.values():
        head.padding = padding


def recall(data: ShapesCaptions, image: Tensor, caption: Tensor) -> float:
    """Recall@1 of unit vectors [N, D], the mean of both directions; the same words are right."""
    groups = first_captions(data)
    return sum(small.there_and_back(image, caption, groups)) / 2


def bags(method: CLIP) -> float:
    """Share of colliding pictures that are nearer to their own caption."""
    pair = ShapesCaptions.colliding(500, seed=small.TEST_SEED, size=small.SIZE)
    one, other = (data.batch(range(500)) for data in pair)
    own = [structure.pooled_similarity(method, each, each).diag() for each in (one, other)]
    swapped = [
        structure.pooled_similarity(method, *each).diag() for each in ((one, other), (other, one))
    ]
    return (torch.cat(own) > torch.cat(swapped)).double().mean().item()


def run(seed: int, **config: Any) -> dict[str, float]:
    """Trains and measures; see `train` and `measure`."""
    return measure(train(seed, **config))


def median(values: Tensor) -> float:
    """Of [K] numbers; 0 of nothing."""
    return float(values.double().median()) if len(values) else 0.0
