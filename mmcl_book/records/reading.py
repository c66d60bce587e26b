"""Results of an experiment over many seeds, and what they were made with: `book/records/*.json`.

A page reads numbers from a record, and checks that its own live run agrees with it:

    record = read_record("gap")
    record.interval("temperature 0.07", "gap")  # mean and 95 % confidence interval
    record.check_live("temperature 0.07", gap.run(0, **record.conditions["temperature 0.07"]))

`python -m mmcl_book record` makes records (`making.py`).
"""

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from statistics import mean, stdev, variance
from typing import Any, NamedTuple
from urllib.request import urlopen

from scipy.special import stdtrit

from mmcl_core.errors import MMCLError
from mmcl_core.files import write_whole

# How far a live value may lie from the recorded ones whatever their spread: an accuracy that was
# the same in all seeds may still differ by some pictures on another machine.
ALWAYS_ALLOWED = 0.01
FALSE_ALARMS = 0.01  # of the calls of `check_live` whose run is as good as a further seed

# The measures that are shares, by how their names begin; all others may be any number.
SHARES = re.compile(
    r"(accuracy|agreement|bags|calibration error|calls on background|caption_to_image|chance|colour"
    r"|confidence|found|image_to_caption|named|paraphrase|pointing|position|precision|probe|recall"
    r"|same tags|shape"
    r"|shared|size|texture|told|tokens in common|two tags|weight|without|\w+ alone @)\b"
)


class RecordError(MMCLError):
    """A record of many runs is missing, broken or stale, or has no such condition or measure."""


class Interval(NamedTuple):
    """A mean, and the interval around it."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], *, share: bool = False) -> Interval:
    """The mean and its 95 % confidence interval, by Student's t with n - 1 degrees of freedom.

    Args:
        values: at least two, of one seed each.
        share: they lie in [0, 1], and so does the interval: t is laid around the logit of the mean,
            and the ends are brought back. That keeps its 95 % near 0 and 1 too, better than an
            interval that is cut there; a bootstrap of three seeds would hold 75 %.

    Raises:
        MMCLError: there are fewer than two values, or one is not finite, or not a share.
    """
    _check(values, share)
    centre = mean(values)
    half = _quantile(len(values) - 1, 0.95) * stdev(values) / math.sqrt(len(values))
    if not share or half == 0:
        return Interval(centre, centre - half, centre + half)
    odds, half = centre / (1 - centre), half / (centre * (1 - centre))
    return Interval(centre, *(1 / (1 + math.exp(-z) / odds) for z in (-half, half)))


def is_share(measure: str) -> bool:
    """Whether a measure is a share of something, in [0, 1], by its name."""
    return SHARES.match(measure) is not None


def _check(values: Sequence[float], share: bool) -> None:
    if len(values) < 2 or not all(map(math.isfinite, values)):
        raise MMCLError(f"an interval needs at least 2 values, all finite; got {list(values)}")
    if share and not all(0 <= value <= 1 for value in values):
        raise MMCLError(f"shares lie in [0, 1]; got {list(values)}")


def _quantile(degrees: int, level: float) -> float:
    """Of Student's t: so many standard errors to both sides hold that share of it."""
    return float(stdtrit(degrees, (1 + level) / 2))


