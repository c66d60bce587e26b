"""Parts of samples: what is told from them, and where they are embedded."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from torch import Tensor, nn

from mmcl_core.evaluation import (
    MissingModality,
    embed_all,
    missing_modality,
    partial_to_complete,
)
from mmcl_core.evaluation.missing import closeness
from mmcl_core.methods import LateFusion
from mmcl_core.training import Progress

Present = tuple[str, ...]  # the modalities at hand


class Trained(NamedTuple):
    """A method, and where it put the test samples along the way."""

    method: nn.Module
    data: Any  # what it was trained on
    y: Tensor  # int64 [N], the classes of these
    test: Any
    labels: Tensor  # int64 [M], of the test samples
    modalities: Present
    # At the start, and after each epoch: each modality alone, and all of them -> [M, D].
    seen: list[dict[Present, Tensor]]


def choices(modalities: Sequence[str]) -> list[Present]:
    """Every choice of modalities but none, the small ones first."""
    return [c for size in range(1, len(modalities) + 1) for c in combinations(modalities, size)]


def watching(trained: Trained) -> Callable[[Progress], None]:
    """A callback that embeds the test samples from each modality alone, and from all of them."""
    asked: list[Present] = [(m,) for m in trained.modalities] + [trained.modalities]

    def watch(progress: Progress) -> None:
        trained.seen.append({s: embed_all(trained.method, trained.test, s) for s in asked})

    return watch


def told(trained: Trained) -> MissingModality:
    """What is told of the test samples from every choice of modalities.

    By the classifier of a fusion, or else by a probe on complete embeddings of training samples.
    """
    return missing_modality(
        trained.method, trained.data, trained.y, trained.test, trained.labels, trained.modalities,
        classifier="own" if isinstance(trained.method, LateFusion) else "probe",
    )  # fmt: skip


def measure(trained: Trained, found: MissingModality) -> dict[str, float]:
    """What is told from every choice of modalities, and where the choice is embedded.

    For each choice, such as "image + caption": "accuracy". For each but the complete one: "cosine"
    and "cosine of others" of its embedding and the complete one. For each modality alone: "cosine,
    image @3" and "cosine of others, image @3", after epoch 3. And "chance".

    Args:
        trained: the method and its test samples.
        found: what `told` gave.
    """
    modalities, measured = trained.modalities, {"chance": found.chance}
    measured |= {f"accuracy, {' + '.join(s)}": value for s, value in found.accuracy.items()}
    for present, close in partial_to_complete(trained.method, trained.test, modalities).items():
        name = " + ".join(present)
        measured |= {f"cosine, {name}": close.same, f"cosine of others, {name}": close.other}
    for epoch, seen in enumerate(trained.seen):
        for modality in modalities:
            close = closeness(seen[(modality,)], seen[modalities])
            measured[f"cosine, {modality} @{epoch}"] = close.same
            measured[f"cosine of others, {modality} @{epoch}"] = close.other
    return measured
