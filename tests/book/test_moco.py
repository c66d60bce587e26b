"""MoCo: what the page builds, and what its checks say."""

import copy
import math

import pytest
import torch

from mmcl_book.experiments import moco
from mmcl_core import losses
from mmcl_core.encoders import ImageEncoder
from mmcl_core.methods import MoCo
from mmcl_core.methods.moco import MomentumCopy
from tests.book.chapter import definitions, unit, value_and_gradients
from tests.descent import steps
from tests.float32 import close32


@pytest.mark.parametrize("name", ["queue_loss_loop", "queue_loss"])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_moco_loss_against_a_queue(name: str, temperature: float) -> None:
    form = definitions("methods/moco")[name]
    q, k, queue = unit(7, 5, seed=0), unit(7, 5, seed=1), unit(12, 5, seed=2)
    torch.testing.assert_close(
        value_and_gradients(lambda *of: form(*of, temperature), q, k, queue),
        value_and_gradients(lambda *of: losses.queue_info_nce(*of, temperature), q, k, queue),
    )


def test_moco_class_is_the_librarys_for_some_steps() -> None:
    """Losses, both encoders and the queue, oldest key first; the queue is filled more than once."""
    page = definitions("methods/moco")
    torch.manual_seed(1)
    library = MoCo(ImageEncoder(size=32, width=32), dim=8, queue=12, momentum=0.8, temperature=0.3)
    tiny = page["TinyMoCo"](copy.deepcopy(library.query), 12, 8, 0.8, 0.3)
    assert tiny.queue.shape == library.queue.keys.shape
    torch.testing.assert_close(tiny.queue.norm(dim=1), torch.ones(12))
    tiny.queue = library.queue.keys.clone()
    views = torch.rand(7, 2, 4, 3, 32, 32)
    batches = [{"image": one, "image_view": two} for one, two in views]
    # Of float32: at most 1e-5 apart, not float64's 1e-7 (B1).
    close32(*(steps(method, batches) for method in (tiny, library)))
    for ours, theirs in ((tiny.query, library.query), (tiny.key, library.key.network)):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    oldest_first = library.queue.keys.roll(-int(library.queue.pointer), 0)
    torch.testing.assert_close(tiny.queue, oldest_first)


def test_moco_drift_by_hand() -> None:
    old, new = unit(20, 4, seed=0), unit(20, 4, seed=1)
    expected = moco.drift({0: old, 1: new}, 1, 1)
    assert definitions("methods/moco")["drift_by_hand"](old, new) == pytest.approx(expected[::2])


def test_moco_weights_that_follow() -> None:
    """The page's list, and the library's momentum copy of a network with one weight."""
    path = unit(30, seed=0).tolist()
    network = torch.nn.Linear(1, 1, bias=False).double()
    network.weight.data.fill_(path[0])
    slow, places = MomentumCopy(network, 0.7), []
    for place in path:
        network.weight.data.fill_(place)
        slow.follow(network)
        places.append(slow.network.weight.item())
    assert definitions("methods/moco")["follow"](path, 0.7) == pytest.approx(places)


def test_moco_what_was_seen_before() -> None:
    assert definitions("methods/moco")["seen_before"](["a", "b"], ["a", "c", "a", "b"]) == 0.75


def test_moco_exercises_name_what_fails() -> None:
    page = definitions("methods/moco")
    check = page["check_lag"]
    assert check(page["lag"]) == "not answered yet"
    assert check(lambda v, m: v * m / (1 - m)) == "right"
    assert "the key is the query" in check(lambda v, m: v / (1 - m))
    assert "twice as far" in check(lambda v, m: m / (1 - m))
    assert "m = 0.5" in check(lambda v, m: v * m)
    check = page["check_twice"]
    assert check(page["smallest_loss"]) == "not answered yet"
    assert check(lambda: math.log(2)) == "right"
    assert "same logit" in check(lambda: 0.0)
    assert "too high" in check(lambda: math.log(3))
    assert "too low" in check(lambda: 0.3)
    assert "negative logarithm" in check(lambda: 0.5)
    check = page["check_itself"]
    assert check(page["meets_itself"]) == "not answered yet"
    assert check(lambda keys, n: (keys / n) ** 2 / 2) == "right"
    assert "no share" in check(lambda keys, n: keys)
    assert "how long" in check(lambda keys, n: keys / n)
    assert "drawn" in check(lambda keys, n: (keys / n) ** 2)
