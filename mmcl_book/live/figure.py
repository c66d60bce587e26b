"""Live figures as HTML: a still frame that PyTorch drew, the data, and the scripts.

Everything is in the one output, so that a page works from the disk, and in the frames of a notebook
that share nothing. Where no script runs, and on paper, the still frame stands.
"""

import hashlib
import html
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mmcl_book.live.packing import METHODS, packed, rounded
from mmcl_book.live.pictures import scene
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.drawing import VALUES
from mmcl_core.errors import MMCLError

HERE = Path(__file__).parent
SCALE = 6  # pixels of the screen for each of a still picture
_numbers = count(1)


class Guess(NamedTuple):
    """What a reader is asked before moving anything."""

    question: str
    answers: Sequence[str]
    now: str  # what to do after it


class Live:
    """A figure for the last line of a cell; `html` is all of it."""

    def __init__(self, html: str, words: str) -> None:
        self.html, self.words = html, words

    def __repr__(self) -> str:
        return self.words

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.words}


def live(
    models: nn.Module | Mapping[str, nn.Module],
    start: ShapesCaptions,
    *,
    alt: str,
    moving: str,
    guess: Guess | tuple[str, Sequence[str], str] | None = None,
    probes: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> Live:
    """A model that answers in the page: the reader composes a scene and writes a sentence.

    `CLIP` and `SigLIP` show how similar picture and sentence are, and the sentence among others
    that have one mistake each; `FDT` its strongest tokens, and where they are called. Models that
    take any part of a sample, `LateFusion` and `GMC`, tell the class of one object (shape and
    colour) with modalities switched off; several of these stand side by side::

        live({"fusion": fusion, "GMC": gmc}, test, probes={"GMC": probe}, alt=..., moving=...)

    The page computes with weights in 16 bits; numbers agree with PyTorch's on the same weights.

    Args:
        models: one of these, of the library's own encoders; or models that fuse, by name.
        start: its first scene is the one at the beginning. For models that fuse: of one object,
            with sentences of detail 1, and tags.
        alt: what is seen in the picture at the beginning, for readers who do not see it.
        moving: what would be seen to change, for readers of a page that cannot move.
        guess: a question, the answers to choose from, and what to do then.
        probes: for each `GMC`, weights [36, D] and constants [36] of a linear probe of the class.

    Raises:
        MMCLError: a model has a part that the page does not compute, or does not fit the scene.
    """
    if not alt.strip() or not moving.strip():
        raise MMCLError(
            "alt and moving are for readers who cannot see or move the figure: say both"
        )
    named = dict(models) if isinstance(models, Mapping) else {type(models).__name__: models}
    first = next(iter(named.values()), None)
    if first is None:
        raise MMCLError("expected a model, got none")
    about: dict[str, Any] = {"size": start.size, "detail": start.detail, "start": scene(start)}
    kind = METHODS.get(type(first))
    if kind in ("CLIP", "FDT", None):
        if len(named) > 1:
            raise MMCLError(
                "several models stand side by side if they are LateFusion or GMC; got "
                f"{', '.join(type(m).__name__ for m in named.values())}"
            )
        about["view"] = "tokens" if kind == "FDT" else "pair"
    else:
        about["view"] = "parts"
    if about["view"] == "parts":
        about |= _of_parts(named, start)
    probes = probes or {}
    if unknown := set(probes) - set(named):
        raise MMCLError(f"probes: no model is named {unknown.pop()!r}; got {list(named)}")
    about["models"] = []
    for name, model in named.items():
        if METHODS.get(type(model)) == "GMC" and name not in probes:
            raise MMCLError(f"{name}: a GMC needs a probe, to tell the class")
        spec = packed(model, start.tokenizer, probes.get(name))
        if spec["encoders"]["image"]["size"] != start.size:
            raise MMCLError(
                f"{name}: expected scenes of {spec['encoders']['image']['size']} pixels a side, "
                f"as its encoder takes; got {start.size}"
            )
        about["models"].append({"name": name, "spec": spec})
    about["sentence"], about["most"] = start.text(0), 4
    say = _parts_still if about["view"] == "parts" else _pair_still
    return figure(about, _png(start.images[0]), alt, say(named, start, probes), moving, guess)


def _of_parts(named: Mapping[str, Any], start: ShapesCaptions) -> dict[str, Any]:
    """What the switches need; raises MMCLError if the scene does not fit them."""
    sets = {tuple(m.modalities) for m in named.values() if hasattr(m, "modalities")}
    if len(sets) != 1 or not set(modalities := next(iter(sets))) <= {"image", "caption", "tags"}:
        raise MMCLError(
            f"expected models of picture, caption and tags, all of the same; got {sets}"
        )
    if int((start.attributes["shape"][0] >= 0).sum()) != 1 or start.detail != 1:
        raise MMCLError("expected a scene of one object, with sentences of detail 1")
    places = {v: [name, i] for name in ("shape", "colour") for i, v in enumerate(VALUES[name])}
    if unknown := set(start.tag_names) - set(places):
        raise MMCLError(f"expected tags of shape and colour; got {sorted(unknown)}")
    return {"modalities": list(modalities), "tags": [places[name] for name in start.tag_names]}


@torch.no_grad()
def _pair_still(named: Mapping[str, Any], start: ShapesCaptions, probes: object) -> str:
    model = rounded(next(iter(named.values())))
    batch = start.batch([0])
    picture, caption = (model.embed({m: batch[m]})[0] for m in ("image", "caption"))
    return (
        f'The sentence "{start.text(0)}" has the similarity {float(picture @ caption):.2f} with '
        "this picture."
    )


@torch.no_grad()
def _parts_still(
    named: Mapping[str, Any], start: ShapesCaptions, probes: Mapping[str, tuple[Tensor, Tensor]]
) -> str:
    told = []
    for name, model in named.items():
        model = rounded(model)
        batch = {m: start.batch([0])[m] for m in model.modalities}
        if "caption" in batch:  # in the page's plain words
            word = VALUES["shape"][int(start.attributes["shape"][0].max())]
            text = f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
            batch["caption"] = start.tokenizer.encode_batch([text])
        if name in probes:
            weight, bias = (x.half().float() for x in probes[name])
            logits = model.embed(batch) @ weight.T + bias
        else:
            logits = model.logits(batch)
        shares = logits.softmax(dim=1)[0]
        top = int(shares.argmax())
        word = f"{VALUES['colour'][top % 6]} {VALUES['shape'][top // 6]}"
        told.append(f"{name} says {word} ({float(shares[top]):.2f})")
    return f"With everything there, {' and '.join(told)}."


def _png(image: Tensor) -> Image.Image:
    pixels = np.ascontiguousarray(image.numpy().transpose(1, 2, 0))
    side = SCALE * pixels.shape[0]
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)


