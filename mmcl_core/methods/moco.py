"""MoCo: a dictionary that is large because it is a queue, and consistent because it is slow.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020; with the
head, temperature and augmentation of Chen et al., "Improved Baselines with Momentum Contrastive
Learning" (MoCo-v2), 2020. `MomentumCopy` and `KeyQueue` serve MCT as well.
"""

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_core.batches import Batch, require
from mmcl_core.distributed import gather, world_size
from mmcl_core.encoders import ProjectionHead, encode, width_of
from mmcl_core.errors import ShapeError, check_count, check_number, check_temperature
from mmcl_core.losses import queue_info_nce
from mmcl_core.methods.method import Method, unit


class MomentumCopy(nn.Module):
    """A copy of a network that follows it slowly, and has no gradient.

    Args:
        network: what is copied, as it is now.
        momentum: m in [0, 1]; 1 never moves.
    """

    moves = True  # so it is not frozen: its mode is that of the method

    def __init__(self, network: nn.Module, momentum: float) -> None:
        super().__init__()
        self.momentum = check_number("momentum", momentum, "[0, 1]")
        self.network = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def forward(self, *args: Tensor) -> Tensor:
        return self.network(*args)

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """`k = m k + (1 - m) q` for the parameters (He et al., Eq. 2); buffers stay their own."""
        for ours, theirs in zip(self.network.parameters(), network.parameters(), strict=True):
            ours.lerp_(theirs, 1 - self.momentum)


class KeyQueue(nn.Module):
    """The last K keys, as negatives of the next queries; the oldest go first.

    It starts with K random unit vectors, as published: until K keys have come, queries meet
    negatives that no encoder made (`warm_start` of the methods puts real ones there).

    Args:
        length: K, a multiple of the batch of all processes together.
        dim: width D of a key.
        labels: width of a label that moves in lock-step with each key; 0 for none. The random keys
            have the label zero.
        dtype: of the labels.
    """

    keys: Tensor
    labels: Tensor
    pointer: Tensor

    def __init__(
        self, length: int, dim: int, *, labels: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        length, dim = check_count("length", length), check_count("dim", dim)
        labels = check_count("labels", labels, least=0)
        self.register_buffer("keys", F.normalize(torch.randn(length, dim), dim=1))
        self.register_buffer("labels", torch.zeros(length, labels, dtype=dtype))
        self.register_buffer("pointer", torch.tensor(0))  # where the next key goes

    def check(self, size: int) -> None:
        """Raises ShapeError unless batches of `size` in each process fill the queue evenly."""
        length, size = len(self.keys), size * world_size()
        if size > length:
            raise ShapeError(
                f"the queue has {length} keys, fewer than the batch of {size}: lengthen it to a "
                "multiple of the batch"
            )
        if length % size:
            raise ShapeError(
                f"expected a queue whose length is a multiple of the batch; got {length} keys and "
                f"a batch of {size}: take a queue of {length - length % size}, for example"
            )

    def check_labels(self, labels: Tensor | None) -> None:
        """Raises ShapeError for labels of another width than the queue's; None is a width of 0."""
        shape, width = [0, 0] if labels is None else list(labels.shape), self.labels.shape[1]
        if shape[1:] != [width]:
            raise ShapeError(
                f"expected labels [B, {width}], the width the queue was made for; got "
                f"{'none' if labels is None else shape}"
            )

    @torch.no_grad()
    def enqueue(self, keys: Tensor, labels: Tensor | None = None) -> None:
        """Replaces the oldest keys by those of all processes, `[b, D]` in each."""
        self.check_labels(labels)
        keys = gather(keys)
        place = (self.pointer + torch.arange(len(keys), device=keys.device)) % len(self.keys)
        self.keys.index_copy_(0, place, keys.to(self.keys))
        if labels is not None:
            self.labels.index_copy_(0, place, gather(labels).to(self.labels))
        self.pointer.add_(len(keys)).remainder_(len(self.keys))


class Tower(nn.Module):
    """An encoder and its head: from a modality to unit vectors."""

    def __init__(self, encoder: nn.Module, dim: int, hidden: int | None) -> None:
        super().__init__()
        width = width_of(encoder)
        self.encoder = encoder
        self.head = ProjectionHead(width, dim, hidden=width if hidden is None else hidden)

    def forward(self, values: Tensor) -> Tensor:
        return unit(self.head(encode(self.encoder, values).pooled))


class MoCo(Method):
    """Two views of a sample find each other among the keys of a queue; for any one modality.

    A step: logits of this batch against the queue as it is; then, in `after_step()`, the keys join
    the queue, and the momentum encoder follows the new weights. That is the authors' order
    (momentum update, keys, logits, enqueue) begun at another point of the circle: in their first
    step both encoders are equal. A step that fails leaves queue and momentum encoder as they were.

    The authors shuffle the batch between GPUs, since batch norm would let samples see each other.
    Our encoders have no batch norm and need no shuffling.

    Args:
        encoder: returns `Encoded`; has a `width`.
        modality: the key of the batch that it encodes; the second view is `<modality>_view`.
        dim: width D of queries and keys.
        hidden: width of the hidden layer of the head; None is the encoder's width.
        queue: its length K, a multiple of the batch. Published: 65,536.
        momentum: of the key encoder. Published: 0.999, for 200 epochs of ImageNet; a training of
            some hundred steps needs less.
        temperature: T > 0. MoCo-v2: 0.2.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        modality: str = "image",
        dim: int = 128,
        hidden: int | None = None,
        queue: int = 1024,
        momentum: float = 0.99,
        temperature: float = 0.2,
    ) -> None:
        super().__init__()
        dim, queue = check_count("dim", dim), check_count("queue", queue)
        self.modality, self.temperature = modality, check_temperature(temperature)
        self.query = Tower(encoder, dim, hidden)
        self.key = MomentumCopy(self.query, momentum)
        self.queue = KeyQueue(queue, dim)
        self._keys: Tensor | None = None  # of the last loss; they join the queue after the step

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """The trained encoder, by the name of its modality."""
        return {self.modality: self.query.encoder}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """InfoNCE of the two views of each sample, against the queue.

        Args:
            batch: `<modality>`, the view of the query, and `<modality>_view`, that of the key.

        Raises:
            MissingModalityError: one of the two is not there.
            ShapeError: the length of the queue is no multiple of the batch.
        """
        self._check(batch)
        keys = self.key(batch[f"{self.modality}_view"])
        queries = self.query(batch[self.modality])
        total = queue_info_nce(queries, keys, self.queue.keys, self.temperature)
        self._keys = keys if self.training else None
        return {"total": total}

    def embed(self, batch: Batch) -> Tensor:
        """The query of each sample, [B, D], of unit norm.

        Raises:
            MissingModalityError: the modality is not there.
        """
        require(batch, "This MoCo embeds", self.modality)
        return self.query(batch[self.modality])

    def after_step(self) -> None:
        """Puts the keys of the last loss into the queue, then moves the momentum encoder."""
        if self._keys is not None:
            self.queue.enqueue(self._keys)
            self._keys = None
        self.key.follow(self.query)

    def warm_start(self, batches: Iterable[Batch]) -> None:
        """Puts keys of real samples into the queue, before the first step: K of them fill it.

        Args:
            batches: as for `loss`.
        """
        for batch in batches:
            self._check(batch)
            self.queue.enqueue(self.key(batch[f"{self.modality}_view"]))

    def _check(self, batch: Batch) -> None:
        require(batch, "MoCo trains on", self.modality, f"{self.modality}_view")
        self.queue.check(len(batch[self.modality]))
