"""A table that its reader can sort: in a built page, in Jupyter and in Colab, without a kernel."""

import hashlib
import json
import math
from collections.abc import Mapping
from html import escape
from typing import Literal

from mmcl_core.errors import MMCLError

Better = Literal["high", "low", ""]
Cell = float | tuple[float, float, float] | None  # a number; mean, low and high; or nothing

# The buttons come with the script: a page without it has a plain table, and no dead buttons.
_SCRIPT = """
(() => {
  const table = document.getElementById(%s);
  if (!table || table.dataset.ready) return;
  table.dataset.ready = "yes";
  const heads = [...table.tHead.rows[0].cells];
  const told = document.getElementById(%s);
  const key = (row, at) => row.cells[at].dataset.value;
  heads.forEach((head, at) => {
    const name = head.textContent, button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.textContent = name;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort"), first = head.dataset.first;
      const other = first === "ascending" ? "descending" : "ascending";
      const order = now === first ? other : first, sign = order === "ascending" ? 1 : -1;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const x = key(a, at), y = key(b, at);
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (at ? x - y : x.localeCompare(y));
      });
      table.tBodies[0].append(...rows);
      told.textContent = `Sorted by ${name}, ${order}.`;
    });
  });
})();
"""

_STYLE = """
#%(id)s { font-variant-numeric: tabular-nums; }
#%(id)s caption { caption-side: top; text-align: left; padding: 0 0 0.5rem; }
#%(id)s caption span { display: block; max-width: min(42rem, 85vw); }
#%(id)s th, #%(id)s td { padding: 0.3rem 0.5rem; text-align: right; vertical-align: top; }
#%(id)s thead th { vertical-align: bottom; line-height: 1.25; }
#%(id)s tr > :first-child { position: sticky; left: 0; z-index: 1; text-align: left;
  white-space: nowrap;
  background: var(--pst-color-background, var(--jp-layout-color0, Canvas)); }
#%(id)s td small { display: block; white-space: nowrap; }
#%(id)s tfoot { font-style: italic; }
#%(id)s .sort { font: inherit; color: inherit; text-align: inherit; background: none; border: 0;
  padding: 0.15rem; min-height: 1.5rem; cursor: pointer; text-decoration: underline dotted; }
#%(id)s .sort:focus-visible { outline: 3px solid #0a58ca; outline-offset: 1px; }
#%(id)s [aria-sort=ascending] .sort::after { content: " \\2191"; }
#%(id)s [aria-sort=descending] .sort::after { content: " \\2193"; }
#%(id)s ~ .told { position: absolute; clip-path: inset(50%%); width: 1px; height: 1px;
  overflow: hidden; }
"""


