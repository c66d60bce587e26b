"""What a loss costs as the batch grows: a model of its memory and exchange, and what is measured.

The memory is that of PyTorch's tensors in float32, forward and backward: what a step holds at
most, beyond the embeddings that it is handed (`cost.step_costs`). A step holds most at one of a few
moments; the model counts the numbers that exist at each, and takes the largest.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_book.experiments.cost import StepCost, step_costs
from mmcl_core.errors import MMCLError
from mmcl_core.grounding import ground
from mmcl_core.losses import clip_loss, gmc_loss, queue_info_nce, siglip_loss
from mmcl_core.sparsemax import sparsemax

FLOAT = 4  # bytes
CHUNK = 1024  # codebook entries that FDT's grounding scores at a time


@dataclass(frozen=True)
class Size:
    """The letters of the model."""

    batch: int  # B, of all processes together
    dim: int = 64  # D
    processes: int = 1  # W; each has B / W samples
    tile: int = 256  # rows of a tile
    queue: int = 4096  # K
    patches: int = 16  # N, the patches or words of a sample
    codebook: int = 512  # C
    modalities: int = 2  # M of GMC, besides the complete observation

    def __post_init__(self) -> None:
        numbers = vars(self).values()
        if min(numbers) < 1 or self.batch % self.processes:
            raise MMCLError(f"expected numbers of at least 1, and B a multiple of W; got {self}")

    @property
    def own(self) -> int:
        """b = B / W, the samples of one process."""
        return self.batch // self.processes


def clip_as_published(image: Tensor, text: Tensor, scale: float | Tensor) -> Tensor:
    """Radford et al., 2021, Figure 3, as it stands there: two [B, B] matrices of logits."""
    target = torch.arange(len(image))
    by_image = F.cross_entropy(scale * image @ text.T, target)
    by_text = F.cross_entropy(scale * text @ image.T, target)
    return (by_image + by_text) / 2


def gmc_as_published(modalities: Sequence[Tensor], joint: Tensor, temperature: float) -> Tensor:
    """Of each modality, plain exponentials of [2B, 2B] similarities, without their diagonal."""
    total = joint.new_zeros(())
    for values in modalities:
        both = torch.cat([joint, values])
        exps = (both @ both.T / temperature).exp()
        others = ~torch.eye(len(both), dtype=torch.bool)
        below = exps.masked_select(others).view(len(both), -1).sum(1)
        above = ((joint * values).sum(1) / temperature).exp().repeat(2)
        total = total - (above / below).log().mean()
    return total


def grounding_as_published(queries: Tensor, codebook: Tensor, temperature: float) -> Tensor:
    """FDT: all scores [B, N, C] at once, their maximum over patches, a sparsemax, a mixture."""
    scores = queries @ codebook.T / (math.sqrt(codebook.shape[1]) * temperature)
    return sparsemax(scores.max(1).values) @ codebook


def grounding(queries: Tensor, codebook: Tensor, temperature: float) -> Tensor:
    """The same, as the library computes it: without [B, N, C]."""
    scale = math.sqrt(codebook.shape[1]) * temperature
    return ground(queries, codebook, lambda pooled: sparsemax(pooled / scale))[0]


# --- the model ------------------------------------------------------------------------------------


def memory(loss: str, size: Size) -> dict[str, float]:
    """Bytes that a process holds at the moment when it holds most, by what they are.

    The parts are "similarities" (logits, scores, their exponentials and gradients), "embeddings"
    (those gathered, scaled copies, gradients), "codebook" (its gradient) and "numbers" (one or a
    few for each sample).

    Args:
        loss: one of `LOSSES`.
        size: of "FDT", for one modality; a token that has a weight at all has it in few samples,
            but for "FDT, all active", where each token has a weight in each sample.

    Raises:
        MMCLError: there is no such loss.
    """
    if loss not in LOSSES:
        raise MMCLError(f"there is no loss {loss!r}; there are {', '.join(LOSSES)}")
    moments = [
        {name: FLOAT * count for name, count in moment.items() if count}
        for moment in LOSSES[loss](size)
    ]
    return max(moments, key=lambda moment: sum(moment.values()))


Moment = dict[str, float]


# Each function lists the moments at which a step may hold most, the largest matrices first; where
# embeddings are wide and samples few, it is a later one, when their gradients are there.


def _clip_as_published(s: Size) -> list[Moment]:
    # Two matrices of logits, and of each the softmax that its backward pass keeps. All embeddings
    # are needed in each process.
    square, whole = s.batch**2, s.batch * s.dim
    gathered = 2 * whole if s.processes > 1 else 0
    return [
        {"similarities": 4 * square, "embeddings": 2 * whole + gathered, "numbers": 2 * s.batch},
        {"similarities": square, "embeddings": 5 * whole + gathered},
    ]


def _clip(s: Size) -> list[Moment]:
    whole, own, pairs = s.batch * s.dim, s.own * s.dim, s.own * s.batch
    if s.processes == 1:
        # The logits; then, of rows and of columns, what the backward pass of a log-sum-exp makes.
        return [
            {"similarities": 5 * pairs, "embeddings": whole, "numbers": 3 * s.batch},
            {"similarities": pairs, "embeddings": 3 * whole},
        ]
    return [
        # Two matrices [b, B], and three of the first backward step.
        {"similarities": 5 * pairs, "embeddings": 2 * whole + 2 * own, "numbers": 6 * s.own},
        # Gathered embeddings, their gradients, and one matrix that is still there.
        {"similarities": pairs, "embeddings": 4 * whole + 2 * own},
    ]


def _clip_in_tiles(s: Size) -> list[Moment]:
    tile, whole = min(s.tile, s.batch), s.batch * s.dim
    if s.processes == 1:
        # Two tiles, used again and again; scaled embeddings and two gradients.
        return [
            {"similarities": 2 * tile * s.batch, "embeddings": 3 * whole, "numbers": 7 * s.batch}
        ]
    if s.own <= tile:
        return _clip(s)  # a single tile is held
    return [
        {
            "similarities": 4 * tile * s.batch,
            "embeddings": 4 * whole + tile * s.dim,
            "numbers": 4 * s.own,
        },
        {"similarities": 0, "embeddings": 6 * whole, "numbers": 4 * s.own},
    ]


def _siglip(s: Size) -> list[Moment]:
    # Four matrices; and which pairs belong together, a byte each.
    square, whole = s.batch**2, s.batch * s.dim
    gathered = 2 * whole if s.processes > 1 else 0
    return [
        {"similarities": 4.25 * square, "embeddings": whole + gathered},
        {"similarities": square, "embeddings": 3 * whole + gathered},
    ]


def _queue(s: Size) -> list[Moment]:
    # Logits, and what the backward pass of the log-sum-exp makes, whatever the others do.
    pairs, own = s.own * s.queue, s.own * s.dim
    return [
        {"similarities": 4 * pairs, "embeddings": own, "numbers": 3 * s.own},
        {"similarities": 0, "embeddings": 4 * own},
        {"similarities": 0, "embeddings": s.queue * s.dim},  # are all keys finite? Their sizes.
    ]


def _gmc_as_published(s: Size) -> list[Moment]:
    # Of each modality, four times [B, B]: exponentials, and what of them stands off the diagonal.
    m, square, whole = s.modalities, s.batch**2, s.batch * s.dim
    gathered = (m + 1) * whole if s.processes > 1 else 0
    return [
        {"similarities": (8 + 5 * m) * square, "embeddings": 2 * (m + 1) * whole + gathered},
        {"similarities": (5 * m - 1) * square, "embeddings": (2 * m + 6) * whole + gathered},
    ]


def _gmc(s: Size) -> list[Moment]:
    m, whole, pairs = s.modalities, s.batch * s.dim, s.own * s.batch
    if s.processes == 1:
        # One block at a time, and one more beside it in the backward pass.
        return [
            {
                "similarities": 2 * pairs,
                "embeddings": 2 * (m + 1) * whole,
                "numbers": (3 + 10 * m) * s.batch,
            },
            {"similarities": 0, "embeddings": (2 * m + 4) * whole},
        ]
    return [
        # 1 + 3 M blocks [b, B], which autograd holds, and three of the first backward step.
        {
            "similarities": (4 + 3 * m) * pairs,
            "embeddings": (m + 1) * whole,
            "numbers": (7 * m + 2) * s.own,
        },
        # Gathered embeddings and their gradients: beside most blocks, and later beside some.
        {"similarities": (2 + 3 * m) * pairs, "embeddings": (2 * m + 2) * whole},
        {"similarities": 3 * pairs, "embeddings": (2 * m + 3) * whole},
    ]


def _fdt_as_published(s: Size) -> list[Moment]:
    # All scores twice: before and after they are divided, and so for their gradients. The codebook
    # has one gradient as a key and one as a value.
    scores, book = s.own * s.patches * s.codebook, s.codebook * s.dim
    return [
        {"similarities": 2 * scores, "codebook": book},
        {"similarities": scores, "codebook": 2 * book},
    ]


def _fdt(s: Size, *, all_active: bool = False) -> list[Moment]:
    tokens, pairs = s.own * s.patches * s.dim, s.own * s.codebook
    book, chunk = s.codebook * s.dim, s.own * min(CHUNK, s.codebook)
    scoring: Moment = {
        # The scores of one chunk, their maximum and its place; and of each sample and token the
        # best score so far, and whose it is.
        "similarities": s.patches * chunk + 3 * chunk + 2 * pairs,
    }
    if all_active:
        # For each weight above 0, where it is, whose it is, and their order: as 8-byte integers.
        return [
            scoring,
            {"similarities": 20 * pairs, "codebook": book, "embeddings": s.own * s.dim},
            {"similarities": 18 * pairs, "codebook": book, "embeddings": tokens},
        ]
    return [
        scoring,
        {"similarities": 7 * pairs, "embeddings": s.own * s.dim},  # through the sparsemax
        {"similarities": 6 * pairs, "codebook": book, "embeddings": tokens},  # both gradients
    ]


def _fdt_all_active(s: Size) -> list[Moment]:
    return _fdt(s, all_active=True)


LOSSES: dict[str, Callable[[Size], list[Moment]]] = {
    "CLIP as published": _clip_as_published,
    "CLIP": _clip,
    "CLIP in tiles": _clip_in_tiles,
    "SigLIP": _siglip,
    "InfoNCE, queue": _queue,
    "GMC as published": _gmc_as_published,
    "GMC": _gmc,
    "FDT as published": _fdt_as_published,
    "FDT": _fdt,
    "FDT, all active": _fdt_all_active,
}


def exchanged(loss: str, size: Size, parameters: int) -> dict[str, float]:
    """Bytes of the tensors that the processes join or sum in a step: 0 for a single process.

    "embeddings" are gathered on the way forward, and "gradients of embeddings" summed on the way
    back; "gradients of parameters" are summed at the end. Of FDT's codebook, add C D to the
    parameters.

    Args:
        loss: one of `LOSSES`.
        size: B, D, and W.
        parameters: that are trained, in the encoders and all else.

    Raises:
        MMCLError: there is no such loss.
    """
    if loss not in LOSSES:
        raise MMCLError(f"there is no loss {loss!r}; there are {', '.join(LOSSES)}")
    several = float(size.processes > 1)
    # A queue gathers the keys, which have no gradient.
    tensors = {"GMC": size.modalities + 1, "GMC as published": size.modalities + 1}.get(loss, 2)
    whole = FLOAT * size.batch * size.dim * several
    queue = loss == "InfoNCE, queue"
    return {
        "embeddings": (1 if queue else tensors) * whole,
        "gradients of embeddings": 0.0 if queue else tensors * whole,
        "gradients of parameters": FLOAT * parameters * several,
    }


def received(exchange: Mapping[str, float], processes: int) -> float:
    """Bytes that reach each process, of what `exchanged` returns, when nothing is sent in vain.

    Of a gathered tensor, one has an own part already. A sum in a ring
    passes each part around twice: once to be summed, once to be told.
    """
    share = (processes - 1) / processes
    gathered = exchange["embeddings"]
    return share * (gathered + 2 * (sum(exchange.values()) - gathered))


# --- the same, measured ---------------------------------------------------------------------------


class _Meeting(torch.autograd.Function):
    """Own embeddings [b, D] -> those of all processes [B, D], the others being given numbers.

    Takes the memory of `distributed.gather`, without any other process.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, everyone: Tensor) -> Tensor:
        ctx.size = len(own)
        joined = everyone.clone()
        joined[: len(own)] = own
        return joined

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.clone(memory_format=torch.contiguous_format)[: ctx.size], None


