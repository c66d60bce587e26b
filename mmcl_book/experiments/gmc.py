"""GMC: can a part of a sample stand for the whole of it?

The task is that of `missing.py`: the picture shows a shape and a colour, the caption names the
shape, the tags name the colour; the class is both. What is trained without labels learns from all
scenes, and a linear probe then learns the class from the few that have a label. Its rivals learn
from labels: fusions, a picture classifier, and one whose labels are read off caption and tags.
"""

from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from mmcl_book.experiments import small
from mmcl_book.experiments.parts import (
    Present,
    Scenes,
    choices,
    encoders,
    few,
    name,
    probed,
    share,
)
from mmcl_book.experiments.protocol import Better, Trials
from mmcl_core.batches import Batch
from mmcl_core.data.augment import compose, paraphrase, with_labels
from mmcl_core.data.drawing import ATTRIBUTES
from mmcl_core.encoders import encode, width_of
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import embed_all, modality_gap
from mmcl_core.evaluation.missing import closeness
from mmcl_core.evaluation.probes import chance_of, fit_probe
from mmcl_core.evaluation.summary import CLASSES, of_the_object, read_all, shape_and_colour
from mmcl_core.losses import gmc_loss
from mmcl_core.methods import GMC, LateFusion
from mmcl_core.methods.method import unit
from mmcl_core.training import Progress, fit

SEEDS = tuple(range(20, 30))  # 0 to 2 were a first look, after which two claims were added
SCENES, TESTED, EPOCHS = 2000, 1000, 8
PICTURE: Present = ("image",)
LABELS = (2, 5, 20)  # a class
CONDITIONS: dict[str, dict[str, Any]] = {
    "GMC": {"lr": 0.005},
    "no joint network": {"kind": "no joint", "lr": 0.002},
    "one CLIP": {"kind": "one CLIP", "lr": 0.002},
    "modality dropout": {"kind": "fusion", "lr": 0.008, "dropout": 0.5},
    "modality dropout, 2 labels": {"kind": "fusion", "labels": 2, "lr": 0.008, "dropout": 0.5},
    "modality dropout, 5 labels": {"kind": "fusion", "labels": 5, "lr": 0.008, "dropout": 0.5},
    "reader, 2 labels": {"kind": "reader", "labels": 2, "lr": 0.005},
    "co-trained, 2 labels": {"kind": "co-trained", "labels": 2, "lr": 0.005},
}
EVERY = ("no joint network", "one CLIP")
BETTER = (
    Better(
        "GMC", EVERY, "found, image", by=0.07,
        says="With no label, the complete scene nearest to a picture is of its class more often",
    ),
    Better(
        "GMC", (*EVERY, "co-trained, 2 labels"), "accuracy, pictures labelled, 2 labels", by=0.05,
        says="With labels on two pictures of each class, the class is told better from pictures",
    ),
    Better(
        "GMC", (*EVERY, "modality dropout"), "accuracy, image", by=0.04,
        says="Of what serves every choice of parts, with all labels, it reads the picture best",
    ),
    Better(
        "GMC", ("modality dropout, 2 labels",), "accuracy, image, 2 labels", by=0.32,
        says="From two labels a class, a probe on it tells a picture's class better than a fusion "
        "with modality dropout",
    ),
    Better(
        "GMC", ("co-trained, 2 labels",), "accuracy, pictures labelled, 2 labels", by=0.21,
        says="With labels on two pictures of each class, better than classifiers that are "
        "co-trained",
    ),
)  # fmt: skip
WEIGHTS = ("GMC",)


def _tried(
    rates: Sequence[float], dropouts: Sequence[float] = (), **config: Any
) -> dict[str, dict[str, Any]]:
    """Settings to try: learning rates, or those of a fusion with dropouts, at batch 32."""
    settings = {}
    for lr, dropout in product(rates, dropouts or (None,)):
        of = {"lr": lr} if dropout is None else {"lr": lr, "dropout": dropout}
        tried = ", ".join(f"{key} {value:g}" for key, value in of.items())
        settings[tried] = {**config, **of, "asked": small.VALIDATION_SEED}
    return settings


_PROBED = "accuracy, image, 5 labels"
# A first round, of six epochs and one seed of these scenes, chose between batches of 32 and 64.
TRIALS = {
    "GMC": Trials(_PROBED, _tried((0.002, 0.005, 0.008, 0.012))),
    "modality dropout": Trials(
        "accuracy, image", _tried((0.005, 0.008), (0.3, 0.5), kind="fusion")
    ),
    "modality dropout, 2 labels": Trials(
        "accuracy, image, 2 labels",
        _tried((0.005, 0.008), (0.3, 0.5), kind="fusion", labels=2),
    ),
    "no joint network": Trials(_PROBED, _tried((0.0005, 0.001, 0.002, 0.004), kind="no joint")),
    "one CLIP": Trials(_PROBED, _tried((0.001, 0.002), kind="one CLIP")),
    "co-trained, 2 labels": Trials(
        "accuracy, pictures labelled, 2 labels",
        _tried((0.002, 0.005), kind="co-trained", labels=2),
    ),
}


