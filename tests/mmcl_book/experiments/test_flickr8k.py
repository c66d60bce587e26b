"""The experiment "flickr8k" on a tiny folder of drawings: no photograph is needed."""

import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmcl_book.experiments import closed_forms, flickr8k
from mmcl_book.experiments.drawn_folder import draw_folder
from mmcl_core.data.tokenizer import split_words
from mmcl_core.errors import DataError, MMCLError
from mmcl_core.methods import FDT, GMC, MCT, SigLIP

COUNTS = {"train": 40, "dev": 12, "test": 12}
TINY = {"epochs": 1, "batch_size": 16, "width": 32, "dim": 16, "text": 8}


def encode(pictures: torch.Tensor) -> torch.Tensor:
    """Four tokens a picture, of three colours and their squares: stands for a frozen network."""
    means = F.adaptive_avg_pool2d(pictures, 2).flatten(2).transpose(1, 2)
    return torch.cat([means, means**2], dim=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Flickr8k in small: pictures, captions and three lists."""
    root = draw_folder(
        tmp_path_factory.mktemp("photo") / "small", sum(COUNTS.values()), seed=3, size=32
    )
    names = sorted(path.name for path in (root / "Images").iterdir())
    for split, count in COUNTS.items():
        listed, names = names[:count], names[count:]
        (root / f"Flickr_8k.{split}Images.txt").write_text("\n".join(listed) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(flickr8k.VARIABLE, str(root))
        patch.setattr(flickr8k, "SPLITS", COUNTS)
        patch.setattr(flickr8k, "SIZE", 32)
        patch.setattr(flickr8k.read, "__defaults__", (None, 32))
        patch.setattr(flickr8k, "frozen_encoder", lambda name: encode)
        patch.setattr(flickr8k, "QUERIES", ("red", "ring"))
        patch.setattr(flickr8k, "NOUNS", ("ring", "star", "square"))
        patch.setattr(flickr8k, "TOP", 4)
        forget()
        yield root
    forget()


def forget() -> None:
    for kept in (flickr8k.photographs, flickr8k.lsa, closed_forms.reduced, flickr8k._of_rival):
        kept.cache_clear()


# Methods without a place in the record, too.
EVERY = {name: {"method": name} for name in ("SigLIP", "GMC", "MCT")} | flickr8k.CONDITIONS


def in_small(condition: str) -> dict:
    """The settings of a condition, at the size of the folder."""
    config = dict(EVERY[condition])
    if config["method"] not in ("ridge", "CCA"):
        config |= TINY
    if config["method"] == "MCT":
        config["queue"] = 32
    return config


@pytest.fixture(scope="module")
def runs(folder):
    """Runs a condition in one epoch; remembers what came out."""
    known: dict[tuple[str, int], dict[str, float]] = {}

    def run(condition: str, seed: int, *, again: bool = False) -> dict[str, float]:
        if again or (condition, seed) not in known:
            known[condition, seed] = flickr8k.run(seed, **in_small(condition))
        return known[condition, seed]

    return run


@pytest.mark.parametrize("condition", EVERY)
def test_every_condition_gives_the_same_measures(runs, condition: str) -> None:
    one, two = runs(condition, 0), runs(condition, 1)
    assert list(one) == list(two)
    assert all(type(value) is float and math.isfinite(value) for value in one.values())
    assert one["pictures asked"] == COUNTS["test"]
    if EVERY[condition]["method"] not in ("ridge", "CCA"):
        assert one != two


@pytest.mark.parametrize("condition", ["CLIP", "MCT", "FDT"])
def test_the_same_seed_gives_the_same_values(runs, condition: str) -> None:
    runs(condition, 0)
    one = runs(condition, 0, again=True)  # what is kept between runs is there
    torch.manual_seed(99)  # of which nothing depends
    forget()  # nor on what is kept
    assert runs(condition, 0, again=True) == one


def test_what_is_compared_is_measured_of_both(runs) -> None:
    for claim in flickr8k.BETTER:
        for condition in (claim.method, *claim.rivals):
            assert claim.measure in runs(condition, 0), (claim, condition)


def test_trials_ask_the_dev_list_and_the_record_the_test_list() -> None:
    for tried in flickr8k.TRIALS.values():
        assert {of["asked"] for of in tried.settings.values()} == {"dev"}
    assert not any("asked" in of for of in flickr8k.CONDITIONS.values())


def test_without_the_folder_the_message_names_the_variable(monkeypatch) -> None:
    monkeypatch.delenv(flickr8k.VARIABLE, raising=False)
    with pytest.raises(DataError, match="MMCL_FLICKR8K; it is not set"):
        flickr8k.folder()


def test_a_folder_that_lacks_pictures_is_no_flickr8k(folder, tmp_path, monkeypatch) -> None:
    short = tmp_path / "short"
    shutil.copytree(folder, short)
    names = (short / "Flickr_8k.testImages.txt").read_text().split()
    (short / "Flickr_8k.testImages.txt").write_text("\n".join(names[:6]))
    monkeypatch.setenv(flickr8k.VARIABLE, str(short))
    with pytest.raises(DataError, match="expected 12 pictures in the split test, got 6"):
        flickr8k.read("test")


def test_words_are_counted_on_the_training_captions_alone(folder) -> None:
    photos = flickr8k.photographs("test")
    plain = flickr8k.read("train")
    said = [w for i in range(len(plain)) for t in plain.captions(i) for w in split_words(t)]
    assert set(photos.asked.tokenizer.words) == {w for w in said if said.count(w) >= 2}
    assert photos.train.batch([0])["image"].shape == (1, 6)
    x = photos.train.batch(range(COUNTS["train"]))["image"]
    torch.testing.assert_close(x.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    pictures = plain.batch(range(COUNTS["train"]))["image"]
    mean = encode(pictures).mean(1)
    expected = (mean - mean.mean(0)) / mean.std(0, correction=0)
    torch.testing.assert_close(x, expected, atol=0.02, rtol=0.02)  # float16 on the disk


def test_captions_know_their_picture(folder) -> None:
    data = flickr8k.read("dev")
    texts, rows = flickr8k.captions_of(data)
    assert texts == [text for i in range(len(data)) for text in data.captions(i)]
    assert all(text in data.captions(i) for text, i in zip(texts, rows.tolist(), strict=True))
    has = flickr8k.says(data, ["red", "unheard"])
    assert has[:, 0].tolist() == [
        any("red" in split_words(text) for text in data.captions(i)) for i in range(len(data))
    ]
    assert not has[:, 1].any()


def test_dropped_words_are_padding_and_the_ends_stay() -> None:
    torch.manual_seed(0)
    batch = {"caption": torch.tensor([[1, 7, 8, 9, 2, 0]]).expand(500, -1)}
    dropped = flickr8k.drop_words(0.3)(batch)["caption"]
    assert dropped[:, [0, 4, 5]].unique(dim=0).tolist() == [[1, 2, 0]]
    share = float((dropped[:, 1:4] == 0).double().mean())
    assert abs(share - 0.3) < 0.05
    assert torch.equal(flickr8k.drop_words(0.0)(batch)["caption"], batch["caption"])


def test_tags_are_those_of_the_samples(folder) -> None:
    data = flickr8k.read("dev")
    tags = flickr8k.says(data, ["red", "blue"])
    batch = flickr8k.with_tags(data, tags)(data.batch([5, 0]))
    assert torch.equal(batch["tags"], tags[[5, 0]].float())


def test_each_method_is_what_it_says(folder) -> None:
    data = flickr8k.photographs("dev").train
    kinds = {"SigLIP": SigLIP, "FDT": FDT, "GMC": GMC, "MCT": MCT}
    for name, kind in kinds.items():
        made = flickr8k.new_method(name, data, 0, steps=5, width=32, dim=16, queue=32)
        assert type(made) is kind
    with pytest.raises(MMCLError, match="method must be one of CLIP"):
        flickr8k.new_method("BLIP", data, 0, steps=5)


def test_fixed_word_vectors_give_the_reduced_tf_idf(folder) -> None:
    """As scikit-learn has it, where no word stands twice."""
    data = flickr8k.photographs("dev").train
    words = flickr8k.WordVectors(*flickr8k.lsa(data, 8), 16)
    texts = ["a red ring", "there is a blue star", "we see nothingknown ring"]
    vectorizer, svd, _ = closed_forms.reduced(data, 8)
    expected = svd.transform(vectorizer.transform(texts))
    ids = data.tokenizer.encode_batch(texts)

    def summed(ids: torch.Tensor) -> torch.Tensor:
        return flickr8k.summed(ids, words.table, words.weights)

    np.testing.assert_allclose(summed(ids).numpy(), expected, atol=1e-5)
    assert torch.equal(summed(flickr8k.drop_words(0.0)({"caption": ids})["caption"]),
                       summed(ids))  # fmt: skip
    mean = summed(data.sentences[:, 0]).mean(0)
    torch.testing.assert_close(mean, words.middle)
    assert words(ids).pooled.shape == (3, 16)


# --- the rivals -----------------------------------------------------------------------------------


def test_ridge_is_the_loop_over_its_equations(folder) -> None:
    data = flickr8k.photographs("dev").train
    alpha = 0.3
    rival = closed_forms.ridge(data, dims=5, alpha=alpha)
    z = data.batch(range(len(data)))["image"].double().numpy()
    y = rival.caption([" ".join(data.captions(i)) for i in range(len(data))])
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-8)
    given = rival.image(z)
    # The gradient of the penalised squares is 0: Z'(ZW - Y) + alpha N W = 0.
    w = np.linalg.lstsq(z, given, rcond=None)[0]
    np.testing.assert_allclose(z.T @ (given - y) + alpha * len(z) * w, 0, atol=1e-5)


def test_cca_finds_what_two_sides_share(folder, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((300, 1))
    x = np.hstack([rng.standard_normal((300, 3)), shared + 0.1 * rng.standard_normal((300, 1))])
    y = np.hstack([shared, rng.standard_normal((300, 2))])
    monkeypatch.setattr(closed_forms, "numbers", lambda data: x)
    monkeypatch.setattr(closed_forms, "_tf_idf", lambda data, dims: (lambda texts: y, y))
    rival = closed_forms.cca(None, dims=3, alpha=1e-6, kept=1, power=1.0)
    found = np.corrcoef(rival.image(x)[:, 0], rival.caption(())[:, 0])[0, 1]
    assert found > 0.99


# --- what is measured -----------------------------------------------------------------------------


def test_perfect_embeddings_find_all(folder) -> None:
    data = flickr8k.photographs("dev").asked
    _, rows = flickr8k.captions_of(data)
    image = torch.eye(len(data))
    has = flickr8k.says(data, flickr8k.QUERIES).float()
    found = flickr8k.measure(flickr8k.Asked(image, image[rows], F.normalize(has.T, dim=1)), data)
    assert found["recall@1, image to caption"] == found["recall@1, caption to image"] == 1
    for i, word in enumerate(flickr8k.QUERIES):
        right = min(float(has[:, i].sum()), 10.0) / 10
        assert found[f"precision@10, {word}"] == pytest.approx(right)
    assert found["precision@10, chance"] == pytest.approx(float(has.mean()))
    other = flickr8k.measure(flickr8k.Asked(image, image[rows].roll(1, 1), has.T), data)
    assert other["recall@1, caption to image"] == 0


def test_a_token_has_a_noun_where_its_first_pictures_do(monkeypatch) -> None:
    monkeypatch.setattr(flickr8k, "TOP", 5)
    n = 100
    has = torch.zeros(n, 2, dtype=torch.bool)
    has[:5, 0] = True  # a rare noun
    has[:80, 1] = True  # one that nearly all have: its lift is 1.25
    weights = torch.zeros(n, 4)
    weights[:6, 0] = torch.tensor([6.0, 5, 4, 3, 2, 1])  # the first five have the rare noun
    weights[20:30, 1] = 1  # only the common one
    weights[3:8, 2] = 1  # two of five have the rare one
    weights[:3, 3] = 1  # too few to be judged
    assert flickr8k.named(weights, has).tolist() == [0, -1, -1]
    assert flickr8k.named(torch.zeros(n, 3), has).tolist() == []
