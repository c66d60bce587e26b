"""The built book, for the tests that read its pages."""

from functools import cache
from pathlib import Path

from bs4 import BeautifulSoup
from contents import ROOT, pages

HTML = ROOT / "_build" / "html"


PAGES = pages()


def file_of(page: str) -> Path:
    """Where a page lies."""
    return HTML / f"{page}.html"


@cache
def read(path: Path) -> BeautifulSoup:
    """A page of the built book, parsed."""
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
