"""FDT: can patches and words speak in the same tokens?

Captions name shape, colour, size and texture (detail 3). Varied: how a CLIP pools its patches, and
an FDT, with 4,000 pairs and with few; of few, a codebook that was learned before, or at random.
Measured: retrieval, pointing, which attribute is told, and what the tokens mean.
"""

from collections.abc import Mapping
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_book.experiments import small, structure, tokens
from mmcl_book.experiments.protocol import Better, Trials
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.augment import paraphrase
from mmcl_core.data.drawing import VALUES
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.evaluation import embed_all, pointing_game, summary
from mmcl_core.methods import CLIP, FDT
from mmcl_core.methods.fdt import Cooling, codebook_usage
from mmcl_core.training import Progress, fit

EPOCHS, BATCH, DETAIL = 12, 128, 3
POINTED = structure.POINTED
START = 300.0  # of the cooling
CLUSTERS = 128  # of patches of a CLIP: about as many as an FDT uses of its tokens
FEW, FEW_EPOCHS, FEW_BATCH = 400, 30, 100  # pairs, of scenes that nothing else is trained on
LOOKED_AT, EVERY = 250, 3  # scenes that are looked at along a training, each third epoch
SEEDS = tuple(range(20, 30))  # 0 to 2 were a first look, after which claims were changed
WEIGHTS = ("FDT sparse",)

FEW_PAIRS: dict[str, Any] = {"few": True}


def _asked(**config: Any) -> dict[str, Any]:
    """A setting that is tried, on the scenes for that."""
    return config | {"asked": small.VALIDATION_SEED}


def _rates(measure: str, *rates: float, **config: Any) -> Trials:
    """The same at several learning rates."""
    return Trials(measure, {f"lr {lr:g}": _asked(**config, lr=lr) for lr in rates})


TRIALS = {
    "CLIP mean": _rates("recall", 0.0025, 0.005, 0.01, 0.02, pool="mean"),
    "CLIP cls": _rates("recall", 0.00125, 0.0025, 0.005, 0.01, 0.02, pool="cls"),
    "CLIP max": _rates("recall", 0.005, 0.01, 0.02, pool="max"),
    "FDT dense": _rates("recall", 0.003, 0.005, 0.01, 0.02),
    "FDT sparse": _rates("recall", 0.003, 0.005, 0.01, end=15.0),
    **{
        f"few pairs, CLIP {pool}": _rates("recall", 0.005, 0.01, 0.02, **FEW_PAIRS, pool=pool)
        for pool in ("mean", "max")
    },
    "few pairs, FDT": _rates("recall", 0.005, 0.01, 0.02, **FEW_PAIRS, end=15.0),
    "few pairs, FDT dense": _rates("recall", 0.005, 0.01, 0.02, **FEW_PAIRS),
}
SPARSE: dict[str, Any] = {"end": 15.0, "lr": 0.005}
FEW_FDT: dict[str, Any] = FEW_PAIRS | {"end": 15.0, "lr": 0.01}
CONDITIONS: dict[str, dict[str, Any]] = {
    "CLIP mean": {"pool": "mean", "lr": 0.005},
    "CLIP cls": {"pool": "cls", "lr": 0.005},
    "CLIP max": {"pool": "max", "lr": 0.01},
    "FDT dense": {"lr": 0.01},
    "FDT sparse": SPARSE,
    "few pairs, CLIP mean": FEW_PAIRS | {"pool": "mean", "lr": 0.005},
    "few pairs, CLIP max": FEW_PAIRS | {"pool": "max", "lr": 0.01},
    "few pairs, FDT": FEW_FDT,
    "few pairs, FDT dense": FEW_PAIRS | {"lr": 0.01},
    "few pairs, codebook known": FEW_FDT | {"known": "before"},
    "few pairs, codebook at random": FEW_FDT | {"known": "at random"},
}
AS_PUBLISHED = ("CLIP mean", "CLIP cls")  # ways to pool of the published CLIPs
FEW_RIVALS = ("few pairs, CLIP mean", "few pairs, CLIP max")
BETTER = (
    Better(
        "FDT dense", (*AS_PUBLISHED, "CLIP max"), "pointing, shape", by=0.03,
        says="Of all rungs, the tokens of a shape word point to its object best",
    ),
    Better(
        "FDT sparse", AS_PUBLISHED, "pointing, shape", by=0.23,
        says="Few tokens, too, point better than CLIPs that pool as the published ones",
    ),
    Better(
        "few pairs, FDT dense", FEW_RIVALS, "recall", by=0.03,
        says="With 400 pairs, tokens find more than vectors do",
    ),
    Better(
        "few pairs, FDT dense", FEW_RIVALS, "pointing, colour", by=0.05,
        says="With 400 pairs, the tokens of a colour word point to its object better than patches",
    ),
)  # fmt: skip


