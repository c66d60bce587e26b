"""Settings that are chosen apart, margins that are set beforehand, and what then holds."""

import json
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from mmcl_book import __main__ as program
from mmcl_book.experiments.protocol import Better, Trials
from mmcl_book.records import Record, RecordError, compare
from mmcl_book.records.comparing import chosen, margin
from mmcl_book.records.making import EXPERIMENTS, TRIAL_SEEDS, experiment, settings_of
from mmcl_book.records.reading import load_record
from tests import ROOT

WITH_TRIALS = [name for name in EXPERIMENTS if getattr(experiment(name), "TRIALS", None)]
WITH_CLAIMS = [name for name in EXPERIMENTS if getattr(experiment(name), "BETTER", None)]


def record_of(*, tried: dict[str, int] | None = None, **accuracy: list[float]) -> Record:
    """A record of one measure, its conditions by name."""
    made: dict[str, Any] = dict.fromkeys(
        ("date", "commit", "python", "mmcl_core", "torch", "numpy", "scikit-learn", "code"), "1"
    )
    return Record(
        experiment="fake",
        command="",
        made=made | {"machines": ["one"]},
        conditions={name: {} for name in accuracy},
        seeds=list(range(len(next(iter(accuracy.values()))))),
        results={
            name: {seed: {"accuracy": value} for seed, value in enumerate(values)}
            for name, values in accuracy.items()
        },
        seconds={name: {} for name in accuracy},
        tried=tried or {},
    )


def better(*rivals: str, by: float = 0.05) -> Better:
    return Better("new", rivals, "accuracy", by=by, says="new is better")


def test_the_best_rival_counts() -> None:
    record = record_of(new=[0.8, 0.82], old=[0.7, 0.71], poor=[0.1, 0.2])
    found = compare(record, better("poor", "old"))
    assert found.rival == "old"
    assert found.difference.mean == pytest.approx(0.105)
    assert found.ours == record.interval("new", "accuracy")


@pytest.mark.parametrize(
    ("new", "old", "by", "verdict"),
    [
        ([0.80, 0.81, 0.82], [0.70, 0.71, 0.72], 0.05, "holds"),
        ([0.80, 0.81, 0.82], [0.70, 0.71, 0.72], 0.11, "better, but by less"),
        ([0.30, 0.50, 0.70], [0.24, 0.44, 0.64], 0.05, "not shown"),  # the intervals meet
        ([0.70, 0.71, 0.72], [0.80, 0.81, 0.82], 0.00, "not shown"),
        ([0.50, 0.90, 0.70], [0.40, 0.41, 0.42], 0.25, "not shown"),  # wide
    ],
)
def test_when_a_claim_holds(new, old, by, verdict) -> None:
    found = compare(record_of(new=new, old=old), better("old", by=by))
    assert found.verdict == verdict
    assert found.holds == (verdict == "holds")


def trials(**accuracy: list[float]) -> Record:
    return record_of(**{name.replace("_", ": "): values for name, values in accuracy.items()})


TRIED = {
    "new": Trials("accuracy", {"a": {"lr": 1}, "b": {"lr": 2}}),
    "old": Trials("accuracy", {"a": {}, "b": {}}),
}


def test_the_setting_with_the_highest_mean_is_chosen_and_of_equal_ones_the_first() -> None:
    record = trials(new_a=[0.5, 0.6], new_b=[0.4, 0.9], old_a=[0.2, 0.4], old_b=[0.3, 0.3])
    assert chosen(TRIED, record) == {"new": "b", "old": "a"}


@pytest.mark.parametrize(("lead", "half"), [(0.20, 0.10), (0.139, 0.06), (0.01, 0.0)])
def test_the_margin_is_half_of_the_lead_rounded_down(lead, half) -> None:
    record = trials(new_a=[0.5 + lead] * 2, new_b=[0.0, 0.0], old_a=[0.5, 0.5], old_b=[0.9, 0.0])
    picked = {"new": "a", "old": "a"}
    assert margin(better("old"), picked, record) == half


def test_no_claim_without_a_lead_or_a_rival_in_the_trials() -> None:
    record = trials(new_a=[0.5, 0.5], old_a=[0.6, 0.6])
    with pytest.raises(RecordError, match=r"the lead in the trials is -0\.100"):
        margin(better("old"), {"new": "a", "old": "a"}, record)
    with pytest.raises(RecordError, match=r"\['other'\] were not in the trials"):
        margin(better("other"), {"new": "a", "old": "a"}, record)


def test_the_command_prints_each_claim_and_fails_where_one_does_not_hold(
    tmp_path, monkeypatch, capsys
) -> None:
    record = record_of(new=[0.80, 0.81, 0.82], old=[0.70, 0.71, 0.72])
    (tmp_path / "records").mkdir()
    (tmp_path / "records/fake.json").write_text(json.dumps(asdict(record)))
    monkeypatch.chdir(tmp_path)
    modules = {"fake": SimpleNamespace(BETTER=(better("old"),)), "other": SimpleNamespace()}
    monkeypatch.setattr(program, "experiment", modules.__getitem__)
    monkeypatch.setattr(program, "EXPERIMENTS", tuple(modules))
    assert program.main(["claims"]) == 0
    printed = capsys.readouterr().out
    assert "new is better" in printed
    assert "claimed ≥ 0.05" in printed
    assert "other" not in printed
    modules["fake"].BETTER = (better("old", by=0.2),)
    assert program.main(["claims", "fake"]) == 1
    assert "better, but by less" in capsys.readouterr().out
    (tmp_path / "records/fake.json").write_text("{}")
    assert program.main(["claims"]) == 2
    assert "expected the record of an experiment" in capsys.readouterr().err


# --- of the book ----------------------------------------------------------------------------------


def trials_of(name: str) -> Record:
    return load_record(ROOT / "book/records/trials" / f"{name}.json")


@pytest.mark.parametrize("name", WITH_TRIALS)
def test_conditions_have_the_settings_that_the_trials_chose(name: str) -> None:
    module, record = experiment(name), trials_of(name)
    assert record.conditions == settings_of(name)
    assert record.seeds == list(TRIAL_SEEDS)
    assert not record.missing()
    for method, setting in chosen(module.TRIALS, record).items():
        config = dict(module.TRIALS[method].settings[setting])
        asked = config.pop("asked")
        assert module.CONDITIONS[method] == config, f"{method}: {setting} was the best"
        assert asked in (555, "dev"), "what is asked in trials is no test"


@pytest.mark.parametrize("name", WITH_TRIALS)
def test_trials_have_seeds_that_no_record_has(name: str) -> None:
    seeds = getattr(experiment(name), "SEEDS", range(5))
    assert not set(TRIAL_SEEDS) & set(seeds)


@pytest.mark.parametrize("name", WITH_CLAIMS)
def test_margins_are_half_of_the_lead_in_the_trials(name: str) -> None:
    module, record = experiment(name), trials_of(name)
    picked = chosen(module.TRIALS, record)
    for claim in module.BETTER:
        assert claim.by == margin(claim, picked, record), claim.says
