"""The missing modality: a fusion classifier that loses pictures, captions or tags at test time.

Scenes of one object; the class is its shape and colour. The picture shows both. The caption names
the shape, the tags name the colour: two words that are easy to learn, and a picture that is not.

Beside the plain fusion there are remedies (imputation, modality dropout, weights of the heads,
Gradient-Blending, longer training) and interventions on the order in which it learns: the picture
first, the words first, and words that say nothing in the first epochs.
"""

import math
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcl_book.experiments import small
from mmcl_book.experiments.calibration import calibration
from mmcl_book.experiments.protocol import Better, Trials
from mmcl_book.methods.blending import (
    GradientBlending,
    Measurement,
    overfitting_to_generalisation,
)
from mmcl_core.batches import Batch
from mmcl_core.checkpoints import History
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.augment import Augment, compose, paraphrase, with_labels
from mmcl_core.encoders import TagEncoder
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation.missing import closeness
from mmcl_core.evaluation.probes import chance_of
from mmcl_core.evaluation.summary import CLASSES, shape_and_colour
from mmcl_core.methods import LateFusion
from mmcl_core.methods.method import unit
from mmcl_core.modules import evaluating
from mmcl_core.training import Progress, fit

Present = tuple[str, ...]  # the modalities at hand
MODALITIES: Present = ("image", "caption", "tags")
WORDS = ("caption", "tags")
EPOCHS, SUPER_EPOCH = 6, 2
SCENES, TESTED = 3000, 1000
# The scenes that are asked for the record; those by which Gradient-Blending weighs, in training.
TEST_SEED, VALIDATION_SEED = small.TEST_SEED, 780


def _tried(**config: Any) -> Trials:
    """Two learning rates, and twice the batch: by what is told from the picture alone."""
    settings = {
        f"batch {batch}, lr {lr}": config | {"batch": batch, "lr": lr}
        for batch, lr in ((32, 2e-3), (32, 5e-3), (64, 5e-3))
    }
    asked = {"asked": small.VALIDATION_SEED}
    return Trials("accuracy, image", {name: of | asked for name, of in settings.items()})


TRIALS = {
    "fusion": _tried(),
    "mean imputation": _tried(impute="mean"),
    "longer": _tried(epochs=12),
    "equal weights": _tried(weights="equal"),
    "blending": _tried(weights="blended"),
    "modality dropout": _tried(dropout=0.3),
    "picture first": _tried(first="image"),
}
SEEDS = tuple(range(10))
# Chosen in trials, for each. The interventions on the order stand beside a plain fusion of the same
# setting as theirs.
SET = {"batch": 32, "lr": 5e-3}
CONDITIONS: dict[str, dict[str, Any]] = {
    "fusion": {"batch": 32, "lr": 2e-3},
    "fusion, lr 0.005": SET,
    "words first": {"first": "words", **SET},
    "words late": {"late": 2, **SET},
    "mean imputation": {"impute": "mean", **SET},
    "longer": {"epochs": 12, "batch": 64, "lr": 5e-3},
    "equal weights": {"weights": "equal", **SET},
    "blending": {"weights": "blended", **SET},
    "modality dropout": {"dropout": 0.3, **SET},
    "picture first": {"first": "image", **SET},
    # As many epochs as the picture's encoder has where it learns first.
    "equal weights, longer": {"weights": "equal", "epochs": 12, **SET},
    "modality dropout, longer": {"dropout": 0.3, "epochs": 12, **SET},
}
_RIVALS = ("fusion", "mean imputation", "longer", "equal weights", "blending")
BETTER = (
    Better(
        "modality dropout", _RIVALS, "accuracy, image", by=0.15,
        says="From the picture alone, a fusion with modality dropout tells the class better",
    ),
    Better(
        "picture first", _RIVALS, "accuracy, image", by=0.17,
        says="So does one whose picture encoder learned first, in twice the epochs",
    ),
)  # fmt: skip
WEIGHTS = ("fusion", "equal weights", "modality dropout", "picture first")


class Told(NamedTuple):
    """What a fusion tells of the test scenes, after some epoch."""

    logits: dict[Present, Tensor]  # of the fusion head, from every choice of modalities
    vectors: dict[Present, Tensor]  # the embeddings of each choice: unit vectors
    heads: dict[str, float]  # accuracy of each modality's own head


class Trained(NamedTuple):
    """A classifier, and what it could tell along the way."""

    method: LateFusion
    test: ShapesCaptions
    labels: Tensor  # int64 [N], of the test scenes
    before: list[Told]  # at the start and after each epoch of what learns first; else empty
    told: list[Told]  # at the start, and after each epoch
    blended: list[Measurement]  # of Gradient-Blending; else empty
    history: History  # of each step, "gradient, image" and so on included

    def accuracy(self, present: Present, epoch: int = -1) -> float:
        """The share of test scenes whose class is told from these modalities after an epoch."""
        return right(self.told[epoch].logits[present], self.labels)


