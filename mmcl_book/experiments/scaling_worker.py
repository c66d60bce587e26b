"""One of several processes that take a step together: `torchrun` starts it, `scaling` reads it.

`python -m torch.distributed.run --standalone --nproc-per-node 2 -m
mmcl_book.experiments.scaling_worker FILE` writes the measures of `measure` to FILE, from process 0.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_book.experiments.cost import step_costs
from mmcl_core.batches import Batch
from mmcl_core.distributed import (
    alone,
    average,
    average_gradients,
    gather,
    joined,
    own_rows,
    rank,
    world_size,
)
from mmcl_core.losses import clip_loss, gmc_loss

BATCH, FEATURES, DIM, ROUNDS = 1024, 128, 64, 3  # BATCH of all processes together
TILE, SMALL = 64, 4  # gradients are compared at a SMALL-th of the batch
CONE = 1.5  # what is added to all features, to put all embeddings into a cone
STEPS_TO_LEARN, RATES = 60, {"SGD": 0.3, "AdamW": 0.01}
Loss = Callable[[list[Tensor], Tensor], Tensor]


class Towers(nn.Module):
    """Three linear maps, of image, caption and the complete observation, and a learned scale."""

    def __init__(self, seed: int, loss: Loss) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.maps = nn.ParameterList(
            torch.randn(FEATURES, DIM, generator=g) / FEATURES**0.5 for _ in range(3)
        )
        self.log_scale = nn.Parameter(torch.tensor(0.07).log().neg())
        self.function = loss

    def loss(self, batch: Batch) -> Batch:
        pairs = zip(batch["features"], self.maps, strict=True)
        embeddings = [F.normalize(features @ m, dim=1) for features, m in pairs]
        return {"total": self.function(embeddings, self.log_scale.exp())}

    def after_step(self) -> None:
        average_gradients(self.parameters())


def features(seed: int, size: int, cone: float = 0.0) -> Batch:
    """[3, B, F]: the three sides of a sample share something; `cone` is shared by all samples."""
    g = torch.Generator().manual_seed(1000 + seed)
    shared = cone + torch.randn(1, size, FEATURES, generator=g)
    return {"features": shared + torch.randn(3, size, FEATURES, generator=g)}


def own_part(batch: Batch, size: int) -> Batch:
    """The samples of this process, among `size` of all."""
    rows = own_rows(size // world_size()) or slice(None)
    return {"features": batch["features"][:, rows].contiguous()}


# --- how the processes share a loss ---------------------------------------------------------------


def clip(e: list[Tensor], scale: Tensor, chunk_size: int | None = None) -> Tensor:
    """The library's way: gather with a gradient, own rows, gradients averaged."""
    rows = own_rows(len(e[0]))
    return clip_loss(gather(e[0]), gather(e[1]), scale, rows=rows, chunk_size=chunk_size)


def tiled_clip(e: list[Tensor], scale: Tensor) -> Tensor:
    return clip(e, scale, TILE)


def gmc(e: list[Tensor], scale: Tensor) -> Tensor:
    rows = own_rows(len(e[0]))
    image, caption, joint = map(gather, e)
    return gmc_loss([image, caption], joint, 1 / scale, rows=rows)


def gather_without_gradient(values: Tensor) -> Tensor:
    """The embeddings of the others as numbers; only one's own have a gradient."""
    everyone = gather(values.detach()).clone()
    everyone[own_rows(len(values)) or slice(None)] = values
    return everyone


def cut(e: list[Tensor], scale: Tensor) -> Tensor:
    """First mistake: own rows, but no gradient through the gather."""
    image, caption = map(gather_without_gradient, e[:2])
    return clip_loss(image, caption, scale, rows=own_rows(len(e[0])))


def twice(e: list[Tensor], scale: Tensor) -> Tensor:
    """Second mistake: the loss is divided by the processes, and gradients are averaged again."""
    return clip(e, scale) / world_size()


def whole(e: list[Tensor], scale: Tensor) -> Tensor:
    """Both at once, and common: each process computes the whole loss, own embeddings alone having
    a gradient; then the average over processes divides once too often.
    """
    image, caption = map(gather_without_gradient, e[:2])
    return clip_loss(image, caption, scale)


STEPS: dict[str, Loss] = {"CLIP": clip, "CLIP in tiles": tiled_clip, "GMC": gmc}
WAYS: dict[str, tuple[Loss, Loss]] = {  # name: what the processes do, what one does
    "CLIP": (clip, clip),
    "CLIP in tiles": (tiled_clip, clip),
    "GMC": (gmc, gmc),
    "cut": (cut, clip),
    "twice": (twice, clip),
    "whole": (whole, clip),
}


# --- measures -------------------------------------------------------------------------------------