class Pairwise(GMC):
    """No joint network: every two parts are pulled to each other, a "CLIP between every two".

    A complete sample is the mean of its parts, too.

    Args:
        encoders: as for `GMC`.
        hub: leave out the pairs without this modality; None leaves out none.
        settings: as for `GMC`.
    """

    def __init__(
        self, encoders: dict[str, nn.Module], *, hub: str | None = None, **settings: Any
    ) -> None:
        super().__init__(encoders, **settings)
        del self.joint_encoders, self.bases["joint"]
        pairs = combinations(self.modalities, 2)
        self.pairs = [pair for pair in pairs if hub is None or hub in pair]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The NT-Xent of the two parts of each pair, summed."""
        z = {m: self.embed_modality(batch, m) for m in self.modalities}
        pairs = [gmc_loss([z[a]], z[b], self.temperature) for a, b in self.pairs]
        return {"total": torch.stack(pairs).sum()}

    def embed(self, batch: Batch) -> Tensor:
        """The mean of the parts at hand, back on the sphere: [B, D]."""
        parts = [self.embed_modality(batch, m) for m in self.modalities if m in batch]
        return unit(torch.stack(parts).mean(0))


class OneCLIP(Pairwise):
    """The picture against all the rest together: one network reads caption and tags.

    What is absent is zeros to that network, which has seen no zeros in training.
    """

    def __init__(self, encoders: dict[str, nn.Module], **settings: Any) -> None:
        super().__init__(encoders, **settings)
        self.widths = {m: width_of(encoders[m]) for m in self.modalities[1:]}
        common = cast(nn.Linear, self.bases["image"]).out_features
        self.bases["rest"] = nn.Linear(sum(self.widths.values()), common)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The NT-Xent of the picture and the rest."""
        picture = self.embed_modality(batch, "image")
        return {"total": gmc_loss([picture], self._rest(batch), self.temperature)}

    def embed(self, batch: Batch) -> Tensor:
        """The mean of the picture and the rest, as far as they are at hand: [B, D]."""
        parts = [self.embed_modality(batch, "image")] if "image" in batch else []
        if any(m in batch for m in self.modalities[1:]):
            parts.append(self._rest(batch))
        return unit(torch.stack(parts).mean(0))

    def _rest(self, batch: Batch) -> Tensor:
        size = len(next(iter(batch.values())))
        pooled = [
            encode(self.encoders[m], batch[m]).pooled if m in batch else torch.zeros(size, width)
            for m, width in self.widths.items()
        ]
        return self._head("rest", torch.cat(pooled, dim=-1))


CONTRASTIVE: dict[str, type[GMC]] = {"GMC": GMC, "no joint": Pairwise, "one CLIP": OneCLIP}
KINDS = (*CONTRASTIVE, "fusion", "reader", "co-trained")


Watch = Callable[[Progress], None]


class Trained(NamedTuple):
    """A method, and where it put the test scenes along the way."""

    method: nn.Module
    data: Scenes  # all that was drawn to train on
    y: Tensor  # int64 [N], the classes of these
    said: Tensor  # int64 [N], those that it is told, if it trains on all
    test: Scenes
    labels: Tensor  # int64 [M], of the test scenes
    # At the start and at the end, or after each epoch: each part alone, and all -> [M, D].
    seen: list[dict[Present, Tensor]]
    # At the start and after each epoch: how often the class is told from the picture alone.
    alone: list[float]
    first: nn.Module | None  # of what is co-trained: what has learned from few pictures


def new_method(kind: str, data: Scenes, seed: int, **settings: Any) -> nn.Module:
    """A method with the first weights of that seed. Seeds torch.

    Args:
        kind: one of `KINDS`.
        data: scenes with the parts that it has to know.
        seed: of the weights.
        settings: as for `GMC` or `LateFusion`.
    """
    torch.manual_seed(seed)
    trunks = encoders(data)
    if kind in CONTRASTIVE:
        return CONTRASTIVE[kind](trunks, **{"dim": 64} | settings)
    if kind not in KINDS:
        raise MMCLError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if kind != "fusion":
        trunks = {"image": trunks["image"]}
    return LateFusion(trunks, CLASSES, dim=small.WIDTH, **settings)