def choices(modalities: Sequence[str]) -> list[Present]:
    """Every choice of modalities but none, the small ones first."""
    return [c for size in range(1, len(modalities) + 1) for c in combinations(modalities, size)]


def scenes(n: int, seed: int) -> ShapesCaptions:
    """Scenes of one object; captions name its shape, tags its colour."""
    return small.scenes(n, seed, objects=(1, 1), detail=1, tags=("colour",))


def new_fusion(data: ShapesCaptions, seed: int, **settings: Any) -> LateFusion:
    """A fusion with the first weights of that seed; `settings` as for `LateFusion`."""
    torch.manual_seed(seed)
    encoders = {
        "image": small.image_encoder(),
        "caption": small.caption_encoder(data),
        "tags": TagEncoder(data.tags.shape[1], width=small.WIDTH),
    }
    return LateFusion(encoders, CLASSES, dim=small.WIDTH, **settings)


def train(
    seed: int,
    *,
    weights: str = "fusion",
    first: str | None = None,
    late: int = 0,
    epochs: int | None = None,
    batch: int = 32,
    lr: float = 5e-3,
    asked: int = TEST_SEED,
    **settings: Any,
) -> Trained:
    """Trains a fusion, and asks every part of it after each epoch.

    Args:
        seed: of scenes, first weights and order.
        weights: of the heads. "fusion": the fusion alone; "equal": all alike; "blended": by
            Gradient-Blending, anew after each super-epoch.
        first: what learns before the fusion, with heads of its own and for as many epochs again:
            "image", or "words" for caption and tags. The fusion begins anew with their encoders.
        late: epochs in which caption and tags say nothing (`wordless`).
        epochs: passes over the scenes; None is `EPOCHS`.
        batch: scenes in a step.
        lr: the highest learning rate.
        asked: seed of the scenes that it is asked about.
        settings: `dropout` and `impute` of `LateFusion`.

    Raises:
        MMCLError: other `weights`, or another `first`.
    """
    if weights not in ("fusion", "equal", "blended") or first not in (None, "image", "words"):
        raise MMCLError(
            "weights must be 'fusion', 'equal' or 'blended', and first None, 'image' or 'words'; "
            f"got {weights!r} and {first!r}"
        )
    epochs = EPOCHS if epochs is None else epochs
    data, test = scenes(SCENES, seed), scenes(TESTED, asked)
    y, labels = shape_and_colour(data), shape_and_colour(test)
    method = new_fusion(data, seed, **settings)
    heard = compose(paraphrase(data), with_labels(data, y))
    how: dict[str, Any] = {
        "epochs": epochs, "batch_size": min(batch, len(data)), "lr": lr, "seed": seed,
        "progress": False,
    }  # fmt: skip
    before: list[Told] = []
    told: list[Told] = []
    callbacks: list[Any] = []
    blended: list[Measurement] = []
    heads = dict.fromkeys(method.heads, 0.0)
    if first is not None:
        method.set_weights(heads | dict.fromkeys(("image",) if first == "image" else WORDS, 1.0))
        fit(method, data, augment=heard, callbacks=[_watching(before, test)], **how)
        method.set_weights(heads | {"fusion": 1.0})
    elif weights != "fusion":
        method.set_weights(dict.fromkeys(heads, 1 / len(heads)))
    if weights == "blended":
        validation = scenes(500, VALIDATION_SEED)
        seen, unseen = range(min(500, len(data))), range(len(validation))
        blending = GradientBlending(
            data.batch(seen) | {"label": y[: len(seen)]},
            validation.batch(unseen) | {"label": shape_and_colour(validation)},
            every=SUPER_EPOCH,
        )
        blended = blending.history
        callbacks.append(blending)
    if late:
        heard = compose(heard, wordless(late * (len(data) // how["batch_size"])))
    norms = gradients_of(method)
    callbacks.append(_watching(told, test))
    history = fit(method, data, augment=heard, callbacks=callbacks, **how)
    del method.after_step  # that of `gradients_of`
    history.steps.update({f"gradient, {m}": of for m, of in norms.items()})
    return Trained(method, test, labels, before, told, blended, history)


def wordless(steps: int) -> Augment:
    """Gives all samples of a batch one and the same caption and tags, in so many first batches.

    What is the same for all classes says nothing about the class.
    """
    left = iter(range(steps))

    def augment(batch: Batch) -> Batch:
        if next(left, None) is None:
            return batch
        return batch | {m: batch[m][:1].expand_as(batch[m]).clone() for m in WORDS}

    return augment


def gradients_of(method: LateFusion) -> dict[str, list[float]]:
    """Lists that each step of a training appends to: the norms of the encoders' gradients.

    Before they are clipped. `method.after_step` becomes one of the instance, which notes them too.
    """
    sums = dict.fromkeys(method.modalities, 0.0)
    norms: dict[str, list[float]] = {m: [] for m in sums}
    for m in sums:

        def note(gradient: Tensor, m: str = m) -> None:
            sums[m] += gradient.square().sum().item()

        for parameter in method.encoders[m].parameters():
            parameter.register_hook(note)
    after_step = method.after_step

    def noting() -> None:
        for m in sums:
            norms[m].append(math.sqrt(sums[m]))
            sums[m] = 0.0
        after_step()

    method.after_step = noting  # type: ignore[method-assign]
    return norms


@torch.no_grad()
def tell(method: LateFusion, data: ShapesCaptions) -> Told:
    """What a fusion tells of scenes from every choice of modalities; each is encoded once."""
    batch, features = data.batch(range(len(data))), {}
    for m, encoder in method.encoders.items():
        features[m] = torch.cat([encoder(part).pooled for part in batch[m].split(250)])
    fills = method.fill.split(method.widths)
    logits, vectors = {}, {}
    for present in choices(MODALITIES):
        parts = [
            features[m] if m in present else fill.expand(len(data), -1)
            for m, fill in zip(MODALITIES, fills, strict=True)
        ]
        hidden = method.fused(torch.cat(parts, dim=1))
        logits[present], vectors[present] = method.heads["fusion"](hidden), unit(hidden)
    labels = shape_and_colour(data)
    heads = {m: right(method.heads[m](features[m]), labels) for m in MODALITIES}
    return Told(logits, vectors, heads)


def measure(of: Trained) -> dict[str, float]:
    """What is told from every choice of modalities, how sure the classifier is, and how it learned.

    For each choice, such as "image + caption": "accuracy", "confidence" and "calibration error";
    for each but the complete one "cosine" and "cosine of others", of its embedding and the complete
    one. "accuracy, image @3" and "accuracy, caption + tags @3": the same after epoch 3. "image
    alone @3": the accuracy of a modality's own head after epoch 3 of what learns first, or else of
    the fusion. "loss @0.5" of the fusion and "gradient, image @0.5" of each encoder: means over
    half an epoch, named by its end. For blending "weight" and "ratio" (`|dO/dG|`, up to 99) of each
    head at the end of each super-epoch but the last one, whose weights train nothing.
    """
    told, labels, complete = of.told[-1], of.labels, MODALITIES
    measured = {"chance": chance_of(labels)}
    for present, logits in told.logits.items():
        name, sure = " + ".join(present), calibration(logits, labels)
        measured |= {f"accuracy, {name}": sure.accuracy, f"confidence, {name}": sure.confidence}
        measured[f"calibration error, {name}"] = sure.error
        for epoch in range(len(of.told) if present in (("image",), WORDS) else 0):
            measured[f"accuracy, {name} @{epoch}"] = of.accuracy(present, epoch)
        if present != complete:
            close = closeness(told.vectors[present], told.vectors[complete])
            measured |= {f"cosine, {name}": close.same, f"cosine of others, {name}": close.other}
    for epoch, each in enumerate(of.before or of.told):
        measured |= {f"{m} alone @{epoch}": value for m, value in each.heads.items()}
    for name, values in halves_of_epochs(of.history).items():
        measured |= {f"{name} @{at:g}": value for at, value in values.items()}
    for earlier, later in zip(of.blended, of.blended[1:-1], strict=False):
        for head, ratio in overfitting_to_generalisation(earlier.losses, later.losses).items():
            measured[f"ratio, {head} @{later.epoch}"] = min(ratio, 99.0)
            measured[f"weight, {head} @{later.epoch}"] = later.weights[head]
    return measured


def halves_of_epochs(history: History) -> dict[str, dict[float, float]]:
    """The "loss" and the "gradient, image" and so on: epochs done -> mean of the half before."""
    n = history.steps_per_epoch
    names = {"loss": "fusion"} | {f"gradient, {m}": f"gradient, {m}" for m in MODALITIES}
    ends = [n * i // 2 for i in range(2 * history.epochs + 1)]
    return {
        name: {
            i / 2: sum(history[of][start:end]) / max(end - start, 1)
            for i, (start, end) in enumerate(pairwise(ends), 1)
        }
        for name, of in names.items()
    }


def run(seed: int, **config: Any) -> dict[str, float]:
    """Trains and measures; see `train` and `measure`."""
    return measure(train(seed, **config))


def trained(seed: int, **config: Any) -> LateFusion:
    """The classifier that `run` measures."""
    method = train(seed, **config).method
    method.measured.zero_()  # of Gradient-Blending; NaN cannot be kept
    return method


def right(logits: Tensor, labels: Tensor) -> float:
    """The share of samples whose class has the largest logit."""
    return (logits.argmax(dim=1) == labels).double().mean().item()


def _watching(told: list[Told], test: ShapesCaptions) -> Callable[[Progress], None]:
    def watch(progress: Progress) -> None:
        method = progress.method
        assert isinstance(method, LateFusion)
        with evaluating(method):
            told.append(tell(method, test))

    return watch
