"""Pairs on a circle, which a reader drags, and what a contrastive loss does to them."""

from collections.abc import Sequence
from io import BytesIO

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmcl_book import figures
from mmcl_book.live.figure import Guess, Live, figure
from mmcl_core.errors import MMCLError, ShapeError, check_temperature
from mmcl_core.losses import clip_loss

TEMPERATURES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # those that the page offers


def circle(
    angles: Tensor,
    *,
    alt: str,
    moving: str,
    temperature: float = 0.2,
    guess: Guess | tuple[str, Sequence[str], str] | None = None,
) -> Live:
    """Images and sentences as points on a circle, pulled and pushed by InfoNCE in both directions.

    Args:
        angles: of images and sentences at the beginning, radians [2, B], B from 2 to 8.
        alt: what is seen at the beginning, for readers who do not see it.
        moving: what would be seen to change, for readers of a page that cannot move.
        temperature: at the beginning, one of `TEMPERATURES`.
        guess: a question, the answers to choose from, and what to do then.

    Raises:
        ShapeError: other shapes.
        MMCLError: another temperature, or a text is missing.
    """
    if angles.ndim != 2 or len(angles) != 2 or not 2 <= angles.shape[1] <= 8:
        raise ShapeError(f"expected angles [2, B], B from 2 to 8; got {list(angles.shape)}")
    if check_temperature(temperature) not in TEMPERATURES:
        raise MMCLError(f"temperature must be one of {TEMPERATURES}; got {temperature}")
    if not alt.strip() or not moving.strip():
        raise MMCLError(
            "alt and moving are for readers who cannot see or move the figure: say both"
        )
    angles = angles.double()
    loss, gradient = forces(angles, temperature)
    apart = torch.tensor([[0.0], [2.1]], dtype=torch.float64)
    about = {
        "view": "circle",
        "angles": angles.tolist(),
        "cones": (angles - angles.mean(dim=1, keepdim=True) + apart).tolist(),
        "temperature": temperature,
    }
    says = f"At temperature {temperature:g} the loss is {loss:.2f}."
    return figure(about, _still(angles, gradient), alt, says, moving, guess)


def forces(angles: Tensor, temperature: float) -> tuple[float, Tensor]:
    """The loss, and its gradient by each angle, by autograd: radians [2, B] -> [2, B]."""
    turned = angles.clone().requires_grad_()
    images, sentences = torch.stack([turned.cos(), turned.sin()], dim=-1)
    loss = clip_loss(images, sentences, 1 / temperature)
    (gradient,) = torch.autograd.grad(loss, turned)
    return float(loss.detach()), gradient


def _still(angles: Tensor, gradient: Tensor) -> Image.Image:
    import matplotlib.pyplot as plt

    points = torch.stack([angles.cos(), angles.sin()], dim=-1)  # [2, B, 2]
    along = torch.stack([-angles.sin(), angles.cos()], dim=-1)
    drive = -0.6 * (gradient / gradient.abs().max())[..., None] * along
    names = ("image", "sentence")
    drawn = figures.circles(
        {"": dict(zip(names, F.normalize(points, dim=-1).float(), strict=True))},
        arrows=dict(zip(names, drive.float(), strict=True)),
        title="",
        panel=3.6,
    )
    buffer = BytesIO()
    drawn.savefig(buffer, format="png", dpi=100, facecolor="white", bbox_inches="tight")
    plt.close(drawn)
    return Image.open(buffer)
