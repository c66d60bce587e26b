"""The modality gap of a CLIP: at random start, along training, over temperatures, and shifted.

Liang et al., "Mind the Gap", NeurIPS 2022.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmcl_book.experiments import small
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.groups import first_captions
from mmcl_core.evaluation import (
    alignment,
    cone,
    embed_all,
    modality_gap,
    shift_gap,
    uniformity,
)
from mmcl_core.losses import clip_loss
from mmcl_core.methods import CLIP
from mmcl_core.training import Progress

TEMPERATURES = (0.01, 0.03, 0.07, 0.3)  # to begin with; 0.07 is CLIP's own
CONDITIONS = {
    f"{kind} {temperature}": {"temperature": temperature, "learn": kind == "learned"}
    for kind in ("learned", "fixed")
    for temperature in TEMPERATURES
}
SHIFTED = (0.0, 0.25, 0.5, 0.75, 1.0)  # distances of the centres to shift them to


class Trained(NamedTuple):
    """A CLIP, and what its embeddings of the test scenes looked like along the way."""

    method: CLIP
    test: ShapesCaptions
    embeddings: list[tuple[Tensor, Tensor]]  # (image, caption) [N, D]: at the start, each epoch
    temperatures: list[float]


def train(seed: int, *, temperature: float = 0.07, learn: bool = True) -> Trained:
    """Trains a CLIP, and embeds the test scenes before the first step and after each epoch."""
    data, test = small.scenes(small.PAIRS, seed), small.scenes(1000, small.TEST_SEED)
    method = small.new_clip(data, seed, temperature=temperature, learn_temperature=learn)
    trained = Trained(method, test, [], [])

    def watch(progress: Progress) -> None:
        trained.embeddings.append(embed_both(method, test))
        trained.temperatures.append(1 / method.logit_scale.item())

    small.train(method, data, seed, callbacks=[watch])
    return trained


def measure(trained: Trained) -> dict[str, float]:
    """The gap and the cones by epoch; what was learned; loss and recall along a shift."""
    measured: dict[str, float] = {}
    for epoch, (image, caption) in enumerate(trained.embeddings):
        measured |= {
            f"gap@{epoch}": modality_gap(image, caption),
            f"image cone@{epoch}": cone(image),
            f"caption cone@{epoch}": cone(caption),
            f"temperature@{epoch}": trained.temperatures[epoch],
        }
    image, caption = trained.embeddings[-1]
    measured |= {
        "gap": modality_gap(image, caption),
        "temperature": trained.temperatures[-1],
        "alignment": alignment(image, caption),
        "image uniformity": uniformity(image),
        "caption uniformity": uniformity(caption),
    }
    groups = first_captions(trained.test)
    for distance in SHIFTED:
        there, loss = shifted(image, caption, distance, groups, trained.temperatures[-1])
        measured |= {f"recall, shifted to {distance:g}": there}
        measured |= {f"loss, shifted to {distance:g}": loss}
    unshifted = shifted(image, caption, measured["gap"], groups, trained.temperatures[-1])
    return measured | {"recall": unshifted[0], "loss": unshifted[1]}


def run(seed: int, *, temperature: float = 0.07, learn: bool = True) -> dict[str, float]:
    """Trains and measures; see `measure`."""
    return measure(train(seed, temperature=temperature, learn=learn))


def shifted(
    image: Tensor, caption: Tensor, distance: float, groups: Tensor, temperature: float
) -> tuple[float, float]:
    """Recall@1 (mean of both directions) and loss (nats) with the centres moved apart or together.

    Args:
        image: [N, D].
        caption: [N, D].
        distance: of the centres, before the vectors are brought back to unit norm.
        groups: int64 [N], equal for equal captions.
        temperature: of the loss, over all N pairs as one batch.
    """
    x, y = shift_gap(image, caption, 1 - distance / modality_gap(image, caption))
    loss = clip_loss(x, y, torch.tensor(1 / temperature), groups=groups).item()
    return sum(small.there_and_back(x, y, groups)) / 2, loss


def embed_both(method: nn.Module, data: ShapesCaptions) -> tuple[Tensor, Tensor]:
    """Unit vectors of all pictures and of all captions, [N, D] each."""
    return embed_all(method, data, ("image",)), embed_all(method, data, ("caption",))
