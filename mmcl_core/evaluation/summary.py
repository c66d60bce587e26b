"""What is measured of a trained method, as plain floats by name.

Each function takes a method and data, and leaves both as they were.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from mmcl_core.batches import Batch
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.drawing import ATTRIBUTES, VALUES
from mmcl_core.data.groups import first_captions
from mmcl_core.errors import DataError
from mmcl_core.evaluation import embed_all, linear_probe, missing_modality, recall_at_k
from mmcl_core.methods import FDT
from mmcl_core.methods.fdt import codebook_usage

# Of `shape_and_colour`.
CLASSES = len(VALUES["shape"]) * len(VALUES["colour"])


def recall(method: nn.Module, data: Any, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall@k of pictures and captions in both directions, among all samples of the data.

    The caption is the first sentence. One that is word for word that of the query is correct, too.

    Args:
        method: embeds `image` and `caption`.
        data: has `sentences` int64 [N, S, L], and perhaps `texts` (see `first_captions`).
        ks: those above N are left out.

    Returns:
        `image_to_caption@1` and so on, `caption_to_image@1` and so on, each in [0, 1]; and
        `chance@1` and so on, the recall of a random order.
    """
    image, caption = (embed_all(method, data, (name,)) for name in ("image", "caption"))
    groups = first_captions(data)
    n, correct = len(groups), groups.bincount()[groups].double()
    ks = [k for k in ks if k <= n]
    there = recall_at_k(image, caption, ks, groups=groups)
    back = recall_at_k(caption, image, ks, groups=groups)
    # No correct key among k drawn without putting back, of n keys: a product of k shares.
    drawn = torch.arange(max(ks))
    missed = ((n - correct[:, None] - drawn).clamp(min=0) / (n - drawn)).cumprod(1)
    chance = {k: 1 - float(missed[:, k - 1].mean()) for k in ks}
    found = {"image_to_caption": there, "caption_to_image": back, "chance": chance}
    return {f"{name}@{k}": value for name, of in found.items() for k, value in of.items()}


def codebook(method: FDT, data: Any) -> dict[str, float]:
    """How the tokens of an FDT are used by pictures and by captions (see `codebook_usage`).

    Returns:
        `image_active` (mean number of tokens of a sample), `image_used` (tokens in any sample),
        `image_perplexity`; the same of `caption`.
    """
    measured: dict[str, float] = {}
    for name in method.modalities:

        def weights(batch: Batch, name: str = name) -> Tensor:
            return method.ground(batch, name).weights

        usage = codebook_usage(read_all(method, weights, data, (name,)))
        for what, value in usage._asdict().items():
            measured[f"{name}_{what}"] = float(value)
    return measured


def probes(method: nn.Module, train: ShapesCaptions, test: ShapesCaptions) -> dict[str, float]:
    """What a linear classifier reads of each attribute from the pooled features of the pictures.

    Args:
        method: has `encoders`, one of them for `image`.
        train: scenes with one object each, from which the classifiers learn.
        test: other ones.

    Returns:
        `shape`, `colour`, ...: accuracies in [0, 1]; `shape_chance`, ...: those of always naming
        the commonest value.

    Raises:
        DataError: a scene has several objects.
    """

    def pooled(batch: Batch) -> Tensor:
        return cast(Any, method).encoders["image"](batch["image"]).pooled

    x, test_x = (read_all(method, pooled, data, ("image",)) for data in (train, test))
    return probe_attributes(x, train, test_x, test)


def probe_attributes(
    train_x: Tensor, train: ShapesCaptions, test_x: Tensor, test: ShapesCaptions
) -> dict[str, float]:
    """What a linear classifier reads of each attribute from any features, [N, D] and [M, D].

    Returns and raises as `probes`.
    """
    y, test_y = of_the_object(train), of_the_object(test)
    measured: dict[str, float] = {}
    for name in ATTRIBUTES:
        probe = linear_probe(train_x, y[name], test_x, test_y[name])
        measured |= {name: probe.accuracy, f"{name}_chance": probe.chance}
    return measured


def accuracy_by_modalities(
    method: nn.Module,
    train: ShapesCaptions,
    test: ShapesCaptions,
    modalities: Sequence[str],
    *,
    classifier: Literal["probe", "own"] = "probe",
) -> dict[str, float]:
    """How often shape and colour are told from each choice of modalities (`missing_modality`).

    Args:
        method: embeds every choice, or has `logits` for it, with `CLASSES` classes.
        train: scenes with one object each, from which a probe learns.
        test: other ones.
        modalities: all of them.
        classifier: see `missing_modality`.

    Returns:
        `image`, `caption`, `image + caption`, ...: accuracies in [0, 1]; and `chance`.

    Raises:
        DataError: a scene has several objects.
    """
    # Of the method's own classes, all are known, whether or not they were drawn.
    own = classifier == "own"
    known = torch.arange(CLASSES) if own else shape_and_colour(train)
    found = missing_modality(
        method, train, known, test, shape_and_colour(test), modalities, classifier=classifier
    )
    by_name = {" + ".join(present): value for present, value in found.accuracy.items()}
    return by_name | {"chance": found.chance}


def shape_and_colour(data: ShapesCaptions) -> Tensor:
    """The class of scenes with one object each: int64 [N], shape * number of colours + colour.

    Raises:
        DataError: a scene has several objects.
    """
    of = of_the_object(data)
    return of["shape"] * len(VALUES["colour"]) + of["colour"]


def of_the_object(data: ShapesCaptions) -> Batch:
    """The attributes of the only object of each scene, int64 [N] each.

    Raises:
        DataError: a scene has several objects.
    """
    objects = (data.attributes["shape"] >= 0).sum(1)
    if int(objects.max()) > 1:
        raise DataError(
            f"expected scenes with one object each, got up to {int(objects.max())}; draw them with "
            "objects=(1, 1)"
        )
    return {name: values.amax(1) for name, values in data.attributes.items()}  # -1 is none


class _Reader(nn.Module):
    """So that `embed_all` gives something else than the embeddings."""

    def __init__(self, method: nn.Module, read: Callable[[Batch], Tensor]) -> None:
        super().__init__()
        self.method, self.embed = method, read


def read_all(
    method: nn.Module,
    read: Callable[[Batch], Tensor],
    data: Any,
    modalities: Sequence[str] = ("image",),
) -> Tensor:
    """What `read(batch) -> [B, D]` gives for all samples, as `embed_all` gives the embeddings."""
    return embed_all(_Reader(method, read), data, modalities)
