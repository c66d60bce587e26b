"""Late fusion: against naive loops, and what it must leave alone."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_core.data import ShapesCaptions
from mmcl_core.data.augment import with_labels
from mmcl_core.encoders import CaptionEncoder, Encoded, ImageEncoder, TagEncoder
from mmcl_core.errors import DataError, MissingModalityError, MMCLError, ShapeError
from mmcl_core.evaluation import missing_modality
from mmcl_core.methods import LateFusion
from mmcl_core.training import fit

CLASSES = 3
WIDTHS = {"image": 4, "caption": 5, "tags": 2}
HEADS = [*WIDTHS, "fusion"]


class Map(nn.Module):
    """An encoder as small as can be: one linear map of 6 numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.map = width, nn.Linear(6, width)

    def forward(self, x: Tensor) -> Encoded:
        pooled = self.map(x).tanh() + 0.3
        return Encoded(pooled, pooled[:, None], torch.ones(len(x), 1, dtype=torch.bool))


def small(seed: int = 0, **kwargs) -> LateFusion:
    torch.manual_seed(seed)
    return LateFusion({m: Map(w) for m, w in WIDTHS.items()}, CLASSES, dim=7, **kwargs)


def samples(n: int = 12, seed: int = 0) -> dict[str, Tensor]:
    """The class is in the image and, less surely, in the caption; the tags are noise."""
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % CLASSES
    return {
        "image": torch.randn(n, 6, generator=g) + 2.0 * F.one_hot(label, 6),
        "caption": torch.randn(n, 6, generator=g) + 1.0 * F.one_hot(label, 6),
        "tags": torch.randn(n, 6, generator=g),
        "label": label,
        "index": torch.arange(n),
    }


class Rows:
    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors["label"])

    def batch(self, indices) -> dict[str, Tensor]:
        return {name: x[indices] for name, x in self.tensors.items()}


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name].nan_to_num(-1), b[name].nan_to_num(-1)), name


def equal(model: LateFusion) -> LateFusion:
    model.set_weights(dict.fromkeys(model.heads, 1.0))
    return model


def feature(model: LateFusion, m: str, row: Tensor) -> list[float]:
    return model.encoders[m](row[None]).pooled[0].tolist()


def linear(layer: nn.Linear, x: list[float]) -> list[float]:
    return [
        sum(w * v for w, v in zip(row, x, strict=True)) + b
        for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    ]


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def naive_hidden(model: LateFusion, batch: dict[str, Tensor], i: int) -> list[float]:
    """The hidden layer of the fusion head for one sample, in plain Python."""
    joined, start = [], 0
    for m, width in WIDTHS.items():
        fill = model.fill.tolist()[start : start + width]
        joined += feature(model, m, batch[m][i]) if m in batch else fill
        start += width
    return [gelu(v) for v in linear(model.fused[0], joined)]


def naive_loss(logits: list[float], label: int) -> float:
    return math.log(sum(math.exp(v) for v in logits)) - logits[label]


def subsets() -> list[tuple[str, ...]]:
    names = list(WIDTHS)
    return [
        tuple(m for b, m in enumerate(names) if bits >> b & 1) for bits in range(1, 2 ** len(names))
    ]


# --- the losses -----------------------------------------------------------------------------------


def test_losses_are_the_naive_cross_entropies():
    model, batch = small().double(), samples()
    batch |= {m: batch[m].double() for m in WIDTHS}
    weights = {"image": 0.5, "caption": 0.0, "tags": 2.0, "fusion": 1.25}
    model.set_weights(weights)
    expected = dict.fromkeys(HEADS, 0.0)
    for i, label in enumerate(batch["label"].tolist()):
        for m in WIDTHS:
            own = linear(model.heads[m], feature(model, m, batch[m][i]))
            expected[m] += naive_loss(own, label) / len(batch["label"])
        fusion = linear(model.heads["fusion"], naive_hidden(model, batch, i))
        expected["fusion"] += naive_loss(fusion, label) / len(batch["label"])
    parts = model.loss(batch)
    assert list(parts) == ["total", *HEADS]
    for name in HEADS:
        assert float(parts[name].detach()) == pytest.approx(expected[name], rel=1e-9)
    total = sum(weights[name] * expected[name] for name in HEADS)
    assert float(parts["total"].detach()) == pytest.approx(total, rel=1e-9)


def test_without_weights_it_is_plain_late_fusion():
    model = small()
    assert dict(zip(model.heads, model.weights.tolist(), strict=True)) == {
        "image": 0, "caption": 0, "tags": 0, "fusion": 1,
    }  # fmt: skip
    parts = model.loss(samples())
    assert torch.equal(parts["total"], parts["fusion"])


