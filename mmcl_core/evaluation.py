"""Measures of embeddings: retrieval, zero-shot, probes, missing modalities, shape of the space.

Functions take embeddings, or a method and data, and return floats or small dataclasses; none
plots. Embeddings are compared by their cosine: each row is brought to unit norm first, which
changes nothing for what `method.embed` returns.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_core.data.tokenizer import WordTokenizer
from mmcl_core.errors import MissingModalityError, MMCLError, ShapeError

Batch = dict[str, Tensor]

# Cosines nearer than this are ties: float32 products of the same two rows differ by as much.
TIE = 1e-6
# The most elements of a [chunk, M] block of scores: 16 MB in float32.
_BLOCK = 2**22


class BatchSource(Protocol):
    """Data that can be embedded: whole batches by index."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> Batch: ...


# --- embedding ------------------------------------------------------------------------------------


def embed_all(
    method: nn.Module,
    data: BatchSource | Batch,
    modalities: Sequence[str] = ("image",),
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> Tensor:
    """Embeds all samples, in order, in eval mode and without gradients.

    Args:
        method: has `embed(batch) -> [B, D]`. Its train or eval mode is afterwards as before.
        data: a data set with `__len__` and `__getitems__`, or one batch of any size.
        modalities: the keys of the batch that `embed` is given; no others.
        batch_size: samples embedded at once.
        device: where to embed; the method is moved there. None is where the method is.

    Returns:
        float32 [N, D], on the CPU.

    Raises:
        MissingModalityError: a modality is not in the data.
        ShapeError: the data is empty, or `embed` returns anything but finite [B, D].
    """
    if device is not None:
        method.to(device)
    return _matrix(_rows(method, "embed", data, modalities, batch_size), "the embeddings")


def _rows(
    method: nn.Module,
    verb: str,
    data: BatchSource | Batch,
    modalities: Sequence[str],
    batch_size: int,
) -> Tensor:
    """What `method.<verb>(batch)` gives for all samples, as float32 [N, D] on the CPU."""
    if isinstance(modalities, str) or not modalities:
        raise MMCLError(f"expected modalities such as ('image',); got {modalities!r}")
    if batch_size < 1:
        raise MMCLError(f"batch_size must be at least 1; got {batch_size}")
    if not callable(getattr(method, verb, None)):
        raise MMCLError(f"method must have {verb}(batch); {type(method).__name__} has none")
    place = _place(method)
    apply = getattr(method, verb)
    modes = [(module, module.training) for module in method.modules()]
    method.eval()
    rows = []
    try:
        with torch.no_grad():
            for batch in _batches(data, batch_size):
                if absent := [name for name in modalities if name not in batch]:
                    raise MissingModalityError(
                        f"expected {list(modalities)}; the data has no "
                        f"{' and no '.join(absent)}, only {sorted(batch)}"
                    )
                x = apply({m: batch[m].to(place, non_blocking=True) for m in modalities})
                size = len(batch[modalities[0]])
                if not isinstance(x, Tensor) or x.ndim != 2 or len(x) != size:
                    found = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
                    raise ShapeError(f"method.{verb} must return [{size}, D]; got {found}")
                rows.append(x.float().cpu())
    finally:
        for module, mode in modes:
            module.training = mode
    return torch.cat(rows)


def _place(method: nn.Module) -> torch.device:
    return next((p.device for p in method.parameters()), torch.device("cpu"))


def _batches(data: BatchSource | Batch, batch_size: int) -> Iterator[Batch]:
    if isinstance(data, dict):
        sizes = {name: len(value) for name, value in data.items()}
        if len(set(sizes.values())) != 1:
            raise ShapeError(f"expected a batch with one number of samples; got {sizes}")
        n = next(iter(sizes.values()))
    else:
        for name in ("__len__", "__getitems__"):
            if not callable(getattr(data, name, None)):
                raise MMCLError(
                    "data must be a batch, or have __len__ and __getitems__(indices); "
                    f"{type(data).__name__} has no {name}"
                )
        n = len(data)
    if n == 0:
        raise ShapeError("expected at least one sample; the data is empty")
    for i in range(0, n, batch_size):
        j = min(i + batch_size, n)
        if isinstance(data, dict):
            yield {name: value[i:j] for name, value in data.items()}
        else:
            yield data.__getitems__(list(range(i, j)))


# --- retrieval ------------------------------------------------------------------------------------


@overload
def recall_at_k(
    queries: Tensor,
    keys: Tensor,
    k: int = 1,
    *,
    groups: Tensor | tuple[Tensor, Tensor] | None = ...,
) -> float: ...
@overload
def recall_at_k(
    queries: Tensor,
    keys: Tensor,
    k: Sequence[int],
    *,
    groups: Tensor | tuple[Tensor, Tensor] | None = ...,
) -> dict[int, float]: ...
def recall_at_k(
    queries: Tensor,
    keys: Tensor,
    k: int | Sequence[int] = 1,
    *,
    groups: Tensor | tuple[Tensor, Tensor] | None = None,
) -> float | dict[int, float]:
    """Share of the queries that have a correct key among their k nearest, in [0, 1].

    A query's rank is the number of wrong keys that score at least as high as its best correct key;
    it is found when the rank is below k. So a tie counts against the model: embeddings that are
    all equal have a recall of 0, not of 1. Cosines within 1e-6 of each other are ties.

    Args:
        queries: [N, D].
        keys: [M, D].
        k: one number gives a float; several give a dict. Each from 1 to M.
        groups: which keys are correct. None: the key of the same index (N = M). int64 [N]: every
            key of the same group (N = M), as `caption_groups` numbers them, so that an identical
            caption is correct. A pair (int64 [N], int64 [M]): the groups of queries and of keys.

    Raises:
        ShapeError: shapes that do not fit, empty, not finite, or a zero vector.
        MMCLError: k outside 1 to M, or a query without any correct key.
    """
    q, key = _unit(queries, "queries"), _unit(keys, "keys")
    if q.shape[1] != key.shape[1] or q.device != key.device or q.dtype != key.dtype:
        raise ShapeError(
            "expected queries [N, D] and keys [M, D] of one width, type and device; got "
            f"{_told(queries)} and {_told(keys)}"
        )
    ks = [k] if isinstance(k, int) else list(k)
    if not ks or not all(isinstance(each, int) and 1 <= each <= len(key) for each in ks):
        raise MMCLError(f"k must be from 1 to the number of keys, {len(key)}; got {k}")
    query_groups, key_groups = _group_pair(groups, len(q), len(key), q.device)
    lost = ~torch.isin(query_groups, key_groups)
    if lost.any():
        raise MMCLError(
            f"expected a correct key for every query; {int(lost.sum())} of {len(q)} have none, "
            f"the first is query {int(lost.nonzero()[0])}"
        )
    size = max(1, _BLOCK // len(key))
    ranks = []
    for i in range(0, len(q), size):
        scores = q[i : i + size] @ key.T
        correct = query_groups[i : i + size, None] == key_groups
        best = scores.masked_fill(~correct, -math.inf).amax(1, keepdim=True)
        ranks.append(((scores >= best - TIE) & ~correct).sum(1))
    rank = torch.cat(ranks)
    recalls = {each: (rank < each).double().mean().item() for each in ks}
    return recalls[k] if isinstance(k, int) else recalls


def _group_pair(
    groups: Tensor | tuple[Tensor, Tensor] | None, n: int, m: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    if groups is None or isinstance(groups, Tensor):
        if n != m:
            raise ShapeError(
                f"expected as many keys as queries, {n}; got {m}; where they differ, pass "
                "groups=(query_groups, key_groups)"
            )
        one = torch.arange(n) if groups is None else groups
        pair = (one, one)
    else:
        pair = groups
    for name, group, size in (("query", pair[0], n), ("key", pair[1], m)):
        if not isinstance(group, Tensor) or group.shape != (size,) or group.is_floating_point():
            found = _told(group) if isinstance(group, Tensor) else type(group).__name__
            raise ShapeError(f"expected {name} groups as integers [{size}]; got {found}")
    return pair[0].to(device), pair[1].to(device)


# --- zero-shot classification ---------------------------------------------------------------------


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
    images: Tensor | BatchSource | Batch,
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
    x = _unit(embed_all(method, images, ("image",), batch_size=batch_size), "image embeddings")
    if labels is not None:
        labels = _labels(labels, x, "labels")
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
    sums = torch.zeros(len(classes), each.shape[1]).index_add_(0, of_class, _unit(each, "prompts"))
    # The direction of a sum is that of the mean. Sentences that cancel leave only rounding.
    scores = x @ _unit(sums, "class embeddings", smallest=1e-6).T
    predictions = scores.argmax(1)
    if labels is None:
        return ZeroShot(scores, predictions, None, None, classes)
    accuracy = (predictions == labels).double().mean().item()
    chance = labels.bincount().max().item() / len(labels)
    return ZeroShot(scores, predictions, accuracy, chance, classes)


# --- linear probes --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Probe:
    """What a linear classifier reads from frozen features.

    Attributes:
        accuracy: share of the test labels that it tells; with several columns, their mean.
        chance: accuracy of always naming the commonest test label; likewise.
        predictions: of the test samples, int64 [N] or [N, T].
        converged: whether the solver ended by itself, and not at `max_iter`.
    """

    accuracy: float
    chance: float
    predictions: Tensor = field(repr=False)
    converged: bool


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    C: float = 1.0,
    max_iter: int = 1000,
) -> Probe:
    """Fits a logistic regression on frozen features and tests it.

    Features are brought to mean 0 and variance 1 on the training set; a constant one is left at 0.
    The solver is scikit-learn's L-BFGS in float64: deterministic.

    Args:
        train_x: float [N, D].
        train_y: int64 [N], a class for each sample; or [N, T] of 0 and 1, and then each column has
            a probe of its own.
        test_x: float [M, D].
        test_y: int64 [M] or [M, T].
        C: inverse strength of the L2 penalty, above 0.
        max_iter: the most iterations of the solver.

    Raises:
        ShapeError: shapes that do not fit, empty, or not finite.
        MMCLError: fewer than two classes to train on, test labels that training lacks, or C not
            above 0.
    """
    x, test = _matrix(train_x, "train_x").double().cpu(), _matrix(test_x, "test_x").double().cpu()
    y, truth = _labels(train_y, x, "train_y"), _labels(test_y, test, "test_y")
    if x.shape[1] != test.shape[1] or y.shape[1:] != truth.shape[1:]:
        raise ShapeError(
            "expected features and labels of one width in training and test; got "
            f"{list(x.shape)}, {list(y.shape)} and {list(test.shape)}, {list(truth.shape)}"
        )
    _check_classes(y, truth)
    predict, converged = _fit_probe(x, y, C, max_iter)
    predictions = predict(test)
    accuracy = (predictions == truth).double().mean().item()
    return Probe(accuracy, _chance(truth), predictions, converged)


def _fit_probe(
    x: Tensor, y: Tensor, C: float, max_iter: int
) -> tuple[Callable[[Tensor], Tensor], bool]:
    """A logistic regression for each column of labels.

    Args:
        x: [N, D].
        y: int64 [N] or [N, T].

    Returns:
        What predicts the labels of other features, [M, D] -> int64 [M] or [M, T]; and whether the
        solver converged.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if not 0 < C < math.inf or max_iter < 1:
        raise MMCLError(f"C must be above 0 and max_iter at least 1; got {C} and {max_iter}")
    x = x.double().cpu()
    mean, std = x.mean(0), x.std(0, correction=0)
    # A constant column differs from its mean by rounding only: do not blow that up.
    scale = torch.where(std > 1e-12 * (1 + mean.abs()), 1 / std, 0.0)

    def standardised(features: Tensor) -> Any:
        return ((features.double().cpu() - mean) * scale).numpy()

    # One thread: for matrices this small, waiting for each other costs threads more (up to a
    # hundredfold on a busy machine) than they gain.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by `converged`
        known = standardised(x)
        models = [
            LogisticRegression(C=C, max_iter=max_iter).fit(known, column.numpy())
            for column in (y.T if y.ndim == 2 else [y])
        ]

    def predict(features: Tensor) -> Tensor:
        asked = standardised(features)
        with threadpool_limits(1):
            columns = [torch.from_numpy(model.predict(asked)) for model in models]
        return torch.stack(columns, dim=1) if y.ndim == 2 else columns[0]

    return predict, all(bool(model.n_iter_.max() < max_iter) for model in models)


def _check_classes(y: Tensor, truth: Tensor) -> None:
    """At least two classes to train on, and no others in the test, in each column."""
    columns = y.ndim == 2
    for t, (known, asked) in enumerate(
        zip(y.T if columns else [y], truth.T if columns else [truth], strict=True)
    ):
        where = f" in column {t}" if columns else ""
        if len(known.unique()) < 2:
            raise MMCLError(
                f"expected at least two classes to train on{where}; got {known.unique().tolist()}"
            )
        if new := sorted(set(asked.tolist()) - set(known.tolist())):
            raise MMCLError(f"expected test labels that training has{where}; got also {new}")


def _chance(truth: Tensor) -> float:
    """Accuracy of always naming the commonest label, mean over columns."""
    columns = truth.reshape(len(truth), -1).T
    return sum(column.bincount().max().item() / len(truth) for column in columns) / len(columns)


def _labels(y: Tensor, x: Tensor, name: str) -> Tensor:
    """Labels as int64 on the CPU, checked."""
    if not isinstance(y, Tensor):
        raise ShapeError(f"{name}: expected a tensor; got {type(y).__name__}")
    whole = y.long()
    if (
        y.ndim not in (1, 2)
        or len(y) != len(x)
        or y.numel() == 0
        or bool((whole != y).any())
        or bool((whole < 0).any())
        or (y.ndim == 2 and bool((whole > 1).any()))
    ):
        raise ShapeError(
            f"{name}: expected classes 0, 1, ... [{len(x)}], or columns of 0 and 1 [{len(x)}, T]; "
            f"got {_told(y)}"
        )
    return whole.cpu()


# --- missing modalities ---------------------------------------------------------------------------


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
    train: BatchSource | Batch,
    train_y: Tensor,
    test: BatchSource | Batch,
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
    Poklukar et al., ICML 2022). The method's mode and the random state are afterwards as before.

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
    y, truth = _labels(train_y, train_y, "train_y"), _labels(test_y, test_y, "test_y")
    if y.ndim != 1 or truth.ndim != 1:
        raise ShapeError(f"expected labels [N] and [M]; got {list(y.shape)}, {list(truth.shape)}")
    _check_classes(y, truth)
    place, predictions = _place(method), {}
    with torch.random.fork_rng([place] if place.type == "cuda" else []):
        if classifier == "probe":
            x = embed_all(method, train, modalities, batch_size=batch_size)
            predict, converged = _fit_probe(x, _labels(train_y, x, "train_y"), C, max_iter)
            verb = "embed"
        else:
            verb, predict, converged = "logits", _largest, True
        for size in range(1, len(modalities) + 1):
            for present in itertools.combinations(modalities, size):
                rows = _rows(method, verb, test, present, batch_size)
                rows = _matrix(rows, f"{verb} of {' and '.join(present)}")
                _labels(test_y, rows, "test_y")  # one for each sample
                if classifier == "own" and truth.max() >= rows.shape[1]:
                    raise MMCLError(
                        f"expected test labels from 0 to {rows.shape[1] - 1}, the classes of the "
                        f"method; got up to {int(truth.max())}"
                    )
                predictions[present] = predict(rows)
    accuracy = {
        present: (found == truth).double().mean().item() for present, found in predictions.items()
    }
    return MissingModality(accuracy, _chance(truth), predictions, converged)


def _largest(logits: Tensor) -> Tensor:
    return logits.argmax(dim=1)


# --- the shape of the space -----------------------------------------------------------------------


def modality_gap(x: Tensor, y: Tensor) -> float:
    """`||mean(x) - mean(y)||`, in [0, 2]: the distance of the centres of two modalities.

    Liang et al., "Mind the Gap", NeurIPS 2022.

    Args:
        x: [N, D].
        y: [M, D].
    """
    x, y = _unit(x, "x").double(), _unit(y, "y").double()
    _same_width(x, y)
    return (x.mean(0) - y.mean(0)).norm().item()


def cone(x: Tensor) -> float:
    """Mean cosine of different samples of one modality; 0 when they point everywhere alike.

    The mean over all pairs i != j, exact, from the sum s of the vectors: `(s.s - N) / (N(N - 1))`.
    Liang et al., NeurIPS 2022 (the cone effect).

    Args:
        x: [N, D], N at least 2.
    """
    x = _pairs(x)
    s, n = x.sum(0), len(x)
    return ((s @ s - x.square().sum()) / (n * (n - 1))).item()


def shift_gap(x: Tensor, y: Tensor, d: float) -> tuple[Tensor, Tensor]:
    """Moves two modalities along the line between their centres: d = 0 moves nothing.

    `x - d/2 * gap` and `y + d/2 * gap` with `gap = mean(x) - mean(y)`, brought back to unit norm;
    d = 1 makes the centres meet (before that), d < 0 widens the gap. Liang et al., NeurIPS 2022.

    Args:
        x: [N, D].
        y: [M, D].
        d: share of the gap to close.

    Returns:
        The shifted x [N, D] and y [M, D].
    """
    x, y = _unit(x, "x"), _unit(y, "y")
    _same_width(x, y)
    if not math.isfinite(d):
        raise MMCLError(f"d must be finite; got {d}")
    half = d / 2 * (x.mean(0) - y.mean(0))
    return (
        _unit(x - half, "the shifted x", smallest=1e-6),
        _unit(y + half, "the shifted y", smallest=1e-6),
    )


def alignment(x: Tensor, y: Tensor) -> float:
    """Mean `||x_i - y_i||^2` over pairs, in [0, 4]; 0 when each pair is one point.

    Wang & Isola, ICML 2020.

    Args:
        x: [N, D].
        y: [N, D], row i the partner of row i of x.
    """
    x, y = _unit(x, "x").double(), _unit(y, "y").double()
    if x.shape != y.shape:
        raise ShapeError(f"expected pairs, [N, D] twice; got {_told(x)} and {_told(y)}")
    return (x - y).square().sum(1).mean().item()


def uniformity(x: Tensor, t: float = 2.0) -> float:
    """`log mean exp(-t ||x_i - x_j||^2)` over all pairs i != j; lower is more uniform.

    At most 0 (all one point); above `-4t`, the value of two opposite points. Wang & Isola,
    ICML 2020.

    Args:
        x: [N, D], N at least 2.
        t: above 0.
    """
    x = _pairs(x)
    if not 0 < t < math.inf:
        raise MMCLError(f"t must be above 0 and finite; got {t}")
    n = len(x)
    size = max(1, _BLOCK // n)
    blocks = []
    for i in range(0, n, size):  # pairs i < j: they have the mean of all
        distances = 2 - 2 * (x[i : i + size] @ x[i:].T)
        exponents = -t * distances
        rows = torch.arange(len(exponents), device=x.device)
        columns = torch.arange(n - i, device=x.device)
        exponents.masked_fill_(columns <= rows[:, None], -math.inf)
        blocks.append(exponents.flatten().logsumexp(0))
    total = torch.stack(blocks).logsumexp(0).item()
    return total - math.log(n * (n - 1) / 2)


# --- checks ---------------------------------------------------------------------------------------


def _told(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} on {x.device}"


def _matrix(x: Tensor, name: str) -> Tensor:
    """x as float [N, D] without history; at least float32."""
    if not isinstance(x, Tensor) or x.ndim != 2 or 0 in x.shape or not x.is_floating_point():
        found = _told(x) if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError(f"{name}: expected floats [N, D], not empty; got {found}")
    x = x.detach()
    if x.dtype != torch.float64:
        x = x.float()
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).any(1).sum())
        raise ShapeError(f"{name}: expected finite values; {bad} of {len(x)} rows have NaN or inf")
    return x


def _unit(x: Tensor, name: str, *, smallest: float = 1e-12) -> Tensor:
    """x with rows of unit norm; a row shorter than `smallest` counts as zero."""
    x = _matrix(x, name)
    zero = x.norm(dim=1) < smallest
    if zero.any():
        raise ShapeError(
            f"{name}: expected vectors with a direction; {int(zero.sum())} of {len(x)} rows are "
            f"zero, the first is row {int(zero.nonzero()[0])}"
        )
    return F.normalize(x, dim=1)


def _pairs(x: Tensor) -> Tensor:
    x = _unit(x, "x").double()
    if len(x) < 2:
        raise ShapeError("expected at least two samples, to have a pair of them; got one")
    return x


def _same_width(x: Tensor, y: Tensor) -> None:
    if x.shape[1] != y.shape[1] or x.device != y.device:
        raise ShapeError(f"expected x and y of one width and device; got {_told(x)} and {_told(y)}")
