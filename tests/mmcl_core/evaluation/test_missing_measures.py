"""How a method fares without a modality: accuracy at a rate, and parts beside the whole."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmcl_core.errors import MissingModalityError, MMCLError
from mmcl_core.evaluation import MissingModality, accuracy_at_rate, partial_to_complete

sizes = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)
RATES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
NAMES = ("a", "b", "c")


def subsets(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [s for size in range(1, len(names) + 1) for s in itertools.combinations(names, size)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- accuracy_at_rate -----------------------------------------------------------------------------


def told(labels: Tensor, right: dict[tuple[str, ...], Tensor]) -> MissingModality:
    """What was found, from which samples are told rightly by which modalities."""
    predictions = {present: torch.where(r, labels, labels + 1) for present, r in right.items()}
    accuracy = {present: r.double().mean().item() for present, r in right.items()}
    return MissingModality(accuracy, 0.5, predictions, True)


def some_found(n: int, seed: int, names: tuple[str, ...] = NAMES) -> tuple[MissingModality, Tensor]:
    """Each choice of modalities tells another share of the samples."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (n,), generator=g)
    shares = {present: 0.2 + 0.1 * i for i, present in enumerate(subsets(names))}
    right = {present: torch.rand(n, generator=g) < share for present, share in shares.items()}
    return told(labels, right), labels


@sizes
@given(seeds, st.integers(1, 50), st.integers(2, 4))
def test_at_the_ends_all_or_none_miss_it(seed, n, count):
    names = tuple("abcd"[:count])
    found, labels = some_found(n, seed, names)
    for name in names:
        rest = tuple(other for other in names if other != name)
        assert accuracy_at_rate(found, labels, name, 0.0) == pytest.approx(found.accuracy[names])
        assert accuracy_at_rate(found, labels, name, 1.0) == pytest.approx(found.accuracy[rest])


def missing_at(rate: float, n: int, seed: int = 0) -> set[int]:
    """Who misses "a": those that are told rightly when only the rest tells them rightly."""
    labels, none, who = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.bool), set()
    for i in range(n):
        only = torch.arange(n) == i
        found = told(labels, {("a",): none, ("b",): only, ("a", "b"): none})
        accuracy = accuracy_at_rate(found, labels, "a", rate, seed=seed)
        assert accuracy in (0, 1 / n)
        who |= {i} if accuracy else set()
    return who


@pytest.mark.parametrize("seed", [0, 1])
def test_who_misses_it_at_a_rate_misses_it_at_a_higher_one(seed):
    n = 60
    who = [missing_at(rate, n, seed) for rate in RATES]
    assert [len(who[0]), len(who[-1])] == [0, n]
    for rate, fewer, more in zip(RATES[1:], who, who[1:], strict=False):
        assert fewer < more
        assert abs(len(more) - rate * n) <= 4 * math.sqrt(n * rate * (1 - rate))
    assert missing_at(0.5, n, seed) == who[3]
    assert missing_at(0.5, n, seed + 7) != who[3]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rate", RATES)
def test_many_samples_mix_the_two_accuracies(name, rate):
    n = 20_000
    found, labels = some_found(n, seed=3)
    rest = tuple(other for other in NAMES if other != name)
    mixed = (1 - rate) * found.accuracy[NAMES] + rate * found.accuracy[rest]
    assert accuracy_at_rate(found, labels, name, rate) == pytest.approx(mixed, abs=0.015)


TWO, LABELS = some_found(6, 0, ("a", "b"))
ONE, _ = some_found(6, 0, ("a",))


@pytest.mark.parametrize(
    ("found", "name", "rate", "message"),
    [
        (TWO, "c", 0.5, r"one of the modalities \['a', 'b'\] beside others.*got 'c' and 0.5"),
        (ONE, "a", 0.5, r"\['a'\] beside others"),
        (TWO, "a", -0.1, "got 'a' and -0.1"),
        (TWO, "a", 1.1, "got 'a' and 1.1"),
        (TWO, "a", math.nan, "got 'a' and nan"),
    ],
)
def test_accuracy_at_rate_refuses(found, name, rate, message):
    with pytest.raises(MMCLError, match=message):
        accuracy_at_rate(found, LABELS, name, rate)


@pytest.mark.parametrize(
    "labels",
    [
        LABELS[:1],
        LABELS[:4],
    ],
)
def test_accuracy_at_rate_refuses_other_labels(labels):
    with pytest.raises(MMCLError, match=r"\[6\]"):
        accuracy_at_rate(TWO, labels, "a", 0.5)


