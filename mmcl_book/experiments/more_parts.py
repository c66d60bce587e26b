"""GMC with four parts and with five: what is left when all but one are dropped?

The task is that of `gmc.py`. The fourth part is a sentence on the size, the fifth a thumbnail, grey
and 8 pixels wide (`parts.py`). Beside GMC stands a fusion that is trained with modality dropout.
"""

from typing import Any

from mmcl_book.experiments import gmc, small
from mmcl_book.experiments.protocol import Better, Trials

SEEDS = tuple(range(20, 30))
EPOCHS = 12  # with three parts eight are enough
PARTS = {"four": 4, "five": 5}


def _tried(measure: str, *rates: float, **config: Any) -> Trials:
    """Learning rates to choose from."""
    config |= {"epochs": EPOCHS, "asked": small.VALIDATION_SEED}
    return Trials(measure, {f"lr {lr:g}": config | {"lr": lr} for lr in rates})


DROPOUT: dict[str, Any] = {"kind": "fusion", "dropout": 0.5}
TRIALS = {
    f"{many}, {method}": trials
    for many, parts in PARTS.items()
    for method, trials in {
        "GMC": _tried("accuracy, image, 5 labels", 0.001, 0.002, 0.005, 0.01, parts=parts),
        "modality dropout": _tried(
            "accuracy, image", 0.0015, 0.003, 0.005, 0.008, parts=parts, **DROPOUT
        ),
    }.items()
}
# The learning rates that the trials chose.
RATES = {"GMC": {"four": 0.01, "five": 0.005}, "modality dropout": {"four": 0.003, "five": 0.003}}
CONDITIONS: dict[str, dict[str, Any]] = {
    f"{many}, {method}": {
        **({} if method == "GMC" else DROPOUT),
        "parts": parts,
        "epochs": EPOCHS,
        "lr": RATES[method][many],
    }
    for many, parts in PARTS.items()
    for method in RATES
}

BETTER = (
    Better(
        "four, GMC", ("four, modality dropout",), "accuracy, image", by=0.02,
        says="Of four parts, with all labels, it reads the picture alone better",
    ),
)  # fmt: skip


def run(seed: int, **config: Any) -> dict[str, float]:
    """Trains and measures, as `gmc.run`."""
    return gmc.run(seed, **config)
