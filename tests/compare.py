"""What the tests of the losses share: embeddings, gradients, and a comparison of both."""

import torch
import torch.nn.functional as F
from torch import Tensor


def unit(size: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, width, generator=generator, dtype=torch.float64)
    return F.normalize(values, dim=1).to(dtype)


def pairs(
    size: int, width: int, seed: int, noise: float, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Images, and texts that lie near them, as after training; nearer with less noise."""
    x = unit(size, width, seed)
    y = F.normalize(x + noise * unit(size, width, seed + 1), dim=1)
    return x.to(dtype), y.to(dtype)


def value_and_gradients(loss, *inputs: Tensor) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def assert_same(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Each within `tolerance` of the largest element expected (or of 1e-30, when all are 0)."""
    for a, b in zip(got, expected, strict=True):
        assert a.isfinite().all()
        a, b = a.double(), b.double()
        assert float((a - b).abs().max()) <= tolerance * max(float(b.abs().max()), 1e-30)


def scalar(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=dtype)