# --- partial_to_complete --------------------------------------------------------------------------


class Sum(nn.Module):
    """Adds up what it is given, each by its own factor; dropout when training."""

    def __init__(self, **factors: float) -> None:
        super().__init__()
        self.factors, self.drop = factors, nn.Dropout(0.5)
        self.asked: list[tuple[tuple[str, ...], int]] = []

    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        if batch.keys() == {"b"} and not self.factors["b"]:
            raise MissingModalityError("Sum needs more than b")
        self.asked.append((tuple(batch), len(next(iter(batch.values())))))
        return self.drop(torch.stack([self.factors[m] * x for m, x in batch.items()]).sum(0))


def cosine(x: list[float], y: list[float]) -> float:
    dot = math.fsum(p * q for p, q in zip(x, y, strict=True))
    return dot / math.sqrt(math.fsum(p * p for p in x) * math.fsum(q * q for q in y))


@sizes
@given(seeds, st.integers(2, 9), st.integers(1, 6), st.integers(2, 4), st.integers(1, 10))
def test_partial_to_complete_is_the_loop_over_pairs(seed, n, width, count, batch_size):
    names = tuple("abcd"[:count])
    factors = {name: 1.0 + i for i, name in enumerate(names)}
    data = {name: draw(n, width, seed=seed + i) for i, name in enumerate(names)}
    method = Sum(**factors)
    found = partial_to_complete(method, data, names, batch_size=batch_size)
    assert list(found) == subsets(names)[:-1]
    assert {present for present, _ in method.asked} == set(subsets(names))
    assert {size for _, size in method.asked} <= {batch_size, n % batch_size, min(n, batch_size)}
    assert method.training

    def embedded(present: tuple[str, ...]) -> list[list[float]]:
        return sum(factors[m] * data[m].double() for m in present).tolist()

    whole = embedded(names)
    for present, close in found.items():
        part = embedded(present)
        same = [cosine(part[i], whole[i]) for i in range(n)]
        other = [cosine(part[i], whole[j]) for i in range(n) for j in range(n) if i != j]
        # Where all but cancels in float32, a direction is only so well known.
        assert close.same == pytest.approx(sum(same) / n, abs=1e-4)
        assert close.other == pytest.approx(sum(other) / len(other), abs=1e-4)


def test_parts_that_are_the_whole_are_as_near_as_can_be():
    x = torch.eye(5)
    found = partial_to_complete(Sum(a=1.0, b=2.0, c=3.0), dict.fromkeys(NAMES, x), NAMES)
    for close in found.values():
        assert close.same == pytest.approx(1)
        assert close.other == pytest.approx(0, abs=1e-12)


def test_a_part_may_be_opposite_to_the_whole():
    """b outweighs a, and is its opposite."""
    x = F.normalize(draw(1, 4), dim=1).expand(6, 4)
    found = partial_to_complete(Sum(a=1.0, b=-2.0), {"a": x, "b": x}, ("a", "b"))
    assert found["a",].same == found["a",].other == pytest.approx(-1)
    assert found["b",].same == found["b",].other == pytest.approx(1)


PAIR = {"a": draw(4, 3), "b": draw(4, 3, seed=1)}


@pytest.mark.parametrize(
    ("method", "modalities", "error", "message"),
    [
        (Sum(a=1.0, b=1.0), ("a", "c"), MissingModalityError, "no c, only"),
        (Sum(a=1.0, b=0.0), ("a", "b"), MissingModalityError, "needs more than b"),
        (Sum(a=0.0, b=0.0), ("a", "b"), MMCLError, "4 of 4 rows are zero"),
        (Sum(a=1.0, b=1.0), "a", MMCLError, "expected at least two modalities"),
    ],
)
def test_partial_to_complete_refuses(method, modalities, error, message):
    with pytest.raises(error, match=message):
        partial_to_complete(method, PAIR, modalities)


@pytest.mark.parametrize(
    ("data", "modalities"),
    [
        ({name: x[:1] for name, x in PAIR.items()}, ("a", "b")),
        (PAIR, ("a",)),
        (PAIR, ("a", "a")),
    ],
)
def test_partial_to_complete_needs_two_samples_and_two_modalities(data, modalities):
    with pytest.raises(MMCLError):
        partial_to_complete(Sum(a=1.0, b=1.0), data, modalities)
