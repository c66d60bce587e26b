"""Plain gradient descent, to compare two ways of training step by step."""

from typing import Any

import torch


def steps(method: Any, batches: list[dict[str, torch.Tensor]]) -> list[float]:
    """Trains the query network of a MoCo, or of what is built like it; the losses on the way."""
    optimiser, told = torch.optim.SGD(method.query.parameters(), lr=0.1), []
    for batch in batches:
        loss = method.loss(batch)["total"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        method.after_step()
        told.append(loss.item())
    return told
