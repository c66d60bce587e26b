"""Zero-shot classification: classes from sentences alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmcl_core.batches import Batch, Data
from mmcl_core.data.tokenizer import WordTokenizer
from mmcl_core.errors import MMCLError, ShapeError
from mmcl_core.evaluation.checks import as_labels, as_unit
from mmcl_core.evaluation.embedding import embed_all


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """Classes from sentences alone.

    Attributes:
        scores: float32 [N, C], cosines of pictures and classes.
        predictions: int64 [N], the class with the highest score.
        accuracy: share of right predictions; None without labels.
        chance: accuracy of always naming the commonest label; None without labels.
        classes: the C names.
    """

    scores: Tensor = field(repr=False)
    predictions: Tensor = field(repr=False)
    accuracy: float | None
    chance: float | None
    classes: tuple[str, ...]


def zero_shot(
    method: nn.Module,
    images: Tensor | Data | Batch,
    prompts: Mapping[str, Sequence[str]] | Sequence[Sequence[str]],
    tokenizer: WordTokenizer,
    *,
    labels: Tensor | None = None,
    batch_size: int = 256,
) -> ZeroShot:
    """Classifies pictures by the nearest class, a class being the mean of its sentences.

    The embeddings of the sentences of a class are averaged and brought back to unit norm (Radford
    et al., ICML 2021, section 3.1.4: prompt ensembling in the embedding space).

    Args:
        method: embeds `image` and `caption`.
        images: float [N, 3, H, W] in [0, 1], or data with an `image` in its batches.
        prompts: name of a class to its sentences; or a list of sentences for each class, and the
            names are then "0", "1", ...
        tokenizer: the one that the method was trained with.
        labels: int64 [N] in 0 .. C - 1, the true classes.
        batch_size: pictures or sentences embedded at once.

    Raises:
        MMCLError: fewer than two classes, or a class without a sentence.
        ShapeError: labels of another number or range.
    """
    if isinstance(prompts, Mapping):
        classes, sentences = tuple(map(str, prompts)), list(prompts.values())
    else:
        classes, sentences = tuple(map(str, range(len(prompts)))), list(prompts)
    if len(classes) < 2:
        raise MMCLError(f"expected sentences for at least two classes; got {list(classes)}")
    for name, texts in zip(classes, sentences, strict=True):
        if isinstance(texts, str) or not texts:
            raise MMCLError(f"expected a list of sentences for the class {name!r}; got {texts!r}")
    if isinstance(images, Tensor):
        images = {"image": images}
    x = as_unit(embed_all(method, images, ("image",), batch_size=batch_size), "image embeddings")
    if labels is not None:
        labels = as_labels(labels, x, "labels")
        if labels.ndim != 1 or labels.max() >= len(classes):
            raise ShapeError(
                f"expected labels [{len(x)}] from 0 to {len(classes) - 1}, one for each class; got "
                f"{list(labels.shape)} up to {int(labels.max())}"
            )
    captions = tokenizer.encode_batch([text for texts in sentences for text in texts])
    each = embed_all(method, {"caption": captions}, ("caption",), batch_size=batch_size)
    of_class = torch.arange(len(classes)).repeat_interleave(
        torch.tensor([len(texts) for texts in sentences])
    )
    sums = each.new_zeros(len(classes), each.shape[1])
    sums.index_add_(0, of_class, as_unit(each, "prompts"))
    # The direction of a sum is that of the mean. Sentences that cancel leave only rounding.
    scores = x @ as_unit(sums, "class embeddings", smallest=1e-6).T
    predictions = scores.argmax(1)
    if labels is None:
        return ZeroShot(scores, predictions, None, None, classes)
    accuracy = (predictions == labels).double().mean().item()
    chance = labels.bincount().max().item() / len(labels)
    return ZeroShot(scores, predictions, accuracy, chance, classes)
