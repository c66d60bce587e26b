"""Claims: a result that breaks its bound stops the page."""

import pytest

from mmcl_book.claims import (
    Claim,
    ClaimFailedError,
    ClaimTable,
    better_claims,
    better_table,
    check_claims,
)
from mmcl_book.experiments.protocol import Better
from mmcl_core.errors import MMCLError
from tests.mmcl_book.records.test_comparing import record_of


def test_holds_at_the_bound_and_on_the_right_side_of_it() -> None:
    assert Claim("a", "m", 0.8, at_least=0.8).holds
    assert not Claim("a", "m", 0.79, at_least=0.8).holds
    assert Claim("a", "m", 0.8, at_most=0.8).holds
    assert not Claim("a", "m", 0.81, at_most=0.8).holds
    assert not Claim("a", "m", float("nan"), at_least=0.8).holds
    assert not Claim("a", "m", float("nan"), at_most=0.8).holds


def test_a_failing_claim_is_shown_then_raised(capsys: pytest.CaptureFixture[str]) -> None:
    claims = [
        Claim("gap shrinks", "cm", 1.0, at_most=2.0),
        Claim("recall", "@1", 0.5, at_least=0.8),
    ]
    with pytest.raises(ClaimFailedError, match=r"^recall \(@1\): 0.5, claimed ≥ 0.8$"):
        check_claims(claims)
    shown = capsys.readouterr().out
    assert "gap shrinks" in shown
    assert "FAILS" in shown
    check_claims(claims[:1])


def test_table_in_html_escapes_and_marks() -> None:
    html = ClaimTable([Claim("a < b", "m", 0.1234567, at_least=0.0, seeds=3)])._repr_html_()
    assert "a &lt; b" in html
    assert "<td>0.1235</td>" in html
    assert "class='holds'" in html


def test_each_failing_claim_has_its_line() -> None:
    claims = [Claim("a", "m", 1.0, at_most=0.5), Claim("b", "n", float("nan"), at_least=0.0)]
    with pytest.raises(ClaimFailedError) as failed:
        check_claims(claims)
    assert str(failed.value) == "a (m): 1, claimed ≤ 0.5\nb (n): nan, claimed ≥ 0"


@pytest.mark.parametrize("measured", [1.6, 2.9, 1e9, 0.0, float("nan")])
def test_time_and_memory_are_shown_and_stop_nothing(measured: float, capsys) -> None:
    claim = Claim("a step takes longer", "time, ratio", measured, usually=1.6)
    check_claims([claim])
    shown = capsys.readouterr().out
    assert f"{measured:.4g}  " in shown
    assert "usually 1.6" in shown
    assert "not checked" in shown
    assert "holds" not in shown
    assert "<tr class='not-checked'>" in ClaimTable([claim])._repr_html_()


def test_a_claim_has_one_bound() -> None:
    for bounds in ({}, {"at_least": 0.1, "at_most": 0.9}, {"at_most": 0.9, "usually": 0.5}):
        with pytest.raises(MMCLError, match="needs one of at_least, at_most and usually"):
            Claim("a", "m", 0.5, **bounds)


def test_a_claim_against_the_best_rival_is_checked_and_shown(capsys) -> None:
    record = record_of(
        new=[0.80, 0.81, 0.82], old=[0.70, 0.71, 0.72], older=[0.5, 0.5, 0.6], tried={"new": 4}
    )
    better = Better("new", ("older", "old"), "accuracy", by=0.05, says="new tells more")
    (claim,) = better_claims(record, [better])
    assert claim.result == pytest.approx(0.1)
    check_claims([claim])
    assert "accuracy: new above old, lower end" in capsys.readouterr().out
    html = better_table(record, [better])._repr_html_()
    assert "new: 0.810 (0." in html
    assert "the best of 4 settings" in html
    assert "old: 0.710" in html
    assert "0.100 (0.100 to 0.100); claimed ≥ 0.05" in html
    assert "class='holds'" in html


def test_a_claim_whose_intervals_meet_fails_however_alike_the_differences() -> None:
    record = record_of(new=[0.1, 0.5, 0.9], old=[0.04, 0.44, 0.84])
    better = Better("new", ("old",), "accuracy", by=0.05, says="new tells more")
    with pytest.raises(ClaimFailedError, match="new tells more"):
        check_claims(better_claims(record, [better]))
    assert "not shown" in repr(better_table(record, [better]))
