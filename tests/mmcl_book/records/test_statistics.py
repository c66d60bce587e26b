"""The intervals of a record, and the check of a live run: that it can fail, and fails seldom."""

from statistics import mean, stdev

import numpy as np
import pytest
from scipy import stats

from mmcl_book.records.making import EXPERIMENTS
from mmcl_book.records.reading import (
    FALSE_ALARMS,
    Record,
    RecordError,
    interval,
    is_share,
    read_record,
)
from mmcl_core.errors import MMCLError
from tests import ROOT

RECORDS = ROOT / "book" / "records"
# What lies in [0, 1] in a record of the book, and could be outside.
NO_SHARES = (
    "alignment", "caption active", "caption cone", "caption perplexity", "captions tied", "cosine",
    "drift", "error", "gap", "gradient", "image cone", "loss", "mebibytes", "MiB", "purity",
    "ratio", "scale", "seconds", "spread", "temperature", "tokens of",
)  # fmt: skip


def record_of(**conditions: dict[str, list[float]]) -> Record:
    """A record of these conditions: measure -> its values, one of each seed."""
    seeds = range(len(next(iter(next(iter(conditions.values())).values()))))
    results = {
        c: {seed: {m: values[seed] for m, values in of.items()} for seed in seeds}
        for c, of in conditions.items()
    }
    empty = {c: {} for c in conditions}
    return Record("x", "python -m x", {}, dict(empty), list(seeds), results, dict(empty))


def changed(record: Record, condition: str, measure: str, by: float) -> Record:
    """The record with another value of one measure in all seeds of a condition."""
    results = {c: {s: dict(v) for s, v in of.items()} for c, of in record.results.items()}
    for values in results[condition].values():
        values[measure] += by
    return Record(**vars(record) | {"results": results})


def without(record: Record, condition: str, seed: int) -> Record:
    """The record as if one run had not been made; its values stand under the seeds that are left.

    The other conditions keep all of theirs.
    """

    class Fewer(Record):
        def values(self, c: str, measure: str) -> list[float]:
            left = [s for s in self.seeds if (c, s) != (condition, seed)]
            return [self.results[c][s][measure] for s in left]

    return Fewer(**vars(record))


# --- intervals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "t"),
    [([1.0, 2.0, 4.5], 4.302653), ([0.2, -3.0, 4.0, 4.0, 7.5], 2.776445)],  # from a printed table
)
def test_interval_is_that_of_the_table(values, t) -> None:
    found = interval(values)
    half = t * stdev(values) / len(values) ** 0.5
    assert found == pytest.approx((mean(values), mean(values) - half, mean(values) + half))
    assert record_of(c={"gap": values}).interval("c", "gap") == found


def test_equal_values_have_no_width() -> None:
    for value in (0.1, 0.0, 1.0):
        assert interval([value] * 3) == interval([value] * 3, share=True) == (value,) * 3


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [1.0, 2.0, float("inf")]])
@pytest.mark.parametrize("share", [False, True])
def test_an_interval_needs_two_finite_values(values, share) -> None:
    with pytest.raises(MMCLError, match="at least 2 values, all finite"):
        interval(values, share=share)


@pytest.mark.parametrize("values", [[0.5, 1.1], [-0.1, 0.5]])
def test_shares_lie_in_0_to_1(values) -> None:
    with pytest.raises(MMCLError, match=r"shares lie in \[0, 1\]"):
        interval(values, share=True)


def test_the_interval_of_a_share_is_a_t_on_the_logit() -> None:
    """Rule 3 of the evidence: 0.95, 0.99, 0.90 went up to 1.06."""
    values = [0.95, 0.99, 0.9]
    assert interval(values).high > 1
    found = interval(values, share=True)
    assert record_of(c={"recall, unseen": values}).interval("c", "recall, unseen") == found
    p = np.mean(values)
    error = stats.sem(values) / (p * (1 - p))  # of the logit, by its slope
    ends = stats.t.interval(0.95, 2, np.log(p / (1 - p)), error)
    assert found == pytest.approx((p, *(1 / (1 + np.exp(-np.array(ends))))))


def test_intervals_of_shares_stay_within_and_hold_the_mean() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 10):
        for values in [*rng.beta(0.3, 0.05, (200, n)), *(rng.random((200, n)) < 0.5).astype(float)]:
            found = interval(values.tolist(), share=True)
            assert 0 <= found.low <= found.mean <= found.high <= 1


