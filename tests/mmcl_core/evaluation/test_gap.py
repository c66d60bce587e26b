"""The gap of a CLIP: the shift against vectors moved by hand, and what is watched in training."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmcl_book.experiments import gap, small
from mmcl_core.evaluation import modality_gap, recall_at_k
from mmcl_core.losses import clip_loss
from tests import reference
from tests.compare import unit
from tests.tiny import mean_recall, same_texts, shrink

sizes = settings(max_examples=25, deadline=None, derandomize=True)


def moved(x: Tensor, y: Tensor, distance: float) -> tuple[Tensor, Tensor]:
    """Both towards each other, each half of the way, until the centres have that distance."""
    apart = x.mean(0) - y.mean(0)
    step = apart / apart.norm() * (apart.norm() - distance) / 2
    x, y = x - step, y + step
    assert (x.mean(0) - y.mean(0)).norm().item() == pytest.approx(distance, abs=1e-9)
    return F.normalize(x, dim=1), F.normalize(y, dim=1)


@sizes
@given(
    st.integers(0, 10_000),
    st.integers(2, 9),
    st.integers(1, 9),
    st.floats(0.02, 1),
    st.floats(0, 1.5),
)
def test_shifted_is_the_recall_and_loss_of_moved_vectors(seed, n, kinds, temperature, distance):
    x, y = unit(n, 5, seed), F.normalize(unit(n, 5, seed + 1) + 0.6, dim=1)
    groups = torch.randint(kinds, (n,), generator=torch.Generator().manual_seed(seed))
    for to in (0.0, distance, modality_gap(x, y)):
        at, loss = gap.shifted(x, y, to, groups, temperature)
        p, q = moved(x, y, to)
        assert at == pytest.approx(mean_recall(p, q, groups.tolist()))
        expected = reference.clip_loss(p, q, 1 / temperature, groups.tolist())
        assert loss == pytest.approx(expected, rel=1e-5, abs=1e-6)
    own = gap.shifted(x, y, modality_gap(x, y), groups, temperature)
    both = recall_at_k(x, y, groups=groups), recall_at_k(y, x, groups=groups)
    loss = clip_loss(x, y, 1 / temperature, groups=groups).item()
    assert own == (sum(both) / 2, pytest.approx(loss, rel=1e-5))


@pytest.mark.parametrize("learn", [True, False])
def test_the_gap_is_watched_from_the_start_to_the_end(monkeypatch, learn: bool) -> None:
    shrink(monkeypatch)
    trained = gap.train(0, temperature=0.07, learn=learn)
    measured = gap.measure(trained)
    assert len(trained.embeddings) == len(trained.temperatures) == 3
    first = gap.embed_both(small.new_clip(trained.test, 0), trained.test)
    last = gap.embed_both(trained.method, trained.test)
    for got, expected in ((trained.embeddings[0], first), (trained.embeddings[-1], last)):
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert measured["gap"] == measured["gap@2"] != measured["gap@0"]
    assert measured["temperature@0"] == pytest.approx(0.07)
    assert (measured["temperature"] == measured["temperature@0"]) != learn
    groups = same_texts(trained.test)
    assert measured["recall"] == pytest.approx(mean_recall(*last, groups))
    loss = reference.clip_loss(*last, 1 / measured["temperature"], groups)
    assert measured["loss"] == pytest.approx(loss, rel=1e-4)
