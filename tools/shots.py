"""Pictures of every built page on a phone, a tablet and a screen, in light and dark, to look at.

    python tools/shots.py                    # all pages, to _build/shots
    python tools/shots.py intro methods/fdt  # some

A long page comes in parts of PART pixels: NAME-WIDTH-THEME-1.png, -2.png, ...
"""

import shutil
import sys

import chromium
from contents import ROOT, pages
from playwright.sync_api import Page, sync_playwright

HTML = ROOT / "_build" / "html"
SHOTS = ROOT / "_build" / "shots"
WIDTHS = [360, 768, 1440]  # pixels
THEMES = ["light", "dark"]
PART = 4000  # pixels high


def open_page(page: Page, name: str) -> None:
    """Open a page of the book and wait for its formulas and widgets."""
    page.goto((HTML / "book" / f"{name}.html").as_uri())
    page.wait_for_load_state("load")
    page.add_style_tag(content="* { transition: none !important }")  # nothing on its way
    if page.locator("script[type='application/vnd.jupyter.widget-view+json']").count():
        page.locator(".mmcl-scrub").last.wait_for()
    for place in page.locator(".mmcl-place .mmcl-live").all():
        place.wait_for()
    page.evaluate("window.MathJax?.startup?.promise")


def shoot(page: Page, name: str, width: int, theme: str) -> int:
    """Save the parts of a page; returns how many."""
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
    height = page.evaluate("document.documentElement.scrollHeight")
    tops = range(0, height, PART)
    for part, top in enumerate(tops, start=1):
        page.screenshot(
            path=SHOTS / f"{name.replace('/', '-')}-{width}-{theme}-{part}.png",
            full_page=True,
            clip={"x": 0, "y": top, "width": width, "height": min(PART, height - top)},
        )
    return len(tops)


def main(names: list[str]) -> None:
    """Take the pictures of the named pages, or of all."""
    if not (HTML / "index.html").exists():
        sys.exit("There is no built book; run `make book` first.")
    known = [page.removeprefix("book/") for page in pages()]
    if unknown := set(names) - set(known):
        sys.exit(f"There is no page {sorted(unknown)}; there are {known}.")
    if not names:
        shutil.rmtree(SHOTS, ignore_errors=True)
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        page = chromium.launch(playwright).new_page()
        for name in names or known:
            open_page(page, name)
            parts = sum(shoot(page, name, width, theme) for width in WIDTHS for theme in THEMES)
            print(f"{parts:4} pictures  {name}", flush=True)
    print(f"They lie in {SHOTS.as_posix()}")


if __name__ == "__main__":
    main(sys.argv[1:])
