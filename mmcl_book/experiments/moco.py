"""MoCo on pictures alone: how far do old keys drift, and what do the queries learn?

The momentum of the key encoder is varied with a long queue and with a short one, and the length of
the queue with a momentum of 0.99. Beside them stand the same encoder as it begins, and one that
finds its negatives in its own batch, without a queue and without a second encoder.

While a model trains, its key encoder embeds the same pictures at certain steps. So keys of several
ages are at hand, to be compared with those of the same pictures by the key encoder as it is then.

Learning rate and crops were chosen on scenes of seed 555.
"""

from collections.abc import Sequence
from itertools import product
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmcl_book.experiments import small
from mmcl_core.batches import Batch
from mmcl_core.checkpoints import History
from mmcl_core.data.augment import crop
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import alignment, cone, embed_all, recall_at_k, summary, uniformity
from mmcl_core.losses import info_nce
from mmcl_core.methods import MoCo
from mmcl_core.methods.moco import MomentumCopy, Tower
from mmcl_core.training import fit

EPOCHS, BATCH, LR, TEMPERATURE = 5, 64, 5e-3, 0.2
MOMENTUM, QUEUE = 0.99, 1024
CROP = (0.25, 1.0)  # least and greatest share of the area
MOMENTA = {64: (0, 0.9, 0.99), 256: (0.9, 0.99), 1024: (0, 0.9, 0.99, 0.999, 1), 4096: (0.99,)}
CONDITIONS: dict[str, dict[str, Any]] = {
    **{f"{k} keys, {m:g}": {"queue": k, "momentum": m} for k, of in MOMENTA.items() for m in of},
    "in the batch": {"training": "batch"},
    "untrained": {"training": "none"},
}
AGES = (1, 2, 4, 8, 16, 32, 64)  # steps
MARKS = {"early": 0.25, "middle": 0.5, "end": 1.0}  # shares of the training
WATCHED, WATCHED_SEED = 256, 778  # pictures whose keys are followed
TESTED, VIEWS_SEED = 1000, 5  # test pictures, and the seed of their two crops
PROBED = (2000, 1000)  # one-object scenes that a probe learns from, and is tested on


