"""MCT: learn within each modality and between them, at once.

Yuan et al., "Multimodal Contrastive Training for Visual Representation Learning", CVPR 2021,
pp. 6995-7004.

The authors' code was never published. From their abstract and patent we know the five terms (image
self-supervised, image tag-supervised, caption self-supervised, image to caption, caption to image),
a momentum encoder for each modality, MoCo-v2 as the base, and independent MLP heads. The rest of
this file is a **reconstruction**: the exact form of the tag term and of the terms between the
modalities, which view is compared with which, the weights, and all numbers.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmcl_core.batches import Batch, at_hand, require
from mmcl_core.data.groups import codes_of, same_text
from mmcl_core.encoders import ProjectionHead, encode, width_of
from mmcl_core.errors import MMCLError, check_count, check_number, check_temperature
from mmcl_core.losses import queue_hinge, queue_info_nce
from mmcl_core.methods.method import Method, unit
from mmcl_core.methods.moco import KeyQueue, MomentumCopy

TERMS = ("image", "tags", "caption", "image_to_caption", "caption_to_image")

# The keys of each queue: modality, entry of the batch, head (0 intra, 1 inter), the caption whose
# code is their label (None: the tags are), and the terms that use the queue.
QUEUES = {
    "image": ("image", "image_view", 0, None, ("image", "tags")),
    "caption": ("caption", "caption_view", 0, "caption_view", ("caption",)),
    "inter_image": ("image", "image", 1, "caption", ("caption_to_image",)),
    "inter_caption": ("caption", "caption", 1, "caption", ("image_to_caption",)),
}


class Tower(nn.Module):
    """An encoder with two heads: one for its own modality, one for the other (the prime below)."""

    def __init__(self, encoder: nn.Module, dim: int, hidden: int | None) -> None:
        super().__init__()
        width = width_of(encoder)
        self.encoder = encoder
        hidden = width if hidden is None else hidden
        self.intra = ProjectionHead(width, dim, hidden=hidden)
        self.inter = ProjectionHead(width, dim, hidden=hidden)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        pooled = encode(self.encoder, values).pooled
        return unit(self.intra(pooled)), unit(self.inter(pooled))


class MCT(Method):
    """Five contrastive terms over four queues.

    With q a query, k a key of the momentum encoder, Q the queue of earlier keys, and nce(q, k, Q)
    the loss of MoCo (`queue_info_nce`):

    - `image`: nce(q_i, k_i, Q_i), `caption`: nce(q_c, k_c, Q_c), with the intra-modal heads;
    - `tags`: as `image`, but every key of Q_i that shares at least `min_shared_tags` tags with the
      sample is a positive, too (`queue_positives`); the tags move in lock-step with the keys;
    - `image_to_caption`: nce(q'_i, k'_c, Q'_c), `caption_to_image`: nce(q'_c, k'_i, Q'_i), with the
      inter-modal heads.

    The queries see `image` and `caption`. Keys within a modality are of the second views,
    `image_view` and `caption_view`; keys between the modalities are of `image` and `caption`
    themselves, since a view may have cut off what the other modality speaks of (this costs a second
    pass through the momentum encoders, without gradient). Keys whose caption is word for word that
    of the sample are positives as well, not negatives (as in `CLIP`); so are, in the term
    `caption`, those that say the same as its view.

    Args:
        image_encoder: returns `Encoded` for pictures; has a `width`.
        caption_encoder: returns `Encoded` for captions; has a `width`.
        tags: number of tags T; 0 switches the term off.
        weights: name of a term to its weight, at least 0; 0 is off. Terms not named have 1.
        dim: width D of all four spaces.
        hidden: width of the hidden layer of the heads; None is the encoder's width.
        queue: length K of each queue, a multiple of the batch.
        momentum: of both key encoders.
        intra_temperature: T > 0 of the terms within a modality; 0.2 as in MoCo-v2.
        inter_temperature: T > 0 of the terms between them; 0.07 is where CLIP starts.
        min_shared_tags: from how many common tags on a key is a positive.
        inter: "info_nce", or "hinge" for a ranking loss between the modalities.
        margin: of the hinge, at least 0, in units of cosine.
    """

    modalities = ("image", "caption")
    # By modality, and by queue; typed here, since a ModuleDict forgets what it holds.
    query: Any
    key: Any
    queues: Any

    def __init__(
        self,
        image_encoder: nn.Module,
        caption_encoder: nn.Module,
        *,
        tags: int = 0,
        weights: Mapping[str, float] | None = None,
        dim: int = 128,
        hidden: int | None = None,
        queue: int = 1024,
        momentum: float = 0.99,
        intra_temperature: float = 0.2,
        inter_temperature: float = 0.07,
        min_shared_tags: int = 2,
        inter: Literal["info_nce", "hinge"] = "info_nce",
        margin: float = 0.2,
    ) -> None:
        super().__init__()
        if inter not in ("info_nce", "hinge"):
            raise MMCLError(f"inter must be 'info_nce' or 'hinge'; got {inter!r}")
        dim, queue = check_count("dim", dim), check_count("queue", queue)
        tags = check_count("tags", tags, least=0)
        self.weights = _checked(weights or {}, tags)
        self.intra_temperature = check_temperature(intra_temperature, "intra_temperature")
        self.inter_temperature = check_temperature(inter_temperature, "inter_temperature")
        self.min_shared_tags = check_count("min_shared_tags", min_shared_tags)
        self.inter, self.margin = inter, check_number("margin", margin, "[0, inf)")
        encoders = {"image": image_encoder, "caption": caption_encoder}
        self.query = nn.ModuleDict({m: Tower(e, dim, hidden) for m, e in encoders.items()})
        self.key = nn.ModuleDict({m: MomentumCopy(self.query[m], momentum) for m in encoders})
        # A queue for each that some term uses. Labels: multi-hot tags, or the code of a caption.
        self.queues = nn.ModuleDict()
        for name, (_, _, _, text, terms) in QUEUES.items():
            if any(self.weights[term] for term in terms):
                width = 1 if text else tags * bool(self.weights["tags"])
                dtype = torch.int64 if text else torch.float32
                self.queues[name] = KeyQueue(queue, dim, labels=width, dtype=dtype)
        # Keys and labels of the last loss, by queue; they join it after the step.
        self._new: dict[str, tuple[Tensor, Tensor | None]] = {}

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """The trained encoders, by modality."""
        return {m: self.query[m].encoder for m in self.modalities}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Each term that is on, under its name, and their weighted sum, "total".

        Args:
            batch: `image` and `caption`; the second view of a modality if it has a term of its own;
                and `tags` multi-hot [B, T] if that term is on.

        Raises:
            MissingModalityError: one of them is not there.
            ShapeError: the length of the queues is no multiple of the batch, or tags of another
                width than the queue's.
        """
        self._check(batch)
        new = self._keys(batch)
        q_image, to_caption = self.query["image"](batch["image"])
        q_caption, to_image = self.query["caption"](batch["caption"])

        def within(queries: Tensor, name: str, also: Tensor | None = None) -> Tensor:
            keys, queue, T = new[name][0], self.queues[name].keys, self.intra_temperature
            return queue_info_nce(queries, keys, queue, T, queue_positives=also)

        def between(queries: Tensor, name: str) -> Tensor:
            keys, queue, also = new[name][0], self.queues[name].keys, says("caption", name)
            if self.inter == "hinge":
                return queue_hinge(queries, keys, queue, self.margin, queue_positives=also)
            T = self.inter_temperature
            return queue_info_nce(queries, keys, queue, T, queue_positives=also)

        def says(entry: str, name: str = "caption") -> Tensor:
            return same_text(codes_of(batch, entry), self.queues[name].labels[:, 0])

        def shared_tags() -> Tensor:
            labels = self.queues["image"].labels
            return batch["tags"].to(labels) @ labels.T >= self.min_shared_tags

        formulas: dict[str, Callable[[], Tensor]] = {
            "image": lambda: within(q_image, "image"),
            "tags": lambda: within(q_image, "image", shared_tags()),
            "caption": lambda: within(q_caption, "caption", says("caption") | says("caption_view")),
            "image_to_caption": lambda: between(to_caption, "inter_caption"),
            "caption_to_image": lambda: between(to_image, "inter_image"),
        }
        terms = {term: formulas[term]() for term in TERMS if self.weights[term]}
        self._new = new if self.training else {}
        total = torch.stack([self.weights[term] * value for term, value in terms.items()]).sum()
        return {"total": total, **terms}

    def embed(self, batch: Batch) -> Tensor:
        """One unit vector for each sample, [B, D], in the space between the modalities.

        With both, the normalised mean of their two vectors.

        Raises:
            MissingModalityError: neither picture nor caption is there.
        """
        present = at_hand(batch, "MCT embeds", self.modalities)
        return unit(sum(self.query[m](batch[m])[1] for m in present))

    def after_step(self) -> None:
        """Puts the keys of the last loss into the queues, then moves the momentum encoders."""
        for name, (keys, labels) in self._new.items():
            self.queues[name].enqueue(keys, labels)
        self._new = {}
        for m in self.modalities:
            self.key[m].follow(self.query[m])

    def warm_start(self, batches: Iterable[Batch]) -> None:
        """Puts keys of real samples into the queues, before the first step: K of them fill them.

        Args:
            batches: as for `loss`.
        """
        for batch in batches:
            self._check(batch)
            for name, (keys, labels) in self._keys(batch).items():
                self.queues[name].enqueue(keys, labels)

    def _check(self, batch: Batch) -> None:
        tags = ["tags"] if self.weights["tags"] else []
        entries = [*self.modalities, *(QUEUES[name][1] for name in self.queues), *tags]
        require(batch, "MCT trains on", *dict.fromkeys(entries))
        for queue in self.queues.values():
            queue.check(len(batch["image"]))
        if tags:
            self.queues["image"].check_labels(batch["tags"])

    def _keys(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor | None]]:
        """For each queue in use, the keys of a batch and their labels."""
        new: dict[str, tuple[Tensor, Tensor | None]] = {}
        tags = batch["tags"] if self.weights["tags"] else None
        for name in self.queues:
            modality, entry, head, text, _ = QUEUES[name]
            labels = codes_of(batch, text)[:, None] if text else tags
            new[name] = self.key[modality](batch[entry])[head], labels
        return new


def _checked(weights: Mapping[str, float], tags: int) -> dict[str, float]:
    if unknown := set(weights) - set(TERMS):
        raise MMCLError(f"the terms are {', '.join(TERMS)}; got weights for {sorted(unknown)}")
    full = {term: float(weights.get(term, 1.0)) for term in TERMS}
    if not tags:
        if weights.get("tags"):
            raise MMCLError("the term of the tags needs their number: pass tags=T")
        full["tags"] = 0.0
    if not all(0 <= w < float("inf") for w in full.values()) or not any(full.values()):
        raise MMCLError(f"weights must be finite, at least 0, and not all 0; got {full}")
    return full