class SortableTable:
    """Rows of numbers; see `sortable_table`."""

    def __init__(
        self,
        rows: Mapping[str, Mapping[str, Cell]],
        caption: str,
        better: Mapping[str, Better],
        foot: Mapping[str, Mapping[str, Cell]],
        corner: str,
        digits: int,
    ) -> None:
        self.columns = list(dict.fromkeys(name for of in rows.values() for name in of))
        if not rows or not self.columns:
            raise MMCLError("expected rows with at least one column; got none")
        for what, names in (("better", better), *((f"foot {n!r}", of) for n, of in foot.items())):
            if unknown := [name for name in names if name not in self.columns]:
                raise MMCLError(f"{what}: the columns are {self.columns}; got {unknown}")
        self.rows, self.caption, self.better = rows, caption, better
        self.foot, self.corner, self.digits = foot, corner, digits
        self.best = {name: _best(rows, name, better.get(name, "")) for name in self.columns}

    def _repr_html_(self) -> str:
        body = "".join(self._row(name, of) for name, of in self.rows.items())
        foot = "".join(self._row(name, of) for name, of in self.foot.items())
        head = f'<th scope="col" data-first="ascending">{escape(self.corner)}</th>' + "".join(
            f'<th scope="col" data-first="{self._first(name)}">{escape(name)}</th>'
            for name in self.columns
        )
        table = (
            f"<caption><span>{escape(self.caption)}</span></caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody>" + (f"<tfoot>{foot}</tfoot>" if foot else "")
        )
        # The same table has the same name in every build.
        name = "sortable-" + hashlib.sha256(table.encode()).hexdigest()[:8]
        script = _SCRIPT % (json.dumps(name), json.dumps(f"{name}-told"))
        return (
            f"<style>{_STYLE % {'id': name}}</style>"
            f'<table class="record" id="{name}">{table}</table>'
            f'<p class="told" id="{name}-told" role="status"></p><script>{script}</script>'
        )

    def __repr__(self) -> str:
        every = [*self.rows.items(), *self.foot.items()]
        lines = [(self.corner, *self.columns)]
        lines += [(name, *(self._text(of.get(c)) for c in self.columns)) for name, of in every]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def _first(self, column: str) -> str:
        """The order of the first click: the best on top."""
        return "ascending" if self.better.get(column) == "low" else "descending"

    def _row(self, name: str, of: Mapping[str, Cell]) -> str:
        cells = []
        for column in self.columns:
            cell = of.get(column)
            middle, _, around = self._text(cell).partition(" ")
            text = f"{middle} <small>{around}</small>" if around else middle
            if of is self.rows.get(name) and self.best[column] == name:
                text = f"<strong>{text}</strong>"
            value = "" if cell is None else repr(_mean(cell))
            cells.append(f'<td data-value="{value}">{text}</td>')
        label = f'<th scope="row" data-value="{escape(name)}">{escape(name)}</th>'
        return f"<tr>{label}{''.join(cells)}</tr>"

    def _text(self, cell: Cell) -> str:
        """The mean, and half of the interval after a blank."""
        if cell is None:
            return "–"
        if not isinstance(cell, tuple):
            return f"{cell:.{self.digits}f}"
        mean, low, high = cell
        return f"{mean:.{self.digits}f} ±\N{NO-BREAK SPACE}{(high - low) / 2:.{self.digits}f}"


def sortable_table(
    rows: Mapping[str, Mapping[str, Cell]],
    *,
    caption: str,
    better: Mapping[str, Better] | None = None,
    foot: Mapping[str, Mapping[str, Cell]] | None = None,
    corner: str = "method",
    digits: int = 2,
) -> SortableTable:
    """A table whose column heads are buttons that sort its rows, as the last line of a cell.

    The best of a column is bold, where `better` says what is best, and where its interval is apart
    from every other one. Cells without a value stay at the end, whatever the order. Without
    JavaScript the rows stand in the order in which they came.

    Args:
        rows: name of a row -> name of a column -> a number, a (mean, low, high), or None.
        caption: what the table shows, with what the intervals are.
        better: name of a column -> "high" or "low"; the first click puts the best on top.
        foot: rows that stay below, such as chance.
        corner: what the rows are.
        digits: after the point.

    Raises:
        MMCLError: no rows or columns; a column in `better` or `foot` that no row has; a number
            that is not finite.
    """
    given, below = rows, foot or {}
    for name, of in [*given.items(), *below.items()]:
        for column, cell in of.items():
            numbers = cell if isinstance(cell, tuple) else () if cell is None else (cell,)
            if not all(map(math.isfinite, numbers)):
                raise MMCLError(f"{name}, {column}: expected finite numbers; got {cell}")
    return SortableTable(given, caption, better or {}, below, corner, digits)


def _mean(cell: float | tuple[float, float, float]) -> float:
    return float(cell[0] if isinstance(cell, tuple) else cell)


def _best(rows: Mapping[str, Mapping[str, Cell]], column: str, better: Better) -> str | None:
    """The row that is apart from all others, or None."""
    sign = -1 if better == "low" else 1
    ends: list[tuple[float, float, str]] = []  # the worse end and the better one of each
    for name, of in rows.items():
        cell = of.get(column)
        if isinstance(cell, tuple):
            ends.append((*sorted((sign * cell[1], sign * cell[2])), name))  # type: ignore[arg-type]
    if not better or len(ends) < 2:
        return None
    worst, _, name = max(ends)
    return name if all(top < worst for _, top, other in ends if other != name) else None