class Trained(NamedTuple):
    """A method, and what was seen along the way."""

    method: CLIP
    along: list[dict[str, float]]  # at the start, and each third epoch; see `watch`


def scenes(n: int, seed: int, detail: int = DETAIL) -> ShapesCaptions:
    """Scenes of the small laboratory, whose captions do not name the position."""
    return small.scenes(n, seed, detail=detail)


def encoders(data: ShapesCaptions, pool: Any = "max") -> tuple[nn.Module, nn.Module]:
    """Of the small laboratory, with a second layer over the words. An FDT does not pool."""
    words = CaptionEncoder(len(data.tokenizer), width=small.WIDTH, depth=2)
    return ImageEncoder(size=small.SIZE, width=small.WIDTH, pool=pool), words


def new_fdt(
    data: ShapesCaptions,
    seed: int,
    *,
    start: float = START,
    end: float | None = None,
    codebook: int = 512,
    steps: int = EPOCHS * (small.PAIRS // BATCH),
) -> FDT:
    """An FDT with the first weights of that seed. Seeds torch.

    Args:
        data: has the words.
        seed: of the weights.
        start: temperature of the grounding, at which it stays unless there is an `end`.
        end: cooled down to it over 80 % of the steps.
        codebook: number of tokens.
        steps: of the training, for the cooling.
    """
    torch.manual_seed(seed)
    return FDT(
        *encoders(data),
        dim=small.DIM,
        codebook_size=codebook,
        grounding_temperature=start if end is None else Cooling(start, end, steps),
    )


def new_clip(data: ShapesCaptions, seed: int, pool: Any = "max") -> CLIP:
    """A CLIP with the same encoders. Seeds torch."""
    torch.manual_seed(seed)
    return CLIP(*encoders(data, pool), dim=small.DIM)


@torch.no_grad()
def watch(method: CLIP, some: ShapesCaptions) -> dict[str, float]:
    """Recall and pointing among some scenes; of an FDT, also active tokens and perplexity."""
    seen = {"recall of some": recall(some, *both(method, some))}
    seen |= {f"pointing of some, {name}": points(method, some, name)[0] for name in POINTED}
    if isinstance(method, FDT):
        usage_of = codebook_usage(weights_of(method, some)["image"])
        seen |= {"active of some": usage_of.active, "perplexity of some": usage_of.perplexity}
    return seen


def train(
    seed: int,
    *,
    pool: str | None = None,
    lr: float = 5e-3,
    epochs: int = EPOCHS,
    detail: int = DETAIL,
    **settings: Any,
) -> Trained:
    """Trains an FDT, or with a `pool` a CLIP, and looks at it each third epoch.

    Args:
        seed: of scenes, first weights and order.
        pool: of a CLIP's patches; None trains an FDT.
        lr: the highest learning rate.
        epochs: the cooling, too, is as long; 0 leaves the method as it begins.
        detail: of the captions.
        settings: of `new_fdt`.
    """
    data = scenes(small.PAIRS, seed, detail)
    steps = max(epochs * (len(data) // BATCH), 1)
    method = new_clip(data, seed, pool) if pool else new_fdt(data, seed, steps=steps, **settings)
    along: list[dict[str, float]] = []
    test = scenes(1000, small.TEST_SEED, detail)
    some = test.subset(range(min(LOOKED_AT, len(test))))

    def look(progress: Progress) -> None:
        if progress.epoch % EVERY == 0:
            along.append(watch(method, some))

    if epochs:
        _fit(method, data, seed, epochs=epochs, lr=lr, callbacks=[look])
    return Trained(method, along)


# A few pairs begin with the codebook of another condition, and a page with its whole model.
_kept = lru_cache(maxsize=32)(train)


def trained(seed: int, **config: Any) -> CLIP:
    """The method of a condition, before it is measured."""
    return _kept(seed, **config).method


def few_pairs(
    seed: int, *, pool: str | None = None, lr: float, known: str = "", **settings: Any
) -> CLIP:
    """Trains on few pairs; an FDT perhaps with a codebook that is there before, and stays.

    Args:
        seed: of the pairs, the first weights and the order; and of the model from before.
        pool: of a CLIP's patches; None trains an FDT.
        lr: the highest learning rate.
        known: "" nothing; "before": the codebook that "FDT sparse" has learned on other scenes; "at
            random": the codebook as it begins.
        settings: of `new_fdt`.
    """
    data = scenes(FEW, seed + 1000)
    steps = FEW_EPOCHS * (len(data) // FEW_BATCH)
    method = new_clip(data, seed, pool) if pool else new_fdt(data, seed, steps=steps, **settings)
    if known:
        codebook = cast(FDT, method).codebook
        codebook.requires_grad = False
        if known == "before":
            before = _kept(seed, **SPARSE).method
            codebook.data.copy_(cast(FDT, before).codebook.data)
    _fit(method, data, seed, epochs=FEW_EPOCHS, batch_size=FEW_BATCH, lr=lr)
    return method


def _fit(method: nn.Module, data: ShapesCaptions, seed: int, **how: Any) -> None:
    """Trains with a new sentence for each scene in each epoch, without a bar."""
    how = {"batch_size": BATCH} | how
    fit(method, data, augment=paraphrase(data), seed=seed, progress=False, **how)


def run(seed: int, *, asked: int = small.TEST_SEED, **config: Any) -> dict[str, float]:
    """Trains and measures.

    Args:
        seed: of all that is drawn in the training.
        asked: of the scenes that are measured on.
        config: of `train`; with `few`, of `few_pairs`.

    Returns:
        What `measure` gives; of few pairs, "recall" and pointing alone. Along a training, "recall
        of some@3" and so on: what `watch` saw after epoch 3. In trials, what they are chosen by.
    """
    test = scenes(1000, asked, config.get("detail", DETAIL))
    if config.pop("few", False):
        return found_and_pointed(few_pairs(seed, **config), test)
    if asked != small.TEST_SEED:
        return found_and_pointed(trained(seed, **config), test)
    method, along = _kept(seed, **config)
    measured = measure(method, test)
    for i, seen in enumerate(along):
        measured |= {f"{name}@{EVERY * i}": value for name, value in seen.items()}
    return measured


def found_and_pointed(method: CLIP, test: ShapesCaptions) -> dict[str, float]:
    """Retrieval, and for each word, where its tokens or its patches are.

    - "recall": recall@1 among the scenes, the mean of both directions; a caption that means the
      same is right;
    - "pointing, colour" and "pointing chance, colour", likewise shape: share of the words whose
      strongest patch lies on their object (`tokens.token_maps`; CLIP: `structure.word_maps`).
    """
    measured = {"recall": recall(test, *both(method, test))}
    for name in POINTED:
        pointed, chance = points(method, test, name)
        measured |= {f"pointing, {name}": pointed, f"pointing chance, {name}": chance}
    return measured


@torch.no_grad()
def measure(method: CLIP, test: ShapesCaptions) -> dict[str, float]:
    """What `found_and_pointed` gives, and:

    - "bags": share of pictures nearer to their own caption than to the one with the same words
      bound differently; guessing is 0.5;
    - "told, shape" and so on: the same with a caption in which one attribute is another one;
    - "found, colour rewritten", "found, only colour rewritten", likewise shape: see `rewritten`;
    - of an FDT, also what `codebook` measures; of a CLIP, what `clusters` does.
    """
    measured = found_and_pointed(method, test) | {"bags": bags(method, test)}
    measured |= told(method, test)
    said = said_by(method, test) if isinstance(method, FDT) else None
    for name in POINTED:
        named, only = rewritten(method, test, name, said)
        measured |= {f"found, {name} rewritten": named, f"found, only {name} rewritten": only}
    if isinstance(method, FDT):
        return measured | codebook(method, test)
    return measured | clusters(method, test)


def points(method: CLIP, test: ShapesCaptions, attribute: str) -> tuple[float, float]:
    """The pointing game with the words for an attribute: share on the object, and chance."""
    if isinstance(method, FDT):
        maps, masks, *_ = tokens.token_maps(method, test, attribute)
    else:
        maps, masks, *_ = structure.word_maps(method, test, attribute)
    game = pointing_game(maps, masks)
    return game.accuracy, game.chance


def codebook(method: FDT, test: ShapesCaptions) -> dict[str, float]:
    """How the tokens are used (`usage`), and what they mean.

    - "calls on background": share of the calls by patches;
    - "purity" and "purity, shuffled": the median over tokens of how far the calls of a token agree
      in one attribute (`tokens.purity`);
    - "agreement" and "agreement, chance": the median over tokens of the share of calls that lie on
      what the commonest word of the token names (`tokens.agreement`);
    - "tokens of colour" and so on: number of tokens that agree in colour most, and by 0.5 at least;
    - "tokens judged" and "tokens with a word": of how many tokens the medians are.
    """
    measured = usage(weights_of(method, test))
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


def clusters(method: CLIP, test: ShapesCaptions) -> dict[str, float]:
    """A dictionary that is made after the training: what its entries mean.

    The patches of other scenes in `CLUSTERS` groups, by k-means. "purity", "agreement", "tokens
    judged" and "tokens with a word" of these groups, as of the tokens in `codebook`.
    """
    centres = tokens.centres(method, scenes(len(test), small.VALIDATION_SEED), CLUSTERS)
    patches, words = (tokens.cluster_calls(method, centres, test, m) for m in method.modalities)
    values = tokens.under(test, patches)
    pure = tokens.purity(patches.token, values)
    agreed = tokens.agreement(test, patches, values, words)
    return {
        "purity": median(pure.best),
        "agreement": median(agreed.share),
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


def both(method: CLIP, data: ShapesCaptions) -> list[Tensor]:
    """Unit vectors [N, D] of pictures, and of captions."""
    return [embed_all(method, data, (name,)) for name in method.modalities]


def recall(data: ShapesCaptions, image: Tensor, caption: Tensor) -> float:
    """Recall@1 of unit vectors [N, D], the mean of both directions; the same meaning is right."""
    return sum(small.there_and_back(image, caption, data.meaning())) / 2


def bags(method: CLIP, test: ShapesCaptions) -> float:
    """Share of colliding pictures, told in as much detail, that are nearer to their own caption."""
    drawn: Any = {"seed": test.seed, "size": test.size, "detail": test.detail}
    pair = ShapesCaptions.colliding(500, **drawn)
    images, captions = zip(*(both(method, data) for data in pair), strict=True)
    image, own, other = (torch.cat(of) for of in (images, captions, captions[::-1]))
    return ((image * own).sum(1) > (image * other).sum(1)).double().mean().item()


def told(method: CLIP, test: ShapesCaptions) -> dict[str, float]:
    """Share of pictures nearer to their own caption than to one of another value, by attribute."""
    image, caption = both(method, test)
    own, shares = (image * caption).sum(1), {}
    for name in test.named[:4]:
        other = embed_all(method, changed(test, name), ("caption",))
        shares[f"told, {name}"] = (own > (image * other).sum(1)).double().mean().item()
    return shares


def changed(test: ShapesCaptions, attribute: str) -> ShapesCaptions:
    """The same scenes, of which the first object has the next value of an attribute."""
    values = {name: of.numpy().copy() for name, of in test.attributes.items()}
    values[attribute][:, 0] = (values[attribute][:, 0] + 1) % len(VALUES[attribute])
    drawn: Any = {"seed": test.seed, "size": test.size, "detail": test.detail}
    return ShapesCaptions(attributes=values, **drawn)


class Catalogue(NamedTuple):
    """All scenes of one object, one of each meaning."""

    values: Tensor  # int64 [K, 4], shape, colour, size and texture
    caption: Tensor  # unit vectors [K, D]


def catalogue(method: CLIP, test: ShapesCaptions) -> Catalogue:
    """The captions of all single objects there are."""
    named = ("shape", "colour", "size", "texture")
    every = torch.tensor(list(product(*(range(len(VALUES[name])) for name in named))))
    scene = {name: every[:, i, None].numpy() for i, name in enumerate(named)}
    scene["position"] = torch.zeros(len(every), 1, dtype=torch.int64).numpy()
    drawn: Any = {"seed": test.seed, "size": test.size, "detail": test.detail}
    data = ShapesCaptions(attributes=scene, **drawn)
    return Catalogue(every, embed_all(method, data, ("caption",)))


def said_by(method: FDT, test: ShapesCaptions) -> dict[int, str]:
    """Token -> the word that calls it most in the captions."""
    return tokens.commonest_words(test, tokens.calls(method, test, "caption"))


def rewritten(
    method: CLIP, test: ShapesCaptions, attribute: str, said: Mapping[int, str] | None = None
) -> tuple[float, float]:
    """Changes an attribute of the pictures of one object, by what captions say, to each other one.

    An FDT: the weight of the tokens whose commonest word is the old value moves to those of the
    new one, in the shares that they have in pictures of that. A CLIP: the mean caption of the new
    value is added to the picture, that of the old one taken away.

    Args:
        method: an FDT or a CLIP.
        test: scenes; those of one object are asked.
        attribute: what is changed.
        said: of an FDT, what `said_by` gives, where it is known already.

    Returns:
        The shares of the nearest captions of the catalogue that name the new value, and that name
        it and are otherwise right.
    """
    column = list(VALUES).index(attribute)
    rows = ((test.attributes["shape"] >= 0).sum(1) == 1).nonzero().flatten()
    truth = torch.stack([test.attributes[name][rows].amax(1) for name in list(VALUES)[:4]], 1)
    every = catalogue(method, test)
    if isinstance(method, FDT):
        weights = weights_of(method, test)["image"][rows]
        called = said or said_by(method, test)
    else:
        image = embed_all(method, test, ("image",))[rows]
        of_value = [every.caption[every.values[:, column] == i].mean(0)
                    for i in range(len(VALUES[attribute]))]  # fmt: skip
    named, only = [], []
    for old, new in product(range(len(VALUES[attribute])), repeat=2):
        mine = truth[:, column] == old
        if old == new or not mine.any():
            continue
        if isinstance(method, FDT):
            away, to = ([t for t, word in called.items() if word == VALUES[attribute][i]]
                        for i in (old, new))  # fmt: skip
            like = weights[truth[:, column] == new].mean(0)
            moved = tokens.moved(weights[mine], away, to, like) @ method.codebook.detach()
        else:
            moved = image[mine] + of_value[new] - of_value[old]
        nearest = every.values[(F.normalize(moved, dim=1) @ every.caption.T).argmax(1)]
        wanted = truth[mine].clone()
        wanted[:, column] = new
        named.append((nearest[:, column] == new).double())
        only.append((nearest == wanted).all(1).double())
    return float(torch.cat(named).mean()), float(torch.cat(only).mean())


def median(values: Tensor) -> float:
    """Of [K] numbers; 0 of nothing."""
    return float(values.double().median()) if len(values) else 0.0
