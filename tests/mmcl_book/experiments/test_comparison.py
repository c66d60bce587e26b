"""The comparison: that all methods get the same, and that each measure is what its name says."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmcl_book.experiments import comparison, small, structure, tokens
from mmcl_book.methods import FDTGMC, MoCoCLIP
from mmcl_core.data import ShapesCaptions
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import embed_all, linear_probe, pointing_game, summary
from mmcl_core.methods import CLIP, FDT, GMC, MCT, SigLIP
from mmcl_core.training import fit
from tests.tiny import Few, mean_recall, said, shrink

KINDS = {
    "CLIP": CLIP, "SigLIP": SigLIP, "MoCo + CLIP": MoCoCLIP, "MCT": MCT, "FDT": FDT, "GMC": GMC,
    "FDT + GMC": FDTGMC,
}  # fmt: skip


@pytest.fixture
def few(monkeypatch):
    shrink(monkeypatch)
    monkeypatch.setattr(comparison, "ShapesCaptions", Few)
    monkeypatch.setattr(comparison, "QUEUE", 32)
    monkeypatch.setattr(comparison, "EPOCHS", 1)
    known = comparison.scenes(24, 5, objects=(1, 1))  # asked are known: all classes are
    monkeypatch.setattr(comparison, "_one_object", lambda: [known, known.subset(range(20))])


@pytest.fixture
def data() -> ShapesCaptions:
    return comparison.scenes(48, 0)


def test_captions_name_shape_and_colour_and_lack_six_pairs() -> None:
    data = comparison.training_scenes(0, 300)
    assert len(data) == 300
    assert data.named == ("shape", "colour")
    assert not {"small", "striped", "top"} & said(data)
    assert {"red", "circle"} <= said(data)
    for i in range(len(data)):
        objects = zip(data.attributes["shape"][i], data.attributes["colour"][i], strict=True)
        assert all(int(shape) != int(colour) for shape, colour in objects if shape >= 0)
    drawn = comparison.scenes(450, 0)
    assert torch.equal(data.images, drawn.subset(drawn.compositional_split()[0][:300]).images)


def test_each_name_is_its_method(data) -> None:
    assert list(KINDS) == list(comparison.CONDITIONS)
    for name, config in comparison.CONDITIONS.items():
        assert type(comparison.new(data=data, seed=0, **config)) is KINDS[name]
    with pytest.raises(MMCLError, match="such as 'CLIP'; got 'ALBEF'"):
        comparison.new("ALBEF", data, 0)


def test_all_start_from_the_same_encoders(data) -> None:
    first = comparison.new("CLIP", data, 3)
    for config in comparison.CONDITIONS.values():
        other = comparison.new(data=data, seed=3, **config)
        for m in comparison.MODALITIES:
            ours, theirs = (method.encoders[m].state_dict() for method in (first, other))
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_all_see_the_same_number_of_samples_in_the_same_order(monkeypatch, few) -> None:
    seen = {}
    for name, config in comparison.CONDITIONS.items():
        called = []

        def note(method, data, called=called, **how):
            batches = []
            augment = how["augment"]
            how["augment"] = lambda batch: batches.append(batch["index"]) or augment(batch)
            called.append((how, batches))
            return fit(method, data, **how)

        monkeypatch.setattr(comparison, "fit", note)
        comparison.train(1, **config | {"batch": 16})
        ((how, batches),) = called
        seen[name] = (how["epochs"], how["lr"], how["seed"], torch.cat(batches).tolist())
    assert len({str(each) for each in seen.values()}) == 1


def test_queues_are_full_of_real_keys_before_the_first_step(monkeypatch, few) -> None:
    monkeypatch.setattr(comparison, "fit", lambda *of, **how: None)
    for name in ("MoCo + CLIP", "MCT"):
        method = comparison.train(0, **comparison.CONDITIONS[name] | {"batch": 16})
        keys = method.moco.queue.keys if name == "MoCo + CLIP" else method.queues["image"].keys
        near = (keys @ keys.T).fill_diagonal_(0)
        assert float(near.mean()) > 0.2  # of one untrained encoder; random ones have 0


def test_every_method_has_every_measure(monkeypatch, few, data) -> None:
    names = set()
    for config in comparison.CONDITIONS.values():
        measured = comparison.measure(comparison.new(data=data, seed=0, **config))
        assert all(math.isfinite(value) for value in measured.values())
        names.add(tuple(name for name in measured if not name.startswith("tokens")))
        assert ("tokens in common" in measured) == ("FDT" in config["method"])
    assert len(names) == 1


def test_retrieval_is_counted_by_what_captions_mean(few, data) -> None:
    method = comparison.new("CLIP", data, 0)
    measured = comparison._retrieval(method)
    test = comparison.scenes(comparison.TESTED, small.TEST_SEED)
    image, caption = (embed_all(method, test, (m,)) for m in comparison.MODALITIES)
    means = [frozenset_of(test, i) for i in range(len(test))]
    seen, unseen = (rows.tolist() for rows in test.compositional_split())
    groups = [means.index(each) for each in means]
    expected = mean_recall(image[seen], caption[seen], [groups[i] for i in seen])
    assert measured["recall"] == pytest.approx(expected)
    both = measured["image_to_caption"] + measured["caption_to_image"]
    assert measured["recall"] == pytest.approx(both / 2)
    hits = 0
    for x, y in ((image, caption), (caption, image)):
        scores = x @ y.T
        for i in unseen:
            right = max(scores[i, j] for j in range(len(test)) if groups[j] == groups[i])
            wrong = [scores[i, j] for j in range(len(test)) if groups[j] != groups[i]]
            hits += all(score < right - 1e-6 for score in wrong)
    assert measured["recall, unseen"] == pytest.approx(hits / (2 * len(unseen)))
    by_chance = [groups.count(groups[i]) / len(groups) for i in unseen]
    assert measured["recall chance, unseen"] == pytest.approx(sum(by_chance) / len(by_chance))


def frozenset_of(data: ShapesCaptions, i: int) -> tuple:
    """What a caption says of a scene, in any order."""
    shapes, colours = (data.attributes[name][i].tolist() for name in ("shape", "colour"))
    return tuple(sorted(zip(shapes, colours, strict=True)))


def test_bags_are_single_comparisons(few, data) -> None:
    method = comparison.new("FDT", data, 0)
    one, other = Few.colliding(comparison.BAGS, seed=small.TEST_SEED, size=small.SIZE, detail=2)
    x, y = ([embed_all(method, of, (m,)) for m in comparison.MODALITIES] for of in (one, other))
    right = 0
    for i in range(len(one)):
        right += float(x[0][i] @ x[1][i]) > float(x[0][i] @ y[1][i])
        right += float(y[0][i] @ y[1][i]) > float(y[0][i] @ x[1][i])
    assert comparison._bags(method)["bags"] == right / (2 * len(one))


def test_probes_read_features_before_the_head_and_embeddings_after_it(few, data) -> None:
    method = comparison.new("CLIP", data, 0).eval()
    measured = comparison._probes(method)
    known, asked = comparison._one_object()
    y, test_y = (summary.of_the_object(of)["size"] for of in (known, asked))
    with torch.no_grad():
        images = [of.batch(range(len(of)))["image"] for of in (known, asked)]
        before = [method.encoders["image"](each).pooled for each in images]
        after = [method.embed({"image": each}) for each in images]
    for name, (x, test_x) in {"probe": before, "probe after": after}.items():
        probe = linear_probe(x, y, test_x, test_y)
        assert measured[f"{name}, size"] == pytest.approx(probe.accuracy)
        assert measured["probe chance, size"] == probe.chance


class Embeds(torch.nn.Module):
    """A method that has nothing but embeddings."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip, self.embed = [clip], clip.embed
        self.place = torch.nn.Parameter(torch.zeros(1))


