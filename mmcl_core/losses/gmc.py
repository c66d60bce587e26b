"""The loss of GMC: every modality of a sample is pulled to its complete observation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl_core.errors import MMCLError, ShapeError
from mmcl_core.losses.checks import (
    at_least_float32,
    check_named,
    check_rows,
    scalar,
    without_autocast,
)

Variant = Literal["ntxent", "paper", "joint_negatives"]
VARIANTS = ("ntxent", "paper", "joint_negatives")

# Of logits within +-40, exp neither overflows nor loses a sum in float32: no shift is needed.
_MILD = 40.0


def check_variant(variant: Variant) -> Variant:
    """The variant; raises MMCLError if there is none of that name."""
    if variant not in VARIANTS:
        raise MMCLError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}.")
    return variant


def gmc_loss(
    modalities: Mapping[Any, Tensor] | Sequence[Tensor],
    joint: Tensor,
    temperature: float | Tensor,
    *,
    variant: Variant = "ntxent",
    rows: slice | None = None,
) -> Tensor:
    """Each modality against the complete observation (Poklukar, Vasco et al., ICML 2022).

    With s_ij = x_i . y_j / T, the sum over the modalities m of

    - `"ntxent"`, the authors' code: SimCLR's NT-Xent between joint and m. Both are anchors, 2B in
      all; the negatives of an anchor are all other vectors of both. Mean over the anchors of
      `-log( e^{s(joint_i, m_i)} / sum over the 2B - 1 others )`.
    - `"paper"`, Eq. 2 as we understand it (not verified against the printed paper): one anchor a
      sample, `-log( e^{s(joint_i, m_i)} / sum_{j != i} [ e^{s(m_i, joint_j)} + e^{s(m_i, m_j)} +
      e^{s(joint_i, joint_j)} ] )`; without the positive below the line, so it can be negative.
    - `"joint_negatives"`, an option of the authors' code: below the line stands only
      `sum_{j != i} e^{s(joint_i, joint_j)}`; can be negative.

    Exact at every temperature: log-sum-exps throughout, where the authors' plain exponentials
    overflow (float32 at T = 0.011, float16 at 0.09).

    Speed. The block joint-joint is the same for every modality and computed once; one product of
    joint and modality serves both directions, its rows and its columns. One `[B, B]` block exists
    at a time, and the backward pass computes it again. There is no second derivative
    (`create_graph=True` raises an MMCLError), save with `rows` or "joint_negatives", whose blocks
    are autograd's.

    Args:
        modalities: one `[B, D]` for each modality, B at least 2, by name or in any order.
        joint: `[B, D]`, of the complete observations.
        temperature: T > 0, a number or a tensor of shape `[]`, which may require a gradient.
        variant: one of the three names above.
        rows: the samples whose terms are averaged; None is all. For several processes: each hands
            over the gathered batch and its own rows, and the mean of their losses is that of None.

    Returns:
        The loss in nats, a mean over anchors and a sum over modalities.

    Raises:
        ShapeError: no modality; shapes, types or devices that do not fit; B < 2; rows that are
            empty or outside of the batch.
        MMCLError: NaN, infinity or zero vectors among the embeddings; temperature not in (0, inf);
            an unknown variant.
    """
    if not isinstance(modalities, Mapping):
        modalities = dict(enumerate(modalities))
    if not modalities:
        raise ShapeError("expected the embeddings of at least one modality, got none.")
    check_variant(variant)
    named = {f"modalities[{name!r}]": values for name, values in modalities.items()}
    largest = check_named({"joint": joint, **named}, smallest=2)
    anchors = slice(*check_rows(rows, joint))
    with without_autocast(joint):
        # Half of the scale to each side, so that a block of one tensor stays symmetric.
        joint = at_least_float32(joint)
        root = scalar(
            "temperature", temperature, joint, positive=True, largest=largest, divides=True
        ).rsqrt()
        joint = joint * root  # [B, D]
        parts = [at_least_float32(values) * root for values in modalities.values()]
        positives = [(joint[anchors] * m[anchors]).sum(1) for m in parts]  # [anchors] each
        if variant == "joint_negatives":
            negatives = _log_sums(joint, joint, anchors)
            losses = [negatives - positive for positive in positives]
        else:
            joint_joint, blocks = _negatives(joint, parts, anchors)
            term = _paper if variant == "paper" else _ntxent
            losses = [
                term(positive, joint_joint, *block)
                for positive, block in zip(positives, blocks, strict=True)
            ]
        return torch.stack([loss.mean() for loss in losses]).sum()


def _ntxent(
    positive: Tensor, joint_joint: Tensor, own: Tensor, from_joint: Tensor, from_own: Tensor
) -> Tensor:
    # With p the positive logit and n the log-sum-exp of the negatives, log(e^p + e^n) - p =
    # -log sigmoid(p - n): exact also where it is tiny, as at the end of training.
    by_joint = F.logsigmoid(positive - torch.logaddexp(joint_joint, from_joint))
    by_own = F.logsigmoid(positive - torch.logaddexp(own, from_own))
    return -(by_joint + by_own) / 2


def _paper(
    positive: Tensor, joint_joint: Tensor, own: Tensor, from_joint: Tensor, from_own: Tensor
) -> Tensor:
    return torch.stack([from_own, own, joint_joint]).logsumexp(0) - positive


def _negatives(
    joint: Tensor, parts: list[Tensor], anchors: slice
) -> tuple[Tensor, Iterable[Sequence[Tensor]]]:
    """For each anchor i, `log sum_{j != i} e^{x_i . y_j}` between joint and joint; and, for each
    modality m, between m and m, joint and m, m and joint. `[anchors]` each.
    """
    if len(joint[anchors]) == len(joint):
        joint_joint, *rest = _BlockSums.apply(joint, *parts).unbind(0)
        return joint_joint, [rest[i : i + 3] for i in range(0, len(rest), 3)]
    return _log_sums(joint, joint, anchors), [
        [_log_sums(x, y, anchors) for x, y in ((m, m), (joint, m), (m, joint))] for m in parts
    ]


def _log_sums(x: Tensor, y: Tensor, anchors: slice) -> Tensor:
    """Of each anchor, `log sum_{j != i} e^{x_i . y_j}`. `[anchors]`."""
    logits = x[anchors] @ y.T
    logits.diagonal(anchors.start).fill_(-torch.inf)
    return logits.logsumexp(1)


class _BlockSums(torch.autograd.Function):
    """The log-sum-exps of all blocks without their diagonals, `[1 + 3 M, B]` for M modalities.

    Row 0: joint with joint. Then, for each modality m: m with m; joint with m (the rows of that
    block); m with joint (its columns).
    """

    @staticmethod
    def forward(ctx: Any, joint: Tensor, *parts: Tensor) -> Tensor:
        size = len(joint)
        # |x . y| is at most the larger of the two squared norms.
        largest = torch.stack([x.square().sum(1).max() for x in (joint, *parts)]).max()
        ctx.mild = float(largest) <= _MILD
        block = joint.new_empty(size, size)
        sums = joint.new_empty(1 + 3 * len(parts), size)

        def reduce(axis: int) -> Tensor:
            return block.sum(axis).log_() if ctx.mild else block.logsumexp(axis)

        def fill(x: Tensor, y: Tensor) -> None:
            _fill(block, x, y)
            if ctx.mild:
                block.exp_()

        fill(joint, joint)
        sums[0] = reduce(1)
        for k, m in enumerate(parts):
            fill(m, m)
            sums[1 + 3 * k] = reduce(1)
            fill(joint, m)
            sums[2 + 3 * k], sums[3 + 3 * k] = reduce(1), reduce(0)
        ctx.save_for_backward(sums, joint, *parts)
        return sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; see clip_loss
            raise MMCLError(
                "gmc_loss has no second derivative: backward() was called with create_graph=True."
            )
        sums, joint, *parts = ctx.saved_tensors
        block, work = joint.new_empty(2, len(joint), len(joint))

        scaled = grad * (-sums).exp() if ctx.mild else grad

        def weights(x: Tensor, y: Tensor, row: int, column: int) -> Tensor:
            """The gradient by the logits: softmax of the row plus softmax of the column."""
            _fill(block, x, y)
            if ctx.mild:
                torch.add(scaled[row][:, None], scaled[column], out=work)
                return work.mul_(block.exp_())
            # Never above 0, but for the rounding of a block that is not quite symmetric.
            torch.sub(block, sums[row][:, None], out=work).clamp_(max=0).exp_()
            work.mul_(grad[row][:, None])
            return work.addcmul_(block.sub_(sums[column]).clamp_(max=0).exp_(), grad[column])

        # Products in place: autocast leaves them alone, where the backward pass runs inside it.
        # Gradients as [D, B]: with the narrow side first, a CPU takes four fifths of the time.
        # A block of one tensor is symmetric: row plus column is what both of its sides get.
        grads = [x.new_zeros(x.shape[1], len(x)) for x in (joint, *parts)]
        grads[0].addmm_(joint.T, weights(joint, joint, 0, 0))
        for k, m in enumerate(parts):
            own, row, column = range(1 + 3 * k, 4 + 3 * k)
            grads[1 + k].addmm_(m.T, weights(m, m, own, own))
            weights(joint, m, row, column)
            grads[0].addmm_(m.T, work.T)
            grads[1 + k].addmm_(joint.T, work)
        return tuple(g.T for g in grads)


def _fill(block: Tensor, x: Tensor, y: Tensor) -> None:
    torch.mm(x, y.T, out=block)
    block.fill_diagonal_(-torch.inf)
