"""Steps of several processes: against one process, a closed form, and two real ones."""

import pytest
import torch
import torch.nn.functional as F

from mmcl_book.experiments import growth, scaling, scaling_worker
from mmcl_book.experiments.growth import Size
from mmcl_core.errors import MMCLError


def test_alone_all_ways_are_right(monkeypatch) -> None:
    monkeypatch.setattr(scaling_worker, "STEPS_TO_LEARN", 1)
    found = scaling_worker.measure(0, 32)
    for name, value in found.items():
        if name.startswith("error"):
            assert value < 1e-12, name
        if name.startswith(("cosine", "scale")):
            assert value == pytest.approx(1, abs=1e-9), name
        if name.startswith("MiB"):
            assert value == 0, name


def test_compared_in_closed_form() -> None:
    right = torch.tensor([3.0, 4.0]), torch.tensor(2.0)
    found = scaling_worker.compared("half", (right[0] / 2, right[1] / 2), right)
    assert found == {"error, half": 0.5, "cosine, half": 1.0, "scale, half": 0.5}
    turned = scaling_worker.compared("turned", (torch.tensor([-4.0, 3.0]), right[1]), right)
    assert turned["error, turned"] == pytest.approx(2**0.5)
    assert turned["cosine, turned"] == pytest.approx(0)


def test_a_cone_is_one_direction_that_all_share() -> None:
    """Mean cosine of two different samples: none, and that of the shared number."""
    for cone, expected in ((0.0, 0.0), (1.5, 1.5**2 / (1.5**2 + 2))):
        x = F.normalize(scaling_worker.features(0, 400, cone)["features"][0], dim=1)
        cosines = x @ x.T
        mean = float((cosines.sum() - cosines.trace()) / (400 * 399))
        assert mean == pytest.approx(expected, abs=0.02)


def test_what_is_no_number_of_processes() -> None:
    for processes, size in ((0, 64), (3, 64), (1, 4)):
        with pytest.raises(MMCLError, match=f"got {processes} and {size}"):
            scaling.run(0, processes, size)


def test_processes_that_fail_say_why(monkeypatch) -> None:
    monkeypatch.setattr(scaling, "_finished", lambda command: "Error: no such thing")
    with pytest.raises(MMCLError, match=r"2 processes have not finished.*no such thing"):
        scaling.run(0, 2)


@pytest.mark.slow
def test_two_real_processes() -> None:
    """Each number that can be known: exchange, the right gradient, and that of each mistake."""
    size = 64
    found = scaling.run(0, 2, size)
    for cone in ("", ", cone"):
        for name in ("CLIP", "CLIP in tiles", "GMC"):
            assert found[f"error, {name}{cone}"] < 1e-12
            assert found[f"scale, {name}{cone}"] == pytest.approx(1, abs=1e-9)
        for name, of_scale in (("twice", 0.5), ("whole", 1.0)):
            assert found[f"error, {name}{cone}"] == pytest.approx(0.5, abs=1e-12)
            assert found[f"cosine, {name}{cone}"] == pytest.approx(1, abs=1e-12)
            assert found[f"scale, {name}{cone}"] == pytest.approx(of_scale, abs=1e-9)
        assert found[f"error, cut{cone}"] == pytest.approx(cut_error(size // 4, cone != ""))
    for name in ("CLIP", "GMC"):
        maps = scaling_worker.FEATURES * scaling_worker.DIM * (3 if name == "GMC" else 2)
        expected = growth.exchanged(name, Size(size, scaling_worker.DIM, 2), maps + 1)
        gathered, summed = found[f"MiB gathered, {name}"], found[f"MiB summed, {name}"]
        in_floats = sum(expected.values()) - expected["embeddings"]
        # Besides: the shapes that are compared, and which parameters have a gradient.
        assert gathered * 2**20 == pytest.approx(expected["embeddings"], abs=1000)
        assert summed * 2**20 == pytest.approx(in_floats, abs=100)


def cut_error(size: int, cone: bool) -> float:
    """From the closed form: what is lost is the push of the other process's anchors.

    By its embedding x_i, the gradient of CLIP's loss is s / 2B (sum_j (p_ij + p_ji) y_j - 2 y_i),
    p_ij the softmax of row i and p_ji that of column j; the others' p_ji y_j are lost.
    """
    towers = scaling_worker.Towers(0, scaling_worker.clip).double()
    features = scaling_worker.features(0, size, scaling_worker.CONE if cone else 0.0)["features"]
    x, y = (f.double() @ m for f, m in zip(features[:2], towers.maps[:2], strict=True))
    logits = towers.log_scale.exp() * F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    by_row, by_column = logits.softmax(1), logits.softmax(0)
    other = torch.arange(size)[:, None] // (size // 2) != torch.arange(size) // (size // 2)
    found = []
    for lost in (0.0, other.double()):
        of_x = by_row + by_column * (1 - lost) - 2 * torch.eye(size)
        of_y = by_column + by_row * (1 - lost) - 2 * torch.eye(size)
        grad_x = of_x @ F.normalize(y, dim=1)
        grad_y = of_y.T @ F.normalize(x, dim=1)
        target = (F.normalize(x, dim=1) * grad_x.detach()).sum()
        target = target + (F.normalize(y, dim=1) * grad_y.detach()).sum()
        grads = torch.autograd.grad(target, list(towers.maps)[:2], retain_graph=True)
        found.append(torch.cat([g.flatten() for g in grads]))
    right, cut = found
    return float((cut - right).norm() / right.norm())
