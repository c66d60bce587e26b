"""Models as a page takes them: what `model.js` has to know, and all weights in 16 bits.

It mirrors the encoders and methods of the library and nothing else. So whatever is not exactly one
of these is refused here, with a sentence, instead of answering with wrong numbers there.
"""

import copy
from base64 import b64encode
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mmcl_core.data.tokenizer import WordTokenizer
from mmcl_core.encoders import CaptionEncoder, ImageEncoder, TagEncoder
from mmcl_core.errors import MMCLError
from mmcl_core.methods import CLIP, FDT, GMC, LateFusion, SigLIP

METHODS: dict[type[nn.Module], str] = {
    CLIP: "CLIP", SigLIP: "CLIP", FDT: "FDT", GMC: "GMC", LateFusion: "LateFusion",
}  # fmt: skip
KINDS: dict[type[nn.Module], str] = {
    ImageEncoder: "image",
    CaptionEncoder: "caption",
    TagEncoder: "tags",
}
# What has no part in an answer.
UNUSED = ("log_scale", "bias", "step", "weights", "batches", "measured")


def rounded(model: nn.Module) -> Any:
    """A copy with the weights that a page has: those in 16 bits. On the CPU, in evaluation mode.

    Raises:
        MMCLError: a weight is not finite, or too large for 16 bits.
    """
    model = copy.deepcopy(model).cpu().float().eval()
    with torch.no_grad():
        for name, tensor in _tensors(model):
            half = tensor.half()
            if not half.isfinite().all():
                raise MMCLError(
                    f"{name}: expected weights that 16 bits hold, up to 65504; got "
                    f"{float(tensor.abs().max()):g}"
                )
            tensor.copy_(half)
    return model


def packed(
    model: nn.Module, tokenizer: WordTokenizer, probe: tuple[Tensor, Tensor] | None = None
) -> dict[str, Any]:
    """A model as JSON, for `mmcl.Model` in the page.

    Args:
        model: a `CLIP`, `SigLIP`, `FDT`, `GMC` or `LateFusion` of the library's own encoders.
        tokenizer: of its captions.
        probe: weights [C, D] and constants [C] of a linear probe on its embedding, in 16 bits too.

    Raises:
        MMCLError: it is, or has within, something that the page does not compute.
    """
    kind = METHODS.get(type(model))
    if kind is None:
        raise MMCLError(
            f"expected one of {', '.join(t.__name__ for t in METHODS)} of mmcl_core.methods; the "
            f"page does not compute a {type(model).__name__}"
        )
    if type(tokenizer) is not WordTokenizer:
        raise MMCLError(f"expected a WordTokenizer; got a {type(tokenizer).__name__}")
    method: Any = model
    spec: dict[str, Any] = {
        "method": kind,
        "modalities": list(method.modalities),
        "encoders": {m: _encoder(m, e) for m, e in method.encoders.items()},
        "words": list(tokenizer.words),
    }
    places = [len(e.position) for e in method.encoders.values() if type(e) is CaptionEncoder]
    spec["max_length"] = min([tokenizer.max_length, *places])
    for m, encoder in method.encoders.items():
        if type(encoder) is CaptionEncoder and encoder.vocabulary != len(tokenizer):
            raise MMCLError(
                f"{m}: expected an encoder of the {len(tokenizer)} words of the tokenizer; it "
                f"knows {encoder.vocabulary}"
            )
    if kind == "FDT":
        spec["grounding"] = _grounding(method)
    if kind == "GMC":
        spec["joint_encoders"] = {m: _encoder(m, e) for m, e in method.joint_encoders.items()}
        spec["average"] = method.average
    tensors = [
        (name, tensor)
        for name, tensor in _tensors(rounded(model))
        if not (kind == "LateFusion" and _own_head(name))
    ]
    if probe is not None:
        tensors += zip(("probe.weight", "probe.bias"), probe, strict=True)
    spec["tensors"] = [(name, list(tensor.shape)) for name, tensor in tensors]
    spec["data"] = _halves(tensor for _, tensor in tensors)
    return spec


def class_probe(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A linear probe as two tensors: weights [C, D] and constants [C], for `live`.

    It answers as `fit_probe` of the evaluation does, with the standardising folded in.

    Args:
        x: embeddings to learn from, [N, D].
        y: their classes, int64 [N]; each of 0 to C - 1 occurs, and C is at least 3.

    Raises:
        MMCLError: a class does not occur.
    """
    from sklearn.linear_model import LogisticRegression

    classes = y.unique()
    if len(classes) < 3 or not torch.equal(classes, torch.arange(len(classes))):
        raise MMCLError(
            f"expected classes 0, 1, 2, ..., each with a sample; got {classes.tolist()}"
        )
    x = x.double().cpu()
    mean, std = x.mean(0), x.std(0, correction=0)
    scale = torch.where(std > 1e-12 * (1 + mean.abs()), 1 / std, 0.0)
    found = LogisticRegression(max_iter=1000).fit(((x - mean) * scale).numpy(), y.numpy())
    weight = torch.from_numpy(found.coef_) * scale
    bias = torch.from_numpy(found.intercept_) - weight @ mean
    return weight.float(), bias.float()


def _own_head(name: str) -> bool:
    return name.startswith("heads.") and not name.startswith("heads.fusion.")


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """All weights and buffers that have a part in an answer."""
    named = model.state_dict().items()
    return [(name, x) for name, x in named if x.is_floating_point() and name not in UNUSED]


def _halves(tensors: Iterable[Tensor]) -> str:
    parts = (x.detach().contiguous().half().numpy().astype("<f2").tobytes() for x in tensors)
    return b64encode(b"".join(parts)).decode()


def _encoder(modality: str, encoder: Any) -> dict[str, Any]:
    """What the page has to know of an encoder besides its weights."""
    kind = KINDS.get(type(encoder))
    if kind is None:
        raise MMCLError(
            f"{modality}: expected an encoder of mmcl_core.encoders "
            f"({', '.join(t.__name__ for t in KINDS)}); the page does not compute a "
            f"{type(encoder).__name__}"
        )
    about = {"kind": kind, "width": encoder.width}
    if kind != "tags":
        if foreign := {type(b).__name__ for b in encoder.blocks} - {"Block"}:
            raise MMCLError(f"{modality}: the page does not compute a {foreign.pop()}")
        about["heads"] = encoder.blocks[0].heads if len(encoder.blocks) else 1
    if kind == "image":
        about |= {"size": encoder.size, "pool": encoder.pool}
    return about


def _grounding(model: Any) -> dict[str, Any]:
    """How FDT's tokens are mixed; of one sentence, nothing is padding."""
    head = model.heads["image"]
    if {(h.pooling, h.normalizer) for h in model.heads.values()} != {
        (head.pooling, head.normalizer)
    }:
        raise MMCLError("expected the same pooling and normalizer for picture and caption")
    if head.pooling not in ("max", "mean") or head.normalizer not in ("sparsemax", "softmax"):
        raise MMCLError(
            "the page computes FDT with pooling 'max' or 'mean' and normalizer 'sparsemax' or "
            f"'softmax'; got {head.pooling!r} and {head.normalizer!r}"
        )
    return {
        "temperature": model.grounding_temperature,
        "pooling": head.pooling,
        "normalizer": head.normalizer,
    }