@pytest.mark.parametrize(("a", "b"), [(8, 2), (28.5, 1.5), (198, 2)])
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_of_shares_hold_what_they_say(a, b, seeds) -> None:
    """Of seeds whose shares differ, as recalls do, near 1 as well; cut at 1, fewer hold it."""
    drawn = np.random.default_rng(1).beta(a, b, (1500, seeds))
    found = [interval(row.tolist(), share=True) for row in drawn]
    assert np.mean([low <= a / (a + b) <= high for _, low, high in found]) > 0.925


def test_the_interval_of_several_measures_is_of_their_mean() -> None:
    record = record_of(
        c={"recall": [0.2, 0.4, 0.3], "bags": [0.5, 0.7, 0.5], "gap": [1.0, 2.0, 1.5]}
    )
    assert record.interval("c", "recall", "bags") == interval([0.35, 0.55, 0.4], share=True)
    assert record.interval("c", "recall", "gap") == interval([0.6, 1.2, 0.9])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_measure_of_the_book_is_known_to_be_a_share_or_none(name) -> None:
    """A name that is in neither list: add it to `SHARES`, or to `NO_SHARES` above."""
    record = read_record(name, RECORDS)
    values: dict[str, list[float]] = {}
    for condition in record.conditions:
        for measure in record.measures(condition):
            values.setdefault(measure, []).extend(record.values(condition, measure))
    for measure, of in values.items():
        within = all(0 <= value <= 1 for value in of)
        assert within or not is_share(measure), measure
        assert not (is_share(measure) and measure.startswith(NO_SHARES)), measure
        assert not within or is_share(measure) or measure.startswith(NO_SHARES), measure


# --- the live check -------------------------------------------------------------------------------


def test_the_deviation_is_pooled_over_the_conditions() -> None:
    record = record_of(
        a={"gap": [1.0, 2.0, 3.0], "loss": [5.0, 5.0, 6.0]},
        b={"gap": [7.0, 7.0, 7.3]},
        c={"gap": [0.0, 4.0, 5.0]},
    )
    pooled = ((2 * 1.0 + 2 * 0.03 + 2 * 7.0) / 6) ** 0.5  # by hand, 6 degrees of freedom
    half = 5.958816 * pooled * (4 / 3) ** 0.5 + 0.01  # t of 6 degrees, 0.9995, from a table
    assert record.next_run("b", "gap") == pytest.approx((7.1, 7.1 - half, 7.1 + half), abs=1e-4)
    alone = record.next_run("a", "loss")  # in one condition only: as before
    assert alone.high == pytest.approx(16 / 3 + 31.599 * 3**-0.5 * (4 / 3) ** 0.5 + 0.01, abs=1e-3)


def test_what_is_recorded_is_accepted() -> None:
    """However much wilder a condition is than the others: its own machine gets these values."""
    calm = {f"calm {i}": {"recall": [0.5, 0.5, 0.5]} for i in range(20)}
    record = record_of(wild={"recall": [0.0, 0.9, 0.0]}, **calm)
    found = record.next_run("wild", "recall")
    assert (found.low, found.high) == pytest.approx((0, 0.91), abs=1e-3)
    for value in (0.0, 0.9):
        record.check_live("wild", {"recall": value})


def test_the_range_of_a_share_ends_at_0_and_1() -> None:
    record = record_of(c={"recall": [0.2, 0.9, 0.6], "gap": [0.2, 0.9, 0.6]})
    assert record.next_run("c", "recall")[1:] == (0, 1)
    assert record.next_run("c", "gap").low < -1


