"""The whole book as one PDF, from its built pages: `_build/closing-the-gap.pdf`.

The articles of all pages, in order, become one page, whose links lead within it; Chromium prints
it. So the PDF shows what the pages show, and no second build is needed. What the print looks like
is said by `book/_static/print.css`.
The Korean terms of the glossary need a font that has them (Debian: `fonts-nanum`).
"""

import html
import re
import sys
from datetime import date
from urllib.parse import urldefrag, urlsplit

import chromium
import yaml
from book_extension import site_address
from bs4 import BeautifulSoup, Tag
from contents import ROOT, parts
from playwright.sync_api import sync_playwright

HTML = ROOT / "_build" / "html"
PDF = ROOT / "_build" / "closing-the-gap.pdf"
# What only a screen has a use for. A widget's first frame stands behind it.
FOR_SCREENS = "script, .headerlink, .widget-subarea, .copybtn"
FOOT = """<div style="width: 100%; text-align: center; font: 8pt sans-serif; color: #555">
<span class="pageNumber"></span></div>"""


def place(page: str, fragment: str = "") -> str:
    """The name in the whole book of a place of a page; without a fragment, of its beginning."""
    return f"{page}:{fragment}" if fragment else page


def within(page: str, link: str, pages: set[str]) -> str:
    """Where a link of `page` leads in the PDF: to a place in it, or to an address on the web."""
    if urlsplit(link).scheme:
        return link
    path, fragment = urldefrag(link)
    target = (HTML / page).parent.joinpath(path).resolve() if path else HTML / page
    name = target.relative_to(HTML).as_posix().removesuffix(".html")
    if name in pages:
        return "#" + place(name, fragment)
    return site_address() + target.relative_to(HTML).as_posix() + (f"#{fragment}" * bool(fragment))


def article(page: str, pages: set[str]) -> Tag:
    """A page's own text, to stand in `_build` among those of all pages."""
    soup = BeautifulSoup((HTML / f"{page}.html").read_text(encoding="utf-8"), "html.parser")
    text = soup.select_one("article")
    assert text is not None
    for tag in text.select(FOR_SCREENS):
        tag.decompose()
    for tag in text.find_all(id=True):
        if not tag.find_parent("svg"):  # a drawing refers to its own
            tag["id"] = place(page, tag["id"])
    for tag in text.find_all("a", href=True):
        tag["href"] = within(page, tag["href"], pages)
    for tag in text.find_all("img"):
        if not urlsplit(tag["src"]).scheme:
            source = (HTML / page).parent.joinpath(tag["src"]).resolve()
            tag["src"] = source.relative_to(HTML.parent).as_posix()
    for tag in text.find_all("details"):
        tag["open"] = ""
    text["id"] = page
    return text


def title_of(text: Tag) -> str:
    """The title of an article, with its number."""
    return html.escape(text.h1.get_text()) if text.h1 else ""


def head(page: str) -> str:
    """The style sheets of a built page, and its MathJax, as seen from `_build`."""
    soup = BeautifulSoup((HTML / f"{page}.html").read_text(encoding="utf-8"), "html.parser")
    wanted = soup.select("link[rel=stylesheet]") + [
        script for script in soup.find_all("script") if "mathjax" in str(script).lower()
    ]
    up = "../" * page.count("/")
    return "\n".join(str(tag).replace(f'"{up}', '"html/') for tag in wanted)


def whole_book() -> str:
    """The page that is printed."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    book = parts()
    pages = {page for _, names in book for page in names}
    texts = {page: article(page, pages) for _, names in book for page in names}
    contents = []
    for caption, names in book:
        lines = [f'<li><a href="#{name}">{title_of(texts[name])}</a></li>' for name in names]
        contents.append(f"<p>{caption}</p><ul>{''.join(lines)}</ul>")
    with_formulas = next(page for page, text in texts.items() if text.select_one(".math"))
    title, _, subtitle = config["title"].partition(": ")
    built = date.fromtimestamp((HTML.parent / "seconds.json").stat().st_mtime)
    return f"""<!DOCTYPE html>
<html lang="en" data-theme="light"><head><meta charset="utf-8"><title>{config["title"]}</title>
{head(with_formulas)}</head><body class="whole-book">
<header><p class="title">{title}</p><p>{subtitle}</p><p>{config["author"]}</p>
<p>{built:%d %B %Y}</p><p><a href="{site_address()}">{site_address()}</a></p></header>
<nav><p class="title">Contents</p>{"".join(contents)}</nav>
<main class="bd-main"><div class="bd-content">{"".join(map(str, texts.values()))}</div></main>
</body></html>"""


def main() -> None:
    """Write the page and print it."""
    if not (HTML / "index.html").exists():
        sys.exit("There is no built book; run `make book` first.")
    source = PDF.with_suffix(".html")
    # An empty output would leave an empty line.
    source.write_text(re.sub(r"\n{3,}", "\n\n", whole_book()), encoding="utf-8")
    with sync_playwright() as playwright:
        page = chromium.launch(playwright).new_page()
        page.goto(source.as_uri())
        if faults := chromium.formula_faults(page):
            sys.exit("\n".join(["The PDF is not printed. Of its formulas:", *faults]))
        page.pdf(
            path=PDF,
            format="A4",
            scale=0.8,
            margin={"top": "18mm", "bottom": "20mm", "left": "18mm", "right": "18mm"},
            print_background=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=FOOT,
            outline=True,
            tagged=True,
        )
    print(f"The book as a PDF: {PDF.as_posix()}, {PDF.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
