"""The whole book as a PDF: what is printed, and the print itself."""

import re

import pdf
import pytest
from pypdf import PdfReader

from tests.built import HTML, PAGES, file_of, read

DRAWN = (
    20_000  # bytes: a page of which this much is drawn is not blank, and not read, which is slow
)


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("#here", "#book/a/b:here"),
        ("c.html", "#book/a/c"),
        ("../d.html#there", "#book/d:there"),
        ("https://example.org/#x", "https://example.org/#x"),
        ("../../genindex.html#m", f"{pdf.site_address()}genindex.html#m"),
    ],
)
def test_links_lead_within_the_pdf_or_to_the_web(link, expected):
    pages = {"book/a/b", "book/a/c", "book/d"}
    assert pdf.within("book/a/b", link, pages) == expected


@pytest.fixture(scope="module")
def printed() -> PdfReader:
    """The PDF of the built book."""
    built = HTML.parent / "seconds.json"  # written by each build
    if not pdf.PDF.exists() or pdf.PDF.stat().st_mtime < built.stat().st_mtime:
        pytest.fail("The PDF is older than the book; run `make pdf` first.")
    return PdfReader(pdf.PDF)


def squeezed(text: str) -> str:
    """A text without white space: in a PDF, that is a matter of places."""
    return re.sub(r"\s", "", text)


@pytest.mark.browser
def test_each_page_of_the_book_has_its_bookmark(printed):
    titles = {squeezed(entry.title) for entry in flat(printed.outline)}
    wanted = [read(file_of(name)).select_one("article h1") for name in PAGES]
    missing = [h.get_text() for h in wanted if squeezed(h.get_text()).rstrip("#") not in titles]
    assert not missing


def flat(outline) -> list:
    """The bookmarks of all levels."""
    return [x for e in outline for x in (flat(e) if isinstance(e, list) else [e])]


@pytest.mark.browser
def test_no_page_is_blank(printed):
    for number, page in enumerate(printed.pages, start=1):
        if len(page.get_contents().get_data()) < DRAWN:
            shown = page.extract_text().strip().removesuffix(str(number)).strip()
            assert shown or "/XObject" in page["/Resources"], f"page {number} shows nothing"


@pytest.mark.browser
def test_each_picture_is_printed(printed):
    drawn = sum(len(count_images(page)) for page in printed.pages)
    wanted = sum(len(read(file_of(name)).select("article img")) for name in PAGES)
    assert drawn >= wanted


def count_images(page) -> list[str]:
    """The names of the pictures that a page of the PDF refers to."""
    objects = page["/Resources"].get("/XObject", {})
    return [name for name, x in objects.items() if x.get_object()["/Subtype"] == "/Image"]
