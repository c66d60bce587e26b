"""Encoders for pictures, captions and tags, and the heads that project what they return.

Every encoder returns the same thing, an `Encoded`: one pooled vector for each sample, the tokens
it was pooled from, and a mask that says which tokens are real. CLIP compares pooled vectors; FDT
reads the tokens of the very same encoder.
"""

from collections.abc import Mapping
from numbers import Integral
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_core.errors import MMCLError, ShapeError, check_count


class Encoded(NamedTuple):
    """What an encoder returns."""

    pooled: Tensor  # [B, F]
    tokens: Tensor  # [B, N, F]
    mask: Tensor  # bool [B, N], True = a real token


class Block(nn.Module):
    """A transformer block, norm first: attention, then a two-layer network, each added on top.

    The network is `expansion` times as wide as the tokens. The usual 4 is no better at the size of
    this book, and slower.
    """

    def __init__(self, width: int, heads: int, *, expansion: int = 2) -> None:
        super().__init__()
        width, heads = check_count("width", width), check_count("heads", heads)
        if width % heads:
            raise MMCLError(f"width must be a multiple of heads; got width={width}, heads={heads}")
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`x` [B, N, F], `mask` bool [B, N] (True = may be attended to) -> [B, N, F]."""
        b, n, f = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(b, n, 3, self.heads, f // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, N, F / heads]
        seen = None if mask is None else mask[:, None, None, :]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + self.out(attended.transpose(1, 2).reshape(b, n, f))
        return x + self.mlp(self.norm_mlp(x))


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens: `tokens` [B, N, F], `mask` bool [B, N] -> [B, F].

    A sample without a real token gives zeros.
    """
    weight = mask.to(tokens.dtype)[:, :, None]
    return (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


class ImageEncoder(nn.Module):
    """A stem of strided convolutions, then transformer blocks over the patches.

    Three convolutions, each halving the side, make one token of every 8 x 8 pixels; a 48-pixel
    picture has 36 tokens. Norms are over groups of channels, never over the batch: samples do not
    see each other, so that several processes give what one gives.

    Args:
        size: side of the square pictures, a multiple of 8.
        width: width F of tokens and pooled vector, a multiple of 32.
        depth: number of transformer blocks.
        heads: attention heads in each block.
        pool: how the tokens become one vector. "max": channel by channel, "is it anywhere?", so
            that small objects count as much as large ones; "mean": "how much of it is there?";
            "cls": one more token, which is learned and looks at the others, as in published CLIP.
    """

    patch = 8

    def __init__(
        self, *, size: int = 48, width: int = 128, depth: int = 1, heads: int = 4,
        pool: Literal["max", "mean", "cls"] = "max",
    ) -> None:  # fmt: skip
        super().__init__()
        if pool not in ("max", "mean", "cls"):
            raise MMCLError(f"pool must be 'max', 'mean' or 'cls'; got {pool!r}")
        if pool == "cls" and not depth:
            raise MMCLError("pool 'cls' needs a block that looks at the tokens; got depth 0")
        self.pool = pool
        self.size, self.width = size, width = check_count("size", size), check_count("width", width)
        if size % self.patch:
            raise MMCLError(f"size must be a positive multiple of {self.patch}; got {size}")
        if width % 32:
            raise MMCLError(f"width must be a positive multiple of 32; got {width}")
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 4, 4, stride=2, padding=1),
            nn.GroupNorm(8, width // 4),
            nn.GELU(),
            nn.Conv2d(width // 4, width // 2, 3, stride=2, padding=1),
            nn.GroupNorm(8, width // 2),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
            nn.GroupNorm(8, width),
        )
        # Saves the convolutions a copy: 5 to 10 % of a step on a CPU.
        nn.utils.convert_conv2d_weight_memory_format(self.stem, torch.channels_last)
        # Not the usual 0.02: "at top left" is half of what a caption says, and a place that is
        # drowned by the content takes several epochs longer to be used.
        self.position = nn.Parameter(0.5 * torch.randn((size // self.patch) ** 2, width))
        self.blocks = nn.ModuleList(
            Block(width, heads) for _ in range(check_count("depth", depth, least=0))
        )
        self.norm = nn.LayerNorm(width)
        self.cls = nn.Parameter(torch.randn(width)) if pool == "cls" else None

    def forward(self, images: Tensor) -> Encoded:
        """Pictures float [B, 3, size, size] in [0, 1] -> `Encoded` with N = (size / 8)^2 tokens.

        Tokens go row by row from the top left.
        """
        if images.ndim != 4 or images.shape[1:] != (3, self.size, self.size):
            raise ShapeError(
                f"expected pictures [B, 3, {self.size}, {self.size}], got {list(images.shape)}"
            )
        if not images.is_floating_point():
            raise ShapeError(f"expected pictures as floats in [0, 1], got {images.dtype}")
        images = images.to(self.position.dtype)  # of a model in half or double precision
        grid = self.stem(2 * images - 1)  # [B, F, size / 8, size / 8]
        x = grid.flatten(2).transpose(1, 2) + self.position
        if self.cls is not None:
            x = torch.cat([self.cls.expand(len(x), 1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        first, x = x[:, 0], x[:, self.cls is not None :]
        pooled = first if self.cls is not None else x.amax(1) if self.pool == "max" else x.mean(1)
        return Encoded(pooled, x, x.new_ones(x.shape[:2], dtype=torch.bool))


class CaptionEncoder(nn.Module):
    """Word and position embeddings, then transformer blocks; the pooled vector is the mean.

    Args:
        vocabulary: number of word numbers, padding included (`len(tokenizer)`).
        width: width F of tokens and pooled vector.
        depth: number of transformer blocks.
        heads: attention heads in each block.
        max_length: longest caption, start and end included.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int = 128,
        depth: int = 1,
        heads: int = 4,
        max_length: int = 64,
    ) -> None:
        super().__init__()
        self.width = width = check_count("width", width)
        self.vocabulary = vocabulary = check_count("vocabulary", vocabulary)
        max_length = check_count("max_length", max_length)
        self.words = nn.Embedding(vocabulary, width, padding_idx=0)
        # Half of a word's own size, for the same reason as in `ImageEncoder`.
        self.position = nn.Parameter(0.5 * torch.randn(max_length, width))
        self.blocks = nn.ModuleList(
            Block(width, heads) for _ in range(check_count("depth", depth, least=0))
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, captions: Tensor) -> Encoded:
        """Captions int64 [B, L], 0 is padding -> `Encoded` with N = L tokens."""
        longest = len(self.position)
        if captions.ndim != 2 or captions.shape[1] > longest:
            raise ShapeError(
                f"expected captions [B, L] with L at most {longest}, got {list(captions.shape)}; "
                "a longer max_length or truncated captions would help"
            )
        if captions.is_floating_point():
            raise ShapeError(f"expected captions as whole numbers, got {captions.dtype}")
        if (
            captions.numel()
            and not 0 <= int(captions.min()) <= int(captions.max()) < self.vocabulary
        ):
            raise ShapeError(
                f"expected word numbers from 0 to {self.vocabulary - 1}, got {int(captions.min())} "
                f"to {int(captions.max())}; was the caption made by another tokenizer?"
            )
        mask = captions != 0
        if not mask.any(dim=1).all():
            empty = int((~mask.any(dim=1)).nonzero()[0])
            raise ShapeError(f"caption {empty} of the batch holds nothing but padding")
        x = self.words(captions) + self.position[: captions.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return Encoded(masked_mean(x, mask), x, mask)


class TagEncoder(nn.Module):
    """An embedding for each tag, pooled by a mean over the tags at hand and a small network.

    Args:
        tags: number of tags T.
        width: width F of tokens and pooled vector.
    """

    def __init__(self, tags: int, *, width: int = 128) -> None:
        super().__init__()
        self.width = width = check_count("width", width)
        tags = check_count("tags", tags)
        self.embedding = nn.Parameter(torch.randn(tags, width))
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tags: Tensor) -> Encoded:
        """Tags multi-hot [B, T] -> `Encoded` with N = T tokens, masked where a tag is absent."""
        if tags.ndim != 2 or tags.shape[1] != len(self.embedding):
            raise ShapeError(f"expected tags [B, {len(self.embedding)}], got {list(tags.shape)}")
        mask = tags > 0
        tokens = self.embedding.expand(len(tags), -1, -1)
        pooled = masked_mean(tokens, mask)
        return Encoded(self.norm(pooled + self.mlp(pooled)), tokens, mask)


class ProjectionHead(nn.Sequential):
    """Maps [..., in_dim] to [..., out_dim]: one linear map, or Linear-ReLU-Linear with `hidden`.

    CLIP uses the first form (Radford et al., 2021), MoCo-v2 the second (Chen et al., 2020). The
    result is not normalised; the methods do that.
    """

    def __init__(self, in_dim: int, out_dim: int, *, hidden: int | None = None) -> None:
        in_dim, out_dim = check_count("in_dim", in_dim), check_count("out_dim", out_dim)
        if hidden is None:
            super().__init__(nn.Linear(in_dim, out_dim, bias=False))
        else:
            hidden = check_count("hidden", hidden)
            super().__init__(nn.Linear(in_dim, hidden), nn.ReLU(), nn.Linear(hidden, out_dim))


def width_of(encoder: nn.Module) -> int:
    """How wide an encoder's `pooled` is, which its `width` says.

    Raises:
        MMCLError: it is no `nn.Module`, or has no `width`.
    """
    width, name = getattr(encoder, "width", None), type(encoder).__name__
    if not isinstance(encoder, nn.Module):
        raise MMCLError(f"an encoder is an nn.Module that returns `Encoded`; got {name}")
    if not isinstance(width, Integral):
        raise MMCLError(
            f"{name} has no `width`, the number F of its `pooled` [B, F]; set self.width = F"
        )
    return int(width)


def by_modality(encoders: Mapping[str, nn.Module]) -> nn.ModuleDict:
    """Encoders as a module; raises MMCLError as `width_of` does."""
    for encoder in encoders.values():
        width_of(encoder)
    return nn.ModuleDict(encoders)


def encode(encoder: nn.Module, values: Tensor) -> Encoded:
    """What an encoder returns for the values of a batch, checked: methods call it for each.

    Raises:
        MMCLError: it is no `Encoded`, or one whose shapes do not fit the batch and each other.
    """
    found, name = encoder(values), type(encoder).__name__
    if not isinstance(found, Encoded):
        what = (
            f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        )
        raise MMCLError(
            f"{name} must return Encoded(pooled [B, F], tokens [B, N, F], mask bool [B, N], True = "
            f"a real token), from mmcl_core.encoders; got {what}. Without tokens of its own: "
            "Encoded(pooled, pooled[:, None], pooled.new_ones(len(pooled), 1, dtype=torch.bool))"
        )
    pooled, tokens, mask = found
    if (
        all(isinstance(part, Tensor) for part in found)
        and pooled.shape == (len(values), width_of(encoder))
        and tokens.ndim == 3
        and len(tokens) == len(values)
        and mask.shape == tokens.shape[:2]
        and mask.dtype == torch.bool
    ):
        return found
    got = [f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else repr(x) for x in found]
    raise ShapeError(
        f"{name} must return pooled [{len(values)}, {width_of(encoder)}] for this batch, tokens "
        f"[{len(values)}, N, F] and a mask bool [{len(values)}, N]; got {', '.join(got)}"
    )
