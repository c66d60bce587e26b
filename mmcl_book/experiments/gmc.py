"""GMC: can a part of a sample stand for the whole of it?

The task is that of `missing.py`: the picture shows a shape and a colour, the caption names the
shape, the tags name the colour. A GMC is trained without labels; a linear probe then learns the
class from complete embeddings, and is asked with every choice of modalities. So the fusions of the
record "missing" stand beside it: same scenes, encoders, epochs and order.

One condition asks what the loss costs where many samples say the same (`Masked`), three train twice
as long, and four are about handwritten digits (`handwriting.py`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_book.experiments import handwriting, missing, small
from mmcl_book.experiments.parts import Trained, measure, told, watching
from mmcl_core.batches import Batch
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.augment import compose, paraphrase, with_labels
from mmcl_core.data.drawing import VALUES
from mmcl_core.encoders import TagEncoder
from mmcl_core.evaluation import MissingModality
from mmcl_core.evaluation.summary import shape_and_colour
from mmcl_core.methods import GMC

CONDITIONS: dict[str, dict[str, Any]] = {
    "GMC": {},
    "no false negatives": {"masked": True},
    "12 epochs": {"epochs": 12},
    "fusion, 12 epochs": {"fusion": True, "epochs": 12},
    "modality dropout, 12 epochs": {"fusion": True, "epochs": 12, "dropout": 0.3},
    "temperature 0.3": {"temperature": 0.3},
    "paper": {"variant": "paper"},
    "joint_negatives": {"variant": "joint_negatives"},
    "digits, GMC": {"digits": "GMC"},
    "digits, fusion": {"digits": "fusion"},
    "digits, modality dropout": {"digits": "modality dropout"},
    "digits, a model for each": {"digits": "a model for each"},
}
SCENES, TESTED = 3000, 1000
COLOURS = len(VALUES["colour"])


class Masked(GMC):
    """A GMC without false negatives: what says the same is not pushed apart.

    Two samples say the same when they are of one class; two pictures likewise; two captions when
    they name one shape, two tags when they name one colour. The batch needs `label`, which stands
    here for what its caption and its tags say together.
    """

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The sum over modalities of `masked_ntxent`."""
        label, joint = batch["label"], self.embed_joint(batch)
        said = {"image": label, "caption": label // COLOURS, "tags": label % COLOURS}
        parts = [
            masked_ntxent(joint, self.embed_modality(batch, m), label, said[m], self.temperature)
            for m in self.modalities
        ]
        return {"total": torch.stack(parts).sum()}


def masked_ntxent(
    joint: Tensor, part: Tensor, label: Tensor, said: Tensor, temperature: float
) -> Tensor:
    """NT-Xent between joint and one modality, without negatives that say the same.

    With a label of its own for each sample it is `gmc_loss` of that modality.

    Args:
        joint: unit vectors [B, D].
        part: those of the modality, [B, D].
        label: int64 [B]; two joint vectors of one label are no negatives.
        said: int64 [B]; nor are two vectors of one `said`, at least one of them of the modality.
        temperature: T > 0.
    """
    both = torch.cat([joint, part])
    whole, half = label[:, None] == label, said[:, None] == said
    same = torch.cat([torch.cat([whole, half], 1), torch.cat([half, half], 1)])
    places = torch.arange(len(both))
    partner = places.roll(len(joint))
    same[places, partner] = False  # the positive stays
    logits = (both @ both.T / temperature).masked_fill(same, -torch.inf)
    return F.cross_entropy(logits, partner)


def new_gmc(data: ShapesCaptions, seed: int, *, masked: bool = False, **settings: Any) -> GMC:
    """A GMC with the first weights of that seed; `settings` as for `GMC`. Seeds torch."""
    torch.manual_seed(seed)
    encoders = {
        "image": small.image_encoder(),
        "caption": small.caption_encoder(data),
        "tags": TagEncoder(data.tags.shape[1], width=small.WIDTH),
    }
    return (Masked if masked else GMC)(encoders, **{"dim": 64} | settings)


def train(
    seed: int,
    *,
    masked: bool = False,
    scenes: int = SCENES,
    epochs: int | None = None,
    **settings: Any,
) -> Trained:
    """Trains a GMC on scenes, and embeds the test scenes after each epoch.

    Args:
        seed: of scenes, first weights and order.
        masked: leave false negatives out of the loss (`Masked`).
        scenes: number of scenes to train on.
        epochs: passes over them; None is those of the experiment "missing".
        settings: as for `GMC`: `temperature`, `variant`, `dim` and so on.
    """
    data = missing.scenes(scenes, seed)
    return _trained(new_gmc(data, seed, masked=masked, **settings), data, seed, epochs)


def train_fusion(seed: int, *, epochs: int | None = None, dropout: float = 0.0) -> Trained:
    """Trains a fusion classifier in the same way: that of the experiment "missing"."""
    data = missing.scenes(SCENES, seed)
    return _trained(missing.new_fusion(data, seed, dropout=dropout), data, seed, epochs)


def run(
    seed: int, *, digits: str | None = None, fusion: bool = False, **settings: Any
) -> dict[str, float]:
    """Trains and measures (`measure`, `halves`).

    Args:
        seed: of all that is drawn.
        digits: run `handwriting.run` of this kind, and nothing else.
        fusion: train a fusion instead of a GMC.
        settings: as for `train` or `train_fusion`.
    """
    if digits is not None:
        return handwriting.run(seed, digits)
    trained = train_fusion(seed, **settings) if fusion else train(seed, **settings)
    found = told(trained)
    return measure(trained, found) | halves(found, trained.labels)


def halves(found: MissingModality, labels: Tensor) -> dict[str, float]:
    """How often each half of the class is right: "shape, image", "colour, image" and so on.

    Args:
        found: what `told` gave.
        labels: int64 [M], of the test scenes.
    """
    measured = {}
    for present, predicted in found.predictions.items():
        name = " + ".join(present)
        right = predicted // COLOURS == labels // COLOURS, predicted % COLOURS == labels % COLOURS
        measured[f"shape, {name}"], measured[f"colour, {name}"] = (
            float(half.double().mean()) for half in right
        )
    return measured


def _trained(method: nn.Module, data: ShapesCaptions, seed: int, epochs: int | None) -> Trained:
    test, y = missing.scenes(TESTED, missing.TEST_SEED), shape_and_colour(data)
    trained = Trained(method, data, y, test, shape_and_colour(test), missing.MODALITIES, [])
    small.train(
        method,
        data,
        seed,
        epochs=missing.EPOCHS if epochs is None else epochs,
        augment=compose(paraphrase(data), with_labels(data, y)),
        callbacks=[watching(trained)],
    )
    return trained