def test_a_method_with_embeddings_alone_can_be_measured(few, data) -> None:
    clip = comparison.new("CLIP", data, 0)
    whole, bare = comparison.measure(clip), comparison.measure(Embeds(clip))
    assert {name for name in whole if "pointing" in name} == whole.keys() - bare.keys()
    assert bare["recall"] == whole["recall"]
    assert bare["probe, size"] == bare["probe after, size"] == whole["probe after, size"]


@pytest.mark.parametrize("name", ["CLIP", "MCT", "FDT", "GMC", "FDT + GMC"])
def test_each_points_by_its_own_maps(few, data, name) -> None:
    method = comparison.new(data=data, seed=0, **comparison.CONDITIONS[name])
    measured = comparison._pointing(method)
    test = comparison.scenes(comparison.TESTED, small.TEST_SEED)
    if "FDT" in name:
        maps, masks, *_ = tokens.token_maps(method, test, "colour")
    else:
        spoken = method if name == "CLIP" else comparison.Spoken(method)
        maps, masks, *_ = structure.word_maps(spoken, test, "colour")
    assert measured["pointing, colour"] == pointing_game(maps, masks).accuracy


def test_tokens_in_common(few, data) -> None:
    method = comparison.new("FDT", data, 0)
    measured = comparison._tokens(method)
    test = comparison.scenes(comparison.TESTED, small.TEST_SEED)
    batch = test.batch(range(len(test)))
    with torch.no_grad():
        image, caption = (method.ground(batch, m).weights for m in comparison.MODALITIES)
    for shift, name in ((0, "tokens in common"), (1, "tokens in common, other")):
        own = [torch.minimum(image[i], caption[i - shift]).sum() for i in range(len(test))]
        assert measured[name] == pytest.approx(float(sum(own)) / len(own), rel=1e-5)


@pytest.mark.parametrize("name", ["MCT", "GMC"])
def test_a_token_goes_through_the_head_of_the_whole(data, name) -> None:
    method = comparison.new(data=data, seed=0, **comparison.CONDITIONS[name]).eval()
    batch = data.batch(range(4))
    with torch.no_grad():
        for m in comparison.MODALITIES:
            vectors, mask = comparison.Spoken(method).embed_tokens(batch, m)
            encoded = method.encoders[m](batch[m])
            assert torch.equal(mask, encoded.mask)
            torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:2]))
            # A whole whose pooled vector is one token is embedded where that token is.
            token = encoded.tokens[:, 1]
            if name == "MCT":
                expected = method.query[m].inter(token)
            else:
                expected = method.head(method.bases[m](token))
            torch.testing.assert_close(vectors[:, 1], F.normalize(expected, dim=1))


def test_a_run_is_training_and_measuring(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(comparison, "train", lambda seed, **how: calls.append((seed, how)) or 5)
    monkeypatch.setattr(comparison, "measure", lambda method: {"got": method})
    assert comparison.run(4, method="FDT", lr=0.1) == {"got": 5}
    assert calls == [(4, {"method": "FDT", "lr": 0.1})]
