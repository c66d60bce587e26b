"""The built book, for the tests that read its pages."""

from functools import cache
from pathlib import Path

import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"


def _pages() -> list[str]:
    """The pages that _toc.yml lists, in order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    parts = toc.get("parts", [toc])
    return [toc["root"], *(entry["file"] for part in parts for entry in part["chapters"])]


PAGES = _pages()


def file_of(page: str) -> Path:
    """Where a page lies."""
    return HTML / f"{page}.html"


@cache
def read(path: Path) -> BeautifulSoup:
    """A page of the built book, parsed."""
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
