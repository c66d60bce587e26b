"""Claims, checked: what a page says, beside what it measured; a claim that fails stops the page.

It is ours: an `assert` would show nothing, and a test would stand on no page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mmcl_core.errors import MMCLError


class ClaimFailedError(AssertionError):
    """A measured result does not bear out what was claimed."""


@dataclass(frozen=True)
class Claim:
    """One sentence, how it is measured, what came out, and the bound that it must keep.

    Exactly one of `at_least`, `at_most` and `usually`. The last is for time and memory: what came
    out when the page was written stands beside what came out now, and no difference stops the page,
    since another machine, or this one when it is busy, measures something else. `seeds` says over
    how many seeds the result was taken.
    """

    claim: str
    measure: str
    result: float
    at_least: float | None = None
    at_most: float | None = None
    usually: float | None = None
    seeds: int = 1

    def __post_init__(self) -> None:
        if (self.at_least, self.at_most, self.usually).count(None) != 2:
            raise MMCLError(
                f"a claim needs one of at_least, at_most and usually; {self.claim!r} has "
                f"at_least={self.at_least}, at_most={self.at_most}, usually={self.usually}"
            )

    @property
    def holds(self) -> bool:
        """Whether the result keeps its bound, if it has one. A NaN keeps none."""
        if self.at_least is not None:
            return self.result >= self.at_least
        return self.at_most is None or self.result <= self.at_most

    @property
    def bound(self) -> str:
        """The bound, or what usually comes out, as text."""
        if self.usually is not None:
            return f"usually {self.usually:.4g}"
        return f"≥ {self.at_least:.4g}" if self.at_least is not None else f"≤ {self.at_most:.4g}"

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.usually is not None:
            return "not checked"
        return "holds" if self.holds else "FAILS"

    @property
    def cells(self) -> tuple[str, str, str, str, str, str]:
        """The row of the table, as text."""
        result = f"{self.result:.4g}"
        return self.claim, self.measure, result, self.bound, str(self.seeds), self.verdict


HEADER = ("claim", "measure", "result", "threshold", "seeds", "verdict")


class ClaimTable:
    """The claims as a table: HTML in a notebook or page, plain text elsewhere."""

    def __init__(self, claims: Sequence[Claim]) -> None:
        self.claims = tuple(claims)

    def _repr_html_(self) -> str:
        head = "".join(f"<th scope='col'>{name}</th>" for name in HEADER)
        rows = "".join(
            f"<tr class='{c.verdict.lower().replace(' ', '-')}'>"
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
        ClaimFailedError: a line for each claim that fails, with its result and its bound. In a
            chapter this stops the page; the build of the book ends with the lines of all pages.
    """
    from IPython.display import display

    table = ClaimTable(claims)
    display(table)
    if failed := [c for c in claims if not c.holds]:
        rows = (f"{c.claim} ({c.measure}): {c.result:.4g}, claimed {c.bound}" for c in failed)
        raise ClaimFailedError("\n".join(rows))
