"""The small laboratory: scenes and models that train in seconds, so that many can be compared.

Pictures have 32 pixels a side and become 16 patches, encoders are 64 wide. All else is as in the
recipes of the book. What has to be chosen, a learning rate or a temperature, is chosen on scenes of
`VALIDATION_SEED`, by trainings of the seeds of trials; the scenes of `TEST_SEED` are looked at for
the records alone. No training uses either.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmcl_core.checkpoints import History
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.augment import Augment, paraphrase
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.evaluation import recall_at_k
from mmcl_core.methods import CLIP
from mmcl_core.training import fit

SIZE, WIDTH, DIM = 32, 64, 128
PAIRS, OBJECTS = 4000, (1, 2)
TEST_SEED, VALIDATION_SEED = 1777, 555  # scenes to test on; to choose settings by
PROBE_SEEDS = (901, 902)  # scenes to fit probes, and to test these
VALIDATION_PROBE_SEEDS = (903, 904)  # the same, to choose settings by


def scenes(n: int, seed: int, **settings: Any) -> ShapesCaptions:
    """Scenes of one or two objects; `settings` as for `ShapesCaptions`."""
    merged: dict[str, Any] = {"size": SIZE, "objects": OBJECTS} | settings
    return ShapesCaptions(n, seed=seed, **merged)


def probe_seeds(asked: int) -> tuple[int, int]:
    """The scenes to fit probes, and to test these: those that go with test scenes, or in trials."""
    return PROBE_SEEDS if asked == TEST_SEED else VALIDATION_PROBE_SEEDS


def image_encoder() -> ImageEncoder:
    return ImageEncoder(size=SIZE, width=WIDTH)


def caption_encoder(data: ShapesCaptions) -> CaptionEncoder:
    return CaptionEncoder(len(data.tokenizer), width=WIDTH)


def new_clip(data: ShapesCaptions, seed: int, **settings: Any) -> CLIP:
    """A CLIP with the first weights of that seed; `settings` as for `CLIP`. Seeds torch."""
    torch.manual_seed(seed)
    return CLIP(image_encoder(), caption_encoder(data), dim=DIM, **settings)


def there_and_back(image: Tensor, caption: Tensor, groups: Tensor) -> tuple[float, float]:
    """Recall@1 of pictures among captions, and of captions among pictures: unit vectors [N, D].

    Args:
        image: of the pictures.
        caption: of their captions.
        groups: int64 [N]; what has the same number is correct, too.
    """
    there = recall_at_k(image, caption, groups=groups)
    return there, recall_at_k(caption, image, groups=groups)


def train(
    method: torch.nn.Module,
    data: ShapesCaptions,
    seed: int,
    *,
    epochs: int = 8,
    augment: Augment | None = None,
    callbacks: Sequence[Callable[..., object]] = (),
) -> History:
    """Trains any method on the scenes, a new sentence for each in each epoch, without a bar."""
    return fit(
        method,
        data,
        epochs=epochs,
        batch_size=128,
        lr=5e-3,
        augment=augment or paraphrase(data),
        callbacks=callbacks,
        seed=seed,
        progress=False,
    )
