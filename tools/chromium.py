"""The browser that prints the book, takes its pictures and tests it."""

import shutil

from playwright.sync_api import Browser, Error, Page, Playwright

# Chromium refuses its sandbox to root, as which containers run.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


ADVICE = """No browser was found ({reason}). Install one, and run again:
    apt-get install chromium                  (Debian, as root)
    .venv/bin/playwright install chromium     (elsewhere)"""


def launch(playwright: Playwright) -> Browser:
    """Debian's Chromium where there is one, else Playwright's own.

    Raises:
        SystemExit: there is neither; with advice how to install one.
    """
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        return playwright.chromium.launch(executable_path=found, args=FLAGS)
    except Error as error:
        raise SystemExit(ADVICE.format(reason=str(error).splitlines()[0])) from error


def formula_faults(page: Page) -> list[str]:
    """What is wrong with the formulas of a page, after MathJax has set them."""
    page.evaluate("window.MathJax?.startup?.promise.then(() => null)")
    raw = page.locator(".math:not(:has(mjx-container))").all_text_contents()
    errors = page.locator("[data-mjx-error]").evaluate_all(
        "all => all.map(e => e.dataset.mjxError)"
    )
    # How MathJax marks a name that it does not know.
    unknown = page.locator("mjx-assistive-mml [mathcolor=red]").all_text_contents()
    return [
        *(f"not rendered: {formula.strip()[:80]}" for formula in raw),
        *(f"an error: {error}" for error in errors),
        *(f"unknown to MathJax: {name}" for name in unknown),
    ]