@pytest.mark.parametrize("only", HEADS)
def test_a_weight_of_zero_leaves_the_others_a_gradient_and_this_head_none(only):
    model, batch = small(), samples()
    model.set_weights({name: float(name == only) for name in HEADS})
    model.loss(batch)["total"].backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    expected = {f"heads.{only}.weight", f"heads.{only}.bias"}
    for m in WIDTHS if only == "fusion" else [only]:
        expected |= {f"encoders.{m}.map.weight", f"encoders.{m}.map.bias"}
    if only == "fusion":
        expected |= {"fused.0.weight", "fused.0.bias"}
    assert with_gradient == expected
    # And the heads that had none learn as soon as they are weighed.
    model.zero_grad()
    equal(model).loss(batch)["total"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_part_of_weight_zero_cannot_spoil_the_total():
    model = small()
    with torch.no_grad():
        model.heads["tags"].weight.fill_(math.inf)
    parts = model.loss(samples())
    assert not parts["tags"].isfinite()
    assert parts["total"].isfinite()


def test_the_gradient_is_that_of_the_weighted_sum():
    weights = {"image": 0.5, "caption": 0.0, "tags": 2.0, "fusion": 1.25}
    model, batch = small(), samples()
    model.set_weights(weights)
    model.loss(batch)["total"].backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    expected: dict[str, Tensor] = {}
    for name, weight in weights.items():
        model.zero_grad()
        model.loss(batch)[name].backward()
        for n, p in model.named_parameters():
            if weight and p.grad is not None:
                expected[n] = expected.get(n, torch.zeros(())) + weight * p.grad
    assert found.keys() == expected.keys()
    for n in found:
        torch.testing.assert_close(found[n], expected[n])


# --- any subset -----------------------------------------------------------------------------------


@pytest.mark.parametrize("present", subsets(), ids="+".join)
@pytest.mark.parametrize("impute", ["zero", "mean"])
def test_any_subset_is_the_manual_computation(present, impute):
    model, batch = small(impute=impute), samples(6)
    model.loss(samples(30, seed=5))
    model.after_step()
    assert model.fill.any() == (impute == "mean")
    part = {m: batch[m] for m in present}
    logits, vectors = model.logits(part), model.embed({**part, "index": batch["index"]})
    heads = model.branch_logits(part)
    assert list(heads) == [*(m for m in WIDTHS if m in present), "fusion"]
    assert torch.equal(heads["fusion"], logits)
    assert logits.shape == (6, CLASSES)
    assert vectors.shape == (6, 7)
    # The model computes in float32, and how a sum is rounded differs from processor to processor;
    # for numbers of Python, assert_close would ask for the precision of float64.
    close = {"rtol": 1.3e-6, "atol": 1e-6}
    for i in range(6):
        hidden = naive_hidden(model, part, i)
        length = math.sqrt(sum(v * v for v in hidden))
        torch.testing.assert_close(vectors[i].tolist(), [v / length for v in hidden], **close)
        fused = linear(model.heads["fusion"], hidden)
        torch.testing.assert_close(logits[i].tolist(), fused, **close)
        for m in present:
            own = linear(model.heads[m], feature(model, m, batch[m][i]))
            torch.testing.assert_close(heads[m][i].tolist(), own, **close)


def test_one_modality_is_enough_for_a_model():
    torch.manual_seed(0)
    model = LateFusion({"image": Map(4)}, CLASSES, dropout=1.0)
    parts = model.loss(samples())
    assert list(parts) == ["total", "image", "fusion"]
    torch.testing.assert_close(parts["fusion"], model.eval().loss(samples())["fusion"])


# --- imputation -----------------------------------------------------------------------------------


def test_the_mean_is_that_of_the_first_ten_batches_then_it_forgets():
    model = small(impute="mean", dropout=0.5)
    expected = [0.0] * sum(WIDTHS.values())
    for step in range(14):
        batch = samples(9, seed=step)
        features = [[v for m in WIDTHS for v in feature(model, m, batch[m][i])] for i in range(9)]
        mean = [sum(column) / 9 for column in zip(*features, strict=True)]
        rate = max(0.1, 1 / (step + 1))
        expected = [e + rate * (v - e) for e, v in zip(expected, mean, strict=True)]
        before = model.fill.clone()
        model.loss(batch)
        assert torch.equal(model.fill, before)  # not before the step is done
        model.after_step()
        torch.testing.assert_close(model.fill, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_zeros_stay_zero_and_a_second_after_step_moves_nothing():
    for impute in ("zero", "mean"):
        model = small(impute=impute)
        model.loss(samples())
        model.after_step()
        once = state(model)
        model.after_step()
        assert_same(state(model), once)
        assert bool(model.fill.any()) == (impute == "mean")


def test_in_eval_mode_nothing_is_remembered_and_nothing_dropped():
    model, batch = small(impute="mean", dropout=0.9).eval(), samples()
    rng = torch.get_rng_state()
    assert torch.equal(model.loss(batch)["total"], model.loss(batch)["total"])
    model.after_step()
    assert not model.fill.any()
    assert torch.equal(torch.get_rng_state(), rng)


def test_a_failed_step_of_fit_leaves_the_mean_as_it_was():
    model, fills = small(impute="mean"), []

    def spoil(batch):
        fills.append(model.fill.clone())
        return batch if len(fills) < 4 else {**batch, "image": batch["image"] * math.nan}

    with pytest.raises(MMCLError, match="expected a finite loss"):
        fit(model, Rows(**samples(40)), epochs=1, batch_size=4, progress=False, augment=spoil)
    assert model.batches == 3
    assert fills[1].any()
    assert torch.equal(model.fill, fills[-1])
    fit(model, Rows(**samples(40)), epochs=1, batch_size=4, progress=False)
    assert model.fill.isfinite().all()


def test_autocast_trains_with_dropout_and_the_mean():
    model = equal(small(impute="mean", dropout=0.5))
    fit(model, Rows(**samples(40)), epochs=1, batch_size=4, progress=False, autocast=True)
    assert model.fill.dtype == torch.float32
    assert model.fill.any()


# --- modality dropout -----------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 0.2, 0.6, 1.0])
def test_each_modality_goes_at_its_rate_and_one_stays(p):
    """All three would go with p^3; then a random one of them stays."""
    torch.manual_seed(0)
    n = 20_000
    keep = small(dropout=p)._kept(n)
    assert keep.any(dim=1).all()
    rate = p - p**3 / 3
    bound = 5 * math.sqrt(max(rate * (1 - rate), 1e-12) / n)
    for m in range(3):
        assert abs(float((~keep[:, m]).double().mean()) - rate) <= bound
    # By itself: two of three go together as often as independence and the rule say.
    both = float((~keep[:, 0] & ~keep[:, 1]).double().mean())
    expected = p**2 - 2 * p**3 / 3
    assert abs(both - expected) <= 5 * math.sqrt(max(expected * (1 - expected), 1e-12) / n)
    alone = p**3 + 3 * p**2 * (1 - p)
    spread = 5 * math.sqrt(max(alone * (1 - alone), 1e-12) / n)
    assert abs(float((keep.sum(1) == 1).double().mean()) - alone) <= spread


@pytest.mark.parametrize("impute", ["zero", "mean"])
def test_what_is_dropped_is_imputed_for_the_fusion_head_only(impute, monkeypatch):
    model, batch = small(impute=impute, dropout=0.5), samples(3)
    model.loss(samples(30, seed=5))
    model.after_step()
    keep = torch.tensor([[True, False, True], [False, False, True], [True, True, True]])
    monkeypatch.setattr(model, "_kept", lambda size: keep)
    parts = model.loss(batch)
    expected = 0.0
    for i, label in enumerate(batch["label"].tolist()):
        part = {m: batch[m] for m, stays in zip(WIDTHS, keep[i].tolist(), strict=True) if stays}
        hidden = naive_hidden(model, part, i)
        expected += naive_loss(linear(model.heads["fusion"], hidden), label) / 3
    assert float(parts["fusion"].detach()) == pytest.approx(expected, rel=1e-5)
    whole = model.eval().loss(batch)
    for m in WIDTHS:
        assert torch.equal(parts[m], whole[m])
    # A modality that no sample keeps gets no gradient from the fusion.
    model.train()
    keep[:] = torch.tensor([True, False, True])
    model.loss(batch)["fusion"].backward()
    assert not model.encoders["caption"].map.weight.grad.any()
    assert model.encoders["image"].map.weight.grad.any()


def test_dropout_is_drawn_from_the_global_generator():
    model, batch = small(dropout=0.5), samples(50)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model.loss(batch)["total"])
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


# --- errors ---------------------------------------------------------------------------------------


def test_missing_modalities_are_named():
    model, batch = small(), samples()
    with pytest.raises(MissingModalityError, match=r"tags not in the batch.*\['caption', 'image'"):
        model.loss({m: batch[m] for m in ("image", "caption", "label")})
    with pytest.raises(MissingModalityError, match=r"label not in .*with_labels\(data, labels\)"):
        model.loss({m: batch[m] for m in WIDTHS})
    for verb in (model.embed, model.logits, model.branch_logits):
        with pytest.raises(MissingModalityError, match=r"image, caption, tags.*\['sound'\]"):
            verb({"sound": batch["image"]})
    with pytest.raises(ShapeError, match=r"'image': 12, 'tags': 5"):
        model.embed({"image": batch["image"], "tags": batch["tags"][:5]})


@pytest.mark.parametrize(
    ("label", "error", "message"),
    [
        (torch.arange(12), DataError, "from 0 to 2, got 0 to 11"),
        (torch.arange(12) % 3 - 1, DataError, "got -1 to 1"),
        (torch.zeros(12), ShapeError, r"int64 \[12\].*float32 \[12\]"),
        (torch.zeros(11, dtype=torch.int64), ShapeError, r"got int64 \[11\]"),
        (torch.zeros(12, 1, dtype=torch.int64), ShapeError, r"got int64 \[12, 1\]"),
    ],
)
def test_labels_are_checked(label, error, message):
    with pytest.raises(error, match=message):
        small().loss({**samples(), "label": label})


def test_an_empty_batch_is_refused():
    with pytest.raises(ShapeError, match="at least one"):
        small().loss({name: x[:0] for name, x in samples().items()})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"fusion": 1.0}, r"\['image', 'caption', 'tags', 'fusion'\]; got \['fusion'\]"),
        (dict.fromkeys([*HEADS, "sound"], 1.0), "sound"),
        (dict.fromkeys(HEADS, 0.0), "not all 0"),
        (dict.fromkeys(HEADS, 1.0) | {"tags": -0.1}, r"-0\.1"),
        (dict.fromkeys(HEADS, 1.0) | {"tags": math.nan}, "nan"),
        (dict.fromkeys(HEADS, 1.0) | {"tags": math.inf}, "inf"),
    ],
)
def test_weights_are_checked(weights, message):
    model = small()
    with pytest.raises(MMCLError, match=message):
        model.set_weights(weights)
    assert model.weights.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LateFusion({}, 3), r"for each modality.*got \[\]"),
        (lambda: LateFusion({"fusion": Map(2)}, 3), r"none named .*got \['fusion'\]"),
        (lambda: LateFusion({"image": nn.Linear(2, 2)}, 3), "Linear has no `width`"),
        (
            lambda: LateFusion({"image": Map(2)}, 1),
            r"classes must be .* at least 2; got 1",
        ),
        (lambda: small(dropout=1.5), r"\[0, 1\]; got 1\.5"),
        (lambda: small(dropout=math.nan), "got nan"),
        (lambda: small(impute="median"), "'zero' or 'mean'; got 'median'"),
        (
            lambda: LateFusion({"image": Map(2)}, 3, dim=0),
            r"dim must be .* at least 1; got 0",
        ),
    ],
)
def test_the_constructor_refuses(build, message):
    with pytest.raises(MMCLError, match=message):
        build()