def gradients(loss: Loss, seed: int, batch: Batch) -> tuple[Tensor, Tensor]:
    """Of all maps, as one vector; and of the logarithm of the scale."""
    towers = Towers(seed, loss).double()
    towers.loss({name: values.double() for name, values in batch.items()})["total"].backward()
    towers.after_step()
    found = [torch.zeros_like(m) if m.grad is None else m.grad for m in towers.maps]
    grad = towers.log_scale.grad
    return torch.cat([g.flatten() for g in found]), torch.zeros(1) if grad is None else grad


@contextlib.contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Counts the bytes of the tensors that the group joins ("gather") and sums ("reduce")."""
    bytes_of = {"gather": 0, "reduce": 0}
    group: Any = dist
    all_gather, all_reduce = group.all_gather, group.all_reduce

    def gathering(parts: list[Tensor], own: Tensor) -> Any:
        bytes_of["gather"] += sum(part.nbytes for part in parts)
        return all_gather(parts, own)

    def reducing(values: Tensor) -> Any:
        bytes_of["reduce"] += values.nbytes
        return all_reduce(values)

    group.all_gather, group.all_reduce = gathering, reducing
    try:
        yield bytes_of
    finally:
        group.all_gather, group.all_reduce = all_gather, all_reduce


def measure(seed: int, size: int = BATCH) -> dict[str, float]:
    """What a step takes, and how far its gradient is from that of one process.

    Of `STEPS`: "seconds, NAME" and "mebibytes, NAME" of a process, and the sizes of the tensors
    that are exchanged, "MiB gathered, NAME" and "MiB summed, NAME". Of `WAYS`, at a quarter of the
    batch and in float64, against one process on the joined batch: what `compared` returns, of
    embeddings that lie all around (NAME) and in a cone ("NAME, cone"). Of CLIP and the mistakes,
    "loss, NAME, OPTIMISER" after a short training.
    """
    found: dict[str, float] = {}
    methods = {
        name: (Towers(seed, loss), own_part(features(seed, size), size))
        for name, loss in STEPS.items()
    }
    for name, cost in step_costs(methods, rounds=ROUNDS).items():
        seconds, mebibytes = average(torch.tensor([cost.seconds, cost.mebibytes])).tolist()
        found |= {f"seconds, {name}": seconds, f"mebibytes, {name}": mebibytes}
    for name, (towers, batch) in methods.items():
        with counted() as bytes_of:
            towers.loss(batch)["total"].backward()
            towers.after_step()
        found[f"MiB gathered, {name}"] = bytes_of["gather"] / 2**20
        found[f"MiB summed, {name}"] = bytes_of["reduce"] / 2**20
    small = size // SMALL
    for suffix, cone in (("", 0.0), (", cone", CONE)):
        everyone = features(seed, small, cone)
        own = own_part(everyone, small)
        for name, (loss, reference) in WAYS.items():
            with alone():
                expected = gradients(reference, seed, everyone)
            found |= compared(f"{name}{suffix}", gradients(loss, seed, own), expected)
        for name in ("CLIP", "cut", "twice"):
            for optimiser in RATES:
                found[f"loss, {name}{suffix}, {optimiser}"] = learned(
                    WAYS[name][0], seed, small, optimiser, cone
                )
    return found


def compared(
    name: str, found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """Of gradients g, against g1 of one process: "error, NAME", `|g - g1| / |g1|`; "cosine, NAME";
    and "scale, NAME", the gradient of the logarithm of the scale as a multiple of the right one.
    """
    (maps, scale), (true_maps, true_scale) = found, expected
    return {
        f"error, {name}": float((maps - true_maps).norm() / true_maps.norm()),
        f"cosine, {name}": float(F.cosine_similarity(maps, true_maps, dim=0)),
        f"scale, {name}": float(scale.sum() / true_scale.sum()),
    }


def learned(loss: Loss, seed: int, size: int, optimiser: str, cone: float) -> float:
    """CLIP's loss of new samples after `STEPS_TO_LEARN` steps with new samples each."""
    towers = Towers(seed, loss)
    make = torch.optim.SGD if optimiser == "SGD" else torch.optim.AdamW
    steps = make(towers.parameters(), lr=RATES[optimiser])
    for step in range(STEPS_TO_LEARN):
        steps.zero_grad()
        seen = features(10_000 * (1 + seed) + step, size, cone)
        towers.loss(own_part(seen, size))["total"].backward()
        towers.after_step()
        steps.step()
    towers.function = clip
    with alone(), torch.no_grad():
        return float(towers.loss(features(seed, size, cone))["total"])


def main(path: str, seed: int, size: int) -> None:
    """Joins the others, measures, and lets process 0 write."""
    torch.set_num_threads(1)
    with joined():
        measured = measure(seed, size)
        if rank() == 0:
            Path(path).write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
