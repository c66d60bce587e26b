"""Embeds whole data sets with a method."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from mmcl_core.batches import Batch, Batched, Data
from mmcl_core.errors import MissingModalityError, MMCLError, ShapeError, check_count
from mmcl_core.evaluation.checks import as_matrix
from mmcl_core.modules import evaluating, taking


def embed_all(
    method: nn.Module,
    data: Data | Batch,
    modalities: Sequence[str] = ("image",),
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> Tensor:
    """Embeds all samples, in order, in eval mode and without gradients.

    Args:
        method: has `embed(batch) -> [B, D]`. Modes and random states are afterwards as before.
        data: a data set (see `Batched`), or one batch of any size.
        modalities: the keys of the batch that `embed` is given; no others. Floats come in the type
            of the method's parameters, such as float64 or bfloat16.
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
    return as_matrix(rows_of(method, "embed", data, modalities, batch_size), "the embeddings")


def rows_of(
    method: nn.Module,
    verb: str,
    data: Data | Batch,
    modalities: Sequence[str],
    batch_size: int,
) -> Tensor:
    """What `method.<verb>(batch)` gives for all samples, as float32 [N, D] on the CPU."""
    if isinstance(modalities, str) or not modalities:
        raise MMCLError(f"expected modalities such as ('image',); got {modalities!r}")
    batch_size = check_count("batch_size", batch_size)
    if not callable(getattr(method, verb, None)):
        raise MMCLError(f"method must have {verb}(batch); {type(method).__name__} has none")
    apply, take, rows = getattr(method, verb), taking(method), []
    with evaluating(method):
        for batch in _batches(data, batch_size):
            if absent := [name for name in modalities if name not in batch]:
                raise MissingModalityError(
                    f"expected {list(modalities)}; the data has no "
                    f"{' and no '.join(absent)}, only {sorted(batch)}"
                )
            x = apply(take({m: batch[m] for m in modalities}))
            size = len(batch[modalities[0]])
            if not isinstance(x, Tensor) or x.ndim != 2 or len(x) != size:
                found = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise ShapeError(f"method.{verb} must return [{size}, D]; got {found}")
            rows.append(x.float().cpu())
    return torch.cat(rows)


def _batches(data: Data | Batch, batch_size: int) -> Iterator[Batch]:
    if isinstance(data, dict):
        sizes = {name: len(value) for name, value in data.items()}
        if len(set(sizes.values())) != 1:
            raise ShapeError(f"expected a batch with one number of samples; got {sizes}")
        n = next(iter(sizes.values()))
    else:
        whole = Batched(data)
        n = len(whole)
    if n == 0:
        raise ShapeError("expected at least one sample; the data is empty")
    for i in range(0, n, batch_size):
        j = min(i + batch_size, n)
        if isinstance(data, dict):
            yield {name: value[i:j] for name, value in data.items()}
        else:
            yield whole.batch(range(i, j))
