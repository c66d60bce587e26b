"""Claims: a result that breaks its bound stops the page."""

import pytest

from mmcl_book.claims import Claim, ClaimFailedError, ClaimTable, check_claims
from mmcl_core.errors import MMCLError


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
    with pytest.raises(ClaimFailedError, match=r"1 of 2 claims fail. recall: 0.5, claimed ≥ 0.8"):
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


def test_a_claim_has_one_bound() -> None:
    with pytest.raises(MMCLError, match="either at_least or at_most"):
        Claim("a", "m", 0.5)
    with pytest.raises(MMCLError, match="either at_least or at_most"):
        Claim("a", "m", 0.5, at_least=0.1, at_most=0.9)
