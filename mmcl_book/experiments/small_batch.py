"""MoCo in batches of four: what is left where memory holds four pictures at once?

As in `moco.py`, but the batch is half as large, and there are as many steps. The queue stays as
long as it is there; negatives from the batch are three, or six of both views.
"""

from typing import Any

from torch import nn

from mmcl_book.experiments import moco, small
from mmcl_book.experiments.protocol import Better
from mmcl_core.training import fit

SEEDS = tuple(range(20, 30))
BATCH, EPOCHS = 4, 2


TRIALS = {
    "a queue": moco.tried("recall", "queue", 5e-4, 1e-3, 2e-3),
    "in the batch": moco.tried("recall", "batch", 5e-4, 1e-3, 2e-3),
    "in the batch, both views": moco.tried("recall", "both views", 5e-4, 1e-3, 2e-3),
}
RIVALS = {"in the batch": "batch", "in the batch, both views": "both views"}
CONDITIONS: dict[str, dict[str, Any]] = {
    name: {"training": training, "lr": 1e-3, "temperature": 0.1}
    for name, training in {"a queue": "queue", **RIVALS}.items()
}
BETTER = (
    Better(
        "a queue", tuple(RIVALS), "recall", by=0.01,
        says="In batches of four, a queue finds more than negatives from the batch",
    ),
    Better(
        "a queue", tuple(RIVALS), "colour", by=0.08,
        says="And it teaches more colour",
    ),
)  # fmt: skip


def run(
    seed: int,
    *,
    training: str,
    lr: float,
    temperature: float,
    asked: int = small.TEST_SEED,
) -> dict[str, float]:
    """Trains and measures; see `moco.train` and `moco.measure`."""
    data, method = small.scenes(small.PAIRS, seed), _new(seed, training, temperature)
    fit(
        method, data, augment=moco.two_crops, epochs=EPOCHS, batch_size=BATCH, lr=lr, seed=seed,
        progress=False,
    )  # fmt: skip
    return moco.measure(moco.Trained(method, [], 0), asked)


def _new(seed: int, training: str, temperature: float) -> nn.Module:
    if training == "queue":
        of = {"queue": moco.QUEUE, "momentum": moco.MOMENTUM}
        return moco.new_moco(seed, set(), temperature=temperature, **of)
    return moco.new_in_batch(seed, temperature=temperature, both_views=training == "both views")
