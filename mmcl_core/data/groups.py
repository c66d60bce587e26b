"""Which samples say the same: equal texts have one code, and are one group.

Equal ids are not always equal texts: words that a tokenizer does not know all have the id of
``<unk>``, and captions that are cut may have one beginning. So a data set that has the texts gives
each one a code, in its `texts` and as ``batch["text"]``. Where there are ids alone, a caption with
``<unk>`` counts as equal to no other. The code of such a caption is 0, which equals nothing.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcl_core.batches import Batch
from mmcl_core.data.tokenizer import UNK
from mmcl_core.errors import ShapeError


def text_codes(texts: Iterable[str]) -> Tensor:
    """A code for each text, the same for the same text, anywhere: int64 [N].

    It is a hash of 64 bits: two texts have one by accident once in about 10^19 pairs.
    """
    codes = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return torch.from_numpy(np.frombuffer(codes, dtype="<i8").astype(np.int64))


def caption_codes(captions: Tensor) -> Tensor:
    """A code for each caption, the same for the same ids, in any batch and at any width.

    A polynomial of the ids, modulo 2^64: two captions have one code by accident once in about
    10^19 pairs. It is 0 for a caption with ``<unk>`` (id 3).

    Args:
        captions: int64 [N, L], 0 = padding.

    Returns:
        int64 [N].

    Raises:
        ShapeError: not a tensor of integers with two axes.
    """
    if captions.ndim != 2 or captions.is_floating_point():
        raise ShapeError(
            f"expected captions as integers [N, L], got {captions.dtype} {list(captions.shape)}"
        )
    # Any odd number with many bits; int64 wraps around, which is the modulus.
    base = torch.full((captions.shape[1],), 6364136223846793005, device=captions.device)
    codes = 1 + (captions * base.cumprod(0)).sum(1)
    return codes.masked_fill((captions == UNK).any(1), 0)


def codes_of(batch: Batch, name: str = "caption") -> Tensor:
    """The codes of the captions of a batch: its "text" if it has one, else from the ids.

    Args:
        batch: holds `name`, and perhaps the codes of its texts.
        name: "caption" or "caption_view".

    Returns:
        int64 [B]; 0 where nobody knows the text.
    """
    given = batch.get(name.replace("caption", "text"))
    return caption_codes(batch[name]) if given is None else given


def same_text(one: Tensor, other: Tensor) -> Tensor:
    """Which codes stand for one text: int64 [N] and [M] -> bool [N, M]. 0 equals nothing."""
    return (one[:, None] == other) & (one != 0)[:, None]


def caption_groups(captions: Tensor) -> Tensor:
    """Numbers captions so that two have the same number exactly when they are the same text.

    To compare two sets of captions, join them and call this once: the numbers of two calls have
    nothing to do with each other.

    Args:
        captions: codes int64 [N] (`codes_of`, or `texts` of a data set), or ids int64 [N, L]. Of
            ids, padding counts for nothing, and a caption with ``<unk>`` equals no other.

    Returns:
        int64 [N], numbers 0 to G - 1, where G is the number of different texts.

    Raises:
        ShapeError: not integers of one or two axes.
    """
    given = captions.ndim == 1 and captions.dtype == torch.int64
    codes = captions if given else caption_codes(captions)
    # Each unknown one stands for itself.
    itself = torch.arange(len(codes), device=codes.device)
    pairs = torch.stack([codes, torch.where(codes == 0, itself, -1)], dim=1)
    if not len(pairs):  # torch.unique knows no such rows
        return codes
    return torch.unique(pairs, dim=0, return_inverse=True)[1]


def first_captions(data: Any) -> Tensor:
    """The groups of the first captions of a data set: int64 [N].

    Args:
        data: has `texts` int64 [N, S], such as a `CaptionFolder`; or else `sentences` [N, S, L].
    """
    texts = getattr(data, "texts", None)
    return caption_groups(data.sentences[:, 0] if texts is None else texts[:, 0])
