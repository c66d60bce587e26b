"""Missing modalities: what a method still tells from those at hand."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from mmcl_core.batches import Batch, Data
from mmcl_core.errors import MMCLError, ShapeError, check_count
from mmcl_core.evaluation.checks import as_labels, as_matrix, as_unit, check_classes
from mmcl_core.evaluation.embedding import embed_all, rows_of
from mmcl_core.evaluation.probes import chance_of, fit_probe


@dataclass(frozen=True, eq=False)
class MissingModality:
    """What a method still tells when modalities are missing.

    Attributes:
        accuracy: the modalities at hand -> share of the test labels told; every non-empty subset,
            the small ones first.
        chance: accuracy of always naming the commonest test label.
        predictions: the modalities at hand -> int64 [M], of the test samples.
        converged: whether the solver of the probe ended by itself; True without a probe.
    """

    accuracy: dict[tuple[str, ...], float]
    chance: float
    predictions: dict[tuple[str, ...], Tensor] = field(repr=False)
    converged: bool


def missing_modality(
    method: nn.Module,
    train: Data | Batch,
    train_y: Tensor,
    test: Data | Batch,
    test_y: Tensor,
    modalities: Sequence[str],
    *,
    classifier: Literal["probe", "own"] = "probe",
    C: float = 1.0,
    max_iter: int = 1000,
    batch_size: int = 256,
) -> MissingModality:
    """Classifies test samples of which only some modalities are there, for every choice of them.

    The classifier learned from complete samples, and is the same for every choice (as in GMC:
    Poklukar et al., ICML 2022). Modes and random states are afterwards as before.

    Args:
        method: embeds every non-empty subset of `modalities`.
        train: complete samples. The method stays as it is: only the probe learns from them.
        train_y: int64 [N], the class of each sample.
        test: complete samples too; what is missing is left out here.
        test_y: int64 [M].
        modalities: the keys of the batch, each once.
        classifier: "probe" is a `linear_probe` on the embeddings of all `modalities`; "own" is the
            method's own `logits(batch) -> [B, classes]`. Of `train` and `train_y`, "own" looks at
            the classes only.
        C: see `linear_probe`.
        max_iter: see `linear_probe`.
        batch_size: samples embedded at once.

    Raises:
        MissingModalityError: a modality is not in the data, or the method cannot serve a subset.
        ShapeError: labels of another shape or number.
        MMCLError: fewer than two classes to train on, test labels that training lacks, a modality
            named twice, or a classifier that is not there.
    """
    if isinstance(modalities, str) or not modalities or len(set(modalities)) < len(modalities):
        raise MMCLError(
            f"expected modalities such as ('image', 'tags'), each once; got {modalities!r}"
        )
    if classifier not in ("probe", "own"):
        raise MMCLError(f"classifier must be 'probe' or 'own'; got {classifier!r}")
    y, truth = as_labels(train_y, train_y, "train_y"), as_labels(test_y, test_y, "test_y")
    if y.ndim != 1 or truth.ndim != 1:
        raise ShapeError(f"expected labels [N] and [M]; got {list(y.shape)}, {list(truth.shape)}")
    check_classes(y, truth)
    predictions = {}
    if classifier == "probe":
        x = embed_all(method, train, modalities, batch_size=batch_size)
        predict, converged = fit_probe(x, as_labels(train_y, x, "train_y"), C, max_iter)
        verb = "embed"
    else:
        verb, predict, converged = "logits", _largest, True
    for size in range(1, len(modalities) + 1):
        for present in itertools.combinations(modalities, size):
            rows = rows_of(method, verb, test, present, batch_size)
            rows = as_matrix(rows, f"{verb} of {' and '.join(present)}")
            as_labels(test_y, rows, "test_y")  # one for each sample
            if classifier == "own" and truth.max() >= rows.shape[1]:
                raise MMCLError(
                    f"expected test labels from 0 to {rows.shape[1] - 1}, the classes of the "
                    f"method; got up to {int(truth.max())}"
                )
            predictions[present] = predict(rows)
    accuracy = {
        present: (found == truth).double().mean().item() for present, found in predictions.items()
    }
    return MissingModality(accuracy, chance_of(truth), predictions, converged)


def _largest(logits: Tensor) -> Tensor:
    return logits.argmax(dim=1)


def accuracy_at_rate(
    found: MissingModality, labels: Tensor, modality: str, rate: float, *, seed: int = 0
) -> float:
    """Accuracy when one modality is missing in a part of the samples, drawn at random.

    The draw of a seed grows with the rate: who misses it at 0.25 misses it at 0.5, too.

    Args:
        found: what `missing_modality` gave for all choices.
        labels: int64 [M], the test labels.
        modality: the one that goes missing; the others are there.
        rate: probability in [0, 1] that a sample misses it.
        seed: of the draw.

    Raises:
        MMCLError: the rate is outside [0, 1], or there is no such modality, or no other one.
        ShapeError: another number of labels.
    """
    complete = max(found.predictions, key=len)
    rest = tuple(name for name in complete if name != modality)
    if modality not in complete or not rest or not 0 <= rate <= 1:
        raise MMCLError(
            f"expected one of the modalities {list(complete)} beside others, and a rate in "
            f"[0, 1]; got {modality!r} and {rate}"
        )
    if labels.shape != found.predictions[complete].shape:
        raise ShapeError(
            f"expected labels {list(found.predictions[complete].shape)}, one for each prediction; "
            f"got {list(labels.shape)}"
        )
    noise = torch.rand(
        len(labels), generator=torch.Generator().manual_seed(check_count("seed", seed, 0))
    )
    told = torch.where(noise < rate, found.predictions[rest], found.predictions[complete])
    return (told == labels).double().mean().item()


@dataclass(frozen=True)
class Closeness:
    """How near partial embeddings are to complete ones; mean cosines in [-1, 1].

    Attributes:
        same: of the partial and the complete embedding of one sample.
        other: of the partial embedding of one sample and the complete one of another.
    """

    same: float
    other: float


def partial_to_complete(
    method: nn.Module,
    data: Data | Batch,
    modalities: Sequence[str],
    *,
    batch_size: int = 256,
) -> dict[tuple[str, ...], Closeness]:
    """Whether a part of a sample is embedded where the whole sample is.

    Args:
        method: embeds every non-empty subset of `modalities`.
        data: complete samples, at least two.
        modalities: the keys of the batch, each once, at least two.
        batch_size: samples embedded at once.

    Returns:
        The modalities at hand -> `Closeness`, for every subset but the complete one, the small
        ones first.

    Raises:
        MissingModalityError: a modality is not in the data, or the method cannot serve a subset.
        MMCLError: fewer than two modalities, or one named twice.
        ShapeError: fewer than two samples.
    """
    if isinstance(modalities, str) or len(modalities) < 2 or len(set(modalities)) < len(modalities):
        raise MMCLError(
            f"expected at least two modalities such as ('image', 'tags'), each once; got "
            f"{modalities!r}"
        )
    whole = embed_all(method, data, modalities, batch_size=batch_size)
    return {
        present: closeness(embed_all(method, data, present, batch_size=batch_size), whole)
        for size in range(1, len(modalities))
        for present in itertools.combinations(modalities, size)
    }


def closeness(part: Tensor, whole: Tensor) -> Closeness:
    """Mean cosines of partial and complete embeddings.

    Args:
        part: unit vectors [N, D].
        whole: those of the same samples, [N, D].

    Raises:
        ShapeError: fewer than two samples.
    """
    x, y = (as_unit(each, "embeddings").double() for each in (part, whole))
    n = len(y)
    if n < 2:
        raise ShapeError("expected at least two samples, to have another one; got one")
    same = (x * y).sum().item()
    every = (x.sum(0) @ y.sum(0)).item()  # of all pairs, from two sums
    return Closeness(same / n, (every - same) / (n * (n - 1)))
