"""What would a generative or a quantised answer look like?

MVAE and MMVAE learn to draw what is missing; shared codes replace each patch and each word by its
nearest entry of one codebook. Scenes, encoders, epochs and measures are those of the experiment
"comparison", so that the contrastive methods stand beside. Besides, each is asked what only it can
do: the VAEs draw pictures and tell words, which a judge checks; the codes, and FDT beside them, say
how they use their codebook.

Choices were made by trainings with seed 10, on test scenes of seed 555.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_book.experiments import comparison, fdt, small, tokens
from mmcl_book.methods import MMVAE, MVAE, CodeCLIP
from mmcl_core.batches import Batch
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.augment import paraphrase, with_labels
from mmcl_core.data.drawing import VALUES
from mmcl_core.data.shapes import SYNONYMS
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import summary
from mmcl_core.methods import FDT
from mmcl_core.modules import evaluating
from mmcl_core.training import fit

CONDITIONS: dict[str, dict[str, Any]] = {
    name: {"method": name} for name in ("MVAE", "MMVAE", "codes", "FDT")
}
CODES, HIDDEN = 256, 64
JUDGED, JUDGE_EPOCHS, JUDGE_SEED = 2000, 8, 903  # scenes that the judge learns from
NAMED = ("shape", "colour")  # attributes that the captions name
SOURCES = {"image": ("image",), "caption": ("caption",), "both": comparison.MODALITIES}


# --- training -------------------------------------------------------------------------------------


def new(method: str, data: ShapesCaptions, seed: int) -> nn.Module:
    """A method with the first weights of that seed. Seeds torch.

    Raises:
        MMCLError: there is no such method.
    """
    if method not in CONDITIONS:
        raise MMCLError(f"the methods are {', '.join(CONDITIONS)}; got {method!r}")
    if method == "FDT":
        return comparison.new("FDT", data, seed)
    torch.manual_seed(seed)
    pair = comparison.image_encoder(), comparison.caption_encoder(data)
    if method == "codes":
        steps = comparison.EPOCHS * max(len(data) // comparison.BATCH, 1)
        return CodeCLIP(*pair, codebook_size=CODES, dim=small.DIM, warmup=steps // 2)
    return (MVAE if method == "MVAE" else MMVAE)(*pair, dim=HIDDEN)


def train(seed: int, *, method: str = "MMVAE") -> nn.Module:
    """Trains a method as the experiment "comparison" does.

    Args:
        seed: of scenes, first weights, order and draws.
        method: one of `CONDITIONS`.
    """
    if method == "FDT":
        return comparison.train(seed, method="FDT", batch=comparison.BATCH)
    data = comparison.training_scenes(seed)
    trained = new(method, data, seed)
    fit(
        trained, data, epochs=comparison.EPOCHS, batch_size=comparison.BATCH, lr=comparison.LR,
        augment=paraphrase(data), seed=seed, progress=False,
    )  # fmt: skip
    return trained


def run(seed: int, **config: Any) -> dict[str, float]:
    """Trains and measures; see `train` and `measure`."""
    return measure(train(seed, **config))


def measure(method: nn.Module) -> dict[str, float]:
    """What `comparison.measure` gives; of a VAE also `drawn`, of a codebook also `codebook`.

    Of an FDT only the latter: the rest is in the record "comparison".
    """
    if isinstance(method, FDT):
        return codebook(method)
    own = drawn(method) if isinstance(method, MVAE | MMVAE) else {}
    if isinstance(method, CodeCLIP):
        own = codebook(method)
    return comparison.measure(method) | own


# --- what a VAE draws and tells -------------------------------------------------------------------


class Judge(nn.Module):
    """Names the shape and the colour of the one object of a picture. Has seen real pictures only.

    Real pictures are those of the laboratory, as against those that a decoder draws.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = small.image_encoder()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(small.WIDTH, len(VALUES[name])) for name in NAMED}
        )

    def logits(self, pictures: Tensor) -> dict[str, Tensor]:
        """Pictures [B, 3, H, W] -> attribute -> [B, values]."""
        pooled = self.encoder(pictures).pooled
        return {name: head(pooled) for name, head in self.heads.items()}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The mean cross-entropy; `label` is `summary.shape_and_colour`."""
        colours = len(VALUES["colour"])
        truth = {"shape": batch["label"] // colours, "colour": batch["label"] % colours}
        logits = self.logits(batch["image"])
        parts = {name: F.cross_entropy(logits[name], truth[name]) for name in NAMED}
        return {"total": (parts["shape"] + parts["colour"]) / 2}


@functools.cache
def judge() -> Judge:
    """A trained judge, the same for every method. Leaves the random state as it was."""
    data = comparison.scenes(JUDGED, JUDGE_SEED, objects=(1, 1))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        trained = Judge()
        fit(
            trained, data, epochs=JUDGE_EPOCHS, batch_size=64, lr=5e-3,
            augment=with_labels(data, summary.shape_and_colour(data)), progress=False,
        )  # fmt: skip
    return trained.eval()


def one_object() -> ShapesCaptions:
    """Scenes with one object, to be drawn and told."""
    return comparison.scenes(comparison.PROBED, small.PROBE_SEEDS[1], objects=(1, 1))


@torch.no_grad()
def judged(pictures: Tensor) -> dict[str, Tensor]:
    """What the judge names: pictures float [N, 3, H, W] -> attribute -> int64 [N]."""
    parts = [judge().logits(some) for some in pictures.split(250)]
    return {name: torch.cat([of[name] for of in parts]).argmax(1) for name in NAMED}


def told(words: Tensor, data: ShapesCaptions) -> dict[str, Tensor]:
    """Which value of each attribute a bag of words names most: attribute -> int64 [N].

    Args:
        words: probabilities [N, V] of words to be there; synonyms count together.
        data: has the tokenizer.
    """
    number = {word: data.tokenizer.encode(word)[1] for word in data.tokenizer.words}
    found = {}
    for name in NAMED:
        values = [
            sum(words[:, number[word]] for word in {value, SYNONYMS.get(value, value)})
            for value in VALUES[name]
        ]
        found[name] = torch.stack(values, dim=1).argmax(1)  # type: ignore[arg-type]
    return found


def drawn(method: MVAE | MMVAE) -> dict[str, float]:
    """What a VAE draws and tells of scenes with one object, from the picture, the caption, or both.

    - "colour drawn, caption" and so on: share of the pictures drawn from captions in which the
      judge sees the colour of the scene; "colour drawn, real": of the real pictures;
      "colour chance" is that of the commonest;
    - "colour told, image" and so on: share of the pictures whose colour is the one that the told
      words name most;
    - "error, image" and so on: root of the mean square difference of the drawn and the real
      picture; "error, mean picture": of the mean of the scenes that probes learn from.
    """
    data = one_object()
    truth = summary.of_the_object(data)
    real = data.images.float() / 255
    known = comparison.scenes(comparison.PROBED, small.PROBE_SEEDS[0], objects=(1, 1))
    mean = (known.images.float() / 255).mean(0, keepdim=True)
    measured = _right("drawn, real", judged(real), truth)
    measured["error, mean picture"] = _error(mean, real)
    for name in NAMED:
        measured[f"{name} chance"] = float(truth[name].bincount().max()) / len(data)
    for source, names in SOURCES.items():
        pictures = reconstructions(method, data, names, "image")
        words = reconstructions(method, data, names, "caption")
        measured |= _right(f"drawn, {source}", judged(pictures), truth)
        measured |= _right(f"told, {source}", told(words, data), truth)
        measured[f"error, {source}"] = _error(pictures, real)
    return measured


def reconstructions(
    method: MVAE | MMVAE, data: ShapesCaptions, present: tuple[str, ...], modality: str
) -> Tensor:
    """`method.reconstruct` of a whole data set, from the modalities that are present."""
    rows = []
    with evaluating(method):
        for some in torch.arange(len(data)).split(250):
            batch = data.batch(some)
            rows.append(method.reconstruct({m: batch[m] for m in present}, modality))
    return torch.cat(rows)


# --- how a codebook is used -----------------------------------------------------------------------


def codebook(method: FDT | CodeCLIP) -> dict[str, float]:
    """How pictures and captions use their codebook, among the test scenes.

    - what `fdt.usage` gives;
    - "agreement" and "agreement, chance": the median over entries of the share of their patches
      that lie on what their commonest word names (`tokens.agreement`); "entries with a word": of
      how many entries.
    """
    test = comparison.scenes(comparison.TESTED, small.TEST_SEED)
    measured = fdt.usage(weights_of(method, test))
    patches, words = (calls(method, test, name) for name in comparison.MODALITIES)
    agreed = tokens.agreement(test, patches, tokens.under(test, patches), words)
    return measured | {
        "agreement": fdt.median(agreed.share),
        "agreement, chance": fdt.median(agreed.base),
        "entries with a word": float(len(agreed.token)),
    }


def weights_of(method: FDT | CodeCLIP, data: ShapesCaptions) -> dict[str, Tensor]:
    """The share of each entry in each sample: float [N, C] of each modality."""
    if isinstance(method, FDT):
        return fdt.weights_of(method, data)

    def read(name: str) -> Tensor:
        return summary.read_all(method, lambda b: method.histogram(b, name), data, (name,))

    return {name: read(name) for name in comparison.MODALITIES}


def calls(method: FDT | CodeCLIP, data: ShapesCaptions, name: str) -> tokens.Calls:
    """Which patch, or word, calls which entry; of hard codes, each calls its own."""
    if isinstance(method, FDT):
        return tokens.calls(method, data, name)
    found = []
    with evaluating(method):
        for rows in torch.arange(len(data)).split(250):
            batch = data.batch(rows)
            codes = method.ground({name: batch[name]}, name).codes
            real = batch["caption"] != 0 if name == "caption" else torch.ones_like(codes).bool()
            sample, place = real.nonzero(as_tuple=True)
            found.append((codes[real], rows[sample], place, torch.ones(len(sample))))
    return tokens.Calls(*map(torch.cat, zip(*found, strict=True)))


def _right(what: str, named: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, float]:
    return {f"{n} {what}": (named[n] == truth[n]).double().mean().item() for n in NAMED}


def _error(pictures: Tensor, real: Tensor) -> float:
    return (pictures - real).square().mean().sqrt().item()
