"""Claims, checked: what a page says, beside what it measured; a claim that fails stops the page.

It is ours: an `assert` would show nothing, and a test would stand on no page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mmcl_book.experiments.protocol import Better
from mmcl_book.records import Comparison, Interval, Record, compare
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


class Table:
    """Rows with a verdict at their end: HTML in a notebook or page, plain text elsewhere."""

    header: tuple[str, ...]
    css = "claims"

    def __init__(self, rows: Sequence[tuple[str, ...]]) -> None:
        self.rows = tuple(rows)

    def _repr_html_(self) -> str:
        head = "".join(f"<th scope='col'>{name}</th>" for name in self.header)
        rows = "".join(
            f"<tr class='{row[-1].lower().replace(' ', '-')}'>"
            + "".join(f"<td>{escape(cell)}</td>" for cell in row)
            + "</tr>"
            for row in self.rows
        )
        parts = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
        # On a narrow screen it scrolls, which the keyboard has to be able to do, too.
        return f"<table class='{self.css}' tabindex='0'>{parts}</table>"

    def __repr__(self) -> str:
        rows = [self.header, *self.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.header))]
        lines = (
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows
        )
        return "\n".join(line.rstrip() for line in lines)


class ClaimTable(Table):
    """The claims, each with its verdict."""

    header = ("claim", "measure", "result", "threshold", "seeds", "verdict")

    def __init__(self, claims: Sequence[Claim]) -> None:
        super().__init__([claim.cells for claim in claims])


class BetterTable(Table):
    """Claims against the best simple rival: what was measured, and how it was chosen."""

    css = "claims better"
    header = ("claim", "measure", "method", "best rival", "difference", "seeds", "verdict")

    def __init__(self, found: Sequence[Comparison]) -> None:
        super().__init__([_cells(each) for each in found])


def _cells(found: Comparison) -> tuple[str, ...]:
    def measured(name: str, value: Interval, tried: int) -> str:
        chosen = f"; the best of {tried} settings" if tried > 1 else ""
        return f"{name}: {_between(value)}{chosen}"

    better, (own, others) = found.better, found.tried
    return (
        better.says,
        better.measure,
        measured(better.method, found.ours, own),
        measured(found.rival, found.theirs, others),
        f"{_between(found.difference)}; claimed ≥ {better.by:.2f}",
        str(found.seeds),
        found.verdict,
    )


def _between(value: Interval) -> str:
    return f"{value.mean:.3f} ({value.low:.3f} to {value.high:.3f})"


def better_table(record: Record, claims: Sequence[Better]) -> BetterTable:
    """What a record says of claims against the best simple rival, whether they hold or not.

    Raises:
        RecordError: the record has no such condition or measure.
    """
    return BetterTable([compare(record, claim) for claim in claims])


def better_claims(record: Record, claims: Sequence[Better]) -> list[Claim]:
    """The same as claims that must hold, for `check_claims`.

    The result is the lower end of the difference over the seeds. Where the two intervals meet, it
    is instead how far they do, a negative number, so that the claim fails.

    Raises:
        RecordError: the record has no such condition or measure.
    """
    found = [compare(record, claim) for claim in claims]
    return [
        Claim(
            each.better.says,
            f"{each.better.measure}: {each.better.method} above {each.rival}, lower end",
            each.difference.low if each.apart > 0 else min(each.apart, each.difference.low),
            at_least=each.better.by,
            seeds=each.seeds,
        )
        for each in found
    ]


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
