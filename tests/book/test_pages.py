"""What the built pages are made of: alt texts, headings, links, size. Read, not opened."""

import re
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import Tag

from tests.built import HTML, PAGES, file_of, read

LARGEST_PAGE = 3_000_000  # bytes of a page with its own pictures and widgets
SHORTEST_ALT = 40  # characters: less hardly says what is seen
LOGOS = (".navbar-brand", ".logo__image", ".headerbtn__icon-container")  # the theme's, not figures

pytestmark = pytest.mark.browser


def article(name: str) -> Tag:
    """What is the page's own, without menus."""
    return read(file_of(name)).select_one("article")


@pytest.mark.parametrize("name", PAGES)
def test_alt_texts_say_what_is_seen(name: str) -> None:
    for image in article(name).find_all("img"):
        alt = image.get("alt", "")
        assert not re.search(r"\.(png|svg|webp|jpe?g)\b|^_", alt), f"a file's name: {alt!r}"
        assert len(alt) >= SHORTEST_ALT, f"says too little: {alt!r}"
    for drawing in article(name).select("svg[role=img]"):
        label = drawing.get("aria-label") or drawing.find(["title", "desc"]).get_text()
        assert len(label) >= SHORTEST_ALT, f"says too little: {label!r}"


@pytest.mark.parametrize("name", PAGES)
def test_headings_are_in_order(name: str) -> None:
    levels = [int(h.name[1]) for h in article(name).find_all(re.compile("^h[1-6]$"))]
    assert levels.count(1) == 1
    assert levels[0] == 1
    for above, below in pairwise(levels):
        assert below <= above + 1, f"h{above} is followed by h{below}"


@pytest.mark.parametrize("name", PAGES)
def test_links_within_the_book_lead_somewhere(name: str) -> None:
    path = file_of(name)
    broken = [link for link in links_of(path) if not leads_somewhere(path, link)]
    assert not broken


def links_of(path: Path) -> list[str]:
    """The addresses in a page that are not of other hosts."""
    page = read(path)
    found = [tag["href"] for tag in page.find_all(["a", "link"], href=True)]
    found += [tag["src"] for tag in page.find_all(["img", "script"], src=True)]
    return [link for link in found if not urlsplit(link).scheme and not link.startswith("//")]


def leads_somewhere(path: Path, link: str) -> bool:
    """Whether the file exists, and the place in it."""
    parts = urlsplit(link)
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.is_file():
        return False
    place = unquote(parts.fragment)
    if not place or target.suffix != ".html":
        return True
    page = read(target)
    return page.find(id=place) is not None or page.find("a", attrs={"name": place}) is not None


@pytest.mark.parametrize("name", PAGES)
def test_page_size(name: str) -> None:
    """A page with its widgets and pictures is at most 3 MB."""
    path = file_of(name)
    pictures = {image["src"] for image in article(name).find_all("img")}
    files = [path.parent / source for source in pictures if not source.startswith("data:")]
    size = path.stat().st_size + sum(file.stat().st_size for file in files)
    assert size <= LARGEST_PAGE, f"{size / 1e6:.1f} MB"


def test_no_page_is_forgotten() -> None:
    built = {p.relative_to(HTML).with_suffix("").as_posix() for p in HTML.glob("book/**/*.html")}
    assert built == set(PAGES)