def test_the_state_dict_holds_all_that_was_learned():
    model = small(impute="mean")
    model.loss(samples())
    model.after_step()
    model.set_weights(dict(zip(HEADS, (0.1, 0.2, 0.3, 0.4), strict=True)))
    model.measured.fill_(2.0)
    other = small(seed=1, impute="mean")
    other.load_state_dict(model.state_dict())
    assert_same(state(other), state(model))
    part = {"caption": samples()["caption"]}
    assert torch.equal(other.logits(part), model.logits(part))
    assert torch.equal(other.loss(samples())["total"], model.loss(samples())["total"])


# --- that it learns -------------------------------------------------------------------------------


def test_it_learns_the_shapes_and_serves_every_subset():
    train, test = (
        ShapesCaptions(n, seed=seed, objects=(1, 1), size=24, detail=1)
        for n, seed in ((256, 0), (300, 1))
    )
    y, truth = (data.attributes["shape"][:, 0] for data in (train, test))
    torch.manual_seed(0)
    model = LateFusion(
        {
            "image": ImageEncoder(size=24, width=32),
            "caption": CaptionEncoder(len(train.tokenizer), width=32),
            "tags": TagEncoder(len(train.tag_names), width=32),
        },
        6,
        dim=32,
        dropout=0.5,
        impute="mean",
    )
    history = fit(
        equal(model), train, epochs=20, batch_size=16, lr=3e-3, progress=False,
        augment=with_labels(train, y),
    )  # fmt: skip
    assert history.epoch_means("fusion")[-1] < 0.2 * history.epoch_means("fusion")[0]
    for classifier in ("probe", "own"):
        found = missing_modality(
            model, train, y, test, truth, ("image", "caption", "tags"), classifier=classifier
        )
        assert len(found.accuracy) == 7
        assert found.chance < 0.25
        for present, accuracy in found.accuracy.items():
            # Shapes in pictures take more than 256 of them.
            assert accuracy > found.chance + (0.05 if present == ("image",) else 0.6), present
