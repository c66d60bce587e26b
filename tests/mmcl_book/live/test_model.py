"""The forward pass in the page against PyTorch, and its pictures against the laboratory's."""

import json
from base64 import b64encode
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mmcl_book.live
from mmcl_book.live.packing import class_probe, packed, rounded
from mmcl_book.live.pictures import scene
from mmcl_core.data import ShapesCaptions
from mmcl_core.encoders import CaptionEncoder, Encoded, ImageEncoder, TagEncoder
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation.probes import fit_probe
from mmcl_core.methods import CLIP, FDT, GMC, LateFusion, MoCo, SigLIP

pytestmark = pytest.mark.browser

HERE = Path(mmcl_book.live.__file__).parent
SCRIPTS = [(HERE / name).read_text(encoding="utf-8") for name in ("model.js", "draw.js")]
CLOSE = 1e-5
ALL = ("image", "caption", "tags")
SUBSETS = [("image",), ("caption",), ("tags",), ("image", "caption"), ("image", "tags"), ALL]

# Runs in the page: a model, batches as JSON -> what it answers.
ASK = """([spec, batches]) => {
  const model = new mmcl.Model(spec);
  const about = spec.encoders.image;
  const plain = (x) => Array.from(x);
  return batches.map((batch) => {
    if (batch.image) batch.image = mmcl.bytes(batch.image);
    const answer = {};
    for (const m of Object.keys(batch)) {
      const encoded = model.encode(m, batch[m]);
      answer[m] = plain(encoded.pooled);
      answer[`${m} tokens`] = encoded.tokens.map(plain);
      if (spec.method === "FDT") {
        const { scores, weights } = model.ground(m, encoded);
        answer[`${m} scores`] = scores.map(plain);
        answer[`${m} weights`] = plain(weights);
      }
      if (spec.method === "CLIP") {
        answer[`${m} tokens, embedded`] = model.embedTokens(m, encoded).map(plain);
      }
    }
    answer.embedded = plain(model.embed(batch));
    if (spec.method === "LateFusion") answer.logits = plain(model.logits(batch));
    return answer;
  });
}"""


@pytest.fixture(scope="module")
def page(browser):
    opened = browser.new_page()
    for script in SCRIPTS:
        opened.add_script_tag(content=script)
    yield opened
    opened.close()


@cache
def scenes(size: int, **settings: Any) -> ShapesCaptions:
    return ShapesCaptions(8, seed=size, size=size, objects=(1, 4), **settings)


def encoders(data: ShapesCaptions, depth: int = 1, pool: Any = "max") -> dict[str, nn.Module]:
    return {
        "image": ImageEncoder(size=data.size, width=32, depth=depth, heads=2, pool=pool),
        "caption": CaptionEncoder(len(data.tokenizer), width=64, depth=depth),
        "tags": TagEncoder(data.tags.shape[1], width=32),
    }