class LossStep(nn.Module):
    """A loss alone, as a method whose parameters are embeddings: for `step_costs`."""

    def __init__(self, loss: Callable[..., Tensor], *values: Tensor) -> None:
        super().__init__()
        self.values = nn.ParameterList(values)
        self.function = loss

    def loss(self, batch: Any) -> dict[str, Tensor]:
        return {"total": self.function(*self.values)}


def step(loss: str, size: Size, seed: int = 0) -> LossStep:
    """The step of one process, ready for `step_costs`; the other processes are random numbers.

    Raises:
        MMCLError: there is no such loss.
    """
    if loss not in LOSSES:
        raise MMCLError(f"there is no loss {loss!r}; there are {', '.join(LOSSES)}")
    g = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, generator=g), dim=-1)

    if loss.startswith("FDT"):
        form = grounding_as_published if loss == "FDT as published" else grounding
        tokens = torch.randn(size.own, size.patches, size.dim, generator=g)
        codebook = torch.randn(size.codebook, size.dim, generator=g)
        temperature = 1e6 if loss == "FDT, all active" else 1.0
        return LossStep(lambda q, c: form(q, c, temperature).square().sum(), tokens, codebook)
    if loss == "InfoNCE, queue":
        queue = unit(size.queue, size.dim)
        own = [unit(size.own, size.dim) for _ in range(2)]
        return LossStep(lambda x, y: queue_info_nce(x, y, queue, 0.07), *own)
    count = size.modalities + 1 if loss.startswith("GMC") else 2
    rows = None if size.processes == 1 else slice(0, size.own)
    function = {
        "CLIP as published": lambda x, y: clip_as_published(x, y, 14.3),
        "CLIP": lambda x, y: clip_loss(x, y, 14.3, rows=rows),
        "CLIP in tiles": lambda x, y: clip_loss(x, y, 14.3, rows=rows, chunk_size=size.tile),
        "SigLIP": lambda x, y: siglip_loss(x, y, 10.0, -10.0),
        "GMC as published": lambda z, *m: gmc_as_published(m, z, 0.1),
        "GMC": lambda z, *m: gmc_loss(m, z, 0.1, rows=rows),
    }[loss]
    own = [unit(size.own, size.dim) for _ in range(count)]
    if size.processes == 1:
        return LossStep(function, *own)
    everyone = [unit(size.batch, size.dim) for _ in range(count)]

    def among_others(*embeddings: Tensor) -> Tensor:
        pairs = zip(embeddings, everyone, strict=True)
        return function(*(_Meeting.apply(e, others) for e, others in pairs))

    return LossStep(among_others, *own)


def measured(losses: Sequence[str], size: Size, *, rounds: int = 1) -> dict[str, StepCost]:
    """Memory and time of the step of each loss, forward and backward; see `step_costs`.

    Raises:
        MMCLError: there is no such loss, no loss, or no round.
    """
    return step_costs({loss: (step(loss, size), {}) for loss in losses}, rounds=rounds)
