"""A batch is a dict of tensors by modality; a missing modality is a missing key."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from mmcl_core.errors import MissingModalityError, ShapeError


def require(batch: Mapping[str, Tensor], who: str, *names: str) -> None:
    """Checks that a batch holds all of these, and one number of samples, at least one.

    Args:
        batch: name to `[B, ...]`.
        who: how the message begins: "CLIP trains on".
        names: the keys that are needed.

    Raises:
        MissingModalityError: some are not there.
        ShapeError: they hold different numbers of samples, or none.
    """
    if absent := [name for name in names if name not in batch]:
        raise MissingModalityError(
            f"{who} {' and '.join(names)}; {' and '.join(absent)} not in the batch, which holds "
            f"{sorted(batch)}"
        )
    sizes = {name: len(batch[name]) for name in names}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ShapeError(f"expected one number of samples, at least one, in all; got {sizes}")


def at_hand(batch: Mapping[str, Tensor], who: str, names: Sequence[str]) -> list[str]:
    """Those of the names that a batch holds, at least one.

    Args:
        batch: name to `[B, ...]`.
        who: how the message begins: "CLIP embeds".
        names: the modalities that can be used.

    Raises:
        MissingModalityError: none of them is there.
        ShapeError: they hold different numbers of samples, or none.
    """
    present = [name for name in names if name in batch]
    if not present:
        raise MissingModalityError(
            f"{who} {', '.join(names)}, or some of them; the batch holds {sorted(batch)}"
        )
    require(batch, who, *present)
    return present