def mixed(model: nn.Module) -> nn.Module:
    """Norms and biases away from one and zero, where a slip would not be seen."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "log_scale" not in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def asked(data: ShapesCaptions, present: tuple[str, ...], rows: range) -> list[dict[str, Any]]:
    """Samples as the page takes them: pixels, words without padding, tags."""
    batches = []
    for i in rows:
        words = data.sentences[i, 0]
        every = {
            "image": b64encode(data.images[i].numpy().tobytes()).decode(),
            "caption": words[words > 0].tolist(),
            "tags": data.tags[i].tolist(),
        }
        batches.append({m: every[m] for m in present})
    return batches


def reference(model: Any, data: ShapesCaptions, present: tuple[str, ...], i: int) -> dict[str, Any]:
    """The same answers by PyTorch, with the weights that the page has."""
    batch = {m: data.batch([i])[m] for m in present}
    answer = {}
    with torch.no_grad():
        for m in present:
            encoded: Encoded = model.encoders[m](batch[m])
            real = encoded.mask[0] if m != "tags" else slice(None)
            answer[m], answer[f"{m} tokens"] = encoded.pooled[0], encoded.tokens[0][real]
            if type(model) in (CLIP, SigLIP):
                answer[f"{m} tokens, embedded"] = model.embed_tokens(batch, m)[0][0][real]
            if isinstance(model, FDT):
                of = model.token_attention({m: batch[m]})[m]
                answer[f"{m} scores"], answer[f"{m} weights"] = of.scores[0][real], of.weights[0]
        answer["embedded"] = model.embed(batch)[0]
        if isinstance(model, LateFusion):
            answer["logits"] = model.logits(batch)[0]
    return answer


def largest_difference(page, model, data, present, rows=range(3)) -> float:
    answers = page.evaluate(ASK, [packed(model, data.tokenizer), asked(data, tuple(present), rows)])
    there, worst = rounded(model), 0.0
    for i, answer in zip(rows, answers, strict=True):
        # In 32 bits, PyTorch's group norms are off by up to 5e-5 themselves.
        short = reference(there.float(), data, tuple(present), i)["embedded"]
        expected = reference(there.double(), data, tuple(present), i) | {"embedded, short": short}
        answer["embedded, short"] = answer["embedded"]
        assert set(answer) == set(expected)
        for name, values in expected.items():
            got = torch.tensor(answer[name], dtype=torch.float64)
            assert got.shape == values.shape, name
            worst = max(worst, float((got - values).detach().abs().max()))
    return worst


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("pool", ["max", "mean", "cls"])
def test_clip(page, size: int, depth: int, pool: str) -> None:
    torch.manual_seed(0)
    data = scenes(size)
    trunks = encoders(data, depth, pool)
    model = mixed(CLIP(trunks["image"], trunks["caption"], dim=24))
    for present in (("image",), ("caption",), ("image", "caption")):
        assert largest_difference(page, model, data, present) < CLOSE


@pytest.mark.parametrize(
    "settings",
    [
        {"grounding_temperature": 0.3},
        {"grounding_temperature": 0.1, "pooling": "mean"},
        {"grounding_temperature": 1.0, "normalizer": "softmax"},
    ],
)
def test_fdt(page, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    data = scenes(32)
    trunks = encoders(data)
    model = mixed(FDT(trunks["image"], trunks["caption"], codebook_size=48, dim=16, **settings))
    for present in (("image",), ("caption",)):
        assert largest_difference(page, model, data, present) < CLOSE


@pytest.mark.parametrize("average", ["sphere", "plain"])
def test_gmc(page, average: Any) -> None:
    torch.manual_seed(0)
    data = scenes(32)
    model = mixed(GMC(encoders(data), common=24, dim=16, hidden=20, average=average))
    for present in SUBSETS:
        assert largest_difference(page, model, data, present, range(2)) < CLOSE


def test_fusion(page) -> None:
    torch.manual_seed(0)
    data = scenes(32)
    model = mixed(LateFusion(encoders(data), 36, dim=24, impute="mean"))
    model.fill.normal_()
    for present in SUBSETS:
        assert largest_difference(page, model, data, present, range(2)) < CLOSE


def test_siglip_is_as_clip(page) -> None:
    torch.manual_seed(0)
    data = scenes(32)
    trunks = encoders(data)
    model = mixed(SigLIP(trunks["image"], trunks["caption"], dim=24))
    assert largest_difference(page, model, data, ("image",)) < CLOSE


def test_other_encoders_are_found_out(page, monkeypatch) -> None:
    """The test of parity fails as soon as `encoders.py` computes something else."""
    torch.manual_seed(0)
    data = scenes(32)
    trunks = encoders(data)
    model = mixed(CLIP(trunks["image"], trunks["caption"], dim=24))
    whole = ImageEncoder.forward

    def other(self, images):
        found = whole(self, images)
        return found._replace(pooled=found.tokens.amin(1))

    monkeypatch.setattr(ImageEncoder, "forward", other)
    assert largest_difference(page, model, data, ("image",)) > CLOSE


def test_a_probe_answers_in_probabilities(page) -> None:
    torch.manual_seed(0)
    data = scenes(32)
    model = mixed(GMC(encoders(data), common=24, dim=16, hidden=20))
    probe = torch.randn(36, 16).half().float(), torch.randn(36).half().float()
    batch = asked(data, ALL, range(1))[0]
    answer = page.evaluate(
        """([spec, batch]) => {
          batch.image = mmcl.bytes(batch.image);
          return new mmcl.Model(spec).classes(batch);
        }""",
        [packed(model, data.tokenizer, probe), batch],
    )
    with torch.no_grad():
        z = rounded(model).embed({m: data.batch([0])[m] for m in ALL})
    expected = (z @ probe[0].T + probe[1]).softmax(dim=1)[0]
    torch.testing.assert_close(torch.tensor(answer), expected, atol=CLOSE, rtol=0)


def test_the_probe_is_that_of_the_evaluation() -> None:
    torch.manual_seed(0)
    y = torch.arange(120) % 4
    x = torch.randn(4, 6)[y] + 0.5 * torch.randn(120, 6)
    x[:, 2] = 3.0  # a column that says nothing
    weight, bias = class_probe(x, y)
    predict, _ = fit_probe(x, y, 1.0, 1000)
    asked = torch.randn(200, 6)
    asked[:, 2] = 3.0
    assert torch.equal((asked @ weight.T + bias).argmax(dim=1), predict(asked))
    with pytest.raises(MMCLError, match="each with a sample"):
        class_probe(x, y + 1)


def test_pixels(page) -> None:
    """400 scenes, byte for byte: half of them small, with one to four objects."""
    for size in (48, 32):
        data = ShapesCaptions(200, seed=size + 1, size=size, objects=(1, 4)).subset(
            list(range(199, -1, -1))
        )
        drawn = page.evaluate(
            """([scenes, size]) => scenes.map((scene) => {
              scene.noise = new Int8Array(mmcl.bytes(scene.noise).buffer);
              return Array.from(mmcl.render(scene, size));
            })""",
            [[scene(data, i) for i in range(len(data))], size],
        )
        there = np.array(drawn, dtype=np.uint8).reshape(data.images.shape)
        assert int((there != data.images.numpy()).sum()) == 0


def test_scenes_of_the_page_are_scenes_of_the_laboratory(page) -> None:
    """What the page draws by itself: attributes and details stay where the library's do."""
    found = page.evaluate(
        """() => {
          const random = mmcl.randomly(7);
          return Array.from({length: 300}, () => {
            const made = mmcl.scene(random, 48, 1, 4);
            return {...made, noise: Array.from(made.noise)};
          });
        }"""
    )
    data = ShapesCaptions(300, seed=7, objects=(1, 4))
    for name in ("shift", "tint", "phase", "radius"):
        ours = np.concatenate([np.ravel(o[name]) for s in found for o in s["objects"]])
        there = data._placed[name][data.attributes["shape"].numpy() >= 0]
        assert (ours.min(), ours.max()) == (there.min(), there.max()), name
    for name in ("ground", "slope"):
        ours = np.array([s[name] for s in found])
        assert ours.min() >= data._placed[name].min() - 12, name
        assert ours.max() <= data._placed[name].max() + 12, name
    assert {len(s["objects"]) for s in found} == {1, 2, 3, 4}
    for s in found:
        assert len({o["position"] for o in s["objects"]}) == len(s["objects"])
        assert set(s["noise"]) <= set(range(-8, 8))


