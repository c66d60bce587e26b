"""The missing modality: a fusion classifier that loses pictures, captions or tags at test time.

Scenes of one object; the class is its shape and colour. The picture shows both. The caption names
the shape, the tags name the colour: two words that are easy to learn, and a picture that is not.
Remedies that change no representation are compared: imputation, modality dropout, the same weight
for every head, and Gradient-Blending.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcl_book.experiments import small
from mmcl_book.experiments.calibration import calibration
from mmcl_core.batches import Batch
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.augment import compose, paraphrase, with_labels
from mmcl_core.encoders import TagEncoder
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import (
    MissingModality,
    accuracy_at_rate,
    missing_modality,
    partial_to_complete,
)
from mmcl_core.evaluation.summary import CLASSES, read_all, shape_and_colour
from mmcl_core.methods import LateFusion
from mmcl_core.methods.blending import (
    GradientBlending,
    Measurement,
    blending_weights,
    overfitting_to_generalisation,
)
from mmcl_core.training import Progress

MODALITIES = ("image", "caption", "tags")
CONDITIONS: dict[str, dict[str, Any]] = {
    "fusion": {},
    "mean imputation": {"impute": "mean"},
    "modality dropout": {"dropout": 0.3},
    "equal weights": {"weights": "equal"},
    "blending, online": {"weights": "online"},
    "blending, offline": {"weights": "offline"},
    "each alone": {"weights": "alone"},
}
EPOCHS, SUPER_EPOCH = 6, 2
RATES = (0.0, 0.25, 0.5, 0.75, 1.0)
TEST_SEED, VALIDATION_SEED = 779, 780


class Trained(NamedTuple):
    """A classifier, and what it could tell along the way."""

    method: LateFusion
    test: ShapesCaptions
    labels: Tensor  # int64 [N], of the test scenes
    found: list[MissingModality]  # at the start, and after each epoch
    branches: list[dict[str, float]]  # accuracy of each modality's own head, likewise
    blended: list[Measurement]  # of Gradient-Blending; else empty


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


def train(seed: int, *, weights: str = "fusion", **settings: Any) -> Trained:
    """Trains a fusion, and asks every part of it after each epoch.

    Args:
        seed: of scenes, first weights and order.
        weights: of the heads. "fusion": the fusion alone; "equal": all alike; "alone": each
            modality's head alike and no fusion; "online" and "offline": by Gradient-Blending, of
            which offline trains twice, first with equal weights.
        settings: `dropout` and `impute` of `LateFusion`.
    """
    if weights not in ("fusion", "equal", "alone", "online", "offline"):
        raise MMCLError(
            f"weights must be 'fusion', 'equal', 'alone', 'online' or 'offline'; got {weights!r}"
        )
    data, test = scenes(3000, seed), scenes(1000, TEST_SEED)
    validation = scenes(500, VALIDATION_SEED)
    y, labels = shape_and_colour(data), shape_and_colour(test)
    method = new_fusion(data, seed, **settings)
    trained = Trained(method, test, labels, [], [], [])
    blending = GradientBlending(
        data.batch(range(500)) | {"label": y[:500]},
        validation.batch(range(500)) | {"label": shape_and_colour(validation)},
        every=EPOCHS if weights == "offline" else SUPER_EPOCH,
    )
    equal = dict.fromkeys(method.heads, 1 / len(method.heads))
    if weights == "offline":
        first = new_fusion(data, seed, **settings)
        first.set_weights(equal)
        _fit(first, data, y, seed, [blending])
        trained.blended.extend(blending.history)
        before, after = (each.losses for each in blending.history)
        method.set_weights(blending_weights(before, after))
    elif weights == "alone":
        method.set_weights(equal | {"fusion": 0.0})
    elif weights != "fusion":
        method.set_weights(equal)

    def watch(progress: Progress) -> None:
        trained.found.append(
            missing_modality(
                method, test, torch.arange(CLASSES), test, labels, MODALITIES, classifier="own"
            )
        )
        trained.branches.append(_branches(method, test, labels))

    _fit(method, data, y, seed, [*([blending] if weights == "online" else []), watch])
    if weights == "online":
        trained.blended.extend(blending.history)
    return trained


def measure(trained: Trained) -> dict[str, float]:
    """What is told from every choice of modalities, and how sure the classifier is.

    For each choice, such as "image + caption": "accuracy", "confidence" and "calibration error";
    for each but the complete one, "cosine" and "cosine of others" of its embedding and the complete
    one. For each modality: accuracy "without image 0.25" where a quarter of the samples miss it,
    and "image alone @3", the accuracy of its own head after epoch 3. For blending: "weight" and
    "ratio" (`|dO/dG|`, up to 99) of each head at the end of each super-epoch. And "chance".
    """
    method, test, labels = trained.method, trained.test, trained.labels
    found = trained.found[-1]
    measured = {"chance": found.chance}
    for present, accuracy in found.accuracy.items():
        name = " + ".join(present)
        logits = read_all(method, method.logits, test, present)
        sure = calibration(logits, labels)
        measured |= {f"accuracy, {name}": accuracy, f"confidence, {name}": sure.confidence}
        measured[f"calibration error, {name}"] = sure.error
    for present, close in partial_to_complete(method, test, MODALITIES).items():
        name = " + ".join(present)
        measured |= {f"cosine, {name}": close.same, f"cosine of others, {name}": close.other}
    for modality in MODALITIES:
        for rate in RATES:
            told = accuracy_at_rate(found, labels, modality, rate)
            measured[f"without {modality} {rate:g}"] = told
        for epoch, branches in enumerate(trained.branches):
            measured[f"{modality} alone @{epoch}"] = branches[modality]
    for earlier, later in zip(trained.blended, trained.blended[1:], strict=False):
        ratios = overfitting_to_generalisation(earlier.losses, later.losses)
        for head, ratio in ratios.items():
            measured[f"ratio, {head} @{later.epoch}"] = min(ratio, 99.0)
            measured[f"weight, {head} @{later.epoch}"] = later.weights[head]
    return measured


def run(seed: int, *, weights: str = "fusion", **settings: Any) -> dict[str, float]:
    """Trains and measures; see `train` and `measure`."""
    return measure(train(seed, weights=weights, **settings))


def _fit(
    method: LateFusion, data: ShapesCaptions, y: Tensor, seed: int, callbacks: list[Any]
) -> None:
    augment = compose(paraphrase(data), with_labels(data, y))
    small.train(method, data, seed, epochs=EPOCHS, augment=augment, callbacks=callbacks)


def _branches(method: LateFusion, test: ShapesCaptions, labels: Tensor) -> dict[str, float]:
    """Accuracy of the head of each modality on its own."""
    told = {}
    for name in MODALITIES:

        def head(batch: Batch, name: str = name) -> Tensor:
            return method.branch_logits(batch)[name]

        predicted = read_all(method, head, test, (name,)).argmax(1)
        told[name] = (predicted == labels).double().mean().item()
    return told
