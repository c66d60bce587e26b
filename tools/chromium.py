"""The browser that prints the book, takes its pictures and tests it."""

import shutil

from playwright.sync_api import Browser, Error, Playwright

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
