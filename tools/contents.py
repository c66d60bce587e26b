"""The book's contents, as `_toc.yml` lists them."""

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def parts(root: Path = ROOT) -> list[tuple[str, list[str]]]:
    """The captions of the book's parts, each with its pages, sections last; the root alone."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    found = [("", [toc["root"]])]
    for part in toc["parts"]:
        pages = []
        for chapter in part["chapters"]:
            pages += [chapter["file"], *(s["file"] for s in chapter.get("sections", []))]
        found.append((part["caption"], pages))
    return found


def pages(root: Path = ROOT) -> list[str]:
    """All pages of the book, in order, as "book/intro"."""
    return [page for _, pages in parts(root) for page in pages]
