"""Whether a method is better than the best simple rival, by a margin that was set beforehand.

The settings of all are chosen in trials: other scenes to measure on, other seeds (`chosen`). Half
of the lead in the trials is the margin that a claim has to keep in the record (`margin`).
"""

import math
from collections.abc import Mapping
from statistics import mean
from typing import NamedTuple

from mmcl_book.experiments.protocol import Better, Trials
from mmcl_book.records.reading import Interval, Record, RecordError, interval


class Comparison(NamedTuple):
    """A claim, and what the record says of it."""

    better: Better
    rival: str  # the best of the rivals in the record
    ours: Interval
    theirs: Interval
    difference: Interval  # over the seeds: ours - theirs of each
    seeds: int
    tried: tuple[int, int]  # settings of the method, and of the rival; 0 where there are none

    @property
    def apart(self) -> float:
        """How far the interval of the method lies above the rival's; negative if they meet."""
        return self.ours.low - self.theirs.high

    @property
    def holds(self) -> bool:
        """Whether the intervals lie apart, and the difference keeps its margin."""
        return self.apart > 0 and self.difference.low >= self.better.by

    @property
    def verdict(self) -> str:
        """In words; a method may be better, and by less than the trials had promised."""
        if self.holds:
            return "holds"
        return "better, but by less" if self.apart > 0 else "not shown"


def compare(record: Record, better: Better) -> Comparison:
    """What a record says of a claim.

    Raises:
        RecordError: the record has no such condition or measure.
    """
    measure = better.measure
    values = {name: record.values(name, measure) for name in (better.method, *better.rivals)}
    rival = max(better.rivals, key=lambda name: mean(values[name]))
    pairs = zip(values[better.method], values[rival], strict=True)
    return Comparison(
        better,
        rival,
        record.interval(better.method, measure),
        record.interval(rival, measure),
        interval([ours - theirs for ours, theirs in pairs]),
        len(record.seeds),
        (record.tried.get(better.method, 0), record.tried.get(rival, 0)),
    )


def chosen(tried: Mapping[str, Trials], record: Record) -> dict[str, str]:
    """The setting of each method with the highest mean; of equal ones the first.

    Args:
        tried: the `TRIALS` of the experiment.
        record: that of its trials.

    Raises:
        RecordError: the record lacks a setting or a measure.
    """
    return {
        method: max(
            of.settings, key=lambda name: mean(record.values(f"{method}: {name}", of.measure))
        )
        for method, of in tried.items()
    }


def margin(better: Better, picked: Mapping[str, str], record: Record) -> float:
    """Half of the lead of a method over its best rival in the trials, rounded down to 0.01.

    Args:
        better: the claim.
        picked: method -> its chosen setting, from `chosen`.
        record: that of the trials.

    Raises:
        RecordError: the method, or one of its rivals, was not in the trials, or does not lead.
    """
    if missing := {better.method, *better.rivals} - picked.keys():
        raise RecordError(f"{sorted(missing)} were not in the trials of {record.experiment}")
    means = {
        name: mean(record.values(f"{name}: {picked[name]}", better.measure))
        for name in (better.method, *better.rivals)
    }
    lead = means[better.method] - max(means[name] for name in better.rivals)
    if lead <= 0:
        raise RecordError(f"{better.says!r}: the lead in the trials is {lead:.3f}")
    return math.floor(50 * lead + 1e-9) / 100