@dataclass(frozen=True, repr=False)
class Record:
    """What an experiment gave, for each of its conditions and each seed."""

    experiment: str
    command: str  # by which it was made, with the names of that day
    made: dict[str, Any]  # date, commit, python, versions, machines, code (a fingerprint)
    conditions: dict[str, dict[str, Any]]  # name: configuration
    seeds: list[int]
    results: dict[str, dict[int, dict[str, float]]]  # condition: seed: measure: value
    seconds: dict[str, dict[int, float]]  # condition: seed: of that run
    tried: dict[str, int] = field(default_factory=dict)  # method: settings it was chosen from
    weights: list[str] = field(default_factory=list)  # conditions whose model is kept, too

    @property
    def again(self) -> str:
        """The command that makes such a record today: what a reader can type."""
        seeds = " ".join(map(str, self.seeds))
        return f"python -m mmcl_book record {self.experiment} --seeds {seeds}"

    def measures(self, condition: str) -> list[str]:
        """The names of what was measured.

        Raises:
            RecordError: there is no such condition.
        """
        if condition not in self.conditions:
            raise RecordError(
                f"the record of {self.experiment} has no condition {condition!r}; it has "
                f"{', '.join(map(repr, self.conditions))}"
            )
        return list(self.results[condition][self.seeds[0]])

    def values(self, condition: str, measure: str) -> list[float]:
        """What was measured, in the order of the seeds.

        Raises:
            RecordError: there is no such condition or measure.
        """
        if measure not in (known := self.measures(condition)):
            raise RecordError(
                f"the record of {self.experiment}, {condition}, has no measure {measure!r}; it has "
                f"{', '.join(map(repr, known))}"
            )
        return [self.results[condition][seed][measure] for seed in self.seeds]

    def interval(self, condition: str, *measures: str) -> Interval:
        """The mean over the seeds, and its 95 % confidence interval; see `interval`.

        Of several measures, that of their mean.

        Raises:
            RecordError: there is no such condition or measure.
            MMCLError: there is one seed only.
        """
        columns = [self.values(condition, measure) for measure in measures]
        means = [mean(row) for row in zip(*columns, strict=True)]
        return interval(means, share=all(map(is_share, measures)))

    def next_run(self, condition: str, measure: str, level: float = 0.999) -> Interval:
        """The mean over the seeds, and the range in which one more run of a condition is accepted.

        A further run lies within t s sqrt(1 + 1/n) of the mean of n seeds. The deviation s is
        pooled over all conditions of the record: from three seeds alone it would be so uncertain
        that t is 31.6, and any recall would do. Also accepted is what has been recorded, however
        far apart the seeds of this condition lie, and `ALWAYS_ALLOWED` to both sides. The range of
        a share ends at 0 and 1.

        Where some conditions fall over with some seeds and others never, the pooled deviation is
        too small for the first: no page should train such a condition live.

        Args:
            condition: that of the run.
            measure: its name.
            level: the probability with which a further run is accepted.

        Raises:
            RecordError: there is no such condition or measure.
            MMCLError: there is one seed only.
        """
        values = self.values(condition, measure)
        _check(values, is_share(measure))
        groups = [self.values(c, measure) for c in self.conditions if measure in self.measures(c)]
        degrees = sum(len(group) - 1 for group in groups)
        pooled = sum((len(group) - 1) * variance(group) for group in groups) / degrees
        half = _quantile(degrees, level) * math.sqrt(pooled * (1 + 1 / len(values)))
        centre = mean(values)
        more = ALWAYS_ALLOWED + 1e-5 * abs(centre)  # records have six digits
        low, high = min(centre - half, *values) - more, max(centre + half, *values) + more
        if is_share(measure):
            low, high = max(low, 0.0), min(high, 1.0)
        return Interval(centre, low, high)

    def check_live(
        self,
        condition: str,
        measured: Mapping[str, float],
        *,
        names: Sequence[str] | None = None,
    ) -> None:
        """Checks that one more run agrees with the recorded ones.

        On the machine of the record the live run is one of the recorded ones, and always passes. On
        another one, with other rounding, it is at worst as good as a further seed: then about one
        call in 100 is a false alarm, however many measures it checks (`FALSE_ALARMS`, shared among
        them: each of ten must lie where a further run does with a probability of 99.9 %, each of
        fifty with 99.98 %). Rounding moves most measures by less than a seed does.

        Args:
            condition: that of the live run.
            measured: what the live run returned.
            names: the measures to check; None checks all in `measured`.

        Raises:
            RecordError: a value lies outside; or the record has no such condition or measure.
        """
        names = list(measured if names is None else names)
        outside = []
        for name in names:
            if name not in measured:
                raise RecordError(f"the live run has no measure {name!r}; it has {list(measured)}")
            of = self.next_run(condition, name, 1 - FALSE_ALARMS / len(names))
            if not of.low <= measured[name] <= of.high:
                outside.append(f"{name} {measured[name]:.6g}, not in {of.low:.6g} to {of.high:.6g}")
        if outside:
            raise RecordError(
                f"{self.experiment}, {condition}: the live run disagrees with the record in "
                f"{'; '.join(outside)}. The record is stale, or this machine computes something "
                f"else: `make records`, or {self.again}"
            )

    def missing(self) -> list[tuple[str, int]]:
        """The runs that are not there, as condition and seed; all of the first seed come first."""
        return [(c, s) for s in self.seeds for c in self.conditions if s not in self.results[c]]

    def provenance(self) -> dict[str, str]:
        """Where the numbers come from, in words."""
        seconds = [value for of in self.seconds.values() for value in of.values()]
        versions = ("python", "mmcl_core", "torch", "numpy", "scikit-learn")
        return {
            "command": self.again,
            "seeds": ", ".join(map(str, self.seeds)),
            "runs": f"{len(seconds)}, of {len(self.conditions)} conditions; "
            f"{sum(seconds) / 60:.1f} minutes in all",
            **({"settings": self._settings} if self.tried else {}),
            "date": self.made["date"],
            **{name: self.made[name] for name in ("commit", "confirmed") if name in self.made},
            "versions": ", ".join(f"{name} {self.made[name]}" for name in versions),
            "machine": "; ".join(self.made["machines"]),
        }

    @property
    def _settings(self) -> str:
        tried = ", ".join(f"{count} ({method})" for method, count in self.tried.items())
        return f"chosen on scenes of their own, among {tried}"

    def __repr__(self) -> str:
        lines = (f"  {name:9}{value}" for name, value in self.provenance().items())
        return "\n".join([f"Record of {self.experiment}", *lines])

    def _repr_html_(self) -> str:
        rows = (
            f'<tr><th scope="row">{name}</th><td>{html.escape(value)}</td></tr>'
            for name, value in self.provenance().items()
        )
        return f'<table class="record">{"".join(rows)}</table>'


