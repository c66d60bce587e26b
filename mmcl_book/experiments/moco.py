"""MoCo on pictures alone: how long may the queue be, and how slow must its keys be?

In batches of eight, a queue holds many more keys than the batch: its length is varied at two
momenta of the key encoder. Beside them stand negatives from the batch alone, the same encoder as it
begins, and queues whose keys never age (`FreshKeys`): they tell length and age apart.

While a model trains, its key encoder embeds the same pictures at certain steps. So keys of several
ages are at hand, to be compared with those of the same pictures by the key encoder as it is then.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmcl_book.experiments import small
from mmcl_book.experiments.protocol import Better, Trials
from mmcl_core.batches import Batch
from mmcl_core.data.augment import crop
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import alignment, cone, embed_all, recall_at_k, summary, uniformity
from mmcl_core.losses import gmc_loss, info_nce
from mmcl_core.methods import MoCo
from mmcl_core.methods.moco import MomentumCopy, Tower
from mmcl_core.training import Progress, fit

EPOCHS, BATCH, TEMPERATURE = 4, 8, 0.1
CROP = (0.25, 1.0)  # least and greatest share of the area
LENGTHS = (8, 32, 64, 256, 1024)
SEEDS = tuple(range(20, 30))  # 0 to 4 were a first look, at two epochs
MOMENTUM, QUEUE, LR = 0.99, 256, 2e-3
AGES = (1, 2, 4, 8, 16, 32, 64, 128)  # steps; the oldest key of 1,024 is 128 steps old
WATCHED, WATCHED_SEED = 256, 778  # pictures whose keys are followed
TESTED, VIEWS_SEED = 1000, 5  # test pictures, and the seed of their two crops
PROBED = (2000, 1000)  # one-object scenes that a probe learns from, and is tested on
EVERY = 8  # steps after which `FreshKeys` makes all its keys anew


def tried(measure: str, training: str, *rates: float) -> Trials:
    """Learning rates at two temperatures, to choose from by a measure."""
    settings = {
        f"lr {lr}, T {t}": {
            "training": training, "lr": lr, "temperature": t, "asked": small.VALIDATION_SEED,
        }
        for lr in rates
        for t in (0.05, 0.1)
    }  # fmt: skip
    return Trials(measure, settings)


TRIALS = {
    "a queue": tried("colour", "queue", 1e-3, 2e-3, 4e-3),
    "in the batch": tried("colour", "batch", 5e-4, 1e-3, 2e-3, 4e-3),
    "in the batch, both views": tried("colour", "both views", 5e-4, 1e-3, 2e-3, 4e-3),
}
# The best of the trials: of a queue, and of its two rivals.
OF_QUEUE = {"training": "queue", "lr": 2e-3, "temperature": 0.05}
OF_RIVAL = {
    "in the batch": {"training": "batch", "lr": 2e-3, "temperature": 0.05},
    "in the batch, both views": {"training": "both views", "lr": 1e-3, "temperature": 0.1},
}
# Momentum -> lengths of the queue.
GRID = {0.99: LENGTHS, 0.9: (8, 64, 256, 1024)}


def name_of(queue: int, momentum: float) -> str:
    """The condition of a queue of this length at this momentum."""
    chosen = (queue, momentum) == (QUEUE, MOMENTUM)
    return "a queue" if chosen else f"{queue} keys, {momentum:g}"


CONDITIONS: dict[str, dict[str, Any]] = {
    "a queue": OF_QUEUE,
    **OF_RIVAL,
    "untrained": {"training": "none"},
    **{
        name_of(k, m): OF_QUEUE | {"queue": k, "momentum": m}
        for m, lengths in GRID.items()
        for k in lengths
        if (k, m) != (QUEUE, MOMENTUM)
    },
    "1024 fresh keys": OF_QUEUE | {"training": "fresh", "queue": 1024},
}
BETTER = (
    Better(
        "a queue",
        ("in the batch", "in the batch, both views"),
        "colour",
        by=0.06,
        says="A queue teaches colour better than negatives from a batch of eight",
    ),
)
WEIGHTS = ("a queue",)


class InBatch(nn.Module):
    """Two views of a sample find each other among the other samples of the batch; no queue.

    Both views pass through the one encoder, and both have gradients.

    Args:
        encoder: of pictures.
        temperature: T > 0.
        both_views: the other samples' views of the same kind are negatives, too: the loss of
            SimCLR, with 2B - 2 negatives. Else there are B - 1.
    """

    def __init__(
        self, encoder: nn.Module, *, temperature: float = TEMPERATURE, both_views: bool = False
    ) -> None:
        super().__init__()
        self.query, self.temperature = Tower(encoder, small.DIM, None), temperature
        self.both_views = both_views

    @property
    def encoders(self) -> dict[str, nn.Module]:
        return {"image": self.query.encoder}

    def loss(self, batch: Batch) -> Batch:
        """`batch` has `image` and `image_view`, [B, 3, H, W] each."""
        x, y = (self.query(batch[name]) for name in ("image", "image_view"))
        if self.both_views:  # GMC's loss of one part and the whole is SimCLR's of two views
            return {"total": gmc_loss([x], y, self.temperature)}
        both = [info_nce(*pair, self.temperature) for pair in ((x, y), (y, x))]
        return {"total": torch.stack(both).mean()}

    def embed(self, batch: Batch) -> Tensor:
        return self.query(batch["image"])


class FreshKeys(MoCo):
    """A MoCo whose queue remembers the pictures, and makes their keys anew every few steps.

    So no key is older than `every` steps, however long the queue is. That is what a queue is there
    to save; it tells whether the age of the keys matters.

    Args:
        encoder: as for `MoCo`; likewise `settings`.
        every: steps after which all keys are made anew.
    """

    def __init__(self, encoder: nn.Module, *, every: int = EVERY, **settings: Any) -> None:
        super().__init__(encoder, **settings)
        self.every, self.steps = every, 0
        self.views: list[Tensor] = []  # the batches whose keys are in the queue, the oldest first

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        if self.steps % self.every == 0 and self.views:
            # They stand before the pointer, in the order in which they came.
            keys = self.key(torch.cat(self.views))
            places = (self.queue.pointer - len(keys) + torch.arange(len(keys))) % len(
                self.queue.keys
            )
            self.queue.keys[places] = keys
        self._seen = batch["image_view"]
        return super().loss(batch)

    def after_step(self) -> None:
        super().after_step()
        self.steps += 1
        self.views = [*self.views, self._seen][-(len(self.queue.keys) // len(self._seen)) :]


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
    along: list[float]  # recall at the start, and after each epoch
    watched: int  # the step whose keys older ones are compared with


def new_moco(seed: int, when: set[int], **settings: Any) -> Watched:
    """A MoCo with the first weights and first queue of that seed. Seeds torch.

    `settings` are those of `Watched`.
    """
    pictures = small.scenes(WATCHED, WATCHED_SEED).batch(range(WATCHED))["image"]
    torch.manual_seed(seed)
    encoder = small.image_encoder()
    return Watched(encoder, pictures, when, dim=small.DIM, **settings)


def new_in_batch(seed: int, **settings: Any) -> InBatch:
    """An `InBatch` with the first weights of that seed; `settings` as there. Seeds torch."""
    torch.manual_seed(seed)
    return InBatch(small.image_encoder(), **settings)


def new_fresh(seed: int, **settings: Any) -> FreshKeys:
    """A `FreshKeys` with the first weights and first queue of that seed. Seeds torch."""
    torch.manual_seed(seed)
    return FreshKeys(small.image_encoder(), dim=small.DIM, **settings)


def train(
    seed: int,
    *,
    training: str = "queue",
    momentum: float = MOMENTUM,
    queue: int = QUEUE,
    temperature: float = TEMPERATURE,
    lr: float = LR,
    epochs: int = EPOCHS,
    followers: Sequence[float] = (),
    asked: int = small.TEST_SEED,
) -> Trained:
    """Trains an encoder of pictures on two crops of each, and looks at it after each epoch.

    Args:
        seed: of scenes, first weights, order and crops.
        training: "queue" is MoCo; "fresh" the same with keys that never age (`FreshKeys`); "batch"
            and "both views" take the negatives from the batch (`InBatch`); "none" trains not.
        momentum: of the key encoder.
        queue: its length.
        temperature: of the loss.
        lr: the highest learning rate.
        epochs: passes over the scenes.
        followers: see `Watched`.
        asked: the seed of the scenes whose crops have to find each other after each epoch.
    """
    data = small.scenes(small.PAIRS, seed)
    # In the middle: at the end the learning rate is nearly 0, and nothing moves any more.
    middle = epochs * (len(data) // BATCH) // 2
    of: dict[str, Any] = {"queue": queue, "momentum": momentum, "temperature": temperature}
    method: nn.Module
    if training in ("batch", "both views"):
        method = new_in_batch(seed, temperature=temperature, both_views=training == "both views")
    elif training == "fresh":
        method = new_fresh(seed, **of)
    elif training in ("queue", "none"):
        when = {max(middle - age, 0) for age in (0, *AGES)}
        method = new_moco(seed, when, followers=followers, **of)
    else:
        raise MMCLError(
            f"training must be 'queue', 'fresh', 'batch', 'both views' or 'none'; got {training!r}"
        )
    along: list[float] = []
    if training == "none":
        return Trained(method, along, 0)

    def look(progress: Progress) -> None:
        along.append(quality(method, asked)["recall"])

    fit(
        method, data, augment=two_crops, progress=False, epochs=epochs, batch_size=BATCH, lr=lr,
        seed=seed, callbacks=[look],
    )  # fmt: skip
    return Trained(method, along, middle)


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
def measure(trained: Trained, asked: int = small.TEST_SEED) -> dict[str, float]:
    """What the queries learned, and how the keys moved.

    - "recall": share of 1,000 new pictures whose first crop finds its second one among all;
      "alignment" and "uniformity" of these crops; "recall @1", after the first epoch, and so on;
    - "shape" and so on: accuracy of a linear probe on the encoder; "shape chance" and so on;
    - of a MoCo, in the middle of its training, for each age: "drift 16", the mean cosine distance
      of keys that are 16 steps old from new ones of the same pictures; "found 16", the share of old
      keys that are nearest to the new key of their picture; "spread", the mean cosine distance
      of keys of different pictures.

    Args:
        trained: what `train` gave.
        asked: the seed of the scenes whose crops have to find each other.
    """
    method, along, middle = trained
    measured = quality(method, asked)
    known, probed = (
        small.scenes(n, of, objects=(1, 1))
        for n, of in zip(PROBED, small.probe_seeds(asked), strict=True)
    )
    told = summary.probes(method, known, probed)
    measured |= {name.replace("_", " "): value for name, value in told.items()}
    measured |= {f"recall @{epoch}": value for epoch, value in enumerate(along)}
    if isinstance(method, Watched) and middle:
        for age in AGES:
            found = drift(method.seen[method.key.momentum], middle, age)
            measured |= {f"drift {age}": found.own, f"found {age}": found.found}
            measured["spread"] = found.others
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


def run(seed: int, *, asked: int = small.TEST_SEED, **settings: Any) -> dict[str, float]:
    """Trains and measures; see `train` and `measure`."""
    return measure(train(seed, asked=asked, **settings), asked)


def trained(seed: int, **settings: Any) -> nn.Module:
    """The query encoder and its head, as `run` measures them."""
    method: Any = train(seed, **settings).method
    return method.query
