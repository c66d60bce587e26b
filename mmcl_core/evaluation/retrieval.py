"""Retrieval: is the right caption among the nearest?

It is ours: torchmetrics breaks ties by the order of the keys, and knows no captions that mean the
same.
"""

import math
from collections.abc import Iterable, Sequence
from typing import overload

import torch
from torch import Tensor

from mmcl_core.errors import MMCLError, ShapeError, check_count
from mmcl_core.evaluation.checks import BLOCK, as_unit, described

# Cosines nearer than this are ties: float32 products of the same two rows differ by as much.
TIE = 1e-6


@overload
def recall_at_k(
    queries: Tensor,
    keys: Tensor,
    k: int = 1,
    *,
    groups: Tensor | tuple[Tensor, Tensor] | None = ...,
) -> float: ...
@overload
def recall_at_k(
    queries: Tensor,
    keys: Tensor,
    k: Sequence[int],
    *,
    groups: Tensor | tuple[Tensor, Tensor] | None = ...,
) -> dict[int, float]: ...
def recall_at_k(
    queries: Tensor,
    keys: Tensor,
    k: int | Sequence[int] = 1,
    *,
    groups: Tensor | tuple[Tensor, Tensor] | None = None,
) -> float | dict[int, float]:
    """Share of the queries that have a correct key among their k nearest, in [0, 1].

    A query's rank is the number of wrong keys that score at least as high as its best correct key;
    it is found when the rank is below k. So a tie counts against the model: embeddings that are
    all equal have a recall of 0, not of 1. Cosines within 1e-6 of each other are ties.

    Args:
        queries: [N, D].
        keys: [M, D].
        k: one number gives a float; several give a dict. Each from 1 to M.
        groups: which keys are correct. None: the key of the same index (N = M). int64 [N]: every
            key of the same group (N = M), as `caption_groups` numbers them, so that an identical
            caption is correct. A pair (int64 [N], int64 [M]): the groups of queries and of keys.

    Raises:
        ShapeError: shapes that do not fit, empty, not finite, or a zero vector.
        MMCLError: k outside 1 to M, or a query without any correct key.
    """
    q, key = as_unit(queries, "queries"), as_unit(keys, "keys")
    if q.shape[1] != key.shape[1] or q.device != key.device or q.dtype != key.dtype:
        raise ShapeError(
            "expected queries [N, D] and keys [M, D] of one width, type and device; got "
            f"{described(queries)} and {described(keys)}"
        )
    ks = [check_count("k", each) for each in (k if isinstance(k, Iterable) else [k])]
    if not ks or max(ks) > len(key):
        raise MMCLError(f"k must be from 1 to the number of keys, {len(key)}; got {k}")
    query_groups, key_groups = _group_pair(groups, len(q), len(key), q.device)
    lost = ~torch.isin(query_groups, key_groups)
    if lost.any():
        raise MMCLError(
            f"expected a correct key for every query; {int(lost.sum())} of {len(q)} have none, "
            f"the first is query {int(lost.nonzero()[0])}"
        )
    size = max(1, BLOCK // len(key))
    ranks = []
    for i in range(0, len(q), size):
        scores = q[i : i + size] @ key.T
        correct = query_groups[i : i + size, None] == key_groups
        best = scores.masked_fill(~correct, -math.inf).amax(1, keepdim=True)
        ranks.append(((scores >= best - TIE) & ~correct).sum(1))
    rank = torch.cat(ranks)
    recalls = {each: (rank < each).double().mean().item() for each in ks}
    return recalls if isinstance(k, Iterable) else recalls[ks[0]]


def _group_pair(
    groups: Tensor | tuple[Tensor, Tensor] | None, n: int, m: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    if groups is None or isinstance(groups, Tensor):
        if n != m:
            raise ShapeError(
                f"expected as many keys as queries, {n}; got {m}; where they differ, pass "
                "groups=(query_groups, key_groups)"
            )
        one = torch.arange(n) if groups is None else groups
        pair = (one, one)
    else:
        pair = groups
    for name, group, size in (("query", pair[0], n), ("key", pair[1], m)):
        if not isinstance(group, Tensor) or group.shape != (size,) or group.is_floating_point():
            found = described(group) if isinstance(group, Tensor) else type(group).__name__
            raise ShapeError(f"expected {name} groups as integers [{size}]; got {found}")
    return pair[0].to(device), pair[1].to(device)