def read_record(name: str, start: Path | None = None) -> Record:
    """Finds a record by its name, and reads it.

    Args:
        name: of the file, without `.json`.
        start: where to look for `records/` and `book/records/`: there and in each folder above;
            None is the working directory.

    Raises:
        RecordError: there is none, or it cannot be used.
    """
    path = find_record(name, start)
    if path is None:
        raise RecordError(
            f"found no records/{name}.json and no book/records/{name}.json in "
            f"{start or Path.cwd()} or a folder above it; `make records` makes those of the book"
        )
    record = load_record(path)
    if missing := record.missing():
        raise RecordError(f"{path}: without {missing[0]} and so on; run `make records`")
    return record


def fetch_record(name: str, url: str) -> None:
    """Downloads a record to `records/`, whole or not at all, unless `read_record` finds it already.

    For a notebook that is alone, as in Colab.

    Raises:
        RecordError: it cannot be had from there, or is something else.
    """
    if find_record(name):
        return
    path = Path("records", f"{name}.json")
    try:
        text = download(url, path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"{url}: cannot be fetched ({error}); put it into {path}") from error
    _parse(text, url)
    write_whole(path, text)


def download(url: str, path: Path) -> bytes:
    """What stands at an address.

    Raises:
        RecordError: it cannot be had; says that it may be put into `path` by hand.
    """
    try:
        with urlopen(url, timeout=60) as answer:
            return bytes(answer.read())
    except (OSError, HTTPException) as error:
        raise RecordError(f"{url}: cannot be fetched ({error}); put it into {path}") from error


def load_record(path: Path) -> Record:
    """Reads a record from a file; some runs may be missing.

    Raises:
        RecordError: the file holds something else.
    """
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: expected text, found something else ({error})") from error


def find_record(name: str, start: Path | None = None) -> Path | None:
    """Where the record is: as `read_record` looks for it; None if nowhere."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        for path in (folder / "records" / f"{name}.json", folder / "book/records" / f"{name}.json"):
            if path.is_file():
                return path
    return None


def _parse(text: str, source: str) -> Record:
    try:
        record = Record(**json.loads(text))
        for condition in record.conditions:  # the keys of JSON are strings
            of, seconds = record.results[condition], record.seconds[condition]
            record.results[condition] = {int(seed): value for seed, value in of.items()}
            record.seconds[condition] = {int(seed): value for seed, value in seconds.items()}
        record.provenance()  # has what a page shows
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{source}: expected the record of an experiment, found something else ({error}). "
            "Remove it, and run `make records`"
        ) from error
    return record
