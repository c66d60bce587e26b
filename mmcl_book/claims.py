"""Claims, checked: what a page says, beside what it measured; a claim that fails stops the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mmcl_core.errors import MMCLError


class ClaimFailedError(AssertionError):
    """A measured result does not bear out what was claimed."""


@dataclass(frozen=True)
class Claim:
    """One sentence, how it is measured, what came out, and the bound that it must keep.

    Exactly one of `at_least` and `at_most`. `seeds` says over how many seeds the result was taken.
    """

    claim: str
    measure: str
    result: float
    at_least: float | None = None
    at_most: float | None = None
    seeds: int = 1

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise MMCLError(
                f"a claim needs either at_least or at_most; {self.claim!r} has "
                f"at_least={self.at_least}, at_most={self.at_most}"
            )

    @property
    def holds(self) -> bool:
        """Whether the result keeps its bound. A NaN keeps none."""
        if self.at_least is not None:
            return self.result >= self.at_least
        return self.at_most is not None and self.result <= self.at_most

    @property
    def cells(self) -> tuple[str, str, str, str, str, str]:
        """The row of the table, as text."""
        bound = f"≥ {self.at_least:.4g}" if self.at_least is not None else f"≤ {self.at_most:.4g}"
        verdict = "holds" if self.holds else "FAILS"
        return self.claim, self.measure, f"{self.result:.4g}", bound, str(self.seeds), verdict


HEADER = ("claim", "measure", "result", "threshold", "seeds", "verdict")


class ClaimTable:
    """The claims as a table: HTML in a notebook or page, plain text elsewhere."""

    def __init__(self, claims: Sequence[Claim]) -> None:
        self.claims = tuple(claims)

    def _repr_html_(self) -> str:
        head = "".join(f"<th scope='col'>{name}</th>" for name in HEADER)
        rows = "".join(
            f"<tr class='{'holds' if c.holds else 'fails'}'>"
            + "".join(f"<td>{escape(cell)}</td>" for cell in c.cells)
            + "</tr>"
            for c in self.claims
        )
        return f"<table class='claims'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def __repr__(self) -> str:
        rows = [HEADER, *(c.cells for c in self.claims)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
        lines = (
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows
        )
        return "\n".join(line.rstrip() for line in lines)


def check_claims(claims: Sequence[Claim]) -> None:
    """Show the table of claims, then stop if one fails.

    Raises:
        ClaimFailedError: naming each claim that fails, its result and its bound. In a chapter this
            stops the page from being built.
    """
    from IPython.display import display

    table = ClaimTable(claims)
    display(table)
    if failed := [c for c in claims if not c.holds]:
        rows = "; ".join(f"{c.claim}: {c.cells[2]}, claimed {c.cells[3]}" for c in failed)
        raise ClaimFailedError(f"{len(failed)} of {len(claims)} claims fail. {rows}")