def figure(
    about: Mapping[str, Any],
    picture: Image.Image,
    alt: str,
    says: str,
    moving: str,
    guess: Guess | tuple[str, Sequence[str], str] | None = None,
) -> Live:
    """The HTML around a view of `view.js`, or of another script: `about["view"]` names it."""
    about = dict(about)
    if guess is not None:
        about["guess"] = Guess(*guess)._asdict()
    data = json.dumps(about, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    digest = hashlib.sha256((data + alt + moving).encode()).hexdigest()[:10]
    place = f"mmcl-{digest}-{next(_numbers)}"
    buffer = BytesIO()
    picture.convert("RGB").save(buffer, "WEBP", lossless=True, method=4)
    still = (
        f'<div class="mmcl-still"><img src="data:image/webp;base64,'
        f'{b64encode(buffer.getvalue()).decode()}" alt="{html.escape(alt)}" '
        f'width="{picture.width}" height="{picture.height}"><p>A figure to play with, here '
        f'standing still. {html.escape(says)} <span class="mmcl-moving">{html.escape(moving)}'
        "</span></p></div>"
    )
    page = (
        f'<div class="mmcl-place" id="{place}"><style>{_file("live.css")}</style>{still}'
        f'<div class="mmcl-live" hidden></div></div>'
        f'<script type="application/json" class="mmcl-data" id="{place}-data">{data}</script>'
        f"<script>{_scripts(str(about['view']))}\nmmcl.start({json.dumps(place)});</script>"
    )
    return Live(page, f"A figure to play with: {alt} {says}")


def _scripts(view: str) -> str:
    names = ("model.js", "draw.js", "view.js", *(("circle.js",) if view == "circle" else ()))
    return "\n".join(_file(name) for name in names)


def _file(name: str) -> str:
    text = (HERE / name).read_text(encoding="utf-8")
    # Nothing in it may look like the end of the script.
    return text.replace("</", "<\\/") if name.endswith(".js") else text
