"""What an experiment says of itself, beside its `CONDITIONS` and `run`; see `records/making.py`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trials:
    """The settings of one method that were tried, on scenes that no record is measured on.

    Attributes:
        measure: what they are compared by; more is better.
        settings: the name of each, and its keyword arguments of `run`.
    """

    measure: str
    settings: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Better:
    """A claim that a method is better than the best simple rival, made before the record.

    Attributes:
        method: a condition of the record; likewise each of `rivals`, of which the one with the
            highest mean in the record counts.
        rivals: the simple ones.
        measure: what they are compared by; more is better.
        by: the margin that the lower end of the difference has to keep: half of the lead in the
            trials, rounded down to two decimals.
        says: the claim, one sentence.
    """

    method: str
    rivals: tuple[str, ...]
    measure: str
    by: float
    says: str