def test_a_live_value_must_fit() -> None:
    seeds = {"m": [1.0, 2.0, 3.0, 4.0, 5.0], "same": [0.5] * 5, "large": [1e6] * 5}
    record = record_of(c=seeds)
    # t of 4 degrees at 1 - 0.01 / 3 is 6.2541; by the deviation 1.581139 and 1.095445: 10.83
    t = stats.t.ppf(1 - FALSE_ALARMS / 6, 4)
    end = 3 + t * 2.5**0.5 * 1.2**0.5 + 0.01
    record.check_live("c", {"m": end - 0.01, "same": 0.509, "large": 1e6 + 9})
    record.check_live("c", {"m": 99.0, "same": 0.491, "other": 1.0}, names=["same"])
    wrong = {"m": end + 0.01, "same": 0.52, "large": 1e6}
    with pytest.raises(RecordError, match=rf"m {end + 0.01:.6g}, not in .*; same 0\.52, not") as e:
        record.check_live("c", wrong)
    assert record.again in str(e.value)
    assert "make records" in str(e.value)
    assert "large" not in str(e.value)
    for value in (float("nan"), float("inf")):
        with pytest.raises(RecordError, match="disagrees"):
            record.check_live("c", {"m": value})
    with pytest.raises(RecordError, match="no measure 'other'; it has 'm', 'same', 'large'"):
        record.check_live("c", {"other": 1.0})
    with pytest.raises(RecordError, match="live run has no measure 'm'"):
        record.check_live("c", {"same": 0.5}, names=["m"])


def test_a_call_shares_its_false_alarms_among_its_measures() -> None:
    """Of runs as good as a further seed, 1 in 100 calls fails, of one measure and of twenty."""
    rng = np.random.default_rng(2)
    for count, calls in ((1, 1500), (20, 400)):
        failed = 0
        for _ in range(calls):
            drawn = rng.normal(0, 10, (4, count, 4))  # conditions, measures, seeds
            record = record_of(
                **{
                    f"c{i}": {str(m): of[m, :3].tolist() for m in range(count)}
                    for i, of in enumerate(drawn)
                }
            )
            try:
                record.check_live("c0", {str(m): drawn[0, m, 3] for m in range(count)})
            except RecordError:
                failed += 1
        assert failed / calls <= 2 * FALSE_ALARMS


@pytest.mark.parametrize(
    ("name", "condition", "measure"),
    [
        ("gmc", "GMC", "accuracy, image"), ("mct", "CLIP", "recall"),
        ("moco", "a queue", "recall"), ("comparison", "CLIP", "recall"),
        ("gap", "learned 0.07", "recall"), ("fdt", "FDT sparse", "recall"),
    ],
)  # fmt: skip
def test_records_shifted_by_0_3_are_noticed(name, condition, measure) -> None:
    record = read_record(name, RECORDS)
    by = 0.3 if mean(record.values(condition, measure)) < 0.6 else -0.3
    live = {measure: record.results[condition][record.seeds[0]][measure]}
    record.check_live(condition, live)
    with pytest.raises(RecordError, match=f"{measure}.* not in"):
        changed(record, condition, measure, by).check_live(condition, live)


STEADY = ["shape after", "size after", "position after"]
# What the pages check of live runs; no name: all.
LIVE: list[tuple[str, str, list[str]]] = [
    ("gap", "learned 0.07", []), ("granularity", "detail 1", STEADY),
    ("granularity", "detail 4", STEADY),
    ("structure", "trained", [
        "recall, pooled", "recall, words", "recall, phrases",
        "bags, pooled", "bags, words", "bags, phrases",
    ]),
    ("missing", "fusion", [
        "accuracy, image", "accuracy, caption", "accuracy, tags", "accuracy, image + caption",
        "accuracy, image + tags", "accuracy, caption + tags", "accuracy, image + caption + tags",
    ]),
    ("moco", "a queue", ["recall"]),
    ("mct", "MCT, tags", ["shape", "colour", "recall"]), ("fdt", "FDT sparse", ["recall"]),
    ("gmc", "GMC", ["found, image", "accuracy, image, 5 labels"]), ("comparison", "CLIP", []),
    ("alternatives", "MMVAE", ["colour drawn, caption", "colour told, image", "error, image"]),
]  # fmt: skip


def test_a_seed_that_is_left_out_is_seldom_refused() -> None:
    """Another machine, at its worst: each recorded seed is checked against the other ones."""
    refused, calls = [], 0
    for name, condition, names in LIVE:
        record = read_record(name, RECORDS)
        for seed, live in record.results[condition].items():
            record.check_live(condition, live, names=names or None)  # its own machine
            calls += 1
            try:
                without(record, condition, seed).check_live(condition, live, names=names or None)
            except RecordError as error:
                refused.append(str(error))
    assert len(refused) <= 0.05 * calls, refused
