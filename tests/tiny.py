"""Experiments at the size of one small batch, and what several tests ask of them."""

import pytest
import torch.nn.functional as F
from torch import Tensor

from mmcl_book.experiments import missing, moco, small, structure
from mmcl_core.data import ShapesCaptions
from mmcl_core.training import fit

SCENES, BAGS, EPOCHS = 64, 20, 2


class Few(ShapesCaptions):
    """At most `SCENES` scenes, however many are asked for."""

    def __init__(self, n: int = SCENES, **settings) -> None:
        super().__init__(min(n, SCENES), **settings)

    def batch(self, indices):
        return super().batch([i for i in indices if i < len(self)])

    @classmethod
    def colliding(cls, n: int, **settings):
        return super().colliding(min(n, BAGS), **settings)


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Few scenes, all of them in one batch, for two epochs."""
    patch.setattr(small, "ShapesCaptions", Few)
    patch.setattr(structure, "ShapesCaptions", Few)
    patch.setattr(small, "fit", lambda *of, **how: fit(*of, **how | {"batch_size": SCENES}))
    patch.setitem(small.train.__kwdefaults__, "epochs", EPOCHS)
    patch.setattr(missing, "EPOCHS", EPOCHS)
    patch.setattr(missing, "SUPER_EPOCH", 1)
    patch.setattr(moco, "EPOCHS", EPOCHS)
    patch.setitem(moco.train.__kwdefaults__, "epochs", EPOCHS)


def said(data: ShapesCaptions) -> set[str]:
    """All words of all sentences."""
    sentences = range(data.sentences.shape[1])
    return {word for i in range(len(data)) for s in sentences for word in data.text(i, s).split()}


def same_texts(data: ShapesCaptions) -> list[int]:
    """A number for the first sentence of each scene; the same for the same words."""
    texts = [data.text(i) for i in range(len(data))]
    return [texts.index(text) for text in texts]


def mean_recall(x: Tensor, y: Tensor, groups: list[int]) -> float:
    """Recall@1, the mean of both directions, by loops."""
    cosines = (F.normalize(x, dim=1) @ F.normalize(y, dim=1).T).tolist()
    found = 0
    for rows in (cosines, list(zip(*cosines, strict=True))):
        for i, row in enumerate(rows):
            right = max(c for c, group in zip(row, groups, strict=True) if group == groups[i])
            wrong = [c for c, group in zip(row, groups, strict=True) if group != groups[i]]
            found += all(c < right - 1e-6 for c in wrong)
    return found / (2 * len(x))
