"""A table that sorts itself: as HTML without JavaScript, as text, and in a browser."""

import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from mmcl_book import figures
from mmcl_core.errors import MMCLError

ROWS = {
    "alpha": {"high": (0.9, 0.85, 0.95), "low": (2.0, 1.9, 2.1), "cost": 3.0, "some": None},
    "beta": {"high": (0.5, 0.45, 0.55), "low": (1.0, 0.9, 1.1), "cost": 1.0, "some": 0.25},
    "gamma": {"high": (0.4, 0.35, 0.45), "low": (1.1, 1.0, 1.2), "cost": 12.0, "some": 0.75},
}
BETTER = {"high": "high", "low": "low", "cost": "low", "some": "high"}


def table(**changes):
    settings = {"caption": "A & B", "better": BETTER, "foot": {"guessing": {"high": 0.1}}}
    return figures.sortable_table(ROWS, **settings | changes)


class Cells(HTMLParser):
    """The cells of each row, as (tag, attributes, text)."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[list]] = []
        self.inside = False
        self.feed(html)

    def handle_starttag(self, tag, attrs) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append([tag, dict(attrs), ""])
            self.inside = True

    def handle_endtag(self, tag) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data) -> None:
        if self.inside:
            self.rows[-1][-1][2] += data


def test_it_is_a_table_with_headers_and_a_caption() -> None:
    html = table()._repr_html_()
    assert "<caption><span>A &amp; B</span></caption>" in html
    head, *body = Cells(html).rows
    assert [cell[2] for cell in head] == ["method", "high", "low", "cost", "some"]
    assert all(cell[0] == "th" and cell[1]["scope"] == "col" for cell in head)
    assert [row[0][2] for row in body] == ["alpha", "beta", "gamma", "guessing"]
    assert all(row[0][0] == "th" and row[0][1]["scope"] == "row" for row in body)
    assert body[0][1][2].replace("\N{NO-BREAK SPACE}", " ") == "0.90 ± 0.05"
    assert body[0][1][1]["data-value"] == "0.9"
    assert (body[0][4][2], body[0][4][1]["data-value"]) == ("–", "")
    assert html.index("<tfoot>") < html.index("guessing")


def test_the_first_click_puts_the_best_on_top() -> None:
    head = Cells(table()._repr_html_()).rows[0]
    first = {cell[2]: cell[1]["data-first"] for cell in head}
    assert first == {
        "method": "ascending", "high": "descending", "low": "ascending", "cost": "ascending",
        "some": "descending",
    }  # fmt: skip


def test_bold_is_the_best_where_its_interval_is_apart() -> None:
    html = table()._repr_html_()
    assert re.findall(r"<strong>([\d.]+)", html) == ["0.90"]  # not "low": 0.9-1.1 and 1.0-1.2
    assert "<strong>" not in table(better={})._repr_html_()
    near = {name: of | {"high": (0.5, 0.1, 0.9)} for name, of in ROWS.items()}
    assert "<strong>" not in figures.sortable_table(near, caption="", better=BETTER)._repr_html_()


def test_lowest_is_bold_where_low_is_good() -> None:
    apart = {name: {"low": (i, i - 0.1, i + 0.1)} for i, name in enumerate("cab")}
    html = figures.sortable_table(apart, caption="", better={"low": "low"})._repr_html_()
    assert re.findall(r"<strong>([\d.]+)", html) == ["0.00"]


def test_two_tables_of_a_page_do_not_meddle() -> None:
    one, other = table()._repr_html_(), table(caption="another")._repr_html_()
    names = [set(re.findall(r"sortable-[0-9a-f]{8}", html)) for html in (one, other)]
    assert all(len(name) == 1 for name in names)
    assert names[0] != names[1]
    assert one == table()._repr_html_()  # and builds are the same


def test_names_are_escaped() -> None:
    html = figures.sortable_table({'<b>"': {"x<y": 1.0}}, caption="<i>")._repr_html_()
    assert "<b>" not in html.replace("<b>&quot;", "")
    assert "x&lt;y" in html
    assert "<span>&lt;i&gt;</span>" in html


def test_as_text() -> None:
    lines = repr(table()).splitlines()
    assert lines[0].split() == ["method", "high", "low", "cost", "some"]
    assert lines[1].split() == ["alpha", "0.90", "±", "0.05", "2.00", "±", "0.10", "3.00", "–"]
    assert lines[-1].split() == ["guessing", "0.10", "–", "–", "–"]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ({}, {}, "expected rows with at least one column"),
        ({"a": {}}, {}, "expected rows with at least one column"),
        ({"a": {"x": 1.0}}, {"better": {"y": "high"}}, "the columns are .'x'.; got .'y'."),
        ({"a": {"x": 1.0}}, {"foot": {"f": {"y": 1.0}}}, "foot 'f': the columns are"),
        ({"a": {"x": float("nan")}}, {}, "a, x: expected finite numbers"),
        ({"a": {"x": (1.0, float("inf"), 2.0)}}, {}, "a, x: expected finite numbers"),
    ],
)
def test_what_cannot_be_shown(rows, settings, message) -> None:
    with pytest.raises(MMCLError, match=message):
        figures.sortable_table(rows, caption="c", **settings)


# --- in a browser, without network and kernel -----------------------------------------------------


@pytest.fixture
def page(browser):
    page = browser.new_page()
    page.set_content(f"<main>{table()._repr_html_()}</main>")
    yield page
    page.close()


def order(page) -> list[str]:
    return page.locator("tbody th").all_inner_texts()


@pytest.mark.browser
def test_it_sorts_by_click_and_by_keyboard(page) -> None:
    head = page.get_by_role("columnheader", name="low")
    page.get_by_role("button", name="low").click()
    assert order(page) == ["beta", "gamma", "alpha"]
    assert head.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")  # the focus is still on it
    assert order(page) == ["alpha", "gamma", "beta"]
    assert head.get_attribute("aria-sort") == "descending"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert order(page) == ["beta", "alpha", "gamma"]
    assert head.get_attribute("aria-sort") is None
    assert page.get_by_role("status").inner_text() == "Sorted by cost, ascending."


@pytest.mark.browser
def test_what_is_missing_stays_last(page) -> None:
    for expected in (["gamma", "beta", "alpha"], ["beta", "gamma", "alpha"]):
        page.get_by_role("button", name="some").click()
        assert order(page) == expected
    page.get_by_role("button", name="method").click()
    assert order(page) == ["alpha", "beta", "gamma"]
    assert page.locator("tfoot th").all_inner_texts() == ["guessing"]


# --- the card of scores ---------------------------------------------------------------------------


def test_scorecard_writes_numbers_and_leaves_gaps() -> None:
    figure = figures.scorecard(
        ["a", "b"],
        {"one": [0.25, 0.5], "two": [None, 3.0]},
        places={"one": [0.0, 1.0], "two": [None, 0.4]},
        title="b is the best",
    )
    assert isinstance(figure, Figure)
    axis = figure.axes[0]
    assert {text.get_text() for text in axis.texts} == {"0.25", "0.50", "3.00"}
    light, dark = (axis.patches[i].get_facecolor()[:3] for i in (0, 1))
    assert sum(light) > sum(dark)
    assert axis.patches[2].get_hatch()