@pytest.mark.parametrize("detail", [1, 2, 3, 4])
def test_the_plain_sentence_is_the_laboratory_s(page, detail: int) -> None:
    data = ShapesCaptions(20, seed=3, detail=detail, synonyms=False, sentences=1)
    said = page.evaluate(
        "([scenes, detail]) => scenes.map((one) => mmcl.say(one.objects, detail))",
        [[scene(data, i) for i in range(20)], detail],
    )
    for i, text in enumerate(said):
        told = data.text(i)
        for opening in ("there is ", "we see ", "a picture of "):
            told = told.removeprefix(opening)
        assert sorted(text.split(" and ")) == sorted(told.split(" and "))


PIECES = ["a", "B", "é", "É", "'", "’", " ", "-", "_", "2", "한", "İ", "e\u0301", ",", "ring"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@given(text=TEXTS)
@settings(max_examples=50)
def test_words_are_split_alike(browser, text: str) -> None:
    data = scenes(32)
    trunks = encoders(data)
    if not hasattr(browser, "_of_words"):
        browser._of_words = browser.new_page()
        for script in SCRIPTS:
            browser._of_words.add_script_tag(content=script)
        spec = packed(CLIP(trunks["image"], trunks["caption"]), data.tokenizer)
        browser._of_words.evaluate("(spec) => { window.model = new mmcl.Model(spec); }", spec)
    ids = browser._of_words.evaluate("(text) => model.number(text)", text)
    assert ids == data.tokenizer.encode(text, truncate=True)


class Mine(ImageEncoder):
    """Of another type, whatever it computes."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t, n: MoCo(t["image"]), "does not compute a MoCo"),
        (lambda t, n: CLIP(Mine(size=32, width=32), t["caption"]), "does not compute a Mine"),
        (lambda t, n: CLIP(t["image"], CaptionEncoder(n + 1)), "words of the tokenizer"),
        (
            lambda t, n: FDT(t["image"], t["caption"], normalizer="sigmoid"),
            "'max' and 'sigmoid'",
        ),
    ],
)
def test_what_the_page_does_not_compute_is_refused(make, message: str) -> None:
    data = scenes(32)
    with pytest.raises(MMCLError, match=message):
        packed(make(encoders(data), len(data.tokenizer)), data.tokenizer)


def test_weights_that_16_bits_do_not_hold_are_refused() -> None:
    data = scenes(32)
    trunks = encoders(data)
    model = CLIP(trunks["image"], trunks["caption"])
    with torch.no_grad():
        model.encoders["image"].position[0, 0] = 1e6
    with pytest.raises(MMCLError, match=r"position.*1e\+06"):
        packed(model, data.tokenizer)


def test_a_packed_model_is_json() -> None:
    data = scenes(32)
    trunks = encoders(data)
    spec = packed(CLIP(trunks["image"], trunks["caption"]), data.tokenizer)
    assert json.loads(json.dumps(spec))["method"] == "CLIP"