def train(
    seed: int,
    *,
    kind: str = "GMC",
    parts: int = 3,
    labels: int | None = None,
    scenes: int = SCENES,
    epochs: int = EPOCHS,
    batch_size: int = 32,
    lr: float = 5e-3,
    asked: int = small.TEST_SEED,
    each: bool = False,
    **settings: Any,
) -> Trained:
    """Trains a method on scenes; it is asked about test scenes after each epoch.

    Args:
        seed: of scenes, first weights, order, and of which scenes have labels.
        kind: one of `KINDS`.
        parts: number of modalities, 3 to 5.
        labels: scenes of each class that have a label, for kinds that train on labels; None is all.
            With few, a kind makes as many steps as with all. A "reader" reads them off caption
            and tags for all scenes, and is a classifier of pictures. What is "co-trained" has
            labels on pictures alone: a classifier of these guesses the class of all scenes, a
            reader learns from the guesses, and another classifier from what it reads.
        scenes: number of scenes to train on.
        epochs: passes over them.
        batch_size: samples of a step.
        lr: the highest learning rate.
        asked: the seed of the test scenes.
        each: keep where these lie after each epoch, and not at both ends alone.
        settings: as for `new_method`.
    """
    data, test = Scenes(scenes, seed, parts), Scenes(TESTED, asked, parts)
    y, truth = shape_and_colour(data.drawn), shape_and_colour(test.drawn)
    every, steps = torch.arange(len(y)), epochs * (len(y) // batch_size)
    labelled = few(y, labels, seed) if labels else every

    def learn(method: nn.Module, said: Tensor, among: Tensor, *callbacks: Watch) -> None:
        """With few scenes as many steps as with all."""
        size = min(batch_size, len(among))
        fit(
            method,
            Subset(cast(Any, data), among.tolist()),
            epochs=steps // (len(among) // size),
            batch_size=size,
            lr=lr,
            augment=compose(paraphrase(data.drawn), with_labels(data.drawn, said)),
            callbacks=callbacks,
            seed=seed,
            progress=False,
        )

    said, first = y, None
    if kind == "reader":
        said = read_off(data, y[labelled], labelled)
    elif kind == "co-trained":
        first = new_method(kind, data, seed, **settings)
        learn(first, y, labelled)
        said = read_off(data, _predicted(first, data, PICTURE), every)
    method = new_method(kind, data, seed, **settings)
    trained = Trained(method, data, y, said, test, truth, [], [], first)
    if kind == "fusion" and labels:
        learn(method, y, labelled)
    else:
        learn(method, said, every, lambda progress: _watch(trained, progress, seed, each))
    return trained


def read_off(data: Scenes, told: Tensor, among: Tensor) -> Tensor:
    """The class of every scene, as it is read off caption and tags: int64 [N].

    A logistic regression on words and tags. What it learns from may be what another classifier says
    of the pictures: that is co-training (Blum & Mitchell, 1998).

    Args:
        data: the scenes.
        told: classes to learn from, int64 [K].
        among: the scenes that they are of, int64 [K].
    """
    sentences = data.drawn.sentences  # [N, S, L]
    words = torch.zeros(*sentences.shape[:2], int(sentences.max()) + 1)
    words.scatter_(2, sentences, 1.0)
    words[:, :, 0] = 0  # padding
    tags = data.drawn.tags[:, None].expand(-1, words.shape[1], -1)
    said = torch.cat([words, tags], dim=2)  # [N, S, words and tags]
    known = said[among].flatten(0, 1)
    predict, _ = fit_probe(known, told.repeat_interleave(words.shape[1]), 1.0, 1000)
    return predict(said[:, 0])


def _watch(trained: Trained, progress: Progress, seed: int, each: bool) -> None:
    method, data, test = cast(LateFusion | GMC, trained.method), trained.data, trained.test
    if len(method.modalities) > 1 and (each or progress.epoch in (0, progress.epochs)):
        asked: list[Present] = [*((m,) for m in data.parts), data.parts]
        trained.seen.append({s: embed_all(method, test, s) for s in asked})
    if isinstance(method, LateFusion):
        trained.alone.append(share(_predicted(method, test, PICTURE), trained.labels))
    else:
        at = few(trained.y, 5, seed)
        known = embed_all(method, Subset(cast(Any, data), at.tolist()), data.parts)
        picture = {PICTURE: embed_all(method, test, PICTURE)}
        told = probed(known, trained.y[at], picture, trained.labels)
        trained.alone.append(told[PICTURE])


def trained(seed: int, **config: Any) -> nn.Module:
    """What `run` measures, before it is measured."""
    return train(seed, **config).method


def run(seed: int, **config: Any) -> dict[str, float]:
    """Trains and measures (`measure`); arguments as for `train`."""
    found = train(seed, **config)
    kind, labels = config.get("kind", "GMC"), config.get("labels")
    return measure(found, kind, labels, seed)


def measure(trained: Trained, kind: str, labels: int | None, seed: int) -> dict[str, float]:
    """What is told of the test scenes, and where they lie.

    "accuracy, image" and so on: of the class, from a choice of parts (all choices of three; each
    alone, and all, of more); "..., 5 labels" where five scenes of each class have a label.
    "accuracy, pictures labelled": the labels sit on pictures without caption and tags; "..., at
    first": of the first classifier of what is co-trained, from which "told, labels" of the labels
    that the second one learns are right. "shape, pictures labelled, 5 labels": of the shape alone,
    from the picture, five labelled pictures of each. "found, image": whether the nearest complete
    training scene is of the right class; no labels are needed. "position, size" and so on: what a
    probe that has learned from complete embeddings reads from that part alone; "position,
    complete", "position, chance". "gap", "cosine" and "cosine of others" of a part and the whole,
    also at the start ("@0"). "accuracy, image @3": after epoch 3, of contrastive methods with 5
    labels. "chance".

    Args:
        trained: what `train` gave.
        kind: as for `train`.
        labels: likewise.
        seed: likewise.
    """
    y, truth, measured = trained.y, trained.labels, {"chance": chance_of(trained.labels)}
    ending = f", {labels} labels" if labels else ""
    if kind in CONTRASTIVE:
        measured |= _probed(trained, seed)
    elif kind == "fusion":
        for s in _choices(trained.data.parts):
            told = share(_predicted(trained.method, trained.test, s), truth)
            measured[f"accuracy, {name(s)}{ending}"] = told
    else:
        told = share(_predicted(trained.method, trained.test, PICTURE), truth)
        what = "image" if kind == "reader" else "pictures labelled"
        measured[f"accuracy, {what}{ending}"] = told
        measured["told, labels"] = share(trained.said, y)
    if trained.first:
        told = share(_predicted(trained.first, trained.test, PICTURE), truth)
        measured[f"accuracy, pictures labelled, at first{ending}"] = told
    if trained.seen:
        measured |= _places(trained)
    return measured | {f"accuracy, image @{e}": told for e, told in enumerate(trained.alone)}


def _choices(parts: Present) -> list[Present]:
    return choices(parts) if len(parts) == 3 else [*((m,) for m in parts), parts]


def _predicted(method: nn.Module, data: Scenes, present: Present) -> Tensor:
    return read_all(method, cast(LateFusion, method).logits, data, present).argmax(1)


def _probed(trained: Trained, seed: int) -> dict[str, float]:
    """What probes tell that have learned from some labels, or all."""
    method, data, test, y = trained.method, trained.data, trained.test, trained.y
    whole, picture = (embed_all(method, data, s) for s in (data.parts, PICTURE))
    asked = {s: embed_all(method, test, s) for s in _choices(data.parts)}
    alone, measured = {PICTURE: asked[PICTURE]}, {}
    for part in data.parts[:3]:
        nearest = (asked[(part,)] @ whole.T).argmax(1)
        measured[f"found, {part}"] = share(y[nearest], trained.labels)
    for labels in (None, *LABELS):
        at = few(y, labels, seed) if labels else torch.arange(len(y))
        ending = f", {labels} labels" if labels else ""
        told = probed(whole[at], y[at], asked, trained.labels)
        measured |= {f"accuracy, {name(s)}{ending}": of for s, of in told.items()}
        told = probed(picture[at], y[at], alone, trained.labels)
        measured[f"accuracy, pictures labelled{ending}"] = told[PICTURE]
    of, truth = of_the_object(data.drawn), of_the_object(test.drawn)
    for half in ("shape", "colour"):
        at = few(of[half], 5, seed)
        told = probed(picture[at], of[half][at], alone, truth[half])
        measured[f"{half}, pictures labelled, 5 labels"] = told[PICTURE]
    return measured


def _places(trained: Trained) -> dict[str, float]:
    """Where parts and wholes lie, and what the whole still says of the rest of the scene."""
    data, test, measured = trained.data, trained.test, {}
    for m in data.parts:
        for seen, ending in ((trained.seen[0], " @0"), (trained.seen[-1], "")):
            part, whole = seen[(m,)], seen[data.parts]
            close = closeness(part, whole)
            measured[f"gap, {m}{ending}"] = modality_gap(part, whole)
            measured[f"cosine, {m}{ending}"] = close.same
            measured[f"cosine of others, {m}{ending}"] = close.other
    known, asked = of_the_object(data.drawn), of_the_object(test.drawn)
    x = embed_all(trained.method, data, data.parts)
    for attribute in ATTRIBUTES:
        told = probed(x, known[attribute], trained.seen[-1], asked[attribute])
        measured[f"{attribute}, chance"] = chance_of(asked[attribute])
        for s, right in told.items():
            measured[f"{attribute}, {'complete' if s == data.parts else name(s)}"] = right
    return measured