class InBatch(nn.Module):
    """Two views of a sample find each other among the other samples of the batch; no queue.

    The loss of SimCLR without its negatives of the same view: `info_nce` in both directions. Both
    views pass through the one encoder, and both have gradients.
    """

    def __init__(self, encoder: nn.Module, *, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        self.query, self.temperature = Tower(encoder, small.DIM, None), temperature

    @property
    def encoders(self) -> dict[str, nn.Module]:
        return {"image": self.query.encoder}

    def loss(self, batch: Batch) -> Batch:
        """`batch` has `image` and `image_view`, [B, 3, H, W] each."""
        x, y = (self.query(batch[name]) for name in ("image", "image_view"))
        both = [info_nce(*pair, self.temperature) for pair in ((x, y), (y, x))]
        return {"total": torch.stack(both).mean()}

    def embed(self, batch: Batch) -> Tensor:
        return self.query(batch["image"])


class Watched(MoCo):
    """A MoCo whose key encoder embeds the same pictures at certain steps.

    Args:
        encoder: as for `MoCo`; likewise `settings`.
        pictures: float [N, 3, H, W].
        when: the steps, counted from 0 (before the first).
        followers: momenta of further copies that follow the query encoder. They are watched, too,
            and take no part in the training.
    """

    def __init__(
        self, encoder: nn.Module, pictures: Tensor, when: set[int], followers: Sequence[float] = (),
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(encoder, **settings)
        self.pictures, self.when, self.steps = pictures, when, 0
        self.copies = [self.key, *(MomentumCopy(self.query, m) for m in followers)]
        # Momentum -> steps done -> unit vectors [N, D].
        self.seen: dict[float, dict[int, Tensor]] = {copy.momentum: {} for copy in self.copies}
        self._look()

    def after_step(self) -> None:
        super().after_step()
        self.steps += 1
        for copy in self.copies[1:]:
            copy.follow(self.query)
        self._look()

    def _look(self) -> None:
        for copy in self.copies if self.steps in self.when else ():
            self.seen[copy.momentum][self.steps] = copy(self.pictures)


class Drift(NamedTuple):
    """Keys of one age beside those of the same pictures now, by the same key encoder."""

    own: float  # mean cosine distance of a picture's old key from its new one
    others: float  # mean cosine distance of the new keys of different pictures
    found: float  # share of old keys whose nearest new key is that of their picture


class Trained(NamedTuple):
    """A method, and what was seen of its training."""

    method: nn.Module
    history: History | None  # None where nothing was trained
    marks: dict[str, int]  # name -> steps done


def new_moco(seed: int, when: set[int], **settings: Any) -> Watched:
    """A MoCo with the first weights and first queue of that seed. Seeds torch.

    `settings` are those of `Watched`.
    """
    pictures = small.scenes(WATCHED, WATCHED_SEED).batch(range(WATCHED))["image"]
    torch.manual_seed(seed)
    encoder = small.image_encoder()
    return Watched(encoder, pictures, when, dim=small.DIM, temperature=TEMPERATURE, **settings)


def new_in_batch(seed: int) -> InBatch:
    """An `InBatch` with the first weights of that seed. Seeds torch."""
    torch.manual_seed(seed)
    return InBatch(small.image_encoder())


def train(
    seed: int, *, training: str = "queue", momentum: float = MOMENTUM, queue: int = QUEUE,
    followers: Sequence[float] = (),
) -> Trained:  # fmt: skip
    """Trains an encoder of pictures on two crops of each.

    Args:
        seed: of scenes, first weights, order and crops.
        training: "queue" is MoCo; "batch" takes the negatives from the batch; "none" trains not.
        momentum: of the key encoder.
        queue: its length.
        followers: see `Watched`.
    """
    if training not in ("queue", "batch", "none"):
        raise MMCLError(f"training must be 'queue', 'batch' or 'none'; got {training!r}")
    data = small.scenes(small.PAIRS, seed)
    steps = EPOCHS * (len(data) // BATCH)
    marks = {name: round(share * steps) for name, share in MARKS.items()}
    when = {max(at - age, 0) for at in marks.values() for age in (0, *AGES)}
    of: dict[str, Any] = {"momentum": momentum, "queue": queue, "followers": followers}
    method: nn.Module = new_in_batch(seed) if training == "batch" else new_moco(seed, when, **of)
    if training == "none":
        return Trained(method, None, marks)
    how: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, "lr": LR, "seed": seed}
    history = fit(method, data, augment=two_crops, progress=False, **how)
    return Trained(method, history, marks)


# Two crops of each picture.
two_crops = crop(CROP, views=("image", "image_view"))


def drift(seen: dict[int, Tensor], at: int, age: int) -> Drift:
    """How keys of an age fit to those of the step `at`.

    Args:
        seen: steps done -> unit vectors [N, D], of the same pictures.
        at: a step.
        age: how many steps before it the old keys were made; no earlier than step 0.
    """
    new, old = seen[at], seen[max(at - age, 0)]
    # Half the squared distance is 1 - cosine, without its rounding error near 0.
    return Drift(alignment(old, new) / 2, 1 - cone(new), recall_at_k(old, new, 1))


@torch.no_grad()
def measure(trained: Trained) -> dict[str, float]:
    """What the queries learned, and how the keys moved.

    - "recall": share of 1,000 new pictures whose first crop finds its second one among all;
      "alignment" and "uniformity" of these crops;
    - "shape" and so on: accuracy of a linear probe on the encoder; "shape chance" and so on;
    - with a queue, for each mark and age: "drift @middle, 16", the mean cosine distance of old and
      new keys; "found @middle, 16", the share of old keys that are nearest to the new key of their
      picture; "spread @middle", the mean cosine distance of keys of different pictures;
    - where it was trained: "loss", the mean over the last epoch.
    """
    method, history, marks = trained
    measured = quality(method, small.TEST_SEED)
    known = small.scenes(PROBED[0], small.PROBE_SEEDS[0], objects=(1, 1))
    asked = small.scenes(PROBED[1], small.PROBE_SEEDS[1], objects=(1, 1))
    told = summary.probes(method, known, asked)
    measured |= {name.replace("_", " "): value for name, value in told.items()}
    if history is None:
        return measured
    measured["loss"] = fmean(history.steps["total"][-history.steps_per_epoch :])
    if isinstance(method, Watched):
        for (name, at), age in product(marks.items(), AGES):
            found = drift(method.seen[method.key.momentum], at, age)
            measured |= {f"drift @{name}, {age}": found.own, f"spread @{name}": found.others}
            measured[f"found @{name}, {age}"] = found.found
    return measured


def quality(method: nn.Module, seed: int) -> dict[str, float]:
    """The recall, alignment and uniformity of two crops of the pictures of a seed."""
    test = small.scenes(TESTED, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(VIEWS_SEED)
        batch = two_crops(test.batch(range(len(test))))
    x, y = (embed_all(method, {"image": batch[name]}) for name in ("image", "image_view"))
    measured = {"recall": recall_at_k(x, y, 1), "alignment": alignment(x, y)}
    return measured | {"uniformity": uniformity(x)}


def run(
    seed: int, *, training: str = "queue", momentum: float = MOMENTUM, queue: int = QUEUE
) -> dict[str, float]:
    """Trains and measures; see `train` and `measure`."""
    return measure(train(seed, training=training, momentum=momentum, queue=queue))
